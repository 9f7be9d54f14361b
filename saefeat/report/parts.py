"""What the page shows, read from a run directory as plain values. A part that is not there is None or empty."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from saefeat.io import UserError, read_json
from saefeat.report.facts import as_text, fact_groups, model_name
from saefeat.selection import Selection

T = TypeVar("T")
Cell = tuple[str, int, str]  # dictionary, unit, label

FIRST = 10  # units shown of each label
_CARDS = 2400  # at most on the page, so that hundreds of labels stay under 8 MB
_PIECES = 40  # of a passage on each side of its peak
_CHARACTERS = 400  # of a passage without pieces
_METHODS = ("sae-lape", "lape")
_HEADS = {
    "linear": "logistic regression on bags of all units",
    "naive-bayes": "multinomial, read from the statistics",
    "sae-count": "which selected features fire, counted",
    "sae-min-max": "selected features, scaled firing values",
    "neuron-count": "which selected neurons fire, counted",
    "token-naive-bayes": "baseline: counts of the model's tokens",
    "fasttext": "baseline: fastText, closed set",
}


def read_run(run: Path) -> dict[str, Any]:
    """The values of the template: title, tiles, facts, saes, lid, methods, labels, data (what the charts draw)."""
    record = _parsed(run / "run.json", dict) or {}
    lid = _parsed(run / "lid" / "metrics.json", _lid)
    selections = _selections(run)
    shown = _parsed(run / "examples" / "shown.json", _shown) or {}
    saes = [_sae(path) for path in sorted((run / "saes").glob("*/cfg.json"), key=_natural)]
    known = dict.fromkeys(label for selection in selections.values() for label in selection.labels)
    labels = list(known) if known or not lid else lid["labels"]
    methods = [_method(name, s, shown.get(name, {}), len(selections)) for name, s in selections.items()]
    return {
        "title": model_name(record) or run.resolve().name,
        "tiles": _tiles(saes, lid, methods, labels),
        "facts": fact_groups(record),
        "saes": saes,
        "lid": lid,
        "methods": methods,
        "labels": labels,
        "has_passages": bool(shown),
        "data": {
            "labels": labels,
            "confusion": lid and {key: lid[key] for key in ("labels", "lengths", "confusion")},
            "features": [{key: method[key] for key in ("labels", "dictionaries", "counts")} for method in methods],
        },
    }


def _parsed(path: Path, parse: Callable[[Any], T]) -> T | None:
    """`parse` of a JSON file; None when there is no file. Raises UserError when it is not what saefeat writes."""
    if not path.exists():
        return None
    value = read_json(path)
    try:
        return parse(value)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not what saefeat writes there ({error!r}); write it again") from error


def _natural(path: Path | str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def _tiles(
    saes: list[dict[str, Any]], lid: dict[str, Any] | None, methods: list[dict[str, Any]], labels: list[str]
) -> list[dict[str, Any]]:
    tiles: list[dict[str, Any]] = []
    if labels:
        tiles.append({"value": len(labels), "name": "labels", "note": ""})
    if saes:
        tiles.append({"value": len(saes), "name": "autoencoders", "note": ""})
    if methods:
        tiles.append({"value": methods[0]["distinct"], "name": "units selected", "note": methods[0]["name"]})
    if lid and lid["heads"]:
        best = max(lid["heads"], key=lambda head: head["f1"])
        tiles.append({"value": best["f1"], "name": "best macro-F1", "note": best["name"]})
    return tiles


def _sae(path: Path) -> dict[str, Any]:
    def parse(cfg: Any) -> dict[str, Any]:
        ours = (cfg.get("metadata") or {}).get("saefeat") or {}
        return {
            "id": path.parent.name,
            "site": ours.get("site") or (cfg.get("metadata") or {}).get("hook_name"),
            **{key: cfg.get(key) for key in ("d_in", "d_sae", "k")},
            **{key: ours.get(key) for key in ("fvu", "l0", "dead")},
            "tokens": (ours.get("training") or {}).get("tokens"),
        }

    return _parsed(path, parse) or {}


def _lid(metrics: Any) -> dict[str, Any]:
    order = {name: place for place, name in enumerate(_HEADS)}
    names = sorted(metrics["heads"], key=lambda name: (order.get(name, len(order)), name))
    lengths = sorted(metrics.get("by_length", {}), key=lambda name: (name == "all", _natural(name)))
    by_length = {length: metrics["by_length"][length]["heads"] for length in lengths} or {"all": metrics["heads"]}
    heads = [_head(name, metrics["heads"][name], by_length) for name in names]
    support = [sum(row) for row in metrics["heads"][names[0]]["confusion_matrix"]] if names else []
    table = [
        {"label": label, "n": n, "f1": [metrics["heads"][name]["per_label"][label]["f1"] for name in names]}
        for label, n in zip(metrics["labels"], support, strict=False)
    ]
    return {
        **{key: metrics.get(key) for key in ("corpus", "split", "labels", "n")},
        "heads": heads,
        "best": _best(heads, list(by_length)),
        "lengths": list(by_length),
        "per_label": table,
        "confusion": {
            name: {at: _sparse(of[name]["confusion_matrix"]) for at, of in by_length.items() if name in of}
            for name in names
        },
    }


def _head(name: str, metrics: Any, by_length: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "note": _HEADS.get(name, ""),
        "accuracy": metrics["accuracy"],
        "accuracy_ci": metrics.get("accuracy_ci"),
        "f1": metrics["f1_macro"],
        "f1_ci": metrics.get("f1_macro_ci"),
        "by_length": {length: heads.get(name, {}).get("f1_macro") for length, heads in by_length.items()},
    }


def _best(heads: list[dict[str, Any]], lengths: list[str]) -> dict[str, Any]:
    """The greatest accuracy, macro-F1, and macro-F1 of each length."""
    best: dict[str, Any] = {key: max((head[key] for head in heads), default=None) for key in ("accuracy", "f1")}
    known = {at: [h["by_length"][at] for h in heads if h["by_length"][at] is not None] for at in lengths}
    return {**best, "by_length": {at: max(values, default=None) for at, values in known.items()}}


def _sparse(matrix: list[list[int]]) -> list[int]:
    """Row, column and count of each cell that is not 0, one after the other."""
    cells = ((r, c, n) for r, row in enumerate(matrix) for c, n in enumerate(row) if n)
    return [number for cell in cells for number in cell]


def _selections(run: Path) -> dict[str, Selection]:
    """Every selection by the name of its file, SAE-LAPE and LAPE first."""
    order = {name: place for place, name in enumerate(_METHODS)}
    paths = sorted((run / "selections").glob("[!.]*.parquet"), key=lambda p: (order.get(p.stem, len(order)), p.stem))
    return {path.stem: Selection.load(path) for path in paths}


def _shown(rows: Any) -> dict[str, dict[Cell, Any]]:
    """Method -> cell -> the row of `examples/shown.json`."""
    found: dict[str, dict[Cell, Any]] = defaultdict(dict)
    for row in rows:
        found[row["method"]][row["dictionary"], int(row["unit"]), row["label"]] = {
            "tokens": [str(token) for token in row.get("tokens") or []],
            "passage": _passage(row["passages"][0]) if row.get("passages") else None,
        }
    return dict(found)


def _passage(passage: Any) -> dict[str, Any]:
    text = str(passage.get("text") or "")
    pieces, activations = passage.get("pieces") or [], passage.get("activations") or []
    if pieces and len(pieces) == len(activations):
        spans = _spans(pieces, activations)
    else:
        spans = [{"text": text[:_CHARACTERS] + "…" * (len(text) > _CHARACTERS), "shade": 0, "peak": False}]
    direction = _direction(text or "".join(pieces))
    return {"label": passage.get("label"), "value": passage.get("value"), "direction": direction, "spans": spans}


def _direction(text: str) -> str:
    """Of the whole text; an excerpt may begin with a word of the other direction, which `auto` would follow."""
    strong = Counter(unicodedata.bidirectional(character) for character in text)
    right = strong["R"] + strong["AL"]
    return "rtl" if right > strong["L"] else "ltr" if strong["L"] else "auto"


def _spans(pieces: list[str], activations: list[float]) -> list[dict[str, Any]]:
    """Pieces around the peak, silent neighbours joined; shade is 0 to 100, 100 at the peak."""
    top = max(activations)
    peak = activations.index(top)
    start, end = max(0, peak - _PIECES), min(len(pieces), peak + _PIECES + 1)
    spans = [{"text": "… ", "shade": 0, "peak": False}] if start else []
    for at in range(start, end):
        shade = round(100 * max(activations[at], 0) / top) if top > 0 else 0
        is_peak = at == peak and shade > 0
        marks, rest = _split_marks(pieces[at]) if spans else ("", pieces[at])
        if marks:
            spans[-1]["text"] += marks
        if marks and not rest:  # drawn on the letter before
            spans[-1] |= {"shade": max(shade, spans[-1]["shade"]), "peak": is_peak or spans[-1]["peak"]}
        elif not shade and spans and not spans[-1]["shade"]:
            spans[-1]["text"] += rest
        else:
            spans.append({"text": rest, "shade": shade, "peak": is_peak})
    return [*spans, {"text": " …", "shade": 0, "peak": False}] if end < len(pieces) else spans


def _split_marks(piece: str) -> tuple[str, str]:
    """Combining marks at the start, which belong to the letter before, and the rest."""
    at = next((i for i, character in enumerate(piece) if unicodedata.category(character)[0] != "M"), len(piece))
    return piece[:at], piece[at:]


def _method(name: str, selection: Selection, shown: dict[Cell, Any], methods: int) -> dict[str, Any]:
    rows = selection.table.to_pylist()
    cells = Counter((row["label"], row["dictionary"]) for row in rows)
    dictionaries = sorted(selection.dictionaries, key=_natural)
    owners: dict[tuple[str, int], list[str]] = defaultdict(list)
    for row in rows:
        owners[row["dictionary"], row["unit"]].append(row["label"])
    first = max(1, min(FIRST, _CARDS // max(1, len(selection.labels) * methods)))
    units: dict[str, list[dict[str, Any]]] = {label: [] for label in selection.labels}
    for row in rows:
        if row["rank"] <= first:
            others = [label for label in owners[row["dictionary"], row["unit"]] if label != row["label"]]
            extra = shown.get((row["dictionary"], row["unit"], row["label"]))
            units[row["label"]].append({**row, "others": others, "shown": extra})
    totals = Counter(row["label"] for row in rows)
    parameters = selection.header.get("parameters", {})
    return {
        "name": name,
        "score": "entropy" if selection.header["method"] in _METHODS else "score",
        "labels": list(selection.labels),
        "parameters": [f"{key} {as_text(value)}" for key, value in parameters.items() if value is not None],
        "dictionaries": dictionaries,
        "counts": [[cells[label, each] for each in dictionaries] for label in selection.labels],
        "rows": len(rows),
        "distinct": len(owners),
        "totals": [totals[label] for label in selection.labels],
        "units": units,
        "first": first,
    }
