"""The perplexity matrix on the page: how an edit of a label's units changes every label's text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from saefeat.artefacts.steering import Intervention, PerplexityMatrix, TextMeasures
from saefeat.report.formats import rounded
from saefeat.report.tables import MEASURES


def matrix_view(matrix: PerplexityMatrix) -> dict[str, Any]:
    """What the page shows of a matrix.

    Returns:
        corpus, split, sentences, labels; interventions: [{name, counts, rows, changes: {measure:
        [[change]]}, diagonal: {measure: number of rows whose own label rises most}}].
    """
    return {
        **{name: matrix[name] for name in ("corpus", "split", "labels")},
        "sentences": _range(matrix["sentences"]),
        "interventions": [_intervention(each, matrix) for each in matrix["interventions"]],
    }


def matrix_rows(matrix: PerplexityMatrix) -> list[dict[str, Any]]:
    """Rows of `matrix.csv`, one per intervention, edited label and evaluated label."""
    baseline: Mapping[str, Mapping[str, Any]] = matrix["baseline"]
    return [
        {
            "edit": each["edit"],
            "units": each["units"],
            "count": each["counts"][row],
            "intervened": row,
            "evaluated": column,
            **values[column],
            **{f"baseline_{name}": base for name, base in baseline.get(column, {}).items()},
        }
        for each in matrix["interventions"]
        for row, values in each["rows"].items()
        for column in matrix["labels"]
        if column in values
    ]


def _intervention(each: Intervention, matrix: PerplexityMatrix) -> dict[str, Any]:
    labels, baseline = matrix["labels"], matrix["baseline"]
    rows = [label for label in labels if label in each["rows"]]
    changes = {
        measure: [
            [_change(measure, each["rows"][r].get(c), baseline.get(c)) for c in labels]
            for r in rows
        ]
        for measure in MEASURES
    }
    own = [labels.index(label) for label in rows]
    known = [i for i, label in enumerate(labels) if label in baseline]
    return {
        "name": f"{each['edit']} {each['units']}",
        "counts": [each["counts"][label] for label in rows],
        "rows": rows,
        "changes": changes,
        "diagonal": {
            name: sum(_rises_most(row, at, known) for row, at in zip(table, own, strict=True))
            for name, table in changes.items()
        },
    }


def _range(counts: dict[str, int]) -> str:
    """One number, or the least and the greatest."""
    ends = sorted({min(counts.values(), default=0), max(counts.values(), default=0)})
    return " to ".join(f"{end:,}" for end in ends)


def _change(measure: str, after: TextMeasures | None, before: TextMeasures | None) -> float | None:
    """The difference of nll, in nats per token; the relative difference of perplexities."""
    if after is None or before is None:
        return None
    if measure.startswith("nll"):
        return rounded(after[measure] - before[measure])
    return rounded(after[measure] / before[measure] - 1)


def _rises_most(row: list[float | None], at: int, known: Sequence[int]) -> bool:
    """Whether the change at position `at` exceeds all others of the row.

    `known`: positions of the labels that have figures without the edit. One of them that has none
    under it has risen more than all others (see `saefeat.run.matrix`).
    """
    rises = {i: math.inf if (value := row[i]) is None else value for i in known}
    mine = rises.pop(at, None)
    return mine is not None and all(mine > value for value in rises.values())
