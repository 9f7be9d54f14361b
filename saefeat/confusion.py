"""Language confusion: do all lines, and all words, of a text stay in the language asked for?

Marchisio et al., arXiv 2406.20052. The line-level pass rate (LPR) is the share of texts whose lines
are all judged to be in the language. The word-level pass rate (WPR) is the share of those texts in
which no word is of another language; LCPR is the harmonic mean of both.

Words are told by their script. In a language that is not written in Latin letters, a word of at
least four lower-case Latin letters is an error; names and abbreviations are not. The authors' code
looks such words up in a list of English words, which can be given (`words`). In a language that is
written in Latin letters, a word in any other script is an error; the authors do not measure it.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from itertools import groupby

from saefeat.labels.typology import scripts

LINE_WORDS = 5  # a line with fewer words is not judged
LINE_PROBABILITY = 0.3  # a line is in no language where fastText's best has at most this
_LATIN_LETTERS, _OTHER_LETTERS = 4, 2  # of a word of another script, at least
_CLEAN = str.maketrans({**dict.fromkeys(string.punctuation + "،"), "—": " "})
# Thai and Lao, Burmese, Khmer, kana, Chinese characters.
_UNSPACED_LETTERS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_UNSPACED = re.compile(f"[{_UNSPACED_LETTERS}]")
_WORD = re.compile(f"[{_UNSPACED_LETTERS}]|[^\\s{_UNSPACED_LETTERS}]+")

LineJudge = Callable[[Sequence[str]], list[tuple[str, float] | None]]
"""texts -> the label of each and its probability, None where nothing can be said."""


def judged_lines(text: str) -> list[str]:
    """The lines of a text that are long enough to be judged, without punctuation.

    Where words are not separated by blanks (Chinese, Japanese, Thai, Lao, Khmer, Burmese), two
    letters are counted as a word.
    """
    lines = text.strip().translate(_CLEAN).split("\n")
    return [line for line in lines if _count_words(line) >= LINE_WORDS]


def line_passes(texts: Sequence[str], label: str, judge: LineJudge) -> list[bool | None]:
    """Whether all judged lines of each text are in a label; None for a text without any."""
    lines = [judged_lines(text) for text in texts]
    found = iter(judge([line for some in lines for line in some]))
    passes: list[bool | None] = []
    for some in lines:
        best = [next(found) for _ in some]
        right = [one is not None and one[0] == label and one[1] > LINE_PROBABILITY for one in best]
        passes.append(all(right) if right else None)
    return passes


def word_passes(
    texts: Sequence[str], label: str, words: Collection[str] | None = None
) -> list[bool | None]:
    """Whether no word of the judged lines of each text is of another language than the label's.

    Args:
        words: words of a language in Latin letters, such as English. In a text that is not written
            in Latin letters, those of them that are in lower case and have at least four letters
            are the errors, as in the authors' code. None: the script alone decides.

    Returns:
        None for a text without judged lines, and for a label whose script is not known.
    """
    script = scripts([label]).get(label)
    if script is None:
        return [None] * len(texts)
    lines = [judged_lines(text) for text in texts]
    return [
        not any(_strays(line, script == "Latn", words) for line in some) if some else None
        for some in lines
    ]


def pass_rates(
    lines: Sequence[bool | None], words: Sequence[bool | None]
) -> dict[str, float | None]:
    """LPR, WPR and LCPR of texts, from what `line_passes` and `word_passes` return.

    LPR is over the texts with judged lines, WPR over those of them whose lines all pass.
    """
    judged = [line for line in lines if line is not None]
    whole = [word for line, word in zip(lines, words, strict=True) if line and word is not None]
    lpr = sum(judged) / len(judged) if judged else None
    wpr = sum(whole) / len(whole) if whole else None
    lcpr = None if lpr is None or wpr is None else harmonic_mean(lpr, wpr)
    return {"lpr": lpr, "wpr": wpr, "lcpr": lcpr}


def harmonic_mean(a: float, b: float) -> float:
    """The harmonic mean of two numbers; 0 where one of them is 0."""
    return 2 * a * b / (a + b) if a and b else 0.0


def split_words(text: str) -> list[str]:
    """The words of a text; single letters where words are not separated by blanks."""
    return _WORD.findall(text)


def _count_words(line: str) -> int:
    return sum(max(1, len(_UNSPACED.findall(word)) // 2) for word in line.split())


def _strays(line: str, latin: bool, words: Collection[str] | None) -> bool:
    """Whether a line has a word of another script than that of its language."""
    plain = unicodedata.normalize("NFKC", line)
    unmarked = (one for one in plain if not unicodedata.category(one).startswith("M"))
    for kind, letters in groupby(unmarked, key=_letter):
        if kind is None or kind == latin:
            continue
        word = "".join(letters)
        if latin:
            if len(word) >= _OTHER_LETTERS:
                return True
        elif word.islower() and len(word) >= _LATIN_LETTERS and (words is None or word in words):
            return True
    return False


@lru_cache(2**16)
def _letter(character: str) -> bool | None:
    """Whether a letter is Latin; None for what is no letter."""
    if not character.isalpha():
        return None
    return unicodedata.name(character, "").startswith("LATIN")
