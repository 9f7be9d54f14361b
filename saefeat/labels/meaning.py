"""Read labels as languages: codes of several systems, BCP-47 tags and English names.

The tables of ISO 639 come from `iso639-lang`, tags and their equivalents from `langcodes`. Codes of
corpora and judges are in `lists`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from typing import NamedTuple

from iso639 import Lang, iter_langs
from iso639.exceptions import DeprecatedLanguageValue, InvalidLanguageValue
from langcodes import Language, standardize_tag

from saefeat.io import UserError
from saefeat.labels import lists
from saefeat.words import in_words

SYSTEMS = ("iso639-1", "iso639-3", "flores", "nllb", "wili", "fasttext", "name")
PREFIX = "__label__"  # before every label of fastText
LID176 = frozenset(lists.PUBLISHED["fasttext"])
_ISO639 = {"iso639-1": "pt1", "iso639-3": "pt3", "name": "name"}  # system -> attribute of `Lang`
# Codes that differ from ISO 639 in their system. None: ISO 639-3 lacks the language (Banyumasan,
# Tarantino).
_DEVIATIONS: dict[str, dict[str, str | None]] = {
    "fasttext": {"als": "gsw", "bh": "bho", "sh": "hbs"},
    "wili": {"als": "gsw", "map-bms": None, "roa-tara": None},
    "nllb": {"sat_Beng": "sat_Olck"},  # the text is in Ol Chiki
}


class Meaning(NamedTuple):
    """The language of a label."""

    code: str  # of ISO 639-3, or another code for a language that ISO 639-3 lacks
    script: str | None = None  # of ISO 15924; None if the label has none


def read(label: str, from_system: str | None = None) -> Meaning:
    """The meaning of a label: a code of any system, a BCP-47 tag or an English name.

    Without `from_system`, the meaning has to be the same in all systems. Raises UserError if the
    label is not a language, or has several meanings.
    """
    bare = label.removeprefix(PREFIX)
    if from_system is None and label != bare and bare in LID176:
        from_system = "fasttext"
    if from_system is not None:
        codes = codes_of(from_system)
        if bare not in codes:
            raise UserError(f"{label} is not a code of {from_system}", "from_system")
        return codes[bare]
    meanings = {meaning.code: system for system, meaning in reversed(_by_system(bare).items())}
    if len(meanings) > 1:
        choices = [f"{Lang(code).name} ({code}) in {system}" for code, system in meanings.items()]
        raise UserError(f"{label} is {in_words(choices)}; say which system it is of", "from_system")
    found = read_code(bare) or _read_name(bare)
    if found is None:
        raise UserError(
            f"{label} is neither a language code nor the English name of a language"
            f"{_suggestion(bare)}"
        )
    return found


def read_code(label: str) -> Meaning | None:
    """The meaning of a code, fastText's if there are several; None for any other label."""
    bare = label.removeprefix(PREFIX)
    return next(iter(_by_system(bare).values()), None) or _read_tag(bare)


@cache
def codes_of(system: str) -> Mapping[str, Meaning]:
    """Code -> meaning for every code of a system. Raises UserError for an unknown system."""
    if system in _ISO639:
        codes = ((getattr(lang, _ISO639[system]), lang.pt3) for lang in iter_langs())
        return {code: Meaning(pt3) for code, pt3 in codes if code and pt3}
    if system not in lists.PUBLISHED:
        raise UserError(f"unknown code system {system}; there are {', '.join(SYSTEMS)}")
    other = _DEVIATIONS.get(system, {})
    return {c: _read_tag(other.get(c, c) or "") or Meaning(c) for c in lists.PUBLISHED[system]}


@cache
def iso639_3(code: str) -> str | None:
    """The ISO 639-3 code of a code of ISO 639-1, -2 or -3; None for groups and retired codes."""
    try:
        return Lang(code).pt3 or None
    except (DeprecatedLanguageValue, InvalidLanguageValue):
        return None


def _by_system(bare: str) -> dict[str, Meaning]:
    """System -> meaning of a code, for the systems that have the code; ISO 639-3 is the last."""
    systems = ("fasttext", "wili", "iso639-1", "nllb", "flores", "iso639-3")
    return {system: codes_of(system)[bare] for system in systems if bare in codes_of(system)}


def _read_tag(tag: str) -> Meaning | None:
    """The meaning of a BCP-47 tag or of a retired code of ISO 639.

    Tags may have underscores (`en_US`, `deu_Latn`).
    """
    parts = tag.replace("_", "-").split("-")
    if not re.fullmatch("[a-z]{2,3}", parts[0]):
        return None
    try:
        # FLORES+ puts varieties after the script; they are not subtags.
        parsed = Language.get("-".join(parts[:2] if "_" in tag else parts), normalize=False)
        successor = standardize_tag(parts[0]).partition("-")[0]
    except ValueError:
        return None
    script = parsed.script or (parsed.maximize().script if parsed.territory else None)
    code = iso639_3((parsed.extlangs or parts)[0]) or iso639_3(successor)
    return Meaning(code, "Hang" if script == "Kore" else script) if code else None


def _read_name(text: str) -> Meaning | None:
    """The language of an English name.

    Reference names of ISO 639-3 come before other names, and these before names without their
    qualifiers. Raises UserError for a name of several languages.
    """
    if re.fullmatch("[A-Z]{2,3}", text) and read_code(text.lower()):
        return None  # `KO` means Korean or a country, not Ko, a language of New Guinea
    for names in _names():
        found = names.get(text.casefold(), [])
        main = [code for code in found if Lang(code).pt1] if len(found) > 1 else found
        if len(main) == 1:
            return Meaning(main[0])
        if found:
            languages = [Lang(code).name for code in found]
            raise UserError(f"{text} may be {in_words(languages)}; say which")
    tag = lists.NAMES.get(text.casefold())
    return _read_tag(tag) if tag else None


@cache
def _names() -> tuple[dict[str, list[str]], ...]:
    """Name -> codes, for reference names, other names, and names without their qualifiers.

    "Greek, Modern (1453-)" without its qualifiers is "Greek".
    """
    tiers: tuple[dict[str, list[str]], ...] = ({}, {}, {})
    for lang in iter_langs():
        if not lang.pt3:
            continue
        others = lang.other_names()
        unqualified = {re.split(r",| \(", name)[0] for name in [lang.name, *others]}
        for names, given in zip(tiers, ([lang.name], others, unqualified), strict=True):
            for name in given:
                names.setdefault(name.casefold(), []).append(lang.pt3)
    return tiers


def _suggestion(text: str) -> str:
    lower = text.lower()
    found = [lower] if lower != text and read_code(lower) else []
    found = found or get_close_matches(text, list(codes_of("name")), 2, 0.75)
    return f"; did you mean {in_words(found)}?" if found else ""
