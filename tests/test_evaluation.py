"""Metrics against hand-worked numbers, scikit-learn and a plain bootstrap."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)

from saefeat.evaluation import (
    head_metrics,
    interval,
    lid_metrics,
    paired_difference,
    percentiles,
    wilson,
)

LABELS = ["de", "fr", "xx"]
TRUTH = ["de", "de", "de", "fr", "fr"]
GUESS = ["de", "de", "fr", "fr", None]


def test_by_hand() -> None:
    metrics = head_metrics(TRUTH, GUESS, LABELS)
    assert metrics["confusion_matrix"] == [[2, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    assert metrics["accuracy"] == 0.6
    assert metrics["per_label"]["de"] == {
        "precision": 1.0,
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(0.8),
    }
    assert metrics["per_label"]["fr"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert metrics["per_label"]["xx"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert metrics["f1_macro"] == pytest.approx((0.8 + 0.5) / 2)  # xx has no true example


examples = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["a", "b", "c", "d", "e", None])),
    max_size=30,
)


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
        assert list(metrics["per_label"][label].values()) == pytest.approx(
            [np.asarray(s)[index] for s in scores[:3]]
        )


def noisy(truth: np.ndarray, share: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(truth)) < share
    return np.where(wrong, rng.choice(["a", "b", "c"], len(truth)), truth)


def slipped(truth: np.ndarray, guess: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Guesses, each of which slips with probability 1 / (n + 2).

    A right guess slips to the next label, a wrong one to the right label.
    """
    after = {"a": "b", "b": "c", "c": "a"}
    slips = rng.random(len(truth)) < 1 / (len(truth) + 2)
    return np.where(slips, np.where(guess == truth, [after[t] for t in truth], truth), guess)


def test_intervals_are_those_of_a_bootstrap_over_examples_with_slips() -> None:
    rng = np.random.default_rng(1)
    truth = rng.choice(["a", "b", "c"], 300, p=[0.6, 0.3, 0.1])
    one, two = noisy(truth, 0.3, 2), noisy(truth, 0.4, 3)
    plain = []
    for _ in range(1000):
        pick = rng.integers(0, 300, 300)
        f1 = [
            f1_score(truth[pick], slipped(truth, guess, rng)[pick], average="macro")
            for guess in (one, two)
        ]
        plain.append((f1[0], f1[0] - f1[1]))
    draws = np.array(plain)
    metrics = head_metrics(truth.tolist(), one.tolist(), ["a", "b", "c"], resamples=4000)
    assert metrics["f1_macro_ci"] == pytest.approx(
        interval(metrics["f1_macro"], draws[:, 0], 300), abs=0.006
    )
    # Far from 0 and 1 it is about that of a plain bootstrap.
    assert metrics["f1_macro_ci"] == pytest.approx(percentiles(draws[:, 0]), abs=0.02)
    difference, *ends = paired_difference(
        truth.tolist(), one.tolist(), two.tolist(), ["a", "b", "c"], resamples=4000
    )
    assert ends == pytest.approx(percentiles(draws[:, 1]), abs=0.015)
    assert ends[0] < difference < ends[1]


def test_the_interval_of_a_share_is_that_of_scipy() -> None:
    for hits, n in ((0, 5), (3, 7), (32, 32), (599, 600), (1, 2)):
        expected = binomtest(hits, n).proportion_ci(method="wilson")
        assert wilson(hits / n, n) == pytest.approx([expected.low, expected.high], abs=1e-7)
    assert wilson(0.0, 0) == [0, 1]


def test_intervals_have_a_width_where_nothing_is_wrong() -> None:
    truth = [label for label in "abc" for _ in range(50)]
    metrics = head_metrics(truth, truth, list("abc"))
    assert metrics["accuracy_ci"] == pytest.approx(
        list(binomtest(150, 150).proportion_ci(method="wilson"))
    )
    assert metrics["f1_macro"] == metrics["f1_macro_ci"][1] == 1 and metrics["f1_macro_ci"][
        0
    ] == pytest.approx(metrics["accuracy_ci"][0], abs=0.004)
    # A label of few examples makes the macro-F1 less certain than the accuracy.
    uneven = ["a"] * 140 + ["b"] * 10
    found = head_metrics(uneven, uneven, ["a", "b"])
    assert found["f1_macro_ci"][0] < found["accuracy_ci"][0] - 0.02


@pytest.mark.parametrize("errors", [0.005, 0.02])
def test_intervals_near_1_hold_the_truth_where_percentiles_do_not(errors: float) -> None:
    """5 labels of 20 texts, errors spread evenly, so that the true macro-F1 is 1 - errors."""
    rng = np.random.default_rng(0)
    labels, truth = list("abcde"), np.repeat(list("abcde"), 20)
    ours, plain = [], []
    for _ in range(250):
        wrong = rng.random(100) < errors
        guess = np.where(wrong, np.roll(truth, 20 * int(rng.integers(1, 5))), truth)
        low, high = head_metrics(truth.tolist(), guess.tolist(), labels, resamples=200)[
            "f1_macro_ci"
        ]
        ours.append(low <= 1 - errors <= high)
        shares = (
            rng.binomial(100, (guess == truth).mean(), 200) / 100
        )  # of accuracy, which is the same here
        plain.append(np.quantile(shares, 0.025) <= 1 - errors <= np.quantile(shares, 0.975))
    assert np.mean(ours) > 0.9 > np.mean(plain)


def test_paired_difference() -> None:
    same = paired_difference(TRUTH, GUESS, GUESS, LABELS)
    assert (
        same[0] == 0 and same[1] < 0 < same[2]
    )  # five examples do not show that two heads are alike
    difference, low, high = paired_difference(TRUTH, TRUTH, GUESS, LABELS, "accuracy")
    assert difference == pytest.approx(0.4) and low <= difference <= high <= 1
    reverse = paired_difference(TRUTH, GUESS, TRUTH, LABELS, "accuracy")
    assert reverse[0] == -difference
    assert paired_difference([], [], [], LABELS) == (0.0, 0.0, 0.0)


def test_same_seed_same_bytes_whatever_the_order() -> None:
    order = [3, 1, 4, 0, 2]
    mixed = head_metrics([TRUTH[i] for i in order], [GUESS[i] for i in order], LABELS, seed=5)
    assert json.dumps(mixed) == json.dumps(head_metrics(TRUTH, GUESS, LABELS, seed=5))
    assert (
        mixed["f1_macro_ci"]
        != head_metrics(TRUTH, GUESS, LABELS, seed=6, resamples=37)["f1_macro_ci"]
    )


def test_the_whole_file() -> None:
    by_length = {
        "all": {"linear": TRUTH, "fasttext": GUESS},
        "20": {"linear": GUESS},
        "10": {"linear": GUESS},
    }
    metrics = lid_metrics("embedded:eld", "test", LABELS, TRUTH, by_length)
    assert list(metrics) == ["corpus", "split", "labels", "n", "heads", "by_length"]
    assert list(metrics["by_length"]) == ["10", "20", "all"]
    assert metrics["n"] == metrics["by_length"]["10"]["n"] == 5
    assert metrics["heads"]["linear"]["f1_macro"] == 1.0
    assert metrics["heads"]["fasttext"] == metrics["by_length"]["10"]["heads"]["linear"]
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_a_measurement_that_is_impossible_is_refused() -> None:
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
    guess = [
        a if keep else b for a, b, keep in zip(truth, other, rng.random(20_000) < 0.9, strict=True)
    ]
    start = time.thread_time()
    head_metrics(truth, guess, labels)
    assert time.thread_time() - start < 2
