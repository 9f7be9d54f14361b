"""Distributions: per label and unit, how many of its values lie in each of a fixed row of bins."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from saefeat.statistics.base import Accumulator, Field, Observed

# Eight bins per octave of the size of a value, from 2^-6 to 2^9, for each sign, and one bin of what
# is smaller. The outermost bins also take what lies beyond. As in `histograms`, the bin of a size
# is found exactly by a shift of the bits of a float32 number.
_FIRST, _LAST, _PARTS = -6, 9, 8
_SIZES = torch.tensor(
    [2.0**e * (1 + i / _PARTS) for e in range(_FIRST, _LAST) for i in range(_PARTS)]
)
SIDE = len(_SIZES)  # bins of one sign
CENTRE = SIDE  # the bin of small values
BINS = 2 * SIDE + 1
_SHIFT = 20  # of the 23 bits of a fraction
_OFFSET = (int(_SIZES[0].view(torch.int32)) >> _SHIFT) - 1
_BUFFER = 2048  # tokens whose bins are kept before they are counted
_CELLS = 2**22  # values that are counted at once


class Distributions(Accumulator):
    """Per label and unit, the counts of values in bins whose edges do not depend on the data.

    `counts` is int64 [K, width, BINS], from the most negative bin to the most positive one. The bin
    of small values, in the middle, is left at 0: it has the rest of the label's tokens, `tokens`
    int64 [K]. So units that do not fire cost nothing.
    """

    FIELDS: ClassVar = {
        "tokens": Field(("label",), "sum"),
        "counts": Field(("label", "unit", BINS), "sum"),
    }
    FOLDER = "distributions"
    ON_REQUEST = True
    IN_RUN = False
    BUFFER = _BUFFER
    FORMAT: ClassVar = {"sizes": _SIZES.tolist()}

    _added: tuple[tuple[Tensor, Tensor], ...] = ()  # bins uint8 [n, width] and labels [n]

    @property
    def tensors(self) -> dict[str, Tensor]:
        if self._added:
            self._count()
        return self._tensors

    def add(self, observed: Observed) -> None:
        codes, lengths = observed.codes, observed.lengths.to(observed.labels.device)
        self._tensors["tokens"].index_add_(0, observed.labels, lengths)
        label = observed.labels.repeat_interleave(lengths)
        if codes.indices is None:
            # The counts of many tokens are far more than a cache holds. To go through them for each
            # batch would take five times as long.
            self._added = (*self._added, (bins(codes.values).to(torch.uint8), label))
            if sum(len(part) for _, part in self._added) >= _BUFFER:
                self._count()
            return
        token, unit, value = codes.pairs()
        counts, place = self._tensors["counts"], bins(value)
        cell = (label[token] * codes.width + unit) * BINS + place
        cell = cell[place != CENTRE]
        counts.view(-1).index_add_(0, cell, torch.ones_like(cell))

    def _count(self) -> None:
        """Count the bins that are kept."""
        place, label = (torch.cat(parts) for parts in zip(*self._added, strict=True))
        self._added, counts = (), self._tensors["counts"]
        first = torch.arange(place.shape[1], device=place.device)[:, None] * BINS
        for k in label.unique().tolist():
            for rows in place[label == k].split(max(1, _CELLS // place.shape[1])):
                cell = (rows.t().long() + first).flatten()  # unit by unit, near each other
                counts[k].view(-1).scatter_add_(0, cell, torch.ones_like(cell))
            counts[k, :, CENTRE] = 0

    def shares(self, first: int = 0, end: int | None = None) -> Tensor:
        """The share of a label's tokens in each bin: float64 [K, units, BINS].

        0 where a label has no tokens.
        """
        counts = self.counts[:, first:end].double()
        counts[..., CENTRE] = self.tokens[:, None] - counts.sum(-1)
        return counts / self.tokens.clamp(min=1)[:, None, None]


def bins(values: Tensor) -> Tensor:
    """The bin of each value of float32 values: int32 of the same shape."""
    bits = values.view(torch.int32)
    sign = bits >> 31  # 0 or -1
    size = ((bits & 0x7FFFFFFF) >> _SHIFT).sub_(_OFFSET).clamp_(0, SIDE)
    return size.bitwise_xor_(sign).sub_(sign).add_(CENTRE)
