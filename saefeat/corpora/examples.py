"""Checks of texts and labels that estimators are given."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence, Sized
from typing import Any

from saefeat.io import UserError

UNKNOWN = "unknown"  # prediction for a text that says nothing; a column name in metrics.json
# Letters by category that say nothing: the invisible Hangul fillers, the information sign (an
# emoji), the ordinal indicators, and modifier letters.
_NO_LETTERS = frozenset("\u115f\u1160\u3164\uffa0\u2139\u00aa\u00ba") | set(
    map(chr, range(0x2B0, 0x300))
)
_MISSING = ("NAType", "NaTType")  # of pandas, known by name so that it need not be imported


def says_something(text: str, *, letters: bool = True) -> bool:
    """Whether a text can be labelled: it has a letter of any script (Unicode category L).

    Spaces, control and format characters (U+200B), digits, punctuation, symbols, emoji, and marks
    and modifiers (U+02BC) without a letter say nothing.

    Args:
        letters: False if labels are written without letters (see `need_letters`): digits,
            punctuation and symbols (categories N, P, S) are enough then.
    """
    if letters:
        return any(c.isalpha() and c not in _NO_LETTERS for c in text)
    return any(unicodedata.category(c)[0] in "LNPS" and c not in _NO_LETTERS for c in text)


def need_letters(texts: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether every label has a text with a letter.

    Sums, emoji and some programming languages have none.
    """
    written = {label for text, label in zip(texts, labels, strict=True) if says_something(text)}
    return written == set(labels)


def check_lengths(texts: Sized, labels: Sized) -> None:
    """Raise UserError if the numbers of texts and labels differ."""
    if len(texts) != len(labels):
        raise UserError(
            f"there are {len(texts):,} texts but {len(labels):,} labels; give one label per text"
        )


def check_examples(
    texts: Sequence[str], labels: Iterable[Any], unknown: str | None = None
) -> list[str]:
    """The labels of n texts as strings.

    Raises:
        UserError: the numbers of texts and labels differ, there is no text, `check_labels` refuses
            a label, or all texts of a label are blank.
    """
    of = check_labels(labels, unknown)
    check_lengths(texts, of)
    if not of:
        raise UserError("there are no texts to fit on; give texts and their labels")
    usable = {of[i] for i, text in enumerate(texts) if says_something(text, letters=False)}
    blank = next((label for label in of if label not in usable), None)
    if blank is not None:
        raise UserError(f"all texts of the label {blank} are blank; leave it out or give it texts")
    return of


def check_labels(labels: Iterable[Any], unknown: str | None = None) -> list[str]:
    """Labels as strings.

    Raises UserError for a label that is missing (None, NaN), blank, or equal to `unknown`.
    """
    given = list(labels)
    for at, label in enumerate(given):
        missing = label is None or type(label).__name__ in _MISSING or label != label
        if missing or not str(label).strip():
            raise UserError(
                f"label {at} (counted from 0) is {label if missing else 'blank'}; leave its text "
                "out or give it a label"
            )
        if str(label) == unknown:
            raise UserError(
                f"a label is {unknown!r}, which stands for texts that say nothing; choose another "
                "`unknown`",
                "unknown",
            )
    return [str(label) for label in given]


def or_unknown(labels: Iterable[str | None], unknown: str | None) -> list[str | None]:
    """Predicted labels, with `unknown` in place of None (no prediction)."""
    return [unknown if label is None else label for label in labels]
