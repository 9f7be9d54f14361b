"""Chosen units as plain values, their random twins, and the dictionaries that they are of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from saefeat.dictionaries import Dictionary
from saefeat.memory import dictionary_budget, encoders_fit, working_bytes
from saefeat.selection import Selection
from saefeat.statistics import Stats
from saefeat.steering.changes import CannotSteer, Units, open_dictionary
from saefeat.steering.twins import random_units

_SEED = 31  # of the random units

Chosen = dict[str, dict[str, list[int]]]  # label -> dictionary -> units


def chosen_units(selection: Selection) -> Chosen:
    """The units of a selection by label and dictionary; no entry where there are none."""
    found: Chosen = {label: {} for label in selection.labels}
    for dictionary, unit, label in selection.cells():
        found[label].setdefault(dictionary, []).append(unit)
    return found


def random_twins(rows: Sequence[Chosen], read: Callable[[str], Stats]) -> list[Chosen]:
    """As many random units that fire, label by label and dictionary by dictionary, of each row.

    The units that the row has chosen for the label are not among them. Random units are matched in
    number alone, not in how often they fire.
    """
    twins: list[Chosen] = [{label: {} for label in row} for row in rows]
    names = sorted({name for row in rows for units in row.values() for name in units})
    for name in names:
        stats = read(name)  # once: those of wide dictionaries are large
        for number, (row, twin) in enumerate(zip(rows, twins, strict=True)):
            for label, units in row.items():
                if name in units:
                    place = stats.row(label) if label else 0
                    seed = _SEED + 1000 * number + place
                    twin[label][name] = random_units(stats, units[name], seed)
    return twins


def random_unions(rows: Sequence[Chosen], read: Callable[[str], Stats]) -> list[Chosen]:
    """As many random units that fire as all labels of a row have together, by dictionary.

    They stand under one label, because a head reads the units of all labels.
    """
    return random_twins([{"": every_unit([row])} for row in rows], read)


def growing(chosen: Chosen, order: Sequence[str]) -> Chosen:
    """Label -> the units of this label and of all labels before it in an order, ascending."""
    return {
        label: every_unit([{x: chosen.get(x, {}) for x in order[:number]}])
        for number, label in enumerate(order, 1)
    }


def random_growing(rows: Sequence[Chosen], read: Callable[[str], Stats]) -> list[Chosen]:
    """Random twins of rows that grow from label to label (see `growing`).

    Each twin has as many units of every dictionary at each label as its row, and keeps those of the
    labels before. They are other units that fire, of no label of the row. Where too few are left,
    the twin stops growing.
    """
    whole = random_unions(rows, read)
    return [
        {
            label: {name: twin[""][name][: len(some)] for name, some in units.items()}
            for label, units in row.items()
        }
        for row, twin in zip(rows, whole, strict=True)
    ]


def every_unit(rows: Sequence[Chosen]) -> dict[str, list[int]]:
    """Dictionary -> the units that any label of any row has, ascending."""
    found: dict[str, set[int]] = {}
    for row in rows:
        for units in row.values():
            for name, some in units.items():
                found.setdefault(name, set()).update(some)
    return {name: sorted(found[name]) for name in sorted(found)}


def at_sites(
    units: Mapping[str, list[int]], open_one: Callable[[str], Dictionary]
) -> dict[str, list[Units]]:
    """Site -> units of the dictionaries there, from units by dictionary."""
    found: dict[str, list[Units]] = {}
    for name, some in units.items():
        dictionary = open_one(name)
        found.setdefault(dictionary.site, []).append(Units(dictionary, some))
    return found


class Opened:
    """Dictionaries by id. Each is opened once, and moved to the device once.

    Args:
        known: those that are open already, on the CPU.
        header: id -> the header of a dictionary, from which it is opened.
        device: where edits need them.
    """

    def __init__(
        self, known: Iterable[Dictionary], header: Callable[[str], Mapping[str, Any]], device: str
    ) -> None:
        self.known, self.header, self.device = {d.id: d for d in known}, header, device
        self._ready: dict[str, Dictionary] = {}

    def read(self, name: str) -> Dictionary:
        """A dictionary on the CPU."""
        if name not in self.known:
            self.known[name] = open_dictionary(self.header(name))
        return self.known[name]

    def edit(self, name: str) -> Dictionary:
        """A dictionary on the device of the model, for edits that encode."""
        if name not in self._ready:
            self._ready[name] = self.read(name).to(self.device)
        return self._ready[name]

    def fit(self, names: Iterable[str]) -> bool:
        """Whether the encoders of some dictionaries fit in memory together."""
        return encoders_fit([self.read(name) for name in names], self.device)

    def check_room(self, names: Iterable[str], what: str) -> None:
        """Raise CannotSteer unless the encoders fit in memory together. `what` edits them."""
        some = [self.read(name) for name in names]
        if not encoders_fit(some, self.device):
            needed = sum(working_bytes(each, self.device) for each in some)
            there = dictionary_budget(self.device)
            raise CannotSteer(
                f"{what} edits all {len(some)} dictionaries together, whose encoders take "
                f"{needed / 1e9:.1f} GB; they may take {there / 1e9:.1f} GB, half of the memory. "
                "Choose fewer or narrower SAEs"
            )
