"""Script and family of the languages that labels stand for.

The script is that of the label, or else the likely one of CLDR (by `langcodes`). The family is the
root of Glottolog's tree, by the optional library `qwanqwa`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from typing import Any

from iso639 import Lang
from langcodes import Language, standardize_tag

from saefeat.io import UserError
from saefeat.labels.meaning import iso639_3, read_code


def groupings() -> dict[str, Callable[[Iterable[str]], dict[str, str]]]:
    """The ways to group labels that the installed libraries know, by name."""
    known = {"script": scripts, "family": families}
    return known if find_spec("qq") else {"script": scripts}


def scripts(labels: Iterable[str]) -> dict[str, str]:
    """Label -> script (ISO 15924), for the labels that are codes of languages."""
    found = {}
    for label in labels:
        if meaning := read_code(label):
            tag = standardize_tag(meaning.code, macro=True)
            script = meaning.script or Language.get(tag).maximize().script
            if script:
                found[label] = script
    return found


def families(labels: Iterable[str]) -> dict[str, str]:
    """Label -> family, for the labels that are codes of languages; an isolate is its own family.

    The family of a macrolanguage (`zh`, `ar`) is the one that its members have in common.

    Raises UserError when the library is not installed.
    """
    meanings = {label: read_code(label) for label in labels}
    found = {label: _family(meaning.code) for label, meaning in meanings.items() if meaning}
    return {label: family for label, family in found.items() if family}


@cache
def _family(code: str) -> str | None:
    """The family of a language by its code of ISO 639-3."""
    if not iso639_3(code):
        return None
    members = [each.pt3 for each in Lang(code).individuals()]
    if root := _root(code):
        return root
    roots = {root for member in members if (root := _root(member))}
    if members:
        return roots.pop() if len(roots) == 1 else None
    return Lang(code).name if _languoid(code) is not None else None


def _root(code: str) -> str | None:
    languoid = _languoid(code)
    root = languoid.root_family if languoid is not None else None
    return root.name if root is not None else None


def _languoid(code: str) -> Any:
    database = _database()
    from qq import IdType

    try:
        return database.get(code, IdType.ISO_639_3)
    except KeyError:
        return None


@cache
def _database() -> Any:
    try:
        from qq import Database
    except ImportError as error:
        raise UserError(
            "families of languages need the library qwanqwa; install saefeat[typology]"
        ) from error
    return Database.load()
