"""The training of one SAE: normalisation of the input, optimiser, dead units and state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from saefeat.config import TrainConfig
from saefeat.dictionaries import SAE
from saefeat.io import RunFailed
from saefeat.models import native_bf16
from saefeat.sae.objectives import OBJECTIVES, Parameters, Step, sae_width
from saefeat.tokens import inliers, norms, outlier_limit
from saefeat.world import ALONE, World

# Norm of all gradients together, above which they are scaled down. It keeps the large gradients of
# the first steps out of the running averages of Adam.
MAX_GRADIENT = 1.0
_ROWS = 8192  # vectors converted at once: a float64 copy of a chunk may not fit in memory


class Trainer:
    """One SAE in training, on inputs that are scaled to mean 0 and variance 1.

    Only the objective knows the architecture (`saefeat.sae.objectives`). Several ranks may train it
    together. Those of `world` each have a part of every batch, and all of them hold the same state.
    Those of `split` have the same vectors, and each holds the parameters of its units.

    Args:
        d_in: width of the site.
        total_steps: of the whole training, for the schedule of the learning rate.
        world: the ranks that share each batch.
        split: the ranks among which the units are split.

    Attributes:
        parameters: tensors by name, float32 (float64 if the encoder product is).
        scaler: mean [d_in], scale [] and max_norm [] of the training sample; empty before
            `fit_scaler`.
        idle: tokens of all ranks since each unit fired, of the units of all ranks, int64 [d_sae].
        fvu, l0: averages over the last steps, [].
    """

    def __init__(
        self,
        d_in: int,
        config: TrainConfig,
        total_steps: int,
        device: str,
        world: World = ALONE,
        split: World = ALONE,
    ) -> None:
        self.world, self.split = world, split
        self.config, self.total_steps, self.device = config, max(total_steps, 1), device
        auto = torch.bfloat16 if native_bf16(device) else torch.float32
        self.dtype = auto if config.dtype == "auto" else getattr(torch, config.dtype)
        self.precision = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.objective = OBJECTIVES[config.architecture](config, self.dtype, world, split)
        width = sae_width(config, d_in)
        initial = self.objective.initialize(d_in, width, torch.Generator().manual_seed(config.seed))
        self.parameters = {
            name: value.to(device, self.precision) for name, value in initial.items()
        }
        self.lr = config.lr or 1e-3 * (10_240 / width) ** 0.5
        eighth = self.total_steps * config.batch_size // 8
        self.dead_tokens = config.dead_tokens or min(10_000_000, eighth)
        self.adam = torch.optim.Adam(list(self.parameters.values()), lr=self.lr, fused=True)
        self.idle = torch.zeros(width, dtype=torch.int64, device=device)
        self.scaler: dict[str, Tensor] = {}
        self.completed = 0  # steps
        self.fvu = torch.zeros((), device=device)
        self.l0 = torch.zeros((), device=device)

    def fit_scaler(self, x: Tensor) -> None:
        """Set mean, scale and the limit of the norm by a sample, without its outliers.

        x [n, d_in] is this rank's part of the sample. Raises RunFailed if the vectors are constant
        or not finite.
        """
        lengths = norms(x)
        limit = outlier_limit(self.world.concat(lengths))
        kept = x[lengths <= limit]
        total = torch.stack([part.double().sum(0) for part in kept.split(_ROWS)]).sum(0)
        count = torch.tensor(len(kept), device=x.device)
        self.world.add(total, count)
        mean = total / count
        squares = [(part.double() - mean).square().sum() for part in kept.split(_ROWS)]
        square = torch.stack(squares).sum()
        self.world.add(square)
        scale = (square / (count * x.shape[1])).sqrt()
        if not torch.isfinite(scale) or scale == 0:
            raise RunFailed("the activations of a site are constant or not finite")
        found = {"mean": mean, "scale": scale, "max_norm": limit}
        self.scaler = {name: value.to(self.precision) for name, value in found.items()}

    def usable(self, x: Tensor) -> Tensor:
        """Indices of the vectors x [n, d_in] that are not outliers: int64 [m].

        Raises RunFailed when a vector is not finite.
        """
        kept = inliers(x, self.scaler["max_norm"])
        assert kept is not None
        return kept.nonzero().squeeze(-1)

    def step(self, x: Tensor, places: Tensor | None = None) -> None:
        """One step on raw vectors x [batch, d_in].

        If ranks share the batch, x has this rank's part of it, possibly nothing, and `places` are
        the places of these vectors in the batch, int64, increasing.
        """
        tokens = len(x) if places is None else self.config.batch_size
        x = (x.to(self.precision) - self.scaler["mean"]) / self.scaler["scale"]
        if len(x):
            found = self.objective.step(x, self.parameters, tokens)
        else:
            found = Step.zeros(x, self.parameters, len(self.idle) // self.split.size)
        variance = self._gather(found, x, tokens)
        weight = 0.1 if self.completed else 1.0
        self.fvu = torch.lerp(self.fvu, (found.loss / variance).float(), weight)
        self.l0 = torch.lerp(self.l0, found.l0.float(), weight)
        self.idle += tokens
        self.idle[found.fired] = 0
        dead = (self.idle > self.dead_tokens).nonzero().squeeze(-1)
        if len(dead) and self.config.aux:
            quarter = max(1, tokens // 4)
            first = quarter if places is None else int((places < quarter).sum())
            self.objective.revive(x, self.parameters, found, dead, first)
        self.world.add(*found.gradients.values())
        for name, parameter in self.parameters.items():
            parameter.grad = found.gradients[name]
        clip_grads_with_norm_(self.parameters.values(), MAX_GRADIENT, self._norm(found.gradients))
        self.adam.param_groups[0]["lr"] = self.lr * self._rate()
        self.adam.step()
        self.completed += 1

    def _gather(self, found: Step, x: Tensor, tokens: int) -> Tensor:
        """Make loss, l0 and fired those of all ranks, and return the variance of the batch []."""
        if self.split.size > 1:
            parts = self.split.gather(torch.cat([found.l0[None], found.fired.to(found.l0.dtype)]))
            found.l0, found.fired = parts[:, 0].sum(), self.objective.all_rows(parts[:, 1:]) > 0
        if self.world.size == 1:
            return (x - x.mean(0)).square().sum() / len(x)
        sums = torch.stack([found.loss, found.l0.to(x.dtype), x.square().sum()])
        counts = torch.cat([sums, x.sum(0), found.fired.to(x.dtype)])
        self.world.add(counts)
        sums, mean, fired = counts.split([3, x.shape[1], len(found.fired)])
        found.loss, found.l0, found.fired = sums[0], sums[1], fired > 0
        return (sums[2] - mean.square().sum() / tokens) / tokens

    def _norm(self, gradients: Parameters) -> Tensor:
        """The norm of all gradients together []."""
        if self.split.size == 1:
            return get_total_norm([gradients[name] for name in self.parameters])
        unsplit = self.objective.UNSPLIT
        rows = [gradient for name, gradient in gradients.items() if name not in unsplit]
        square = get_total_norm(rows).square()
        self.split.add(square)
        return (square + get_total_norm([gradients[name] for name in unsplit]).square()).sqrt()

    def _rate(self) -> float:
        """Factor of the learning rate: linear warm-up, constant, linear decay."""
        done = self.completed / self.total_steps
        up = min(1.0, (self.completed + 1) / max(1.0, self.config.warmup * self.total_steps))
        down = min(1.0, (1 - done) / self.config.decay) if self.config.decay else 1.0
        return max(up * down, 0.0)

    @property
    def dead_share(self) -> float:
        return float((self.idle > self.dead_tokens).float().mean())

    def is_finite(self) -> bool:
        """Whether the error and all parameters are finite."""
        ends = [end for value in self.parameters.values() for end in value.aminmax()]
        return all(bool(torch.isfinite(value)) for value in (self.fvu, *ends))

    def figures(self) -> dict[str, float]:
        """fvu, l0 and dead of the last steps, and the learning rate (lr) of the last one."""
        rate = float(self.adam.param_groups[0]["lr"])
        return {"fvu": float(self.fvu), "l0": float(self.l0), "dead": self.dead_share, "lr": rate}

    def state(self) -> dict[str, Tensor]:
        """Everything that `restore` needs, by name."""
        tensors = {"idle": self.idle, "fvu": self.fvu, "l0": self.l0}
        tensors |= {f"scaler.{name}": value for name, value in self.scaler.items()}
        for name, parameter in self.parameters.items():
            tensors[f"parameter.{name}"] = parameter
            for key, value in self.adam.state[parameter].items():
                tensors[f"adam.{name}.{key}"] = value
        return tensors

    def has_rows(self, name: str) -> bool:
        """Whether a tensor of `state` has one row for each unit of this rank."""
        kind, _, rest = name.partition(".")
        parameter, _, key = rest.partition(".")
        split = parameter in self.parameters and parameter not in self.objective.UNSPLIT
        return kind in ("parameter", "adam") and split and key != "step"

    def restore(self, tensors: dict[str, Tensor], completed: int) -> None:
        """Continue from a `state` that was taken after `completed` steps."""
        self.completed = completed
        tensors = {name: value.to(self.device) for name, value in tensors.items()}
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"parameter.{name}"])
            self.adam.state[parameter] = below(f"adam.{name}.", tensors)
        self.scaler = below("scaler.", tensors)
        self.idle, self.fvu, self.l0 = (tensors[name] for name in ("idle", "fvu", "l0"))

    def collect(self, to: int = 0) -> Parameters:
        """The parameters of all units on the rank `to` of those that split them; {} elsewhere.

        All of them call it.
        """
        split, unsplit = self.split, self.objective.UNSPLIT
        if split.size == 1:
            return self.parameters
        found = {name: self.parameters[name] for name in unsplit}
        for name, own in self.parameters.items():
            if name not in unsplit:
                parts = split.collect(own, to)
                if parts is not None:
                    found[name] = self.objective.all_rows(parts)
        return found if split.rank == to else {}

    def sae(
        self, identity: str, site: str, record: dict[str, Any], parameters: Parameters | None = None
    ) -> SAE:
        """The SAE as trained so far, in the model's raw units.

        `parameters`: see `collect`; by default those of this rank, which has all units.
        """
        folded: dict[str, Any] = self.objective.fold(
            parameters or self.parameters, self.scaler["mean"], self.scaler["scale"]
        )
        dtype = self.dtype
        if dtype == torch.float64:
            dtype = torch.float32
            folded |= {name: v.float() for name, v in folded.items() if isinstance(v, Tensor)}
        return SAE(
            identity,
            site,
            **folded,
            max_norm=float(self.scaler["max_norm"]),
            dtype=str(dtype).removeprefix("torch."),
            record=record,
        )


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    found = ((name, value) for name, value in tensors.items() if name.startswith(prefix))
    return {name.removeprefix(prefix): value for name, value in found}
