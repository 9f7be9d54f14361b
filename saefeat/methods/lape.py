"""LAPE, language activation probability entropy (Tang et al., arXiv 2402.16438)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from saefeat.io import UserError
from saefeat.selection import Part, Selection, part
from saefeat.statistics import Stats


def entropy(p: Tensor) -> Tensor:
    """Entropy (natural log) of each unit's firing probabilities over labels. p[K, n] float32 -> [n] float64.

    A unit that never fires has entropy 0, as published: a filter has to leave it out. The result is
    computed in float64 and does not depend on the order of the labels or of the units, so equal
    probabilities give equal entropies.
    """
    rows = p.sort(dim=0).values  # one order of summation whatever the order of the labels
    total = torch.zeros(p.shape[1], dtype=torch.float64, device=p.device)
    for row in rows:
        total += row
    total = torch.where(total > 0, total, 1.0)
    out = torch.zeros_like(total)
    for row in rows:
        out += torch.special.entr(row / total)
    return out


def quantile(values: Tensor, rate: float) -> Tensor:
    """The order statistic number round(rate * n) (from 1; half to even) of all n values; no interpolation."""
    flat = values.flatten()
    place = min(max(round(rate * flat.numel()), 1), flat.numel())
    return flat.kthvalue(place).values


def lape(
    stats: Sequence[Stats],
    *,
    top_rate: float = 0.01,
    filter_rate: float = 0.95,
    activation_bar_ratio: float = 0.95,
) -> Selection:
    """The units with the lowest entropy of firing probability over labels, pooled over all given dictionaries.

    A unit must fire, for some label, more often than the `filter_rate` quantile of all
    probabilities; of those the round(top_rate * all units) with the lowest entropy are kept (fewer
    where fewer pass). A kept unit belongs to every label for which it fires more often than the
    `activation_bar_ratio` quantile; labels may share units. The score is the entropy, the rank
    within a label its order. A label without tokens has no probabilities: it takes no part, and the
    others come out as if it were not there.

    `stats` is gone through twice; it may load each item when asked. Raises UserError when the
    statistics cannot be pooled or hold no tokens.
    """
    starts, p, label_of = _pooled(stats)
    candidates = (p > quantile(p, filter_rate)).any(0).nonzero().flatten()
    scores = entropy(p[:, candidates])
    order = scores.argsort(stable=True)[: round(top_rate * p.shape[1])]
    kept, scores = candidates[order], scores[order]
    owned = p[:, kept] > quantile(p, activation_bar_ratio)

    parts = [_part(each, starts[each.dictionary], kept, scores, owned, label_of) for each in stats]
    parameters = {
        "top_rate": top_rate,
        "filter_rate": filter_rate,
        "activation_bar_ratio": activation_bar_ratio,
    }
    return Selection.build("lape", parameters, parts)


def _pooled(stats: Sequence[Stats]) -> tuple[dict[str, int], Tensor, Tensor]:
    """First column of each dictionary, p[k, all units], and which labels its k rows are (those with tokens)."""
    pool: list[tuple[str, Tensor]] = []
    counted = torch.zeros(0, dtype=torch.bool)
    labels: tuple[str, ...] = ()
    for each in stats:
        if not pool:
            labels, counted = each.labels, torch.zeros(len(each.labels), dtype=torch.bool)
        if each.labels != labels:
            raise UserError(
                f"the labels of {each.dictionary} are not those of the first dictionary; rank them apart"
            )
        counted |= each.tokens.cpu() > 0
        pool.append((each.dictionary, each.probability().cpu()))
    if not counted.any():
        raise UserError("no label has tokens; collect statistics of some text first")
    pool.sort(
        key=lambda item: item[0]
    )  # the order of columns is that of ties: dictionary, then unit
    ends = itertools.accumulate((values.shape[1] for _, values in pool), initial=0)
    starts = {name: start for (name, _), start in zip(pool, ends, strict=False)}
    return (
        starts,
        torch.cat([values[counted] for _, values in pool], dim=1),
        counted.nonzero().flatten(),
    )


def _part(
    stats: Stats, start: int, kept: Tensor, scores: Tensor, owned: Tensor, label_of: Tensor
) -> Part:
    """The rows of one dictionary, whose units are start, start + 1, ... of the pool that kept[m] counts in."""
    mine = ((kept >= start) & (kept < start + stats.width)).nonzero().flatten()
    row, column = owned[:, mine].nonzero(as_tuple=True)
    return part(stats, kept[mine][column] - start, label_of[row], scores[mine][column])
