"""Naive Bayes on the model's own tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from saefeat.baselines.naive_bayes import NaiveBayes
from saefeat.corpora import TOKEN_LIMIT
from saefeat.corpora.examples import UNKNOWN
from saefeat.models import LanguageModel
from saefeat.tokens import without_special

Tokenize = Callable[[list[str]], Sequence[Sequence[int]]]


class TokenNaiveBayes(NaiveBayes):
    """Naive Bayes on counts of tokens; no forward pass.

    Args:
        tokenize: texts -> token ids, without special tokens.
        vocabulary: V, the size of the tokenizer's vocabulary.
        alpha: added to each count.
        unknown: what `predict` returns where nothing can be said.
    """

    name = "token-naive-bayes"
    title = "baseline: counts of the model's tokens"

    def __init__(
        self, tokenize: Tokenize, vocabulary: int, alpha: float = 1.0, unknown: str | None = UNKNOWN
    ) -> None:
        self.tokenize = tokenize
        self.vocabulary = vocabulary
        self.alpha = alpha
        self.unknown = unknown

    @classmethod
    def for_run(
        cls, lm: LanguageModel, labels: Sequence[str] = (), file: Path | None = None
    ) -> TokenNaiveBayes:
        """An instance with the tokenizer of a model."""

        def tokenize(texts: list[str]) -> list[list[int]]:
            rows = lm.tokenize(texts, TOKEN_LIMIT)
            return [without_special(row, lm.special_ids) for row in rows]

        vocabulary = max(len(lm.tokenizer), lm.unembedding().shape[0])
        return cls(tokenize, vocabulary, unknown=None)

    def _counts(self, texts: Sequence[str]) -> csr_matrix:
        """Raises ValueError for a token id of at least V."""
        tokens = self.tokenize(list(texts)) if len(texts) else []
        lengths = [len(row) for row in tokens]
        ids = np.fromiter((token for row in tokens for token in row), np.int64, sum(lengths))
        if len(ids) and ids.max() >= self.vocabulary:
            raise ValueError(f"token {ids.max()} is outside the vocabulary of {self.vocabulary}")
        rows = np.repeat(np.arange(len(texts)), lengths)
        return csr_matrix((np.ones(len(ids)), (rows, ids)), shape=(len(texts), self.vocabulary))

    def _outcomes(self) -> NDArray[np.bool_]:
        return np.ones(self.vocabulary, bool)
