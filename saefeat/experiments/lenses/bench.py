"""What all lenses share: the layers, norms and labels that they look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from saefeat.artefacts.experiments import Plot, Row
from saefeat.config import Decoding, LensConfig
from saefeat.corpora import TOKEN_LIMIT, first_by_hash
from saefeat.experiments.frame import Question, mean_of
from saefeat.io import UserError
from saefeat.labels import find_english
from saefeat.lens.logits import check_decoding
from saefeat.lens.stream import EMBEDDINGS, stream_sites
from saefeat.models import LanguageModel
from saefeat.run.opened import OpenRun
from saefeat.run.steer import find_label
from saefeat.tokens import without_special

NORMS = {"with final norm": True, "without norm": False}
# A plot of the rows of `layer_means`.
MEANS: Plot = {
    "kind": "lines",
    "x": "layer",
    "y": "figure",
    "value": "mean",
    "panels": ["norm"],
    "of": "means",
}
LAYERS = "Layer l is the residual stream after block l; layer -1 is what the first block reads."


class NotApplicable(UserError):
    """A run does not have what a kind of lens looks for."""


@dataclass(frozen=True)
class Prepared:
    """An experiment whose input has been checked; the arguments of `frame.carry_out`."""

    question: Question
    parts: Sequence[str]
    measure: Callable[[str], list[Row]]
    summarize: Callable[[list[Row]], list[Row]]
    begin: Callable[[], object] = lambda: None
    average: Callable[[list[Row]], list[Row]] | None = None


@dataclass(frozen=True)
class Examples:
    """Texts as token ids, without those that are put around a text, and their labels."""

    texts: list[str]
    tokens: list[list[int]]
    of: list[str]


@dataclass
class LensBench:
    """A run, and what is looked for in it."""

    opened: OpenRun
    config: LensConfig
    decoding: Decoding

    @property
    def lm(self) -> LanguageModel:
        return self.opened.lm

    @cached_property
    def sites(self) -> dict[int, str]:
        """Layer -> site; see `stream_sites`."""
        return stream_sites(self.lm, self.config.layers)

    @cached_property
    def norms(self) -> dict[str, bool]:
        """Name -> whether vectors are decoded with the final norm. The decoding is checked once."""
        check_decoding(self.lm)
        both, asked = self.config.norm == "both", self.config.norm == "with"
        return {name: norm for name, norm in NORMS.items() if both or norm == asked}

    @cached_property
    def pivot(self) -> str | None:
        """The label that others are compared with: the one asked for, or English."""
        if self.config.pivot is not None:
            return find_label(self.opened, self.config.pivot, "pivot")
        return find_english(self.opened.corpus.labels)

    def examples(self, split: str, n: int) -> Examples:
        """At most n texts per label of a split by hashed id; those without counted tokens not.

        Raises UserError where a label has no text.
        """
        corpus, lm, seed = self.opened.corpus, self.lm, self.opened.config.seed
        chosen = first_by_hash(corpus, corpus.in_split(split, seed), seed, n)
        texts = [corpus.texts[i] for i in chosen]
        rows = zip(texts, lm.tokenize(texts, TOKEN_LIMIT), chosen, strict=True)
        kept = [(text, ids, corpus.of[i]) for text, ids, i in rows]
        kept = [row for row in kept if without_special(row[1], lm.special_ids)]
        if missing := set(corpus.labels) - {label for _, _, label in kept}:
            raise UserError(f"{min(missing)} has no {split} text that a lens could read")
        texts, tokens, of = map(list, zip(*kept, strict=True))
        return Examples(texts, tokens, of)

    def settings(self, *names: str) -> dict[str, Any]:
        """What a result records: the layers, and the fields of the configuration of these names."""
        return {"layers": list(self.sites), **{name: getattr(self.config, name) for name in names}}


def by_stage(layers: Sequence[int]) -> dict[str, list[int]]:
    """Name -> layers of the embeddings and of each third of the other layers, those that exist."""
    blocks = [layer for layer in layers if layer != EMBEDDINGS]
    cuts = [round(i * len(blocks) / 3) for i in range(4)]
    parts = [blocks[a:b] for a, b in pairwise(cuts) if a < b]
    found = {"embeddings": [EMBEDDINGS]} if EMBEDDINGS in layers else {}
    return found | {_name(part): part for part in parts}


def _name(part: Sequence[int]) -> str:
    return f"layer {part[0]}" if len(part) == 1 else f"layers {part[0]} to {part[-1]}"


def layer_means(rows: Sequence[Row], values: Sequence[str], by: str | None = None) -> list[Row]:
    """Means by norm and layer: one row for each figure, as `MEANS` draws them.

    A figure is a column of `values`; with `by`, of the rows that agree in that column.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row["norm"], row["layer"], None if by is None else row[by])
        groups.setdefault(key, []).append(row)
    return [
        {
            "norm": norm,
            "layer": layer,
            "figure": value if name is None else f"{name}, {value}",
            "mean": mean_of(here, value),
        }
        for (norm, layer, name), here in groups.items()
        for value in values
    ]


def stage_means(
    rows: Sequence[Row], keys: Sequence[str], values: Sequence[str], layers: Sequence[int]
) -> list[Row]:
    """Means over stages: one row for each combination of `keys` and stage."""
    found: list[Row] = []
    for key in dict.fromkeys(tuple(row[name] for name in keys) for row in rows):
        mine = [row for row in rows if tuple(row[name] for name in keys) == key]
        for stage, some in by_stage(layers).items():
            here: list[Any] = [row for row in mine if row["layer"] in some]
            means = {value: mean_of(here, value) for value in values}
            found.append({**dict(zip(keys, key, strict=True)), "stage": stage, **means})
    return found
