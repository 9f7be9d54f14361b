"""What a feature must beat: fastText's lid.176, and naive Bayes on the model's own tokens and on characters.

All are scikit-learn estimators that read raw texts and share one interface: `fit(texts, labels)`,
`predict(texts)`, `scores(texts)`, `classes_`.
"""

from __future__ import annotations

import mmap
import re
import struct
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from fasttext.FastText import _FastText
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.feature_extraction.text import HashingVectorizer

from saefeat import assets
from saefeat.corpora import clean_text
from saefeat.corpora.examples import (
    UNKNOWN,
    check_examples,
    check_labels,
    need_letters,
    or_unknown,
    says_something,
)
from saefeat.corpora.given import given_examples, given_texts, listed
from saefeat.io import SCHEMA, UserError, load_tensors, save_tensors
from saefeat.labels import PREFIX, to_labels

_COLUMNS = 2**20  # of runs of characters
Tokenize = Callable[[list[str]], Sequence[Sequence[int]]]
# fastText reads a line: these end it, or (lone surrogates) cannot be written in UTF-8.
_NOT_IN_A_LINE = re.compile("[\n\r\x00\ud800-\udfff]|</s>")


class _TextClassifier(ClassifierMixin, BaseEstimator):
    """A head on raw texts: the best of `scores`, or `unknown` where no label has any.

    Nothing can be said of a text without a letter (`says_something`). `unknown` is then what
    `predict` gives, a string as scikit-learn's metrics need it, or None. It is no label.
    """

    classes_: list[str]
    unknown: str | None

    @abstractmethod
    def scores(self, texts: Any) -> NDArray[np.float64]:
        """Probabilities [n, K], columns as in `classes_`; a row of zeros where nothing can be said.

        Texts, here and in all methods, are a list of strings, or a table with a column `text`.
        """

    def predict(self, texts: Any) -> list[str | None]:
        """The best label of each text (the first of equals), `unknown` where nothing can be said."""
        scores = self.scores(texts)
        best = [
            self.classes_[k] if row[k] > 0 else None
            for row, k in zip(scores, _best(scores), strict=True)
        ]
        return or_unknown(best, self.unknown)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Accuracy on texts X with labels y, which may stand in X; what is unknown counts as wrong."""
        X, y = given_examples(X, y)
        right = [a == b for a, b in zip(self.predict(X), y, strict=True)]
        return float(np.average(right, weights=sample_weight)) if right else 0.0


def _best(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    return scores.argmax(1) if scores.shape[1] else np.zeros(len(scores), np.int64)


class FastText(_TextClassifier):
    """fastText's language identifier on a closed set: the best of the candidate labels, not of all 176.

    Args:
        path: a model (lid.176.ftz, lid.176.bin or another of fastText's); the embedded lid.176.ftz
            if None.
        labels: the candidates, in any code system of `saefeat.labels`; if None, those that `fit`
            sees, sorted. With them given, `fit` is not needed. A label that the model has no code
            for always scores 0.
        unknown: what `predict` gives where nothing can be said.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        labels: Sequence[str] | None = None,
        unknown: str | None = UNKNOWN,
    ) -> None:
        self.path = path
        self.labels = labels
        self.unknown = unknown

    def fit(self, texts: Any = None, labels: Sequence[str] | None = None) -> FastText:
        """Load the model and settle the candidates; nothing is learnt.

        Raises:
            UserError: the model file is missing or damaged, or (as in `assets.fetch`) cannot be
                had; one string stands where labels are expected; or what `check_labels` refuses.
            ValueError: neither labels here nor in the constructor.
        """
        candidates = self.labels if self.labels is not None else labels
        if candidates is None:
            if texts is None:
                raise ValueError("FastText needs candidate labels, in its constructor or in fit")
            _, candidates = given_examples(texts)
        candidates = check_labels(listed(candidates, "labels"), self.unknown)
        self.classes_ = (
            list(dict.fromkeys(candidates)) if self.labels is not None else sorted(set(candidates))
        )
        column = {label: index for index, label in enumerate(self.classes_)}
        codes = [code.removeprefix(PREFIX) for code in _codes(self._model())]
        found = to_labels(codes, self.classes_)
        self._columns = {PREFIX + code: column[label] for code, label in found.items()}
        return self

    def scores(self, texts: Any) -> NDArray[np.float64]:
        """The model's probabilities of the candidates [n, K] (not scaled to sum to 1); zeros where none can be said."""
        texts = given_texts(texts)
        if not hasattr(self, "_columns"):
            self.fit()
        scores = np.zeros((len(texts), len(self.classes_)))
        for row, text in enumerate(texts):
            for score, code in self._predictions(text, -1):
                if code in self._columns:
                    scores[row, self._columns[code]] = min(score, 1.0)
        return scores

    def judge(self, texts: Any) -> list[tuple[str, float] | None]:
        """The best of all the model's codes and its probability, None where nothing can be said. Needs no labels."""
        judged = [self._predictions(text, 1) for text in given_texts(texts)]
        return [
            (best[0][1].removeprefix(PREFIX), min(best[0][0], 1.0)) if best else None
            for best in judged
        ]

    def _predictions(self, text: str, k: int) -> list[tuple[float, str]]:
        """(score, `__label__xx`), best first, of the k best codes, all for -1; scores may pass 1 by some 1e-5."""
        line = _NOT_IN_A_LINE.sub(" ", text)
        if not says_something(line):
            return []
        # The binding itself: fasttext-wheel's `predict` fails under numpy 2. Like it, end the line.
        # A threshold below 0 because 0 drops probabilities under 1e-5, among which the best
        # candidate may be.
        return self._model().f.predict(line + "\n", k, -1.0, "strict")

    def _model(self) -> _FastText:
        if not hasattr(self, "_loaded"):
            self._loaded = _load(assets.fetch("lid.176") if self.path is None else Path(self.path))
        return self._loaded


def _codes(model: _FastText) -> list[str]:
    """The labels of a classifier, as `__label__xx`; the words of a model of word vectors."""
    return [str(label) for label in model.get_labels()]


def _dictionary_is_whole(path: Path) -> bool:
    """Whether a model file's dictionary ends before the file does.

    fastText reads its words byte by byte up to a NUL without looking for the file's end: of a file
    that is cut off there it makes a word that grows until memory is full.
    """
    magic, start, after_word = (
        793712314,
        92,
        9,
    )  # header: magic, version, arguments, counts; after a word: count, type
    if path.stat().st_size < start:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if struct.unpack_from("<i", data, 0)[0] != magic:
            return False
        at = start
        for _ in range(struct.unpack_from("<i", data, 64)[0]):
            end = data.find(b"\0", at)
            if end < 0:
                return False
            at = end + 1 + after_word
        return at <= len(data)


def _load(path: Path) -> _FastText:
    """Load a fastText classifier; raises UserError where it is missing, damaged or no classifier."""
    if not path.is_file():
        raise UserError(
            f"{path} does not exist or is not a file; give a fastText model such as lid.176.ftz"
        )
    if not _dictionary_is_whole(path):
        raise UserError(
            f"{path} is not a readable fastText model (other format, or cut off); fetch it again"
        )
    try:
        # Not `fasttext.load_model`, which is this and a warning on standard error.
        model = _FastText(model_path=str(path))
        labels = _codes(model)
    except (ValueError, MemoryError, RuntimeError) as error:
        raise UserError(
            f"{path} is not a readable fastText model ({error}); fetch it again"
        ) from error
    if not labels or not all(label.startswith(PREFIX) for label in labels):
        raise UserError(
            f"{path} is a fastText model without labels; give a classifier such as lid.176.ftz"
        )
    return model


class _NaiveBayes(_TextClassifier):
    """Multinomial naive Bayes on counts of what a text holds, with a uniform prior over labels.

    log p(j | k) = ln((n[k, j] + alpha) / (N_k + alpha V)) for the j-th of V outcomes, of which
    label k has n[k, j], in all N_k. Kept sparse, so that many labels and outcomes fit in memory.
    """

    alpha: float
    name: ClassVar[str]

    @abstractmethod
    def _counts(self, texts: Sequence[str]) -> csr_matrix:
        """Counts [n, columns] of texts."""

    @abstractmethod
    def _outcomes(self) -> NDArray[np.bool_]:
        """bool [columns]: which are outcomes; any other is left out of a text."""

    def fit(self, texts: Any, labels: Any = None) -> Self:
        """Count n texts with their n labels, which a table or pairs may hold; texts that say nothing are left out.

        Raises:
            UserError: what `given_examples` and `check_examples` refuse.
        """
        texts, labels = given_examples(texts, labels)
        of = check_examples(texts, labels, self.unknown)
        self.letters_ = need_letters(texts, of)
        self.classes_ = sorted(set(of))
        row = {label: k for k, label in enumerate(self.classes_)}
        shape = (len(row), len(of))
        member = csr_matrix(
            (np.ones(len(of)), ([row[label] for label in of], range(len(of)))), shape=shape
        )
        self.counts_ = csr_matrix(member @ self._told(texts))
        return self

    def scores(self, texts: Any) -> NDArray[np.float64]:
        """Posterior probabilities [n, K] (over-confident, as naive Bayes is); zeros where nothing can be said."""
        joint, amount = self._joint(given_texts(texts))
        return np.where(amount[:, None] > 0, softmax(joint, axis=1), 0.0)

    def predict_joint_log_proba(self, texts: Any) -> NDArray[np.float64]:
        """ln p(text, label) [n, K], in nats."""
        return self._joint(given_texts(texts))[0]

    def _joint(self, texts: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """ln p(text, label) [n, K] and how many outcomes each text has [n]."""
        outcomes, counts = self._outcomes(), self._told(texts)
        totals = np.asarray(self.counts_.sum(1)).ravel() + self.alpha * outcomes.sum()
        gain = (
            self.counts_.copy()
        )  # what a count adds to the ln p of an outcome that the label never had
        gain.data = np.log1p(gain.data / self.alpha)
        amount = counts @ outcomes.astype(np.float64)
        joint = (counts @ gain.T).toarray() + amount[:, None] * np.log(self.alpha / totals)
        return joint - np.log(len(self.classes_)), amount

    def _told(self, texts: Sequence[str]) -> csr_matrix:
        """Counts of texts, none for those that say nothing."""
        return self._counts(
            [text if says_something(text, letters=self.letters_) else "" for text in texts]
        )

    def save(self, path: Path) -> None:
        """Write the fitted head as safetensors (of a tokenizer nothing)."""
        header = {
            "schema": SCHEMA,
            "head": self.name,
            "labels": self.classes_,
            "letters": self.letters_,
        }
        header |= {"columns": self.counts_.get_shape()[1], "alpha": self.alpha}
        parts = {
            "counts": self.counts_.data,
            "indices": self.counts_.indices,
            "starts": self.counts_.indptr,
        }
        save_tensors(
            path,
            {name: torch.from_numpy(part.astype(np.int64)) for name, part in parts.items()},
            header,
        )

    def _read(self, path: Path) -> Self:
        """Take what `save` wrote; raises UserError where the file is missing, damaged or another head's."""
        tensors, header = load_tensors(path)
        if (header.get("head"), header.get("schema")) != (
            self.name,
            SCHEMA,
        ) or "counts" not in tensors:
            raise UserError(f"{path} is not a {self.name} head of this version; fit it again")
        self.alpha, self.classes_, self.letters_ = (
            header["alpha"],
            header["labels"],
            header["letters"],
        )
        parts = [tensors[name].numpy() for name in ("counts", "indices", "starts")]
        parts[0] = parts[0].astype(np.float64)
        self.counts_ = csr_matrix(tuple(parts), shape=(len(self.classes_), header["columns"]))
        return self


class TokenNaiveBayes(_NaiveBayes):
    """Naive Bayes on the counts of the model's own tokens: no forward pass.

    Args:
        tokenize: texts -> token ids, special tokens left out.
        vocabulary: V, the size of the tokenizer's vocabulary.
        alpha: what is added to each count.
        unknown: what `predict` gives where nothing can be said.
    """

    name = "token-naive-bayes"

    def __init__(
        self, tokenize: Tokenize, vocabulary: int, alpha: float = 1.0, unknown: str | None = UNKNOWN
    ) -> None:
        self.tokenize = tokenize
        self.vocabulary = vocabulary
        self.alpha = alpha
        self.unknown = unknown

    @classmethod
    def load(cls, path: Path, tokenize: Tokenize) -> TokenNaiveBayes:
        """Read what `save` wrote, to be used with the same tokenizer.

        Raises:
            UserError: the file is missing, damaged or another head's.
        """
        head = cls(tokenize, 0)._read(path)
        head.vocabulary = head.counts_.get_shape()[1]
        return head

    def _counts(self, texts: Sequence[str]) -> csr_matrix:
        """Raises ValueError for an id that is not below V."""
        tokens = self.tokenize(list(texts)) if len(texts) else []
        lengths = [len(ids) for ids in tokens]
        ids = np.fromiter((token for ids in tokens for token in ids), np.int64, sum(lengths))
        if len(ids) and ids.max() >= self.vocabulary:
            raise ValueError(f"token {ids.max()} is outside the vocabulary of {self.vocabulary}")
        rows = np.repeat(np.arange(len(texts)), lengths)
        return csr_matrix((np.ones(len(ids)), (rows, ids)), shape=(len(texts), self.vocabulary))

    def _outcomes(self) -> NDArray[np.bool_]:
        return np.ones(self.vocabulary, bool)


class CharNaiveBayes(_NaiveBayes):
    """Naive Bayes on the counts of the characters of a text and of their runs of up to four, in small letters.

    V is the number of different runs in the fit; others are left out of a text. They are hashed
    into 2^20 columns (murmur3), so that memory is bounded and nothing but counts is kept.

    Args:
        alpha: what is added to each count.
        unknown: what `predict` gives where nothing can be said.
    """

    name = "char-naive-bayes"

    def __init__(self, alpha: float = 0.1, unknown: str | None = UNKNOWN) -> None:
        self.alpha = alpha
        self.unknown = unknown

    @classmethod
    def load(cls, path: Path) -> CharNaiveBayes:
        """Read what `save` wrote; raises UserError where the file is missing, damaged or another head's."""
        return cls()._read(path)

    def _counts(self, texts: Sequence[str]) -> csr_matrix:
        plain: dict[str, Any] = {"norm": None, "alternate_sign": False}  # counts
        runs = HashingVectorizer(analyzer="char", ngram_range=(1, 4), n_features=_COLUMNS, **plain)
        return csr_matrix(runs.transform([clean_text(text) for text in texts]))

    def _outcomes(self) -> NDArray[np.bool_]:
        seen = np.zeros(_COLUMNS, bool)
        seen[self.counts_.indices] = True
        return seen
