"""Which texts say something, and which labels can be fitted on."""

from __future__ import annotations

import unicodedata

import numpy as np
import pandas as pd
import pytest

from saefeat.corpora.examples import (
    check_examples,
    check_labels,
    need_letters,
    or_unknown,
    says_something,
)
from saefeat.io import UserError

NOTHING = {
    "empty": "",
    "spaces": " \t\n\u00a0\u3000",
    "zero width space": "\u200b",
    "joiners and marks": "\u200d\ufeff\u200e",
    "NUL": "\0",
    "surrogate": "\ud800",
    "digits": "12345 67890",
    "digits of other scripts": "१२३ ٤٥",
    "a date": "2010-05-21 07:30:00",
    "punctuation": "... — «» !? 。、",
    "a price": "€ 5,00 (+3 %)",
    "emoji": "😀",
    "a family": "👨‍👩‍👧",
    "a heart": "❤️",
    "a keycap": "1️⃣",
    "a flag": "🇩🇪",
    "Scotland": "🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "information": "ℹ️",
    "a mark alone": "\u0301",
    "a vowel sign alone": "\u093f",
    "Hangul filler": "\u3164\uffa0",
    "private": "\ue000",
    "a modifier apostrophe": "\u02bc",
    "ordinals": "1\u00aa 2\u00ba",
}
SOMETHING = {
    "Latin": "a",
    "one letter among digits": "12 h",
    "Cyrillic": "Я",
    "Hindi": "हि",
    "Thai": "น้ำ",
    "Tamil": "கி",
    "Burmese": "မြ",
    "Khmer": "ខ្មែ",
    "Arabic": "عَ",
    "Hebrew": "שָׁ",
    "decomposed": unicodedata.normalize("NFD", "ế"),
    "Chinese": "中",
    "Japanese": "ー",
    "Korean": "한",
    "decomposed Korean": unicodedata.normalize("NFD", "한"),
    "Ethiopic": "ሀ",
    "Cherokee": "Ꭰ",
    "beyond the basic plane": "𐌰",
    "a word beside an emoji": "😀 ja",
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_text_without_a_letter_says_nothing(name):
    assert not says_something(NOTHING[name])


@pytest.mark.parametrize("name", SOMETHING)
def test_a_letter_of_any_script_says_something(name):
    assert says_something(SOMETHING[name])
    assert says_something(SOMETHING[name], letters=False)


def test_without_letters_only_invisible_text_says_nothing():
    seen = ("digits", "a price", "emoji", "a heart", "a flag", "a keycap", "punctuation")
    assert all(says_something(NOTHING[name], letters=False) for name in seen)
    blank = (
        "empty",
        "spaces",
        "zero width space",
        "joiners and marks",
        "NUL",
        "surrogate",
        "Hangul filler",
    )
    assert not any(says_something(NOTHING[name], letters=False) for name in blank)


def test_letters_are_needed_if_every_label_has_some():
    assert need_letters(["ja", "1", "oui"], ["de", "de", "fr"])
    assert not need_letters(["1 + 2 =", "ja"], ["sum", "de"])


@pytest.mark.parametrize("missing", [None, float("nan"), np.float64("nan"), pd.NA, pd.NaT])
def test_a_missing_label_is_refused(missing):
    with pytest.raises(
        UserError, match=r"label 1 \(counted from 0\) is .*; leave its text out or give it a label"
    ):
        check_labels(["de", missing, "fr"])


@pytest.mark.parametrize("blank", ["", " "])
def test_a_blank_label_is_refused(blank):
    with pytest.raises(UserError, match=r"label 0 .* is blank"):
        check_labels([blank, "de"])


def test_labels_become_strings():
    assert check_labels(np.array([3, 1])) == check_labels(pd.Series([3, 1])) == ["3", "1"]


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["ja"], ["de", "fr"], "there are 1 texts but 2 labels"),
        (["ja", "oui"], ["de"], "there are 2 texts but 1 labels"),
        ([], [], "there are no texts to fit on"),
        (["ja", "", "\u200b \ufeff"], ["de", "fr", "fr"], "all texts of the label fr are blank"),
        (
            ["ja", "oui"],
            ["de", "unknown"],
            "a label is 'unknown', which stands for texts that say nothing",
        ),
    ],
)
def test_examples_that_cannot_be_fitted_on_are_refused(texts, labels, message):
    with pytest.raises(UserError, match=message):
        check_examples(texts, labels, "unknown")


def test_the_label_for_unknown_can_be_chosen():
    assert check_examples(["ja", "oui"], ["de", "unknown"], None) == ["de", "unknown"]
    assert or_unknown(["de", None], "unknown") == ["de", "unknown"]
    assert or_unknown(["de", None], None) == ["de", None]
