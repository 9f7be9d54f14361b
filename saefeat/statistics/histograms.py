"""Histograms: per unit, how many of its firing values lie in each of a fixed row of bins."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from saefeat.artefacts import Histogram
from saefeat.statistics.base import Accumulator, Field, Observed

# Eight bins per octave, from 2^-8 to 2^14. The first and the last also take what lies beyond.
#
# The sign, the exponent and the first three bits of the fraction of a float32 number the bins: the
# number that its upper twelve bits make rises by one from bin to bin. So a bin is found exactly, on
# every machine, by a shift; a binary search among the edges would take twenty times as long.
_FIRST, _LAST, _PARTS = -8, 14, 8
EDGES = torch.tensor(
    [2.0**e * (1 + i / _PARTS) for e in range(_FIRST, _LAST) for i in range(_PARTS)] + [2.0**_LAST]
)
BINS = len(EDGES) - 1
_SHIFT = 20  # of the 23 bits of a fraction
_OFFSET = int(EDGES[0].view(torch.int32)) >> _SHIFT


class Histograms(Accumulator):
    """Per unit, the counts of firing values in bins whose edges do not depend on the data.

    So the counts of shards are added, and the memory is bounded: 708 bytes per unit. `counts` is
    int32 [width, BINS], `tokens` int64 [] the tokens that were counted, `max` float32 [width], -inf
    where a unit never fired.
    """

    FIELDS: ClassVar = {
        "tokens": Field((), "sum"),
        "counts": Field(("unit", BINS), "sum", torch.int32),
        "max": Field(("unit",), "max", torch.float32),
    }
    FOLDER = "histograms"
    ON_REQUEST = True
    SIGNED = False
    FORMAT: ClassVar = {"edges": EDGES.tolist()}

    def add(self, observed: Observed) -> None:
        codes, bag = observed.codes, observed.bag.rows()
        assert bag.unit is not None
        cell = codes.units() * BINS + bins(codes.values)
        fires = (codes.values > 0).int()
        self.counts.view(-1).index_add_(0, cell.view(-1), fires.view(-1))
        self.max.scatter_reduce_(0, bag.unit, bag.max, "amax")
        self.tokens.add_(len(codes))

    def of(self, unit: int) -> Histogram:
        """The histogram of a unit, from its first bin with a value to its last."""
        counts, top, tokens = self.counts[unit], float(self.max[unit]), int(self.tokens)
        filled = counts.nonzero()[:, 0].tolist()
        if not filled:
            return Histogram(tokens=tokens, fired=0, max=0.0, counts=[], edges=[])
        first, end = filled[0], filled[-1] + 1
        edges = [0.0 if first == 0 else float(EDGES[first]), *EDGES[first + 1 : end].tolist(), top]
        return Histogram(
            tokens=tokens,
            fired=int(counts.sum()),
            max=round(top, 4),
            counts=counts[first:end].tolist(),
            edges=[float(f"{edge:.4g}") for edge in edges],
        )


def bins(values: Tensor) -> Tensor:
    """The bin of each value of float32 values: int32 of the same shape. 0 for 0 and less."""
    return ((values.view(torch.int32) >> _SHIFT) - _OFFSET).clamp(0, BINS - 1)
