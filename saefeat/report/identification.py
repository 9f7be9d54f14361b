"""Label identification on the page: heads by length, F1 by label, confusion, and errors beside fastText."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from saefeat.baselines import BASELINES
from saefeat.lid.heads import HEADS
from saefeat.report.reading import direction, natural, parsed, shortened, understood

OURS, THEIRS = "linear", "fasttext"
KINDS = {
    "theirs": (False, True),
    "ours": (True, False),
    "neither": (False, False),
}  # which of the two is right
_SHOWN = 48  # texts of each length and kind
_CHARACTERS = 280  # of a text


def read_identification(run: Path) -> dict[str, Any] | None:
    """What `lid/metrics.json` says, for tables and the confusion matrix; None when there is none."""
    return parsed(run / "lid" / "metrics.json", _lid)


def _lid(metrics: Any) -> dict[str, Any]:
    order = {name: place for place, name in enumerate([*reversed([*HEADS]), *BASELINES])}
    names = sorted(metrics["heads"], key=lambda name: (order.get(name, len(order)), name))
    lengths = sorted(metrics.get("by_length", {}), key=lambda name: (name == "all", natural(name)))
    by_length = {length: metrics["by_length"][length]["heads"] for length in lengths} or {
        "all": metrics["heads"]
    }
    heads = [_head(name, metrics["heads"][name], by_length) for name in names]
    support = [sum(row) for row in metrics["heads"][names[0]]["confusion_matrix"]] if names else []
    table = [
        {
            "label": label,
            "n": n,
            "f1": [metrics["heads"][name]["per_label"][label]["f1"] for name in names],
        }
        for label, n in zip(metrics["labels"], support, strict=False)
    ]
    return {
        **{key: metrics.get(key) for key in ("corpus", "split", "labels", "n")},
        "heads": heads,
        "best": _best(heads, list(by_length)),
        "lengths": list(by_length),
        "per_label": table,
        "confusion": {
            name: {
                at: _sparse(of[name]["confusion_matrix"])
                for at, of in by_length.items()
                if name in of
            }
            for name in names
        },
        "rows": [
            _table_row(name, at, of[name])
            for name in names
            for at, of in by_length.items()
            if name in of
        ],
    }


def _table_row(name: str, length: str, metrics: Any) -> dict[str, Any]:
    """A row of `lid.csv`."""
    row: dict[str, Any] = {"head": name, "length": length}
    for measure in ("accuracy", "f1_macro"):
        low, high = metrics.get(f"{measure}_ci") or (None, None)
        row |= {measure: metrics[measure], f"{measure}_low": low, f"{measure}_high": high}
    return row


def _head(name: str, metrics: Any, by_length: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "note": _title(name),
        "accuracy": metrics["accuracy"],
        "accuracy_ci": metrics.get("accuracy_ci"),
        "f1": metrics["f1_macro"],
        "f1_ci": metrics.get("f1_macro_ci"),
        "by_length": {
            length: heads.get(name, {}).get("f1_macro") for length, heads in by_length.items()
        },
    }


def _title(name: str) -> str:
    if name in HEADS:
        return HEADS[name].title
    return BASELINES[name].title if name in BASELINES else ""


def _best(heads: list[dict[str, Any]], lengths: list[str]) -> dict[str, Any]:
    """The greatest accuracy, macro-F1, and macro-F1 of each length."""
    best: dict[str, Any] = {
        key: max((head[key] for head in heads), default=None) for key in ("accuracy", "f1")
    }
    known = {
        at: [h["by_length"][at] for h in heads if h["by_length"][at] is not None] for at in lengths
    }
    return {**best, "by_length": {at: max(values, default=None) for at, values in known.items()}}


def _sparse(matrix: list[list[int]]) -> list[int]:
    """Row, column and count of each cell that is not 0, one after the other."""
    cells = ((r, c, n) for r, row in enumerate(matrix) for c, n in enumerate(row) if n)
    return [number for cell in cells for number in cell]


# --------------------------------------------------------------------------- errors


def read_errors(run: Path) -> dict[str, Any] | None:
    """Texts that the linear head or fastText got wrong; None without predictions of either.

    {lengths, counts: {length: {kind: n}}, shown: [{length, kind, label, text, direction, ours,
    theirs}], rows: all of them for `errors.csv`}; kinds: theirs (fastText alone is right), ours
    (the head alone is right), neither.
    """
    path = run / "lid" / "predictions.parquet"
    return understood(path, lambda: _errors(path)) if path.exists() else None


def _errors(path: Path) -> dict[str, Any] | None:
    columns = ["id", "label", "text", "length", "head", "predicted"]
    table = pq.read_table(path, columns=columns, filters=[("head", "in", [OURS, THEIRS])])
    if OURS not in table["head"].unique().to_pylist():
        return None
    lengths = sorted(
        table["length"].unique().to_pylist(), key=lambda name: (name == "all", natural(name))
    )
    found = {length: list(_wrong(table, length)) for length in lengths}
    counts = {
        at: {kind: sum(row["kind"] == kind for row in rows) for kind in KINDS}
        for at, rows in found.items()
    }
    shown = [row for rows in found.values() for kind in KINDS for row in _some(rows, kind)]
    return {
        "lengths": lengths,
        "counts": counts,
        "shown": shown,
        "rows": list(chain(*found.values())),
    }


def _wrong(table: pa.Table, length: str) -> Iterator[dict[str, Any]]:
    """Rows of one length that either got wrong; both heads have the texts in the same order."""
    of = {
        head: table.filter((pc.field("length") == length) & (pc.field("head") == head))
        for head in (OURS, THEIRS)
    }
    ours = [of[OURS][name].to_pylist() for name in ("id", "label", "text", "predicted")]
    theirs = of[THEIRS]["predicted"].to_pylist() or [None] * of[OURS].num_rows
    kinds = {right: kind for kind, right in KINDS.items()}
    for identity, label, text, mine, said in zip(*ours, theirs, strict=True):
        kind = kinds.get((mine == label, said == label))
        if kind:
            yield {
                "length": length,
                "kind": kind,
                "label": label,
                "ours": mine,
                "theirs": said,
                "id": identity,
                "text": text,
            }


def _some(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Some rows of a kind, the labels taking turns."""
    by_label = defaultdict(list)
    for row in rows:
        if row["kind"] == kind:
            by_label[row["label"]].append(row)
    turns = [row for turn in zip_longest(*by_label.values()) for row in turn if row is not None]
    return [
        {
            **{key: row[key] for key in ("length", "kind", "label", "ours", "theirs")},
            "text": shortened(row["text"], _CHARACTERS),
            "direction": direction(row["text"]),
        }
        for row in turns[:_SHOWN]
    ]
