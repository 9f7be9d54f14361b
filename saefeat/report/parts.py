"""What the page shows, read from a run directory as plain values. A part that is not there is None or empty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saefeat.io import SCHEMA, UserError
from saefeat.report import tables
from saefeat.report.facts import about, fact_groups, model_name
from saefeat.report.identification import read_errors, read_identification
from saefeat.report.matrix import read_matrix
from saefeat.report.reading import natural, parsed
from saefeat.report.spread import overlap_view, read_spread
from saefeat.report.steering import read_samples, read_steering
from saefeat.report.units import method_view, read_selections, read_shown
from saefeat.sae.formats.values import stated
from saefeat.selection import Selection

Values = dict[str, Any]


def read_run(run: Path) -> tuple[Values, Values, dict[str, list[Values]]]:
    """The values of the template, the data that the page's script draws, and the rows of each CSV table.

    Raises:
        UserError: the run is unfinished, or one of its files is damaged.
    """
    record = _record(run)
    lid, errors = read_identification(run), read_errors(run)
    selections = read_selections(run)
    shown = read_shown(run)
    spread = read_spread(run, _chosen(selections), _filters(selections))
    methods = [
        method_view(n, s, (shown or {}).get(n, {}), len(selections), spread)
        for n, s in selections.items()
    ]
    overlap = overlap_view(spread) if spread else None
    steering, samples, matrix = read_steering(run), read_samples(run), read_matrix(run)
    saes = [_sae(path) for path in sorted((run / "saes").glob("*/cfg.json"), key=natural)]
    labels = _labels(record, lid, selections)
    view = {
        "title": model_name(record) or run.resolve().name,
        "about": about(record),
        "tiles": _tiles(saes, lid, methods, labels, steering),
        "facts": fact_groups(record),
        "saes": saes,
        "lid": lid,
        "errors": errors,
        "methods": methods,
        "first_method": next((at for at, method in enumerate(methods) if method["rows"]), 0),
        "labels": labels,
        "has_passages": bool(shown),
        "entropy": spread and spread["entropy"],
        "overlap": overlap,
        "steering": steering,
        "samples": samples,
        "matrix": matrix,
    }
    data = {
        "labels": labels,
        "confusion": lid and {key: lid[key] for key in ("labels", "lengths", "confusion")},
        "errors": errors and errors["shown"],
        "methods": [{key: method[key] for key in _DRAWN} for method in methods],
        "entropy": spread and {"labels": len(spread["labels"]), "parts": spread["entropy"]},
        "overlap": overlap,
        "steering": steering and {key: value for key, value in steering.items() if key != "rows"},
        "samples": samples and samples["rows"],
        "matrix": matrix and {key: matrix[key] for key in ("labels", "interventions")},
    }
    return view, data, _tables(lid, errors, selections, overlap, steering, matrix)


_DRAWN = ("name", "score", "labels", "dictionaries", "counts", "totals", "units")


def _record(run: Path) -> Values:
    path = run / "run.json"
    if not path.exists():
        raise UserError(
            f"{run} is not a run directory: it has no run.json; give the --out of `saefeat run`"
        )
    record = parsed(path, dict) or {}
    if record.get("schema") != SCHEMA:
        raise UserError(f"{path} is damaged or of another version; start a new run")
    if record.get("complete") is not True:
        raise UserError(
            f"the run in {run} is unfinished; give its `saefeat run` or `saefeat demo` again to go on"
        )
    return record


def _chosen(selections: dict[str, Selection]) -> set[tuple[str, int]]:
    columns = [
        [s.table[name].to_pylist() for name in ("dictionary", "unit")] for s in selections.values()
    ]
    return {cell for dictionary, unit in columns for cell in zip(dictionary, unit, strict=True)}


def _filters(selections: dict[str, Selection]) -> Values:
    found = [
        s.header.get("parameters", {})
        for s in selections.values()
        if s.header["method"] == "sae-lape"
    ]
    return found[0] if found else {}


def _labels(record: Values, lid: Values | None, selections: dict[str, Selection]) -> list[str]:
    known = dict.fromkeys(label for selection in selections.values() for label in selection.labels)
    corpus = record.get("corpus")
    return list(known) or (
        lid["labels"] if lid else corpus.get("labels", []) if isinstance(corpus, dict) else []
    )


def _tiles(
    saes: list[Values],
    lid: Values | None,
    methods: list[Values],
    labels: list[str],
    steering: Values | None,
) -> list[Values]:
    tiles: list[Values] = []
    if labels:
        tiles.append({"value": len(labels), "name": "labels", "note": ""})
    if saes:
        width = sum(sae["d_sae"] or 0 for sae in saes)
        tiles.append(
            {
                "value": len(saes),
                "name": "autoencoders",
                "note": f"{width:,} features" if width else "",
            }
        )
    if methods:
        tiles.append(
            {"value": methods[0]["distinct"], "name": "units selected", "note": methods[0]["name"]}
        )
    if lid and lid["heads"]:
        best = max(lid["heads"], key=lambda head: head["f1"])
        tiles.append({"value": best["f1"], "name": "best macro-F1", "note": best["name"]})
    scores = {
        name: mean["score"]
        for name, mean in (steering or {}).get("mean", {}).items()
        if mean["score"]
    }
    if scores:
        best_method = max(scores, key=lambda name: scores[name])
        tiles.append(
            {"value": scores[best_method], "name": "best steering score", "note": best_method}
        )
    return tiles


def _sae(path: Path) -> Values:
    def parse(cfg: Any) -> Values:
        ours = (cfg.get("metadata") or {}).get("saefeat") or {}
        return {
            "id": path.parent.name,
            "site": ours.get("site") or (cfg.get("metadata") or {}).get("hook_name"),
            **{key: cfg.get(key) for key in ("d_in", "d_sae", "k")},
            **{**dict.fromkeys(("fvu", "l0", "dead")), **stated(ours)},
            "tokens": (ours.get("training") or {}).get("tokens"),
        }

    return parsed(path, parse) or {}


def _tables(
    lid: Values | None,
    errors: Values | None,
    selections: dict[str, Selection],
    overlap: Values | None,
    steering: Values | None,
    matrix: Values | None,
) -> dict[str, list[Values]]:
    found: dict[str, list[Values]] = {}
    if lid:
        found["lid"] = lid["rows"]
    if errors:
        found["errors"] = tables.error_rows(errors["rows"])
    if selections:
        found["features"] = tables.feature_rows(selections)
    if overlap:
        found["overlap"] = tables.overlap_rows(overlap)
    if steering:
        found["steering"] = tables.steering_rows(steering["rows"])
    if matrix:
        found["matrix"] = matrix["table"]
    return found
