"""Codes (the active units of consecutive tokens) and bags (codes summed by example).

Only this module knows that codes may be sparse (values and indices) or dense. A unit fires where
its value is > 0.

Sums are exact. A value is rounded once, half to even, to a whole number of steps of 2^-20, and
whole numbers are added as int64. So a sum does not depend on the order of its terms: any batches,
shards and resumes give the same bytes. An example whose sum reaches 2^53 steps (a mean activation
of some 33 million over 256 tokens) is refused, because float64 cannot hold every whole number
beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saefeat.io import RunFailed

STEP = 2.0**-20
REDUCE = {"sum": torch.add, "min": torch.minimum, "max": torch.maximum}
_ALONG = {"sum": torch.sum, "min": torch.amin, "max": torch.amax}
_EXACT = 2**53
_SQUARES = 2.0**40  # steps of the greatest square of a cell; sums over 8,192 tokens stay exact
_NOT_FINITE = "an activation is infinite or not a number"
_TOO_GREAT = "the sum over one example exceeds the exact range"


def to_steps(values: Tensor) -> Tensor:
    """Round values to whole steps of 2^-20, half to even. float32 of the same shape."""
    return torch.round(values.float() * (1 / STEP))


@dataclass
class Codes:
    """The units of n tokens.

    `values` are float32, in one of three layouts:

    - padded: values [n, k], with `indices` int64 [n, k], their units. A value of 0 or less does not
      fire. A unit may repeat in a row only as zero padding.
    - flat: values [m], with `indices` int64 [m] and `counts` int64 [n], the number of codes of each
      token. The codes of the first token come first. Memory follows the number of codes in all.
    - dense: values [n, width], with `indices` None.

    `signed` says whether values may be negative.
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

    def units(self) -> Tensor:
        """The unit of each value: int64, shaped as `values`."""
        if self.indices is not None:
            return self.indices
        return torch.arange(self.width, device=self.values.device).expand_as(self.values)

    def dense(self) -> Tensor:
        """All values, float32 [n, width]; 0 for units that are not among the codes."""
        return self.values if self.indices is None else self._spread(self.width)

    def of(self, units: Tensor) -> Tensor:
        """Values float32 [n, m] of units int64 [m]; 0 for units that are not among the codes."""
        if self.indices is None:
            return self.values[:, units]
        place = torch.full((self.width,), len(units), dtype=torch.int64, device=units.device)
        place[units] = torch.arange(len(units), device=units.device)
        return self._spread(len(units) + 1, place)[:, :-1]

    def _spread(self, columns: int, place: Tensor | None = None) -> Tensor:
        """Sparse codes as [n, columns]; place [width]: the column of each unit."""
        token, unit, value = self.pairs()
        column = unit if place is None else place[unit]
        out = value.new_zeros(len(self), columns)
        out.view(-1).index_add_(0, token * columns + column, value)
        return out

    def at(self, tokens: Tensor) -> Tensor:
        """All values of some tokens int64 [m]: float32 [m, width]."""
        if self.indices is None:
            return self.values[tokens]
        if self.counts is None:
            return Codes(self.values[tokens], self.indices[tokens], self.width).dense()
        counts = self.counts[tokens]
        first = (self.counts.cumsum(0) - self.counts)[tokens]
        place = torch.arange(int(counts.sum()), device=counts.device)
        place += (first - (counts.cumsum(0) - counts)).repeat_interleave(counts)
        return Codes(self.values[place], self.indices[place], self.width, counts=counts).dense()

    def norms(self, lengths: Tensor) -> Tensor:
        """The root of the sum of squares over the tokens of each example: float32 [E, width].

        The result of an example does not depend on the others. `lengths`: as `bag`.
        """
        if self.indices is None:
            parts = self.values.split(lengths.tolist())
            # Far faster than a norm along a dimension.
            return torch.stack([part.float().square().sum(0).sqrt() for part in parts])
        token, unit, values = self.pairs()
        example = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(values.device)
        present = values != 0
        value = values[present].abs()
        cells, pair = (example[token] * self.width + unit)[present].unique(return_inverse=True)
        high = value.new_zeros(len(cells)).scatter_reduce_(0, pair, value, "amax")
        # Squares are whole steps of the greatest one, so their sum does not depend on their order.
        steps = torch.round((value / high[pair]).double().square() * _SQUARES).long()
        total = torch.zeros_like(cells).index_add_(0, pair, steps)
        out = value.new_zeros(len(lengths), self.width)
        out.view(-1)[cells] = ((total / _SQUARES).sqrt() * high).float()
        return out

    def bag(self, lengths: Tensor) -> Bag:
        """Sum by example, given `lengths` int64 [E] on the CPU: the tokens of one after the other.

        Raises RunFailed when a value is not finite, or a sum leaves the exact range.
        """
        return (_dense_bag if self.indices is None else _sparse_bag)(self, lengths)


@dataclass
class Bag:
    """Codes summed by example.

    Per example and unit: `tokens` on which the unit fired, `sum`, `min` and `max` of the firing
    values, and `total` of all values. Sums are int64 in steps of 2^-20, min and max are float32.

    - sparse: flat tensors with `example` and `unit` (int64), sorted by (example, unit), of firing
      pairs only; `total` is None.
    - dense: tensors [E, width]; `example` and `unit` are None; min is +inf and max -inf where
      nothing fired.
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

    def reduce_into(self, target: Tensor, values: Tensor, labels: Tensor, reduction: str) -> None:
        """Reduce values by label and unit into `target` [K, width] in place.

        Args:
            values: shaped as the tensors of the bag.
            labels: int64 [E], the row of each example.
            reduction: "sum", "min" or "max".
        """
        if self.example is None or self.unit is None:
            for label in labels.unique().tolist():
                chosen = _ALONG[reduction](values[labels == label], 0)
                target[label] = REDUCE[reduction](target[label], chosen)
            return
        cell, flat = labels[self.example] * self.width + self.unit, target.view(-1)
        if reduction == "sum":
            flat.index_add_(0, cell, values.to(flat.dtype))
        else:
            flat.scatter_reduce_(0, cell, values, f"a{reduction}")

    def table(self, values: Tensor, fill: float = 0) -> Tensor:
        """Values shaped as the tensors of the bag, as [E, width]; `fill` where nothing fired."""
        if self.example is None or self.unit is None:
            return values
        out = torch.full((self.examples, self.width), fill, dtype=values.dtype)
        out = out.to(values.device)
        out[self.example, self.unit] = values
        return out

    def of(self, chosen: Tensor) -> Bag:
        """The bag of some of the examples: bool [E]."""
        names = ("tokens", "sum", "min", "max", "total")
        found = {name: getattr(self, name) for name in names}
        count = int(chosen.sum())
        if self.example is None or self.unit is None:
            picked = {name: t[chosen] for name, t in found.items() if t is not None}
            return Bag(count, self.width, **picked)
        kept, place = chosen[self.example], chosen.cumsum(0) - 1
        picked = {name: t[kept] for name, t in found.items() if t is not None}
        example, unit = place[self.example[kept]], self.unit[kept]
        return Bag(count, self.width, **picked, example=example, unit=unit)

    def rows(self) -> Bag:
        """The same bag in sparse form, without the pairs that do not fire and their `total`."""
        if self.example is not None:
            return self
        example, unit = (self.tokens > 0).nonzero(as_tuple=True)
        names = ("tokens", "sum", "min", "max", "total")
        found = {name: getattr(self, name) for name in names}
        picked = {name: t[example, unit] for name, t in found.items() if t is not None}
        return Bag(self.examples, self.width, **picked, example=example, unit=unit)


def _sparse_bag(codes: Codes, lengths: Tensor) -> Bag:
    token, unit, values = codes.pairs()
    if not torch.isfinite(values).all():
        raise RunFailed(_NOT_FINITE)
    count, width = len(lengths), codes.width
    example = torch.repeat_interleave(torch.arange(count), lengths).to(values.device)
    firing = values > 0
    cell, order = torch.sort((example[token] * width + unit)[firing])
    value = values[firing][order]
    cells, pair, tokens = torch.unique_consecutive(cell, return_inverse=True, return_counts=True)
    steps = to_steps(value)
    if len(steps) and steps.max() >= _EXACT:
        raise RunFailed(_TOO_GREAT)
    total = torch.zeros_like(cells).index_add_(0, pair, steps.long())
    if len(total) and total.max() >= _EXACT:
        raise RunFailed(_TOO_GREAT)
    low = value.new_full((len(cells),), torch.inf).scatter_reduce_(0, pair, value, "amin")
    high = value.new_full((len(cells),), -torch.inf).scatter_reduce_(0, pair, value, "amax")
    return Bag(count, width, tokens, total, low, high, None, cells // width, cells % width)


def _dense_bag(codes: Codes, lengths: Tensor) -> Bag:
    # One example at a time keeps the working set in cache. Sums of whole steps are exact in float64
    # below 2^53.
    parts = [_dense_example(chunk, codes.signed) for chunk in codes.values.split(lengths.tolist())]
    tokens, total, sums, low, high = (torch.stack(column) for column in zip(*parts, strict=True))
    if not torch.isfinite(sums).all() or total.abs().max() >= _EXACT or sums.max() >= _EXACT:
        raise RunFailed(f"{_NOT_FINITE}, or {_TOO_GREAT}")
    signed_total = total.long() if codes.signed else None
    return Bag(len(lengths), codes.width, tokens, sums.long(), low, high, signed_total)


def _dense_example(values: Tensor, signed: bool) -> tuple[Tensor, ...]:
    """tokens, total, sum, min and max of the values [n, width] of one example."""
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
