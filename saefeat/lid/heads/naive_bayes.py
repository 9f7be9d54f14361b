"""`naive-bayes`: multinomial naive Bayes over firing units, read from the statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from saefeat.lid.head import Head
from saefeat.lid.heads import HeadKind
from saefeat.statistics import Stats


def naive_bayes_head(
    load_stats: Callable[[str], Stats],
    dictionaries: Sequence[str],
    labels: Sequence[str],
    units: Mapping[str, Sequence[int]] | None = None,
) -> Head:
    """A head with a uniform prior and one added to each count; no fitting pass.

    Args:
        load_stats: gives the statistics of a dictionary. They are read twice, one at a time.
        dictionaries: ids of the dictionaries that the head reads.
        labels: those of the statistics.
        units: the units of each dictionary that the head reads; default all.
    """
    head = Head("naive-bayes", tuple(labels), {}, {}, probabilistic=True)

    def fired(name: str) -> torch.Tensor:
        counts = load_stats(name).fired.double()
        return counts if units is None else counts[:, list(units[name])]

    total, width = torch.zeros(len(labels), dtype=torch.float64), 0
    for counts in map(fired, dictionaries):
        total += counts.sum(1)
        width += counts.shape[1]
    for name in dictionaries:
        counts = fired(name)
        log_p = torch.log((counts + 1) / (total + width)[:, None])
        every = np.arange(counts.shape[1])
        head.units[name] = every if units is None else np.array(units[name], np.int64)
        head.counts[name] = log_p.T.numpy()
    return head


HEAD = HeadKind(
    "multinomial, read from the statistics",
    lambda data: naive_bayes_head(data.load_stats, data.dictionaries, data.labels),
    place=1,
    fit_bytes=lambda size: 2 * 8 * size.width * size.labels,
)
