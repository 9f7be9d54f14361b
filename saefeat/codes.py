"""Codes (the active units of a run of tokens) and bags (codes summed by example).

This module alone knows that codes may be sparse (values and indices) or dense. A unit fires where
its value is > 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saefeat.io import RunFailed

STEP = 2.0**-20  # sums are kept in whole steps
_EXACT = 2**53  # float64 holds whole numbers below it; a sum of one example must stay there


def to_steps(values: Tensor) -> Tensor:
    """Values in steps of 2^-20, each rounded once, half to even (exact in the dtype of `values`)."""
    return torch.round(values.float() * (1 / STEP))


@dataclass
class Codes:
    """Units of n tokens.

    `values` are float32, in one of three layouts:

    - as many for each token: values [n, k], with `indices` int64 [n, k], their units. A value of 0
    or less does not
      fire. A unit may repeat in a row only as zero padding.
    - flat: values [m], with `indices` int64 [m] and `counts` int64 [n]. The codes of the first
    token come first;
      `counts` holds the number of codes of each token. Memory follows the number of codes in all.
    - dense: values [n, width], with `indices` None.
    """

    values: Tensor
    indices: Tensor | None
    width: int
    signed: bool = False
    counts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values if self.counts is None else self.counts)

    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Token and unit (int64 [m]) and value (float32 [m]) of sparse codes, token by token."""
        assert self.indices is not None
        each = self.values.shape[1] if self.counts is None else self.counts
        token = torch.arange(len(self), device=self.values.device).repeat_interleave(each)
        return token, self.indices.reshape(-1), self.values.reshape(-1)

    def dense(self) -> Tensor:
        """[n, width] float32."""
        if self.indices is None:
            return self.values
        return self._spread(self.width)

    def of(self, units: Tensor) -> Tensor:
        """Values float32 [n, m] of chosen units int64 [m], firing or not; 0 for those that are not among the codes."""
        if self.indices is None:
            return self.values[:, units]
        place = torch.full((self.width,), len(units), dtype=torch.int64, device=units.device)
        place[units] = torch.arange(len(units), device=units.device)
        return self._spread(len(units) + 1, place)[:, :-1]

    def _spread(self, columns: int, place: Tensor | None = None) -> Tensor:
        """[n, columns] of sparse codes; place [width]: the column of each unit."""
        token, unit, value = self.pairs()
        out = value.new_zeros(len(self), columns)
        out.view(-1).index_add_(
            0, token * columns + (unit if place is None else place[unit]), value
        )
        return out

    def bag(self, lengths: Tensor) -> Bag:
        """Sum by example. lengths[E] int64 on the CPU: tokens of each consecutive example, sum(lengths) == n."""
        if self.indices is None:
            return _dense_bag(self, lengths)
        return _sparse_bag(self, lengths)


@dataclass
class Bag:
    """Per example and unit: `tokens` on which it fired, `sum`, `min`, `max` of the firing values, `total` of all.

    Sparse: flat tensors with `example` and `unit` (int64), sorted by (example, unit), firing pairs
    only, `total` None.
    Dense: tensors [E, width], `example` and `unit` None; min +inf and max -inf where nothing fired.
    Sums are int64 in steps of 2^-20; min and max float32.
    """

    examples: int
    width: int
    tokens: Tensor
    sum: Tensor
    min: Tensor
    max: Tensor
    total: Tensor | None = None
    example: Tensor | None = None
    unit: Tensor | None = None

    def reduce_into(self, tensors: dict[str, Tensor], labels: Tensor) -> None:
        """Add to label-by-unit tensors in place (see `stats.Stats`); labels[E] is the row of each example."""
        if self.example is None or self.unit is None:
            _reduce_dense(self, tensors, labels)
            return
        cell = labels[self.example] * self.width + self.unit
        flat = {
            name: tensors[name].view(-1)
            for name in ("fired", "fired_examples", "sum", "min", "max")
        }
        flat["fired"].index_add_(0, cell, self.tokens)
        flat["fired_examples"].index_add_(0, cell, torch.ones_like(self.tokens))
        flat["sum"].index_add_(0, cell, self.sum)
        flat["min"].scatter_reduce_(0, cell, self.min, "amin")
        flat["max"].scatter_reduce_(0, cell, self.max, "amax")

    def rows(self) -> Bag:
        """The same bag in sparse form (firing pairs only; a dense bag's `total` of silent pairs is left behind)."""
        if self.example is not None:
            return self
        example, unit = (self.tokens > 0).nonzero(as_tuple=True)
        pick = {
            name: getattr(self, name)[example, unit] for name in ("tokens", "sum", "min", "max")
        }
        total = None if self.total is None else self.total[example, unit]
        return Bag(self.examples, self.width, **pick, total=total, example=example, unit=unit)


def concat(bags: list[Bag]) -> Bag:
    """One bag of the examples of all, in order; all sparse or all dense, of one width."""
    fields: dict[str, Tensor | None] = {}
    for name in ("tokens", "sum", "min", "max", "total", "unit"):
        parts = [getattr(bag, name) for bag in bags]
        fields[name] = None if parts[0] is None else torch.cat(parts)
    starts = [0]
    for bag in bags:
        starts.append(starts[-1] + bag.examples)
    examples = [
        bag.example + start
        for bag, start in zip(bags, starts, strict=False)
        if bag.example is not None
    ]
    fields["example"] = torch.cat(examples) if examples else None
    return Bag(starts[-1], bags[0].width, **fields)  # type: ignore[arg-type]


def _sparse_bag(codes: Codes, lengths: Tensor) -> Bag:
    token, unit, values = codes.pairs()
    if not torch.isfinite(values).all():
        raise RunFailed("an activation is infinite or not a number")
    count, width = len(lengths), codes.width
    example = torch.repeat_interleave(torch.arange(count), lengths).to(values.device)
    firing = values > 0
    cell = (example[token] * width + unit)[firing]
    value = values[firing]
    cell, order = torch.sort(cell)
    value = value[order]
    cells, position, tokens = torch.unique_consecutive(
        cell, return_inverse=True, return_counts=True
    )
    steps = to_steps(value)
    if len(steps) and steps.max() >= _EXACT:
        raise RunFailed("the sum over one example exceeds the exact range")
    steps = steps.to(torch.int64)
    total = torch.zeros(len(cells), dtype=torch.int64, device=values.device).index_add_(
        0, position, steps
    )
    if len(total) and total.max() >= _EXACT:
        raise RunFailed("the sum over one example exceeds the exact range")
    low = torch.full((len(cells),), torch.inf, device=values.device).scatter_reduce_(
        0, position, value, "amin"
    )
    high = torch.full((len(cells),), -torch.inf, device=values.device).scatter_reduce_(
        0, position, value, "amax"
    )
    return Bag(count, width, tokens, total, low, high, None, cells // width, cells % width)


def _dense_bag(codes: Codes, lengths: Tensor) -> Bag:
    # One example at a time keeps the working set in cache; sums of whole steps are exact in float64
    # below 2^53.
    parts = [_dense_example(chunk, codes.signed) for chunk in codes.values.split(lengths.tolist())]
    tokens, total, sums, low, high = (torch.stack(column) for column in zip(*parts, strict=True))
    if not torch.isfinite(sums).all() or total.abs().max() >= _EXACT or sums.max() >= _EXACT:
        raise RunFailed(
            "an activation is not a number, or the sum over one example exceeds the exact range"
        )
    signed_total = total.to(torch.int64) if codes.signed else None
    return Bag(len(lengths), codes.width, tokens, sums.to(torch.int64), low, high, signed_total)


def _dense_example(values: Tensor, signed: bool) -> tuple[Tensor, ...]:
    if not len(values):
        zero = torch.zeros(values.shape[1], device=values.device)
        return zero.long(), zero.double(), zero.double(), zero + torch.inf, zero - torch.inf
    values = values.float()
    fires = values > 0
    positive = values.clamp(min=0)
    sums = to_steps(positive).sum(0, dtype=torch.float64)
    total = to_steps(values).sum(0, dtype=torch.float64) if signed else sums
    low = torch.where(fires, values, torch.inf).amin(0)
    high = torch.where(fires, values, -torch.inf).amax(0)
    return fires.sum(0), total, sums, low, high


def _reduce_dense(bag: Bag, tensors: dict[str, Tensor], labels: Tensor) -> None:
    for label in labels.unique().tolist():
        rows = labels == label
        tensors["fired"][label] += bag.tokens[rows].sum(0)
        tensors["fired_examples"][label] += (bag.tokens[rows] > 0).sum(0)
        tensors["sum"][label] += bag.sum[rows].sum(0)
        if "total" in tensors and bag.total is not None:
            tensors["total"][label] += bag.total[rows].sum(0)
        tensors["min"][label] = torch.minimum(tensors["min"][label], bag.min[rows].amin(0))
        tensors["max"][label] = torch.maximum(tensors["max"][label], bag.max[rows].amax(0))
