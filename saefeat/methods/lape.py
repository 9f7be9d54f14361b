"""LAPE, language activation probability entropy (Tang et al., arXiv 2402.16438)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saefeat.io import UserError
from saefeat.methods import Count, Method, Rate, is_hidden_neurons, records_parameters
from saefeat.ranking import Part, make_part
from saefeat.selection import Selection
from saefeat.statistics import Stats


def entropy(p: Tensor) -> Tensor:
    """Entropy of the firing probabilities of each unit over labels, in nats.

    The result does not depend on the order of the labels or of the units, so equal probabilities
    give equal entropies: each column is summed in ascending order, in float64.

    Args:
        p: [K, n] float32.

    Returns:
        [n] float64. A unit that never fires has entropy 0, as published: a filter has to exclude
        it.
    """
    rows = p.sort(dim=0).values
    total = torch.zeros(p.shape[1], dtype=torch.float64, device=p.device)
    for row in rows:
        total += row
    total = torch.where(total > 0, total, 1.0)
    out = torch.zeros_like(total)
    for row in rows:
        out += torch.special.entr(row / total)
    return out


def quantile(values: Tensor, rate: float) -> Tensor:
    """The order statistic number round(rate * n), half to even, of n values; no interpolation."""
    flat = values.flatten()
    place = min(max(round(rate * flat.numel()), 1), flat.numel())
    return flat.kthvalue(place).values


@records_parameters("lape")
def lape(
    stats: Sequence[Stats],
    *,
    top_rate: Rate = 0.01,
    filter_rate: Rate = 0.95,
    activation_bar_ratio: Rate = 0.95,
    per_label: Count | None = None,
) -> Selection:
    """Choose the units of lowest entropy of firing probability over labels.

    All given dictionaries are pooled. A unit passes if for some label it fires more often than the
    `filter_rate` quantile of all probabilities. Of those, round(top_rate * all units) with the
    lowest entropy are kept (fewer where fewer pass). A kept unit belongs to every label for which
    it fires more often than the `activation_bar_ratio` quantile, so labels may share units. A label
    without tokens has no probabilities: the result for the others is as if it were not there.

    Args:
        stats: one item per dictionary. It is read twice, so it may load each item when asked.
        per_label: keep this number of units for each label, those of lowest entropy among its own,
            whatever `top_rate` is (code-language neurons, arXiv 2506.01074, keep 400).

    Returns:
        The selection. The score is the entropy in nats; it orders the ranks within each label.

    Raises:
        UserError: the statistics cannot be pooled, or hold no tokens.
    """
    pool = Pool.of(stats)
    p = pool.p
    candidates = (p > quantile(p, filter_rate)).any(0).nonzero().flatten()
    scores = entropy(p[:, candidates])
    order = scores.argsort(stable=True)
    if per_label is None:
        order = order[: round(top_rate * p.shape[1])]
    kept = candidates[order]
    owned = p[:, kept] > quantile(p, activation_bar_ratio)
    if per_label is not None:
        owned &= owned.cumsum(1) <= per_label
    return Selection.build([pool.part(each, kept, scores[order], owned) for each in stats])


METHOD = Method(
    rank=lape,
    pools=is_hidden_neurons,
    needs="neurons at the site mlp_act",
    shown=False,
    score="entropy",
    sized=lambda n: {"per_label": n},
)


@dataclass(frozen=True)
class Pool:
    """The probabilities of all dictionaries, for rules that compare units across them.

    Attributes:
        starts: dictionary -> its first column. Columns are in the order in which ties are broken:
            by dictionary, then by unit.
        p: float32 [k, all units], of the k labels with tokens.
        label_of: int64 [k], the positions of these labels.
    """

    starts: dict[str, int]
    p: Tensor
    label_of: Tensor

    @classmethod
    def of(cls, stats: Sequence[Stats]) -> Pool:
        """Pool statistics. Raises UserError where labels differ or none has tokens."""
        pool: list[tuple[str, Tensor]] = []
        labels: tuple[str, ...] = ()
        counted = torch.zeros(0, dtype=torch.bool)
        for each in stats:
            labels, counted = (labels, counted) if pool else (each.labels, each.counted)
            if each.labels != labels:
                raise UserError(
                    f"the labels of {each.dictionary} are not those of the first dictionary; "
                    "rank them apart"
                )
            counted = counted | each.counted
            pool.append((each.dictionary, each.probability().cpu()))
        if not counted.any():
            raise UserError("no label has tokens; collect statistics of some text first")
        pool.sort(key=lambda item: item[0])
        ends = itertools.accumulate((values.shape[1] for _, values in pool), initial=0)
        starts = {name: start for (name, _), start in zip(pool, ends, strict=False)}
        p = torch.cat([values[counted] for _, values in pool], dim=1)
        return cls(starts, p, counted.nonzero().flatten())

    def count(self, mask: Tensor) -> dict[str, int]:
        """Dictionary -> how many of its units are in a mask, bool [all units]."""
        return {name: len(units) for name, units in self.units(mask).items()}

    def units(self, mask: Tensor) -> dict[str, list[int]]:
        """Dictionary -> those of its units that are in a mask, bool [all units]."""
        ends = [*self.starts.values(), len(mask)][1:]
        spans = zip(self.starts.items(), ends, strict=True)
        return {name: mask[start:end].nonzero().flatten().tolist() for (name, start), end in spans}

    def part(self, stats: Stats, kept: Tensor, scores: Tensor, owned: Tensor) -> Part:
        """The chosen rows of one dictionary.

        Args:
            kept: int64 [m], the columns of chosen units.
            scores: float64 [m].
            owned: bool [k, m], whether a unit belongs to a label.
        """
        start = self.starts[stats.dictionary]
        mine = ((kept >= start) & (kept < start + stats.width)).nonzero().flatten()
        row, column = owned[:, mine].nonzero(as_tuple=True)
        unit = kept[mine][column] - start
        return make_part(stats, unit, self.label_of[row], scores[mine][column])
