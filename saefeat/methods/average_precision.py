"""Average precision: units whose response tells a label's texts (Kojima et al., 2404.02431)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from saefeat.methods import Count, Method, is_hidden_neurons, records_parameters
from saefeat.ranking import Part, make_part
from saefeat.selection import Selection
from saefeat.statistics import Stats
from saefeat.statistics.by_example import Table, chunks

FEWEST = 10  # examples of a label; the paper has 500


@records_parameters("average-precision")
def average_precision(
    stats: Sequence[Stats],
    responses: Sequence[Table],
    *,
    top: Count = 2000,
    half: Literal["both", "high", "low"] = "both",
) -> Selection:
    """Choose the units whose mean response separates a label's examples from all others best.

    The average precision of a unit for a label is that of its responses as scores, one label
    against the rest: the sum of (R_n - R_(n-1)) P_n over the distinct responses in falling order.
    The units of lowest average precision mark the label by a low response. All given dictionaries
    are pooled. A label without examples has no units, and is not among the others.

    Args:
        stats: one item per dictionary. It is read once, so it may load each item when asked.
        responses: the table `responses` of each dictionary.
        top: units per label: top // 2 of lowest average precision, the others of highest. No unit
            is in both halves; where there are fewer units, the high half is filled first.
        half: keep both halves, or one of them.

    Returns:
        The selection. The score is minus the average precision in the high half, and the average
        precision itself in the low half. So the high half ranks first.

    Raises:
        UserError: the statistics cannot be pooled, a label has fewer than 10 examples, or fewer
            than two labels have some.
    """
    counts = {"high": top - top // 2, "low": top // 2}
    found = [
        _scores(table, table.counted(each.labels, FEWEST))
        for each, table in zip(stats, responses, strict=True)
    ]
    order = sorted(range(len(found)), key=lambda d: responses[d].dictionary)
    starts = np.cumsum([0, *(found[d][1].shape[1] for d in order)])
    labels = found[0][0] if found else []
    pooled = np.concatenate([found[d][1].numpy() for d in order], axis=1) if found else np.zeros(0)
    rows = _chosen(labels, pooled, counts, half)
    parts: list[Part] = []
    for place, d in enumerate(order):
        mine = (rows[0] >= starts[place]) & (rows[0] < starts[place + 1])
        unit, label, score = (torch.from_numpy(column[mine]) for column in rows)
        parts.append(make_part(stats[d], unit - int(starts[place]), label, score))
    return Selection.build(parts)


METHOD = Method(
    rank=average_precision,
    pools=is_hidden_neurons,
    needs="neurons at the site mlp_act",
    shown=False,
    score="AP",
    accumulators=("responses",),
    sized=lambda n: {"top": 2 * n, "half": "high"},
)


def _chosen(
    labels: list[int], pooled: np.ndarray, counts: dict[str, int], half: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Column, label and score of the chosen units: [m] each.

    Args:
        pooled: average precision [labels, all units], by dictionary and unit.
    """
    columns, owners, scores = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for label, row in zip(labels, pooled, strict=True):
        high = np.argsort(-row, kind="stable")[: counts["high"]]
        rest = np.setdiff1d(np.arange(len(row)), high, assume_unique=True)
        low = rest[np.argsort(row[rest], kind="stable")[: counts["low"]]]
        for name, units, sign in (("high", high, -1), ("low", low, 1)):
            if half in (name, "both"):
                columns.append(units)
                owners.append(np.full(len(units), label))
                scores.append(sign * row[units])
    return np.concatenate(columns), np.concatenate(owners), np.concatenate(scores)


def _scores(table: Table, labels: list[int]) -> tuple[list[int], Tensor]:
    """The labels, and the average precision of each of them and each unit, float64 [k, width]."""
    rows = [(table.label == k).nonzero().flatten() for k in labels]
    parts = []
    for units in chunks(table.width, len(table.label)):
        values = table.read("mean", units.start, units.stop)
        parts.append(precision(values.t().contiguous(), rows))
    return labels, torch.cat(parts, dim=1)


def precision(values: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """The average precision of values as scores of each of some groups against the rest.

    Args:
        values: [units, n].
        rows: int64, the columns of `values` that are in each group.

    Returns:
        float64 [groups, units].
    """
    # How many examples respond at least as strongly as each: those of equal response enter
    # together. Of the group itself, it is the number of its examples that do not stand lower.
    above = values.shape[1] - torch.searchsorted(values.sort(1).values, values)
    found = []
    for own in rows:
        place = above[:, own].sort(1).values
        hits = torch.searchsorted(place, place, right=True)
        found.append((hits.double() / place).mean(1))
    return torch.stack(found)
