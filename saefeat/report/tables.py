"""The page's tables as CSV files beside it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from saefeat.io import write_bytes
from saefeat.report.matrix import MEASURES
from saefeat.selection import COLUMNS, Selection

_M = [*MEASURES, *(f"baseline_{measure}" for measure in MEASURES)]
FIELDS: dict[str, Sequence[str]] = {
    "lid": (
        "head",
        "length",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "f1_macro",
        "f1_macro_low",
        "f1_macro_high",
    ),
    "errors": ("length", "kind", "label", "linear", "fasttext", "id", "text"),
    "features": ("method", *COLUMNS),
    "overlap": ("label", "other", "owned", "owned_by_other", "both", "jaccard"),
    "steering": (
        "method",
        "label",
        "edit",
        "sites",
        "schedule",
        "parameters",
        "strength",
        "units",
        "half",
        "forcing",
        "perplexity",
        "distinct3",
        "score",
        "score_low",
        "score_high",
    ),
    "matrix": ("edit", "units", "count", "intervened", "evaluated", *_M),
}


def write_tables(folder: Path, tables: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    """Write each table atomically as `NAME.csv`; those of an earlier page that are no more are removed."""
    for name, fields in FIELDS.items():
        path = folder / f"{name}.csv"
        if name not in tables:
            path.unlink(missing_ok=True)
            continue
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fields, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(tables[name])
        # Text of a corpus may hold lone surrogates, which UTF-8 cannot.
        write_bytes(path, text.getvalue().encode("utf-8", "replace"))


def feature_rows(selections: Mapping[str, Selection]) -> list[dict[str, Any]]:
    return [
        {"method": name, **row} for name, s in selections.items() for row in s.table.to_pylist()
    ]


def error_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "linear": row["ours"], "fasttext": row["theirs"]} for row in rows]


def overlap_rows(overlap: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each pair of labels, each pair once."""
    labels, both = overlap["labels"], overlap["both"]
    rows = []
    for i, j in combinations(range(len(labels)), 2):
        either = both[i][i] + both[j][j] - both[i][j]
        rows.append(
            {
                "label": labels[i],
                "other": labels[j],
                "owned": both[i][i],
                "owned_by_other": both[j][j],
                "both": both[i][j],
                "jaccard": round(both[i][j] / either, 6) if either else 0.0,
            }
        )
    return rows


def steering_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        low, high = row.get("score_ci") or (None, None)
        nested = {
            key: json.dumps(row[key], sort_keys=True) if row.get(key) else ""
            for key in ("schedule", "parameters")
        }
        sites = " ".join(row.get("sites") or [])
        found.append({**row, **nested, "sites": sites, "score_low": low, "score_high": high})
    return found
