"""Sets of units set to zero, and the loss of each label's text: language apart from culture.

After CAPE (arXiv 2508.02241) and LAPE (arXiv 2402.16438). With `apart_from`, a selection (such as
cultures) is split by another one (such as languages): pure units are those that the label's own
selection has alone, compound units those of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path

from saefeat.artefacts.experiments import Experiment, Row
from saefeat.artefacts.steering import TextMeasures
from saefeat.config import CONSTANT, AblateConfig
from saefeat.corpora import Corpus, load_corpus
from saefeat.experiments.frame import Question, carry_out, mean_of
from saefeat.experiments.units import UnitBench, UnitSet, describe, set_name
from saefeat.io import UserError, fingerprint
from saefeat.run.matrix import measure_texts
from saefeat.run.opened import OpenRun
from saefeat.run.steer import pick_texts
from saefeat.selection import Selection
from saefeat.sets import combine
from saefeat.steering import CannotSteer, apply

NAME = "ablate"
Texts = dict[str, dict[str, list[str]]]  # corpus -> label -> texts


def ablate_sets(opened: OpenRun, config: AblateConfig, out: Path | None = None) -> Experiment:
    """Set the units of each label and set to zero, and measure the loss of all texts.

    Rows have the columns units, edited (label), count (units), texts (the corpus), evaluated
    (label), n (texts), nll_before and nll (mean negative log-likelihood, nats per token), change
    (of the mean) and change_median (of the median).

    Raises UserError for units or a corpus that cannot be used, and CannotSteer where no label has a
    test text.
    """
    texts = _texts(opened, config)
    units = UnitBench(opened)
    sets = units.with_twins(_sets(units, config))
    question = Question(
        NAME,
        "Ablation: change of the loss of each label's text without the units of a label",
        {
            **asdict(config),
            "texts": {name: {x: len(some) for x, some in of.items()} for name, of in texts.items()},
            "fingerprint": fingerprint(texts),
            "sets": describe(sets),
        },
        [
            {
                "kind": "heat",
                "x": "evaluated",
                "y": "edited",
                "value": "change",
                "panels": ["texts", "units"],
            }
        ],
    )
    of = {
        f"{each.name}: {label}": (each, label)
        for each in sets
        for label in each.chosen
        if each.count(label)
    }
    if not of:
        raise CannotSteer("no label has units to set to zero", "units")
    unedited = cache(lambda: _losses(opened, texts))

    def measure(part: str) -> list[Row]:
        before = unedited()
        chosen, label = of[part]
        with apply(opened.lm, units.build("ablate", chosen, label), 1.0, CONSTANT):
            after = _losses(opened, texts)
        return _rows(chosen, label, texts, before, after)

    out = out or opened.files.experiment_file(NAME)
    return carry_out(opened, out, question, list(of), measure, _summarize)


def _texts(opened: OpenRun, config: AblateConfig) -> Texts:
    """The test texts of the run's corpus, and texts of a second one."""
    corpora: dict[str, tuple[Corpus, str]] = {"own": (opened.corpus, "test")}
    if config.texts is not None:
        other = load_corpus(config.texts, min_labels=1, say=opened.say, **config.columns)
        same = other.fingerprint == opened.corpus.fingerprint
        corpora[config.texts] = (other, "test" if same else "all")
    found = {}
    for name, (corpus, split) in corpora.items():
        some = {
            label: pick_texts(corpus, label, config.sentences, opened.config.seed, split)
            for label in corpus.labels
        }
        found[name] = {label: texts for label, texts in some.items() if texts}
    if not found["own"]:
        raise CannotSteer("no label has a test text to measure; the corpus is too small")
    return found


def _sets(units: UnitBench, config: AblateConfig) -> list[UnitSet]:
    """The sets that are asked for; with `apart_from`, their pure and compound units too."""
    found = units.named(config.units)
    if config.apart_from is None:
        return found
    files = [name for name in config.units if Path(name).is_file()]
    if not files:
        raise UserError("units are taken apart from others where they are files", "units")
    other = Selection.load(Path(config.apart_from))
    found.append(UnitSet(set_name(config.apart_from), units.chosen(other, config.apart_from)))
    for file in files:
        first = Selection.load(Path(file))
        pure = combine("difference", first, other, match="languages")
        compound = combine("intersection", first, other, match="languages")
        for kind, split in (("pure", pure), ("compound", compound)):
            found.append(UnitSet(f"{kind} {set_name(file)}", units.chosen(split, file)))
    return found


def _losses(opened: OpenRun, texts: Texts) -> dict[str, dict[str, TextMeasures]]:
    return {name: measure_texts(opened, some) for name, some in texts.items()}


def _rows(
    chosen: UnitSet,
    label: str,
    texts: Texts,
    before: Mapping[str, Mapping[str, TextMeasures]],
    after: Mapping[str, Mapping[str, TextMeasures]],
) -> list[Row]:
    return [
        {
            "units": chosen.name,
            "edited": label,
            "count": chosen.count(label),
            "texts": corpus,
            "evaluated": other,
            "n": len(some),
            "nll_before": one["nll_mean"] if one else None,
            "nll": two["nll_mean"] if two else None,
            "change": two["nll_mean"] - one["nll_mean"] if one and two else None,
            "change_median": two["nll_median"] - one["nll_median"] if one and two else None,
        }
        for corpus, of in texts.items()
        for other, some in of.items()
        for one, two in [(before[corpus].get(other), after[corpus].get(other))]
    ]


def _summarize(rows: list[Row]) -> list[Row]:
    """By set and corpus: mean change of the label's own text and of the others, with the gap."""
    found: list[Row] = []
    for units, corpus in dict.fromkeys((row["units"], row["texts"]) for row in rows):
        here = [row for row in rows if (row["units"], row["texts"]) == (units, corpus)]
        own = [row for row in here if row["edited"] == row["evaluated"]]
        others = [row for row in here if row["edited"] != row["evaluated"]]
        mine, theirs = mean_of(own, "change"), mean_of(others, "change")
        found.append(
            {
                "units": units,
                "texts": corpus,
                "labels": len(own),
                "mean_count": mean_of(own, "count"),
                "own": mine,
                "others": theirs,
                "gap": None if mine is None or theirs is None else mine - theirs,
            }
        )
    return found
