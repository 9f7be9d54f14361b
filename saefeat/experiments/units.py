"""The units that experiments edit, by name, with random units beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from saefeat.config import NEURON_SITES
from saefeat.dictionaries import Dictionary
from saefeat.io import UserError, fingerprint
from saefeat.labels import in_codes
from saefeat.methods import METHODS
from saefeat.methods.lape import lape
from saefeat.run.chosen import Chosen, Opened, at_sites, chosen_units, every_unit, random_twins
from saefeat.run.matrix import own_features
from saefeat.run.opened import OpenRun
from saefeat.run.stages import neuron_layers, rank
from saefeat.run.steer import collect_sites, find_label
from saefeat.selection import Selection
from saefeat.statistics import Stats
from saefeat.steering import Change
from saefeat.steering.changes import Collected, NoUnits, Units, build_changes
from saefeat.steering.patches import Patches, collect_patches, read_patches

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

    @property
    def dictionaries(self) -> list[str]:
        """Ids of the dictionaries that units are of, in order."""
        return [*every_unit([self.chosen])]


@dataclass
class UnitBench:
    """Finds the units of a run by name, and builds edits of them.

    Attributes:
        source_label: the label that `contrast` subtracts; None: the mean of all others.
        pairs: labels that belong together; see `own_labels`.
    """

    opened: OpenRun
    source_label: str | None = None
    pairs: Sequence[tuple[str, str]] = ()
    _found: set[str] = field(default_factory=set, repr=False)  # dictionaries of all sets
    _patches: dict[str, dict[str, Patches]] = field(default_factory=dict, repr=False)

    @cached_property
    def read(self) -> Callable[[str], Stats]:
        """Dictionary -> its statistics, each read once."""
        return cache(self.opened.files.load_stats)

    @cached_property
    def collected(self) -> Collected:
        return Collected(self.read, self.source_label, self.opened.lm.device, self._patch)

    def _patch(self, dictionary: Dictionary, label: str) -> Patches:
        """Values of the patched edits, from collected responses or from the texts of the label."""
        files, known = self.opened.files, self._patches.setdefault(label, {})
        if dictionary.id not in known:
            if (files.responses / dictionary.id).is_dir():
                header = self.read(dictionary.id).header
                known[dictionary.id] = read_patches(files.stats, header, label)
            else:  # one pass for all dictionaries that may be asked for
                names = sorted({*self._found, dictionary.id} - known.keys())
                every = [self.dictionaries.edit(name) for name in names]
                known |= collect_patches(self.opened.lm, self.opened.plan, every, label)
        return known[dictionary.id]

    @cached_property
    def dictionaries(self) -> Opened:
        return Opened(self.opened.saes, self._header, self.opened.lm.device)

    def _header(self, name: str) -> Mapping[str, Any]:
        return self.read(name).header["dictionary"]

    def find(self, names: Sequence[str]) -> list[UnitSet]:
        """Find sets of units by name, each with its twin (see `with_twins`).

        Raises UserError for a name that is no rule and no file of a selection, and for two sets of
        one name.
        """
        return self.with_twins(self.named(names))

    def named(self, names: Sequence[str]) -> list[UnitSet]:
        """Find sets of units by name, without twins."""
        return [UnitSet(set_name(name), self._choose(name)) for name in names]

    def with_twins(
        self,
        found: Sequence[UnitSet],
        draw: Callable[[Sequence[Chosen], Callable[[str], Stats]], list[Chosen]] = random_twins,
    ) -> list[UnitSet]:
        """Put a random twin after each set; `draw` makes the twins of all sets.

        A twin has as many units of every label and dictionary, and so the same profile of layers.
        They are other units that fire.
        """
        if len({each.name for each in found}) < len(found):
            raise UserError("two sets of units have the same name", "units")
        self._found.update(every_unit([each.chosen for each in found]))
        self.dictionaries.check_room(sorted(self._found), "the experiment")
        twins = draw([each.chosen for each in found], self.read)
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
        return self.chosen(Selection.load(Path(name)), name)

    def chosen(self, selection: Selection, name: str) -> Chosen:
        """The units of a selection, by the run's own labels; labels that it lacks are left out.

        Statistics of neurons that the run lacks are collected.

        Raises UserError unless the selection is of dictionaries and labels of this run.
        """
        own = own_labels(selection.labels, self.opened.corpus.labels, self.pairs)
        if not own:
            raise UserError(f"{name} has none of the labels of the run", "map")
        layers = neuron_layers(self.opened.lm)
        known = {f"{kind}@{layer}" for kind in NEURON_SITES for layer in layers}
        collect_sites(self.opened, [each for each in selection.dictionaries if each in known])
        self._check(selection, name)
        if lost := [label for label in selection.labels if label not in own]:
            self.opened.say(f"note: the run has no label {', '.join(lost)} of {name}; left out")
        found: dict[str, list[Chosen]] = {}
        for label, units in chosen_units(selection).items():
            if label in own:
                found.setdefault(own[label], []).append({label: units})
        return {label: every_unit(some) for label, some in found.items()}

    def _neuron_stats(self) -> list[Stats]:
        """Statistics of the hidden neurons of all layers; those that are missing are collected."""
        lm = self.opened.lm
        sites = [f"mlp_act@{layer}" for layer in neuron_layers(lm)]
        collect_sites(self.opened, sites)
        return [self.read(site) for site in sites]

    def _check(self, selection: Selection, name: str) -> None:
        """Raise UserError unless a selection is of dictionaries of this run."""
        for dictionary, header in selection.dictionaries.items():
            if not self.opened.files.has_stats(dictionary):
                raise UserError(f"{name} has units of {dictionary}, of which the run has no counts")
            if self._header(dictionary)["fingerprint"] != header.get("fingerprint"):
                raise UserError(f"{name} is of another {dictionary} than that of the run")

    def describe(self, sets: Sequence[UnitSet]) -> dict[str, Any]:
        """What a result records of sets: the number of units by label, and a mark of all of them.

        The mark is of the statistics of their dictionaries too, from which edits are made.
        """
        return {
            each.name: {
                "units": {label: each.count(label) for label in each.chosen},
                "fingerprint": fingerprint(
                    [each.chosen, self.opened.files.stats_origins(each.dictionaries)]
                ),
            }
            for each in sets
        }

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


def check_units(sets: Sequence[UnitSet], labels: Sequence[str]) -> None:
    """Raise UserError for a label that has no units in any set but random ones."""
    own = [each for each in sets if each.control is None]
    for label in labels:
        if not any(each.count(label) for each in own):
            names = ", ".join(each.name for each in own)
            raise UserError(f"{label} has no units by {names}; choose other units", "units")


def with_units(
    opened: OpenRun,
    sets: Sequence[UnitSet],
    asked: Sequence[str] | None,
    labels: Sequence[str],
    parameter: str = "labels",
) -> list[str]:
    """The labels asked for, or those of `labels` that have units; labels without are reported.

    `parameter` is the one by which they are asked for.

    Raises UserError for an unknown label and for one that is asked for and has no units, NoUnits
    where no label has any.
    """
    if asked is not None:
        found = list(dict.fromkeys(find_label(opened, label, parameter) for label in asked))
        check_units(sets, found)
        return found
    found = [label for label in labels if any(each.count(label) for each in sets)]
    if not found:
        raise NoUnits("no label has units; choose other units", "units")
    if without := [label for label in labels if label not in found]:
        opened.say(f"note: {', '.join(without)} have no units; they are left out")
    return found


def own_labels(
    labels: Iterable[str], own: Sequence[str], pairs: Iterable[tuple[str, str]] = ()
) -> dict[str, str]:
    """Label of another run -> the run's own label: the equal one, else that of its language.

    Args:
        own: the labels of the run.
        pairs: labels that belong together, in either order. A label that the run lacks is read as
            the one that it is paired with.
    """
    partner = {one: other for pair in pairs for one, other in (pair, pair[::-1])}
    read = {label: label if label in own else partner.get(label, label) for label in labels}
    found = in_codes(read.values(), own)
    return {label: found[name] for label, name in read.items() if name in found}


def set_name(name: str) -> str:
    """What a set is called in tables: a rule by its name, a file without its folder."""
    known = name in METHODS or name in (FEATURES, NEURONS)
    return name if known else Path(name).stem
