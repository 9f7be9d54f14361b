"""Multinomial naive Bayes on sparse counts of what texts hold."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, with_config
from scipy.sparse import csr_matrix
from scipy.special import softmax
from typing_extensions import TypedDict

from saefeat.baselines.classifier import TextClassifier
from saefeat.corpora.examples import check_examples, need_letters, says_something
from saefeat.corpora.given import given_examples, given_texts
from saefeat.io import SCHEMA, UserError, load_tensors, save_tensors
from saefeat.schema import STRICT, checked


@with_config(STRICT)
class _Header(TypedDict):
    schema: int
    head: str
    labels: Annotated[list[str], Field(min_length=1)]
    letters: bool
    columns: int
    alpha: float


_PARTS = ("counts", "indices", "starts")  # tensors of a file: the parts of a sparse matrix


class NaiveBayes(TextClassifier):
    """Multinomial naive Bayes with a uniform prior over labels.

    log p(j | k) = ln((n[k, j] + alpha) / (N_k + alpha V)) for outcome j of V, of which label k has
    n[k, j], in all N_k. Counts stay sparse, so that many labels and outcomes fit in memory.

    Class attributes:
        name: of the baseline, in its files.

    Attributes:
        vocabulary: number of columns of the counts.
    """

    name: ClassVar[str]
    vocabulary: int
    alpha: float

    @abstractmethod
    def _counts(self, texts: Sequence[str]) -> csr_matrix:
        """Counts of texts [n, vocabulary]."""

    @abstractmethod
    def _outcomes(self) -> NDArray[np.bool_]:
        """bool [vocabulary]: which columns are outcomes. Counts of other columns are ignored."""

    def fit(self, texts: Any = None, labels: Any = None) -> Self:
        """Count n texts with their n labels, which a table or pairs may hold.

        Texts that say nothing are left out.

        Raises:
            UserError: what `given_examples` and `check_examples` refuse.
        """
        texts, labels = given_examples(texts, labels)
        of = check_examples(texts, labels, self.unknown)
        self.letters_ = need_letters(texts, of)
        self.classes_ = sorted(set(of))
        row = {label: k for k, label in enumerate(self.classes_)}
        cells = ([row[label] for label in of], range(len(of)))
        member = csr_matrix((np.ones(len(of)), cells), shape=(len(row), len(of)))
        self.counts_ = csr_matrix(member @ self._counts_of_usable(texts))
        return self

    def scores(self, texts: Any) -> NDArray[np.float64]:
        """Posterior probabilities [n, K]; zeros where nothing can be said.

        They are over-confident, as those of naive Bayes are.
        """
        joint, amount = self._joint(given_texts(texts))
        return np.where(amount[:, None] > 0, softmax(joint, axis=1), 0.0)

    def predict_joint_log_proba(self, texts: Any) -> NDArray[np.float64]:
        """ln p(text, label) [n, K], in nats."""
        return self._joint(given_texts(texts))[0]

    def _joint(self, texts: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """ln p(text, label) [n, K] and the number of outcomes of each text [n]."""
        outcomes, counts = self._outcomes(), self._counts_of_usable(texts)
        totals = np.asarray(self.counts_.sum(1)).ravel() + self.alpha * outcomes.sum()
        # What a count adds to the ln p of an outcome that the label has never had.
        gain = self.counts_.copy()
        gain.data = np.log1p(gain.data / self.alpha)
        amount = counts @ outcomes.astype(np.float64)
        joint = (counts @ gain.T).toarray() + amount[:, None] * np.log(self.alpha / totals)
        return joint - np.log(len(self.classes_)), amount

    def _counts_of_usable(self, texts: Sequence[str]) -> csr_matrix:
        """Counts of texts [n, vocabulary]; none for texts that say nothing."""
        return self._counts([t if says_something(t, letters=self.letters_) else "" for t in texts])

    def save(self, path: Path) -> None:
        """Write the fitted counts as safetensors."""
        header: _Header = {
            "schema": SCHEMA,
            "head": self.name,
            "labels": self.classes_,
            "letters": self.letters_,
            "columns": self.vocabulary,
            "alpha": self.alpha,
        }
        parts = (self.counts_.data, self.counts_.indices, self.counts_.indptr)
        arrays = (torch.from_numpy(part.astype(np.int64)) for part in parts)
        save_tensors(path, dict(zip(_PARTS, arrays, strict=True)), header)

    def restore(self, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing, damaged, of another baseline or of another vocabulary.
        """
        tensors, found = load_tensors(path)
        if found.get("head") != self.name or found.get("schema") != SCHEMA:
            raise UserError(f"{path} is not a {self.name} head of this version; fit it again")
        header = checked(_Header, found, path)
        shape = (len(header["labels"]), header["columns"])
        counts = _read_counts(tensors, shape) if shape[1] == self.vocabulary else None
        if counts is None:
            raise UserError(f"{path} is damaged, or of another tokenizer; fit it again")
        self.alpha, self.classes_ = header["alpha"], header["labels"]
        self.letters_, self.counts_ = header["letters"], counts
        return self


def _read_counts(tensors: dict[str, torch.Tensor], shape: tuple[int, int]) -> csr_matrix | None:
    """The matrix that tensors are the parts of; None where they do not fit."""
    if tensors.keys() != set(_PARTS) or any(t.dtype != torch.int64 for t in tensors.values()):
        return None
    counts, indices, starts = (tensors[name].numpy() for name in _PARTS)
    try:
        matrix = csr_matrix((counts.astype(np.float64), indices, starts), shape=shape)
        matrix.check_format(full_check=True)
    except ValueError:
        return None
    return matrix if matrix.nnz == len(counts) and (counts >= 0).all() else None
