"""The interface of baselines: scikit-learn classifiers of raw texts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

from saefeat.corpora.examples import or_unknown
from saefeat.corpora.given import given_examples
from saefeat.lid.heads import FitSize
from saefeat.models import LanguageModel


class TextClassifier(ClassifierMixin, BaseEstimator):
    """A classifier of raw texts: the label of greatest score, or `unknown` where all scores are 0.

    A text without a letter has no scores (see `says_something`). `predict` then returns `unknown`:
    a string, as scikit-learn's metrics need it, or None. It is not a label.

    Class attributes:
        title: what it is, in a few words, for tables.
        fitted: whether it is fitted on the texts of a run, and saved there.
        place: its place among the baselines in the report, as that of a `HeadKind`.
    """

    title: ClassVar[str]
    fitted: ClassVar[bool] = True
    place: ClassVar[int] = 1
    classes_: list[str]
    unknown: str | None

    @classmethod
    @abstractmethod
    def for_run(cls, lm: LanguageModel, labels: Sequence[str], file: Path | None = None) -> Self:
        """Make an instance for a run, with `unknown` None.

        Args:
            labels: labels of the run.
            file: a model file that the user names in place of the embedded one.
        """

    @abstractmethod
    def fit(self, texts: Any = None, labels: Any = None) -> Self:
        """Fit on n texts and their n labels. A table or pairs may hold both."""

    @staticmethod
    def training_examples(texts: list[str], labels: list[str]) -> tuple[list[str], list[str]]:
        """What it is fitted on in a run, of the texts that the heads are fitted on."""
        return texts, labels

    @staticmethod
    def fit_bytes(size: FitSize) -> float:
        """Bytes of memory that fitting takes."""
        return 0.0

    def save(self, path: Path) -> None:
        """Write what was fitted. Nothing is written where `fitted` is False."""

    def restore(self, path: Path) -> Self:
        """Read what `save` wrote. Raises UserError when the file is missing, damaged or foreign."""
        return self

    @abstractmethod
    def scores(self, texts: Any) -> NDArray[np.float64]:
        """Probabilities [n, K], columns as in `classes_`; a row of zeros where nothing can be said.

        Texts, here and in all methods, are a list of strings, or a table with a column `text`.
        """

    def predict(self, texts: Any) -> list[str | None]:
        """The best label of each text, ties to the first; `unknown` where nothing can be said."""
        found = [self.classes_[row.argmax()] if row.any() else None for row in self.scores(texts)]
        return or_unknown(found, self.unknown)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Accuracy on texts X with labels y, which X may hold. Unknown counts as wrong."""
        X, y = given_examples(X, y)
        right = [a == b for a, b in zip(self.predict(X), y, strict=True)]
        return float(np.average(right, weights=sample_weight)) if right else 0.0
