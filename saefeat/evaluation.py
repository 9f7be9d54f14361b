"""Metrics of language identification with intervals, in the format of `lid/metrics.json`.

Near 0 and 1, the intervals of a percentile bootstrap are too narrow, and have no width where
nothing is wrong. So other rules are used here. A share has Wilson's interval. Any other measure
between 0 and 1 has Wilson's interval with an effective number of examples: the number for which a
share would have the variance that the measure has over bootstrap samples. A difference has the
percentiles of such samples, moved so that their mean is the difference. In a bootstrap sample, each
judgement slips (from right to wrong or back) with probability 1 / (n + 2).
`scripts/interval_coverage.py` measures how often the intervals hold the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from saefeat.schema import STRICT

Predictions = Sequence[str | None]
Measure = Literal["accuracy", "f1_macro"]
_ENDS = (0.025, 0.975)  # of a 95 % interval
_Z = 1.959964  # the normal quantile of the upper end


class LabelMetrics(TypedDict):
    """Metrics of one label."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    precision: float
    recall: float
    f1: float


class HeadMetrics(TypedDict):
    """Metrics of one head. Rows of the matrix are true labels; its last column is `unknown`."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    accuracy: float
    accuracy_ci: list[float]
    f1_macro: float
    f1_macro_ci: list[float]
    per_label: dict[str, LabelMetrics]
    confusion_matrix: list[list[int]]


class LengthMetrics(TypedDict):
    """Metrics of all heads on the first characters of each text."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    n: int
    heads: dict[str, HeadMetrics]


class LidMetrics(TypedDict):
    """The content of `lid/metrics.json`. `request` says what was asked for."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    corpus: str
    split: str
    labels: list[str]
    n: int
    heads: dict[str, HeadMetrics]
    by_length: dict[str, LengthMetrics]
    request: NotRequired[dict[str, Any]]


def head_metrics(
    truth: Sequence[str],
    predicted: Predictions,
    labels: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> HeadMetrics:
    """Compute the metrics of one head on n examples, with 95 % intervals. 0/0 counts as 0.

    Args:
        truth: n labels.
        predicted: n labels, None where the head says nothing. That counts as wrong, in the column
            `unknown`.
        labels: the K labels, in the order of the confusion matrix.

    Returns:
        The metrics: f1_macro is the mean over labels with at least one true example; intervals are
        [low, high]; confusion_matrix has K rows of true labels and K + 1 columns, `labels` and
        `unknown`.

    Raises:
        ValueError: lengths differ, or a label is not among `labels`.
    """
    k = len(labels)
    true, guess = _indices(truth, predicted, labels)
    cells, counts = np.unique(np.stack([true, guess]), axis=1, return_counts=True)
    matrix = np.zeros((k, k + 1), np.int64)
    matrix[cells[0], cells[1]] = counts
    hit, actual, called = np.diagonal(matrix), matrix.sum(1), matrix[:, :k].sum(0)
    scores = zip(_ratio(hit, called), _ratio(hit, actual), _f1(hit, actual, called), strict=True)
    accuracy, f1 = (
        float(_measure(m, cells[0], cells[1], counts[None, :], k)[0])
        for m in ("accuracy", "f1_macro")
    )
    slipping, weights = _with_slips(cells, counts)
    sampled = _resample(weights, len(true), seed, resamples)
    draws = _measure("f1_macro", slipping[0], slipping[1], sampled, k)
    return {
        "accuracy": accuracy,
        "accuracy_ci": wilson(accuracy, len(true)),
        "f1_macro": f1,
        "f1_macro_ci": interval(f1, draws, len(true)),
        "per_label": {
            label: {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
            for label, (precision, recall, f1) in zip(labels, scores, strict=True)
        },
        "confusion_matrix": matrix.tolist(),
    }


def paired_difference(
    truth: Sequence[str],
    pred_a: Predictions,
    pred_b: Predictions,
    labels: Sequence[str],
    measure: Measure = "f1_macro",
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> tuple[float, float, float]:
    """Compute by how much head a is better than head b on the same n examples.

    Both heads see the same resampled examples, so the interval is that of the difference.

    Returns:
        The difference, and the ends of its 95 % interval.

    Raises:
        ValueError: lengths differ, a label is not among `labels`, or the measure is unknown.
    """
    k = len(labels)
    true, guess_a = _indices(truth, pred_a, labels)
    _, guess_b = _indices(truth, pred_b, labels)
    cells, counts = np.unique(np.stack([true, guess_a, guess_b]), axis=1, return_counts=True)

    def difference(cells: NDArray[np.int64], sampled: NDArray[np.int64]) -> NDArray[np.float64]:
        return _measure(measure, cells[0], cells[1], sampled, k) - _measure(
            measure, cells[0], cells[2], sampled, k
        )

    slipping, weights = _with_slips(cells, counts)
    ahead = float(difference(cells, counts[None, :])[0])
    low, high = difference_interval(
        ahead, difference(slipping, _resample(weights, len(true), seed, resamples))
    )
    return ahead, low, high


def lid_metrics(
    corpus_name: str,
    split: str,
    labels: Sequence[str],
    truth: Sequence[str],
    predictions_by_length: Mapping[str, Mapping[str, Predictions]],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> LidMetrics:
    """Compute the content of `lid/metrics.json`.

    Args:
        predictions_by_length: length in characters, or "all" for whole texts (which is required),
            -> head -> n predictions.

    Raises:
        ValueError: no "all", or what `head_metrics` refuses.
    """
    if "all" not in predictions_by_length:
        raise ValueError("predictions of the whole texts ('all') are missing")
    by_length: dict[str, LengthMetrics] = {}
    for length in sorted(
        predictions_by_length, key=lambda name: (name == "all", int(name) if name != "all" else 0)
    ):
        heads = {
            head: head_metrics(truth, predicted, labels, seed=seed, resamples=resamples)
            for head, predicted in predictions_by_length[length].items()
        }
        by_length[length] = {"n": len(truth), "heads": heads}
    return {
        "corpus": corpus_name,
        "split": split,
        "labels": list(labels),
        "n": len(truth),
        "heads": by_length["all"]["heads"],
        "by_length": by_length,
    }


def _indices(
    truth: Sequence[str], predicted: Predictions, labels: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of each example in the confusion matrix; None is column K."""
    if len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} true labels but {len(predicted)} predictions")
    rows = {label: index for index, label in enumerate(labels)}
    columns: dict[str | None, int] = {**rows, None: len(rows)}
    strangers = [x for x in truth if x not in rows] + [x for x in predicted if x not in columns]
    if strangers:
        raise ValueError(f"{strangers[0]!r} is not among the labels {', '.join(labels)}")
    true = np.fromiter((rows[label] for label in truth), np.int64, len(truth))
    return true, np.fromiter((columns[label] for label in predicted), np.int64, len(predicted))


def slip(n: int) -> float:
    """The probability with which each of n judgements slips in a bootstrap sample."""
    return 1 / (n + 2)


def _with_slips(
    cells: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Cells [1 + heads, m] (true label, guess of each head) with weights, where a guess may slip.

    A right guess slips to the next label that has examples, a wrong one to the right label.
    """
    true, guesses, share = cells[0], cells[1:], slip(int(counts.sum()))
    present = np.unique(true)
    after = present[(np.searchsorted(present, true) + 1) % max(len(present), 1)]
    parts, weights = [cells], [counts.astype(np.float64) * (1 - share * len(guesses))]
    for head, guess in enumerate(guesses, 1):
        slipped = cells.copy()
        slipped[head] = np.where(guess == true, after, true)
        parts.append(slipped)
        weights.append(counts.astype(np.float64) * share)
    return np.concatenate(parts, axis=1), np.concatenate(weights)


def _resample(weights: NDArray[np.float64], n: int, seed: int, resamples: int) -> NDArray[np.int64]:
    """Cell counts of `resamples` samples of n examples with replacement: [resamples, cells].

    Examples of one cell are alike, so drawing counts of cells is drawing examples, and far cheaper.
    """
    if not n:
        return np.zeros((resamples, 0), np.int64)
    return np.random.default_rng(seed).multinomial(n, weights / weights.sum(), size=resamples)


def _measure(
    measure: Measure,
    true: NDArray[np.int64],
    guess: NDArray[np.int64],
    counts: NDArray[np.int64],
    k: int,
) -> NDArray[np.float64]:
    """The measure of each row of cell counts [rows, cells].

    `true` and `guess` [cells] name the cells.
    """
    if measure == "accuracy":
        return _ratio(counts[:, true == guess].sum(1), counts.sum(1))
    if measure != "f1_macro":
        raise ValueError(f"no measure is called {measure!r}; there are accuracy, f1_macro")
    weights = counts.astype(np.float64)
    rows, columns = np.eye(k)[true], np.eye(k + 1)[guess][:, :k]
    actual, called, hit = weights @ rows, weights @ columns, weights @ (rows * columns)
    return _ratio(_f1(hit, actual, called).sum(1), (actual > 0).sum(1))


def _f1(hit: NDArray[Any], actual: NDArray[Any], called: NDArray[Any]) -> NDArray[np.float64]:
    return _ratio(2 * hit, actual + called)


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """part / whole, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0)


def wilson(share: float, n: float) -> list[float]:
    """Wilson's 95 % interval of a share of n independent judgements (JASA 22, 1927).

    Returns [low, high]; of no judgements [0, 1].
    """
    if not n:
        return [0.0, 1.0]
    middle, extra = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n), _Z**2 / (4 * n**2)
    half = _Z / (1 + _Z**2 / n) * (share * (1 - share) / n + extra) ** 0.5
    return [max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))]


def interval(measure: float, draws: NDArray[np.float64], n: int) -> list[float]:
    """95 % interval of a measure between 0 and 1 of n examples: [low, high].

    draws: the measure on bootstrap samples in which judgements slip (see this module).
    """
    mean, variance = float(draws.mean()), float(draws.var())
    return wilson(measure, mean * (1 - mean) / variance if n and variance > 0 else n)


def difference_interval(difference: float, draws: NDArray[np.float64]) -> list[float]:
    """95 % interval of a difference of two measures between 0 and 1: [low, high].

    draws: the difference on bootstrap samples in which judgements slip. Slips move both measures
    away from 0 and 1, so the samples show how much the difference varies, but not its centre.
    """
    low, high = percentiles(draws - draws.mean() + difference)
    return [max(-1.0, min(low, difference)), min(1.0, max(high, difference))]


def percentiles(draws: NDArray[np.float64]) -> list[float]:
    """[low, high]: 95 % of the draws lie between them."""
    return [float(end) for end in np.quantile(draws, _ENDS)]
