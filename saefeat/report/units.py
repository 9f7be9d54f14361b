"""Units on the page: what methods chose, and details of the first units of each label."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from saefeat.artefacts import Histogram, Passage, ShownUnit
from saefeat.methods import METHODS
from saefeat.report.formats import direction, pairs, rounded, shortened, visible
from saefeat.report.sets import layers_view
from saefeat.report.spread import Spread, unit_spread
from saefeat.selection import Selection
from saefeat.words import natural

Values = dict[str, Any]
Cell = tuple[str, str, int, str]  # method, dictionary, unit, label

FIRST = 10  # units shown of each label
_NUMBERS = ("score", "probability", "mean_firing", "max")
_CARDS = 2400  # at most on the page, so that hundreds of labels stay under 8 MB
_FEW = 600  # cards; beyond, each has one passage
_AROUND = (40, 18, 18)  # pieces on each side of the peak, of each passage of a card
_CHARACTERS = 400  # of a passage, before and after the peak


def method_views(
    selections: Mapping[str, Selection], shown: Sequence[ShownUnit], spread: Spread | None
) -> list[Values]:
    """What the page shows of each method; see `_method`."""
    cells = _shown(shown)
    labels = max((len(selection.labels) for selection in selections.values()), default=0)
    first = max(1, min(FIRST, _CARDS // max(1, labels * len(selections))))
    return [
        _method(name, selection, cells, spread, first) for name, selection in selections.items()
    ]


def _shown(units: Sequence[ShownUnit]) -> dict[Cell, Values]:
    """Tokens, histogram and passages as the page draws them."""
    around = _AROUND if len(units) <= _FEW else _AROUND[:1]
    return {
        (unit["method"], unit["dictionary"], unit["unit"], unit["label"]): {
            "tokens": [visible(token) for token in unit["tokens"]],
            "histogram": _histogram(unit["histogram"]) if "histogram" in unit else None,
            "passages": [_passage(*both) for both in zip(unit["passages"], around, strict=False)],
        }
        for unit in units
    }


def _histogram(histogram: Histogram) -> Values:
    numbers: Values = {**histogram, "max": rounded(histogram["max"])}
    if "edges" in histogram:
        numbers["edges"] = [rounded(edge) for edge in histogram["edges"]]
    return numbers


def _method(
    name: str, selection: Selection, shown: Mapping[Cell, Values], spread: Spread | None, first: int
) -> Values:
    """A method's counts by label and dictionary, and its first units of each label."""
    rows = selection.table.to_pylist()
    cells = Counter((row["label"], row["dictionary"]) for row in rows)
    totals = Counter(row["label"] for row in rows)
    dictionaries = sorted(selection.dictionaries, key=natural)
    owners: dict[tuple[str, int], list[str]] = defaultdict(list)
    units: dict[str, list[Values]] = {label: [] for label in selection.labels}
    for row in rows:
        owners[row["dictionary"], row["unit"]].append(row["label"])
    for row in rows:
        if row["rank"] <= first:
            unit, label = (row["dictionary"], row["unit"]), row["label"]
            others = [owner for owner in owners[unit] if owner != label]
            extra = unit_spread(spread, *unit) | shown.get((name, *unit, label), {})
            known = {key: row[key] for key in ("dictionary", "unit", "rank")}
            known |= {key: rounded(row[key]) for key in _NUMBERS}
            units[label].append({**known, "others": others, **extra})
    parameters, rule = selection.header.get("parameters", {}), selection.header["method"]
    return {
        "name": name,
        "score": METHODS[rule].score if rule in METHODS else "score",
        "labels": list(selection.labels),
        "parameters": pairs({k: value for k, value in parameters.items() if value is not None}),
        "dictionaries": dictionaries,
        "counts": [[cells[label, each] for each in dictionaries] for label in selection.labels],
        "layers": layers_view(selection),
        "rows": len(rows),
        "distinct": len(owners),
        "totals": [totals[label] for label in selection.labels],
        "units": [units[label] for label in selection.labels],
    }


# --------------------------------------------------------------------------- passages


def _passage(passage: Passage, around: int) -> Values:
    """{label, value, direction, spans: [[text, shade 0 to 100, is the peak], ...]}."""
    text, pieces = passage["text"], passage.get("pieces", [])
    if pieces:
        spans = _spans(pieces, passage.get("activations", []), around)
    else:
        spans = [[shortened(text, _CHARACTERS), 0, False]]
    return {
        "label": passage["label"],
        "value": rounded(passage["value"]),
        "direction": direction(text or "".join(pieces)),
        "spans": spans,
    }


def _spans(pieces: list[str], activations: list[float], around: int) -> list[list[Any]]:
    """Pieces around the peak, with neighbours of shade 0 joined. The peak has shade 100."""
    top = max(activations)
    peak = activations.index(top)
    start, end = _excerpt(pieces, peak, around)
    spans: list[list[Any]] = [["… ", 0, False]] if start else []
    for at in range(start, end):
        shade = round(100 * max(activations[at], 0) / top) if top > 0 else 0
        is_peak = at == peak and shade > 0
        marks, letters = _split_marks(pieces[at]) if spans else ("", pieces[at])
        if marks:
            spans[-1][0] += marks
        if marks and not letters:  # drawn on the letter before
            spans[-1][1:] = [max(shade, spans[-1][1]), is_peak or spans[-1][2]]
        elif not shade and spans and not spans[-1][1]:
            spans[-1][0] += letters
        else:
            spans.append([letters, shade, is_peak])
    return [*spans, [" …", 0, False]] if end < len(pieces) else spans


def _excerpt(pieces: list[str], peak: int, around: int) -> tuple[int, int]:
    """Start and end of the pieces around the peak, limited in number and in characters."""
    start, end = peak, peak + 1
    for step, stop in ((-1, -1), (1, len(pieces))):
        at, room = peak + step, _CHARACTERS
        while at != stop and abs(at - peak) <= around and len(pieces[at]) <= room:
            room -= len(pieces[at])
            start, end = min(start, at), max(end, at + 1)
            at += step
    return start, end


def _split_marks(piece: str) -> tuple[str, str]:
    """The combining marks at the start, which belong to the letter before, and the rest."""
    kinds = (unicodedata.category(character)[0] for character in piece)
    end = next((at for at, kind in enumerate(kinds) if kind != "M"), len(piece))
    return piece[:end], piece[end:]
