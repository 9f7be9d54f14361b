"""Feature difference of means: units that carry a label's difference from a source, for steering.

The difference of mean codes is the SAE-DiffMean direction of CLaS-Bench (arXiv 2601.08331). The
limit on the entropy, which is SAE-LAPE's measure (arXiv 2507.11230), keeps the units that tell
languages apart and excludes those that follow the content of the texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from saefeat.codes import STEP
from saefeat.io import UserError
from saefeat.labels import own_label
from saefeat.methods import Count, Method, Rate, is_sae, records_parameters
from saefeat.methods.lape import entropy
from saefeat.ranking import Part, make_part
from saefeat.selection import Selection
from saefeat.statistics import Stats

Others = Literal["labels", "tokens"]  # how other labels are weighted
_ROUNDING = 1e-12  # the computed entropy of equal probabilities may slightly exceed ln K


@records_parameters("feature-diffmean")
def feature_diffmean(
    stats: Sequence[Stats],
    *,
    source: str | None = None,
    top: Count | None = 100,
    entropy_ratio: Rate = 0.886,
) -> Selection:
    """Choose units of low entropy whose mean differs most between a label and the source.

    A label without tokens is skipped. A unit that never fires is not chosen: its entropy of 0 is a
    convention.

    Args:
        stats: one item per dictionary. It is read once, so it may load each item when asked.
        source: the label to compare with, in any code system. It has no units itself. None: the
            mean over the other labels.
        top: greatest number of units per label and dictionary; None: no limit.
        entropy_ratio: keep units whose entropy of firing probabilities over labels is at most this
            share of the greatest possible entropy, ln K.

    Returns:
        The selection. The score is minus the absolute difference of the means over all tokens, so
        the greatest difference ranks first. Units that are lower in the label than in the source
        are included.

    Raises:
        UserError: the statistics cannot be pooled, the source is not among their labels, or fewer
            than two labels have tokens.
    """
    parts = []
    for each in stats:
        if source is not None:  # `mean_difference` refuses an unknown one
            source = own_label(source, each.labels) or source
        few = _specific(each, entropy_ratio)
        parts.append(difference_part(each, source=source, top=top, among=few))
    return Selection.build(parts, parameters={"source": source})


METHOD = Method(rank=feature_diffmean, pools=is_sae, needs="SAEs", sized=lambda n: {"top": n})


def _specific(stats: Stats, entropy_ratio: float) -> Tensor:
    """The units of one dictionary whose entropy is low: int64 [m]."""
    limit = entropy_ratio * math.log(max(int(stats.counted.sum()), 2)) + _ROUNDING
    specific = (entropy(stats.probability().cpu()) <= limit) & (stats.fired.cpu() > 0).any(0)
    return specific.nonzero().flatten()


def difference_part(
    stats: Stats,
    *,
    top: int | None,
    source: str | None = None,
    others: Others = "labels",
    lower: bool = True,
    among: Tensor | None = None,
) -> Part:
    """The units of one dictionary whose means differ most, `top` per label.

    Args:
        lower: include units that are lower in the label than in the others.
        among: int64 [m], choose among these units; only with the others weighted by labels.

    Raises UserError as `mean_difference`, and where there is no label to compare.
    """
    unit = torch.arange(stats.width) if among is None else among
    means = stats.mean().cpu() if among is None else stats.mean().cpu()[:, among]
    units, labels, scores = [], [], []
    for label in stats.counted_labels:
        if label == source:
            continue
        difference = mean_difference(stats, label, source, means, others=others)
        difference = difference.abs() if lower else difference
        order = torch.argsort(difference, descending=True, stable=True)[:top]
        order = order[difference[order] > 0]
        units.append(unit[order])
        labels.append(torch.full_like(order, stats.row(label)))
        scores.append(-difference[order])
    if not units:
        raise UserError(
            f"the statistics of {stats.dictionary} have no label to compare; collect two or more"
        )
    return make_part(stats, torch.cat(units), torch.cat(labels), torch.cat(scores))


def mean_difference(
    stats: Stats,
    label: str,
    source: str | None = None,
    means: Tensor | None = None,
    *,
    others: Others = "labels",
) -> Tensor:
    """Mean values in the label minus those in the source, over all tokens.

    Of the identity at a site this is the difference of means that steers it.

    Args:
        source: None: the mean over the other labels that have tokens, weighted by `others`.
        others: "labels": with equal weights. "tokens": by their tokens, so that it is the mean over
            all tokens of the other labels.
        means: [K, n] float64, columns of `stats.mean()`, where they are known already; all of them
            if the others are weighted by tokens.

    Returns:
        float64 [width], or [n] of the given columns, on the CPU.

    Raises:
        UserError: a label is not in the statistics or has no tokens, or there is no label to
            compare with.
    """
    for name in (label, source):
        if name is not None and not stats.counted[stats.row(name)]:
            of = stats.dictionary
            raise UserError(f"the label {name} has no tokens in the statistics of {of}")
    rest = [n for n in stats.counted_labels if n != label and source in (None, n)]
    if not rest:
        raise UserError(
            f"there is nothing to compare {label} with; give statistics of two labels or more"
        )
    means = stats.mean().cpu() if means is None else means
    rows = [stats.row(name) for name in rest]
    if others == "labels":
        return means[stats.row(label)] - means[rows].mean(0)
    # Of exact sums, so that a label that equals the others differs by exactly 0.
    total, tokens = stats.total.cpu()[rows].sum(0), stats.tokens.cpu()[rows].sum()
    return means[stats.row(label)] - total.double() * STEP / tokens
