"""Pass rates of lines and words by hand, and against a second implementation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saefeat.baselines.judge import LanguageJudge
from saefeat.confusion import (
    harmonic_mean,
    judged_lines,
    line_passes,
    pass_rates,
    split_words,
    word_passes,
)

GERMAN = "Die Katze sitzt heute auf der Matte und schläft."
ENGLISH = "The cat sits on the mat and sleeps the whole day."
RUSSIAN = "Кошка сидит сегодня на коврике и спит весь день."
CHINESE = "今天天气很好，我们去公园散步，然后回家吃饭。"
THAI = "วันนี้อากาศดีมากเราจะไปเดินเล่นที่สวนสาธารณะ"


@pytest.fixture(scope="module")
def judge():
    return LanguageJudge(["de", "en", "ru", "zh", "th"])


def test_a_text_passes_where_all_of_its_long_lines_are_in_the_language(judge):
    texts = [
        GERMAN,
        f"{GERMAN}\n{ENGLISH}",
        f"{GERMAN}\nOh my\n",  # a short line is not judged
        ENGLISH,
        "Ja, gut",
        "",
    ]
    assert line_passes(texts, "de", judge.judge) == [True, False, True, False, None, None]
    assert line_passes([CHINESE, THAI], "zh", judge.judge) == [True, False]
    assert line_passes([CHINESE, THAI], "th", judge.judge) == [False, True]


def test_a_line_without_a_likely_language_does_not_pass():
    def unsure(lines):
        return [("de", 0.3) for _ in lines]

    def sure(lines):
        return [("de", 0.31) for _ in lines]

    assert line_passes([GERMAN], "de", unsure) == [False]
    assert line_passes([GERMAN], "de", sure) == [True]
    assert line_passes([GERMAN], "de", lambda lines: [None for _ in lines]) == [False]


@pytest.mark.parametrize(
    ("text", "label", "passes"),
    [
        (RUSSIAN, "ru", True),
        (f"{RUSSIAN} nice", "ru", False),
        (f"{RUSSIAN} NATO Berlin iPhone", "ru", True),  # names and abbreviations
        (f"{RUSSIAN} km the", "ru", True),  # fewer than four letters
        (f"{CHINESE}很nice的", "zh", False),  # no blanks around it
        (GERMAN, "de", True),
        (f"{GERMAN} кошка", "de", False),
        (f"{GERMAN} π µ Ω 5", "de", True),  # single letters are signs
        (f"{GERMAN} हिन्दी", "de", False),  # marks do not cut a word
        (f"{GERMAN}\nкошка", "de", True),  # in a line that is too short to count
        ("zu kurz", "de", None),
        (GERMAN, "not a language", None),
    ],
)
def test_words_of_another_script(text, label, passes):
    assert word_passes([text], label) == [passes]


def test_a_list_of_words_decides_as_in_the_code_of_the_authors():
    text = f"{RUSSIAN} zweck"
    assert word_passes([text], "ru") == [False]
    assert word_passes([text], "ru", {"house", "nice"}) == [True]
    assert word_passes([f"{text} nice"], "ru", {"house", "nice"}) == [False]


def test_lines_are_judged_without_punctuation():
    assert judged_lines("a, b. c! d? e\n\n...\none — two") == ["a b c d e"]
    assert judged_lines("今天天气很好我们去玩") == ["今天天气很好我们去玩"]
    assert judged_lines("今天天气很好我们去") == []  # nine letters are four words


def test_words_are_split_at_blanks_and_between_letters_without_them():
    assert split_words("ab c-d 今天x") == ["ab", "c-d", "今", "天", "x"]


def test_rates_by_hand():
    lines = [True, True, True, False, None, True]
    words = [True, False, None, True, None, True]
    # Four of five pass by lines; of the three of these with words, two.
    lpr, wpr = 4 / 5, 2 / 3
    found = pass_rates(lines, words)
    assert found == {"lpr": lpr, "wpr": wpr, "lcpr": pytest.approx(2 * lpr * wpr / (lpr + wpr))}
    assert pass_rates([None], [None]) == {"lpr": None, "wpr": None, "lcpr": None}
    assert pass_rates([False], [True]) == {"lpr": 0.0, "wpr": None, "lcpr": None}
    assert pass_rates([True, False], [False, False]) == {"lpr": 0.5, "wpr": 0.0, "lcpr": 0.0}


JUDGE = LanguageJudge(["de"])
PIECES = st.sampled_from([GERMAN, ENGLISH, RUSSIAN, f"{RUSSIAN} nice", f"{GERMAN} кошка", "kurz"])


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(st.lists(PIECES, max_size=3), min_size=1, max_size=8))
def test_rates_of_any_texts_equal_counts_of_their_lines(texts):
    """Each piece is known to be in one language, and to have a word of another script or not."""
    german = {GERMAN: (True, True), f"{GERMAN} кошка": (True, False), "kurz": None}
    passed = clean = judged = 0
    for pieces in texts:
        known = [german.get(piece, (False, True)) for piece in pieces]
        known = [one for one in known if one is not None]
        judged += bool(known)
        if known and all(line for line, _ in known):
            passed += 1
            clean += all(word for _, word in known)
    joined = ["\n".join(pieces) for pieces in texts]
    found = pass_rates(line_passes(joined, "de", JUDGE.judge), word_passes(joined, "de"))
    assert found["lpr"] == (passed / judged if judged else None)
    assert found["wpr"] == (clean / passed if passed else None)


@given(a=st.floats(1e-9, 1), b=st.floats(1e-9, 1))
def test_the_harmonic_mean_lies_between_and_is_0_with_a_0(a, b):
    assert min(a, b) * (1 - 1e-9) <= harmonic_mean(a, b) <= max(a, b) * (1 + 1e-9)
    assert harmonic_mean(a, 0.0) == harmonic_mean(0.0, b) == 0
