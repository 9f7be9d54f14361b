"""Train TopK SAEs for several sites from one stream of forward passes, in bounded memory and resumable.

Activations are held a chunk at a time: fill, then consume in a random order given by (seed, chunk,
pass). Checkpoints fall on chunk ends, so a resumed run is bit-identical to one that was not
interrupted, without activations on disk.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefeat.activations import OUTLIER_FACTOR, counted_vectors
from saefeat.config import TrainConfig
from saefeat.corpora import WINDOW, Plan
from saefeat.dictionaries import SAE
from saefeat.encoders import GroupedEncoder
from saefeat.hooks import site_width
from saefeat.io import RunFailed, UserError, fingerprint, load_tensors, save_tensors
from saefeat.models import LanguageModel, Site, native_bf16
from saefeat.resume import claim
from saefeat.sae.held_out import held_out_plan, measured
from saefeat.sae.kernels import TINY, Gradients, aux_step, topk_step
from saefeat.sae.store import load_sae, save_sae

Progress = Callable[[str], None]

MAX_GRADIENT = 1.0  # norm of all gradients together, above which they are cut: keeps Adam from slowing after the start
INITIAL_NORM = (
    0.3  # of encoder and decoder rows: short rows turn fast, and find their directions in few steps
)


def sae_width(config: TrainConfig, d_in: int) -> int:
    """Width of an SAE at a site of width d_in; raises UserError for one that cannot be."""
    width = config.d_sae or config.expansion * d_in
    if width % GroupedEncoder.size or width < GroupedEncoder.size * config.k // 4:
        need = (
            f"a multiple of {GroupedEncoder.size}, at least {GroupedEncoder.size * config.k // 4} "
            f"for k {config.k}"
        )
        raise UserError(f"d_sae {width} must be {need}", "d_sae")
    return width


def _product_dtype(config: TrainConfig, device: str) -> torch.dtype:
    if config.dtype == "auto":
        return torch.bfloat16 if native_bf16(device) else torch.float32
    return getattr(torch, config.dtype)


class Trainer:
    """One SAE in training, in coordinates where the input has mean 0 and variance 1 per coordinate."""

    def __init__(self, d_in: int, config: TrainConfig, total_steps: int, device: str) -> None:
        self.config, self.total_steps, self.device = config, max(total_steps, 1), device
        self.dtype = _product_dtype(config, device)
        width = sae_width(config, d_in)
        generator = torch.Generator().manual_seed(config.seed)
        rows = torch.randn(width, d_in, generator=generator)
        rows *= INITIAL_NORM / rows.norm(dim=1, keepdim=True)
        self.parameters = {
            "encoder": rows.clone().to(device),  # tied at the start
            "b_enc": torch.zeros(width, device=device),
            "decoder": rows.to(device),
            "b_dec": torch.zeros(d_in, device=device),
        }
        self.lr = config.lr or 1e-3 * (10_240 / width) ** 0.5
        self.dead_tokens = config.dead_tokens or min(
            10_000_000, self.total_steps * config.batch_size // 8
        )
        self.adam = torch.optim.Adam(list(self.parameters.values()), lr=self.lr, fused=True)
        self.silent = torch.zeros(
            width, dtype=torch.int64, device=device
        )  # tokens since a unit fired
        self.frame: dict[str, Tensor] = {}  # mean [d_in], scale [], max_norm []: of the first chunk
        self.step = 0
        self.fvu = torch.zeros((), device=device)
        self.l0 = torch.zeros((), device=device)

    def set_frame(self, x: Tensor) -> None:
        """Take mean, scale and outlier norm from the training sample x [n, d_in]."""
        norms = torch.cat([part.float().norm(dim=1) for part in x.split(8192)])
        limit = norms.median() * OUTLIER_FACTOR
        kept = x[norms <= limit]
        mean = torch.stack([part.double().sum(0) for part in kept.split(8192)]).sum(0) / len(kept)
        squares = [(part.double() - mean).square().sum() for part in kept.split(8192)]
        scale = (torch.stack(squares).sum() / kept.numel()).sqrt()
        if not torch.isfinite(scale) or scale == 0:
            raise RunFailed("the activations of a site are constant or not finite")
        self.frame = {"mean": mean.float(), "scale": scale.float(), "max_norm": limit.float()}

    def usable(self, x: Tensor) -> Tensor:
        """Indices of the vectors x [n, d_in] that are no outliers."""
        norms = torch.cat([part.float().norm(dim=1) for part in x.split(8192)])
        if not torch.isfinite(norms).all():
            raise RunFailed("the activations of a site are not finite")
        return (norms <= self.frame["max_norm"]).nonzero().squeeze(-1)

    def train_on(self, x: Tensor) -> None:
        """One step on raw vectors x [batch, d_in]."""
        p = self.parameters
        x = (x.float() - self.frame["mean"]) / self.frame["scale"]
        g = topk_step(
            x, p["encoder"], p["b_enc"], p["decoder"], p["b_dec"], self.config.k, self.dtype
        )
        self._note(x, g)
        self._add_aux(x, g)
        for name, parameter in p.items():
            parameter.grad = getattr(g, name)
        torch.nn.utils.clip_grad_norm_(p.values(), MAX_GRADIENT)
        self.adam.param_groups[0]["lr"] = self.lr * self._rate()
        self.adam.step()
        self.step += 1

    def _note(self, x: Tensor, g: Gradients) -> None:
        fired = torch.zeros_like(self.silent, dtype=torch.bool)
        fired[g.units[g.values > 0]] = True
        self.silent += len(x)
        self.silent[fired] = 0
        variance = (x - x.mean(0)).square().sum() / len(x)
        weight = 0.1 if self.step else 1.0
        self.fvu = torch.lerp(self.fvu, g.loss / variance, weight)
        self.l0 = torch.lerp(self.l0, (g.values > 0).sum() / len(x), weight)

    def _add_aux(self, x: Tensor, g: Gradients) -> None:
        dead = (self.silent > self.dead_tokens).nonzero().squeeze(-1)
        if not len(dead) or not self.config.aux:
            return
        p = self.parameters
        part = slice(0, max(1, len(x) // 4))  # a quarter of the batch is enough to revive them
        k = max(1, x.shape[1] // 2)
        centred = x[part] - p["b_dec"]
        encoder, b_enc, decoder = aux_step(
            centred, g.error[part], p["encoder"][dead], p["b_enc"][dead], p["decoder"][dead], k
        )
        weight = self.config.aux * g.loss  # the same scale as the main loss
        g.encoder[dead] += weight * encoder
        g.b_enc[dead] += weight * b_enc
        g.decoder[dead] += weight * decoder

    def _rate(self) -> float:
        done = self.step / self.total_steps
        up = min(1.0, (self.step + 1) / max(1.0, self.config.warmup * self.total_steps))
        down = min(1.0, (1 - done) / self.config.decay) if self.config.decay else 1.0
        return max(up * down, 0.0)

    @property
    def dead_share(self) -> float:
        return float((self.silent > self.dead_tokens).float().mean())

    def state(self) -> dict[str, Tensor]:
        tensors = (
            dict(self.parameters)
            | self.frame
            | {"silent": self.silent, "fvu": self.fvu, "l0": self.l0}
        )
        for name, parameter in self.parameters.items():
            for key, value in self.adam.state[parameter].items():
                tensors[f"adam.{name}.{key}"] = value
        return tensors

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        self.step = step
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])
            prefix = f"adam.{name}."
            moments = {
                k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)
            }
            self.adam.state[parameter] = {k: v.to(self.device) for k, v in moments.items()}
        self.frame = {name: tensors[name].to(self.device) for name in ("mean", "scale", "max_norm")}
        self.silent, self.fvu, self.l0 = (
            tensors[n].to(self.device) for n in ("silent", "fvu", "l0")
        )

    def sae(self, identity: str, site: str, record: dict[str, Any]) -> SAE:
        """The SAE so far in raw units: scale, mean and decoder norms are folded in, units in their final order."""
        p, scale = self.parameters, self.frame["scale"]
        norms = p["decoder"].norm(dim=1)
        width = len(p["encoder"])
        units = torch.arange(width, device=self.device)
        row = (units % GroupedEncoder.size) * (
            width // GroupedEncoder.size
        ) + units // GroupedEncoder.size
        return SAE(
            identity,
            site,
            W_enc=(p["encoder"] * norms[:, None])[row].t().contiguous(),
            b_enc=(p["b_enc"] * norms)[row] * scale,
            W_dec=(p["decoder"] / norms[:, None].clamp(min=TINY))[row],
            b_dec=self.frame["mean"] + scale * p["b_dec"],
            k=self.config.k,
            max_norm=float(self.frame["max_norm"]),
            dtype=str(self.dtype).removeprefix("torch."),
            record=record,
        )


@dataclass(frozen=True)
class Chunk:
    """Examples whose activations are held together: positions in the corpus, counted tokens, training steps on them."""

    positions: tuple[int, ...]
    tokens: int
    steps: int


def plan_chunks(plan: Plan, config: TrainConfig) -> list[Chunk]:
    """Cut the plan's order into chunks of about `chunk_tokens`, no example split.

    The number of steps is known before any forward pass. A last chunk below a quarter joins the one
    before it.
    """
    groups: list[list[int]] = [[]]
    sizes = [0]
    for position in _order(plan):
        if sizes[-1] >= config.chunk_tokens:
            groups.append([])
            sizes.append(0)
        groups[-1].append(position)
        sizes[-1] += plan.counts[position]
    if len(groups) > 1 and sizes[-1] < config.chunk_tokens / 4:
        groups[-2:] = [groups[-2] + groups[-1]]
        sizes[-2:] = [sizes[-2] + sizes[-1]]
    steps = [max(1, round(size * config.passes / config.batch_size)) for size in sizes]
    return [Chunk(tuple(g), n, s) for g, n, s in zip(groups, sizes, steps, strict=True)]


def whole(plan: Plan) -> Chunk:
    """The whole plan in one chunk, for `fill`."""
    return Chunk(tuple(_order(plan)), plan.total, 1)


def _order(plan: Plan) -> list[int]:
    return sorted(plan.tokens) if plan.order is None else plan.order


def sae_id(site: str) -> str:
    """Directory name and id of the SAE of a site; the site's own name is the id of its identity dictionary."""
    return "sae-" + site.replace("/", "_")


def train_saes(
    lm: LanguageModel,
    plan: Plan,
    sites: list[str],
    out: str | Path,
    config: TrainConfig,
    *,
    progress: Progress = lambda line: None,
) -> list[SAE]:
    """Train one SAE a site and write each to `out/<id>/`; run again, it goes on where it was killed.

    `plan` should be mixed, so that every chunk holds every label. The record of each SAE holds, as
    `held_out`, its FVU and L0 on text of the corpus that the plan keeps out (empty where there is
    none), and as `training_average` those of the SAE in training, averaged over the last steps.
    Raises UserError for unknown sites or an `out` that holds other SAEs, RunFailed when training
    diverges.
    """
    out = Path(out)
    resolved = [lm.site(site) for site in sites]
    if len({site.path for site in resolved}) < len(resolved):
        raise UserError(f"a site is named twice in {','.join(sites)}")
    widths = {site.name: site_width(lm, site) for site in resolved}
    for width in widths.values():
        sae_width(config, width)
    with claim(out):
        _train(lm, plan, resolved, widths, out, config, progress)
    return [load_sae(out / sae_id(site)) for site in sites]


def _train(
    lm: LanguageModel,
    plan: Plan,
    resolved: list[Site],
    widths: dict[str, int],
    out: Path,
    config: TrainConfig,
    progress: Progress,
) -> None:
    chunks = plan_chunks(plan, config)
    total = sum(chunk.steps for chunk in chunks)
    records = {site.name: _record(lm, plan, site, config) for site in resolved}
    if _finished(out, records):
        progress(f"{out} is complete already")
        return
    trainers = {
        site.name: Trainer(widths[site.name], config, total, lm.device) for site in resolved
    }
    request = fingerprint(records)
    done = _resume(lm, out / "partial", trainers, request, progress)
    meter = _Meter(chunks[done:], trainers, progress)
    for number, chunk in enumerate(chunks[done:], done):
        _train_chunk(lm, plan, resolved, trainers, chunk, number, config, meter)
        meter.tell()
        _check(trainers)
        if number + 1 < len(chunks):
            state = {"request": request, "done": number + 1, "threads": lm.threads}
            _checkpoint(out / "partial", trainers, state)
    held = held_out_plan(lm, plan)
    buffers = fill(lm, held, resolved, whole(held)) if held else {}
    for site in resolved:
        trainer = trainers[site.name]
        sae = trainer.sae(sae_id(site.name), site.name, records[site.name])
        average = {"fvu": float(trainer.fvu), "l0": float(trainer.l0)}
        sae.record |= {
            "held_out": measured(sae, held, buffers),
            "training_average": average,
            "dead": trainer.dead_share,
        }
        save_sae(sae, out / sae_id(site.name))
    shutil.rmtree(out / "partial", ignore_errors=True)


def _record(lm: LanguageModel, plan: Plan, site: Site, config: TrainConfig) -> dict[str, Any]:
    corpus = plan.corpus
    return {
        "model": lm.identity,
        "module": site.path,
        "corpus": {
            "name": corpus.name,
            "fingerprint": corpus.fingerprint,
            "labels": list(corpus.labels),
        },
        "policy": {**plan.policy, "outlier_factor": OUTLIER_FACTOR},
        "training": {**asdict(config), "tokens": plan.total},
    }


def _finished(out: Path, records: dict[str, dict[str, Any]]) -> bool:
    present = [name for name in records if (out / sae_id(name)).exists()]
    for name in present:
        made = load_sae(out / sae_id(name)).record
        if any(made.get(key) != value for key, value in records[name].items()):
            raise UserError(
                f"{out / sae_id(name)} holds an SAE of another training; choose another --out or remove it"
            )
    return len(present) == len(records)


def _checkpoint(partial: Path, trainers: dict[str, Trainer], state: dict[str, Any]) -> None:
    tensors = {
        f"{name}|{key}": value.cpu()
        for name, t in trainers.items()
        for key, value in t.state().items()
    }
    step = next(iter(trainers.values())).step
    save_tensors(partial / "state.safetensors", tensors, {**state, "step": step})


def _resume(
    lm: LanguageModel, partial: Path, trainers: dict[str, Trainer], request: str, progress: Progress
) -> int:
    path = partial / "state.safetensors"
    if not path.exists():
        return 0
    tensors, header = load_tensors(path)
    if header["request"] != request:
        raise UserError(
            f"{partial.parent} holds an unfinished training of something else; choose another --out"
        )
    lm.say_threads(header, "the training", progress)
    for name, trainer in trainers.items():
        mine = {
            key.split("|")[1]: value for key, value in tensors.items() if key.split("|")[0] == name
        }
        trainer.restore(mine, header["step"])
    return header["done"]


def _train_chunk(
    lm: LanguageModel,
    plan: Plan,
    sites: list[Site],
    trainers: dict[str, Trainer],
    chunk: Chunk,
    number: int,
    config: TrainConfig,
    meter: _Meter,
) -> None:
    buffers = fill(lm, plan, sites, chunk, meter.read)
    with torch.inference_mode():
        usable = {}
        for name, trainer in trainers.items():
            if not trainer.frame:
                trainer.set_frame(buffers[name])
            usable[name] = trainer.usable(buffers[name])
        for step in range(chunk.steps):
            for name, trainer in trainers.items():
                picks = _picks(usable[name], config, number, step)
                trainer.train_on(buffers[name][picks])
            meter.stepped()


def _picks(usable: Tensor, config: TrainConfig, chunk: int, step: int) -> Tensor:
    """Which vectors a step reads: the next `batch_size` of endless passes, each in its own random order."""
    n, size = len(usable), config.batch_size
    if not n:
        raise RunFailed(
            f"chunk {chunk} has no usable token: each is an outlier to the tokens of the first chunk"
        )
    parts = []
    start = step * size
    while start < (step + 1) * size:
        turn, offset = divmod(start, n)
        generator = torch.Generator().manual_seed(
            int(fingerprint([config.seed, chunk, turn]), 16) % 2**63
        )
        order = torch.randperm(n, generator=generator)
        part = order[offset : offset + (step + 1) * size - start]
        parts.append(part)
        start += len(part)
    return usable[torch.cat(parts).to(usable.device)]


def fill(
    lm: LanguageModel,
    plan: Plan,
    sites: list[Site],
    chunk: Chunk,
    read: Callable[[int], None] = lambda n: None,
) -> dict[str, Tensor]:
    """Activations bfloat16 [chunk.tokens, d_in] of each site; `read` is told the tokens of every batch."""
    buffers: dict[str, Tensor] = {}
    filled = 0
    # Sorted by length within a window, and mixed over all.
    windows = (
        list(chunk.positions[start : start + WINDOW])
        for start in range(0, len(chunk.positions), WINDOW)
    )
    batches = (batch for window in windows for batch in plan.batches(lm, window))
    for batch, vectors in counted_vectors(lm, batches, [site.path for site in sites]):
        count = int(batch.counted.sum())
        for site in sites:
            x = vectors[site.path]
            if site.name not in buffers:
                shape = (chunk.tokens, x.shape[-1])
                buffers[site.name] = torch.empty(shape, dtype=torch.bfloat16, device=x.device)
            buffers[site.name][filled : filled + count] = x
        filled += count
        read(count)
    return buffers


class _Meter:
    """Progress: tokens read, tokens/s over all, time left by the rates of reading and of stepping so far."""

    every = 10.0  # seconds between lines

    def __init__(
        self, chunks: list[Chunk], trainers: dict[str, Trainer], progress: Progress
    ) -> None:
        self.total_tokens = sum(chunk.tokens for chunk in chunks)
        self.total_steps = sum(chunk.steps for chunk in chunks)
        self.trainers, self.progress = trainers, progress
        self.tokens = self.steps = 0
        self.reading = self.stepping = 0.0
        self.start = self.last = self.told = time.monotonic()

    def read(self, tokens: int) -> None:
        self.tokens += tokens
        self.reading += self._lap()
        self._maybe()

    def stepped(self) -> None:
        self.steps += 1
        self.stepping += self._lap()
        self._maybe()

    def _lap(self) -> float:
        now = time.monotonic()
        lap, self.last = now - self.last, now
        return lap

    def _maybe(self) -> None:
        if self.last - self.told > self.every:
            self.tell()

    def tell(self) -> None:
        """One line."""
        self.told = time.monotonic()
        speed = self.tokens / max(self.told - self.start, 1e-9)
        left = (self.total_tokens - self.tokens) * self.reading / max(self.tokens, 1)
        left += (self.total_steps - self.steps) * self.stepping / max(self.steps, 1)
        more = "" if self.steps else " of reading"
        parts = [
            f"{name} FVU {t.fvu:.3f} L0 {t.l0:.1f} dead {t.dead_share:.1%}"
            for name, t in self.trainers.items()
        ]
        self.progress(
            f"train: {self.tokens:,} of {self.total_tokens:,} tokens, step {self.steps} of {self.total_steps}, "
            f"{speed:,.0f} tokens/s, {left:,.0f} s{more} left | " + " | ".join(parts)
        )


def _check(trainers: dict[str, Trainer]) -> None:
    for name, trainer in trainers.items():
        if not torch.isfinite(trainer.fvu):
            raise RunFailed(f"training diverged at {name}: its error is not finite; lower --lr")
