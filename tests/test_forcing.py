"""Forcing, fluency and score by hand, and intervals by a bootstrap written with loops."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saefeat.evaluation import interval, percentiles, wilson
from saefeat.forcing import (
    RESAMPLES,
    Measured,
    Reference,
    compare,
    forces_fluently,
    measure,
    measure_reference,
    score,
    score_samples,
)
from saefeat.generation import Decoding, distinct_trigrams, generate, perplexities, texts_of

NAN = math.nan
REFERENCE = Reference(forcing=0.9, perplexity=10.0, distinct3=0.8)


def measured(judged, perplexity, distinct3):
    return Measured(
        [f"text {i}" for i in range(len(judged))],
        list(judged),
        *([None if math.isnan(x) else x for x in values] for values in (perplexity, distinct3)),
    )


def by_hand(found, label, reference, picks, slips=None):
    """The score of one sample of prompts in plain Python; slips: which judgements are inverted."""
    hits = [
        (found.judged[i] == label) != slip
        for i, slip in zip(picks, slips or [False] * len(picks), strict=True)
    ]
    perplexity = [found.perplexity[i] for i in picks if found.perplexity[i] is not None]
    distinct = [found.distinct3[i] for i in picks if found.distinct3[i] is not None]
    if not perplexity or not distinct:
        return 0.0
    forcing = sum(hits) / len(picks)
    fluency = min(1, reference.perplexity / statistics.median(perplexity))
    fluency *= min(1, statistics.mean(distinct) / max(reference.distinct3, 1e-9))
    return 2 * forcing * fluency / (forcing + fluency) if forcing + fluency else 0.0


class Draws:
    """Resampled prompts, and for every label of every side in turn which judgements slip."""

    def __init__(self, n, seed=0):
        self.rng, self.n = np.random.default_rng(seed), n
        self.picks = self.rng.integers(0, n, (RESAMPLES, n))

    def scores(self, found, label, reference):
        slips = self.rng.random((RESAMPLES, self.n)) < 1 / (self.n + 2)
        pairs = zip(self.picks.tolist(), slips.tolist(), strict=True)
        return np.array([by_hand(found, label, reference, pick, slip) for pick, slip in pairs])


def close_to(ends):
    return [pytest.approx(end, abs=1e-9) for end in ends]


def test_scores_by_hand():
    found = score(
        measured(["de", "de", "en", None], [20, 40, 8, NAN], [0.8, 0.4, 0.6, 0.2]), "de", REFERENCE
    )
    # Half are forced; the median of 8, 20 and 40 is twice the reference's; trigrams 0.5 of 0.8.
    fluency = 10 / 20 * 0.5 / 0.8
    assert (
        found["forcing"] == 0.5
        and found["perplexity"] == 20
        and found["distinct3"] == pytest.approx(0.5)
    )
    assert found["score"] == pytest.approx(2 * 0.5 * fluency / (0.5 + fluency))
    assert list(found) == ["forcing", "perplexity", "distinct3", "score", "score_ci"]
    assert 0 <= found["score_ci"][0] < found["score"] < found["score_ci"][1] <= 1


def test_forcing_fluently_needs_both():
    base = {
        "forcing": 0.95,
        "perplexity": 2 * REFERENCE.perplexity,
        "distinct3": 0.9 * REFERENCE.distinct3,
    }
    assert forces_fluently(base, REFERENCE)
    worse = (
        {"forcing": 0.94},
        {"perplexity": 2.01 * REFERENCE.perplexity},
        {"distinct3": 0.89 * REFERENCE.distinct3},
    )
    for change in (*worse, {"perplexity": None}, {"distinct3": None}):
        assert not forces_fluently({**base, **change}, REFERENCE)


def test_fluency_is_at_most_1():
    for perplexity, distinct in (([2, 3], [1.0, 1.0]), ([10, 10], [0.8, 0.8])):
        found = score(measured(["de", "de"], perplexity, distinct), "de", REFERENCE)
        assert found["score"] == found["score_ci"][1] == 1
        assert 0.2 < found["score_ci"][0] < 0.7  # two prompts tell little
    # A better perplexity does not make up for fewer distinct trigrams.
    half = score(measured(["de", "de"], [1, 1], [0.4, 0.4]), "de", REFERENCE)
    assert half["score"] == pytest.approx(2 * 0.5 / 1.5)


def test_where_nothing_is_measured_or_judged_the_score_is_0():
    short = score(measured(["de", "de"], [NAN, NAN], [0.8, 0.8]), "de", REFERENCE)
    assert (short["forcing"], short["perplexity"], short["score"], short["score_ci"]) == (
        1,
        None,
        0,
        wilson(0, 2),
    )
    empty = score(measured([None, None], [NAN, NAN], [NAN, NAN]), "de", REFERENCE)
    assert empty == {
        "forcing": 0,
        "perplexity": None,
        "distinct3": None,
        "score": 0,
        "score_ci": wilson(0, 2),
    }
    unjudged = score(measured([None, None], [10, 10], [0.8, 0.8]), "de", REFERENCE)
    assert (unjudged["forcing"], unjudged["perplexity"], unjudged["score"]) == (0, 10, 0)
    json.dumps([short, empty, unjudged], allow_nan=False)


def test_the_median_skips_prompts_without_a_perplexity():
    found = score(measured(["de", "en", "de"], [NAN, 4, 6], [0.9, NAN, 0.5]), "de", REFERENCE)
    assert (found["forcing"], found["perplexity"]) == (pytest.approx(2 / 3), 5)
    assert found["distinct3"] == pytest.approx(0.7)


def test_an_infinite_perplexity_scores_0():
    assert score(measured(["de"], [math.inf], [0.8]), "de", REFERENCE)["score"] == 0


@st.composite
def cases(draw):
    n = draw(st.integers(1, 6))
    judged = draw(st.lists(st.sampled_from(["de", "en", None]), min_size=n, max_size=n))
    perplexity = draw(st.lists(st.one_of(st.just(NAN), st.floats(1, 200)), min_size=n, max_size=n))
    distinct = draw(st.lists(st.one_of(st.just(NAN), st.floats(0, 1)), min_size=n, max_size=n))
    return measured(judged, perplexity, distinct)


@settings(deadline=None, max_examples=25)
@given(cases(), st.floats(1, 100), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 3))
def test_scores_and_intervals_equal_a_bootstrap_written_with_loops(
    case, perplexity, distinct, seed
):
    own = Reference(1.0, perplexity, distinct)
    n = len(case.judged)
    found = score(case, "de", own, seed=seed)
    assert found["score"] == pytest.approx(by_hand(case, "de", own, range(n)), abs=1e-12)
    draws = Draws(n, seed)
    assert found["score_ci"] == close_to(interval(found["score"], draws.scores(case, "de", own), n))
    picks = draws.picks[:20]
    wanted = [by_hand(case, "de", own, pick) for pick in picks.tolist()]
    assert score_samples(case, "de", own, picks).tolist() == pytest.approx(wanted, abs=1e-12)


ONES = {
    "de": measured(["de", "de", "en", "de", "de"], [12, 9, 30, 14, NAN], [0.9, 0.8, 0.4, 0.7, 0.6]),
    "fr": measured(["fr", None, "fr", "en", "fr"], [20, 22, 18, 5, 40], [0.5, 0.9, 0.9, 0.9, 0.9]),
}
OTHERS = {
    "de": measured(["en", "de", "en", "de", "en"], [8, 9, 9, 14, 20], [0.9, 0.8, 0.9, 0.7, 0.6]),
    "fr": measured(["fr", "fr", "fr", "fr", "fr"], [60, 80, 70, 90, 75], [0.5, 0.4, 0.9, NAN, 0.3]),
}
REFERENCES = {"de": REFERENCE, "fr": Reference(1.0, 15.0, 0.9)}


@pytest.mark.parametrize("seed", [0, 5])
def test_methods_are_compared_on_the_same_resampled_prompts(seed):
    found = compare(ONES, OTHERS, REFERENCES, seed=seed)

    def mean_score(of, picks):
        return statistics.mean(
            by_hand(of[label], label, REFERENCES[label], picks) for label in REFERENCES
        )

    one, other = mean_score(ONES, range(5)), mean_score(OTHERS, range(5))
    assert found["score"] == pytest.approx(one) and found["difference"] == pytest.approx(
        one - other
    )
    draws = Draws(5, seed)
    ours, theirs = (
        np.mean([draws.scores(of[name], name, REFERENCES[name]) for name in ("de", "fr")], 0)
        for of in (ONES, OTHERS)
    )
    assert found["score_ci"] == close_to(interval(one, ours, 10))
    moved = ours - theirs - np.mean(ours - theirs) + one - other
    assert found["difference_ci"] == close_to(
        [max(percentiles(moved)[0], -1), min(percentiles(moved)[1], 1)]
    )


@pytest.mark.parametrize(("rate", "n"), [(0.0, 8), (0.0, 32), (0.06, 32), (0.5, 16)])
def test_a_difference_lies_within_its_interval(rate, n):
    """Slips raise the score of a method that forces nothing: they show the spread, not the mean."""

    def made(hits):
        judged = ["de"] * hits + ["en"] * (n - hits)
        return {
            f"{i}": measured([f"{i}" if j == "de" else j for j in judged], [12.0] * n, [0.9] * n)
            for i in range(14)
        }

    owns = {f"{i}": Reference(1.0, 15.0, 0.9) for i in range(14)}
    found = compare(made(n), made(round(rate * n)), owns)
    low, high = found["difference_ci"]
    assert low <= found["difference"] <= high <= 1 and low < high
    assert found["difference"] - low < 0.3


def test_a_method_is_not_ahead_of_itself():
    found = compare(ONES, ONES, REFERENCES)
    assert found["difference"] == 0 and found["difference_ci"][0] < 0 < found["difference_ci"][1]
    assert found["score_ci"][0] < found["score"] < found["score_ci"][1]


def test_the_order_of_labels_does_not_matter_and_swapping_changes_the_sign():
    found = compare(ONES, OTHERS, REFERENCES)
    turned = compare(dict(reversed(ONES.items())), OTHERS, REFERENCES)
    assert turned["difference"] == pytest.approx(found["difference"])
    swapped = compare(OTHERS, ONES, REFERENCES)
    assert swapped["difference"] == pytest.approx(-found["difference"])
    assert swapped["difference_ci"] == pytest.approx(
        [-end for end in reversed(found["difference_ci"])], abs=0.05
    )


def test_take_selects_prompts():
    some = ONES["de"].take(3, 5)
    assert (some.texts, some.judged) == (["text 3", "text 4"], ["de", "de"])
    assert (some.perplexity, some.distinct3) == ([14, None], [0.7, 0.6])
    assert score(some, "de", REFERENCE)["perplexity"] == 14


def test_measured_continuations_survive_json():
    for one in (ONES["de"], measured([None], [NAN], [NAN])):
        text = json.dumps(asdict(one), allow_nan=False)
        assert Measured(**json.loads(text)) == one


def judge(texts):
    """`de` for texts with an e in them, None for empty ones."""
    return [None if not text else "de" if "e" in text else "en" for text in texts]


PROMPTS = [[0, 40, 41], [0, 50, 51, 52], [0, 60, 61], [0, 90]]


def test_each_continuation_is_measured_by_itself(tiny_lm):
    rows = [list(range(70, 80)), [5, 6, 7], [9, 9], []]
    found = measure(tiny_lm, PROMPTS, rows, judge)
    assert found.texts == texts_of(tiny_lm, rows) and found.judged == judge(found.texts)
    assert found.judged[3] is None
    wanted = perplexities(tiny_lm, PROMPTS, rows)
    assert wanted[0] is not None and found.perplexity == [wanted[0], None, None, None]
    assert found.distinct3 == [distinct_trigrams(rows[:1]), 1.0, None, None]


def test_the_reference_measures_unsteered_text(tiny_lm):
    decoding = Decoding(max_new_tokens=12, seed=2)
    found = measure_reference(tiny_lm, "de", PROMPTS, decoding, judge)
    rows = generate(tiny_lm, PROMPTS, decoding)
    values = [value for value in perplexities(tiny_lm, PROMPTS, rows) if value is not None]
    assert found.perplexity == pytest.approx(statistics.median(values))
    assert found.forcing == sum(label == "de" for label in judge(texts_of(tiny_lm, rows))) / 4
    assert found.distinct3 == pytest.approx(
        statistics.mean(distinct_trigrams([r]) for r in rows if len(r) > 2)
    )


def test_the_reference_in_context_is_of_the_same_texts_after_the_prompts(tiny_lm):
    decoding = Decoding(max_new_tokens=9)
    others = [[0, 30, 31, 32, 33], [0, 35]]  # fewer than the beginnings: they are repeated
    found = measure_reference(tiny_lm, "de", PROMPTS, decoding, judge, others)
    alone = measure_reference(tiny_lm, "de", PROMPTS, decoding, judge)
    assert replace(found, perplexity_in_context=None) == alone and alone.in_context is None
    values = []
    for i, (begun, row) in enumerate(
        zip(PROMPTS, generate(tiny_lm, PROMPTS, decoding), strict=True)
    ):
        context = [*others[i % 2], *begun[len(tiny_lm.prefix) :]]
        ids = torch.tensor([[*context, *row]])
        with torch.no_grad():
            logits = tiny_lm.model(input_ids=ids, use_cache=False).logits[0].double()
        losses = [
            -float(logits[at - 1].log_softmax(0)[ids[0, at]])
            for at in range(len(context) + 5, ids.shape[1])
        ]
        if losses:
            values.append(math.exp(statistics.mean(losses)))
    assert found.perplexity_in_context == pytest.approx(statistics.median(values), rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(factor=st.floats(0.5, 3), perplexity=st.floats(2, 50), seed=st.integers(0, 9))
def test_the_score_in_context_is_the_score_against_the_other_perplexity(factor, perplexity, seed):
    rng = np.random.default_rng(seed)
    found = measured(rng.choice(["de", "en"], 8), rng.uniform(2, 60, 8), rng.uniform(0.2, 1, 8))
    both = Reference(0.9, perplexity, 0.8, perplexity_in_context=perplexity * factor)
    scored = score(found, "de", both)
    plain = score(found, "de", Reference(0.9, perplexity, 0.8))
    other = score(found, "de", Reference(0.9, perplexity * factor, 0.8))
    assert {name: scored[name] for name in plain} == plain
    assert scored["score_in_context"] == other["score"]
    assert scored["score_in_context_ci"] == other["score_ci"]
    assert (scored["score_in_context"] >= scored["score"]) or factor < 1
