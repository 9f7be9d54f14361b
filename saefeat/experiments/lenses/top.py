"""The tokens of greatest logit at every layer, at places of a label's texts."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saefeat.experiments.lenses.bench import Examples, LensBench
from saefeat.generation import generate
from saefeat.lens.logits import top_probabilities
from saefeat.lens.stream import read_places, spread
from saefeat.run.steer import BEGINNING


class Counted(NamedTuple):
    """What was among the top tokens.

    Attributes:
        ids: different tokens, int64 [m].
        counts: how often each was among the top, int64 [m].
        mass: mean over the places of its probability where it was among the top, float64 [m].
    """

    ids: np.ndarray
    counts: np.ndarray
    mass: np.ndarray


class TopTokens:
    """Counts the top tokens of each label once, for all kinds of lens that read them."""

    def __init__(self, bench: LensBench) -> None:
        self.bench = bench
        self._kept: dict[str, dict[tuple[str, int], Counted]] = {}

    @cached_property
    def examples(self) -> Examples:
        """The test texts that are decoded. Raises UserError where a label has none."""
        return self.bench.examples("test", self.bench.config.texts)

    def count(self, label: str) -> dict[tuple[str, int], Counted]:
        """Count the top tokens of a label: (name of the norm, layer) -> the tokens."""
        if label not in self._kept:
            self._kept[label] = self._count(label)
        return self._kept[label]

    def rows(self, label: str) -> tuple[list[list[int]], list[list[int]]]:
        """The tokens of the texts of a label, and the places of each that may be decoded."""
        texts = [row for row, x in zip(self.examples.tokens, self.examples.of, strict=True)
                 if x == label]  # fmt: skip
        return self._generate(texts) if self.bench.config.generated else self._find_places(texts)

    def _count(self, label: str) -> dict[tuple[str, int], Counted]:
        bench, config = self.bench, self.bench.config
        rows, places = self.rows(label)
        chosen = {i: spread(some, config.positions) for i, some in enumerate(places)}
        found: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = {
            (name, layer): [] for name in bench.norms for layer in bench.sites
        }
        for _, vectors in read_places(
            bench.lm, dict(enumerate(rows)), chosen, bench.sites.values()
        ):
            for (name, layer), parts in found.items():
                x = vectors[bench.sites[layer]]
                norm = bench.norms[name]
                parts.append(top_probabilities(bench.lm, x, config.top, norm=norm))
        return {key: _counted(parts) for key, parts in found.items()}

    def _find_places(self, texts: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
        """The texts, and the places of the tokens that count."""
        special = self.bench.lm.special_ids
        return texts, [[i for i, token in enumerate(x) if token not in special] for x in texts]

    def _generate(self, texts: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
        """Beginnings of the texts with what the model adds, and the places where it does so."""
        lm, begun = self.bench.lm, [row[:BEGINNING] for row in texts]
        made = generate(lm, [[*lm.prefix, *row] for row in begun], self.bench.decoding)
        pairs = list(zip(begun, made, strict=True))
        rows = [[*row, *new] for row, new in pairs]
        return rows, [[*range(len(a) - 1, len(a) - 1 + max(1, len(new)))] for a, new in pairs]


def _counted(parts: list[tuple[Tensor, Tensor]]) -> Counted:
    """Count tokens [n, top] that were found with their probabilities [n, top], part by part."""
    found, chances = (torch.cat(each).numpy() for each in zip(*parts, strict=True))
    ids, where, counts = np.unique(found, return_inverse=True, return_counts=True)
    mass = np.bincount(where.ravel(), chances.ravel(), len(ids)) / len(found)
    return Counted(ids, counts, mass)
