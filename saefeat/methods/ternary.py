"""Ternary classes: units of one label, of several, of all (Zhang et al., arXiv 2505.21505)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from saefeat.io import UserError
from saefeat.methods import Method, Rate, is_hidden_neurons, records_parameters
from saefeat.methods.lape import Pool, entropy, quantile
from saefeat.selection import Selection
from saefeat.statistics import Stats

CLASSES = ("specific", "related", "general")
Penalty = Annotated[float, Field(ge=0)]
GREATEST_PENALTY, TOLERANCE = 0.2, 1e-3  # of the search, in units of the normalised score


@records_parameters("ternary")
def ternary(
    stats: Sequence[Stats],
    *,
    top_rate: Rate = 0.01,
    bar_rate: Rate = 0.95,
    penalty: Penalty | None = None,
    normalised: bool = False,
) -> Selection:
    """Choose units of low entropy and high probability, and sort them into three classes.

    All given dictionaries are pooled. The score of a unit is its entropy over the K labels with
    tokens, less `penalty` times its greatest probability. The round(top_rate * all units) lowest
    scores are kept. A unit belongs to the labels for which it fires more often than the `bar_rate`
    quantile of all probabilities: to one (specific), to several (related), to all (general). A kept
    unit without a label is left out. A unit that never fires has the entropy of equal
    probabilities, ln K.

    The header of the selection has the number of units of each class by dictionary, under
    `classes`. `general-all` are all units above the bar for every label, kept or not: a penalty
    that is found by search excludes general units from the kept ones.

    Args:
        stats: one item per dictionary. It is read twice, so it may load each item when asked.
        penalty: lambda of the paper. None: the greatest one, by bisection, for which no kept unit
            is general. The one that was found is recorded as the parameter.
        normalised: divide the entropy by ln K, and the greatest probability by
            (1 + 1/2 + ... + 1/K) / K, as the released code does. Penalties are then comparable
            between numbers of labels.

    Returns:
        The selection. Its score orders the ranks within each label.

    Raises:
        UserError: the statistics cannot be pooled, or fewer than two labels have tokens.
    """
    found = _sort(stats, top_rate, bar_rate, penalty, normalised)
    above = found.above[:, found.chosen]
    parts = [found.pool.part(each, found.chosen, found.scores, above) for each in stats]
    classes = {of: found.pool.count(mask) for of, mask in found.classes().items()}
    return Selection.build(parts, parameters={"penalty": found.penalty}, classes=classes)


def ternary_units(stats: Sequence[Stats]) -> dict[str, dict[str, list[int]]]:
    """The units of each class, with the published parameters: {class: {dictionary: units}}.

    `specific` and `related` are kept units. `general` are all units above the bar for every label,
    because the search for the penalty excludes them from the kept ones. Raises as `ternary`.
    """
    found = _sort(stats, 0.01, 0.95, None, False)
    classes = found.classes()
    classes["general"] = classes.pop("general-all")  # keeps the order of CLASSES
    return {of: found.pool.units(mask) for of, mask in classes.items()}


METHOD = Method(
    rank=ternary,
    pools=is_hidden_neurons,
    needs="neurons at the site mlp_act",
    shown=False,
    in_run=False,
)


def _entropy(p: Tensor) -> Tensor:
    """Entropy in nats, float64 [n]; ln K for a unit that never fires."""
    return torch.where(p.amax(0) > 0, entropy(p), math.log(len(p)))


def _search(passes: Callable[[float], bool]) -> float:
    """The greatest penalty that passes, by bisection; 0 where none does."""
    low, high = 0.0, GREATEST_PENALTY
    while high - low > TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class _Sorted:
    """Units by score and by the labels above the bar.

    Attributes:
        above: bool [labels, all units].
        chosen: int64 [m], the kept units, best first.
        scores: float64 [m], theirs.
    """

    pool: Pool
    above: Tensor
    chosen: Tensor
    scores: Tensor
    penalty: float

    def classes(self) -> dict[str, Tensor]:
        """Class -> its units: bool [all units]."""
        owners, labels = self.above.sum(0), len(self.above)
        kept = torch.zeros_like(owners, dtype=torch.bool)
        kept[self.chosen] = True
        return {
            "specific": kept & (owners == 1),
            "related": kept & (owners > 1) & (owners < labels),
            "general": kept & (owners == labels),
            "general-all": owners == labels,
        }


def _sort(
    stats: Sequence[Stats],
    top_rate: float,
    bar_rate: float,
    penalty: float | None,
    normalised: bool,
) -> _Sorted:
    """Score units and keep the best; see `ternary`."""
    pool = Pool.of(stats)
    labels, units = pool.p.shape
    if labels < 2:
        raise UserError("classes of units need two labels with tokens; collect more labels")
    above = pool.p > quantile(pool.p, bar_rate)
    owners = above.sum(0)
    scale = math.log(labels), sum(1 / n for n in range(1, labels + 1)) / labels
    spread, greatest = _entropy(pool.p) / scale[0], pool.p.amax(0).double() / scale[1]

    def kept(value: float) -> Tensor:
        return (spread - value * greatest).argsort(stable=True)[: round(top_rate * units)]

    # The two scores differ by a factor, so one penalty converts to the other.
    factor = 1.0 if normalised else scale[0] / scale[1]
    if penalty is None:
        found = _search(lambda value: not bool((owners[kept(value)] == labels).any()))
        penalty = found * factor
    chosen = kept(penalty / factor)
    scores = (spread - penalty / factor * greatest) * (1.0 if normalised else scale[0])
    return _Sorted(pool, above, chosen, scores[chosen], penalty)
