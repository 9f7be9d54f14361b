"""Sets of chosen units on the page: overlap of labels and of methods, typology, layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from saefeat.overlap import label_overlap
from saefeat.partition import layer_rows
from saefeat.report.formats import rounded
from saefeat.selection import Selection

Values = dict[str, Any]


def sets_view(
    selections: Mapping[str, Selection], tables: Mapping[str, list[Values]]
) -> Values | None:
    """What the page shows of sets of units; None without selections.

    Args:
        tables: of `saefeat.overlap`.

    Returns:
        labels: per method {name, labels, both: units that two labels own, chance: the mean IoU that
        is expected of random sets}; rules: {pairs: names of two methods, rows: (label, cells)};
        typology: rows of the table.
    """
    if not selections:
        return None
    return {
        "labels": [_labels(name, selection) for name, selection in selections.items()],
        "rules": _rules(tables.get("rules", [])),
        "typology": tables.get("typology", []),
    }


def _labels(name: str, selection: Selection) -> Values:
    found = label_overlap(selection)
    chance = found["expected_iou"][np.triu_indices(len(selection.labels), 1)]
    return {
        "name": name,
        "labels": list(selection.labels),
        "both": found["both"].tolist(),
        "chance": rounded(float(chance.mean())) if len(chance) else None,
    }


def _rules(rows: list[Values]) -> Values:
    """A table with a row per label and a column per pair of methods."""
    cells = {(row["selection"], row["other"], row["label"]): row for row in rows}
    pairs = list(dict.fromkeys((one, other) for one, other, _ in cells))
    labels = list(dict.fromkeys(label for *_, label in cells))
    return {
        "pairs": pairs,
        "rows": [(label, [cells.get((*pair, label)) for pair in pairs]) for label in labels],
    }


def layers_view(selection: Selection) -> Values:
    """The units of each class by dictionary: {classes, rows, staged}; see `layer_rows`.

    Parts of a class (`specific: de`) stand in the table of the run only.
    """
    rows = layer_rows(selection)
    return {
        "classes": [name for name in rows[0]["classes"] if ": " not in name] if rows else [],
        "rows": rows,
        "staged": any(row["stage"] for row in rows),
    }
