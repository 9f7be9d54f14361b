"""Feature difference of means: the units that carry a label's difference from a source, for steering.

The difference of mean codes is the SAE-DiffMean direction of CLaS-Bench (arXiv 2601.08331); the bar
on the entropy, SAE-LAPE's measure (arXiv 2507.11230), keeps what is the language's and leaves out
the content of the texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from saefeat.io import UserError
from saefeat.labels import own_label
from saefeat.methods.lape import entropy
from saefeat.selection import Selection, part
from saefeat.statistics import Stats

_ROUNDING = 1e-12  # of an entropy: that of equal probabilities may come out a little above ln K


def feature_diffmean(
    stats: Sequence[Stats],
    *,
    source: str | None = None,
    top: int | None = 100,
    entropy_ratio: float = 0.886,
) -> Selection:
    """Units of low entropy whose mean differs most between a label and the source, of each given dictionary.

    Args:
        stats: one item a dictionary; gone through once, so it may load each item when asked.
        source: the label that is compared with, in any code system; None: the mean over the other
            labels. It has no units itself.
        top: at most this many units a label and dictionary, None for all.
        entropy_ratio: keep units whose entropy of firing probabilities over labels is at most this
            share of the greatest possible one, ln K.

    A label without tokens takes no part. A unit that never fires is not chosen: its entropy, 0, is
    a convention.

    Returns:
        The selection. score is minus the absolute difference of means (over all tokens), so that
        the greatest difference ranks first; units that are lower in the label than in the source
        are among them.

    Raises:
        UserError: the statistics cannot be pooled, the source is not among their labels, or fewer
            than two labels have tokens.
    """
    parts = []
    for each in stats:
        if source is not None:
            own = own_label(source, each.labels)
            if own is None:
                raise UserError(
                    f"there is no label {source!r} in the statistics; they have {', '.join(each.labels)}"
                )
            source = own
        units, labels, values = [], [], []
        counted = (each.tokens > 0).tolist()
        bar = entropy_ratio * math.log(max(sum(counted), 2)) + _ROUNDING
        specific = (entropy(each.probability().cpu()) <= bar) & (each.fired.cpu() > 0).any(0)
        unit = specific.nonzero().flatten()
        means = each.mean().cpu()[:, unit]
        for k, label in enumerate(each.labels):
            if label == source or not counted[k]:
                continue
            difference = mean_difference(each, label, source, means).abs()
            order = torch.argsort(difference, descending=True, stable=True)[:top]
            order = order[difference[order] > 0]
            units.append(unit[order])
            labels.append(torch.full_like(order, k))
            values.append(-difference[order])
        if not units:
            raise UserError(
                f"the statistics of {each.dictionary} have no label to compare; collect two or more"
            )
        parts.append(part(each, torch.cat(units), torch.cat(labels), torch.cat(values)))
    parameters = {"source": source, "top": top, "entropy_ratio": entropy_ratio}
    return Selection.build("feature-diffmean", parameters, parts)


def mean_difference(
    stats: Stats, label: str, source: str | None = None, means: Tensor | None = None
) -> Tensor:
    """Mean values in the label minus those in the source, over all tokens: float64 [width], on the CPU.

    source None: the mean over the other labels that have tokens, each weighing the same. Of the
    identity at a site this is the difference of means that steers it. Raises UserError for a label
    that is not there or has no tokens, and where there is nothing to compare with. `means`: columns
    of `stats.mean()`, where they are known already.
    """
    counted = {name: n > 0 for name, n in zip(stats.labels, stats.tokens.tolist(), strict=True)}
    for name in (label, source):
        if name is not None and name not in counted:
            raise UserError(
                f"there is no label {name!r} in the statistics; they have {', '.join(stats.labels)}"
            )
        if name is not None and not counted[name]:
            raise UserError(
                f"the label {name} has no tokens in the statistics of {stats.dictionary}"
            )
    means = stats.mean().cpu() if means is None else means
    others = [
        k
        for k, name in enumerate(stats.labels)
        if name != label and counted[name] and source in (None, name)
    ]
    if not others:
        raise UserError(
            f"there is nothing to compare {label} with; give statistics of two labels or more"
        )
    return means[stats.labels.index(label)] - means[others].mean(0)
