"""Statistics: what is collected from a corpus, one module per accumulator."""

from __future__ import annotations

from saefeat.registry import Registry
from saefeat.statistics.base import Accumulator, Field, Observed, comparable
from saefeat.statistics.counts import Stats

__all__ = [
    "ACCUMULATORS",
    "Accumulator",
    "Field",
    "Observed",
    "Stats",
    "comparable",
    "default_kinds",
]

# The first one is written for every dictionary; its header says what was collected.
ACCUMULATORS: Registry[type[Accumulator]] = Registry(
    "statistic",
    {
        "counts": "saefeat.statistics.counts:Stats",
        "examples": "saefeat.statistics.examples:TopExamples",
        "bags": "saefeat.statistics.bags:Bags",
        "histograms": "saefeat.statistics.histograms:Histograms",
    },
)


def default_kinds() -> list[type[Accumulator]]:
    """The accumulators that are collected without being asked for."""
    return [kind for kind in ACCUMULATORS.values() if not kind.ON_REQUEST]
