"""Statistics that are collected from a corpus, one module per accumulator.

The module of an accumulator defines a subclass of `Accumulator`.
"""

from __future__ import annotations

from collections.abc import Iterable

from saefeat.registry import Registry
from saefeat.statistics.base import Accumulator, Field, Observed, comparable
from saefeat.statistics.counts import Stats

__all__ = [
    "ACCUMULATORS",
    "Accumulator",
    "Field",
    "Observed",
    "Stats",
    "collected_kinds",
    "comparable",
    "run_kinds",
]

# Counts come first: they are written for every dictionary, with a header of what was collected.
ACCUMULATORS: Registry[type[Accumulator]] = Registry(
    "statistic",
    {
        "counts": "saefeat.statistics.counts:Stats",
        "examples": "saefeat.statistics.examples:TopExamples",
        "bags": "saefeat.statistics.bags:Bags",
        "histograms": "saefeat.statistics.histograms:Histograms",
        "halves": "saefeat.statistics.halves:Halves",
        "responses": "saefeat.statistics.responses:Responses",
        "patterns": "saefeat.statistics.patterns:Patterns",
        "distributions": "saefeat.statistics.distributions:Distributions",
        "importances": "saefeat.statistics.importances:Importances",
    },
    option="with_",
)


def collected_kinds(requested: Iterable[str] = ()) -> list[type[Accumulator]]:
    """The accumulators that are always collected, and those that are requested by name.

    Raises UserError for an unknown name.
    """
    wanted = [ACCUMULATORS[name] for name in requested]
    return [kind for kind in ACCUMULATORS.values() if not kind.ON_REQUEST or kind in wanted]


def run_kinds(requested: Iterable[str] = ()) -> dict[str, type[Accumulator]]:
    """The accumulators that a run collects, and those that are requested, by name.

    Raises UserError for an unknown name.
    """
    wanted = [ACCUMULATORS[name] for name in requested]
    kinds = ACCUMULATORS.items()
    return {name: kind for name, kind in kinds if kind.IN_RUN or kind in wanted}
