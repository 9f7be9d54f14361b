"""Metrics against hand-worked numbers, scikit-learn and a plain bootstrap."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from saefeat.evaluation import head_metrics, lid_metrics, paired_difference

LABELS = ["de", "fr", "xx"]
TRUTH = ["de", "de", "de", "fr", "fr"]
GUESS = ["de", "de", "fr", "fr", None]


def test_by_hand() -> None:
    metrics = head_metrics(TRUTH, GUESS, LABELS)
    assert metrics["confusion_matrix"] == [[2, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    assert metrics["accuracy"] == 0.6
    assert metrics["per_label"]["de"] == {"precision": 1.0, "recall": pytest.approx(2 / 3), "f1": pytest.approx(0.8)}
    assert metrics["per_label"]["fr"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert metrics["per_label"]["xx"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert metrics["f1_macro"] == pytest.approx((0.8 + 0.5) / 2)  # xx has no true example


examples = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["a", "b", "c", "d", "e", None])), max_size=30)


@settings(max_examples=60, deadline=None)
@given(examples)
def test_agrees_with_sklearn_and_holds_no_nan(pairs: list[tuple[str, str | None]]) -> None:
    labels = list("abcde")
    truth, guess = [a for a, _ in pairs], [b for _, b in pairs]
    metrics = head_metrics(truth, guess, labels, resamples=20)
    json.dumps(metrics, allow_nan=False)
    for measure in ("accuracy", "f1_macro"):
        low, high = metrics[f"{measure}_ci"]
        assert 0 <= low <= high <= 1
    if not pairs:
        assert metrics["accuracy"] == metrics["f1_macro"] == 0
        return
    said = [b or "unknown" for b in guess]
    matrix = confusion_matrix(truth, said, labels=[*labels, "unknown"])[:-1]
    assert metrics["confusion_matrix"] == matrix.tolist()
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, said))
    present = sorted(set(truth))
    expected = f1_score(truth, said, labels=present, average="macro", zero_division=0)  # type: ignore[arg-type]
    assert metrics["f1_macro"] == pytest.approx(expected)
    scores = precision_recall_fscore_support(truth, said, labels=labels, zero_division=0)  # type: ignore[arg-type]
    for index, label in enumerate(labels):
        assert list(metrics["per_label"][label].values()) == pytest.approx([np.asarray(s)[index] for s in scores[:3]])


def noisy(truth: np.ndarray, share: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(truth)) < share
    return np.where(wrong, rng.choice(["a", "b", "c"], len(truth)), truth)


def test_intervals_are_those_of_a_plain_bootstrap_over_examples() -> None:
    rng = np.random.default_rng(1)
    truth = rng.choice(["a", "b", "c"], 300, p=[0.6, 0.3, 0.1])
    one, two = noisy(truth, 0.3, 2), noisy(truth, 0.4, 3)
    plain = []
    for _ in range(1000):
        pick = rng.integers(0, 300, 300)
        f1 = [f1_score(truth[pick], guess[pick], average="macro") for guess in (one, two)]
        plain.append((f1[0], f1[0] - f1[1]))
    expected = np.quantile(plain, (0.025, 0.975), axis=0).T.tolist()
    metrics = head_metrics(truth.tolist(), one.tolist(), ["a", "b", "c"], resamples=4000)
    assert metrics["f1_macro_ci"] == pytest.approx(expected[0], abs=0.015)
    difference, *interval = paired_difference(
        truth.tolist(), one.tolist(), two.tolist(), ["a", "b", "c"], resamples=4000
    )
    assert interval == pytest.approx(expected[1], abs=0.015)
    assert interval[0] < difference < interval[1]


def test_paired_difference() -> None:
    assert paired_difference(TRUTH, GUESS, GUESS, LABELS) == (0.0, 0.0, 0.0)
    difference, low, high = paired_difference(TRUTH, TRUTH, GUESS, LABELS, "accuracy")
    assert difference == pytest.approx(0.4) and 0 <= low <= difference <= high <= 1
    reverse = paired_difference(TRUTH, GUESS, TRUTH, LABELS, "accuracy")
    assert reverse[0] == -difference
    assert paired_difference([], [], [], LABELS) == (0.0, 0.0, 0.0)


def test_same_seed_same_bytes_whatever_the_order() -> None:
    order = [3, 1, 4, 0, 2]
    mixed = head_metrics([TRUTH[i] for i in order], [GUESS[i] for i in order], LABELS, seed=5)
    assert json.dumps(mixed) == json.dumps(head_metrics(TRUTH, GUESS, LABELS, seed=5))
    assert mixed["f1_macro_ci"] != head_metrics(TRUTH, GUESS, LABELS, seed=6, resamples=37)["f1_macro_ci"]


def test_the_whole_file() -> None:
    by_length = {"all": {"linear": TRUTH, "fasttext": GUESS}, "20": {"linear": GUESS}, "10": {"linear": GUESS}}
    metrics = lid_metrics("embedded:eld", "test", LABELS, TRUTH, by_length)
    assert list(metrics) == ["corpus", "split", "labels", "n", "heads", "by_length"]
    assert list(metrics["by_length"]) == ["10", "20", "all"]
    assert metrics["n"] == metrics["by_length"]["10"]["n"] == 5
    assert metrics["heads"]["linear"]["f1_macro"] == 1.0
    assert metrics["heads"]["fasttext"] == metrics["by_length"]["10"]["heads"]["linear"]
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="5 true labels but 4"):
        head_metrics(TRUTH, GUESS[:4], LABELS)
    with pytest.raises(ValueError, match="'fr' is not among"):
        head_metrics(TRUTH, ["de"] * 5, ["de"])
    with pytest.raises(ValueError, match="'' is not among"):
        head_metrics(TRUTH, ["", *GUESS[1:]], LABELS)
    with pytest.raises(ValueError, match="'all'"):
        lid_metrics("c", "test", LABELS, TRUTH, {"10": {}})
    with pytest.raises(ValueError, match="no measure"):
        paired_difference(TRUTH, GUESS, GUESS, LABELS, "f2")  # type: ignore[arg-type]


def test_twenty_thousand_examples_take_a_moment() -> None:
    rng = np.random.default_rng(0)
    labels = [f"l{i}" for i in range(15)]
    truth = rng.choice(labels, 20_000).tolist()
    other = rng.choice(labels, 20_000).tolist()
    guess = [a if keep else b for a, b, keep in zip(truth, other, rng.random(20_000) < 0.9, strict=True)]
    start = time.perf_counter()
    head_metrics(truth, guess, labels)
    assert time.perf_counter() - start < 2
