"""Passages on which a unit fires, as spans of text that are shaded by its activation."""

from __future__ import annotations

import unicodedata
from typing import Any

from saefeat.artefacts import Passage
from saefeat.report.formats import direction, rounded, shortened

_AROUND = (40, 18)  # pieces on each side of the peak: of the first passage, of the others
_CHARACTERS = 400  # of a passage, before and after the peak


def passage_view(passage: Passage, *, first: bool) -> dict[str, Any]:
    """{label, value, direction, spans: [[text, shade 0 to 100, whether it is the peak], ...]}."""
    text, pieces = passage["text"], passage.get("pieces", [])
    if pieces:
        spans = _spans(pieces, passage.get("activations", []), _AROUND[0 if first else 1])
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
    """First and last + 1 of the pieces around the peak, limited in number and in characters."""
    start, end = peak, peak + 1
    for step, stop in ((-1, -1), (1, len(pieces))):
        at, room = peak + step, _CHARACTERS
        while at != stop and abs(at - peak) <= around and len(pieces[at]) <= room:
            room -= len(pieces[at])
            start, end = min(start, at), max(end, at + 1)
            at += step
    return start, end


def _split_marks(piece: str) -> tuple[str, str]:
    """The combining marks at the start, which belong to the letter before, and what follows."""
    letters = piece
    while letters and unicodedata.category(letters[0])[0] == "M":
        letters = letters[1:]
    return piece[: len(piece) - len(letters)], letters
