"""DLN, distribution-aware language neurons (EMNLP 2026).

The values of a unit are compared between labels by the overlap of their distributions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from saefeat.io import UserError
from saefeat.methods import Method, Rate, is_hidden_neurons, records_parameters
from saefeat.ranking import Part, make_part
from saefeat.selection import Selection
from saefeat.statistics import Stats
from saefeat.statistics.by_example import chunks
from saefeat.statistics.distributions import BINS, Distributions


@records_parameters("dln")
def dln(
    stats: Sequence[Stats],
    distributions: Sequence[Distributions],
    *,
    rate: Rate = 0.01,
    clusters: Literal["any", "single", "multi"] = "any",
) -> Selection:
    """Choose the units whose distributions fall into two groups of labels with little overlap.

    The overlap of two labels is the sum over bins of the lesser share of their tokens. Of all ways
    to part the labels in two, the best one has the least cost, which is the greatest overlap across
    it. A unit is chosen if this cost is at most the max(1, int(rate * M))-th smallest of the M
    overlaps of all units and pairs of labels. It belongs to the labels of the smaller side: one (a
    single-language neuron) or several (a multi-language neuron). Where ways cost the same, the one
    with the smallest side is taken, and of equal sizes the first in the order of the labels. Of two
    even sides, the one with the first label counts. A label without tokens is left out.

    The published histograms have 400 bins of equal width within three deviations of the mean of
    each unit, which a first pass over the text finds. Here the edges are the same for all units,
    eight per octave for each sign, so that one pass suffices and shards add. The bins are coarser,
    so overlaps are a little greater.

    Args:
        stats: one item per dictionary. It is read once, so it may load each item when asked.
        distributions: those of each dictionary; read once too.
        clusters: "single": units of one label; "multi": of several; "any": both.

    Returns:
        The selection. The score is the cost. The header has the number of chosen units of one label
        and of several under `classes`.

    Raises:
        UserError: the statistics cannot be pooled, or fewer than two labels have tokens.
    """
    found = [_overlaps(each, of) for each, of in zip(stats, distributions, strict=True)]
    every = torch.cat([torch.zeros(0, dtype=torch.float64), *(o.flatten() for _, o in found)])
    bar = every.kthvalue(max(1, int(rate * len(every)))).values if len(every) else torch.inf
    parts: list[Part] = []
    classes: dict[str, dict[str, float]] = {"single-label": {}, "multi-label": {}}
    for each, (labels, overlaps) in zip(stats, found, strict=True):
        costs, matrices = cost(overlaps, len(labels))
        chosen = (costs <= bar).nonzero().flatten()
        sides = [cluster(matrices[unit], float(costs[unit])) for unit in chosen.tolist()]
        rows = []
        for unit, side in zip(chosen.tolist(), sides, strict=True):
            kind = "single" if len(side) == 1 else "multi"
            count = classes[f"{kind}-label"]
            count[each.dictionary] = count.get(each.dictionary, 0) + 1
            if clusters in (kind, "any"):
                rows += [(unit, labels[k]) for k in side]
        unit, label = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2).t()
        parts.append(make_part(each, unit, label, costs[unit]))
    return Selection.build(parts, classes=classes)


METHOD = Method(
    rank=dln,
    pools=is_hidden_neurons,
    needs="neurons at the site mlp_act",
    shown=False,
    score="overlap",
    accumulators=("distributions",),
)


def _overlaps(stats: Stats, values: Distributions) -> tuple[list[int], Tensor]:
    """The rows of the labels with tokens, and the overlaps of their pairs, [pairs, width]."""
    labels = (values.tokens > 0).nonzero().flatten().tolist()
    if values.labels != stats.labels:
        raise UserError(f"the labels of the distributions of {stats.dictionary} are others")
    if len(labels) < 2:
        raise UserError("the rule compares two labels or more; collect text of more labels")
    parts = []
    for units in chunks(stats.width, len(labels) * BINS):
        shares = values.shares(units.start, units.stop)[labels]
        pairs = itertools.combinations(shares, 2)
        parts.append(torch.stack([torch.minimum(one, two).sum(-1) for one, two in pairs]))
    return labels, torch.cat(parts, dim=1)


def cost(overlaps: Tensor, labels: int) -> tuple[Tensor, Tensor]:
    """The least cost of a bipartition of each unit, by the maximum spanning tree of its overlaps.

    Every bipartition cuts an edge of that tree. The best one cuts its smallest edge alone.

    Args:
        overlaps: [pairs, width].

    Returns:
        float64 [width], and the overlaps as symmetric matrices [width, labels, labels].
    """
    one, two = torch.triu_indices(labels, labels, 1)
    matrix = overlaps.new_zeros(overlaps.shape[1], labels, labels)
    matrix[:, one, two] = matrix[:, two, one] = overlaps.t()
    every = torch.arange(len(matrix))
    nearest, least = matrix[:, 0].clone(), torch.full((len(matrix),), torch.inf).double()
    outside = torch.ones(len(matrix), labels, dtype=torch.bool)
    outside[:, 0] = False
    for _ in range(labels - 1):  # Prim's algorithm, for all units at once
        value, new = nearest.masked_fill(~outside, -1).max(1)
        least = torch.minimum(least, value)
        outside[every, new] = False
        nearest = torch.maximum(nearest, matrix[every, new])
    return least, matrix


def cluster(matrix: Tensor, least: float) -> tuple[int, ...]:
    """The smaller side of the best bipartition, given the overlaps of a unit and its least cost.

    Labels with a greater overlap than the cost stay together. Every union of such groups against
    the others costs the same, and the smallest union is one group.
    """
    groups, left = [], set(range(len(matrix)))
    linked = (matrix > least).tolist()
    while left:
        group, edge = set(), {min(left)}
        while edge:
            group |= edge
            edge = {k for k in left - group if any(linked[k][g] for g in group)}
        groups.append(group)
        left -= group
    return min((tuple(sorted(group)) for group in groups), key=lambda side: (len(side), side))
