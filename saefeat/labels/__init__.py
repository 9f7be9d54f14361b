"""Code systems of languages: what a label of one system is called in another.

Labels are strings used as given. Only here are they read as codes, and only where another system is
asked. The facts
come from libraries that are kept up: ISO 639's tables from `iso639-lang`, tags and their
equivalents from `langcodes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import NamedTuple

from iso639 import Lang, iter_langs
from iso639.exceptions import DeprecatedLanguageValue, InvalidLanguageValue
from langcodes import Language, standardize_tag, tag_distance

from saefeat.io import UserError
from saefeat.labels import lists

SYSTEMS = ("iso639-1", "iso639-3", "flores", "nllb", "wili", "fasttext", "name")
PREFIX = "__label__"  # fastText's mark of a label
LID176 = frozenset(lists.LID176)
# Codes that mean another thing in their system than in ISO 639, which they otherwise follow.
_OWN: dict[str, dict[str, str | None]] = {
    "fasttext": {"als": "gsw", "bh": "bho", "sh": "hbs"},
    "wili": {
        "als": "gsw",
        "map-bms": None,
        "roa-tara": None,
    },  # ISO 639-3 has no code for Banyumasan and Tarantino
    "nllb": {"sat_Beng": "sat_Olck"},  # the text is in Ol Chiki, as FLORES says
}
# Members that stand for a macrolanguage or a group, beyond those that CLDR knows.
_STANDARD = {
    "quy": "que",
    "quz": "que",
    "pbt": "pus",
    "pbu": "pus",
    "knn": "gom",
    "kok": "gom",
    "nci": "nah",
    "nhn": "nah",
    "egl": "eml",
    "rgn": "eml",
}
_NEAR = 9  # CLDR's distance: the standard of a macrolanguage (nb, no) is nearer, a dialect (ary, ar) is not


class Reading(NamedTuple):
    """What a label means: an ISO 639-3 code (another only where ISO has none) and a script, if it says one."""

    code: str
    script: str | None = None


def convert(label: str, system: str, source: str | None = None) -> str:
    """The code or name that `system` has for the language of a label.

    Args:
        label: a code of any of the SYSTEMS, a BCP-47 tag (its script counts, its region only for
            the script), or an English name. Codes are lower-case: `DE` and `IN` may be countries,
            and are refused.
        system: one of SYSTEMS. `name` is the reference name of ISO 639-3.
        source: the system of the label, for one that two systems understand differently (`als`).

    Raises:
        UserError: for a label that is no language, one that has several meanings, and one for which
        `system` has no
            code or several: `no` is Bokmål or Nynorsk in FLORES, `zh` in simplified or traditional
                script. `ar` is
            `arb_Arab`, though: where its likely script is there, a transliteration to Latin does
            not count.
    """
    found = counterparts(label, system, source)
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{label} may be {_either(found)} in {system}; say which")
    macro = _macro(read(label, source).code)
    others = _same(Reading(macro.pt3), codes_of(system)) if macro else []
    wider = f"; its macrolanguage {macro.name} has {_either(others)}" if macro and others else ""
    raise UserError(f"{label} has no code in {system}{wider}")


def counterparts(label: str, system: str, source: str | None = None) -> list[str]:
    """All that `convert` chooses from: one code, several where the label leaves it open, or none. UserError alike."""
    codes = codes_of(system)
    reading = read(label, source)
    bare = label.removeprefix(PREFIX)
    return [bare] if codes.get(bare) == reading else _same(reading, codes)


def in_codes(labels: Iterable[str], codes: Iterable[str]) -> dict[str, str]:
    """Which of `codes` has the language of each of `labels`: label -> code. Either may be of any system, even mixed.

    A label equal to a code takes it, whatever it means. Several labels may have one code
    (`cmn_Hans` and `cmn_Hant` among codes that have `zh` alone). What two systems read differently
    is read as fastText does. A label that leaves its code open (`no` among `nob`, `nno`), or whose
    language has none, is left out.
    """
    codes = list(codes)
    readings = {code: reading for code in codes if (reading := _read_code(code)) is not None}
    found: dict[str, str] = {}
    for label in labels:
        reading = _read_code(label)
        same = [label] if label in codes else _same(reading, readings) if reading else []
        if len(same) == 1:
            found[label] = same[0]
    return found


def own_label(label: str, labels: Iterable[str]) -> str | None:
    """The one of `labels` that is equal to a label or of its language, as by `in_codes`; None where there is none."""
    return in_codes([label], labels).get(label)


def to_labels(codes: Iterable[str], labels: Iterable[str]) -> dict[str, str]:
    """Which of `labels` each of `codes` stands for: code -> label. Codes are matched as by `in_codes`.

    One label a code: an equal one before others, else the earliest. A label for which no code is
    left has none.
    """
    by_label = in_codes(labels, codes)
    found = {label: label for label, code in by_label.items() if label == code}
    for label, code in by_label.items():
        found.setdefault(code, label)
    return found


@cache
def fasttext_code(label: str) -> str | None:
    """The code in lid.176 of a label in any code system; English names are not read.

    A label that is such a code as it stands stays it (`als` is Alemannic as in fastText, `als_Latn`
    Tosk Albanian as in FLORES). Script and region are not looked at.

    Returns:
        The code, or None for a language that lid.176 does not know and for whatever is not a
        language code.
    """
    bare = label.removeprefix(PREFIX)
    if bare in LID176:
        return bare
    reading = _read_code(label)
    found = _same(reading, codes_of("fasttext")) if reading else []
    return found[0] if len(found) == 1 else None


def read(label: str, source: str | None = None) -> Reading:
    """The language of a label, and the script if it says one; raises UserError as `convert` does."""
    bare = label.removeprefix(PREFIX)
    if source is None and label != bare and bare in LID176:
        source = "fasttext"
    if source is not None:
        if bare not in codes_of(source):
            raise UserError(f"{label} is no code of {source}")
        return codes_of(source)[bare]
    meanings = {reading.code: system for system, reading in reversed(_meanings(bare).items())}
    if len(meanings) > 1:
        means = [f"{Lang(code).name} ({code}) in {system}" for code, system in meanings.items()]
        raise UserError(f"{label} is {_either(means)}; say which system it is of (--from)")
    found = _read_code(bare) or _read_name(bare)
    if found is None:
        raise UserError(
            f"{label} is no language code and no English name of a language{_near(bare)}"
        )
    return found


def _meanings(bare: str) -> dict[str, Reading]:
    """System -> meaning of a code, for the systems that have it, ISO 639-3 last."""
    systems = ("fasttext", "wili", "iso639-1", "nllb", "flores", "iso639-3")
    return {system: codes_of(system)[bare] for system in systems if bare in codes_of(system)}


def _read_code(label: str) -> Reading | None:
    """The meaning of a code, fastText's where there are several; None for what is no code."""
    bare = label.removeprefix(PREFIX)
    return next(iter(_meanings(bare).values()), None) or _read_tag(bare)


def _read_tag(tag: str) -> Reading | None:
    """The meaning of a BCP-47 tag, also with underscores (`en_US`, `deu_Latn`), and of retired codes of ISO 639."""
    parts = tag.replace("_", "-").split("-")
    if not re.fullmatch("[a-z]{2,3}", parts[0]):
        return None
    try:
        # FLORES+ puts varieties after the script, which are no subtags.
        parsed = Language.get("-".join(parts[:2] if "_" in tag else parts), normalize=False)
        successor = standardize_tag(parts[0]).partition("-")[0]
    except ValueError:
        return None
    script = parsed.script or (parsed.maximize().script if parsed.territory else None)
    code = _iso((parsed.extlangs or parts)[0]) or _iso(successor)
    return Reading(code, "Hang" if script == "Kore" else script) if code else None


def _read_name(text: str) -> Reading | None:
    """The language of an English name: of ISO 639-3 before others, and before those without their qualifiers."""
    if re.fullmatch("[A-Z]{2,3}", text) and _read_code(text.lower()):
        return None  # `KO` is meant for Korean or a country, not for Ko, a language of Papua New Guinea
    for names in _names():
        found = names.get(text.casefold(), [])
        main = [code for code in found if Lang(code).pt1] if len(found) > 1 else found
        if len(main) == 1:
            return Reading(main[0])
        if found:
            raise UserError(
                f"{text} may be {_either([Lang(code).name for code in found])}; say which"
            )
    tag = lists.NAMES.get(text.casefold())
    return _read_tag(tag) if tag else None


@cache
def _names() -> tuple[dict[str, list[str]], ...]:
    """Reference names, other names, names cut at their qualifier ("Greek" of "Greek, Modern (1453-)") -> codes."""
    tiers: tuple[dict[str, list[str]], ...] = ({}, {}, {})
    for lang in iter_langs():
        if not lang.pt3:
            continue
        others = lang.other_names()
        cut = {re.split(r",| \(", name)[0] for name in [lang.name, *others]}
        for names, given in zip(tiers, ([lang.name], others, cut), strict=True):
            for name in given:
                names.setdefault(name.casefold(), []).append(lang.pt3)
    return tiers


@cache
def codes_of(system: str) -> Mapping[str, Reading]:
    """Every code of a system -> what it means there."""
    if system == "iso639-1":
        return {lang.pt1: Reading(lang.pt3) for lang in iter_langs() if lang.pt1 and lang.pt3}
    if system == "iso639-3":
        return {lang.pt3: Reading(lang.pt3) for lang in iter_langs() if lang.pt3}
    if system == "name":
        return {lang.name: Reading(lang.pt3) for lang in iter_langs() if lang.pt3}
    published = {
        "flores": lists.FLORES,
        "nllb": lists.NLLB,
        "wili": lists.WILI,
        "fasttext": lists.LID176,
    }
    if system not in published:
        raise UserError(f"unknown code system {system}; there are {', '.join(SYSTEMS)}")
    own = _OWN.get(system, {})
    return {
        code: _read_tag(own.get(code, code) or "") or Reading(code) for code in published[system]
    }


def _same(reading: Reading, codes: Mapping[str, Reading]) -> list[str]:
    """The codes for a language, of the nearest kind there is: its own, its standard's, its members', its macro's."""
    code, script = reading
    fits = {
        key: at.code for key, at in codes.items() if script is None or at.script in (None, script)
    }
    found = [key for key, other in fits.items() if other == code]
    if not found:
        found = [key for key, other in fits.items() if _standard(other) == _standard(code)]
    if not found:
        members = _members(code)
        found = [key for key, other in fits.items() if other in members]
    if not found and (macro := _macro(code)) and tag_distance(code, macro.pt3) < _NEAR:
        found = [key for key, other in fits.items() if other == macro.pt3]
    found = [
        key for key in found if key.count("_") < 2
    ] or found  # plain FLORES+ codes before those of a variety
    return found if script else _untransliterated(found, codes)


def _untransliterated(found: list[str], codes: Mapping[str, Reading]) -> list[str]:
    """Without the Latin script of one language whose likely script, by CLDR, is another one that is there."""
    if len({codes[key].code for key in found}) != 1:
        return found
    likely = Language.get(_standard(codes[found[0]].code)).maximize().script
    if likely == "Latn" or all(codes[key].script != likely for key in found):
        return found
    return [key for key in found if codes[key].script != "Latn"]


@cache
def _standard(code: str) -> str:
    """A tag that is equal for a macrolanguage and the member that stands for it (zh: Mandarin, ar: Standard Arabic)."""
    return standardize_tag(_STANDARD.get(code, code), macro=True)


@cache
def _iso(code: str) -> str | None:
    """The ISO 639-3 code of one of ISO 639-1, -2 or -3; None for groups, retired and unknown ones."""
    try:
        return Lang(code).pt3 or None
    except (DeprecatedLanguageValue, InvalidLanguageValue):
        return None


def _macro(code: str) -> Lang | None:
    return Lang(code).macro() if _iso(code) else None


def _members(code: str) -> set[str]:
    return {lang.pt3 for lang in Lang(code).individuals()} if _iso(code) else set()


def _either(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _near(text: str) -> str:
    """A suggestion to end a sentence with, if there is one."""
    lower = text.lower()
    found = (
        [lower]
        if lower != text and _read_code(lower)
        else get_close_matches(text, list(codes_of("name")), 2, 0.75)
    )
    return f"; did you mean {_either(found)}?" if found else ""
