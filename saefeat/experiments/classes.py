"""Classes of units: by how many labels share them, over a corpus or on one input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from saefeat.attribution import Prompt
from saefeat.dictionaries import Dictionary
from saefeat.experiments.cases import Tokens
from saefeat.experiments.units import FEATURES, NEURONS, TOP_RATE, UnitBench
from saefeat.io import UserError, fingerprint
from saefeat.methods import METHODS
from saefeat.methods.lape import lape
from saefeat.methods.sharing import SHARING, sharing_classes, sharing_units
from saefeat.methods.ternary import CLASSES as TERNARY_CLASSES
from saefeat.methods.ternary import ternary_units
from saefeat.partition import ALL, ONE, SEVERAL
from saefeat.run.chosen import Chosen, chosen_units
from saefeat.run.opened import OpenRun
from saefeat.run.stages import neurons
from saefeat.run.steer import collect_sites
from saefeat.statistics import Stats
from saefeat.statistics.files import StatsFiles, collected_beside

INPUTS, OVER_TEXTS, TERNARY, OWNERS = "inputs", "sharing", "ternary", "owners"
UNSORTED = "no class"
_RULES = (INPUTS, OVER_TEXTS, TERNARY, OWNERS)

Classes = dict[str, dict[str, list[int]]]  # class -> dictionary -> units


@dataclass(frozen=True)
class Pool:
    """Dictionaries whose units are classified together; they are on the model's device."""

    name: str
    dictionaries: Sequence[Dictionary]


def open_pools(opened: OpenRun, names: Sequence[str]) -> list[Pool]:
    """Open pools by name: the hidden neurons of all layers, the features of all SAEs of the run.

    Raises UserError for another name.
    """
    found = []
    for name in dict.fromkeys(names):
        if name not in (NEURONS, FEATURES):
            raise UserError(f"there are no units {name!r}; give {NEURONS} or {FEATURES}", "pools")
        if name == NEURONS:
            found.append(Pool(name, neurons(opened.lm)))
        else:
            found.append(Pool(name, [sae.to(opened.lm.device) for sae in opened.saes]))
    return found


def choose_rule(asked: str | None, parallel: bool, what: str) -> tuple[str, list[str]]:
    """The rule that classifies units: the one asked for, else `inputs` where there are any.

    With it come notes for the reader: without parallel inputs, classes are those of another paper.

    Args:
        parallel: whether there are parallel inputs.
        what: the inputs, for the message.

    Raises UserError for a rule that does not exist, and for `inputs` where there are none.
    """
    if asked is None and parallel:
        return INPUTS, []
    if asked is None:
        return TERNARY, [
            f"{what[:1].upper()}{what[1:]} are not parallel: no id occurs in every label. So units "
            "are not sorted by how many labels share them on an input (arXiv 2406.09265), but into "
            "specific, related and general ones over the corpus (arXiv 2505.21505)."
        ]
    if asked not in _RULES and asked not in METHODS and not Path(asked).exists():
        raise UserError(
            f"there are no classes {asked!r}; give {', '.join(_RULES)}, a rule "
            f"({', '.join(METHODS)}) or a file of a selection",
            "classes",
        )
    if asked == INPUTS and not parallel:
        raise UserError(
            f"{what} are not parallel: no id occurs in every label; give translations of one text "
            f"the same id, or choose other classes, such as {TERNARY}",
            "classes",
        )
    return asked, []


def class_names(rule: str) -> tuple[str, ...]:
    """The classes that a rule makes."""
    if rule in (INPUTS, OVER_TEXTS):
        return SHARING
    return TERNARY_CLASSES if rule == TERNARY else (ONE, SEVERAL, ALL)


@dataclass(frozen=True)
class Classified:
    """The classes of the units of a pool.

    Attributes:
        names: of the classes; the last, `UNSORTED`, is of units of no class, if there may be such.
        of: key of an input -> dictionary -> the class of each unit, uint8 [width], a place in
            `names`.
    """

    names: Sequence[str]
    of: Callable[[str], Mapping[str, Tensor]]

    def units(self, key: str, name: str) -> dict[str, list[int]]:
        """The units of a class on an input, by dictionary; no entry where there are none."""
        place, found = list(self.names).index(name), {}
        for dictionary, classes in self.of(key).items():
            if units := (classes == place).nonzero().flatten().tolist():
                found[dictionary] = units
        return found


def describe_classes(
    rule: str, pools: Sequence[Pool], classified: Mapping[str, Classified]
) -> dict[str, str]:
    """Pool -> a mark of the classes of all its units, for the settings of a result.

    Classes by input have none: they follow from the model, the inputs and the threshold.
    """
    if rule == INPUTS:
        return {}
    return {
        pool.name: fingerprint(
            {name: of.numpy().tobytes().hex() for name, of in classified[pool.name].of("").items()}
        )
        for pool in pools
    }


def texts_of_inputs(rows: Iterable[tuple[str, str, Tokens]]) -> dict[str, list[Tokens]]:
    """Key -> token ids of its parallel texts, of (key, label, token ids).

    Of several texts of one key and label the first counts.
    """
    found: dict[str, dict[str, Tokens]] = {}
    for key, label, ids in rows:
        found.setdefault(key, {}).setdefault(label, ids)
    return {key: list(some.values()) for key, some in found.items()}


def classify(
    units: UnitBench,
    rule: str,
    pool: Pool,
    inputs: Mapping[str, Sequence[Tokens]],
    threshold: float,
) -> Classified:
    """Sort the units of a pool into classes.

    Args:
        rule: `inputs`: by input, as published: by the number of parallel texts in which a unit is
            active at the last token. For others see `_over_corpus`; every input has the same
            classes then.
        inputs: key -> token ids, BOS included, of its parallel texts.
        threshold: a unit is active where its value exceeds it.

    Raises UserError as `_over_corpus`.
    """
    if rule == INPUTS:
        return Classified(
            SHARING, cache(lambda key: _on_input(units, pool, inputs[key], threshold))
        )
    classes = _over_corpus(units, rule, pool, threshold)
    found = {
        d.id: torch.full((d.width,), len(classes), dtype=torch.uint8) for d in pool.dictionaries
    }
    for place, members in enumerate(classes.values()):
        for dictionary, some in members.items():
            found[dictionary][some] = place
    return Classified((*classes, UNSORTED), lambda _key: found)


def _on_input(
    units: UnitBench, pool: Pool, texts: Sequence[Tokens], threshold: float
) -> dict[str, Tensor]:
    """Classes on one input. A token that a dictionary does not count activates no unit of it."""
    sites, active = [d.site for d in pool.dictionaries], {d.id: [] for d in pool.dictionaries}
    for ids in texts:
        vectors = Prompt(units.opened.lm, ids).vectors([*dict.fromkeys(sites)])
        for d in pool.dictionaries:
            x = vectors[d.site]
            here, kept = d.encode(x).dense()[0] > threshold, d.keeps(x)
            active[d.id].append((here if kept is None else here & kept).cpu())
    return {d: sharing_classes(torch.stack(rows)).to(torch.uint8) for d, rows in active.items()}


def _over_corpus(units: UnitBench, rule: str, pool: Pool, threshold: float) -> Classes:
    """Sort units by what the run has counted. Units of no class are left out.

    Args:
        rule: `ternary` (specific, related, general); `sharing` (the class that a unit has on most
            of the inputs of the table `patterns`); `owners` (one, several or all labels by LAPE);
            or a rule or a file of a selection, whose units are sorted by their number of labels.

    Raises UserError when statistics are missing.
    """
    names = [each.id for each in pool.dictionaries]
    if rule == OVER_TEXTS:
        return _by_patterns(units.opened, pool, threshold)
    if rule in (TERNARY, OWNERS):
        if pool.name == NEURONS:
            collect_sites(units.opened, names)
        stats = [units.read(name) for name in names]
        if rule == TERNARY:
            return ternary_units(stats)
        return _by_owners(chosen_units(lape(stats, top_rate=TOP_RATE)), names)
    (found,) = units.named([rule])
    return _by_owners(found.chosen, names)


def _by_patterns(opened: OpenRun, pool: Pool, threshold: float) -> Classes:
    """Of the dictionaries that the run has counted: patterns are collected together with counts."""
    files, counted = opened.files, opened.files.collected()
    paths = [files.stats_file(d.id) for d in pool.dictionaries if d.id in counted]
    headers = [Stats.read_header(path) for path in paths]
    patterns = collected_beside(files.stats, "patterns", headers)
    return sharing_units(StatsFiles(paths), patterns, threshold)


def _by_owners(chosen: Chosen, names: Sequence[str]) -> Classes:
    owners: dict[tuple[str, int], int] = {}
    for units in chosen.values():
        for name in names:
            for unit in units.get(name, ()):
                owners[name, unit] = owners.get((name, unit), 0) + 1
    found: Classes = {each: {} for each in (ONE, SEVERAL, ALL)}
    for (name, unit), count in sorted(owners.items()):
        of = ONE if count == 1 else ALL if count == len(chosen) else SEVERAL
        found[of].setdefault(name, []).append(unit)
    return found
