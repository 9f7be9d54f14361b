"""Difference of means of units between a label and the others, in its three published forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from saefeat.io import UserError
from saefeat.labels import own_label
from saefeat.methods import Count, Method, is_sae, records_parameters
from saefeat.methods.feature_diffmean import Others, mean_difference
from saefeat.ranking import Part, make_part
from saefeat.selection import Selection
from saefeat.statistics import Stats


@records_parameters("diffmean")
def diffmean(
    stats: Sequence[Stats],
    *,
    source: str | None = None,
    others: Literal["tokens", "labels"] = "tokens",
    top: Count | None = 100,
) -> Selection:
    """Choose the units whose mean differs most between a label and the others.

    The others are one label (`source`, as in CLaS-Bench, arXiv 2601.08331), all their tokens
    together (Multilingual Steering by Design, arXiv 2605.23036), or the mean of the labels' means
    (arXiv 2505.05111). A label without tokens is skipped.

    Args:
        stats: one item per dictionary. It is read once, so it may load each item when asked.
        source: the label to compare with, in any code system. It has no units itself.
        others: without a source, weigh the other labels by their tokens, or equally.
        top: greatest number of units per label and dictionary; None: no limit.

    Returns:
        The selection. The score is minus the absolute difference, so units that are lower in the
        label than in the others are included.

    Raises:
        UserError: the statistics cannot be pooled, the source is not among their labels, or fewer
            than two labels have tokens.
    """
    parts = []
    for each in stats:
        if source is not None:
            source = own_label(source, each.labels) or source
        parts.append(difference_part(each, source=source, others=others, top=top))
    return Selection.build(parts, parameters={"source": source})


METHOD = Method(rank=diffmean, pools=is_sae, needs="SAEs", in_run=False)


def difference_part(
    stats: Stats,
    *,
    source: str | None = None,
    others: Others = "labels",
    top: int | None,
    lower: bool = True,
) -> Part:
    """The units of one dictionary whose means differ most, `top` per label.

    `lower`: include units that are lower in the label than in the others.

    Raises UserError as `mean_difference`, and where there is no label to compare.
    """
    means, units, labels, scores = stats.mean().cpu(), [], [], []
    for label in stats.counted_labels:
        if label == source:
            continue
        difference = mean_difference(stats, label, source, means, others=others)
        difference = difference.abs() if lower else difference
        order = torch.argsort(difference, descending=True, stable=True)[:top]
        order = order[difference[order] > 0]
        units.append(order)
        labels.append(torch.full_like(order, stats.row(label)))
        scores.append(-difference[order])
    if not units:
        raise UserError(
            f"the statistics of {stats.dictionary} have no label to compare; collect two or more"
        )
    return make_part(stats, torch.cat(units), torch.cat(labels), torch.cat(scores))
