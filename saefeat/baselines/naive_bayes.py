"""Multinomial naive Bayes on sparse counts of what texts hold."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import softmax
from typing_extensions import TypedDict

from saefeat.baselines.classifier import TextClassifier
from saefeat.corpora.examples import check_examples, need_letters, says_something
from saefeat.corpora.given import given_examples, given_texts
from saefeat.io import SCHEMA, UserError, load_tensors, save_tensors
from saefeat.schema import STRICT, checked


class _Header(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    schema: int
    head: str
    labels: list[str]
    letters: bool
    columns: int
    alpha: float


class NaiveBayes(TextClassifier):
    """Multinomial naive Bayes with a uniform prior over labels.

    log p(j | k) = ln((n[k, j] + alpha) / (N_k + alpha V)) for outcome j of V, of which label k has
    n[k, j], in all N_k. Counts stay sparse, so that many labels and outcomes fit in memory.

    Class attributes:
        name: of the baseline, in its files.
    """

    name: ClassVar[str]
    alpha: float

    @abstractmethod
    def _counts(self, texts: Sequence[str]) -> csr_matrix:
        """Counts of texts [n, columns]."""

    @abstractmethod
    def _outcomes(self) -> NDArray[np.bool_]:
        """bool [columns]: which columns are outcomes. Counts of other columns are ignored."""

    @abstractmethod
    def _columns(self) -> int:
        """Number of columns."""

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
        self.counts_ = csr_matrix(member @ self._counts_of_telling(texts))
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
        outcomes, counts = self._outcomes(), self._counts_of_telling(texts)
        totals = np.asarray(self.counts_.sum(1)).ravel() + self.alpha * outcomes.sum()
        # What a count adds to the ln p of an outcome that the label has never had.
        gain = self.counts_.copy()
        gain.data = np.log1p(gain.data / self.alpha)
        amount = counts @ outcomes.astype(np.float64)
        joint = (counts @ gain.T).toarray() + amount[:, None] * np.log(self.alpha / totals)
        return joint - np.log(len(self.classes_)), amount

    def _counts_of_telling(self, texts: Sequence[str]) -> csr_matrix:
        """Counts of texts [n, columns]; none for texts that say nothing."""
        return self._counts(
            [text if says_something(text, letters=self.letters_) else "" for text in texts]
        )

    def save(self, path: Path) -> None:
        """Write the fitted counts as safetensors."""
        header: _Header = {
            "schema": SCHEMA,
            "head": self.name,
            "labels": self.classes_,
            "letters": self.letters_,
            "columns": self.counts_.get_shape()[1],
            "alpha": self.alpha,
        }
        parts = {
            "counts": self.counts_.data,
            "indices": self.counts_.indices,
            "starts": self.counts_.indptr,
        }
        tensors = {name: torch.from_numpy(part.astype(np.int64)) for name, part in parts.items()}
        save_tensors(path, tensors, header)

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
        if shape[1] != self._columns() or not _is_sparse(tensors, shape):
            raise UserError(f"{path} is damaged, or of another tokenizer; fit it again")
        self.alpha, self.classes_ = header["alpha"], header["labels"]
        self.letters_ = header["letters"]
        counts, indices, starts = (tensors[k].numpy() for k in ("counts", "indices", "starts"))
        self.counts_ = csr_matrix((counts.astype(np.float64), indices, starts), shape=shape)
        return self


def _is_sparse(tensors: dict[str, torch.Tensor], shape: tuple[int, int]) -> bool:
    """Whether tensors are the parts of a sparse matrix of counts of that shape."""
    if tensors.keys() != {"counts", "indices", "starts"} or min(shape) < 1:
        return False
    if any(part.dtype != torch.int64 or part.dim() != 1 for part in tensors.values()):
        return False
    counts, indices, starts = (tensors[name] for name in ("counts", "indices", "starts"))
    return (
        len(starts) == shape[0] + 1
        and len(counts) == len(indices) == int(starts[-1])
        and int(starts[0]) == 0
        and bool((starts.diff() >= 0).all() and (counts >= 0).all())
        and bool(((indices >= 0) & (indices < shape[1])).all())
    )
