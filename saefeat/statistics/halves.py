"""Halves: the counts of a half of the examples, for the stability of rules."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from saefeat.statistics.base import Observed
from saefeat.statistics.counts import Stats

_EXTREMES = {"min": torch.inf, "max": -torch.inf}


class Halves(Stats):
    """The statistics of the first half of the examples.

    The hash of an id decides the half (`saefeat.corpora.half_of`). The counts of the other half are
    those of all examples minus these.
    """

    FOLDER = "halves"
    ON_REQUEST = True
    IN_RUN = False
    HALVED = True
    FORMAT: ClassVar = {**Stats.FORMAT, "half": 0}

    def add(self, observed: Observed) -> None:
        assert observed.half is not None
        half = observed.half.to(observed.labels.device)
        self.add_bag(observed.bag.of(half), observed.labels[half], observed.lengths[observed.half])

    def split(self, whole: Stats) -> tuple[Stats, Stats]:
        """The statistics of both halves. Least and greatest values of the second are unknown.

        Args:
            whole: the statistics of all examples.
        """
        rest: dict[str, Any] = {
            name: torch.full_like(tensor, _EXTREMES[name])
            if name in _EXTREMES
            else tensor - self.tensors[name]
            for name, tensor in whole.tensors.items()
        }
        return Stats(self.labels, self.tensors, whole.header), Stats(
            self.labels, rest, whole.header
        )
