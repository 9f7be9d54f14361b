"""Patterns: per example, how far each unit exceeds the published thresholds."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from saefeat.statistics.base import Field, Observed
from saefeat.statistics.by_example import EXAMPLES, ByExample

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
_EDGES = torch.tensor(THRESHOLDS)


class Patterns(ByExample):
    """Which units are active in each example (Wang et al., arXiv 2406.09265).

    A level is the number of `THRESHOLDS` that a value exceeds: 0 where the unit does not fire, 6
    above 0.5. `last` uint8 [rows, width] is the level at the last counted token, `any` that of the
    greatest value. One byte holds every published threshold exactly; a value would take four.
    """

    FIELDS: ClassVar = EXAMPLES | {
        "last": Field(("row", "unit"), "joint", torch.uint8),
        "any": Field(("row", "unit"), "joint", torch.uint8),
    }
    FOLDER = "patterns"
    FORMAT: ClassVar = {"thresholds": list(THRESHOLDS)}

    def values(self, observed: Observed) -> dict[str, Tensor]:
        bag, lengths = observed.bag, observed.lengths
        last = (lengths.cumsum(0) - 1).clamp(min=0).to(observed.codes.values.device)
        greatest = bag.table(bag.max, -torch.inf)
        return {"last": levels(observed.codes.at(last)), "any": levels(greatest)}


def levels(values: Tensor) -> Tensor:
    """The number of thresholds that each value exceeds: uint8 of the same shape."""
    return torch.bucketize(values, _EDGES.to(values.device), out_int32=True).to(torch.uint8)
