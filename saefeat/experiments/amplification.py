"""Amplification: what amplifying a label's units does to the text of this and of other labels.

Rahmanisa et al., arXiv 2507.22581: the effect on the label's own language (self) and on the others
(cross), here as the change of the negative log-likelihood of test texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from saefeat.artefacts.experiments import Experiment, Row
from saefeat.config import AmplifyConfig
from saefeat.experiments.frame import Question, carry_out, mean_of
from saefeat.experiments.sweep import by_setting, edits_and_factors, setting_columns
from saefeat.experiments.units import UnitBench, UnitSet, with_units
from saefeat.forcing import finite_or_none
from saefeat.generation import losses_by_label
from saefeat.run.opened import OpenRun
from saefeat.run.steer import pick_test_texts
from saefeat.steering import CannotSteer, apply

NAME = "amplification"


def amplify(opened: OpenRun, config: AmplifyConfig, out: Path | None = None) -> Experiment:
    """Amplify the units of each label, and measure the texts of all; see `saefeat.experiments`.

    Rows have the columns units, edit, factor, amplified (the label whose units are edited), count
    (of them), label (of the texts), texts, nll (mean over the texts of nats per token) and change
    (of nll). Where `amplified` and `label` are the same, the effect is on itself. Units "none" is
    the model as it is.

    Raises UserError for an unknown label or edit and a label without units of any set; CannotSteer
    where no label has a test text.
    """
    units = UnitBench(opened)
    sweep = edits_and_factors(config)
    sets = units.find(config.units)
    amplified = with_units(opened, sets, config.labels, opened.corpus.labels)
    picked = {x: pick_test_texts(opened, x, config.sentences) for x in opened.corpus.labels}
    texts = {label: some for label, some in picked.items() if some}
    if not texts:
        raise CannotSteer("no label has a test text to measure; the corpus is too small")
    experiment = _Amplification(units, texts)
    question = Question(
        NAME,
        "Amplification: change of the NLL of a label's text when units of a label are amplified",
        {**asdict(config), "labels": amplified, "sets": units.describe(sets)},
        [
            {
                "kind": "heat",
                "x": "label",
                "y": "amplified",
                "value": "change",
                "panels": ["units", "edit", "factor"],
            }
        ],
    )
    of: dict[str, tuple[UnitSet | None, str, float, str]] = {"none": (None, "none", 0.0, "none")}
    for each in sets:
        of |= {
            f"{each.name} {edit} {factor:g} {label}": (each, edit, factor, label)
            for edit, factor in sweep
            for label in amplified
            if each.count(label)
        }

    def measure(part: str) -> list[Row]:
        return experiment.measure(*of[part])

    out = out or opened.files.experiment_file(NAME)
    return carry_out(opened, out, question, list(of), measure, _summarize)


class _Amplification:
    """Measures the texts of all labels under an edit of one label's units."""

    def __init__(self, units: UnitBench, texts: Mapping[str, list[str]]) -> None:
        self.units, self.lm, self.texts = units, units.opened.lm, texts

    @cached_property
    def before(self) -> dict[str, list[float | None]]:
        """Losses under the model as it is."""
        return losses_by_label(self.lm, self.texts)

    def measure(self, units: UnitSet | None, edit: str, factor: float, amplified: str) -> list[Row]:
        """A row for each label with text that can be measured."""
        changes = self.units.build(edit, units, amplified) if units else {}
        with apply(self.lm, changes, factor):
            now = losses_by_label(self.lm, self.texts)
        head: Row = {
            "units": units.name if units else "none",
            "edit": edit,
            "factor": factor,
            "amplified": amplified,
            "count": units.count(amplified) if units else 0,
        }
        return [head | row for label in self.texts if (row := self._compare(label, now[label]))]

    def _compare(self, label: str, now: Sequence[float | None]) -> Row | None:
        """Measures of a label's texts; None where no text has a token to predict.

        There are no figures where the edit has made a loss infinite or no number.
        """
        pairs = [
            (math.nan if loss is None else loss, before)
            for loss, before in zip(now, self.before[label], strict=True)
            if before is not None
        ]
        if not pairs:
            return None
        return {
            "label": label,
            "texts": len(pairs),
            "nll": finite_or_none(fmean(loss for loss, _ in pairs)),
            "change": finite_or_none(fmean(loss - before for loss, before in pairs)),
        }


def _summarize(rows: list[Row]) -> list[Row]:
    """Mean changes of own and other text by units, edit and factor.

    `helped`: labels whose own text the edit has made likelier. `lost`: pairs of labels that are in
    no mean, because a loss became infinite or no number.
    """
    found: list[Row] = []
    for setting, here in by_setting(rows).items():
        own = [row for row in here if row["amplified"] == row["label"]]
        others = [row for row in here if row["amplified"] != row["label"]]
        changes: list[Any] = [row["change"] for row in own]
        found.append(
            setting_columns(setting)
            | {
                "labels": len(own),
                "self": mean_of(own, "change"),
                "cross": mean_of(others, "change"),
                "helped": sum(change is not None and change < 0 for change in changes),
                "lost": sum(row["change"] is None for row in here),
            }
        )
    return found
