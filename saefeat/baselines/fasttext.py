"""fastText's language identifier, on a closed set of labels."""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fasttext.FastText import _FastText
from numpy.typing import NDArray

from saefeat import assets
from saefeat.baselines.classifier import TextClassifier
from saefeat.corpora.examples import UNKNOWN, check_labels, says_something
from saefeat.corpora.given import given_examples, given_texts, listed
from saefeat.io import UserError
from saefeat.labels import PREFIX, to_labels
from saefeat.models import LanguageModel

# fastText reads one line: these characters end it, or (lone surrogates) have no UTF-8 form.
_NOT_IN_A_LINE = re.compile("[\n\r\x00\ud800-\udfff]|</s>")


class FastText(TextClassifier):
    """fastText's language identifier: the best of the candidate labels, not of all 176.

    Args:
        path: a model of fastText (lid.176.ftz, lid.176.bin or another); None: the embedded
            lid.176.ftz.
        labels: the candidates, in any code system of `saefeat.labels`; None: those that `fit`
            sees, sorted. Where they are given, `fit` is not needed. A label for which the model has
            no code always scores 0.
        unknown: what `predict` returns where nothing can be said.
    """

    title = "baseline: fastText, closed set"
    fitted = False

    def __init__(
        self,
        path: str | Path | None = None,
        labels: Sequence[str] | None = None,
        unknown: str | None = UNKNOWN,
    ) -> None:
        self.path = path
        self.labels = labels
        self.unknown = unknown

    @classmethod
    def for_run(
        cls, lm: LanguageModel, labels: Sequence[str], file: Path | None = None
    ) -> FastText:
        """An instance whose candidates are the labels of a run."""
        return cls(path=file, labels=list(labels), unknown=None)

    def fit(self, texts: Any = None, labels: Sequence[str] | None = None) -> FastText:
        """Load the model and determine the candidates; nothing is learnt.

        Raises:
            UserError: the model file is missing or damaged, or cannot be fetched (see
                `assets.fetch`); labels are one string; or what `check_labels` refuses.
            ValueError: there are labels neither here nor in the constructor.
        """
        candidates = self.labels if self.labels is not None else labels
        if candidates is None:
            if texts is None:
                raise ValueError("FastText needs candidate labels, in its constructor or in fit")
            _, candidates = given_examples(texts)
        candidates = check_labels(listed(candidates, "labels"), self.unknown)
        given = self.labels is not None
        self.classes_ = list(dict.fromkeys(candidates if given else sorted(candidates)))
        codes = [code.removeprefix(PREFIX) for code in _codes(self._model())]
        found = to_labels(codes, self.classes_)
        self._columns = {PREFIX + code: self.classes_.index(label) for code, label in found.items()}
        return self

    @property
    def names(self) -> dict[str, str]:
        """Code of the model -> the candidate of that language, for the codes that have one."""
        return {
            code.removeprefix(PREFIX): self.classes_[row] for code, row in self._columns.items()
        }

    def scores(self, texts: Any) -> NDArray[np.float64]:
        """The model's probabilities of the candidates [n, K]; zeros where nothing can be said.

        Rows do not sum to 1: the rest is that of other labels.
        """
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
        """The best of all codes of the model and its probability; needs no candidates.

        None where nothing can be said.
        """
        judged = [self._predictions(text, 1) for text in given_texts(texts)]
        return [(b[0][1].removeprefix(PREFIX), min(b[0][0], 1.0)) if b else None for b in judged]

    def _predictions(self, text: str, k: int) -> list[tuple[float, str]]:
        """(score, `__label__xx`) of the k best codes, best first; k -1: of all.

        Scores may exceed 1 by about 1e-5.
        """
        line = _NOT_IN_A_LINE.sub(" ", text)
        if not says_something(line):
            return []
        # `f` is the binding: fasttext-wheel's own `predict` fails under numpy 2. The line is ended
        # as there. The threshold is below 0, because 0 drops probabilities under 1e-5, and the best
        # candidate may be among them.
        return self._model().f.predict(line + "\n", k, -1.0, "strict")

    def _model(self) -> _FastText:
        if not hasattr(self, "_loaded"):
            self._loaded = _load(assets.fetch("lid.176") if self.path is None else Path(self.path))
        return self._loaded


def _codes(model: _FastText) -> list[str]:
    """Labels of a classifier, as `__label__xx`; of a model of word vectors its words."""
    return [str(label) for label in model.get_labels()]


def _dictionary_is_complete(path: Path) -> bool:
    """Whether the dictionary of a model file ends before the file does.

    fastText reads a word byte by byte up to a NUL, without looking for the end of the file. A file
    that is cut off inside the dictionary gives a word that grows until memory is full.
    """
    magic, start, after_word = 793712314, 92, 9  # start: after version, arguments and counts
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
            at = end + 1 + after_word  # the count and the type of the word
        return at <= len(data)


def _load(path: Path) -> _FastText:
    """Load a classifier. Raises UserError when it is missing, damaged or not a classifier."""
    if not path.is_file():
        raise UserError(
            f"{path} does not exist or is not a file; give a fastText model such as lid.176.ftz"
        )
    if not _dictionary_is_complete(path):
        raise UserError(
            f"{path} is not a readable fastText model (other format, or cut off); fetch it again"
        )
    try:
        # `fasttext.load_model` does the same, and prints a warning.
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
