"""Read the parts of a run that the report shows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from saefeat.artefacts import RunIndex, SAEConfig, ShownUnit
from saefeat.artefacts.comparison import Comparison
from saefeat.artefacts.experiments import Experiment
from saefeat.artefacts.lid import LIDMetrics
from saefeat.artefacts.steering import (
    PerplexityMatrix,
    SteeringMetrics,
    SteeringSample,
    SteeringSettings,
)
from saefeat.io import UserError
from saefeat.methods import METHODS, check_parameters
from saefeat.overlap import overlap_tables
from saefeat.report.identification import OURS, THEIRS, find_errors
from saefeat.report.spread import Ownership, Spread, read_spread
from saefeat.rundir import RunDir
from saefeat.selection import Selection
from saefeat.sets import same_model
from saefeat.words import natural

T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """The parts of a run; None or empty if it lacks one.

    Attributes:
        errors: length -> texts that the linear head or fastText got wrong.
        selections: by method, those of SAEs first.
        sets: the tables of `saefeat.overlap` that have rows.
        spread: how the units of the statistics are spread over labels.
    """

    index: RunIndex
    saes: dict[str, SAEConfig]
    lid: LIDMetrics | None
    errors: dict[str, list[dict[str, Any]]] | None
    selections: dict[str, Selection]
    sets: dict[str, list[dict[str, Any]]]
    shown: list[ShownUnit] | None
    spread: Spread | None
    steering: SteeringMetrics | None
    settings: SteeringSettings | None
    samples: list[SteeringSample] | None
    matrix: PerplexityMatrix | None
    comparison: Comparison | None
    experiments: dict[str, Experiment]


def read_parts(run: RunDir) -> Parts:
    """Read a run. Raises UserError when it is unfinished or one of its files is damaged."""
    index = run.load_index()
    if not index["complete"]:
        raise UserError(f"the run in {run.root} is unfinished; run its command again to go on")
    selections = _load_selections(run)
    return Parts(
        index=index,
        saes={name: run.load_sae_config(name) for name in sorted(run.trained_saes(), key=natural)},
        lid=_optional(run.lid_metrics, run.load_lid_metrics),
        errors=_optional(
            run.predictions_file(), lambda: find_errors(run.load_predictions([OURS, THEIRS]))
        ),
        selections=selections,
        sets={name: rows for name, rows in overlap_tables(selections).items() if rows},
        shown=_optional(run.shown, run.load_shown),
        spread=read_spread(run, _chosen_units(selections), _ownership(run, selections)),
        steering=_optional(run.steering_metrics, run.load_steering_metrics),
        settings=_optional(run.settings, run.load_settings),
        samples=_optional(run.samples, run.load_samples),
        matrix=_optional(run.matrix, run.load_matrix),
        comparison=_optional(run.comparison.metrics, run.comparison.load_metrics),
        experiments=run.load_experiments(),
    )


def _optional(path: Path, load: Callable[[], T]) -> T | None:
    return load() if path.exists() else None


def _load_selections(run: RunDir) -> dict[str, Selection]:
    """By method: those of SAEs first, in the order of the registry."""
    found = {name: run.load_selection(name) for name in run.selected_methods()}
    same_model("overlap", list(found.values()))
    order = [*METHODS, *found]

    def key(name: str) -> tuple[bool, int]:
        kinds = {one.get("kind") for one in found[name].dictionaries.values()}
        return "sae" not in kinds, order.index(name)

    return {name: found[name] for name in sorted(found, key=key)}


def _chosen_units(selections: Mapping[str, Selection]) -> dict[str, set[int]]:
    """Dictionary -> units that any method chose."""
    chosen: dict[str, set[int]] = {}
    for selection in selections.values():
        for row in selection.table.select(["dictionary", "unit"]).to_pylist():
            chosen.setdefault(row["dictionary"], set()).add(row["unit"])
    return chosen


def _ownership(run: RunDir, selections: Mapping[str, Selection]) -> Ownership | None:
    """The rule by which labels own units, with the run's filters or the published ones."""
    found = next(((name, m.rank, m.owners) for name, m in METHODS.items() if m.owners), None)
    if found is None:
        return None
    rule, rank, owners = found
    published = inspect.signature(rank).parameters
    names = list(inspect.signature(owners).parameters)[1:]  # after the statistics
    filters = {name: published[name].default for name in names}
    for name, selection in selections.items():
        if selection.header["method"] == rule:
            used = selection.header.get("parameters", {})
            filters |= {key: used[key] for key in used if key in filters}
            try:
                return Ownership(rule, owners, check_parameters(rule, filters))
            except UserError as error:
                path = run.selection_file(name)
                raise UserError(f"{path} is damaged ({error}); rank again") from error
    return Ownership(rule, owners, filters)
