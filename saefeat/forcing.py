"""How well a model was steered: forcing, fluency and their harmonic mean, with intervals.

All settings are measured on the same prompts, so differences are paired: both sides see the same
resampled prompts. Intervals are those of `saefeat.evaluation`: in each sample a judgement of the
language is wrong with a small probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saefeat.evaluation import difference_interval, interval, slip
from saefeat.generation import Decoding, cut_at_stops, distinct_trigrams, generate, perplexities
from saefeat.models import LanguageModel

RESAMPLES = 1000
Judge = Callable[[Sequence[str]], list[str | None]]
"""texts -> the label each is in, None where nothing can be said."""


@dataclass(frozen=True)
class Measured:
    """Continuations of n prompts, and what is measured of each, as values of JSON.

    Attributes:
        texts: the continuations.
        judged: the label that each is judged to be in, or None.
        perplexity: under the unsteered model; None where a continuation is too short.
        distinct3: share of distinct trigrams of tokens; None for fewer than 3 tokens.
    """

    texts: list[str]
    judged: list[str | None]
    perplexity: list[float | None]
    distinct3: list[float | None]

    def summary(self, label: str) -> dict[str, float | None]:
        """Forcing of a label, median perplexity and mean distinct3, as values of JSON."""
        found = _summarize(self, label, _all_prompts(self))
        return {name: finite_or_none(value[0]) for name, value in found.items()}

    def take(self, start: int, end: int) -> Measured:
        """The prompts from start to before end."""
        return Measured(**{name: values[start:end] for name, values in vars(self).items()})


@dataclass(frozen=True)
class Reference:
    """Measures of the model's own text in a label, unsteered. Fluency is relative to them.

    Attributes:
        perplexity: of the text after the beginning of a text in the label.
        perplexity_in_context: of the same text where a prompt of the sweep stands before that
            beginning. It is what steered text can reach in that place. None: not measured.
    """

    forcing: float
    perplexity: float
    distinct3: float
    perplexity_in_context: float | None = None

    @property
    def in_context(self) -> Reference | None:
        """The reference with the perplexity after the prompts in place of the other one."""
        if self.perplexity_in_context is None:
            return None
        return replace(self, perplexity=self.perplexity_in_context)


def measure(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[Sequence[int]],
    judge: Judge,
    stops: Sequence[str] = (),
) -> Measured:
    """Judge continuations `rows` of prompts, both token ids, and measure them.

    Only what stands before the first of the strings `stops` is judged and measured; see
    `cut_at_stops`. Call it outside of any steering: the unsteered model measures.
    """
    rows, texts = cut_at_stops(lm, rows, stops)
    distinct = [distinct_trigrams([row]) if len(row) > 2 else None for row in rows]
    return Measured(texts, judge(texts), perplexities(lm, prompts, rows), distinct)


def measure_reference(
    lm: LanguageModel,
    label: str,
    beginnings: Sequence[Sequence[int]],
    decoding: Decoding,
    judge: Judge,
    prompts: Sequence[Sequence[int]] | None = None,
) -> Reference:
    """Measure unsteered continuations of the beginnings of a label's texts (ids, BOS included).

    `prompts`: token ids, BOS included, for the perplexity in context. Continuation i is measured
    again after prompt i and its beginning; prompts are repeated where there are fewer.
    """
    rows = generate(lm, beginnings, decoding)
    measured = measure(lm, beginnings, rows, judge)
    found = _summarize(measured, label, _all_prompts(measured))
    own = Reference(**{name: float(value[0]) for name, value in found.items()})
    if not prompts:
        return own
    contexts = [
        [*prompts[i % len(prompts)], *begun[len(lm.prefix) :]] for i, begun in enumerate(beginnings)
    ]
    after = np.array(perplexities(lm, contexts, rows), np.float64)  # None becomes nan
    known = after[~np.isnan(after)]
    return replace(own, perplexity_in_context=float(np.median(known)) if len(known) else None)


def score(measured: Measured, label: str, reference: Reference, *, seed: int = 0) -> dict[str, Any]:
    """Summarize the measures of a label over prompts, with the score and its interval.

    Returns:
        forcing, perplexity (median over prompts), distinct3, score and score_ci (95 %), as values
        of JSON; None where nothing can be measured. Where the reference has a perplexity in
        context, also score_in_context and score_in_context_ci, against that.
    """
    found = _summarize(measured, label, _all_prompts(measured))
    n, rng = len(measured.texts), np.random.default_rng(seed)
    picks = rng.integers(0, n, (RESAMPLES, n))
    sampled = _summarize(measured, label, picks, _draw_slips(picks, rng))
    scored = {
        "forcing": float(found["forcing"][0]),
        "perplexity": finite_or_none(found["perplexity"][0]),
        "distinct3": finite_or_none(found["distinct3"][0]),
    }
    for name, against in (("score", reference), ("score_in_context", reference.in_context)):
        if against is not None:
            value = float(_combine(found, against)[0])
            scored |= {name: value, f"{name}_ci": interval(value, _combine(sampled, against), n)}
    return scored


def forces_fluently(scored: Mapping[str, Any], reference: Reference) -> bool:
    """Whether measures force at least 95 % of the prompts and stay fluent.

    Fluent: a perplexity of at most twice the reference's, and distinct trigrams of at least 90 % of
    the reference's.
    """
    perplexity, distinct3 = scored["perplexity"], scored["distinct3"]
    if perplexity is None or distinct3 is None:
        return False
    fluent = perplexity <= 2 * reference.perplexity and distinct3 >= 0.9 * reference.distinct3
    return bool(scored["forcing"] >= 0.95 and fluent)


def compare(
    ones: Mapping[str, Measured],
    others: Mapping[str, Measured],
    references: Mapping[str, Reference],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two methods by their mean score over labels, paired by prompt.

    Args:
        ones, others: label -> continuations of the same prompts.

    Returns:
        score and score_ci of the first, difference (first minus second) and difference_ci; the
        intervals are of 95 %.
    """
    n, rng = len(next(iter(ones.values())).texts), np.random.default_rng(seed)
    picks = rng.integers(0, n, (RESAMPLES, n))

    def mean_scores(of: Mapping[str, Measured]) -> tuple[float, NDArray[np.float64]]:
        """The mean score over labels: of all prompts, and of each sample."""
        every = [score_samples(of[x], x, references[x], _all_prompts(of[x]))[0] for x in of]
        sampled = [
            score_samples(of[x], x, references[x], picks, _draw_slips(picks, rng))
            for x in sorted(of)
        ]
        return float(np.mean(every)), np.mean(sampled, axis=0)

    (one, one_draws), (other, other_draws) = mean_scores(ones), mean_scores(others)
    return {
        "score": one,
        "score_ci": interval(one, one_draws, n * len(ones)),
        "difference": one - other,
        "difference_ci": difference_interval(one - other, one_draws - other_draws),
    }


def score_samples(
    measured: Measured,
    label: str,
    reference: Reference,
    picks: NDArray[np.int64],
    slips: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Score samples of prompts: the harmonic mean of forcing and fluency, float64 [samples].

    Fluency = min(1, reference perplexity / perplexity) * min(1, distinct3 / reference distinct3);
    it is 0 where nothing is measured.

    Args:
        picks: int64 [samples, n], prompts of each sample.
        slips: bool [samples, n], which of them are judged the other way.
    """
    return _combine(_summarize(measured, label, picks, slips), reference)


def _combine(found: Mapping[str, NDArray[np.float64]], reference: Reference) -> NDArray[np.float64]:
    """The score of each sample from its measures; see `score_samples`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        fluent = np.minimum(1, reference.perplexity / found["perplexity"])
        fluent = np.nan_to_num(
            fluent * np.minimum(1, found["distinct3"] / max(reference.distinct3, 1e-9))
        )
        return np.nan_to_num(2 * found["forcing"] * fluent / (found["forcing"] + fluent))


def _summarize(
    measured: Measured, label: str, picks: NDArray[np.int64], slips: NDArray[np.bool_] | None = None
) -> dict[str, NDArray[np.float64]]:
    """forcing, median perplexity and mean distinct3 of each sample; see `score_samples`."""
    hit = np.array([judged == label for judged in measured.judged], np.bool_)[picks]
    return {
        "forcing": (hit if slips is None else hit ^ slips).mean(1),
        "perplexity": _reduce_known(np.nanmedian, measured.perplexity, picks),
        "distinct3": _reduce_known(np.nanmean, measured.distinct3, picks),
    }


def _reduce_known(
    reduce: Callable[..., NDArray[np.float64]],
    measured: Sequence[float | None],
    picks: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Reduce each sample, nan for one without any value (for which numpy would warn)."""
    values = np.array(measured, np.float64)[picks]  # None becomes nan
    known = ~np.isnan(values).all(1)
    out = np.full(len(values), np.nan)
    if known.any():
        out[known] = reduce(values[known], axis=1)
    return out


def _all_prompts(measured: Measured) -> NDArray[np.int64]:
    """One sample that is all of the prompts."""
    return np.arange(len(measured.texts))[None]


def _draw_slips(picks: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    return rng.random(picks.shape) < slip(picks.shape[1])


def finite_or_none(value: float | None) -> float | None:
    """The value as JSON can hold it."""
    return None if value is None or not math.isfinite(value) else float(value)
