"""Keywords of programming languages, and the languages whose keywords a string has.

After arXiv 2506.01074: a decoded token is of a programming language where at least half of its
words, split at whitespace, are keywords of it. It may be of several.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from saefeat.io import UserError

# Those of the paper, but HTML, which has no keywords.
PROGRAMMING = ("c", "c++", "c#", "java", "rust", "python", "javascript", "php", "go", "ruby")
SHARE = 0.5
_WORD = re.compile(r"\w+", re.ASCII)
# One of these is a keyword in every language that Pygments knows keywords of.
_PROBES = [
    "if",
    "IF",
    "case",
    "return",
    "function",
    "let",
    "define",
    "while",
    "for",
    "select",
    "print",
    "end",
    "class",
    "true",
    "var",
]

Keywords = Mapping[str, Callable[[str], bool]]
"""programming language -> whether a word is a keyword of it."""


def pygments_keywords(names: list[str]) -> Keywords:
    """Keywords by the lexers of Pygments: a word that a lexer reads as a keyword on its own.

    Words that are operators (`not`) are keywords too. Raises UserError for a name that Pygments
    does not know, or of which it knows no keywords.
    """
    found = {}
    for name in names:
        found[name] = _reader(name)
        if not any(map(found[name], _PROBES)):
            raise UserError(f"Pygments has no keywords of {name}; give them in a table", "keywords")
    return found


def by_language(names: Iterable[str], parameter: str) -> dict[str, str]:
    """The name that Pygments has for each programming language -> the one given.

    Raises UserError for a name that it does not know, and for two names of one language.
    """
    found: dict[str, str] = {}
    for name in names:
        before = found.setdefault(_lexer(name).name, name)
        if before != name:
            raise UserError(f"{before} and {name} are one programming language", parameter)
    return found


def _lexer(name: str) -> Any:
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(name, startinline=True)  # of PHP: without `<?php`
    except ClassNotFound as error:
        raise UserError(
            f"Pygments does not know the programming language {name}; give its keywords in a table",
            "keywords",
        ) from error


def _reader(name: str) -> Callable[[str], bool]:
    from pygments.token import Keyword, Operator

    lexer = _lexer(name)

    @cache
    def is_keyword(word: str) -> bool:
        if not _WORD.fullmatch(word):
            return False
        kind, read = next(iter(lexer.get_tokens(word)), (None, ""))
        return read == word and kind is not None and (kind in Keyword or kind is Operator.Word)

    return is_keyword


def languages_of(text: str, keywords: Keywords) -> tuple[str, ...]:
    """The programming languages of a string; none for a string without a word."""
    words = text.split()
    return tuple(
        name
        for name, is_keyword in keywords.items()
        if words and sum(map(is_keyword, words)) >= SHARE * len(words)
    )
