"""Identification on the page: heads by length, F1 by label, confusion, errors beside fastText."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from saefeat.artefacts.lid import LIDMetrics
from saefeat.baselines import BASELINES, REFERENCE
from saefeat.config import DEFAULT_HEAD
from saefeat.lid.heads import HEADS
from saefeat.report.formats import by_length, direction, shortened

if TYPE_CHECKING:
    import pyarrow as pa

OURS, THEIRS = DEFAULT_HEAD, REFERENCE  # the heads whose errors are shown
KINDS = {(False, True): "theirs", (True, False): "ours", (False, False): "neither"}  # who is right
_FIGURES = ("accuracy", "accuracy_ci", "f1_macro", "f1_macro_ci")
_SHOWN = 48  # texts of each length and kind
_CHARACTERS = 280  # of a text


def lid_view(metrics: LIDMetrics) -> dict[str, Any]:
    """What the page shows of the metrics: tables, and the cells of the confusion matrices."""
    lengths = sorted(metrics["by_length"], key=by_length)
    found = {length: metrics["by_length"][length]["heads"] for length in lengths}
    names = _heads(metrics)
    heads = [
        {
            **metrics["heads"][name],
            "name": name,
            "note": next((kinds[name].title for kinds in (HEADS, BASELINES) if name in kinds), ""),
            "by_length": {
                at: of[name]["f1_macro"] if name in of else None for at, of in found.items()
            },
        }
        for name in names
    ]
    return {
        **{key: metrics[key] for key in ("corpus", "split", "labels", "n")},
        "heads": heads,
        "best": {
            "accuracy": max((head["accuracy"] for head in heads), default=None),
            "by_length": {
                at: max((head["f1_macro"] for head in of.values()), default=None)
                for at, of in found.items()
            },
        },
        "lengths": lengths,
        "per_label": [
            {
                "label": label,
                "n": sum(metrics["heads"][names[0]]["confusion_matrix"][at]) if names else 0,
                "f1": [metrics["heads"][name]["per_label"][label]["f1"] for name in names],
            }
            for at, label in enumerate(metrics["labels"])
        ],
        "confusion": {
            name: {
                at: _sparse(of[name]["confusion_matrix"]) for at, of in found.items() if name in of
            }
            for name in names
        },
    }


def _heads(metrics: LIDMetrics) -> list[str]:
    """Names of the heads by their places, those of the baselines after them, unknown ones last."""
    order = [*_by_place(HEADS), *_by_place(BASELINES)]
    known = [name for name in order if name in metrics["heads"]]
    return known + sorted(metrics["heads"].keys() - {*order})


def _by_place(kinds: Mapping[str, Any]) -> list[str]:
    return sorted(kinds, key=lambda name: kinds[name].place)


def lid_rows(metrics: LIDMetrics) -> list[dict[str, Any]]:
    """Rows of `lid.csv`, one per head and length."""
    return [
        {"head": name, "length": length, **{key: of[name][key] for key in _FIGURES}}
        for name in _heads(metrics)
        for length in sorted(metrics["by_length"], key=by_length)
        if name in (of := metrics["by_length"][length]["heads"])
    ]


def _sparse(matrix: list[list[int]]) -> list[int]:
    """Row, column and count of each cell that is not 0, one after the other."""
    cells = ((r, c, n) for r, row in enumerate(matrix) for c, n in enumerate(row) if n)
    return [number for cell in cells for number in cell]


# --------------------------------------------------------------------------- errors


def find_errors(predictions: Mapping[str, pa.Table]) -> dict[str, list[dict[str, Any]]] | None:
    """Length -> texts that the linear head or fastText got wrong; None without the head.

    A row has id, label, text, length, the predictions, and `kind`, which says who is right: theirs
    (fastText alone), ours (the head alone), neither.
    """
    found = {}
    for length in sorted(predictions, key=by_length):
        if OURS in predictions[length].column_names:
            rows = predictions[length].to_pylist()
            for row in rows:
                ours = row[OURS] == row["label"]
                right = (ours, row[THEIRS] == row["label"] if THEIRS in row else ours)
                row |= {"length": length, "kind": KINDS.get(right)}
            found[length] = [row for row in rows if row["kind"]]
    return found or None


def errors_view(errors: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The counts of all errors and some texts: {lengths, counts: {length: {kind: n}}, shown}."""
    kinds = KINDS.values()
    return {
        "lengths": list(errors),
        "counts": {
            length: {kind: sum(row["kind"] == kind for row in rows) for kind in kinds}
            for length, rows in errors.items()
        },
        "shown": [row for rows in errors.values() for kind in kinds for row in _some(rows, kind)],
    }


def _some(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Some rows of a kind, of each label in turn."""
    by_label = defaultdict(list)
    for row in rows:
        if row["kind"] == kind:
            by_label[row["label"]].append(row)
    turns = [row for turn in zip_longest(*by_label.values()) for row in turn if row is not None]
    return [
        {
            **{key: row[key] for key in ("length", "kind", "label")},
            "ours": row[OURS],
            "theirs": row.get(THEIRS),
            "text": shortened(row["text"], _CHARACTERS),
            "direction": direction(row["text"]),
        }
        for row in turns[:_SHOWN]
    ]
