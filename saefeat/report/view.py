"""Make the values of the template, the data of the script, and the tables from a run's parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from saefeat.artefacts import RunIndex, SAEConfig
from saefeat.report.comparison import comparison_rows, comparison_view
from saefeat.report.experiments import experiment_views
from saefeat.report.formats import as_text, duration
from saefeat.report.identification import errors_view, lid_rows, lid_view
from saefeat.report.matrix import matrix_rows, matrix_view
from saefeat.report.parts import Parts
from saefeat.report.sets import sets_view
from saefeat.report.spread import entropy_view, overlap_rows, overlap_view
from saefeat.report.steering import samples_view, steering_view
from saefeat.report.units import method_views

T = TypeVar("T")
Values = dict[str, Any]

_GROUPS = ("model", "corpus", "arguments", "timings", "seeds", "versions", "machine")
_CLOSED = ("seeds", "versions", "machine")
_ROWS = 80  # of a group


def page_view(parts: Parts, title: str) -> Values:
    """The values of the template. `title` is used if the model has no name."""
    methods = method_views(parts.selections, parts.shown or [], parts.spread)
    labels = dict.fromkeys(label for method in methods for label in method["labels"])
    view: Values = {
        # The model's name is a hub id, a path or `embedded:...`.
        "title": parts.index["model"]["name"].rstrip("/").split("/")[-1] or title,
        "about": _about(parts.index),
        "facts": _fact_groups(parts.index),
        "labels": list(labels) or parts.index["corpus"]["labels"],
        "saes": [_sae(name, config) for name, config in parts.saes.items()],
        "lid": _optional(lid_view, parts.lid),
        "errors": _optional(errors_view, parts.errors),
        "methods": methods,
        "first_method": next((at for at, method in enumerate(methods) if method["rows"]), 0),
        "has_passages": bool(parts.shown),
        "entropy": _optional(entropy_view, parts.spread),
        "overlap": _optional(overlap_view, parts.spread),
        "sets": sets_view(parts.selections, parts.sets),
        "steering": _optional(lambda found: steering_view(found, parts.settings), parts.steering),
        "samples": _optional(samples_view, parts.samples),
        "matrix": _optional(matrix_view, parts.matrix),
        "comparison": _optional(comparison_view, parts.comparison),
        "experiments": experiment_views(parts.experiments),
    }
    return {**view, "tiles": _tiles(view)}


def _optional(function: Callable[[T], Any], value: T | None) -> Any:
    return None if value is None else function(value)


def _some(values: Values | None, *keys: str) -> Values | None:
    return None if values is None else {key: values[key] for key in keys}


def drawn_data(view: Values) -> Values:
    """What the page's script draws."""
    method_keys = ("name", "score", "labels", "dictionaries", "counts", "totals", "units")
    return {
        "labels": view["labels"],
        "confusion": _some(view["lid"], "labels", "lengths", "confusion"),
        "errors": _optional(lambda errors: errors["shown"], view["errors"]),
        "methods": [_some(method, *method_keys) for method in view["methods"]],
        "entropy": view["entropy"],
        "overlap": view["overlap"],
        "sets": _optional(lambda sets: sets["labels"], view["sets"]),
        "steering": view["steering"],
        "samples": _optional(lambda samples: samples["rows"], view["samples"]),
        "matrix": _some(view["matrix"], "labels", "interventions"),
    }


def table_rows(parts: Parts) -> dict[str, Iterable[Mapping[str, Any]]]:
    """The rows of each table that the run has content for."""
    selected = [
        {"method": name, **row}
        for name, selection in parts.selections.items()
        for row in selection.table.to_pylist()
    ]
    found = {
        "lid": _optional(lid_rows, parts.lid),
        "errors": _optional(lambda of: [row for rows in of.values() for row in rows], parts.errors),
        "features": selected if parts.selections else None,
        "overlap": _optional(overlap_rows, parts.spread),
        "steering": _optional(lambda metrics: metrics["rows"], parts.steering),
        "matrix": _optional(matrix_rows, parts.matrix),
        "compare": _optional(comparison_rows, parts.comparison),
        "compare_overlap": _optional(lambda found: found["overlap"], parts.comparison),
        **parts.sets,
    }
    return {name: rows for name, rows in found.items() if rows is not None}


def _sae(name: str, config: SAEConfig) -> Values:
    metadata = config.get("metadata", {})
    ours = metadata.get("saefeat", {})
    # On held-out text; SAEs of older versions have the numbers of their training.
    fidelity = {**ours, **ours.get("held_out", {})}
    return {
        "id": name,
        "site": ours.get("site") or metadata.get("hook_name"),
        **{key: config.get(key) for key in ("d_in", "d_sae", "k")},
        **{key: fidelity.get(key) for key in ("fvu", "l0", "dead")},
        "tokens": ours.get("training", {}).get("tokens"),
    }


def _tiles(view: Values) -> list[tuple[Any, str, str]]:
    """The figures at the head of the page: value, name, note."""
    tiles: list[tuple[Any, str, str]] = []
    saes, methods, lid, steering = (view[key] for key in ("saes", "methods", "lid", "steering"))
    if view["labels"]:
        tiles.append((len(view["labels"]), "labels", ""))
    if saes:
        width = sum(sae["d_sae"] for sae in saes)
        tiles.append((len(saes), "autoencoders", f"{width:,} features" if width else ""))
    if methods:
        tiles.append((methods[0]["distinct"], "units selected", methods[0]["name"]))
    if lid and lid["heads"]:
        head = max(lid["heads"], key=lambda head: head["f1_macro"])
        tiles.append((head["f1_macro"], "best macro-F1", head["name"]))
    if steering and steering["best"]:
        method = max(steering["summary"], key=lambda row: row["score"])
        tiles.append((method["score"], "best steering score", method["method"]))
    return tiles


# --------------------------------------------------------------------------- the run's index


def _about(index: RunIndex) -> list[str]:
    """The corpus, the number of its texts, and the seeds."""
    corpus, seeds = index["corpus"], index["seeds"]
    texts = f"{corpus['examples']:,} texts"
    return [as_text(corpus["name"]), texts, *(f"{name} {seed}" for name, seed in seeds.items())]


def _fact_groups(index: RunIndex) -> list[Values]:
    """Groups {name, open, rows: [(name, value)]}: the scalars first, then one per nested object."""
    record: Values = {**index, "arguments": asdict(index["arguments"])}
    nested = {name: record[name] for name in _GROUPS if record[name]}
    groups = {"run": {name: record[name] for name in record if name not in nested}, **nested}
    return [
        {"name": name, "open": name not in _CLOSED, "rows": _rows(values, name == "timings")}
        for name, values in groups.items()
    ]


def _rows(values: Mapping[str, Any], are_seconds: bool) -> list[tuple[str, str]]:
    write = duration if are_seconds else as_text
    rows = [(name, write(value)) for name, value in _leaves(values)]
    left = len(rows) - _ROWS
    return [*rows[:_ROWS], ("…", f"{left} more")] if left > 0 else rows


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name} · ")
        else:
            yield f"{prefix}{name}", value
