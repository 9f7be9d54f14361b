"""Sets of units taken out, and the loss of each label's text: language apart from culture.

After CAPE (arXiv 2508.02241) and LAPE (arXiv 2402.16438). With `apart_from`, a selection (such as
cultures) is split by another one (such as languages): pure units are those that the label's own
selection has alone, compound units those of both. Directional ablation (`edit="erase"`) is of arXiv
2505.05111.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from saefeat.artefacts.experiments import Experiment, Row
from saefeat.artefacts.steering import TextMeasures
from saefeat.config import CONSTANT, AblateConfig
from saefeat.corpora import Corpus, load_corpus
from saefeat.experiments.frame import Question, carry_out, mean_of
from saefeat.experiments.units import UnitBench, UnitSet, own_labels, set_name
from saefeat.generation import predictable
from saefeat.io import UserError, fingerprint
from saefeat.run.matrix import measure_texts
from saefeat.run.opened import OpenRun
from saefeat.run.steer import pick_texts
from saefeat.selection import Selection
from saefeat.sets import Match, Operation, combine, read_pairs, with_labels
from saefeat.steering import CannotSteer, apply

NAME = "ablate"
Texts = dict[str, dict[str, list[str]]]  # corpus -> label -> texts


def ablate_sets(opened: OpenRun, config: AblateConfig, out: Path | None = None) -> Experiment:
    """Take out the units of each label and set, and measure the loss of all texts.

    Rows have the columns units, edited (label), count (units), texts (the corpus), evaluated
    (label), n (texts), nll_before and nll (mean negative log-likelihood, nats per token), change
    (of the mean) and change_median (of the median). Labels of selections and of a second corpus
    stand under the run's own labels where they belong together (see `own_labels`).

    Raises UserError for units, pairs or a corpus that cannot be used, and CannotSteer where no
    label has a test text.
    """
    pairs = _pairs(opened, config.map or ())
    texts = _texts(opened, config, pairs)
    units = UnitBench(opened, pairs=pairs)
    sets = units.with_twins(_sets(units, config))
    question = Question(
        NAME,
        "Ablation: change of the loss of each label's text without the units of a label",
        {
            **asdict(config),
            "texts": {name: {x: len(some) for x, some in of.items()} for name, of in texts.items()},
            "fingerprint": fingerprint(texts),
            "sets": units.describe(sets),
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
        with apply(opened.lm, units.build(config.edit, chosen, label), 1.0, CONSTANT):
            after = _losses(opened, texts)
        return _rows(chosen, label, texts, before, after)

    out = out or opened.files.experiment_file(NAME)
    return carry_out(opened, out, question, list(of), measure, _summarize)


def _pairs(opened: OpenRun, given: Sequence[str]) -> list[tuple[str, str]]:
    """Read pairs of labels. Raises UserError for one of which the run has no label."""
    pairs, own = read_pairs(given, "map"), opened.corpus.labels
    for pair in pairs:
        if not own_labels(pair, own):
            raise UserError(
                f"the run has neither {pair[0]} nor {pair[1]}; its labels are {', '.join(own)}",
                "map",
            )
    return pairs


def _texts(opened: OpenRun, config: AblateConfig, pairs: Sequence[tuple[str, str]]) -> Texts:
    """The test texts of the run's corpus, and texts of a second one, by the run's labels."""
    corpora: dict[str, tuple[Corpus, str]] = {"own": (opened.corpus, "test")}
    if config.texts is not None:
        other = load_corpus(config.texts, min_labels=1, say=opened.say, **config.columns)
        corpora[config.texts] = other, config.texts_split
    found: Texts = {}
    for name, (corpus, split) in corpora.items():
        own = own_labels(corpus.labels, opened.corpus.labels, pairs)
        if lost := [label for label in corpus.labels if label not in own]:
            opened.say(f"note: {', '.join(lost)} of {name} belong to no label of the run")
        found[name] = {}
        for label in corpus.labels:
            some = pick_texts(corpus, label, config.sentences, opened.config.seed, split)
            if some := predictable(opened.lm, some):
                found[name].setdefault(own.get(label, label), []).extend(some)
    if not found["own"]:
        raise CannotSteer("no label has a test text to measure; the corpus is too small")
    if config.texts is not None and not found[config.texts]:
        raise UserError(
            f"{config.texts} has no text in its test split; measure all texts", "texts_split"
        )
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
        own = own_labels(first.labels, units.opened.corpus.labels, units.pairs)
        first = with_labels(first, own)
        kinds: dict[str, Operation] = {"pure": "difference", "compound": "intersection"}
        for kind, operation in kinds.items():
            split = _split(operation, first, other, config.match, units.pairs)
            found.append(UnitSet(f"{kind} {set_name(file)}", units.chosen(split, file)))
    return found


def _split(
    operation: Operation,
    first: Selection,
    other: Selection,
    match: Match,
    pairs: Sequence[tuple[str, str]],
) -> Selection:
    """The units of a selection apart from those of another one, or those of both."""
    here = [
        (one, two)
        for pair in pairs
        for one, two in (pair, pair[::-1])
        if match == "languages" and one in first.labels and two in other.labels
    ]
    try:
        return combine(operation, first, other, match=match, pairs=here)
    except UserError as error:  # `combine` has another name for the option
        options = ("map" if name == "pairs" else name for name in error.options)
        raise UserError(str(error), *options) from error


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
    """By set and corpus: mean change of the label's own text and of the others, with the gap.

    `lost`: pairs of labels that are in no mean, because a loss became infinite or no number.
    """
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
                "lost": sum(x["nll"] is None and x["nll_before"] is not None for x in here),
            }
        )
    return found
