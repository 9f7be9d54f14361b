"""What the decoded tokens are by layer: languages, scripts, keywords of programming languages.

The logit lens decodes the residual stream of all layers, and each of the top tokens is attributed
by its string alone (arXiv 2402.18815, 2507.22608, 2506.01074).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saefeat.artefacts.experiments import Row
from saefeat.baselines.fasttext import FastText
from saefeat.corpora.tables import read_table
from saefeat.experiments.frame import Question
from saefeat.experiments.lenses.bench import (
    LAYERS,
    MEANS,
    LensBench,
    NotApplicable,
    Prepared,
    layer_means,
    stage_means,
)
from saefeat.experiments.lenses.figures import FIGURES, NOTES, text_figures
from saefeat.experiments.lenses.top import Counted, TopTokens
from saefeat.io import UserError, fingerprint
from saefeat.labels import LID176, to_labels
from saefeat.labels.scripts import known_scripts, script_of, scripts_of_label
from saefeat.lens.keywords import PROGRAMMING, by_language, languages_of, pygments_keywords
from saefeat.models import LanguageModel

_SAMPLE = 20_000  # tokens of the vocabulary that are attributed for comparison
_SETTINGS = ("norm", "texts", "positions", "generated", "top")
_OTHER = "other"  # scripts that none of the run's labels has


@dataclass
class Attribution:
    """A rule that attributes strings to classes.

    Attributes:
        kind: of lens.
        title: for readers.
        classes: all of them, in the order of the rows.
        read: strings -> the classes of each; none, one or several.
        own: the classes of a label.
        settings: what a result records of the rule.
    """

    kind: str
    title: str
    classes: Sequence[str]
    read: Callable[[list[str]], list[tuple[str, ...]]]
    own: Callable[[str], frozenset[str]]
    settings: dict[str, Any] = field(default_factory=dict)


def languages(bench: LensBench) -> Attribution:
    """By fastText, where its best code of 176 is reliable and among the run's labels."""
    labels, least = bench.opened.corpus.labels, bench.config.reliable
    names = to_labels(LID176, labels)
    if not names:
        raise NotApplicable("fastText can judge none of the labels of the run", "kinds")
    judge = FastText(labels=list(labels), unknown=None).fit().judge

    def read(strings: list[str]) -> list[tuple[str, ...]]:
        found = judge(strings)
        good = [best is not None and best[1] >= least and best[0] in names for best in found]
        pairs = zip(found, good, strict=True)
        return [(names[best[0]],) if ok and best else () for best, ok in pairs]

    known = [label for label in labels if label in names.values()]
    own = lambda label: frozenset({label} & set(known))  # noqa: E731
    return Attribution("languages", "languages", known, read, own, {"reliable": least})


def scripts(bench: LensBench) -> Attribution:
    """By the script of most letters of a string: one of the run's labels, Latin, or another."""
    own = {script for label in bench.opened.corpus.labels for script in scripts_of_label(label)}
    if not own:
        raise NotApplicable("none of the labels of the run is a language with a script", "kinds")
    classes = [script for script in known_scripts() if script in own | {"Latn"}]

    def read(strings: list[str]) -> list[tuple[str, ...]]:
        found = map(script_of, strings)
        return [(x if x in classes else _OTHER,) if x else () for x in found]

    return Attribution("scripts", "scripts", [*classes, _OTHER], read, scripts_of_label)


def keywords(bench: LensBench, needed: Sequence[str] = ()) -> Attribution:
    """By the keywords of programming languages: those of a table, or of Pygments.

    `needed`: languages that have to be among them. Raises UserError where a table lacks one, and
    where one language has two names.
    """
    config, labels = bench.config, bench.opened.corpus.labels
    settings: dict[str, Any] = {}
    if config.keywords is not None:
        table = keyword_table(Path(config.keywords))
        names, found = list(table), {name: words.__contains__ for name, words in table.items()}
        if lacking := [name for name in needed if name not in table]:
            raise UserError(f"{config.keywords} has no keywords of {lacking[0]}", "keywords")
        settings["table"] = fingerprint({name: sorted(words) for name, words in table.items()})
    else:
        from pygments import __version__

        asked = bool(config.kinds or needed)
        others = config.programming or _programming(labels, asked)
        known = by_language(needed, "programs")
        beside = by_language(others, "programming")
        names = [*needed, *(name for language, name in beside.items() if language not in known)]
        found, settings = pygments_keywords(names), {"pygments": __version__}

    def read(strings: list[str]) -> list[tuple[str, ...]]:
        return [languages_of(string, found) for string in strings]

    own = lambda label: frozenset({label} & set(names))  # noqa: E731
    return Attribution("keywords", "keywords", names, read, own, {**settings, "names": names})


def _programming(labels: Sequence[str], asked: bool) -> list[str]:
    """The labels that are programming languages; if it was asked for and there are none, ten."""
    found = [label for label in labels if label.lower() in PROGRAMMING]
    if not found and not asked:
        raise NotApplicable("none of the labels of the run is a programming language", "kinds")
    return found or [*PROGRAMMING]


def keyword_table(path: Path) -> dict[str, set[str]]:
    """Read a table of keywords: programming language -> words.

    Raises UserError for a table that `read_table` refuses, or a cell that is empty or has a space.
    """
    found: dict[str, set[str]] = {}
    rows = read_table(path, {"label": "keywords", "keyword": "keywords"}, "keywords")
    for number, row in enumerate(rows, 1):
        label, word = row["label"].strip(), row["keyword"].strip()
        if not label or len(word.split()) != 1:
            raise UserError(f"{path}: row {number} needs a label and a keyword without spaces")
        found.setdefault(label, set()).add(word)
    return found


# --------------------------------------------------------------------------- the experiment


def decode_tokens(bench: LensBench, top: TopTokens, attribution: Attribution) -> Prepared:
    """Attribute the top tokens of every layer on the texts of every label.

    Rows have the columns text (label of the texts), norm, layer, decoded (a class), count (decoded
    tokens of the class), share (of the tokens of any class; None without any), attributed (share of
    all decoded tokens that have a class), vocabulary (the same share as `share`, of random tokens
    of the vocabulary), mass (next-token probability that lies on the decoded tokens of the class,
    mean over the places) and by_chance (what lies on all decoded tokens, times the part of the
    random tokens that are of the class).
    """
    kind, config = attribution.kind, bench.config
    question = Question(
        f"lens-{kind}",
        f"Logit lens: {attribution.title} of the decoded tokens by layer",
        {
            **bench.settings(*_SETTINGS),
            "pivot": bench.pivot,
            **attribution.settings,
            **({"decoding": vars(bench.decoding)} if config.generated else {}),
        },
        [
            MEANS,
            {
                "kind": "lines",
                "x": "layer",
                "y": "decoded",
                "value": "share",
                "panels": ["norm", "text"],
            },
        ],
        [LAYERS, *NOTES],
    )
    reader = TokenReader(bench.lm, attribution)
    chance = cache(lambda: sample_vocabulary(bench, reader))

    def measure(label: str) -> list[Row]:
        rows: list[Row] = []
        for (norm, layer), counted in top.count(label).items():
            head = {"text": label, "norm": norm, "layer": layer}
            rows += [{**head, **row} for row in reader.rows(counted, chance())]
        return rows

    labels, figures = (
        bench.opened.corpus.labels,
        partial(text_figures, attribution.own, bench.pivot),
    )

    def summarize(rows: list[Row]) -> list[Row]:
        return stage_means(figures(rows), ("norm",), FIGURES, list(bench.sites))

    def average(rows: list[Row]) -> list[Row]:
        return layer_means(figures(rows), FIGURES)

    return Prepared(question, labels, measure, summarize, average=average)


class Chance(NamedTuple):
    """Shares of each class among random tokens of the vocabulary, float64 [K].

    Attributes:
        share: of those that have a class; None where none has one.
        of_all: of all of them.
    """

    share: np.ndarray | None
    of_all: np.ndarray


class TokenReader:
    """Attributes tokens by their strings, each once. Special tokens have no class."""

    def __init__(self, lm: LanguageModel, attribution: Attribution) -> None:
        self.lm, self.attribution = lm, attribution
        added = lm.tokenizer.added_tokens_decoder.items()
        self._index = {name: i for i, name in enumerate(attribution.classes)}
        special = {*lm.special_ids, *(token for token, known in added if known.special)}
        self._known: dict[int, tuple[int, ...]] = dict.fromkeys(special, ())

    def classes(self, ids: Iterable[int]) -> list[tuple[int, ...]]:
        """The numbers of the classes of each token."""
        ids = list(ids)
        new = [token for token in dict.fromkeys(ids) if token not in self._known]
        strings = [self.lm.tokenizer.decode([token]) for token in new]
        for token, names in zip(new, self.attribution.read(strings), strict=True):
            self._known[token] = tuple(self._index[name] for name in names)
        return [self._known[token] for token in ids]

    def rows(self, counted: Counted, chance: Chance) -> list[Row]:
        """A row for each class; see `decode_tokens`."""
        found, share = self.sums(counted.ids, counted.counts)
        attributed = self.attributed(counted.ids, counted.counts) / int(counted.counts.sum())
        mass, every = self.by_class(counted.ids, counted.mass), float(counted.mass.sum())
        return [
            {
                "decoded": decoded,
                "count": int(found[i]),
                "share": None if share is None else float(share[i]),
                "attributed": attributed,
                "vocabulary": None if chance.share is None else float(chance.share[i]),
                "mass": float(mass[i]),
                "by_chance": every * float(chance.of_all[i]),
            }
            for i, decoded in enumerate(self.attribution.classes)
        ]

    def sums(self, ids: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Tokens of each class, int64 [K], and their shares; None where no token has a class."""
        found, attributed = self.by_class(ids, counts), self.attributed(ids, counts)
        return found, found / attributed if attributed else None

    def by_class(self, ids: np.ndarray, values: np.ndarray) -> np.ndarray:
        """The sum over the tokens of each class of their values: [K], of the dtype of values."""
        found = np.zeros(len(self._index), values.dtype)
        for numbers, value in zip(self.classes(ids.tolist()), values.tolist(), strict=True):
            found[list(numbers)] += value
        return found

    def attributed(self, ids: np.ndarray, counts: np.ndarray) -> int:
        """Number of tokens with at least one class."""
        return int(counts[[bool(numbers) for numbers in self.classes(ids.tolist())]].sum())


def sample_vocabulary(bench: LensBench, reader: TokenReader) -> Chance:
    """Attribute random tokens of the vocabulary."""
    size = min(len(bench.lm.tokenizer), bench.lm.unembedding().shape[0])
    rng = np.random.default_rng(bench.opened.config.seed)
    ids = rng.choice(size, min(size, _SAMPLE), replace=False)
    found, share = reader.sums(ids, np.ones_like(ids))
    return Chance(share, found / len(ids))
