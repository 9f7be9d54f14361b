"""Attribution: what each class of units contributes to the next token, layer by layer.

Wang et al., arXiv 2406.09265: contribution and effective score as in their code, integrated
gradients as in their paper; see `saefeat.attribution`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from saefeat.artefacts.experiments import Experiment, Row
from saefeat.attribution import Prompt, Scorer, Scores
from saefeat.config import AttributionConfig
from saefeat.dictionaries import Dictionary
from saefeat.experiments.cases import Case, load_cases, parallel_keys, test_keys, text_cases
from saefeat.experiments.classes import (
    INPUTS,
    Classified,
    Pool,
    choose_rule,
    classify,
    describe_classes,
    open_pools,
    texts_of_inputs,
)
from saefeat.experiments.frame import Question, carry_out, mean_of
from saefeat.experiments.units import UnitBench
from saefeat.io import UserError, fingerprint, user_path
from saefeat.partition import layer_of
from saefeat.run.opened import OpenRun

NAME = "attribution"
_SCORES = ("contribution", "effective", "attribution")
_SHARES = ("share_of_units", "contribution", "attribution_share")
_TOKENS = 16  # of a prompt, where texts are not parallel
_CUT = (
    "Classes are by input, and prompts are the first {} tokens of each version of a text; these "
    "versions need not say the same where they are cut."
)
_NOTES = (
    "Shares are of the units of a layer. share_of_units is the share that random units would have.",
    "attribution, summed over the classes of a layer, is about drop: what the probability of the "
    "answer loses when all units of the layer are zero at the last token.",
)


def attribute(opened: OpenRun, config: AttributionConfig, out: Path | None = None) -> Experiment:
    """Attribute answers to classes of units; see `saefeat.experiments`.

    Rows are of a dictionary, a label and a class, means over prompts: count and share_of_units;
    contribution, the share of the class, and the mean, max and min over its units; effective, the
    sum over the class, and the same; attribution, the sum, attribution_share (of absolute values)
    and the same; probability of the answer and drop.

    Raises UserError for a table or classes that cannot be used, and for units that do not write
    into the residual stream.
    """
    pools = open_pools(opened, config.pools)
    scorer = Scorer(opened.lm, [each for pool in pools for each in pool.dictionaries], config.steps)
    cases, rule, notes = _cases(opened, config)
    for note in notes:
        opened.say(f"note: {note}")
    units = UnitBench(opened)
    inputs = texts_of_inputs((case.key, case.label, case.prompt) for case in cases)
    classified = {
        pool.name: classify(units, rule, pool, inputs, config.threshold) for pool in pools
    }
    by_label = {
        label: [case for case in cases if case.label == label] for label in opened.corpus.labels
    }
    question = Question(
        NAME,
        "Attribution: what classes of units contribute to the next token",
        {
            **asdict(config),
            "classes": rule,
            "units": describe_classes(rule, pools, classified),
            "cases": fingerprint([asdict(each) for each in cases]),
        },
        [
            {
                "kind": "lines",
                "x": "layer",
                "y": "class",
                "value": value,
                "panels": ["units", "label"],
            }
            for value in ("contribution", "attribution_share")
        ],
        [*notes, *_NOTES],
    )
    experiment = _Attribution(scorer, pools, classified, by_label)
    out = out or opened.files.experiment_file(NAME)
    parts = [label for label, some in by_label.items() if some]
    return carry_out(opened, out, question, parts, experiment.measure, _summarize)


def _cases(opened: OpenRun, config: AttributionConfig) -> tuple[list[Case], str, list[str]]:
    """The cases, at most `prompts` of each label, the rule that classifies units, and notes.

    By input, prompts made of texts are whole, so that those of all labels say the same.
    """
    if config.table is None:
        keys = test_keys(opened)
        rule, notes = choose_rule(config.classes, bool(keys), "the test texts of the run")
        chosen = keys if rule == INPUTS else None
        tokens = config.tokens or (None if rule == INPUTS else _TOKENS)
        if tokens and rule == INPUTS:
            notes = [*notes, _CUT.format(tokens)]
        cases = text_cases(opened, config.prompts, tokens, chosen)
    else:
        cases = load_cases(opened, user_path(config.table))
        keys = parallel_keys((case.label, case.key) for case in cases)
        rule, notes = choose_rule(config.classes, bool(keys), f"the rows of {config.table}")
    if rule == INPUTS:
        kept = set(parallel_keys((case.label, case.key) for case in cases)[: config.prompts])
        if not kept:
            raise UserError("no parallel texts have two tokens in every label", "classes")
        return [case for case in cases if case.key in kept], rule, notes
    seen: dict[str, list[Case]] = {}
    for case in cases:
        seen.setdefault(case.label, []).append(case)
    return [case for some in seen.values() for case in some[: config.prompts]], rule, notes


class _Attribution:
    """Attributes the answers of one label."""

    def __init__(
        self,
        scorer: Scorer,
        pools: Sequence[Pool],
        classified: Mapping[str, Classified],
        cases: Mapping[str, Sequence[Case]],
    ) -> None:
        self.scorer = scorer
        self.pools, self.classified, self.cases = pools, classified, cases

    def measure(self, label: str) -> list[Row]:
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for case in self.cases[label]:
            scores = self.scorer.score(Prompt(self.scorer.lm, case.prompt), case.answer[0])
            for pool in self.pools:
                classified = self.classified[pool.name]
                for name, classes in classified.of(case.key).items():
                    for place, of in enumerate(classified.names):
                        if (one := scores[name]) is not None:
                            here = found.setdefault((name, of), [])
                            here.append(_of_class(one, classes == place))
        return [
            _row(pool, dictionary, label, of, found.get((dictionary.id, of), []))
            for pool in self.pools
            for dictionary in pool.dictionaries
            for of in self.classified[pool.name].names
        ]


def _of_class(scores: Scores, mask: Tensor) -> dict[str, float | None]:
    """What one class of units, bool [width], has of one answer."""
    count = int(mask.sum())
    found: dict[str, Any] = {"count": count, "share_of_units": count / len(mask)}
    for name in _SCORES:
        values = getattr(scores, name)[mask].double()
        found[name] = float(values.sum())
        for part in ("mean", "max", "min"):
            found[f"{name}_{part}"] = float(getattr(values, part)()) if count else None
    found["contribution"] = _share(scores.contribution, mask)
    found["attribution_share"] = _share(scores.attribution.abs(), mask)
    return {**found, "probability": scores.probability, "drop": scores.probability - scores.zeroed}


def _share(values: Tensor, mask: Tensor) -> float | None:
    """The share of some units in the sum of all; None where that is zero."""
    total = float(values.double().sum())
    return float(values[mask].double().sum()) / total if total else None


_COLUMNS = (
    "count",
    "share_of_units",
    *(f"{name}{part}" for name in _SCORES for part in ("", "_mean", "_max", "_min")),
    "attribution_share",
    "probability",
    "drop",
)


def _row(
    pool: Pool, dictionary: Dictionary, label: str, of: str, found: Sequence[Mapping[str, Any]]
) -> Row:
    return {
        "units": pool.name,
        "dictionary": dictionary.id,
        "layer": layer_of(dictionary.site),
        "label": label,
        "class": of,
        "prompts": len(found),
        **{column: mean_of(found, column) for column in _COLUMNS},
    }


def _summarize(rows: list[Row]) -> list[Row]:
    """Means over dictionaries and labels, by pool and class."""
    found: list[Row] = []
    for pool, of in dict.fromkeys((row["units"], row["class"]) for row in rows):
        here = [row for row in rows if (row["units"], row["class"]) == (pool, of)]
        columns = (*_SHARES, "effective", "attribution", "drop")
        found.append({"units": pool, "class": of, **{c: mean_of(here, c) for c in columns}})
    return found
