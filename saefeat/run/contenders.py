"""Rules at equal numbers of units: what each chooses, also on two halves of the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saefeat.artefacts.comparison import RulePair
from saefeat.certainty import half, stability
from saefeat.io import UserError
from saefeat.methods import METHODS, is_hidden_neurons, is_sae
from saefeat.overlap import rule_overlap
from saefeat.progress import Say, quiet, track
from saefeat.run.stages import rank, read_beside
from saefeat.selection import Selection
from saefeat.statistics import ACCUMULATORS, Stats
from saefeat.statistics.by_example import ByExample
from saefeat.statistics.files import StatsFiles, collected_beside, list_stats, stats_file

UNITS = 50  # per label
POOLS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "features": is_sae,
    "neurons": is_hidden_neurons,
    "mlp_hidden": lambda header: header.get("site", "").startswith("mlp_hidden@"),
}


@dataclass(frozen=True)
class Contender:
    """What a rule chooses among the dictionaries of a pool.

    Attributes:
        selection: its first units of each label; fewer where the rule chooses fewer.
        stability: by label, the intersection over the union of the units that the rule chooses on
            each of two halves of the examples; NaN where it chooses none. None where there are no
            statistics of halves, or one has too few examples.
    """

    pool: str
    method: str
    selection: Selection
    stability: dict[str, float] | None


@dataclass(frozen=True)
class Left:
    """A rule that cannot choose among the dictionaries of a pool, why, and what would help."""

    pool: str
    method: str
    reason: str
    command: str  # "" where nothing helps


def find_contenders(
    source: Path, *, units: int = UNITS, methods: Sequence[str] | None = None, say: Say = quiet
) -> tuple[list[Contender], list[Left]]:
    """Rank by every rule, among all neurons and among all features.

    Each rule has its published parameters, but for the number of units.

    Args:
        source: a directory of statistics.
        units: greatest number per label.
        methods: the rules; default all.

    Returns:
        The contenders, pool by pool, and the rules that the statistics do not allow.

    Raises:
        UserError: an unknown method, one of `methods` that the statistics do not allow, or no
            statistics of SAEs or neurons.
    """
    headers = [Stats.read_header(path)["dictionary"] for path in list_stats(source).values()]
    found = {name: [h["id"] for h in headers if has(h)] for name, has in POOLS.items()}
    pools = {name: ids for name, ids in found.items() if ids}
    if not pools:
        raise UserError(f"{source} has no statistics of SAEs or hidden neurons; collect them")
    names = list(dict.fromkeys(METHODS if methods is None else methods))
    if unknown := [name for name in names if name not in METHODS]:
        known = ", ".join(METHODS)
        raise UserError(f"unknown method {unknown[0]!r}; choose from {known}", "methods")
    chosen: list[Contender] = []
    left: list[Left] = []
    with track(say, "compare: rank", len(pools) * len(names), "rules") as bar:
        for pool, ids in pools.items():
            for name in names:
                try:
                    chosen.append(_contend(source, pool, name, ids, units))
                except UserError as error:
                    reason = str(error).replace(str(source), "the directory")
                    left.append(Left(pool, name, reason, error.command))
                bar.update()
    for name in methods or ():
        if name not in {each.method for each in chosen}:
            first = next(each for each in left if each.method == name)
            raise UserError(f"{name} cannot be compared: {first.reason}", command=first.command)
    return chosen, left


def _contend(source: Path, pool: str, method: str, ids: Sequence[str], units: int) -> Contender:
    parameters = METHODS[method].sized(units)
    selection = rank(source, method, dictionaries=ids, **parameters)
    stable = None
    with suppress(UserError):  # no halves, or too few examples in one of them
        halves = [each.head(units) for each in _rank_halves(source, selection)]
        stable = stability(selection, halves) if halves else None
    return Contender(pool, method, selection.head(units), stable)


def _rank_halves(source: Path, selection: Selection) -> Iterator[Selection]:
    """The selections by the same rule on two halves.

    There are none for a rule that reads statistics without parts by example.

    Raises UserError where halves were not collected, or one has too few examples.
    """
    method, parameters = selection.header["method"], selection.header["parameters"]
    rule, names = METHODS[method], sorted(selection.dictionaries)
    paths = [stats_file(source, name) for name in names]
    headers = [Stats.read_header(path) for path in paths]
    tables = [issubclass(ACCUMULATORS[name], ByExample) for name in rule.accumulators]
    if not all(tables):
        return
    counts = collected_beside(source, "halves", headers)
    others = read_beside(source, method, headers)
    for number in (0, 1):
        here = [
            [half(table, headers[0]["policy"]["seed"], number) for table in each]
            for each in others[: len(tables)]
        ]
        stats = _OfHalf(StatsFiles(paths), counts, number)
        yield rule.rank(stats, *here, *others[len(tables) :], **parameters)


class _OfHalf(Sequence[Stats]):
    """The statistics of a half, which are read each time they are asked for, one at a time."""

    def __init__(self, whole: Sequence[Stats], halves: Sequence[Any], number: int) -> None:
        self.whole, self.halves, self.number = whole, halves, number

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: Any) -> Any:  # slices are not needed
        return self.halves[index].split(self.whole[index])[self.number]


def overlaps(contenders: Sequence[Contender]) -> list[RulePair]:
    """The overlap of every two contenders of a pool: means over labels with units of either.

    Returns:
        Rows {pool, method, other, iou, expected}: the intersection over the union of their units,
        and what is expected of random sets of their sizes.
    """
    rows: list[RulePair] = []
    for at, one in enumerate(contenders):
        for other in contenders[at + 1 :]:
            if other.pool != one.pool:
                continue
            found = rule_overlap(one.selection, other.selection)
            assert found is not None  # a pool has one list of dictionaries and of labels
            some = found["either"] > 0
            rows.append(
                {
                    "pool": one.pool,
                    "method": one.method,
                    "other": other.method,
                    "iou": float(found["iou"][some].mean()) if some.any() else 0.0,
                    "expected": float(found["expected_iou"][some].mean()) if some.any() else 0.0,
                }
            )
    return rows
