"""How well a model was steered: forcing, fluency and their harmonic mean, with intervals over the prompts.

The same prompts stand behind every setting, so differences are paired: both sides see the same
resampled prompts. Intervals are those of `saefeat.evaluation`: in each sample a judgement of the
language slips with a small probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saefeat.evaluation import difference_interval, interval, slip
from saefeat.generation import Decoding, distinct_trigrams, generate, perplexities, texts_of
from saefeat.models import LanguageModel

RESAMPLES = 1000
Judge = Callable[[Sequence[str]], list[str | None]]
"""texts -> the label each is in, None where nothing can be said."""


@dataclass(frozen=True)
class Outcome:
    """What came of n prompts: their continuations and what is measured of each.

    Attributes:
        texts: n continuations.
        judged: the label that each is judged to be in, or None.
        perplexity: float64 [n], of the unsteered model, nan for a continuation too short to
            measure.
        distinct3: float64 [n], share of distinct trigrams of tokens, nan for fewer than 3 tokens.
    """

    texts: list[str]
    judged: list[str | None]
    perplexity: NDArray[np.float64]
    distinct3: NDArray[np.float64]

    def of(self, keep: Sequence[int]) -> Outcome:
        """The outcome of some of the prompts."""
        return Outcome(
            [self.texts[i] for i in keep],
            [self.judged[i] for i in keep],
            self.perplexity[list(keep)],
            self.distinct3[list(keep)],
        )

    def plain(self) -> dict[str, Any]:
        """As JSON has it; `Outcome.read` is the way back."""
        numbers = {
            name: [_plain(v) for v in getattr(self, name)] for name in ("perplexity", "distinct3")
        }
        return {"texts": self.texts, "judged": self.judged, **numbers}

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Outcome:
        perplexity, distinct3 = (
            np.array(entry[name], np.float64) for name in ("perplexity", "distinct3")
        )
        return cls(entry["texts"], entry["judged"], perplexity, distinct3)


@dataclass(frozen=True)
class Own:
    """The model's own text in a label, unsteered: what fluency is measured against."""

    forcing: float
    perplexity: float
    distinct3: float


def measure(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], judge: Judge
) -> Outcome:
    """Judge continuations `rows` of token ids. Call it outside of any steering: the unsteered model measures."""
    texts = texts_of(lm, rows)
    values = [math.nan if value is None else value for value in perplexities(lm, prompts, rows)]
    distinct = [distinct_trigrams([row]) if len(row) > 2 else math.nan for row in rows]
    return Outcome(
        texts, judge(texts), np.array(values, np.float64), np.array(distinct, np.float64)
    )


def own_text(
    lm: LanguageModel,
    label: str,
    beginnings: Sequence[Sequence[int]],
    decoding: Decoding,
    judge: Judge,
) -> Own:
    """The reference of a label: unsteered continuations of the beginnings of its own texts (token ids with BOS)."""
    outcome = measure(lm, beginnings, generate(lm, beginnings, decoding), judge)
    return Own(
        **{
            name: float(value[0])
            for name, value in _measures(outcome, label, _all(outcome)).items()
        }
    )


def row(outcome: Outcome, label: str, own: Own, *, seed: int = 0) -> dict[str, Any]:
    """forcing, perplexity (median, None where nothing can be measured), distinct3, score and score_ci (95 %)."""
    found = _measures(outcome, label, _all(outcome))
    numbers: dict[str, Any] = {name: _plain(value[0]) for name, value in found.items()}
    n, rng = len(outcome.texts), np.random.default_rng(seed)
    picks = _resampled(n, rng)
    score = float(scores(outcome, label, own, _all(outcome))[0])
    sampled = scores(outcome, label, own, picks, _slips(picks, rng))
    return {**numbers, "score": score, "score_ci": interval(score, sampled, n)}


def reaches(row: Mapping[str, Any], own: Own) -> bool:
    """Whether a row of measures forces at least 95 % of the prompts and stays fluent.

    Fluent: a perplexity of at most twice, and distinct trigrams of at least .9 of, those of the
    model's own text.
    """
    found = row["perplexity"]
    if found is None or row["distinct3"] is None:
        return False
    fluent = found <= 2 * own.perplexity and row["distinct3"] >= 0.9 * own.distinct3
    return bool(row["forcing"] >= 0.95 and fluent)


def compare(
    ones: Mapping[str, Outcome],
    others: Mapping[str, Outcome],
    own: Mapping[str, Own],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Mean score over labels of two methods and how much the first is ahead, with 95 % intervals, paired by prompt."""
    n, rng = len(next(iter(ones.values())).texts), np.random.default_rng(seed)
    plain, drawn = np.arange(n)[None], _resampled(n, rng)
    one, other = (
        np.mean([scores(of[name], name, own[name], plain)[0] for name in of])
        for of in (ones, others)
    )
    draws = [
        np.mean(
            [scores(of[name], name, own[name], drawn, _slips(drawn, rng)) for name in sorted(of)],
            axis=0,
        )
        for of in (ones, others)
    ]
    return {
        "score": float(one),
        "score_ci": interval(float(one), draws[0], n * len(ones)),
        "difference": float(one - other),
        "difference_ci": difference_interval(float(one - other), draws[0] - draws[1]),
    }


def scores(
    outcome: Outcome,
    label: str,
    own: Own,
    picks: NDArray[np.int64],
    slips: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Score of each sample of prompts picks [samples, n]: harmonic mean of forcing and fluency, [samples].

    slips: bool [samples, n], which of them are judged the other way.
    Fluency = min(1, own perplexity / perplexity) * min(1, distinct3 / own distinct3); 0 where
    nothing is measured.
    """
    found = _measures(outcome, label, picks, slips)
    with np.errstate(invalid="ignore", divide="ignore"):
        fluent = np.minimum(1, own.perplexity / found["perplexity"])
        fluent = np.nan_to_num(
            fluent * np.minimum(1, found["distinct3"] / max(own.distinct3, 1e-9))
        )
        return np.nan_to_num(2 * found["forcing"] * fluent / (found["forcing"] + fluent))


def _measures(
    outcome: Outcome, label: str, picks: NDArray[np.int64], slips: NDArray[np.bool_] | None = None
) -> dict[str, NDArray[np.float64]]:
    """forcing, median perplexity and mean distinct3 of each sample of prompts picks [samples, n]; see `scores`."""
    hit = np.array([judged == label for judged in outcome.judged], np.bool_)[picks]
    return {
        "forcing": (hit if slips is None else hit ^ slips).mean(1),
        "perplexity": _over(np.nanmedian, outcome.perplexity[picks]),
        "distinct3": _over(np.nanmean, outcome.distinct3[picks]),
    }


def _over(
    summary: Callable[..., NDArray[np.float64]], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The summary of each row, nan for a row without any value."""
    known = ~np.isnan(values).all(1)
    out = np.full(len(values), np.nan)
    if known.any():
        out[known] = summary(values[known], axis=1)
    return out


def _all(outcome: Outcome) -> NDArray[np.int64]:
    return np.arange(len(outcome.texts))[None]


def _resampled(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.integers(0, n, (RESAMPLES, n))


def _slips(picks: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    return rng.random(picks.shape) < slip(picks.shape[1])


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
