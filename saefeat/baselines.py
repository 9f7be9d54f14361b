"""What a feature must beat: fastText's lid.176, and naive Bayes on the model's own tokens, as scikit-learn estimators.

Both read raw texts and share one interface: `fit(texts, labels)`, `predict(texts)`, `scores(texts)`, `classes_`.
"""

from __future__ import annotations

import mmap
import re
import struct
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fasttext.FastText import _FastText
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.naive_bayes import MultinomialNB

from saefeat import assets
from saefeat.corpora.given import given_examples, given_texts, listed
from saefeat.io import SCHEMA, UserError, load_tensors, save_tensors
from saefeat.labels import PREFIX, to_labels

Tokenize = Callable[[list[str]], Sequence[Sequence[int]]]
# fastText reads a line: these end it, or (lone surrogates) cannot be written in UTF-8.
_NOT_IN_A_LINE = re.compile("[\n\r\x00\ud800-\udfff]|</s>")


class _TextClassifier(ClassifierMixin, BaseEstimator):
    """A head on raw texts: the best of `scores`, or None where no label has any."""

    classes_: list[str]

    @abstractmethod
    def scores(self, texts: Any) -> NDArray[np.float64]:
        """Probabilities [n, K], columns as in `classes_`; a row of zeros where nothing can be said.

        Texts, here and in all methods, are a list of strings, or a table with a column `text`.
        """

    def predict(self, texts: Any) -> list[str | None]:
        """The best label of each text (the first of equals), None where nothing can be said."""
        scores = self.scores(texts)
        return [self.classes_[best] if row[best] > 0 else None for row, best in zip(scores, _best(scores), strict=True)]

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Accuracy on texts X with labels y, which a table or pairs may hold instead; None counts as wrong."""
        X, y = given_examples(X, y)
        right = [a == b for a, b in zip(self.predict(X), y, strict=True)]
        return float(np.average(right, weights=sample_weight)) if right else 0.0


def _best(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    return scores.argmax(1) if scores.shape[1] else np.zeros(len(scores), np.int64)


class FastText(_TextClassifier):
    """fastText's language identifier on a closed set: the best of the candidate labels, not of all 176.

    Args:
        path: a model (lid.176.ftz, lid.176.bin or another of fastText's); the embedded lid.176.ftz if None.
        labels: the candidates, in any code system of `saefeat.labels`; if None, those that `fit` sees, sorted. With
            them given, `fit` is not needed. A label that the model has no code for always scores 0.
    """

    def __init__(self, path: str | Path | None = None, labels: Sequence[str] | None = None) -> None:
        self.path = path
        self.labels = labels

    def fit(self, texts: Any = None, labels: Sequence[str] | None = None) -> FastText:
        """Load the model and settle the candidates; nothing is learnt.

        Raises:
            UserError: the model file is missing or damaged, or (as in `assets.fetch`) cannot be had; one string
                stands where labels are expected.
            ValueError: neither labels here nor in the constructor.
        """
        candidates = self.labels if self.labels is not None else labels
        if candidates is None:
            if texts is None:
                raise ValueError("FastText needs candidate labels, in its constructor or in fit")
            _, candidates = given_examples(texts)
        candidates = listed(candidates, "labels")
        self.classes_ = list(dict.fromkeys(candidates)) if self.labels is not None else sorted(set(candidates))
        column = {label: index for index, label in enumerate(self.classes_)}
        codes = [code.removeprefix(PREFIX) for code in _codes(self._model())]
        found = to_labels(codes, self.classes_)
        self._columns = {PREFIX + code: column[label] for code, label in found.items()}
        return self

    def scores(self, texts: Any) -> NDArray[np.float64]:
        """The model's probabilities of the candidates [n, K] (not scaled to sum to 1); zeros for a blank text."""
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
        """The best of all the model's codes and its probability, None for a blank text. Needs no labels."""
        judged = [self._predictions(text, 1) for text in given_texts(texts)]
        return [(best[0][1].removeprefix(PREFIX), min(best[0][0], 1.0)) if best else None for best in judged]

    def _predictions(self, text: str, k: int) -> list[tuple[float, str]]:
        """(score, `__label__xx`), best first, of the k best codes, all for -1; scores may pass 1 by some 1e-5."""
        line = _NOT_IN_A_LINE.sub(" ", text)
        if not line.strip():
            return []
        # The binding itself: fasttext-wheel's `predict` fails under numpy 2. Like it, end the line. A threshold
        # below 0 because 0 drops probabilities under 1e-5, among which the best candidate may be.
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

    fastText reads its words byte by byte up to a NUL without looking for the file's end: of a file that is cut off
    there it makes a word that grows until memory is full.
    """
    magic, start, after_word = 793712314, 92, 9  # header: magic, version, arguments, counts; after a word: count, type
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
        raise UserError(f"{path} does not exist or is not a file; give a fastText model such as lid.176.ftz")
    if not _dictionary_is_whole(path):
        raise UserError(f"{path} is not a readable fastText model (other format, or cut off); fetch it again")
    try:
        # Not `fasttext.load_model`, which is this and a warning on standard error.
        model = _FastText(model_path=str(path))
        labels = _codes(model)
    except (ValueError, MemoryError, RuntimeError) as error:
        raise UserError(f"{path} is not a readable fastText model ({error}); fetch it again") from error
    if not labels or not all(label.startswith(PREFIX) for label in labels):
        raise UserError(f"{path} is a fastText model without labels; give a classifier such as lid.176.ftz")
    return model


class TokenNaiveBayes(_TextClassifier):
    """Multinomial naive Bayes on the counts of the model's own tokens: no forward pass.

    log p(t | k) = ln((n[k, t] + a) / (N_k + a V)), uniform prior over labels.

    Args:
        tokenize: texts -> token ids, special tokens left out.
        vocabulary: V, the size of the tokenizer's vocabulary.
        alpha: a.
    """

    def __init__(self, tokenize: Tokenize, vocabulary: int, alpha: float = 1.0) -> None:
        self.tokenize = tokenize
        self.vocabulary = vocabulary
        self.alpha = alpha

    def fit(self, texts: Any, labels: Any = None) -> TokenNaiveBayes:
        """Count; keeps the log-probabilities of the S tokens seen and, per label, that of any other.

        Raises:
            UserError: texts are no list of strings, or there is another number of labels.
            ValueError: no texts, or an id is not below V.
        """
        texts, labels = given_examples(texts, labels)
        rows, ids = self._tokens(texts)
        if len(ids) and ids.max() >= self.vocabulary:
            raise ValueError(f"token {ids.max()} is outside the vocabulary of {self.vocabulary}")
        counts = csr_matrix((np.ones(len(ids)), (rows, ids)), shape=(len(texts), self.vocabulary))
        model: Any = MultinomialNB(alpha=self.alpha, fit_prior=False)
        model.fit(counts, np.asarray(labels, dtype=object))
        self.classes_ = [str(label) for label in model.classes_]
        self.seen_ = np.unique(ids)
        self.log_prob_ = model.feature_log_prob_[:, self.seen_].astype(np.float32)
        totals = model.feature_count_.sum(1) + self.alpha * self.vocabulary
        self.unseen_ = np.log(self.alpha / totals).astype(np.float32)
        return self

    def scores(self, texts: Any) -> NDArray[np.float64]:
        """Posterior probabilities [n, K] (over-confident, as naive Bayes is); zeros for a text without tokens."""
        joint, tokens = self._joint(given_texts(texts))
        return np.where(tokens[:, None] > 0, softmax(joint, axis=1), 0.0)

    def predict_joint_log_proba(self, texts: Any) -> NDArray[np.float64]:
        """ln p(text, label) [n, K], in nats."""
        return self._joint(given_texts(texts))[0]

    def save(self, path: Path) -> None:
        """Write the fitted head as safetensors (everything but the tokenizer)."""
        header = {"schema": SCHEMA, "head": "token-naive-bayes", "labels": self.classes_}
        header |= {"vocabulary": self.vocabulary, "alpha": self.alpha}
        tensors = {"seen": self.seen_, "log_prob": self.log_prob_, "unseen": self.unseen_}
        save_tensors(path, {name: torch.from_numpy(value) for name, value in tensors.items()}, header)

    @classmethod
    def load(cls, path: Path, tokenize: Tokenize) -> TokenNaiveBayes:
        """Read what `save` wrote, to be used with the same tokenizer.

        Raises:
            UserError: the file is missing, damaged or another head's.
        """
        tensors, header = load_tensors(path)
        if header.get("head") != "token-naive-bayes" or header.get("schema") != SCHEMA:
            raise UserError(f"{path} is not a token-naive-bayes head of this version; fit it again")
        head = cls(tokenize, header["vocabulary"], header["alpha"])
        head.classes_ = header["labels"]
        head.seen_, head.log_prob_, head.unseen_ = (tensors[name].numpy() for name in ("seen", "log_prob", "unseen"))
        return head

    def _tokens(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and id of every token of every text."""
        tokens = self.tokenize(list(texts)) if len(texts) else []
        lengths = [len(ids) for ids in tokens]
        ids = np.fromiter((token for ids in tokens for token in ids), np.int64, sum(lengths))
        return np.repeat(np.arange(len(texts)), lengths), ids

    def _joint(self, texts: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """ln p(text, label) [n, K] and the number of tokens [n]."""
        rows, ids = self._tokens(texts)
        place = np.searchsorted(self.seen_, ids)
        known = np.isin(ids, self.seen_)
        lengths = np.bincount(rows, minlength=len(texts))
        others = lengths - np.bincount(rows[known], minlength=len(texts))
        counts = csr_matrix(
            (np.ones(int(known.sum())), (rows[known], place[known])), shape=(len(texts), len(self.seen_))
        )
        joint = counts @ self.log_prob_.T.astype(np.float64) + others[:, None] * self.unseen_.astype(np.float64)
        return joint - np.log(len(self.classes_)), lengths
