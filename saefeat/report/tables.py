"""The page's tables as CSV files beside it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from saefeat.config import Schedule
from saefeat.io import write_bytes
from saefeat.overlap import FIELDS as SET_FIELDS
from saefeat.ranking import COLUMNS
from saefeat.report.identification import OURS, THEIRS
from saefeat.rundir import RunDir

MEASURES = ("nll_median", "nll_mean", "perplexity_median", "perplexity_mean")


def _ends(part: str, *measures: str) -> tuple[str, ...]:
    """The columns of measures of a part, each with its interval."""
    return tuple(f"{part}_{name}{end}" for name in measures for end in ("", "_low", "_high"))


# fmt: off
FIELDS: dict[str, tuple[str, ...]] = {
    "lid": ("head", "length", "accuracy", "accuracy_low", "accuracy_high", "f1_macro",
            "f1_macro_low", "f1_macro_high"),
    "errors": ("length", "kind", "label", OURS, THEIRS, "id", "text"),
    "features": ("method", *COLUMNS),
    "overlap": ("label", "other", "owned", "owned_by_other", "both", "jaccard"),
    "steering": ("method", "label", "edit", "sites", "schedule", "parameters", "strength", "units",
                 "half", "forcing", "perplexity", "distinct3", "score", "score_low", "score_high",
                 "score_in_context", "score_in_context_low", "score_in_context_high",
                 "lpr", "wpr", "lcpr"),
    "matrix": ("edit", "units", "count", "intervened", "evaluated", *MEASURES,
               *(f"baseline_{measure}" for measure in MEASURES)),
    "compare": ("pool", "method", "parameters", "units", "distinct",
                *_ends("stability", "mean"),
                *(name for length in ("all", "20") for name in (
                    f"f1_{length}", *(f"f1_{length}_{end}" for end in ("low", "high")),
                    *_ends(f"f1_{length}", "random"))),
                *_ends("ablation", "selectivity", "random", "ahead"), "ablation_most_affected",
                "ablation_random_most_affected", "steering_strength", "steering_sites",
                *_ends("steering", "score", "random", "ahead")),
    "compare_overlap": ("pool", "method", "other", "iou", "expected"),
    **SET_FIELDS,
}
# fmt: on


def write_tables(run: RunDir, tables: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    """Write the rows of each table atomically, and remove the files of tables that are not given.

    An interval `x_ci` takes the columns `x_low` and `x_high`. Lists are joined by blanks, objects
    are JSON. Keys of a row that have no column are left out.
    """
    for name, fields in FIELDS.items():
        path = run.tables / f"{name}.csv"
        if name not in tables:
            path.unlink(missing_ok=True)
            continue
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fields, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(dict(_cells(row)) for row in tables[name])
        write_bytes(path, text.getvalue().encode("utf-8", "replace"))


def _cells(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        value = asdict(value) if isinstance(value, Schedule) else value
        if name.endswith("_ci"):
            yield from zip((f"{name[:-3]}_low", f"{name[:-3]}_high"), value, strict=True)
        elif isinstance(value, dict):
            yield name, json.dumps(value, sort_keys=True) if value else ""
        else:
            yield name, " ".join(value) if isinstance(value, list) else value
