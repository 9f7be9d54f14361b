"""Units on the page: what methods chose, and for each of the first ones all that is known of it."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from saefeat.methods import METHODS
from saefeat.report.facts import as_text
from saefeat.report.reading import direction, natural, parsed, real, shortened
from saefeat.report.spread import unit_spread
from saefeat.selection import Selection

Cell = tuple[str, int, str]  # dictionary, unit, label

FIRST = 10  # units shown of each label
_CARDS = 2400  # at most on the page, so that hundreds of labels stay under 8 MB
_FEW = 600  # cards; beyond, each has one passage
_PASSAGES = 3
_PIECES = (40, 18)  # of a passage on each side of its peak: of the first, of the others
_CHARACTERS = 400  # of a passage, before and after the peak


def read_selections(run: Path) -> dict[str, Selection]:
    """Every selection by the name of its file, those of features first."""
    order = {name: place for place, name in enumerate(METHODS)}
    paths = sorted(
        (run / "selections").glob("[!.]*.parquet"),
        key=lambda p: (order.get(p.stem, len(order)), p.stem),
    )
    return {path.stem: Selection.load(path) for path in paths}


def read_shown(run: Path) -> dict[str, dict[Cell, Any]] | None:
    """Method -> cell -> the row of `examples/shown.json`; None when there is no such file."""
    return parsed(run / "examples" / "shown.json", _shown)


def _shown(rows: Any) -> dict[str, dict[Cell, Any]]:
    found: dict[str, dict[Cell, Any]] = defaultdict(dict)
    most = _PASSAGES if len(rows) <= _FEW else 1
    for row in rows:
        found[row["method"]][row["dictionary"], int(row["unit"]), row["label"]] = {
            "tokens": [visible(str(token)) for token in row.get("tokens") or []],
            "histogram": _histogram(row.get("histogram")),
            "passages": [
                _passage(p, _PIECES[at > 0])
                for at, p in enumerate((row.get("passages") or [])[:most])
            ],
        }
    return dict(found)


def _histogram(value: Any) -> dict[str, Any] | None:
    if not value:
        return None
    counts = [int(n) for n in value["counts"]]
    return {
        "tokens": int(value["tokens"]),
        "fired": int(value["fired"]),
        "max": real(value["max"]),
        "counts": counts,
    }


def method_view(
    name: str,
    selection: Selection,
    shown: dict[Cell, Any],
    methods: int,
    spread: dict[str, Any] | None,
) -> dict[str, Any]:
    """A method's counts by label and dictionary, and its first units of each label."""
    rows = selection.table.to_pylist()
    cells = Counter((row["label"], row["dictionary"]) for row in rows)
    dictionaries = sorted(selection.dictionaries, key=natural)
    owners: dict[tuple[str, int], list[str]] = defaultdict(list)
    for row in rows:
        owners[row["dictionary"], row["unit"]].append(row["label"])
    first = max(1, min(FIRST, _CARDS // max(1, len(selection.labels) * methods)))
    units: dict[str, list[dict[str, Any]]] = {label: [] for label in selection.labels}
    for row in rows:
        if row["rank"] <= first:
            others = [
                label for label in owners[row["dictionary"], row["unit"]] if label != row["label"]
            ]
            extra = shown.get((row["dictionary"], row["unit"], row["label"])) or {}
            units[row["label"]].append(
                _unit(row, others, unit_spread(spread, row["dictionary"], row["unit"]), extra)
            )
    totals = Counter(row["label"] for row in rows)
    parameters = selection.header.get("parameters", {})
    return {
        "name": name,
        "score": _score(selection.header["method"]),
        "labels": list(selection.labels),
        "parameters": [
            f"{key} {as_text(value)}" for key, value in parameters.items() if value is not None
        ],
        "dictionaries": dictionaries,
        "counts": [[cells[label, each] for each in dictionaries] for label in selection.labels],
        "rows": len(rows),
        "distinct": len(owners),
        "totals": [totals[label] for label in selection.labels],
        "units": [units[label] for label in selection.labels],
    }


def _score(method: str) -> str:
    return METHODS[method].score if method in METHODS else "score"


def _unit(
    row: dict[str, Any], others: list[str], spread: dict[str, Any], extra: dict[str, Any]
) -> dict[str, Any]:
    numbers = {key: real(row[key]) for key in ("score", "probability", "mean_firing", "max")}
    names = {key: row[key] for key in ("dictionary", "unit", "rank")}
    return {**names, **numbers, "others": others, **spread, **extra}


# --------------------------------------------------------------------------- text


_BLANKS = str.maketrans({"\n": "↵", "\r": "↵", "\t": "⇥"})


def visible(token: str) -> str:
    """A token with its white space made visible: line ends as arrows, blanks at the ends as open boxes."""
    body = token.strip(" ")
    start = len(token) - len(token.lstrip(" ")) if body else len(token)
    end = len(token) - start - len(body)
    return ("␣" * start + body + "␣" * end).translate(_BLANKS)


def _passage(passage: Any, around: int) -> dict[str, Any]:
    """{label, value, direction, spans: [[text, shade 0 to 100, whether it is the peak], ...]}."""
    text = str(passage.get("text") or "")
    pieces, activations = passage.get("pieces") or [], passage.get("activations") or []
    if pieces and len(pieces) == len(activations):
        spans = _spans(pieces, activations, around)
    else:
        spans = [[shortened(text, _CHARACTERS), 0, False]]
    way = direction(text or "".join(pieces))
    return {
        "label": passage.get("label"),
        "value": real(passage.get("value")),
        "direction": way,
        "spans": spans,
    }


def _spans(pieces: list[str], activations: list[float], around: int) -> list[list[Any]]:
    """Pieces around the peak, silent neighbours joined; shade is 0 to 100, 100 at the peak."""
    top = max(activations)
    peak = activations.index(top)
    start, end = _excerpt(pieces, peak, around)
    spans: list[list[Any]] = [["… ", 0, False]] if start else []
    for at in range(start, end):
        shade = round(100 * max(activations[at], 0) / top) if top > 0 else 0
        is_peak = at == peak and shade > 0
        marks, rest = _split_marks(pieces[at]) if spans else ("", pieces[at])
        if marks:
            spans[-1][0] += marks
        if marks and not rest:  # drawn on the letter before
            spans[-1][1:] = [max(shade, spans[-1][1]), is_peak or spans[-1][2]]
        elif not shade and spans and not spans[-1][1]:
            spans[-1][0] += rest
        else:
            spans.append([rest, shade, is_peak])
    return [*spans, [" …", 0, False]] if end < len(pieces) else spans


def _excerpt(pieces: list[str], peak: int, around: int) -> tuple[int, int]:
    """First and last + 1 of the pieces on both sides of the peak, within a number of pieces and of characters."""
    start, end = peak, peak + 1
    for step, stop in ((-1, -1), (1, len(pieces))):
        at, room = peak + step, _CHARACTERS
        while at != stop and abs(at - peak) <= around and len(pieces[at]) <= room:
            room -= len(pieces[at])
            start, end = min(start, at), max(end, at + 1)
            at += step
    return start, end


def _split_marks(piece: str) -> tuple[str, str]:
    """Combining marks at the start, which belong to the letter before, and the rest."""
    at = next(
        (i for i, character in enumerate(piece) if unicodedata.category(character)[0] != "M"),
        len(piece),
    )
    return piece[:at], piece[at:]
