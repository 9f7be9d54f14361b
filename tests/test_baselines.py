"""Baselines: known sentences for fastText; counts by hand and scikit-learn for naive Bayes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import classification_report
from sklearn.naive_bayes import MultinomialNB

from saefeat import assets
from saefeat.baselines import BASELINES
from saefeat.baselines.characters import CharNaiveBayes
from saefeat.baselines.fasttext import FastText
from saefeat.baselines.tokens import TokenNaiveBayes
from saefeat.io import UserError, save_tensors

SENTENCES = {
    "de": "Der schnelle braune Fuchs springt über den faulen Hund.",
    "fr": "Le renard brun rapide saute par-dessus le chien paresseux.",
    "es": "El zorro marrón salta sobre el perro perezoso de la casa.",
    "ja": "素早い茶色の狐がのろまな犬を飛び越える。",
    "ru": "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "th": "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ",
}
TEXTS, CODES = list(SENTENCES.values()), list(SENTENCES)
ODD = [
    "",
    "  ",
    "\n",
    "\x00",
    "\ud800",
    "\n\x00\udfff\r",
    "</s>",
    "\u200b",
    "12345 67890",
    "?!",
    "😀",
    "❤️",
]


@pytest.fixture(scope="module")
def model_path() -> Path:
    try:
        return assets.fetch("lid.176")
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "labels", [CODES, ["deu_Latn", "fra", "__label__es", "jpn", "rus_Cyrl", "th"]]
)
def test_known_sentences_in_any_code_system(labels: list[str], model_path: Path) -> None:
    head = FastText(model_path, labels)
    assert head.predict(TEXTS) == labels == head.classes_
    scores = head.scores(TEXTS)
    assert scores.shape == (6, 6) and (scores > 0).all() and (scores <= 1).all()
    assert head.score(TEXTS, labels) == 1


def test_the_set_is_closed(model_path: Path) -> None:
    head = FastText(model_path, ["python", "th", "fr"])
    # German is neither, and lies below fastText's own cut-off for both; yet one of them is the
    # better.
    assert head.predict([SENTENCES["de"]]) == ["fr"]
    assert not head.scores(TEXTS)[:, 0].any()
    assert FastText(model_path, ["python", "java"], unknown=None).predict(TEXTS) == [None] * 6


def test_judge_says_the_best_of_all(model_path: Path) -> None:
    judged = FastText(model_path).judge([*TEXTS, *ODD])
    assert [best[0] for best in judged[:6] if best] == CODES and judged[6:] == [None] * len(ODD)
    assert all(0.3 < best[1] <= 1 for best in judged if best)


def test_odd_texts(model_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    head = FastText(model_path, CODES)
    assert head.predict(ODD) == ["unknown"] * len(ODD) and not head.scores(ODD).any()
    assert head.set_params(unknown=None).predict(ODD) == [None] * len(ODD)
    # The scores of what is a space to us are those of a space.
    odd = [
        text.replace(" ", space, 1)
        for text in TEXTS[:3]
        for space in ("\n", "\x00", "\udc80", "\r\n")
    ]
    plain = [text for text in TEXTS[:3] for _ in range(4)]
    assert np.array_equal(head.scores(odd), head.scores(plain))
    assert head.predict([TEXTS[1] * 2000, "__label__de " + TEXTS[1]]) == ["fr", "fr"]
    assert head.scores([]).shape == (0, 6) and head.predict([]) == []
    assert capfd.readouterr().err == ""


def test_it_is_an_estimator(model_path: Path) -> None:
    head = clone(FastText(model_path))
    assert isinstance(head, FastText)
    head.fit(TEXTS, CODES)
    assert head.classes_ == sorted(CODES) and head.predict(TEXTS) == CODES
    assert FastText(model_path, ["fr", "de"]).fit(TEXTS, CODES).classes_ == ["fr", "de"]
    with pytest.raises(ValueError, match="needs candidate labels"):
        FastText(model_path).predict(TEXTS)
    with pytest.raises(UserError, match=r"label 1 .* is None"):
        FastText(model_path).fit(TEXTS, ["de", None])


@pytest.mark.parametrize("size", [0, 3, 60, 100, 1000, 50_000, 500_000])
def test_a_damaged_model(size: int, tmp_path: Path, model_path: Path) -> None:
    path = tmp_path / "damaged.ftz"
    path.write_bytes(model_path.read_bytes()[:size])
    with pytest.raises(UserError, match="is not a readable fastText model"):
        FastText(path, CODES).fit()
    with pytest.raises(UserError, match="does not exist"):
        FastText(tmp_path / "none.bin", CODES).fit()


def tokenize(texts: list[str]) -> list[list[int]]:
    return [[ord(character) - ord("a") for character in text] for text in texts]


def test_by_hand() -> None:
    head = TokenNaiveBayes(tokenize, vocabulary=4).fit(["aab", "bc"], ["x", "y"])
    # x: a 2, b 1 of 3; y: b 1, c 1 of 2; V = 4, so the denominators are 7 and 6.
    expected = {
        "a": (3 / 7, 1 / 6),
        "b": (2 / 7, 2 / 6),
        "c": (1 / 7, 2 / 6),
        "d": (1 / 7, 1 / 6),
        "ad": (3 / 49, 1 / 36),
    }
    joint = head.predict_joint_log_proba(list(expected))
    for row, (x, y) in zip(joint, expected.values(), strict=True):
        assert row == pytest.approx([math.log(x / 2), math.log(y / 2)], abs=1e-6)
    assert head.scores(["ad"])[0] == pytest.approx(
        [(3 / 49) / (3 / 49 + 1 / 36), (1 / 36) / (3 / 49 + 1 / 36)]
    )
    assert head.predict(["a", "c", ""]) == ["x", "y", "unknown"]
    assert not head.scores([""]).any()
    assert head.predict([]) == [] and head.score(["a", ""], ["x", "x"]) == 0.5


def random_texts(seed: int, n: int) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(["x", "y", "z"], n).tolist()
    start = {"x": 0, "y": 5, "z": 10}
    return [
        "".join(chr(97 + start[k] + i) for i in rng.integers(0, 14, rng.integers(1, 9)))
        for k in labels
    ], labels


def test_agrees_with_sklearn() -> None:
    texts, labels = random_texts(0, 80)
    unseen = random_texts(1, 80)[0]

    def counts(texts: list[str]) -> csr_matrix:
        return csr_matrix(np.stack([np.bincount(ids, minlength=30) for ids in tokenize(texts)]))

    for alpha in (1.0, 0.1):
        head = TokenNaiveBayes(tokenize, 30, alpha).fit(texts, labels)
        oracle = MultinomialNB(alpha=alpha, fit_prior=False).fit(counts(texts), labels)
        assert head.predict(unseen) == oracle.predict(counts(unseen)).tolist()
        np.testing.assert_allclose(
            head.scores(unseen), oracle.predict_proba(counts(unseen)), atol=1e-5
        )


def test_characters_agree_with_sklearn() -> None:
    texts, labels = [*TEXTS, *(text[:20] for text in TEXTS)], [*CODES, *CODES]
    unseen = [
        "ein Haus ist ein Haus",
        "LE CHIEN EST PARESSEUX",
        "собака 12",
        "犬 и hund",
        "una casa\n\nblanca",
    ]
    head = CharNaiveBayes().fit(texts, labels)
    runs = CountVectorizer(analyzer="char", ngram_range=(1, 4)).fit(texts)
    oracle = MultinomialNB(alpha=0.1, fit_prior=False).fit(runs.transform(texts), labels)
    assert head.classes_ == oracle.classes_.tolist()
    np.testing.assert_allclose(
        head.scores(unseen), oracle.predict_proba(runs.transform(unseen)), atol=1e-9
    )
    joint = oracle.predict_joint_log_proba(runs.transform(unseen))
    np.testing.assert_allclose(
        head.predict_joint_log_proba(unseen), joint, atol=1e-6
    )  # no two runs share a column
    assert head.predict([text.upper() for text in TEXTS]) == CODES


def test_characters_say_nothing_of_odd_texts_and_of_scripts_never_seen() -> None:
    head = CharNaiveBayes().fit(TEXTS, CODES)
    odd = [*ODD[:6], *ODD[7:], "ሀለሐ"]
    assert head.predict(odd) == ["unknown"] * len(odd) and not head.scores(odd).any()
    assert head.predict(["de\ud800 braune\0Hund", "</s>"])[0] == "de"
    report = classification_report(
        [*CODES, "de"], head.predict([*TEXTS, "123"]), output_dict=True, zero_division=0
    )
    assert report["de"]["recall"] == 0.5
    with pytest.raises(UserError, match="all texts of the label xx are blank"):
        CharNaiveBayes().fit([*TEXTS, " "], [*CODES, "xx"])


def test_characters_saved_and_loaded_say_the_same(tmp_path: Path) -> None:
    head = CharNaiveBayes().fit(TEXTS, CODES)
    head.save(tmp_path / "head.safetensors")
    head.save(tmp_path / "again.safetensors")
    assert (tmp_path / "head.safetensors").read_bytes() == (
        tmp_path / "again.safetensors"
    ).read_bytes()
    assert (tmp_path / "head.safetensors").stat().st_size < 50_000
    loaded = CharNaiveBayes().restore(tmp_path / "head.safetensors")
    assert loaded.classes_ == head.classes_ and loaded.get_params() == head.get_params()
    assert np.array_equal(loaded.scores([*TEXTS, *ODD]), head.scores([*TEXTS, *ODD]))
    with pytest.raises(UserError, match="is not a token-naive-bayes head"):
        TokenNaiveBayes(tokenize, 9).restore(tmp_path / "head.safetensors")


def test_saved_and_loaded_it_says_the_same(tmp_path: Path) -> None:
    texts, labels = random_texts(0, 50)
    head = TokenNaiveBayes(tokenize, 262_144).fit(texts, labels)
    head.save(tmp_path / "head.safetensors")
    head.save(tmp_path / "again.safetensors")
    assert (tmp_path / "head.safetensors").read_bytes() == (
        tmp_path / "again.safetensors"
    ).read_bytes()
    assert (tmp_path / "head.safetensors").stat().st_size < 5000  # tokens never seen are not kept
    loaded = TokenNaiveBayes(tokenize, 262_144).restore(tmp_path / "head.safetensors")
    with pytest.raises(UserError, match="is damaged, or of another tokenizer"):
        TokenNaiveBayes(tokenize, 262_143).restore(tmp_path / "head.safetensors")
    unseen = [*random_texts(1, 50)[0], "~~"]
    assert loaded.classes_ == head.classes_
    assert np.array_equal(loaded.scores(unseen), head.scores(unseen))


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside the vocabulary of 2"):
        TokenNaiveBayes(tokenize, 2).fit(["abc"], ["x"])
    save_tensors(tmp_path / "other.safetensors", {}, {"head": "linear"})
    with pytest.raises(UserError, match="is not a token-naive-bayes head"):
        TokenNaiveBayes(tokenize, 9).restore(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not exist"):
        TokenNaiveBayes(tokenize, 9).restore(tmp_path / "none.safetensors")


def test_tables_are_taken_and_one_string_is_refused(model_path: Path) -> None:
    import pandas as pd
    from datasets import Dataset

    head, columns = FastText(model_path, CODES), {"text": TEXTS, "label": CODES}
    tokens = TokenNaiveBayes(lambda texts: [[ord(c) % 64 for c in text] for text in texts], 64).fit(
        TEXTS, CODES
    )
    for table in (columns, pd.DataFrame(columns), Dataset.from_dict(columns)):
        assert head.predict(table) == CODES and head.score(table) == 1
        assert FastText(model_path).fit(table).classes_ == sorted(CODES)
        again = TokenNaiveBayes(tokens.tokenize, 64).fit(table)
        assert np.array_equal(again.scores(table), tokens.scores(TEXTS))
    assert [best[0] for best in head.judge(pd.Series(TEXTS)) if best] == CODES
    assert head.predict(["\ufeff" + text for text in TEXTS]) == CODES
    for method in (head.predict, head.scores, head.judge, tokens.predict, tokens.scores):
        with pytest.raises(UserError, match="texts should be a list of strings, not one string"):
            method(TEXTS[0])
    for labels in ("de", b"de"):
        with pytest.raises(UserError, match="labels should be a list of strings, not one string"):
            FastText(model_path, labels).predict(TEXTS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="texts should be a list of strings, not one string"):
        TokenNaiveBayes(tokens.tokenize, 64).fit("abc", list("dee"))


def test_every_baseline_is_made_for_a_run_fitted_saved_and_restored(
    tiny_lm, tmp_path: Path, model_path: Path
) -> None:
    texts, of = [*TEXTS, "1"], [*CODES, "de"]
    for name, kind in BASELINES.items():
        assert kind.title and kind.for_run(tiny_lm, CODES, model_path).unknown is None
        made = kind.for_run(tiny_lm, CODES, model_path).fit(*kind.training_examples(texts, of))
        made.save(tmp_path / name)
        assert (tmp_path / name).exists() == kind.fitted
        again = kind.for_run(tiny_lm, CODES, model_path)
        again = again.restore(tmp_path / name) if kind.fitted else again.fit()
        assert again.predict([*TEXTS, "1"]) == made.predict([*TEXTS, "1"])
        assert made.predict(["1"]) == [None]
