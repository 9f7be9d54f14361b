"""Deactivation of classes of units: what the loss and the answers of each label lose.

Wang et al., arXiv 2406.09265 (classes by sharing, computed on each input), and Zhang et al., arXiv
2505.21505 (specific, related and general units).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from saefeat.artefacts.experiments import Experiment, Row
from saefeat.config import CONSTANT, CategoriesConfig
from saefeat.corpora import TOKEN_LIMIT
from saefeat.dictionaries import Dictionary
from saefeat.experiments.cases import (
    Case,
    Tokens,
    answered,
    load_cases,
    parallel_keys,
    test_keys,
    test_positions,
)
from saefeat.experiments.classes import (
    INPUTS,
    Classified,
    Pool,
    choose_rule,
    class_names,
    classify,
    describe_classes,
    open_pools,
    texts_of_inputs,
)
from saefeat.experiments.frame import Question, carry_out, mean_of
from saefeat.experiments.units import UnitBench
from saefeat.forcing import finite_or_none
from saefeat.generation import text_losses
from saefeat.io import UserError, fingerprint, user_path
from saefeat.run.opened import OpenRun
from saefeat.steering import Change, ablate, apply

NAME, UNEDITED = "categories", "none"
_SEED = 41  # of the random units

Units = Mapping[str, Sequence[int]]  # dictionary -> units


@dataclass(frozen=True)
class Group:
    """Texts and cases that are measured under one edit: of one input, or all of them.

    Attributes:
        key: of the input.
        texts: (label, text).
    """

    key: str
    texts: Sequence[tuple[str, str]] = ()
    cases: Sequence[Case] = ()


def categories(opened: OpenRun, config: CategoriesConfig, out: Path | None = None) -> Experiment:
    """Set the units of each class to zero, and measure every label; see `saefeat.experiments`.

    Rows have the columns units (neurons or features; "none" is the model as it is), class (and
    `random CLASS`: as many other units of each dictionary, drawn at random; there is none where
    fewer are left), label, count (units, mean over inputs), texts, nll (mean over texts), change
    (of it; None where a loss became infinite or no number), cases, accuracy and accuracy_change.

    Raises UserError for a table or classes that cannot be used, for a class without units, and
    where there is nothing to measure.
    """
    pools = open_pools(opened, config.pools)
    units = UnitBench(opened)
    units.dictionaries.check_room([sae.id for sae in opened.saes], "the experiment")
    rule, groups, inputs, notes = _groups(opened, config)
    for note in notes:
        opened.say(f"note: {note}")
    _check_only(config.only, rule)
    classified = {
        pool.name: classify(units, rule, pool, inputs, config.threshold) for pool in pools
    }
    experiment = _Categories(opened, units, pools, classified, groups)
    jobs, without = _jobs(opened, config, rule, experiment)
    question = Question(
        NAME,
        "Deactivation of classes of units: change of the loss and of the answers by label",
        {
            **asdict(config),
            "classes": rule,
            "units": describe_classes(rule, pools, classified),
            "groups": fingerprint([asdict(each) for each in groups]),
            "seed": _SEED,
        },
        [
            {"kind": "heat", "x": "label", "y": "class", "value": value, "panels": ["units"]}
            for value in ("change", *["accuracy_change"] * (config.table is not None))
        ],
        [*notes, *without],
    )
    out = out or opened.files.experiment_file(NAME)

    def measure(part: str) -> list[Row]:
        return experiment.measure(*jobs[part])

    return carry_out(opened, out, question, list(jobs), measure, _summarize)


Job = tuple[Pool | None, str, bool]  # pool, class, whether random units take its place


def _jobs(
    opened: OpenRun, config: CategoriesConfig, rule: str, experiment: _Categories
) -> tuple[dict[str, Job], list[str]]:
    """What is measured, by the name of its part, and notes. Classes without units are left out.

    Raises UserError for a class that is asked for and has no units, or where no class has units.
    """
    found: dict[str, Job] = {UNEDITED: (None, UNEDITED, False)}
    names, empty, alone = config.only or class_names(rule), [], []
    for name in dict.fromkeys(names):
        pools = [pool for pool in experiment.pools if experiment.count(pool, name)]
        if config.only and not pools:
            raise UserError(f"the class {name} has no units by {rule}; choose another", "only")
        for pool in experiment.pools:
            if pool in pools:
                found[f"{pool.name} {name}"] = pool, name, False
                if experiment.leaves_as_many(pool, name):
                    found[f"{pool.name} random {name}"] = pool, name, True
                else:
                    alone.append(f"{name} ({pool.name})")
            else:
                empty.append(f"{name} ({pool.name})")
    if len(found) == 1:
        raise UserError(f"no class has units by {rule}; choose other classes", "classes")
    if empty:
        opened.say(f"note: no units by {rule}, left out: {', '.join(empty)}")
    controls = [f"No random units beside {', '.join(alone)}: fewer other units are left."]
    return found, controls if alone else []


def _check_only(only: Sequence[str] | None, rule: str) -> None:
    """Raise UserError for a class that the rule does not make."""
    known = class_names(rule)
    if unknown := [name for name in only or () if name not in known]:
        raise UserError(
            f"there is no class {unknown[0]!r} by {rule}; there are {', '.join(known)}", "only"
        )


def _groups(
    opened: OpenRun, config: CategoriesConfig
) -> tuple[str, list[Group], dict[str, list[Tokens]], list[str]]:
    """The rule that classifies units, what is measured, the token ids of each input, and notes."""
    cases = load_cases(opened, user_path(config.table)) if config.table else []
    of_texts, of_cases = test_keys(opened), parallel_keys((each.label, each.key) for each in cases)
    used = [("the test texts of the run", of_texts)] if config.sentences else []
    used += [(f"the rows of {config.table}", of_cases)] if cases else []
    if not used:
        raise UserError("there is nothing to measure; give texts or a table", "sentences", "table")
    what = next((what for what, keys in used if not keys), "")
    rule, notes = choose_rule(config.classes, not what, what)
    parallel = rule == INPUTS
    texts = [
        (f"text {opened.corpus.ids[i]}", label, opened.corpus.texts[i])
        for label in (opened.corpus.labels if config.sentences else ())
        for i in test_positions(opened, label, config.sentences, of_texts if parallel else None)
    ]
    if not parallel:
        return rule, [Group("", [(label, text) for _, label, text in texts], cases)], {}, notes
    lm, of = opened.lm, [text for _, _, text in texts]
    rows = zip(texts, lm.tokenize(of, TOKEN_LIMIT), strict=True)
    inputs = [(key, label, (*lm.prefix, *row)) for (key, label, _), row in rows if row]
    # Ids of the table may be those of texts, and are other inputs.
    inputs += [(f"case {case.key}", case.label, case.prompt) for case in cases]
    found = texts_of_inputs(inputs)
    groups = [
        Group(key, [(label, text) for at, label, text in texts if at == key])
        for key in dict.fromkeys(key for key, _, _ in texts)
        if key in found
    ]
    groups += [
        Group(f"case {key}", (), [case for case in cases if case.key == key]) for key in of_cases
    ]
    return rule, groups, found, notes


class _Categories:
    """Measures all groups with the units of one class at zero."""

    def __init__(
        self,
        opened: OpenRun,
        units: UnitBench,
        pools: Sequence[Pool],
        classified: Mapping[str, Classified],
        groups: Sequence[Group],
    ) -> None:
        self.opened, self.units, self.pools = opened, units, pools
        self.classified, self.groups = classified, groups

    def count(self, pool: Pool, name: str) -> float:
        """The units of a class, mean over inputs."""
        of = self.classified[pool.name]
        return fmean(sum(map(len, of.units(each.key, name).values())) for each in self.groups)

    def leaves_as_many(self, pool: Pool, name: str) -> bool:
        """Whether every dictionary has as many units outside a class as in it, on every input."""
        widths, of = {each.id: each.width for each in pool.dictionaries}, self.classified[pool.name]
        every = (of.units(each.key, name).items() for each in self.groups)
        return all(2 * len(units) <= widths[x] for found in every for x, units in found)

    def measure(self, pool: Pool | None, name: str, random: bool) -> list[Row]:
        if pool is None:
            return self._rows(UNEDITED, UNEDITED, 0.0, self._unedited)

        def chosen(number: int, group: Group) -> Units:
            found = self.classified[pool.name].units(group.key, name)
            return self._random(pool, found, number) if random else found

        title = f"random {name}" if random else name
        measured = self._measure(pool.dictionaries, chosen)
        return self._rows(pool.name, title, self.count(pool, name), measured)

    @cached_property
    def _unedited(self) -> dict[str, dict[str, list[float]]]:
        return self._measure((), lambda _number, _group: {})

    def _random(self, pool: Pool, like: Units, number: int) -> Units:
        """As many other random units of each dictionary; those that fire come first."""
        found = {}
        for place, dictionary in enumerate(pool.dictionaries):
            if not (units := like.get(dictionary.id)):
                continue
            rank = torch.zeros(dictionary.width)
            if self.opened.files.has_stats(dictionary.id):
                rank[self.units.read(dictionary.id).fired.sum(0) == 0] = 1
            rank[list(units)] = 2
            generator = torch.Generator().manual_seed(_SEED + 1000 * number + place)
            rank += torch.rand(dictionary.width, generator=generator)
            found[dictionary.id] = sorted(rank.argsort()[: len(units)].tolist())
        return found

    def _measure(
        self, dictionaries: Sequence[Dictionary], chosen: Callable[[int, Group], Units]
    ) -> dict[str, dict[str, list[float]]]:
        """By "nll" or "accuracy" and label, the value of each text or case.

        It is nan for a text without tokens to predict, and where the edit breaks the model.
        """
        lm = self.opened.lm
        found: dict[str, dict[str, list[float]]] = {"nll": {}, "accuracy": {}}
        for number, group in enumerate(self.groups):
            units, changes = chosen(number, group), dict[str, list[Change]]()
            for dictionary in dictionaries:
                if some := units.get(dictionary.id):
                    changes.setdefault(dictionary.site, []).append(ablate(dictionary, some))
            with apply(lm, changes, 1.0, CONSTANT):
                losses = text_losses(lm, [text for _, text in group.texts], TOKEN_LIMIT)
                right = answered(lm, group.cases)
            for (label, _), loss in zip(group.texts, losses, strict=True):
                found["nll"].setdefault(label, []).append(loss)
            for case, yes in zip(group.cases, right, strict=True):
                found["accuracy"].setdefault(case.label, []).append(float(yes))
        return found

    def _rows(
        self, units: str, name: str, count: float, found: Mapping[str, Mapping[str, list[float]]]
    ) -> list[Row]:
        rows: list[Row] = []
        for label in self.opened.corpus.labels:
            row: Row = {"units": units, "class": name, "label": label, "count": count}
            for what, number, change in (
                ("nll", "texts", "change"),
                ("accuracy", "cases", "accuracy_change"),
            ):
                pairs = zip(
                    found[what].get(label, []), self._unedited[what].get(label, []), strict=True
                )
                known = [(value, before) for value, before in pairs if not math.isnan(before)]
                row |= {number: len(known), what: None, change: None}
                if known:
                    mean, before = map(fmean, zip(*known, strict=True))
                    row[what], row[change] = finite_or_none(mean), finite_or_none(mean - before)
            rows.append(row)
        return rows


def _summarize(rows: list[Row]) -> list[Row]:
    """Means over labels of each class, with those of its random units beside them.

    `lost`: labels that are not in the mean, because a loss became infinite or no number.
    """
    found: list[Row] = []
    for units, name in dict.fromkeys((row["units"], row["class"]) for row in rows):
        if str(name).startswith("random "):
            continue
        here, twin = (
            [row for row in rows if (row["units"], row["class"]) == (units, of)]
            for of in (name, f"random {name}")
        )
        row: dict[str, Any] = {"units": units, "class": name, "count": here[0]["count"]}
        for column in ("change", "accuracy_change"):
            row[column] = mean_of(here, column)
            row[f"{column}_random"] = mean_of(twin, column)
        row |= {"lost": _lost(here), "lost_random": _lost(twin)}
        found.append(row)
    return found


def _lost(rows: Sequence[Row]) -> int:
    return sum(bool(row["texts"]) and row["nll"] is None for row in rows)
