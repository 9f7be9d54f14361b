"""TopK SAEs (Gao et al., arXiv 2406.04093).

Gradients are written out: autograd would fill dense [n, d_sae] tensors of which all but k values
per token are zero. Only the encoder product is dense.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, linear, pad

from saefeat.config import TrainConfig
from saefeat.encoders import GroupedEncoder
from saefeat.io import UserError
from saefeat.sae.objectives import Objective, Parameters, Step
from saefeat.world import ALONE, World

# Norm of the initial rows of encoder and decoder. Short rows change direction in few steps.
INITIAL_NORM = 0.3
_GROUP = GroupedEncoder.size
_ROWS = 512  # tokens selected at once, so that the pre-activations stay in cache
_TINY = 1e-8  # smallest norm of a decoder row that is divided by


class TopK(Objective):
    """The k units with the greatest contributions reconstruct a token; AuxK revives dead units.

    Parameters: `encoder` and `decoder` [d_sae, d_in], one row per unit; `b_enc` [d_sae]; `b_dec`
    [d_in]. Decoder rows may have any norm: units compete by the norm of what they would add,
    pre-activation times decoder norm, as they do once the norms are folded into the encoder.

    The rows are in the order of the columns of `GroupedEncoder`, so that a step can call
    `GroupedEncoder.top` without permuting the encoder. `_rows` knows this order; `fold` puts the
    units in their own order. A rank among those that split the units has consecutive units, in
    the order of a `GroupedEncoder` of its own.
    """

    TABLE = _GROUP

    @staticmethod
    def check_width(width: int, config: TrainConfig) -> None:
        least = _GROUP * config.k // 4
        if width % _GROUP or width < least:
            raise UserError(
                f"d_sae {width} must be a multiple of {_GROUP}, at least {least} for k {config.k}",
                "d_sae",
            )

    def initialize(self, d_in: int, width: int, generator: torch.Generator) -> Parameters:
        rows = torch.randn(width, d_in, generator=generator)
        rows *= INITIAL_NORM / rows.norm(dim=1, keepdim=True)
        rows = self.own_rows(rows)
        return {
            "encoder": rows.clone(),  # encoder and decoder start as transposes of each other
            "b_enc": torch.zeros(len(rows)),
            "decoder": rows,
            "b_dec": torch.zeros(d_in),
        }

    def select(self, centred: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """Activations [n, m] of centred inputs, 0 in unused places, and their rows [n, m].

        They are the k greatest of all ranks, of which this one has at most m on a vector.
        """
        norms = parameters["decoder"].norm(dim=1)
        weight = (parameters["encoder"] * norms[:, None]).to(self.dtype)
        bias = (parameters["b_enc"] * norms).to(self.dtype)
        inputs = centred.to(self.dtype).split(_ROWS)
        k = min(self.config.k, len(weight))
        if self.dtype == torch.float64:  # finer than the keys of `GroupedEncoder`
            pre = torch.cat([linear(x, weight, bias) for x in inputs])
            values, rows = pre.clamp(min=0).topk(k)
        else:
            parts = [GroupedEncoder.top(linear(x, weight, bias), k) for x in inputs]
            values, units = (torch.cat(part) for part in zip(*parts, strict=True))
            rows = _rows(units, len(weight))
        if self.split.size > 1:
            values = values * are_greatest(values, self.config.k, self.split)
            used = max(1, int((values > 0).sum(1).max()))
            values, rows = values[:, :used].contiguous(), rows[:, :used].contiguous()
        return values / norms[rows].clamp(min=_TINY), rows

    def step(self, x: Tensor, parameters: Parameters, tokens: int) -> Step:
        """Loss sum((x' - x)^2) / tokens of x [n, d] and its gradients."""
        encoder, decoder, b_dec = (parameters[name] for name in ("encoder", "decoder", "b_dec"))
        centred = x - b_dec
        values, units = self.select(centred, parameters)
        rebuilt = embedding_bag(units, decoder, per_sample_weights=values, mode="sum")
        self.split.add(rebuilt)
        error = rebuilt - centred
        slope = error * (2 / tokens)
        d_values = _row_products(slope, decoder, units) * (values > 0)

        flat = units.view(-1)
        order = torch.argsort(flat, stable=True)  # tokens sorted by the unit that is active on them
        token, counts = order // units.shape[1], torch.bincount(flat, minlength=len(encoder))
        offsets = counts.cumsum(0) - counts

        def by_unit(vectors: Tensor, weights: Tensor) -> Tensor:
            weights = weights.view(-1)[order]
            return embedding_bag(token, vectors, offsets, mode="sum", per_sample_weights=weights)

        d_b_enc = torch.bincount(flat, d_values.view(-1), len(encoder)).to(x.dtype)
        back = d_b_enc @ encoder
        self.split.add(back)
        fired = torch.zeros(len(encoder), dtype=torch.bool, device=x.device)
        fired[units[values > 0]] = True
        return Step(
            loss=error.square().sum() / tokens,
            error=error,
            gradients={
                "encoder": by_unit(centred, d_values),
                "b_enc": d_b_enc,
                "decoder": by_unit(slope, values),
                "b_dec": slope.sum(0) - back,
            },
            fired=fired,
            l0=(values > 0).sum() / tokens,
        )

    def revive(
        self, x: Tensor, parameters: Parameters, step: Step, dead: Tensor, first: int
    ) -> None:
        p, gradients = parameters, step.gradients
        mine = self.own_places(dead, len(p["encoder"]))
        error = step.error[:first]  # a quarter of the batch is enough to revive them
        energy = error.square().sum()
        self.world.add(energy)
        if not first:
            return
        found = aux_gradients(
            x[:first] - p["b_dec"],
            error,
            {name: p[name][mine] for name in ("encoder", "b_enc", "decoder")},
            k=max(1, x.shape[1] // 2),
            energy=energy,
            split=self.split,
            total=len(dead),
        )
        weight = self.config.aux * step.loss  # the same scale as the main loss
        for name, gradient in found.items():
            gradients[name][mine] += weight * gradient

    def fold(self, parameters: Parameters, mean: Tensor, scale: Tensor) -> dict[str, Any]:
        """Fold in scale, mean and decoder norms, and put the units in their final order."""
        p, width = parameters, len(parameters["encoder"])
        norms = p["decoder"].norm(dim=1)
        rows = _rows(torch.arange(width, device=scale.device), width)
        return {
            "W_enc": (p["encoder"] * norms[:, None])[rows].t().contiguous(),
            "b_enc": (p["b_enc"] * norms)[rows] * scale,
            "W_dec": (p["decoder"] / norms[:, None].clamp(min=_TINY))[rows],
            "b_dec": mean + scale * p["b_dec"],
            "k": self.config.k,
        }


def _rows(units: Tensor, width: int) -> Tensor:
    """Unit -> row of the parameters (column of `GroupedEncoder`)."""
    return units % _GROUP * (width // _GROUP) + units // _GROUP


def _row_products(a: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """out[i, j] = a[i] . rows[index[i, j]]"""
    n, k = index.shape
    if a.device.type != "cpu":
        parts = zip(a.split(256), index.split(256), strict=True)
        return torch.cat([torch.bmm(rows[i], v[:, :, None]).squeeze(-1) for v, i in parts])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CSR tensors are in beta
        ends = torch.arange(0, n * k + 1, k)
        wanted = torch.sparse_csr_tensor(
            ends, index.reshape(-1), a.new_zeros(n * k), (n, len(rows))
        )
    return torch.sparse.sampled_addmm(wanted, a, rows.t(), beta=0.0).values().view(n, k)


def are_greatest(values: Tensor, k: int, split: World) -> Tensor:
    """Which of these values [n, m] are among the k greatest of their row on all ranks, bool [n, m].

    m is the same on all ranks. The values of a row fall, and of equal ones those of the lower unit
    come first. So of equal ones of all ranks those of the lower units are taken, because the units
    of a rank are lower than those of the next one.
    """
    _, m = values.shape
    found = split.gather(values).transpose(0, 1).flatten(1)  # [n, ranks * m]
    least = found.topk(k, sorted=True).values[:, -1:]
    above, equal = found > least, found == least
    chosen = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    return chosen[:, split.rank * m : (split.rank + 1) * m]


def aux_gradients(
    x: Tensor,
    error: Tensor,
    dead: Parameters,
    k: int,
    energy: Tensor | None = None,
    split: World = ALONE,
    total: int = 0,
) -> Parameters:
    """Gradients of AuxK: the k strongest dead units reconstruct the error of the other units.

    Args:
        x: centred input [n, d].
        error: reconstruction minus input [n, d].
        dead: `encoder`, `b_enc` and `decoder` of the dead units of this rank.
        energy: sum of the squares of the error of all ranks []; default of this error.
        split: the ranks among which the units are split.
        total: number of their dead units.

    Returns the gradients of sum((e' - e)^2) / energy by the same names.
    """
    encoder, b_enc, decoder = dead["encoder"], dead["b_enc"], dead["decoder"]
    pre = torch.addmm(b_enc, x, encoder.t())
    best, units = (pre * decoder.norm(dim=1)).topk(min(k, len(encoder)), sorted=split.size > 1)
    active = pre.gather(1, units).clamp(min=0)
    if split.size > 1 and total > k:  # else all of them are among the k strongest
        best = pad(best, (0, k - best.shape[1]), value=-torch.inf)
        active = active * are_greatest(best, k, split)[:, : units.shape[1]]
    codes = torch.zeros_like(pre).scatter_(1, units, active)
    scale = 2 / (error.square().sum() if energy is None else energy).clamp(min=1e-12)
    rebuilt = codes @ decoder
    split.add(rebuilt)
    slope = (rebuilt + error) * scale
    d_codes = (slope @ decoder.t()) * (codes > 0)
    return {"encoder": d_codes.t() @ x, "b_enc": d_codes.sum(0), "decoder": codes.t() @ slope}
