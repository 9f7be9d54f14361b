"""Units on the page: what methods chose, and all that is known of the first units of each label."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from saefeat.artefacts import Histogram, ShownUnit
from saefeat.methods import METHODS
from saefeat.report.formats import natural, pairs, rounded, visible
from saefeat.report.passages import passage_view
from saefeat.report.spread import Spread, unit_spread
from saefeat.selection import Selection

Cell = tuple[str, int, str]  # dictionary, unit, label

FIRST = 10  # units shown of each label
_CARDS = 2400  # at most on the page, so that hundreds of labels stay under 8 MB
_FEW = 600  # cards; beyond, each has one passage
_PASSAGES = 3


def method_views(
    selections: Mapping[str, Selection], shown: Sequence[ShownUnit], spread: Spread | None
) -> list[dict[str, Any]]:
    """What the page shows of each method; see `_method`."""
    cells = _shown(shown)
    labels = max((len(selection.labels) for selection in selections.values()), default=0)
    first = max(1, min(FIRST, _CARDS // max(1, labels * len(selections))))
    return [
        _method(name, selection, cells.get(name, {}), spread, first)
        for name, selection in selections.items()
    ]


def _shown(units: Sequence[ShownUnit]) -> dict[str, dict[Cell, dict[str, Any]]]:
    """Method -> cell -> tokens, histogram and passages as the page draws them."""
    most = _PASSAGES if len(units) <= _FEW else 1
    found: dict[str, dict[Cell, dict[str, Any]]] = defaultdict(dict)
    for unit in units:
        found[unit["method"]][unit["dictionary"], unit["unit"], unit["label"]] = {
            "tokens": [visible(token) for token in unit["tokens"]],
            "histogram": _histogram(unit["histogram"]) if "histogram" in unit else None,
            "passages": [
                passage_view(passage, first=at == 0)
                for at, passage in enumerate(unit["passages"][:most])
            ],
        }
    return dict(found)


def _histogram(histogram: Histogram) -> dict[str, Any]:
    numbers: dict[str, Any] = {**histogram, "max": rounded(histogram["max"])}
    if "edges" in histogram:
        numbers["edges"] = [rounded(edge) for edge in histogram["edges"]]
    return numbers


def _method(
    name: str,
    selection: Selection,
    shown: Mapping[Cell, dict[str, Any]],
    spread: Spread | None,
    first: int,
) -> dict[str, Any]:
    """A method's counts by label and dictionary, and its first units of each label."""
    rows = selection.table.to_pylist()
    cells = Counter((row["label"], row["dictionary"]) for row in rows)
    totals = Counter(row["label"] for row in rows)
    dictionaries = sorted(selection.dictionaries, key=natural)
    owners: dict[tuple[str, int], list[str]] = defaultdict(list)
    units: dict[str, list[dict[str, Any]]] = {label: [] for label in selection.labels}
    for row in rows:
        owners[row["dictionary"], row["unit"]].append(row["label"])
    for row in rows:
        if row["rank"] <= first:
            unit, label = (row["dictionary"], row["unit"]), row["label"]
            others = [owner for owner in owners[unit] if owner != label]
            extra = unit_spread(spread, *unit) | shown.get((*unit, label), {})
            units[label].append({**_unit(row), "others": others, **extra})
    parameters, rule = selection.header.get("parameters", {}), selection.header["method"]
    return {
        "name": name,
        "score": METHODS[rule].score if rule in METHODS else "score",
        "labels": list(selection.labels),
        "parameters": pairs({k: value for k, value in parameters.items() if value is not None}),
        "dictionaries": dictionaries,
        "counts": [[cells[label, each] for each in dictionaries] for label in selection.labels],
        "rows": len(rows),
        "distinct": len(owners),
        "totals": [totals[label] for label in selection.labels],
        "units": [units[label] for label in selection.labels],
    }


def _unit(row: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {key: rounded(row[key]) for key in ("score", "probability", "mean_firing", "max")}
    return {**{key: row[key] for key in ("dictionary", "unit", "rank")}, **numbers}
