"""Summaries of trials of units: means over labels, with intervals and random units beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saefeat.evaluation import percentiles
from saefeat.forcing import Measured, Reference, compare, score

RESAMPLES = 1000

Values = dict[str, Any]
Losses = Mapping[str, Sequence[float | None]]  # label -> loss of each text, in nats per token


def summarize_ablation(
    before: Losses, after: Mapping[str, Losses], twins: Mapping[str, Losses], *, seed: int = 0
) -> Values | None:
    """The content of `saefeat.artefacts.comparison.Ablation`; None where nothing is measured.

    Intervals are percentiles over resampled texts, moved so that their mean is the figure; before
    and after are resampled together. A label without units does not count.

    Args:
        before: losses of the unedited model.
        after: edited label -> losses with its units set to zero.
        twins: the same with random units.
    """
    known = {x: [i for i, v in enumerate(row) if v is not None] for x, row in before.items()}
    labels = [label for label, at in known.items() if at]
    edited = [label for label in after if label in labels]
    if not edited or len(labels) < 2:
        return None
    rng = np.random.default_rng(seed)
    picks = {x: rng.integers(0, len(known[x]), (RESAMPLES, len(known[x]))) for x in labels}
    at = [labels.index(label) for label in edited]
    table: dict[str, Values] = {label: {} for label in edited}
    summary: dict[str, tuple[float, NDArray[np.float64]]] = {}
    affected: dict[str, int] = {}
    for name, of in (("", after), ("random_", twins)):
        rises = np.stack([_rises(before, of[label], known, picks) for label in edited])
        own, others = _split(rises, at)
        lead = own - others
        summary[name] = float(lead[:, 0].mean()), lead[:, 1:].mean(0)
        affected[f"{name}most_affected"] = int((lead[:, 0] > 0).sum())
        for row, label in enumerate(edited):
            table[label][f"{name}own"] = float(own[row, 0])
            table[label][f"{name}others"] = float(others[row, 0])
    (value, draws), (twin, twin_draws) = summary[""], summary["random_"]
    return {
        "selectivity": value,
        "selectivity_ci": _moved(value, draws),
        "random": twin,
        "random_ci": _moved(twin, twin_draws),
        "ahead": value - twin,
        "ahead_ci": _moved(value - twin, draws - twin_draws),
        **affected,
        "labels": table,
    }


def _rises(
    before: Losses,
    after: Losses,
    known: Mapping[str, Sequence[int]],
    picks: Mapping[str, NDArray[np.int64]],
) -> NDArray[np.float64]:
    """Rises of the median loss of each label: of its texts, then of each sample of them."""
    rows = []
    for label, drawn in picks.items():
        one, other = (
            np.array([of[label][i] for i in known[label]], float) for of in (before, after)
        )
        whole = np.median(other) - np.median(one)
        samples = np.median(other[drawn], axis=1) - np.median(one[drawn], axis=1)
        rows.append(np.concatenate([[whole], samples]))
    return np.stack(rows)


def _split(
    rises: NDArray[np.float64], at: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of rises [edited, labels, n]: those of the label itself, and the greatest of the others."""
    own = np.stack([row[place] for row, place in zip(rises, at, strict=True)])
    others = [np.delete(row, place, 0).max(0) for row, place in zip(rises, at, strict=True)]
    return own, np.stack(others)


def _moved(value: float, draws: NDArray[np.float64]) -> list[float]:
    """The interval of a value by draws, moved so that their mean is the value."""
    return percentiles(draws - draws.mean() + value)


def summarize_steering(
    measured: Mapping[str, Measured],
    twins: Mapping[str, Measured],
    references: Mapping[str, Reference],
    strength: float,
    sites: float,
    *,
    seed: int = 0,
) -> Values | None:
    """The content of `saefeat.artefacts.comparison.SteeringTrial`; None where nothing is measured.

    Labels without units do not count. `sites`: mean number of sites that are steered.
    """
    labels = [label for label in references if label in measured]
    if not labels:
        return None
    one, other = ({label: each[label] for label in labels} for each in (measured, twins))
    ours = compare(one, other, references, seed=seed)
    theirs = compare(other, other, references, seed=seed)
    table = {}
    for label in labels:
        own = score(one[label], label, references[label], seed=seed)
        twin = score(other[label], label, references[label], seed=seed)
        kept = {key: own[key] for key in ("forcing", "perplexity", "distinct3", "score")}
        table[label] = kept | {"random": twin["score"]}
    return {
        "strength": strength,
        "sites": sites,
        "score": ours["score"],
        "score_ci": ours["score_ci"],
        "random": theirs["score"],
        "random_ci": theirs["score_ci"],
        "ahead": ours["difference"],
        "ahead_ci": ours["difference_ci"],
        "labels": table,
    }
