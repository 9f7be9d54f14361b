"""How names, numbers and texts are written on the page and ordered in it."""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_LONGEST = 300  # characters of a recorded value
_BLANKS = str.maketrans({"\n": "↵", "\r": "↵", "\t": "⇥"})


def by_length(name: str) -> tuple[bool, int]:
    """A key that sorts lengths of texts: characters, then "all"."""
    return name == "all", 0 if name == "all" else int(name)


# --------------------------------------------------------------------------- numbers


def rounded(value: float | None, digits: int = 4) -> float | None:
    """A number with few significant digits for the page; None when missing or not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def number(value: float | None, digits: int = 3) -> str:
    """A count with separators, or a float with `digits` decimals; scientific when very small."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    written = f"{value:.1e}" if value and abs(value) < 10**-digits else f"{value:.{digits}f}"
    return written.replace("-", "−")


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(ends: Sequence[float] | None) -> str:
    return f"{ends[0]:.3f} – {ends[1]:.3f}".replace("-", "−") if ends else ""


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


# --------------------------------------------------------------------------- values and texts


def as_text(value: Any) -> str:
    """A value of JSON or of a configuration on one line, cut when it is very long."""
    value = list(value) if isinstance(value, tuple) else value
    if value is None or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        text = ", ".join(map(as_text, value))
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def pairs(values: Mapping[str, Any]) -> list[str]:
    """Each name with its value."""
    return [f"{name} {as_text(value)}" for name, value in values.items()]


def shortened(text: str, most: int) -> str:
    """At most `most` characters, and an ellipsis if the text is longer."""
    return text if len(text) <= most else text[:most].rstrip() + "…"


def direction(text: str) -> str:
    """Writing direction: ltr, rtl, or auto without letters.

    It is that of most letters. HTML's `dir=auto` goes by the first letter, which may be of another
    direction in an excerpt.
    """
    strong = Counter(unicodedata.bidirectional(character) for character in text)
    right = strong["R"] + strong["AL"]
    return "rtl" if right > strong["L"] else "ltr" if strong["L"] else "auto"


def visible(token: str) -> str:
    """A token with arrows for line ends and tabs, and open boxes for blanks at its ends."""
    body = token.strip(" ")
    start = len(token) - len(token.lstrip(" ")) if body else len(token)
    end = len(token) - start - len(body)
    return ("␣" * start + body + "␣" * end).translate(_BLANKS)
