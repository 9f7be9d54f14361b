"""Language Steering Shift: how often amplified units make a model prefer the target's word.

Rahmanisa et al., arXiv 2507.22581. A prompt in the base language is followed by an object in the
base or in the target language. The difference d is the log-probability of the target's object less
that of the base's, each summed over its tokens. LSS is the share of facts whose d is strictly
higher under the edit than without. A fact whose d is infinite or no number, under the edit or
without, is lost: it is in no figure, and the share is of the other facts. The published code counts
it as no shift.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from saefeat.artefacts.experiments import Experiment, Row
from saefeat.config import LSSConfig
from saefeat.experiments.facts import Fact, embedded_facts, read_facts
from saefeat.experiments.frame import Question, carry_out, mean_of
from saefeat.experiments.sweep import by_setting, edits_and_factors, setting_columns
from saefeat.experiments.units import UnitBench, UnitSet, with_units
from saefeat.generation import encode_prompts, token_losses
from saefeat.io import UserError, fingerprint
from saefeat.labels import fasttext_code, own_label
from saefeat.models import LanguageModel
from saefeat.run.opened import OpenRun
from saefeat.run.steer import find_label
from saefeat.steering import apply

NAME = "lss"


def lss(
    opened: OpenRun, config: LSSConfig, facts: Path | None = None, out: Path | None = None
) -> Experiment:
    """Amplify the units of every target label by each edit and factor; see `saefeat.experiments`.

    Rows have the columns units, edit, factor, base, target, count (units that were edited), facts,
    lost (facts that are in no figure, because d is infinite or no number), lss, lss_per_token (of
    the difference of mean log-probabilities per token), difference (mean d, nats), shift and
    shift_per_token (by how much the edit raised the mean difference). The figures are None where
    all facts are lost. Ties count as no shift, so that an edit that changes nothing has the score
    0. Units "none" is the model as it is.

    Args:
        facts: a table with a row per fact; None: embedded capitals.

    Raises UserError for an unknown label or edit, a target without units of any set or without
    facts, and a table that lacks a column or has an empty object.
    """
    units = UnitBench(opened)
    sweep = edits_and_factors(config)
    chosen = _choose_facts(opened, config, facts)
    sets = units.find(config.units)
    targets = with_units(
        opened, sets, config.to, list(dict.fromkeys(f.target for f in chosen)), "to"
    )
    by_target = {target: [f for f in chosen if f.target == target] for target in targets}
    experiment = _LSS(units, {x: _encode(opened.lm, some) for x, some in by_target.items()})
    question = Question(
        NAME,
        "Language Steering Shift: share of facts whose object moves to the target language",
        {
            **asdict(config),
            "to": targets,
            "sets": units.describe(sets),
            "facts": {"table": "embedded" if facts is None else facts.name, "count": len(chosen)},
            "fingerprint": fingerprint(chosen),
        },
        [
            {
                "kind": "heat",
                "x": "target",
                "y": "factor",
                "value": "lss",
                "panels": ["units", "edit", "base"],
            }
        ],
        [
            "Edits that favour no language shift half of the facts and more; compare with random "
            "units. A difference that does not change at all counts as no shift."
        ],
    )
    by_name = {each.name: each for each in sets}
    of: dict[str, tuple[UnitSet | None, str, float]] = {"none": (None, "none", 0.0)}
    for name, one in by_name.items():
        of |= {f"{name} {edit} {factor:g}": (one, edit, factor) for edit, factor in sweep}

    def measure(part: str) -> list[Row]:
        return experiment.measure(*of[part])

    out = out or opened.files.experiment_file(NAME)
    return carry_out(opened, out, question, list(of), measure, _summarize)


def _choose_facts(opened: OpenRun, config: LSSConfig, table: Path | None) -> list[Fact]:
    """The facts that are asked for, with the labels of the run where they meet."""
    labels = opened.corpus.labels
    read = embedded_facts(labels) if table is None else read_facts(table, config)

    def own(label: str) -> str:
        return own_label(label, labels) or label

    facts = [fact._replace(base=own(fact.base), target=own(fact.target)) for fact in read]
    where = "embedded facts" if table is None else str(table)
    bases = {_find_base(own(label), facts, where) for label in config.from_ or ()}
    asked = {find_label(opened, label, "to") for label in config.to or ()}
    if table is None and config.from_ is None:  # English; where there is none, all
        bases = {fact.base for fact in facts if fasttext_code(fact.base) == "en"}
    found: list[Fact] = []
    seen: dict[tuple[str, str], int] = {}
    for fact in facts:
        pair = fact.base, fact.target
        if (fact.base in bases or not bases) and fact.target in (asked or labels):
            seen[pair] = seen.get(pair, 0) + 1
            if config.max_facts is None or seen[pair] <= config.max_facts:
                found.append(fact)
    if unknown := {fact.target for fact in facts} - {*labels}:
        opened.say(f"note: the run has no label {', '.join(sorted(unknown))}; its facts are unused")
    missing = asked - {fact.target for fact in found}
    if missing or not found:
        into = ", ".join(sorted(missing)) or "the labels of the run"
        given = [name for name in ("from_", "to") if getattr(config, name)]
        message = f"{where} have no fact with an object in {into} and such a base"
        raise UserError(message, *given, "facts")
    return found


def _find_base(label: str, facts: Sequence[Fact], where: str) -> str:
    """The base of facts that a label is, in any code system. Raises UserError if there is none."""
    known = list(dict.fromkeys(fact.base for fact in facts))
    found = own_label(label, known)
    if found is None:
        raise UserError(f"{where} have no prompt in {label}; they have {', '.join(known)}", "from_")
    return found


class _Encoded(NamedTuple):
    """A fact in token ids, BOS included: its base, and both rows with the lengths of objects."""

    base: str
    rows: tuple[list[int], list[int]]  # with the object of the target, and with that of the base
    counts: tuple[int, int]


def _encode(lm: LanguageModel, facts: Sequence[Fact]) -> list[_Encoded]:
    """Encode facts. The tokens of an object are those beyond the prompt's own number of tokens.

    Raises UserError where there are none.
    """
    before = encode_prompts(lm, [fact.prompt for fact in facts], 0)
    found = []
    for fact, prompt in zip(facts, before, strict=True):
        texts = [f"{fact.prompt} {each}" for each in (fact.target_object, fact.base_object)]
        target, base = encode_prompts(lm, texts, 0)
        counts = len(target) - len(prompt), len(base) - len(prompt)
        for text, count in zip(texts, counts, strict=True):
            if count < 1:
                raise UserError(f"the object of {text!r} adds no token to its prompt")
        found.append(_Encoded(fact.base, (target, base), counts))
    return found


class _Difference(NamedTuple):
    """Log-probability of the target's object less that of the base's, in nats."""

    summed: float
    per_token: float


class _LSS:
    """Scores the facts of each target under the edits of its units."""

    def __init__(self, units: UnitBench, facts: Mapping[str, list[_Encoded]]) -> None:
        self.units, self.lm, self.facts = units, units.opened.lm, facts

    @cached_property
    def clean(self) -> dict[str, list[_Difference]]:
        """Of the model as it is: in the same batches as under an edit, so that ties are exact."""
        return {target: self._score(target) for target in self.facts}

    def measure(self, units: UnitSet | None, edit: str, factor: float) -> list[Row]:
        """Rows of all pairs. A target without units has no row."""
        rows: list[Row] = []
        for target in self.facts:
            count = units.count(target) if units else 0
            if units and not count:
                continue
            changes = self.units.build(edit, units, target) if units else {}
            with apply(self.lm, changes, factor):
                found = self._score(target)
            head: Row = {"units": units.name if units else "none", "edit": edit, "factor": factor}
            rows += [head | row | {"count": count} for row in self._compare(target, found)]
        return rows

    def _score(self, target: str) -> list[_Difference]:
        """Score the facts of a target under the model as it is now."""
        facts = self.facts[target]
        rows = [row for fact in facts for row in fact.rows]
        counts = [count for fact in facts for count in fact.counts]
        losses = token_losses(self.lm, rows, counts)
        pairs = zip(losses[::2], losses[1::2], strict=True)
        return [_Difference(sum(b) - sum(t), fmean(b) - fmean(t)) for t, b in pairs]

    def _compare(self, target: str, found: Sequence[_Difference]) -> list[Row]:
        """A row for each base of a target."""
        rows: list[Row] = []
        every = list(zip(self.facts[target], found, self.clean[target], strict=True))
        for base in dict.fromkeys(fact.base for fact, _, _ in every):
            here = [(now, before) for fact, now, before in every if fact.base == base]
            pairs = [pair for pair in here if all(math.isfinite(d) for one in pair for d in one)]
            summed = [now.summed - before.summed for now, before in pairs]
            each = [now.per_token - before.per_token for now, before in pairs]
            rows.append(
                {
                    "base": base,
                    "target": target,
                    "facts": len(here),
                    "lost": len(here) - len(pairs),
                    "lss": _mean([moved > 0 for moved in summed]),
                    "lss_per_token": _mean([moved > 0 for moved in each]),
                    "difference": _mean([now.summed for now, _ in pairs]),
                    "shift": _mean(summed),
                    "shift_per_token": _mean(each),
                }
            )
        return rows


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _summarize(rows: list[Row]) -> list[Row]:
    """Means over pairs of labels that have figures, by units, edit and factor.

    `lost`: facts that are in no figure, because a loss became infinite or no number.
    """
    columns = ("lss", "lss_per_token", "difference", "shift", "shift_per_token")
    found: list[Row] = []
    for setting, here in by_setting(rows).items():
        lost: list[Any] = [row["lost"] for row in here]
        means = {column: mean_of(here, column) for column in columns}
        found.append(setting_columns(setting) | {"pairs": len(here), **means, "lost": sum(lost)})
    return found
