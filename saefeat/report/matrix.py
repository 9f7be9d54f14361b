"""The perplexity matrix on the page: what an intervention on each label's units changes for every label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saefeat.report.facts import as_text
from saefeat.report.reading import parsed, real

MEASURES = ("nll_median", "nll_mean", "perplexity_median", "perplexity_mean")


def read_matrix(run: Path) -> dict[str, Any] | None:
    """What `steering/matrix.json` says; None without it.

    {corpus, split, sentences, labels, interventions: [{name, counts, rows, changes: {measure:
    [[change]]}, diagonal: {measure: number of rows whose own label rises most}}], table: rows of
    `matrix.csv`}. A change is the difference of nats a token for nll, and the relative difference
    for perplexities; None where a value is missing.
    """
    return parsed(run / "steering" / "matrix.json", _matrix)


def _matrix(found: Any) -> dict[str, Any]:
    labels, baseline = list(found["labels"]), found["baseline"]
    return {
        **{key: as_text(found.get(key)) for key in ("corpus", "split")},
        "sentences": _range(found.get("sentences")),
        "labels": labels,
        "interventions": [_intervention(each, labels, baseline) for each in found["interventions"]],
        "table": [row for each in found["interventions"] for row in _table(each, labels, baseline)],
    }


def _intervention(each: Any, labels: list[str], baseline: Any) -> dict[str, Any]:
    rows = [label for label in labels if label in each["rows"]]
    changes = {
        measure: [
            [_change(measure, each["rows"][r].get(c), baseline.get(c)) for c in labels]
            for r in rows
        ]
        for measure in MEASURES
    }
    own = [labels.index(label) for label in rows]
    diagonal = {measure: sum(map(_rises_most, table, own)) for measure, table in changes.items()}
    return {
        "name": f"{each['edit']} {each['units']}",
        "counts": [each.get("counts", {}).get(label) for label in rows],
        "rows": rows,
        "changes": changes,
        "diagonal": diagonal,
    }


def _range(counts: Any) -> str:
    """Sentences a label: one number, or the least and the greatest."""
    if not isinstance(counts, dict) or not counts:
        return as_text(counts)
    least, most = min(counts.values()), max(counts.values())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _rises_most(row: list[float | None], at: int) -> bool:
    """Whether the change at a place is greater than every other one of a row."""
    mine = row[at]
    return mine is not None and all(
        mine > value for i, value in enumerate(row) if i != at and value is not None
    )


def _change(measure: str, value: Any, base: Any) -> float | None:
    if value is None or base is None or value.get(measure) is None or base.get(measure) is None:
        return None
    after, before = value[measure], base[measure]
    return real(after - before if measure.startswith("nll") else after / before - 1)


def _table(each: Any, labels: list[str], baseline: Any) -> list[dict[str, Any]]:
    return [
        {
            "edit": each["edit"],
            "units": each["units"],
            "count": each.get("counts", {}).get(row),
            "intervened": row,
            "evaluated": column,
            **{measure: value.get(measure) for measure in MEASURES},
            **{f"baseline_{measure}": baseline[column].get(measure) for measure in MEASURES},
        }
        for row, values in each["rows"].items()
        for column in labels
        if (value := values.get(column)) is not None
    ]
