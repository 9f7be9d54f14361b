"""How often 95 % intervals contain the truth: those of `saefeat.evaluation` and percentile ones.

    python scripts/interval_coverage.py --out scripts/results/interval_coverage.json

Heads of known error rates answer many simulated test sets, and steering of known rates of forcing
and fluency many simulated halves of prompts. A row has the measure, its true value, the number of
examples, the share of test sets whose interval contains the true value (`ours`, `percentile`), the
mean width of both intervals, and how often the percentile interval has no width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from common import options, parse, record, show
from numpy.typing import NDArray

from saefeat import evaluation, forcing
from saefeat.forcing import Measured, Reference

SETS = 200
RESAMPLES = 500
_ROW = tuple[str, float, int, Callable[[np.random.Generator], tuple[list[float], list[float]]]]


class _Labels:
    """Labels of given sizes, and heads with given error rates per label.

    Half of the errors of a label go to the next label, the other half to all others alike.
    """

    def __init__(self, sizes: Sequence[int], errors: Sequence[Sequence[float]]) -> None:
        self.k, self.truth = len(sizes), np.repeat(np.arange(len(sizes)), sizes)
        self.names = [str(i) for i in range(self.k)]
        self.rates = [self._rates(error) for error in errors]

    def _rates(self, errors: Sequence[float]) -> NDArray[np.float64]:
        """[K, K] probabilities of the guesses for each true label."""
        rates = np.zeros((self.k, self.k))
        for i, error in enumerate(errors):
            rates[i] = error / 2 / max(self.k - 1, 1)
            rates[i, (i + 1) % self.k] += error / 2
            rates[i, i] = 0
            rates[i, i] = 1 - rates[i].sum()
        return rates

    def true(self, measure: str, head: int) -> float:
        cells = self.rates[head] * np.bincount(self.truth)[:, None]
        hit = np.diag(cells)
        return float(
            hit.sum() / cells.sum()
            if measure == "accuracy"
            else np.mean(2 * hit / (cells.sum(0) + cells.sum(1)))
        )

    def guesses(self, head: int, rng: np.random.Generator) -> NDArray[np.int64]:
        ends = self.rates[head].cumsum(1)[self.truth]
        return (rng.random(len(self.truth))[:, None] > ends).sum(1).clip(max=self.k - 1)

    def name(self, guesses: NDArray[np.int64]) -> list[str]:
        return [self.names[i] for i in guesses]


def identification(labels: _Labels) -> Iterator[_ROW]:
    """Rows of one set of heads: accuracy, macro-F1, and the difference of both heads."""
    truth, n = labels.name(labels.truth), len(labels.truth)

    def measured(measure: str, rng: np.random.Generator) -> tuple[list[float], list[float]]:
        guesses = labels.guesses(0, rng)
        found = evaluation.head_metrics(
            truth, labels.name(guesses), labels.names, resamples=RESAMPLES
        )
        return found[f"{measure}_ci"], evaluation.percentiles(
            _draws(measure, labels, [guesses], rng)[0]
        )

    def difference(rng: np.random.Generator) -> tuple[list[float], list[float]]:
        one, two = labels.guesses(0, rng), labels.guesses(1, rng)
        _, low, high = evaluation.paired_difference(
            truth, labels.name(one), labels.name(two), labels.names, resamples=RESAMPLES
        )
        draws = _draws("f1_macro", labels, [one, two], rng)
        return [low, high], evaluation.percentiles(draws[0] - draws[1])

    kind = f"{labels.k} labels, smallest {np.bincount(labels.truth).min()}"
    for measure in ("accuracy", "f1_macro"):
        yield (
            f"{measure}, {kind}",
            labels.true(measure, 0),
            n,
            lambda rng, m=measure: measured(m, rng),
        )
    ahead = labels.true("f1_macro", 0) - labels.true("f1_macro", 1)
    yield f"difference of f1_macro, {kind}", ahead, n, difference


def _draws(
    measure: str, labels: _Labels, heads: Sequence[NDArray[np.int64]], rng: np.random.Generator
) -> list[NDArray[np.float64]]:
    """The measure of each head on the same plain bootstrap samples of the examples."""
    k, n = labels.k, len(labels.truth)
    cells, counts = np.unique(np.stack([labels.truth, *heads]), axis=1, return_counts=True)
    sampled = rng.multinomial(n, counts / n, size=RESAMPLES)
    found = []
    for guess in cells[1:]:
        if measure == "accuracy":
            found.append(sampled[:, cells[0] == guess].sum(1) / n)
            continue
        rows, columns = np.eye(k)[cells[0]], np.eye(k)[guess]
        actual, called, hit = sampled @ rows, sampled @ columns, sampled @ (rows * columns)
        f1 = 2 * hit / np.maximum(actual + called, 1)
        found.append((f1 * (actual > 0)).sum(1) / (actual > 0).sum(1))
    return found


def steering(n: int, force: Sequence[float], relative: float) -> Iterator[_ROW]:
    """Rows of two methods on n prompts: the score of a label, the mean score, and the difference.

    Args:
        n: number of prompts.
        force: rate of forcing of each method, the same for all labels.
        relative: median perplexity divided by the model's own.
    """
    own, names = Reference(1.0, 10.0, 0.9), [f"l{i}" for i in range(14)]

    def outcome(label: str, rate: float, rng: np.random.Generator) -> Measured:
        judged: list[str | None] = [label if hit else "en" for hit in rng.random(n) < rate]
        return Measured(
            [""] * n,
            judged,
            (10.0 * relative * np.exp(0.6 * rng.standard_normal(n))).tolist(),
            [0.9] * n,
        )

    def score(rate: float) -> float:
        fluency = min(1.0, 1 / relative)
        return 2 * rate * fluency / (rate + fluency)

    def one(rng: np.random.Generator) -> tuple[list[float], list[float]]:
        found = outcome("l0", force[0], rng)
        picks = rng.integers(0, n, (RESAMPLES, n))
        return forcing.score(found, "l0", own)["score_ci"], evaluation.percentiles(
            forcing.score_samples(found, "l0", own, picks)
        )

    def both(key: str, rng: np.random.Generator) -> tuple[list[float], list[float]]:
        sides = [{name: outcome(name, rate, rng) for name in names} for rate in force]
        found = forcing.compare(sides[0], sides[1], dict.fromkeys(names, own))
        picks = rng.integers(0, n, (RESAMPLES, n))
        draws = [
            np.mean([forcing.score_samples(side[name], name, own, picks) for name in names], axis=0)
            for side in sides
        ]
        plain = draws[0] if key == "score_ci" else draws[0] - draws[1]
        return found[key], evaluation.percentiles(plain)

    kind = f"forcing {force[0]} and {force[1]}, perplexity {relative} of its own"
    yield f"score of a label, {kind}", score(force[0]), n, one
    yield f"mean score of 14 labels, {kind}", score(force[0]), n, lambda rng: both("score_ci", rng)
    yield (
        f"difference of mean scores, {kind}",
        score(force[0]) - score(force[1]),
        n,
        (lambda rng: both("difference_ci", rng)),
    )


def cases() -> Iterator[_ROW]:
    yield from identification(_Labels([40] * 15, [[0.005] * 15, [0.01] * 15]))
    yield from identification(_Labels([200] * 15, [[0.002] * 15, [0.004] * 15]))
    yield from identification(_Labels([20] * 5, [[0.01] * 5, [0.02] * 5]))
    yield from identification(_Labels([300, 100, 15], [[0.005, 0.01, 0.05], [0.005, 0.02, 0.1]]))
    yield from identification(_Labels([60] * 15, [[0.0] * 12 + [0.1] * 3, [0.05] * 15]))
    yield from identification(_Labels([60] * 3, [[0.3] * 3, [0.4] * 3]))
    yield from identification(_Labels([4] * 50, [[0.05] * 50, [0.3] * 50]))
    for n in (16, 32):
        yield from steering(n, (0.97, 0.9), 0.7)
        yield from steering(n, (0.97, 0.9), 1.4)
        yield from steering(n, (0.6, 0.4), 1.4)
        yield from steering(n, (0.95, 0.02), 0.7)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--sets", type=int, default=SETS)
    arguments = parse(parser)
    rows: list[dict[str, Any]] = []
    for number, (name, truth, n, draw) in enumerate(cases()):
        rng = np.random.default_rng(number)
        found = np.array(
            [draw(rng) for _ in range(arguments.sets)]
        )  # [sets, ours and percentile, ends]
        holds = ((found[:, :, 0] <= truth + 1e-9) & (found[:, :, 1] >= truth - 1e-9)).mean(0)
        width = found[:, :, 1] - found[:, :, 0]
        rows.append(
            {
                "measure": name,
                "truth": round(truth, 4),
                "n": n,
                "ours": round(float(holds[0]), 3),
                "percentile": round(float(holds[1]), 3),
                "width": round(float(width[:, 0].mean()), 4),
                "width of percentile": round(float(width[:, 1].mean()), 4),
                "percentile without width": round(float((width[:, 1] == 0).mean()), 3),
            }
        )
        show(rows[-1])
    record(arguments, {"rows": rows})


if __name__ == "__main__":
    main()
