"""Code-mixing: which label's units fire in text that is mixed word by word, by rate and layer.

After the study of Aya-23 (arXiv 2507.20279): some words of a text in a base language are replaced
by those of another language. Words come from a dictionary, from translations, or, where there are
none, from other texts of that language.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import numpy as np

from saefeat.artefacts.experiments import Experiment, Plot, Row
from saefeat.config import MixConfig
from saefeat.corpora import TOKEN_LIMIT, Corpus
from saefeat.experiments.frame import Question, carry_out, mean_of
from saefeat.experiments.mixed import Pair, find_pairs
from saefeat.experiments.units import UnitBench, UnitSet
from saefeat.experiments.words import Piece, count_words
from saefeat.io import UserError, fingerprint
from saefeat.lid.features import sum_by_label
from saefeat.models import LanguageModel
from saefeat.partition import layer_of
from saefeat.run.chosen import every_unit
from saefeat.run.opened import OpenRun
from saefeat.statistics import Stats

NAME = "mixing"
_FEW = 4  # pairs, of each of which a plot has panels of its own


def mix(opened: OpenRun, config: MixConfig, out: Path | None = None) -> Experiment:
    """Mix texts of each base label with words of others; see `saefeat.experiments`.

    Rows have the columns units, base, other (the label that is mixed in), source (of the words, see
    `saefeat.experiments.mixed`), texts, rate (per cent of the words that are to be replaced),
    replaced (share of the words that were), other_tokens (share of the tokens that are of replaced
    words; stretches of one label are tokenised alone for it), site, layer, of ("base", "other" or
    "rest": the label whose units are looked at; the rest is the mean over all further labels;
    "random base" and so on: random units in their place) and firing: the share of pairs of a token
    and a unit where the unit fires.

    Raises UserError for a rate that is no percentage, and as `find_pairs`.
    """
    if bad := [rate for rate in config.rates if not 0 <= rate <= 100]:
        raise UserError(f"a rate is from 0 to 100 per cent, not {bad[0]}", "rates")
    found, notes = find_pairs(opened, config)
    for note in notes:
        opened.say(f"note: {note}")
    units = UnitBench(opened)
    sets = units.find(config.units)
    pairs = {f"{pair.base} with {pair.other}": pair for pair in found}
    question = Question(
        NAME,
        "Code-mixing: firing of the units of the base and of the label that is mixed in",
        {
            **asdict(config),
            "pairs": {name: pair.source for name, pair in pairs.items()},
            "mixed": fingerprint([asdict(pair) for pair in found]),
            "sets": units.describe(sets),
        },
        _plots(len(pairs)),
        notes,
    )
    rates = [*dict.fromkeys(config.rates)]

    def measure(part: str) -> list[Row]:
        return _measure(units, sets, pairs[part], rates, config.seed)

    out = out or opened.files.experiment_file(NAME)
    return carry_out(opened, out, question, list(pairs), measure, _summarize)


def _plots(pairs: int) -> list[Plot]:
    """Means over pairs by layer and rate; where pairs are few, means over layers of each too."""
    lines = [("layer", ["units", "rate"])]
    if pairs <= _FEW:
        lines.append(("rate", ["units", "base", "other"]))
    return [
        {"kind": "lines", "x": x, "y": "of", "value": "firing", "panels": panels}
        for x, panels in lines
    ]


def _measure(
    units: UnitBench, sets: Sequence[UnitSet], pair: Pair, rates: Sequence[int], seed: int
) -> list[Row]:
    mixed = pair.mixed(rates, seed)
    stats = _count(units, list(every_unit([each.chosen for each in sets])), mixed)
    shares = {rate: _shares(units.opened.lm, some) for rate, some in mixed.items()}
    rest = [x for x in units.opened.corpus.labels if x not in (pair.base, pair.other)]
    return [
        {
            "units": each.control or each.name,
            "base": pair.base,
            "other": pair.other,
            "source": pair.source,
            "texts": len(pair.texts),
            "rate": rate,
            **shares[rate],
            "site": units.dictionaries.read(name).site,
            "layer": layer_of(units.dictionaries.read(name).site),
            "of": f"random {kind}" if each.control else kind,
            "firing": _firing(stats[name], str(rate), each, name, of),
        }
        for each in sets
        for name in every_unit([each.chosen])
        for rate in rates
        for kind, of in {"base": [pair.base], "other": [pair.other], "rest": rest}.items()
    ]


def _count(
    units: UnitBench, names: Sequence[str], mixed: dict[int, list[list[Piece]]]
) -> dict[str, Stats]:
    """Dictionary -> how often its units fire, with the rates as labels."""
    flat = ["".join(piece for piece, _ in pieces) for some in mixed.values() for pieces in some]
    of_text = [str(rate) for rate, some in mixed.items() for _ in some]
    corpus = Corpus(flat, of_text, [""] * len(flat), tuple(map(str, mixed)), NAME)
    dictionaries = [units.dictionaries.read(name) for name in names]
    return sum_by_label(units.opened.lm, dictionaries, corpus)


def _shares(lm: LanguageModel, mixed: Sequence[list[Piece]]) -> dict[str, float | None]:
    """The shares of words and of tokens that are of the label that is mixed in."""
    words = sum(count_words([word for word, _ in pieces]) for pieces in mixed)
    replaced = sum(is_other for pieces in mixed for _, is_other in pieces)
    runs = [
        (is_other, "".join(word for word, _ in some).strip())
        for pieces in mixed
        for is_other, some in groupby(pieces, lambda piece: piece[1])
    ]
    rows = lm.tokenize([text for _, text in runs], TOKEN_LIMIT)
    lengths = [(is_other, len(row)) for (is_other, _), row in zip(runs, rows, strict=True)]
    tokens = sum(length for _, length in lengths)
    others = sum(length for is_other, length in lengths if is_other)
    return {
        "replaced": replaced / words if words else None,
        "other_tokens": others / tokens if tokens else None,
    }


def _firing(
    stats: Stats, rate: str, units: UnitSet, name: str, labels: Sequence[str]
) -> float | None:
    """Mean over labels of the share of pairs of a token and a unit in which the unit fires."""
    row = stats.row(rate)
    tokens = int(stats.tokens[row])
    some = [chosen for x in labels if (chosen := units.chosen.get(x, {}).get(name))]
    if not tokens or not some:
        return None
    return float(np.mean([stats.fired[row, each].double().mean() / tokens for each in some]))


def _summarize(rows: list[Row]) -> list[Row]:
    """By set and rate: means over pairs of labels and sites."""
    found: list[Row] = []
    kinds = list(dict.fromkeys(str(row["of"]) for row in rows))
    for units, rate in dict.fromkeys((row["units"], row["rate"]) for row in rows):
        here = [row for row in rows if (row["units"], row["rate"]) == (units, rate)]
        means = {kind: mean_of([r for r in here if r["of"] == kind], "firing") for kind in kinds}
        shares = {name: mean_of(here, name) for name in ("replaced", "other_tokens")}
        found.append({"units": units, "rate": rate, **shares, **means})
    return found
