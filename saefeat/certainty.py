"""How sure a selection is: q-values, intervals and stability, by resampling examples.

The tables `responses` have the firing tokens of each example. Tokens of one text are not
independent, so examples are permuted and resampled. Counts are whole numbers below 2^24, which
float32 adds without error: the same seed gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from saefeat.codes import STEP
from saefeat.corpora.corpus import half_of
from saefeat.methods import METHODS
from saefeat.progress import Say, quiet, track
from saefeat.selection import Selection
from saefeat.statistics import Stats
from saefeat.statistics.by_example import Table, chunks

PERMUTATIONS, RESAMPLES = 1000, 200
_TOGETHER = 16  # permutations that are multiplied at once
_ROUNDING = 1e-5  # of entropies in float32, which are equal if they differ by less
_BOUNDS = (0.025, 0.975)
MEASURES = (
    "probability_low",
    "probability_high",
    "entropy",
    "entropy_low",
    "entropy_high",
    "p",
    "q",
)
COLUMNS = ("label", "rank", "dictionary", "unit", "probability", *MEASURES)


@dataclass(frozen=True)
class Certainty:
    """What resampling says of a selection.

    Attributes:
        table: a row per row of the selection, in its order: label, rank, dictionary, unit;
            probability with its interval; entropy (nats, of the unit over the labels) with its
            interval; p and q of the unit.
        stability: by label, the share of the units that both halves of the examples choose, of
            those that at least one chooses; NaN where neither chooses one. Empty where the rule
            cannot be applied to halves.
        tested: float64 [n], the q-values of all units that were tested, chosen or not. Most units
            differ between labels in some way, so `significant` needs this control.
    """

    table: pa.Table
    stability: dict[str, float]
    tested: np.ndarray

    def significant(self, level: float = 0.05) -> tuple[float, float]:
        """The share of the rows, and of all tested units, with q below a level; NaN without any."""
        chosen, tested = (
            float((q < level).mean()) if len(q) else float("nan")
            for q in (self.table["q"].to_numpy(), self.tested)
        )
        return chosen, tested


# --------------------------------------------------------------------------- permutation test


def specificity_p(
    table: Table, *, permutations: int = PERMUTATIONS, seed: int = 0, bar: Any = None
) -> Tensor:
    """Test each unit for being equally probable in all labels.

    The labels of the examples are permuted. The statistic is the entropy of the firing
    probabilities over the labels: the p-value is the share of the permutations (the observed labels
    among them) with an entropy as low as the observed one, or lower.

    Args:
        table: the table `responses` of a dictionary.
        bar: gets `update(units)` of each part of the work (see `progress.track`).

    Returns:
        float64 [width]; 1 for a unit that never fires.
    """
    labels = table.counted(table.labels)
    tokens = table.read("tokens").float()
    found = []
    for units in chunks(table.width, len(tokens)):
        fired = table.read("fired", units.start, units.stop).float()
        observed = entropies(_probabilities(_one_hot(table.label[None], labels), fired, tokens))[0]
        lower = torch.ones_like(observed, dtype=torch.float64)
        for batch in _permutations(table.label, permutations, seed):
            permuted = entropies(_probabilities(_one_hot(batch, labels), fired, tokens))
            lower += (permuted <= observed + _ROUNDING).sum(0)
        p = lower / (permutations + 1)
        found.append(torch.where(fired.amax(0) > 0, p, 1.0))
        if bar is not None:
            bar.update(len(units))
    return torch.cat(found)


def q_values(p: Tensor, tested: Tensor) -> Tensor:
    """The false discovery rates of Benjamini and Hochberg (1995), of p-values float64 [n].

    `tested`: bool [n], which of them are tests. The q-value of the others is 1.
    """
    q = torch.ones_like(p)
    values, order = p[tested].sort(stable=True)
    ranks = torch.arange(1, len(values) + 1, dtype=torch.float64)
    rates = (values * len(values) / ranks).flip(0).cummin(0).values.flip(0).clamp(max=1)
    q[tested.nonzero().flatten()[order]] = rates
    return q


def entropies(p: Tensor) -> Tensor:
    """Entropy over labels in nats, of probabilities [..., K, units]; 0 where all are 0."""
    total = p.sum(-2, keepdim=True)
    return torch.special.entr(p / total.clamp(min=1e-30)).sum(-2)


def _permutations(label: Tensor, number: int, seed: int) -> Iterator[Tensor]:
    """Permuted labels int64 [m, n], a few at a time."""
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, number, _TOGETHER):
        rows = range(first, min(first + _TOGETHER, number))
        yield torch.stack([label[torch.randperm(len(label), generator=generator)] for _ in rows])


def _one_hot(label: Tensor, labels: Sequence[int]) -> Tensor:
    """Which examples are of each of some labels: float32 [m, k, n] of labels [m, n]."""
    return (label[:, None] == torch.tensor(labels)[:, None]).float()


def _probabilities(weights: Tensor, fired: Tensor, tokens: Tensor) -> Tensor:
    """Firing probabilities float32 [m, k, units], of weights [m, k, n] of examples."""
    m, k, n = weights.shape
    sums = (weights.view(m * k, n) @ fired).view(m, k, -1)
    return sums / (weights @ tokens).clamp(min=1)[..., None]


# --------------------------------------------------------------------------- bootstrap


def bootstrap(
    table: Table, units: Tensor, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Percentile intervals (95 %) over examples, resampled within their labels.

    Args:
        table: the table `responses` of a dictionary.
        units: int64 [m].

    Returns:
        Bounds of the firing probability in each label, [2, K, m], NaN for labels without examples;
        bounds of the entropy over the labels, [2, m].
    """
    labels, tokens = table.counted(table.labels), table.read("tokens").float()
    weights = _resampled(table.label, labels, resamples, seed)
    probability = torch.full((2, len(table.labels), len(units)), torch.nan)
    spread = torch.empty(2, len(units))
    place = {unit: at for at, unit in enumerate(units.tolist())}
    bounds = torch.tensor(_BOUNDS)
    for part in chunks(table.width, len(tokens), cells=2**22):
        mine = [unit for unit in part if unit in place]
        if not mine:
            continue
        at = torch.tensor([place[unit] for unit in mine])
        fired = table.read("fired", part.start, part.stop)[:, [u - part.start for u in mine]]
        p = _probabilities(weights, fired.float(), tokens)
        probability[:, torch.tensor(labels)[:, None], at] = p.quantile(bounds, dim=0)
        spread[:, at] = entropies(p).quantile(bounds, dim=0)
    return probability, spread


def _resampled(label: Tensor, labels: Sequence[int], number: int, seed: int) -> Tensor:
    """How often each example of each label is drawn: float32 [number, k, n]."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(number, len(labels), len(label))
    for k, own in enumerate(labels):
        rows = (label == own).nonzero().flatten()
        drawn = rows[torch.randint(len(rows), (number, len(rows)), generator=generator)]
        weights[:, k].scatter_add_(1, drawn, torch.ones(drawn.shape))
    return weights


# --------------------------------------------------------------------------- halves


def half(table: Table, seed: int, number: int) -> Table:
    """The examples of a half (0 or 1), by the hash of their ids."""
    return table.of_rows(torch.tensor([half_of(i, seed) == number for i in table.ids]))


def stats_of(stats: Stats, table: Table) -> Stats:
    """Statistics of the examples in a table `responses`.

    They have what rules read: tokens, examples, firing tokens and examples, and totals of the means
    (float32). Sums of firing values are the totals. Least and greatest values are unknown.
    """
    made = Stats.zeros(stats.labels, stats.width, signed="total" in stats.tensors, **stats.header)
    hot = _one_hot(table.label[None], range(len(stats.labels)))[0]
    tokens = table.read("tokens")
    made.tensors["tokens"] += (hot @ tokens.float()).long()
    made.tensors["examples"] += hot.sum(1).long()
    for units in chunks(stats.width, len(tokens)):
        span = slice(units.start, units.stop)
        fired = table.read("fired", span.start, span.stop)
        total = table.read("mean", span.start, span.stop).double() * tokens[:, None]
        made.tensors["fired"][:, span] += (hot @ fired.float()).long()
        made.tensors["fired_examples"][:, span] += (hot @ (fired > 0).float()).long()
        for name in ("sum", "total"):
            if name in made.tensors:
                made.tensors[name][:, span] += (hot.double() @ total / STEP).round().long()
    return made


def stability(selection: Selection, halves: Sequence[Selection]) -> dict[str, float]:
    """By label, the intersection over the union of the units that two halves choose."""
    sets = [{label: set() for label in selection.labels} for _ in halves]
    for own, chosen in zip(sets, halves, strict=True):
        for dictionary, unit, label in chosen.cells():
            own[label].add((dictionary, unit))
    one, other = sets
    found = {}
    for label in selection.labels:
        union = one[label] | other[label]
        both = one[label] & other[label]
        found[label] = len(both) / len(union) if union else float("nan")
    return found


# --------------------------------------------------------------------------- all of it


def measure_certainty(
    selection: Selection,
    stats: Sequence[Stats],
    responses: Sequence[Table],
    tables: Sequence[Sequence[Table]] | None = (),
    control: Sequence[Sequence[Stats]] = (),
    *,
    permutations: int = PERMUTATIONS,
    resamples: int = RESAMPLES,
    seed: int = 0,
    say: Say = quiet,
) -> Certainty:
    """Measure how sure the units of a selection are.

    Every unit of the selection's dictionaries that fires at all is tested, chosen or not, so that
    the q-values allow for the choice. The stability is that of the rule, with the parameters of the
    selection, on two halves of the examples.

    Args:
        stats: of the selection's dictionaries.
        responses: the tables of the same dictionaries, in the same order.
        tables: for each further accumulator of the rule, its tables in the same order; None where
            one has no rows by example. The stability is then empty.
        control: [statistics of the dictionaries on random tokens], if the rule reads them.

    Raises:
        UserError: a label has too few examples.
    """
    with track(say, "certainty", sum(table.width for table in responses), "units") as bar:
        p = [
            specificity_p(table, permutations=permutations, seed=seed, bar=bar)
            for table in responses
        ]
    fires = torch.cat([(each.fired > 0).any(0).cpu() for each in stats])
    every = q_values(torch.cat(p), fires)
    q, tested = every.split([len(part) for part in p]), every[fires].numpy()
    of = {table.dictionary: at for at, table in enumerate(responses)}
    owner = np.array([of[name] for name in selection.table["dictionary"].to_pylist()], np.int64)
    columns = {name: np.full(len(selection), np.nan) for name in MEASURES}
    for at, (each, table) in enumerate(zip(stats, responses, strict=True)):
        rows = np.flatnonzero(owner == at)
        found = _measure_rows(selection.table.take(rows), each, table, resamples, seed)
        unit = found.pop("unit")
        found |= {"p": p[at][unit], "q": q[at][unit]}
        for name, values in found.items():
            columns[name][rows] = values.numpy()
    kept = {name: selection.table[name] for name in COLUMNS[: -len(MEASURES)]}
    if tables is None:
        return Certainty(pa.table(kept | columns), {}, tested)
    given = (stats, responses, tables, control)
    halves = [_rank_half(selection, *given, seed, n) for n in (0, 1)]
    return Certainty(pa.table(kept | columns), stability(selection, halves), tested)


def _measure_rows(
    rows: pa.Table, stats: Stats, table: Table, resamples: int, seed: int
) -> dict[str, Tensor]:
    """The unit, the entropy and the bounds of each row, of one dictionary: [m] each."""
    unit = torch.tensor(rows["unit"].to_pylist(), dtype=torch.int64)
    label = torch.tensor([stats.row(name) for name in rows["label"].to_pylist()], dtype=torch.int64)
    units, column = unit.unique(return_inverse=True)
    probability, spread = bootstrap(table, units, resamples=resamples, seed=seed)
    return {
        "unit": unit,
        "probability_low": probability[0, label, column],
        "probability_high": probability[1, label, column],
        "entropy": entropies(stats.probability().cpu()[:, unit]),
        "entropy_low": spread[0, column],
        "entropy_high": spread[1, column],
    }


def _rank_half(
    selection: Selection,
    stats: Sequence[Stats],
    responses: Sequence[Table],
    tables: Sequence[Sequence[Table]],
    control: Sequence[Sequence[Stats]],
    seed: int,
    number: int,
) -> Selection:
    """The selection by the same rule on a half of the examples."""
    rule = METHODS[selection.header["method"]]
    some = [
        stats_of(each, half(table, seed, number))
        for each, table in zip(stats, responses, strict=True)
    ]
    others = [[half(table, seed, number) for table in each] for each in tables]
    return rule.rank(some, *others, *control, **selection.header["parameters"])
