"""Words of texts, and texts of which some words are replaced."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Sequence
from itertools import pairwise

import numpy as np
import regex

from saefeat.labels.scripts import script_of

# Scripts without blanks between words.
_UNSPACED = frozenset({"Hani", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"})
_WORD = re.compile(r"\S+\s*")  # a word with what surrounds it up to the next blank
_SIGN = regex.compile(r"[\p{Latin}\p{N}]+|\X")  # of a text without blanks; marks stay with letters
_PIECE = 2  # signs that are a word there: the mean length of a Chinese word is less than two

Piece = tuple[str, bool]
"""(a word with the blanks before it, whether it has been put in place of another)."""


def is_spaced(text: str) -> bool:
    """Whether words of the script of a text have blanks between them."""
    return script_of(text) not in _UNSPACED


def words_of(text: str, known: Container[str] = (), longest: int = 0) -> list[str]:
    """Split a text into words with the blanks that follow them; together they are the text.

    A text of a script without blanks between words (Chinese, Japanese, Thai) is split into the
    longest words that are known, and what is between them into pairs of signs.

    Args:
        known: words, case folded.
        longest: characters of the longest of them.
    """
    words: list[str] = _WORD.findall(text.strip())
    if is_spaced(text):
        return words
    return [piece for word in words for piece in _pieces(word, known, longest)]


def _pieces(word: str, known: Container[str], longest: int) -> list[str]:
    """Split what stands between two blanks; the last piece has the blanks that follow."""
    bare = word.rstrip()
    signs: list[str] = _SIGN.findall(bare)
    found: list[str] = []
    start = at = 0  # signs from start to at are of no known word
    while at < len(signs):
        sizes = range(min(longest, len(signs) - at), 0, -1)
        size = next((n for n in sizes if "".join(signs[at : at + n]).casefold() in known), 0)
        if size:
            found += [*_pairs(signs[start:at]), "".join(signs[at : at + size])]
            start = at + size
        at += size or 1
    found += _pairs(signs[start:])
    return [*found[:-1], found[-1] + word[len(bare) :]]


def _pairs(signs: Sequence[str]) -> list[str]:
    return ["".join(signs[i : i + _PIECE]) for i in range(0, len(signs), _PIECE)]


def split_word(word: str) -> tuple[str, str, str]:
    """What stands before a word, the word, and what follows it.

    The word begins and ends with a letter, a mark or a digit; it is "" where there is none.
    """
    inner = [i for i, sign in enumerate(word) if unicodedata.category(sign)[0] in "LMN"]
    if not inner:
        return word, "", ""
    first, end = inner[0], inner[-1] + 1
    return word[:first], word[first:end], word[end:]


def count_words(words: Sequence[str]) -> int:
    """The number of words that have a letter, a mark or a digit."""
    return sum(bool(split_word(word)[1]) for word in words)


def by_place(words: Sequence[str], text: str) -> tuple[list[str], list[str]]:
    """The words of a base, and for each what is at the same place of a text; "" for no word.

    Where there are no blanks between words, pairs of signs stand for them, which are shorter than
    most words. So of such a text a whole stretch is at the place of a word, and of such a base some
    pairs are taken together where the text has fewer words.
    """
    there = [inner for word in words_of(text) if (inner := split_word(word)[1])]
    words = list(words)
    if 0 < len(there) < len(words) and not is_spaced("".join(words)):
        ends = _cuts(len(words), len(there))
        words = ["".join(words[i:j]) for i, j in pairwise(ends)]
    at = [i for i, word in enumerate(words) if there and split_word(word)[1]]
    found = [""] * len(words)
    for i, (first, end) in zip(at, pairwise(_cuts(len(there), len(at))), strict=True):
        stretch = there[first : max(end, first + 1)]
        found[i] = stretch[0] if is_spaced(text) else "".join(stretch)
    return words, found


def _cuts(n: int, parts: int) -> list[int]:
    """Where n things are cut into parts of about one size: 0, ..., n."""
    return [i * n // parts for i in range(parts + 1)] if parts else [0]


def mix_words(
    words: Sequence[str], others: Sequence[str], rate: float, order: np.ndarray
) -> list[Piece]:
    """Replace a share of the words. What stands around a word, such as a comma, stays.

    Blanks stay too, with two exceptions: none is left between two words of scripts without blanks
    in a text that has blanks, and one is put between two words of which one is of a script with
    blanks.

    Args:
        words: as `words_of` has them.
        others: what may stand in place of each word; "" where nothing may.
        rate: per cent of the words that are replaced, or as many as there are others for.
        order: a permutation of the words. Those that come first are replaced, so that a greater
            rate replaces all that a smaller one does.
    """
    parts = [split_word(word) for word in words]
    new = [other.strip() for other in others]
    able = [i for i in order.tolist() if parts[i][1] and new[i]]
    chosen = {*able[: round(count_words(words) * rate / 100)]}
    shown = [new[i] if i in chosen else part[1] for i, part in enumerate(parts)]
    has_blanks = is_spaced("".join(words))
    found: list[Piece] = []
    end = gap = ""  # of the word before: what follows it, and the blanks after that
    for i, (before, _, after) in enumerate(parts):
        touch = i > 0 and not end and not before and shown[i - 1] and shown[i]
        if touch and not chosen.isdisjoint((i - 1, i)):
            if is_spaced(shown[i - 1]) or is_spaced(shown[i]):
                gap = gap or " "
            elif has_blanks:
                gap = ""
        whole = before + shown[i] + after
        found.append((gap + whole.rstrip(), i in chosen))
        end, gap = after.rstrip(), whole[len(whole.rstrip()) :]
    return found
