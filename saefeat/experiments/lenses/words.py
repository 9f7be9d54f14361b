"""How likely the expected word is in each language by layer (arXiv 2402.10588, 2411.08745).

The probability of a language is the next token's, summed over the first tokens of the words that
are expected in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saefeat.artefacts.experiments import Row
from saefeat.corpora.tables import read_table
from saefeat.experiments.frame import Question
from saefeat.experiments.lenses.bench import LAYERS, LensBench, NotApplicable, Prepared, stage_means
from saefeat.generation import encode_prompts
from saefeat.io import UserError, fingerprint
from saefeat.labels import find_english, in_codes, own_label
from saefeat.lens.logits import set_probabilities
from saefeat.lens.stream import read_places
from saefeat.models import LanguageModel

_TABLE = Path(__file__).with_name("words.csv")
_SHOTS = 4  # translations before the one that is asked for
_ALL = "all"  # group of prompts without a target
_SYNONYMS = "|"  # between the words of a cell


@dataclass(frozen=True)
class Cloze:
    """A prompt, and the words that are expected after it: language -> one or several.

    `target`: the language in which the answer is asked for, if it is known.
    """

    prompt: str
    words: Mapping[str, Sequence[str]]
    target: str | None = None


def read_clozes(path: Path) -> list[Cloze]:
    """Read a table with the column prompt, and a column for each language with the expected word.

    A cell may have several words, with | between them. The column target is optional; it has the
    language (the name of a column) in which the answer is asked for.

    Raises UserError for a table that `read_table` refuses, that has no language, or whose target is
    none; or for an empty cell.
    """
    rows = read_table(path, {"prompt": "words"}, "words")
    languages = [name for name in rows[0] if name not in ("prompt", "target")]
    if not languages:
        raise UserError(f"{path} has no column of a language beside the prompt", "words")
    found = []
    for number, row in enumerate(rows, 1):
        target = str(row.get("target") or "").strip() or None
        if target is not None and target not in languages:
            raise UserError(f"{path}: row {number} has the target {target}, which is no column")
        words = {name: _words(str(row.get(name) or "")) for name in languages}
        if empty := [name for name, some in words.items() if not all(some)]:
            raise UserError(f"{path}: row {number} has no word in {empty[0]}; give one", "words")
        if not row["prompt"].strip():
            raise UserError(f"{path}: row {number} has no prompt; give one", "words")
        found.append(Cloze(row["prompt"], words, target))
    return found


def _words(cell: str) -> list[str]:
    return [word.strip() for word in cell.split(_SYNONYMS)]


def noun_clozes(labels: Sequence[str]) -> list[Cloze]:
    """Translations of nouns into each label but English, as Wendler et al. ask for them.

    Four translations come first. They are from French, and into French from German.

    Raises NotApplicable where the table has fewer than three of the languages.
    """
    names, *rows = read_table(_TABLE, {}, "words")
    codes = in_codes(labels, names)
    table = [{label: _words(row[code]) for label, code in codes.items()} for row in rows]
    if len(codes) < 3 or len(set(codes.values())) < len(codes):
        raise NotApplicable(
            "the table of nouns has fewer than three of the labels of the run; give a table of "
            "prompts and words",
            "words",
        )
    return [
        Cloze(prompt, words, target)
        for target, code in codes.items()
        if code != "en"
        for prompt, words in _translations(names, rows, code, "de" if code == "fr" else "fr", table)
    ]


def _translations(
    names: Mapping[str, str],
    rows: Sequence[Mapping[str, str]],
    target: str,
    source: str,
    table: Sequence[dict[str, list[str]]],
) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """A prompt for each noun, with the expected words."""
    pairs = [(_words(row[source])[0], _words(row[target])[0]) for row in rows]
    for i, words in enumerate(table):
        shots = [pairs[(i + 1 + n) % len(pairs)] for n in range(_SHOTS)]
        begun = [f'{names[source]}: "{a}" - {names[target]}: "{b}"' for a, b in shots]
        yield "\n".join([*begun, f'{names[source]}: "{pairs[i][0]}" - {names[target]}: "']), words


def first_tokens(lm: LanguageModel, word: str, *, prefixes: bool = False) -> set[int]:
    """Find the tokens with which a word may begin, after a space or not.

    `prefixes`: all tokens that are a beginning of the word, as Wendler et al. count them, not only
    those that the tokenizer gives for the whole word.

    Raises UserError for a word without tokens, or with blank ones only.
    """
    found: set[int] = set()
    for text in (word, f" {word}"):
        ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        found.update(ids[:1])
        if prefixes:
            parts = [text[:n] for n in range(1, len(text))]
            rows = lm.tokenizer(parts, add_special_tokens=False)["input_ids"] if parts else []
            found.update(row[0] for row in rows if len(row) == 1)
    found = {token for token in found if lm.tokenizer.decode([token]).strip()}
    if not found:
        raise UserError(f"the word {word!r} has no tokens; give another", "words")
    return found


# --------------------------------------------------------------------------- the experiment


def word_probabilities(bench: LensBench) -> Prepared:
    """Measure how likely the expected words of each language are after prompts, at every layer.

    Rows have the columns target (language that the prompts ask for, or "all"), norm, layer,
    language, role (target, pivot or other), probability (mean over prompts), control (the same of
    the words that another prompt of the group expects) and prompts.
    """
    config = bench.config
    if config.words is None:
        clozes = noun_clozes(bench.opened.corpus.labels)
    else:
        clozes = read_clozes(Path(config.words))
    groups: dict[str, list[Cloze]] = {}
    for cloze in clozes:
        groups.setdefault(cloze.target or _ALL, []).append(cloze)
    languages = list(clozes[0].words)
    pivot = _pivot(languages, config.pivot)
    sets = {name: _token_sets(bench, some) for name, some in groups.items()}
    question = Question(
        "lens-words",
        "Logit lens: probability of the expected word in each language by layer",
        {
            **bench.settings("norm", "prefixes"),
            "pivot": pivot,
            "prompts": {name: len(some) for name, some in groups.items()},
            "table": fingerprint([[one.prompt, one.words, one.target] for one in clozes]),
        },
        [
            {
                "kind": "lines",
                "x": "layer",
                "y": "language",
                "value": "probability",
                "panels": ["norm", "target"],
            }
        ],
        [LAYERS, *_shared(list(sets.values()))],
    )

    def measure(group: str) -> list[Row]:
        return _Group(bench, groups[group], sets[group]).measure(group, pivot)

    def summarize(rows: list[Row]) -> list[Row]:
        return stage_means(rows, ("norm", "role"), ("probability", "control"), list(bench.sites))

    return Prepared(question, list(groups), measure, summarize)


def _pivot(languages: Sequence[str], asked: str | None) -> str | None:
    """The language that was asked for, or English, or None."""
    if asked is None:
        return find_english(languages)
    if (found := own_label(asked, languages)) is None:
        raise UserError(f"there are no words in {asked}; name another language", "pivot")
    return found


def _token_sets(bench: LensBench, clozes: Sequence[Cloze]) -> list[list[set[int]]]:
    """By cloze and language, the first tokens of the expected words."""
    lm, prefixes = bench.lm, bench.config.prefixes
    return [
        [
            set().union(*(first_tokens(lm, word, prefixes=prefixes) for word in words))
            for words in cloze.words.values()
        ]
        for cloze in clozes
    ]


def _shared(groups: Sequence[list[list[set[int]]]]) -> list[str]:
    """A note on words of different languages that begin with the same token."""
    of = [sets for group in groups for sets in group]
    meets = [
        any(one & other for j, other in enumerate(sets) if j != i)
        for sets in of
        for i, one in enumerate(sets)
    ]
    share = sum(meets) / len(meets)
    return [f"{share:.0%} of the words begin with a token of another language's word."] * any(meets)


class _Group:
    """The prompts of one target language."""

    def __init__(
        self, bench: LensBench, clozes: Sequence[Cloze], sets: list[list[set[int]]]
    ) -> None:
        self.bench, self.clozes = bench, clozes
        n, languages = len(sets), range(len(sets[0]))
        # Of each prompt and language, the words of the next prompt that begin otherwise.
        after = [[(i + step) % n for step in range(1, n)] for i in range(n)]
        others = [
            [next((sets[j][k] for j in after[i] if not sets[j][k] & sets[i][k]), set())
             for k in languages]
            for i in range(n)
        ]  # fmt: skip
        self.controlled = np.array([[bool(ids) for ids in row] for row in others])
        self.sets = [
            [sorted(ids) for ids in [*own, *other]] for own, other in zip(sets, others, strict=True)
        ]

    def measure(self, target: str, pivot: str | None) -> list[Row]:
        rows: list[Row] = []
        languages, n = list(self.clozes[0].words), len(self.clozes)
        for (norm, layer), found in self._probabilities().items():
            own, control = found[:, : len(languages)], found[:, len(languages) :]
            for k, language in enumerate(languages):
                known = self.controlled[:, k]
                role = {pivot: "pivot", target: "target"}.get(language, "other")
                rows.append(
                    {
                        "target": target,
                        "norm": norm,
                        "layer": layer,
                        "language": language,
                        "role": role,
                        "probability": float(own[:, k].mean()),
                        "control": float(control[known, k].mean()) if known.any() else None,
                        "prompts": n,
                    }
                )
        return rows

    def _probabilities(self) -> dict[tuple[str, int], np.ndarray]:
        """(norm, layer) -> probabilities of all sets at the end of each prompt, [prompts, 2 K]."""
        bench, lm = self.bench, self.bench.lm
        ids = encode_prompts(lm, [cloze.prompt for cloze in self.clozes], 1)
        rows = {i: row[len(lm.prefix) :] for i, row in enumerate(ids)}
        ends = {i: [len(row) - 1] for i, row in rows.items()}
        shape = (len(rows), len(self.sets[0]))
        found = {(name, x): np.empty(shape) for name in bench.norms for x in bench.sites}
        for batch, vectors in read_places(lm, rows, ends, bench.sites.values()):
            sets = [self.sets[i] for i in batch.positions]
            for (name, layer), values in found.items():
                x = vectors[bench.sites[layer]]
                some = set_probabilities(lm, x, sets, norm=bench.norms[name])
                values[batch.positions] = some.numpy()
        return found
