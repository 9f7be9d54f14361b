"""LangFIR: features of a label's text that random tokens do not have (arXiv 2604.03532)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saefeat.methods import Count, Method, Rate, is_sae, records_parameters
from saefeat.ranking import Part, make_part
from saefeat.selection import Selection
from saefeat.statistics import Stats


@records_parameters("langfir")
def langfir(
    stats: Sequence[Stats],
    control: Sequence[Stats],
    *,
    example_rate: Rate = 0.98,
    random_rate: Rate = 0.1,
    top: Count | None = None,
) -> Selection:
    """Choose the units that are active in a label's texts and not in sequences of random tokens.

    A unit is active in an example if it fires on one of its tokens at least. It belongs to a label
    if it is active in at least `example_rate` of the label's examples, and in less than
    `random_rate` of the random sequences. Other labels play no part: one label is enough, and
    labels share the units of what all natural text has. A label without examples has no units.

    The paper gives no thresholds, but fewer than five features per label. The defaults come near it
    on the three SAEs of `saefeat demo` (Gemma-3-270m, 15 languages, 100 sequences): 1 to 54
    features per label, median 9, that is 3 per SAE. `example_rate=0.9` gives a median of 48.

    Args:
        stats: one item per dictionary. It is read once, so it may load each item when asked.
        control: statistics of the same dictionaries on random sequences, in the same order.
        top: greatest number of units per label and dictionary; None: no limit.

    Returns:
        The selection. The score is minus the difference of the two shares of active examples.

    Raises:
        UserError: the statistics cannot be pooled.
    """
    pairs = zip(stats, control, strict=True)
    return Selection.build([_part(*pair, example_rate, random_rate, top) for pair in pairs])


METHOD = Method(
    rank=langfir, pools=is_sae, needs="SAEs", in_run=False, control=True, sized=lambda n: {"top": n}
)


def _part(
    stats: Stats, control: Stats, example_rate: float, random_rate: float, top: int | None
) -> Part:
    """The chosen rows of one dictionary."""
    active, random = active_share(stats), active_share(control).amax(0)
    chosen = (active >= example_rate) & (random < random_rate)
    units, labels, scores = [], [], []
    for k, own in enumerate(chosen):
        unit = own.nonzero().flatten()
        score = random[unit] - active[k, unit]
        order = score.argsort(stable=True)[:top]
        units.append(unit[order])
        labels.append(torch.full_like(order, k))
        scores.append(score[order])
    return make_part(stats, torch.cat(units), torch.cat(labels), torch.cat(scores))


def active_share(stats: Stats) -> Tensor:
    """The share of examples in which each unit is active: float64 [K, width]."""
    return stats.fired_examples.cpu().double() / stats.examples.cpu().clamp(min=1)[:, None]
