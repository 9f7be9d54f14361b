"""Labels of several code systems and what fastText calls them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saefeat.labels import LID176, fasttext_code, to_labels

PAPER = ["en", "de", "fr", "it", "pt", "hi", "es", "th", "bg", "ru", "tr", "vi", "ja", "ko", "zh"]


def test_its_own_codes_stay() -> None:
    assert len(LID176) == 176
    for code in LID176:
        assert fasttext_code(code) == fasttext_code(f"__label__{code}") == code


@pytest.mark.parametrize(
    ("label", "code"),
    [
        *[("deu", "de"), ("deu_Latn", "de"), ("__label__de", "de"), ("de-CH", "de"), ("en_US", "en"), ("pt-BR", "pt")],
        *[("cmn", "zh"), ("zho", "zh"), ("zho_Hans", "zh"), ("zh-TW", "zh"), ("zh-yue", "yue"), ("yue_Hant", "yue")],
        *[("nob", "no"), ("nob_Latn", "no"), ("nb", "no"), ("nno_Latn", "nn"), ("iw", "he"), ("heb_Hebr", "he")],
        *[("fil", "tl"), ("tgl_Latn", "tl"), ("in", "id"), ("ind", "id"), ("zsm_Latn", "ms"), ("jw", "jv")],
        *[("arb_Arab", "ar"), ("arz_Arab", "arz"), ("pes_Arab", "fa"), ("prs", "fa"), ("azj_Latn", "az")],
        *[("azb", "azb"), ("als", "als"), ("als_Latn", "sq"), ("gsw", "als"), ("hbs", "sh"), ("srp_Cyrl", "sr")],
        *[("bho", "bh"), ("zza", "diq"), ("be-tarask", "be"), ("nds-nl", "nds"), ("swh_Latn", "sw")],
        *[("ekk", "et"), ("lvs_Latn", "lv"), ("plt_Latn", "mg"), ("khk_Cyrl", "mn"), ("quy_Latn", "qu")],
        *[("uzn_Latn", "uz"), ("kmr_Latn", "ku")],
    ],
)  # fmt: skip
def test_other_code_systems(label: str, code: str) -> None:
    assert fasttext_code(label) == code


NONE = "ary acm twi_Latn zxx und mul python java c C++ go js Germany China DE IN culture_x French Türkçe 日本 - _ de:x"


@pytest.mark.parametrize("label", [*NONE.split(), "", " ", "de fr", "\ud800", "a\x00b", "x" * 1000, "de-" * 50])
def test_what_is_no_language_of_the_set(label: str) -> None:
    assert fasttext_code(label) is None


@given(st.text())
def test_any_string_has_an_answer(label: str) -> None:
    assert fasttext_code(label) in LID176 | {None}


def test_to_labels_prefers_the_exact_string_then_the_first() -> None:
    assert to_labels(LID176, PAPER) == {code: code for code in PAPER}
    assert to_labels(LID176, ["nob", "no", "nn"]) == {"no": "no", "nn": "nn"}
    assert to_labels(LID176, ["srp_Cyrl", "srp_Latn"]) == {"sr": "srp_Cyrl"}
    assert to_labels(LID176, ["deu_Latn", "python", "zho_Hans"]) == {"de": "deu_Latn", "zh": "zho_Hans"}
    assert to_labels(["de"], ["de", "fr"]) == {"de": "de"}
    assert to_labels(["deu_Latn", "fr"], ["deu_Latn", "fra"]) == {"deu_Latn": "deu_Latn", "fr": "fra"}
