"""The units that experiments edit, by name, with random units beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from saefeat.dictionaries import Dictionary
from saefeat.io import UserError, fingerprint
from saefeat.methods import METHODS
from saefeat.methods.lape import lape
from saefeat.run.chosen import Chosen, Opened, at_sites, chosen_units, random_twins
from saefeat.run.matrix import own_features
from saefeat.run.opened import OpenRun
from saefeat.run.stages import neuron_layers, rank
from saefeat.run.steer import collect_sites
from saefeat.selection import Selection
from saefeat.statistics import Stats
from saefeat.steering import Change
from saefeat.steering.changes import Collected, Units, build_changes

NEURONS, FEATURES = "neurons", "features"
TOP_RATE = 0.05  # of LAPE: between 1 and 5 % in the experiments on steering
_TOP = 100  # features per label and SAE


@dataclass(frozen=True)
class UnitSet:
    """Units by label, under a name; `control` is the name of the set of which it is the twin."""

    name: str
    chosen: Chosen
    control: str | None = None

    def count(self, label: str) -> int:
        return sum(map(len, self.chosen.get(label, {}).values()))


@dataclass
class UnitBench:
    """Finds the units of a run by name, and builds edits of them.

    Attributes:
        source_label: the label that `contrast` subtracts; None: the mean of all others.
    """

    opened: OpenRun
    source_label: str | None = None

    @cached_property
    def read(self) -> Callable[[str], Stats]:
        """Dictionary -> its statistics, each read once."""
        return cache(self.opened.files.load_stats)

    @cached_property
    def collected(self) -> Collected:
        return Collected(self.read, self.source_label, self.opened.lm.device)

    @cached_property
    def dictionaries(self) -> Opened:
        return Opened(self.opened.saes, self._header, self.opened.lm.device)

    def _header(self, name: str) -> Mapping[str, Any]:
        return self.read(name).header["dictionary"]

    def find(self, names: Sequence[str], *, random: bool = True) -> list[UnitSet]:
        """Find sets of units, each with a random twin after it.

        A twin has as many units of every label and dictionary, and so the same profile of layers.
        They are other units that fire.

        Raises UserError for a name that is no rule and no file of a selection.
        """
        found = [UnitSet(_name(name), self._choose(name)) for name in names]
        if len({each.name for each in found}) < len(found):
            raise UserError("two sets of units have the same name", "units")
        if not random:
            return found
        twins = random_twins([each.chosen for each in found], self.read)
        pairs = zip(found, twins, strict=True)
        return [
            each
            for one, twin in pairs
            for each in (one, UnitSet(f"random {one.name}", twin, one.name))
        ]

    def _choose(self, name: str) -> Chosen:
        if name == FEATURES:
            return own_features(self.collected, self.opened.saes, _TOP)
        if name == NEURONS:
            return chosen_units(lape(self._neuron_stats(), top_rate=TOP_RATE))
        if name in METHODS:
            return chosen_units(rank(self.opened.files.stats, name))
        if not Path(name).exists():
            raise UserError(
                f"there are no units {name!r}; give {FEATURES}, {NEURONS}, a rule "
                f"({', '.join(METHODS)}) or a file of a selection",
                "units",
            )
        selection = Selection.load(Path(name))
        self._check(selection, name)
        return chosen_units(selection)

    def _neuron_stats(self) -> list[Stats]:
        """Statistics of the hidden neurons of all layers; those that are missing are collected."""
        lm = self.opened.lm
        sites = [f"mlp_act@{layer}" for layer in neuron_layers(lm)]
        collect_sites(self.opened, sites)
        return [self.read(site) for site in sites]

    def _check(self, selection: Selection, name: str) -> None:
        """Raise UserError unless a selection is of dictionaries and labels of this run."""
        for dictionary, header in selection.dictionaries.items():
            if not self.opened.files.has_stats(dictionary):
                raise UserError(f"{name} has units of {dictionary}, of which the run has no counts")
            if self._header(dictionary)["fingerprint"] != header.get("fingerprint"):
                raise UserError(f"{name} is of another {dictionary} than that of the run")
        if not set(selection.labels) & set(self.opened.corpus.labels):
            raise UserError(f"{name} has none of the labels of the run")

    # ----------------------------------------------------------------------- edits

    def units(self, units: UnitSet, label: str) -> dict[str, list[Units]]:
        """The units of a label, by site, ready to be edited."""
        return at_sites(units.chosen.get(label, {}), self.dictionaries.edit)

    def build(self, edit: str, units: UnitSet, label: str) -> dict[str, list[Change]]:
        """Build an edit (of `saefeat.steering.EDITS`) of the units of a label."""
        return build_changes(edit, self.units(units, label), label, self.collected)

    def each(
        self, units: UnitSet, label: str, make: Callable[[Dictionary, Sequence[int]], Change]
    ) -> dict[str, list[Change]]:
        """Build a change of each dictionary's units of a label, by site."""
        found = self.units(units, label)
        return {
            site: [make(one.dictionary, one.units) for one in here] for site, here in found.items()
        }


def merge_changes(*several: Mapping[str, Sequence[Change]]) -> dict[str, list[Change]]:
    """The changes of all, by site, in this order."""
    found: dict[str, list[Change]] = {}
    for changes in several:
        for site, here in changes.items():
            found.setdefault(site, []).extend(here)
    return found


def describe(sets: Sequence[UnitSet]) -> dict[str, Any]:
    """What a result records of sets: the number of units by label, and a mark of all of them."""
    return {
        each.name: {
            "units": {label: each.count(label) for label in each.chosen},
            "fingerprint": fingerprint(each.chosen),
        }
        for each in sets
    }


def _name(name: str) -> str:
    known = name in METHODS or name in (FEATURES, NEURONS)
    return name if known else Path(name).stem
