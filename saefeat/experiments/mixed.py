"""Pairs of labels whose texts are mixed word by word, and where the words come from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from saefeat.config import MixConfig
from saefeat.corpora import Corpus, first_by_hash, hashed, load_corpus
from saefeat.corpora.tables import read_table
from saefeat.experiments.cases import translations
from saefeat.experiments.words import Piece, by_place, mix_words, split_word, words_of
from saefeat.io import UserError, user_path
from saefeat.labels import in_codes
from saefeat.run.opened import OpenRun
from saefeat.run.steer import find_label

DICTIONARY, PARALLEL, UNRELATED = "dictionary", "parallel", "unrelated"
SOURCES = {
    DICTIONARY: "the dictionary; words that it lacks stay",
    PARALLEL: "the same place of the parallel text",
    UNRELATED: "other texts of the label, which are no translations",
}


@dataclass(frozen=True)
class Pair:
    """Texts of a base, into which words of another label are mixed.

    Attributes:
        source: one of `SOURCES`.
        texts: (id, text of the base, text that has the words; "" with a dictionary).
        entries: word of the base, case folded -> word of the other label.
    """

    base: str
    other: str
    source: str
    texts: Sequence[tuple[str, str, str]]
    entries: Mapping[str, str] = field(default_factory=dict)

    def mixed(self, rates: Sequence[int], seed: int) -> dict[int, list[list[Piece]]]:
        """Rate -> the mixed texts. Their words are drawn in one order for all rates."""
        found: dict[int, list[list[Piece]]] = {rate: [] for rate in rates}
        longest = max(map(len, self.entries), default=0)
        for key, text, there in self.texts:
            words = words_of(text, self.entries, longest)
            if self.entries:
                others = self._looked_up(words)
            else:
                words, others = by_place(words, there)
            order = np.random.default_rng(hashed(seed, "mix", key)).permutation(len(words))
            for rate in rates:
                found[rate].append(mix_words(words, others, rate, order))
        return found

    def _looked_up(self, words: Sequence[str]) -> list[str]:
        return [self.entries.get(split_word(word)[1].casefold(), "") for word in words]


def find_pairs(opened: OpenRun, config: MixConfig) -> tuple[list[Pair], list[str]]:
    """The pairs that can be mixed, and notes on where words come from and on what is left out.

    Raises UserError for an unknown label; for labels that are asked for and have no text; for a
    dictionary without a column for a label, or without words of a pair; for parallel texts of
    which no two are translations; and where there is no pair.
    """
    if config.dictionary and config.parallel:
        raise UserError("give a dictionary or parallel texts, not both", "dictionary", "parallel")
    texts = _Texts.open(opened, config)
    wanted, without = _choose(opened, config, texts)
    pairs = [*_prepare(config, texts, wanted)]
    if not pairs:
        raise UserError(
            f"the texts of {texts.corpus.name} are not parallel: no two different texts of "
            f"{wanted[0][0]} share their id with texts of another label that is mixed in; "
            "give a corpus whose translations share an id",
            "parallel",
        )
    found = {(pair.base, pair.other) for pair in pairs}
    notes = _notes(pairs, config.texts)
    if lost := [f"{base} with {other}" for base, other in wanted if (base, other) not in found]:
        notes.append(f"Left out, because there are no two translations: {', '.join(lost)}.")
    if without:
        notes.append(f"Left out, because there are no texts to mix: {', '.join(without)}.")
    return pairs, notes


def _prepare(config: MixConfig, texts: _Texts, wanted: Sequence[tuple[str, str]]) -> Iterator[Pair]:
    """The pairs of a base and another label of which there are words."""
    table = _read_table(config, {label for pair in wanted for label in pair})
    shared: dict[str, dict[str, list[tuple[str, str, str]]]] = {}
    for base, other in wanted:
        if table:
            entries = _entries(config, table, base, other)
            yield Pair(base, other, DICTIONARY, texts.own(base), entries)
            continue
        if base not in shared:
            shared[base] = texts.translations(base)
        if len(translated := shared[base].get(other, [])) > 1:
            yield Pair(base, other, PARALLEL, translated)
        elif config.parallel is None:
            yield Pair(base, other, UNRELATED, texts.unrelated(base, other))


def _notes(pairs: Sequence[Pair], asked: int) -> list[str]:
    """Where words come from, and which pairs have fewer texts than were asked for."""
    by_source: dict[str, list[str]] = {}
    for pair in pairs:
        by_source.setdefault(pair.source, []).append(f"{pair.base} with {pair.other}")
    found = []
    for source, names in by_source.items():
        of = f" for {', '.join(names)}" if len(by_source) > 1 else ""
        found.append(f"Words that are mixed in{of} come from {SOURCES[source]}.")
    few = [f"{p.base} with {p.other} {len(p.texts)}" for p in pairs if len(p.texts) < asked]
    return [*found, f"Fewer texts than {asked}: {', '.join(few)}."] if few else found


def _choose(
    opened: OpenRun, config: MixConfig, texts: _Texts
) -> tuple[list[tuple[str, str]], list[str]]:
    """(base, other label) of each pair, and the labels that are left out for want of texts.

    Raises UserError for a label that is asked for and is unknown or has no text, and where there is
    no pair.
    """

    def asked(labels: Sequence[str] | None, name: str, *, has_text: bool = True) -> list[str]:
        found = list(dict.fromkeys(find_label(opened, each, name) for each in labels or ()))
        if lacking := [label for label in found if has_text and label not in texts.of]:
            raise UserError(f"{texts.name} has no text of {lacking[0]}", name)
        return found

    every = opened.corpus.labels
    usable = [label for label in every if label in texts.of]
    bases = asked(config.base, "base") or usable[:2]
    others = asked(config.with_, "with_", has_text=config.dictionary is None)
    others = others or (list(every) if config.dictionary else usable)
    wanted = [(base, other) for base in bases for other in others if base != other]
    if not wanted and len(usable) < 2:
        has = ", ".join(usable) or "no label"
        wrong = ["parallel"] if config.parallel else []
        raise UserError(f"{texts.name} has texts of {has} of the run; mixing needs two", *wrong)
    if not wanted:
        raise UserError("a text is mixed with another label; name two", "base", "with_")
    named = config.base and config.with_
    return wanted, [each for each in every if not named and each not in {*usable, *others}]


@dataclass(frozen=True)
class _Texts:
    """Texts of the run's labels: its own test texts, or all of a parallel corpus.

    Attributes:
        of: label of the run -> positions of its texts; no entry where there are none.
        names: label of the run -> label of the corpus.
    """

    corpus: Corpus
    of: Mapping[str, Sequence[int]]
    names: Mapping[str, str]
    config: MixConfig

    @classmethod
    def open(cls, opened: OpenRun, config: MixConfig) -> _Texts:
        corpus, positions = opened.corpus, opened.corpus.positions("test", opened.config.seed)
        if config.parallel is not None:
            corpus = load_corpus(config.parallel, say=opened.say)
            positions = range(len(corpus))
        by_name: dict[str, list[int]] = {}
        for i in positions:
            by_name.setdefault(corpus.of[i], []).append(i)
        names = in_codes(opened.corpus.labels, by_name)
        return cls(corpus, {label: by_name[name] for label, name in names.items()}, names, config)

    @property
    def name(self) -> str:
        """What they are called in messages."""
        return self.corpus.name if self.config.parallel else "the test split of the run"

    def own(self, label: str) -> list[tuple[str, str, str]]:
        """At most as many texts of a label as are asked for, by hashed id."""
        chosen = first_by_hash(self.corpus, self.of[label], self.config.seed, self.config.texts)
        return [(self.corpus.ids[i], self.corpus.texts[i], "") for i in chosen]

    def unrelated(self, base: str, other: str) -> list[tuple[str, str, str]]:
        """The same with a text of another label beside each."""
        there, seed = self.of[other], self.config.seed
        return [
            (key, text, self.corpus.texts[there[hashed(seed, "words", key) % len(there)]])
            for key, text, _ in self.own(base)
        ]

    def translations(self, base: str) -> dict[str, list[tuple[str, str, str]]]:
        """By label, at most as many texts of the base as are asked for, with translations."""
        corpus, config = self.corpus, self.config
        positions = [i for some in self.of.values() for i in some]
        found = translations(corpus, positions, self.names[base], config.texts, config.seed)
        return {
            label: [(corpus.ids[i], corpus.texts[i], corpus.texts[j]) for i, j in found[name]]
            for label, name in self.names.items()
            if name in found
        }


# --------------------------------------------------------------------------- dictionaries


def _read_table(config: MixConfig, labels: Collection[str]) -> list[dict[str, str]]:
    """The rows of the dictionary; none where there is no dictionary."""
    if config.dictionary is None:
        return []
    columns = dict.fromkeys(sorted(labels), "dictionary")
    return read_table(user_path(config.dictionary), columns, "dictionary")


def _entries(
    config: MixConfig, table: Sequence[Mapping[str, str]], base: str, other: str
) -> dict[str, str]:
    """Word of the base, case folded -> word of the other label.

    Rows that lack one of them are left out; of several rows of one word the first counts.

    Raises UserError where there is no row left.
    """
    found: dict[str, str] = {}
    for row in table:
        word, there = split_word(row[base])[1].casefold(), row[other].strip()
        if word and there:
            found.setdefault(word, there)
    if not found:
        raise UserError(
            f"{config.dictionary} has no row with words of both {base} and {other}", "dictionary"
        )
    return found
