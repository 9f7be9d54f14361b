"""Code-mixing: which label's units fire in text that is mixed word by word, by rate and layer.

After the study of Aya-23 (arXiv 2507.20279): some words of a text in a base language are replaced
by those of another language. Words come from a dictionary, from parallel texts, or, where there are
none, from other texts of that language.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from saefeat.artefacts.experiments import Experiment, Row
from saefeat.config import MixConfig
from saefeat.corpora import Corpus, first_by_hash, hashed
from saefeat.corpora.tables import read_table
from saefeat.experiments.frame import Question, carry_out, mean_of
from saefeat.experiments.units import UnitBench, UnitSet
from saefeat.io import UserError, fingerprint
from saefeat.lid.features import sum_by_label
from saefeat.partition import layer_of
from saefeat.run.chosen import every_unit
from saefeat.run.opened import OpenRun
from saefeat.run.steer import find_label
from saefeat.statistics import Stats
from saefeat.steering import CannotSteer

NAME = "mixing"
# A word with what surrounds it up to the next blank. Texts of scripts without blanks have few.
_WORD = re.compile(r"\S+\s*")
_LONG = 16  # letters of a mean word from which a text counts as written without blanks
_PIECE = 2  # characters that are a word there: the mean length of a Chinese word is less than two

Words = Callable[[int, Sequence[str]], list[str]]
"""(position of a base text, its words) -> the word that may stand in place of each."""


def mix(opened: OpenRun, config: MixConfig, out: Path | None = None) -> Experiment:
    """Mix texts of each base label with words of others; see `saefeat.experiments`.

    Rows have the columns units, base, other (the label that is mixed in), rate (per cent of the
    words), site, layer, of ("base", "other" or "rest": the label whose units are looked at; the
    rest is the mean over all further labels) and firing: the share of pairs of a token and a unit
    where the unit fires.

    Raises UserError for an unknown label, or a dictionary without a column for a label; CannotSteer
    where a base has no test text or the units have none for a label.
    """
    corpus = opened.corpus
    bases = _labels(opened, config.base, "base") or list(corpus.labels[:2])
    others = _labels(opened, config.with_, "with_") or list(corpus.labels)
    if not any(base != other for base in bases for other in others):
        raise UserError("a text is mixed with another label; name two", "base", "with_")
    if bad := [rate for rate in config.rates if not 0 <= rate <= 100]:
        raise UserError(f"a rate is from 0 to 100 per cent, not {bad[0]}", "rates")
    texts = _Texts(opened, config, {*bases, *others})
    units = UnitBench(opened)
    sets = units.find(config.units)
    source, mark = texts.source, fingerprint([texts.table or [], corpus.fingerprint])
    question = Question(
        NAME,
        "Code-mixing: firing of the units of the base and of the label that is mixed in",
        {
            **asdict(config),
            "base": bases,
            "with_": others,
            "words": [source, mark],
            "sets": units.describe(sets),
        },
        [
            {
                "kind": "lines",
                "x": "rate",
                "y": "of",
                "value": "firing",
                "panels": ["units", "base", "other", "site"],
            }
        ]
        if len(bases) * len(others) <= 4
        else [],
        [f"Words that are mixed in come from {source}."],
    )
    parts = {f"{base} with {x}": (base, x) for base in bases for x in others if base != x}

    rates = [*dict.fromkeys(config.rates)]

    def measure(part: str) -> list[Row]:
        return _measure(units, sets, texts, *parts[part], rates)

    out = out or opened.files.experiment_file(NAME)
    return carry_out(opened, out, question, list(parts), measure, _summarize)


def _labels(opened: OpenRun, asked: Sequence[str] | None, name: str) -> list[str]:
    return list(dict.fromkeys(find_label(opened, label, name) for label in asked or ()))


# --------------------------------------------------------------------------- words


def words_of(text: str) -> list[str]:
    """Split a text into words with the blanks that follow them; together they are the text.

    A text without blanks between words (Chinese, Japanese, Thai) is split into pairs of characters.
    """
    words = _WORD.findall(text.strip())
    if words and sum(map(len, words)) / len(words) > _LONG:
        whole = text.strip()
        return [whole[i : i + _PIECE] for i in range(0, len(whole), _PIECE)]
    return words


def mix_words(words: Sequence[str], others: Sequence[str], rate: float, order: np.ndarray) -> str:
    """Replace a share of the words.

    Args:
        others: what may stand in place of each word; it keeps the blanks of the word.
        rate: per cent of the words that are replaced.
        order: a permutation of the words; the first of it are replaced, so that a greater rate
            replaces all that a smaller one does.
    """
    chosen = {*order[: round(len(words) * rate / 100)].tolist()}
    found = []
    for at, (word, other) in enumerate(zip(words, others, strict=True)):
        blanks = word[len(word.rstrip()) :]
        found.append(f"{other.rstrip()}{blanks}" if at in chosen else word)
    return "".join(found)


@dataclass
class _Texts:
    """The texts that are mixed, and where words come from.

    Attributes:
        labels: those that are mixed.
    """

    opened: OpenRun
    config: MixConfig
    labels: set[str]

    def __post_init__(self) -> None:
        self.table = self._read() if self.config.dictionary else None
        corpus, seed = self.opened.corpus, self.opened.config.seed
        self.test: dict[str, list[int]] = {label: [] for label in self.labels}
        for i in corpus.positions("test", seed):
            if corpus.of[i] in self.test:
                self.test[corpus.of[i]].append(i)
        self.by_id = {x: {corpus.ids[i]: i for i in some} for x, some in self.test.items()}
        shared = [set(ids) for ids in self.by_id.values()]
        self.parallel = bool(set.intersection(*shared)) if shared else False

    @property
    def source(self) -> str:
        """Where words come from, for readers."""
        if self.table is not None:
            return "the dictionary; words that it lacks stay"
        if self.parallel:
            return "the same place of the parallel text"
        return "other texts of the label, which are no translations"

    def _read(self) -> dict[str, list[str]]:
        """Label -> words, row by row."""
        path = Path(str(self.config.dictionary))
        rows = read_table(path, dict.fromkeys(self.labels, "dictionary"), "dictionary")
        return {label: [row[label] for row in rows] for label in sorted(self.labels)}

    def mixed(self, base: str, other: str, rates: Sequence[int]) -> dict[int, list[str]]:
        """Rate -> mixed texts. Raises CannotSteer where the base has no text to mix."""
        corpus, seed = self.opened.corpus, self.config.seed
        usable = self.test[base]
        if self.table is None and self.parallel:
            usable = [i for i in usable if corpus.ids[i] in self.by_id[other]]
        chosen = first_by_hash(corpus, usable, seed, self.config.texts)
        if not chosen or not self.test[other]:
            raise CannotSteer(f"there are no test texts of {base} to mix with {other}")
        replace = self._words(base, other)
        found: dict[int, list[str]] = {rate: [] for rate in rates}
        for i in chosen:
            words = words_of(corpus.texts[i])
            others = replace(i, words)
            order = np.random.default_rng(hashed(seed, "mix", corpus.ids[i])).permutation(
                len(words)
            )
            for rate in rates:
                found[rate].append(mix_words(words, others, rate, order))
        return found

    def _words(self, base: str, other: str) -> Words:
        corpus = self.opened.corpus
        if self.table is not None:
            pairs = zip(self.table[base], self.table[other], strict=True)
            known = {one.casefold().strip(): two for one, two in pairs}
            return lambda _, words: [known.get(_bare(word), word) for word in words]

        def place(i: int, words: Sequence[str]) -> list[str]:
            if self.parallel:
                at = self.by_id[other][corpus.ids[i]]
            else:
                some = self.test[other]
                at = some[hashed(self.config.seed, "words", corpus.ids[i]) % len(some)]
            there = words_of(corpus.texts[at])
            return [there[j * len(there) // len(words)] for j in range(len(words))]

        return place


def _bare(word: str) -> str:
    """A word as a dictionary has it."""
    return re.sub(r"^\W+|\W+$", "", word).casefold()


# --------------------------------------------------------------------------- firing


def _measure(
    units: UnitBench,
    sets: Sequence[UnitSet],
    texts: _Texts,
    base: str,
    other: str,
    rates: Sequence[int],
) -> list[Row]:
    mixed = texts.mixed(base, other, rates)
    names = every_unit([each.chosen for each in sets])
    flat = [text for some in mixed.values() for text in some]
    of_text = [str(rate) for rate, some in mixed.items() for _ in some]
    corpus = Corpus(flat, of_text, [""] * len(flat), tuple(map(str, mixed)), NAME)
    dictionaries = [units.dictionaries.read(name) for name in names]
    stats = sum_by_label(units.opened.lm, dictionaries, corpus)
    rest = [label for label in units.opened.corpus.labels if label not in (base, other)]
    return [
        {
            "units": each.name,
            "base": base,
            "other": other,
            "rate": rate,
            "site": units.dictionaries.read(name).site,
            "layer": layer_of(units.dictionaries.read(name).site),
            "of": kind,
            "firing": _firing(stats[name], str(rate), each, name, of),
        }
        for each in sets
        for name in every_unit([each.chosen])
        for rate in mixed
        for kind, of in {"base": [base], "other": [other], "rest": rest}.items()
    ]


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
    """By set and rate: mean firing over pairs of labels and sites."""
    found: list[Row] = []
    for units, rate in dict.fromkeys((row["units"], row["rate"]) for row in rows):
        here: list[Mapping[str, object]] = [
            row for row in rows if (row["units"], row["rate"]) == (units, rate)
        ]
        means = {
            kind: mean_of([row for row in here if row["of"] == kind], "firing")
            for kind in ("base", "other", "rest")
        }
        found.append({"units": units, "rate": rate, **means})
    return found
