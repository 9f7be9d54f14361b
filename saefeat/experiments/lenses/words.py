"""How likely the expected word is in each language by layer (arXiv 2402.10588, 2411.08745).

The probability of a language is the next token's, summed over the first tokens of the words that
are expected in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from saefeat.artefacts.experiments import Row
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
from saefeat.experiments.lenses.clozes import (
    Cloze,
    first_tokens,
    noun_clozes,
    read_clozes,
    shows,
    stands,
)
from saefeat.generation import encode_prompts
from saefeat.io import fingerprint
from saefeat.labels import find_english, own_label
from saefeat.lens.logits import set_probabilities
from saefeat.lens.stream import read_places

_ALL = "all"  # group of prompts without a target


def word_probabilities(bench: LensBench) -> Prepared:
    """Measure how likely the expected words of each language are after prompts, at every layer.

    Rows have the columns target (language that the prompts ask for, or "all"), norm, layer,
    language, role (target, source, pivot or other), probability (mean over prompts), control (the
    same of words that another prompt of the group expects and that do not stand in this one) and
    prompts. The source is the language whose expected word stands in each prompt, where the model
    may copy it.
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
            "control": "words of another prompt that are not in the prompt",
        },
        [
            MEANS,
            {
                "kind": "lines",
                "x": "layer",
                "y": "language",
                "value": "probability",
                "panels": ["norm", "target"],
            },
        ],
        [LAYERS, *_shared(list(sets.values()))],
    )

    values = ("probability", "control")

    def measure(group: str) -> list[Row]:
        return _Group(bench, groups[group], sets[group]).measure(group, pivot)

    def summarize(rows: list[Row]) -> list[Row]:
        return stage_means(rows, ("norm", "role"), values, list(bench.sites))

    def average(rows: list[Row]) -> list[Row]:
        return layer_means(rows, values, "role")

    return Prepared(question, list(groups), measure, summarize, average=average)


def _pivot(languages: Sequence[str], asked: str | None) -> str | None:
    """The language that was asked for, or English, or None."""
    if asked is None:
        return find_english(languages)
    if (found := own_label(asked, languages)) is None:
        raise NotApplicable(f"there are no words in {asked}; name another language", "pivot")
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
        # Of each prompt and language, the words of the next prompt that begin otherwise. No word
        # of that prompt stands in this one, as those of its examples do.
        after = [
            [j for j in ((i + step) % n for step in range(1, n)) if not shows(clozes[i], clozes[j])]
            for i in range(n)
        ]
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
        roles = self._roles(target, pivot)
        for (norm, layer), found in self._probabilities().items():
            own, control = found[:, : len(languages)], found[:, len(languages) :]
            for k, language in enumerate(languages):
                known = self.controlled[:, k]
                rows.append(
                    {
                        "target": target,
                        "norm": norm,
                        "layer": layer,
                        "language": language,
                        "role": roles[language],
                        "probability": float(own[:, k].mean()),
                        "control": float(control[known, k].mean()) if known.any() else None,
                        "prompts": n,
                    }
                )
        return rows

    def _roles(self, target: str, pivot: str | None) -> dict[str, str]:
        """Language -> its role."""
        copied = {
            language: "source"
            for language in self.clozes[0].words
            if all(stands(one.words[language], one.prompt) for one in self.clozes)
        }
        others = dict.fromkeys(self.clozes[0].words, "other")
        named = {pivot: "pivot", **copied, target: "target"}
        return others | {name: role for name, role in named.items() if name in others}

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
