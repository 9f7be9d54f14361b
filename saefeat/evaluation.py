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
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from saefeat.artefacts import Interval
from saefeat.artefacts.lid import HeadMetrics, LengthMetrics, LIDMetrics

Predictions = Sequence[str | None]
Measure = Literal["accuracy", "f1_macro"]
Ints, Floats = NDArray[np.int64], NDArray[np.float64]
_Z = 1.959964  # the normal quantile of the upper end of a 95 % interval


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
    k, n = len(labels), len(truth)
    cells, counts = _cells(truth, labels, predicted)
    matrix = np.zeros((k, k + 1), np.int64)
    matrix[cells[0], cells[1]] = counts
    hit, actual, called = np.diagonal(matrix), matrix.sum(1), matrix[:, :k].sum(0)
    scores = zip(_ratio(hit, called), _ratio(hit, actual), _f1(hit, actual, called), strict=True)
    accuracy = float(_measure("accuracy", cells[0], cells[1], counts[None], k)[0])
    f1_macro = float(_measure("f1_macro", cells[0], cells[1], counts[None], k)[0])
    slipping, sampled = _resample(cells, counts, seed, resamples)
    draws = _measure("f1_macro", slipping[0], slipping[1], sampled, k)
    return {
        "accuracy": accuracy,
        "accuracy_ci": wilson(accuracy, n),
        "f1_macro": f1_macro,
        "f1_macro_ci": interval(f1_macro, draws, n),
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
    cells, counts = _cells(truth, labels, pred_a, pred_b)

    def difference(cells: Ints, counts: Ints) -> Floats:
        a, b = (_measure(measure, cells[0], guess, counts, len(labels)) for guess in cells[1:])
        return a - b

    ahead = float(difference(cells, counts[None])[0])
    draws = difference(*_resample(cells, counts, seed, resamples))
    low, high = difference_interval(ahead, draws)
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
) -> LIDMetrics:
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
    for length in sorted(predictions_by_length, key=lambda at: np.inf if at == "all" else int(at)):
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


def _cells(
    truth: Sequence[str], labels: Sequence[str], *predictions: Predictions
) -> tuple[Ints, Ints]:
    """Which labels come together, [1 + heads, m], and in how many examples, [m].

    A column has the index of the true label, and those of the guesses of the heads; None is K.
    """
    names: dict[str | None, int] = {label: k for k, label in enumerate(labels)}
    guesses = {**names, None: len(labels)}
    rows = []
    for row, known in ((truth, names), *((each, guesses) for each in predictions)):
        if len(row) != len(truth):
            raise ValueError(f"{len(truth)} true labels but {len(row)} predictions")
        if strangers := [label for label in row if label not in known]:
            raise ValueError(f"{strangers[0]!r} is not among the labels {', '.join(labels)}")
        rows.append([known[label] for label in row])
    return np.unique(np.array(rows, np.int64), axis=1, return_counts=True)


def slip(n: int) -> float:
    """The probability with which each of n judgements slips in a bootstrap sample."""
    return 1 / (n + 2)


def _resample(cells: Ints, counts: Ints, seed: int, resamples: int) -> tuple[Ints, Ints]:
    """Bootstrap samples of n examples in which each guess may slip.

    A right guess slips to the next label that has examples, a wrong one to the right label.
    Examples of one cell are alike, so drawing counts of cells is drawing examples, and far cheaper.

    Returns:
        Cells [1 + heads, m], and how often each is drawn, [resamples, m].
    """
    true, guesses, n = cells[0], cells[1:], int(counts.sum())
    if not n:
        return cells, np.zeros((resamples, 0), np.int64)
    present = np.unique(true)
    after = present[(np.searchsorted(present, true) + 1) % len(present)]
    parts, weights = [cells], [counts * (1 - slip(n) * len(guesses))]
    for head, guess in enumerate(guesses, 1):
        slipped = cells.copy()
        slipped[head] = np.where(guess == true, after, true)
        parts.append(slipped)
        weights.append(counts * slip(n))
    share = np.concatenate(weights)
    draw = np.random.default_rng(seed).multinomial(n, share / share.sum(), size=resamples)
    return np.concatenate(parts, axis=1), draw


def _measure(measure: Measure, true: Ints, guess: Ints, counts: Ints, k: int) -> Floats:
    """The measure of each row of cell counts [rows, m]; `true` and `guess` [m] name the cells."""
    if measure == "accuracy":
        return _ratio(counts[:, true == guess].sum(1), counts.sum(1))
    if measure != "f1_macro":
        raise ValueError(f"no measure is called {measure!r}; there are accuracy, f1_macro")
    weights = counts.astype(np.float64)
    rows, columns = np.eye(k)[true], np.eye(k + 1)[guess][:, :k]
    actual, called, hit = weights @ rows, weights @ columns, weights @ (rows * columns)
    return _ratio(_f1(hit, actual, called).sum(1), (actual > 0).sum(1))


def _f1(hit: NDArray[Any], actual: NDArray[Any], called: NDArray[Any]) -> Floats:
    return _ratio(2 * hit, actual + called)


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """part / whole, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0)


def wilson(share: float, n: float) -> Interval:
    """Wilson's 95 % interval of a share of n independent judgements (JASA 22, 1927).

    Returns [low, high]; of no judgements [0, 1].
    """
    if not n:
        return [0.0, 1.0]
    n = min(n, 1e100)  # an effective number may be so great that its square overflows
    middle, extra = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n), _Z**2 / (4 * n**2)
    half = _Z / (1 + _Z**2 / n) * (share * (1 - share) / n + extra) ** 0.5
    return [max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))]


def interval(measure: float, draws: Floats, n: int) -> Interval:
    """95 % interval of a measure between 0 and 1 of n examples: [low, high].

    draws: the measure on bootstrap samples in which judgements slip (see this module).
    """
    mean, variance = float(draws.mean()), float(draws.var())
    return wilson(measure, mean * (1 - mean) / variance if n and variance > 0 else n)


def difference_interval(difference: float, draws: Floats) -> Interval:
    """95 % interval of a difference of two measures between 0 and 1: [low, high].

    draws: the difference on bootstrap samples in which judgements slip. Slips move both measures
    away from 0 and 1, so the samples show how much the difference varies, but not its centre.
    """
    low, high = percentiles(draws - draws.mean() + difference)
    return [max(-1.0, min(low, difference)), min(1.0, max(high, difference))]


def percentiles(draws: Floats) -> Interval:
    """[low, high]: 95 % of the draws lie between them."""
    return np.quantile(draws, (0.025, 0.975)).tolist()
