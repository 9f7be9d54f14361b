"""Scripts of strings and of languages, as codes of ISO 15924 (Unicode's property Script)."""

from __future__ import annotations

from collections import Counter
from functools import cache

import regex
from langcodes import Language

from saefeat.labels import lists
from saefeat.labels.meaning import read_code

# Scripts of writing systems that Unicode does not know as one script.
_PARTS = {"Hans": ("Hani",), "Hant": ("Hani",), "Jpan": ("Hani", "Hira", "Kana"), "Kore": ("Hang",)}


def script_of(text: str) -> str | None:
    """The script of most letters of a string, of equals the first; None without a letter.

    Scripts are those of the languages of FLORES and NLLB. What several scripts share (digits,
    punctuation) is of none.
    """
    found: Counter[str] = Counter()
    for run in _pattern().finditer(text):
        found[run.lastgroup or ""] += len(run[0])
    return found.most_common(1)[0][0] if found else None


def scripts_of_label(label: str) -> frozenset[str]:
    """The scripts in which the language of a label is written: its own, or by CLDR the likely one.

    A language may have several (Japanese). A label that is no code of a language has none.
    """
    meaning = read_code(label)
    if meaning is None:
        return frozenset()
    script = meaning.script or Language.get(meaning.code).maximize().script
    return frozenset(_PARTS.get(script, (script,))) if script else frozenset()


@cache
def known_scripts() -> tuple[str, ...]:
    """The scripts that `script_of` tells apart, sorted."""
    codes = [code for system in ("flores", "nllb") for code in lists.PUBLISHED[system]]
    found = {code.split("_")[1] for code in codes if "_" in code}
    return tuple(sorted({part for script in found for part in _PARTS.get(script, (script,))}))


@cache
def _pattern() -> regex.Pattern[str]:
    """A pattern of runs of letters of one script, which is the name of the group."""
    runs = (rf"(?P<{script}>[\p{{Script={script}}}&&\p{{L}}]+)" for script in known_scripts())
    return regex.compile("|".join(runs), regex.V1)
