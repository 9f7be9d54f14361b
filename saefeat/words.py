"""Names in sentences, and in their natural order."""

from __future__ import annotations

import re
from collections.abc import Iterable


def in_words(names: Iterable[str], last: str = "or") -> str:
    """Names as part of a sentence: "a", "a or b", "a, b or c"."""
    *names, end = names
    return f"{', '.join(names)} {last} {end}" if names else end


def natural(name: object) -> list[int | str]:
    """A key that sorts names or paths so that `layer2` comes before `layer10`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(name))]
