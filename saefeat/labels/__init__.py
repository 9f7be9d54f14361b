"""Convert labels that are codes of languages between code systems.

Elsewhere, labels are strings without a meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

from iso639 import Lang
from langcodes import Language, standardize_tag, tag_distance

from saefeat.io import UserError
from saefeat.labels.meaning import (
    LID176,
    PREFIX,
    SYSTEMS,
    Meaning,
    codes_of,
    iso639_3,
    read,
    read_code,
)
from saefeat.words import in_words

__all__ = [
    "LID176",
    "PREFIX",
    "SYSTEMS",
    "codes_of",
    "convert",
    "counterparts",
    "fasttext_code",
    "find_english",
    "in_codes",
    "language_name",
    "own_label",
    "read",
    "to_labels",
]

# Languages that represent a macrolanguage or a group, beyond those in CLDR.
_STANDARD_MEMBERS = {
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
# Distance in CLDR below which a language is taken for its macrolanguage: nb is near to no, but the
# dialect ary is not near to ar.
_NEAR = 9


def convert(label: str, system: str, from_system: str | None = None) -> str:
    """The code or name that a system has for the language of a label.

    Args:
        label: a code of any of the SYSTEMS, a BCP-47 tag (its script counts, its region only for
            the script), or an English name. Codes are lower-case: `DE` and `IN` may be countries
            and are refused.
        system: one of SYSTEMS. `name` is the reference name of ISO 639-3.
        from_system: the system of the label, for a code with different meanings in two systems
            (`als`).

    Raises:
        UserError: the label is not a language or has several meanings, or `system` has no code or
            several codes for it: `no` is Bokmål or Nynorsk in FLORES, `zh` is simplified or
            traditional. `ar` is `arb_Arab` only: if the likely script is there, a transliteration
            to Latin does not count.
    """
    found = counterparts(label, system, from_system)
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{label} may be {in_words(found)} in {system}; say which")
    macro = _macrolanguage(read(label, from_system).code)
    others = _match(Meaning(macro.pt3), codes_of(system)) if macro else []
    wider = f"; its macrolanguage {macro.name} has {in_words(others)}" if macro and others else ""
    raise UserError(f"{label} has no code in {system}{wider}")


def language_name(label: str) -> str:
    """The English name of a label's language, without the remarks of ISO 639.

    Raises UserError as `convert` does.
    """
    return re.sub(r" \(.*\)$", "", convert(label, "name"))


def counterparts(label: str, system: str, from_system: str | None = None) -> list[str]:
    """All codes that a system has for the language of a label: none, one, or several.

    Arguments are those of `convert`, and so are the errors for a label that is no language.
    """
    codes = codes_of(system)
    meaning = read(label, from_system)
    bare = label.removeprefix(PREFIX)
    return [bare] if codes.get(bare) == meaning else _match(meaning, codes)


def in_codes(labels: Iterable[str], codes: Iterable[str]) -> dict[str, str]:
    """Find for each label the code of its language: label -> code.

    Labels and codes may be of any system, even mixed. A label that equals a code gets this code.
    Several labels may get the same code (`cmn_Hans` and `cmn_Hant`, if `zh` is the only Chinese
    code). A code with different meanings in two systems is read as in fastText. A label with
    several possible codes (`no`, if there are `nob` and `nno`) or with none is left out.
    """
    codes = list(codes)
    meanings = {code: meaning for code in codes if (meaning := read_code(code)) is not None}
    found: dict[str, str] = {}
    for label in labels:
        meaning = read_code(label)
        same = [label] if label in codes else _match(meaning, meanings) if meaning else []
        if len(same) == 1:
            found[label] = same[0]
    return found


def own_label(label: str, labels: Iterable[str]) -> str | None:
    """The one of `labels` that equals a label or is of its language (see `in_codes`), or None."""
    return in_codes([label], labels).get(label)


def find_english(labels: Iterable[str]) -> str | None:
    """The first label of English, or None."""
    return next((label for label in labels if fasttext_code(label) == "en"), None)


def to_labels(codes: Iterable[str], labels: Iterable[str]) -> dict[str, str]:
    """Find for each code one label: code -> label.

    Labels and codes match as in `in_codes`. If several labels match a code, the equal one is taken,
    else the first.
    """
    by_label = in_codes(labels, codes)
    found = {label: label for label, code in by_label.items() if label == code}
    for label, code in by_label.items():
        found.setdefault(code, label)
    return found


@cache
def fasttext_code(label: str) -> str | None:
    """The code in lid.176 of a label in any code system; English names are not read.

    A label that is such a code is returned (`als` is Alemannic as in fastText, `als_Latn` is Tosk
    Albanian as in FLORES). Script and region are ignored.

    Returns:
        The code, or None if the label is not a language code or lid.176 lacks the language.
    """
    bare = label.removeprefix(PREFIX)
    if bare in LID176:
        return bare
    meaning = read_code(label)
    found = _match(meaning, codes_of("fasttext")) if meaning else []
    return found[0] if len(found) == 1 else None


def _match(meaning: Meaning, codes: Mapping[str, Meaning]) -> list[str]:
    """The codes of a language.

    If there is none, those of languages with the same standard; if there is none, those of its
    members; if there is none, that of its macrolanguage, if it is near.
    """
    code, script = meaning
    candidates = {
        key: at.code for key, at in codes.items() if script is None or at.script in (None, script)
    }
    found = (
        [key for key, other in candidates.items() if other == code]
        or [key for key, other in candidates.items() if _standard(other) == _standard(code)]
        or [key for key, other in candidates.items() if other in _members(code)]
    )
    if not found and (macro := _macrolanguage(code)) and tag_distance(code, macro.pt3) < _NEAR:
        found = [key for key, other in candidates.items() if other == macro.pt3]
    plain = [key for key in found if key.count("_") < 2]  # without a variety of FLORES+
    found = plain or found
    return found if script else _without_transliteration(found, codes)


def _without_transliteration(found: list[str], codes: Mapping[str, Meaning]) -> list[str]:
    """Drop the code in Latin script if the language's likely script (by CLDR) has one too."""
    if len({codes[key].code for key in found}) != 1:
        return found
    likely = Language.get(_standard(codes[found[0]].code)).maximize().script
    if likely == "Latn" or all(codes[key].script != likely for key in found):
        return found
    return [key for key in found if codes[key].script != "Latn"]


@cache
def _standard(code: str) -> str:
    """A tag that a macrolanguage shares with its standard member (Mandarin for zh)."""
    return standardize_tag(_STANDARD_MEMBERS.get(code, code), macro=True)


def _macrolanguage(code: str) -> Lang | None:
    return Lang(code).macro() if iso639_3(code) else None


@cache
def _members(code: str) -> set[str]:
    return {lang.pt3 for lang in Lang(code).individuals()} if iso639_3(code) else set()
