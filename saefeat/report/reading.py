"""How files of a run directory are read for the page, and small facts about names and text."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from saefeat.io import read_json, understood

T = TypeVar("T")


def parsed(path: Path, parse: Callable[[Any], T]) -> T | None:
    """`parse` of a JSON file; None when there is no file. Raises UserError when it is not what saefeat writes."""
    return understood(path, lambda: parse(read_json(path))) if path.exists() else None


def natural(path: Path | str) -> list[Any]:
    """A key that sorts numbers within names by their value."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def direction(text: str) -> str:
    """Of the whole text; an excerpt may begin with a word of the other direction, which `auto` would follow."""
    strong = Counter(unicodedata.bidirectional(character) for character in text)
    right = strong["R"] + strong["AL"]
    return "rtl" if right > strong["L"] else "ltr" if strong["L"] else "auto"


def shortened(text: str, most: int) -> str:
    """At most `most` characters, with an ellipsis where the rest was."""
    return text if len(text) <= most else text[:most].rstrip() + "…"


def real(value: Any, digits: int = 4) -> float | None:
    """A number as it goes into the page: few digits, None for what is missing. Raises TypeError for other things."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
