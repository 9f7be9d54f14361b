"""Difference of means of units between a label and the others, in its three published forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from saefeat.labels import own_label
from saefeat.methods import Count, Method, is_sae, records_parameters
from saefeat.methods.feature_diffmean import difference_part
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


METHOD = Method(rank=diffmean, pools=is_sae, needs="SAEs", in_run=False, sized=lambda n: {"top": n})
