"""Naive Bayes on n-grams of characters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer

from saefeat.baselines.naive_bayes import NaiveBayes
from saefeat.corpora import clean_text
from saefeat.corpora.examples import UNKNOWN
from saefeat.lid.heads import FitSize
from saefeat.lid.heads.linear import SHORT
from saefeat.models import LanguageModel


class CharNaiveBayes(NaiveBayes):
    """Naive Bayes on counts of n-grams of 1 to 4 characters, in lower case.

    V is the number of different n-grams in the fit; others are ignored. N-grams are hashed into
    2^20 columns (murmur3), so that memory is bounded and only counts are kept.

    Args:
        alpha: added to each count.
        unknown: what `predict` returns where nothing can be said.
    """

    name = "char-naive-bayes"
    title = "baseline: counts of runs of 1 to 4 characters"
    place = 0
    vocabulary = 2**20

    def __init__(self, alpha: float = 0.1, unknown: str | None = UNKNOWN) -> None:
        self.alpha = alpha
        self.unknown = unknown

    @classmethod
    def for_run(
        cls, lm: LanguageModel, labels: Sequence[str] = (), file: Path | None = None
    ) -> CharNaiveBayes:
        """An instance with the default parameters."""
        return cls(unknown=None)

    @staticmethod
    def training_examples(texts: list[str], labels: list[str]) -> tuple[list[str], list[str]]:
        """The texts and their beginnings, as the linear head learns from both."""
        return texts + [text[:SHORT] for text in texts], labels + labels

    @staticmethod
    def fit_bytes(size: FitSize) -> float:
        """About 20 n-grams per token, 12 bytes each."""
        return 20 * 12 * size.tokens

    def _counts(self, texts: Sequence[str]) -> csr_matrix:
        counts: dict[str, Any] = {"norm": None, "alternate_sign": False}
        grams = HashingVectorizer(
            analyzer="char", ngram_range=(1, 4), n_features=self.vocabulary, **counts
        )
        return csr_matrix(grams.transform([clean_text(text) for text in texts]))

    def _outcomes(self) -> NDArray[np.bool_]:
        seen = np.zeros(self.vocabulary, bool)
        seen[self.counts_.indices] = True
        return seen
