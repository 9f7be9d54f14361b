"""`naive-bayes`: multinomial naive Bayes over firing units, read from the statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from saefeat.lid.head import Head
from saefeat.lid.heads import HeadKind
from saefeat.statistics import Stats


def naive_bayes_head(
    load_stats: Callable[[str], Stats], dictionaries: Sequence[str], labels: Sequence[str]
) -> Head:
    """A head with a uniform prior and one added to each count; no fitting pass.

    Args:
        load_stats: gives the statistics of a dictionary. They are read twice, one at a time.
        dictionaries: ids of the dictionaries that the head reads.
        labels: those of the statistics.
    """
    head = Head("naive-bayes", tuple(labels), {}, {}, probabilistic=True)
    total, width = torch.zeros(len(labels), dtype=torch.float64), 0
    for each in map(load_stats, dictionaries):
        total += each.fired.double().sum(1)
        width += each.width
    for name in dictionaries:
        each = load_stats(name)
        log_p = torch.log((each.fired.double() + 1) / (total + width)[:, None])
        head.units[name] = np.arange(each.width)
        head.counts[name] = log_p.T.numpy()
    return head


HEAD = HeadKind(
    "multinomial, read from the statistics",
    lambda data: naive_bayes_head(data.load_stats, data.dictionaries, data.labels),
    place=1,
    fit_bytes=lambda size: 2 * 8 * size.width * size.labels,
)
