"""The scikit-learn estimator of language identification on texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from saefeat.artefacts import ModelRecord
from saefeat.config import DEFAULT_HEAD, DEMO_MODEL
from saefeat.corpora import Corpus
from saefeat.corpora.examples import (
    UNKNOWN,
    check_examples,
    need_letters,
    or_unknown,
    says_something,
)
from saefeat.corpora.given import given_examples, given_texts
from saefeat.dictionaries import SAE
from saefeat.io import UserError, existing_path
from saefeat.lid.features import Features, featurize, sum_by_label
from saefeat.lid.head import Head, IdentifierHeader, SaeHeader
from saefeat.lid.heads import HEADS, FitData, sae_heads
from saefeat.methods import METHODS
from saefeat.models import LanguageModel, load_model
from saefeat.sae.store import check_together, load_sae, load_saes
from saefeat.statistics import Stats


class LanguageIdentifier(ClassifierMixin, BaseEstimator):
    """A scikit-learn classifier of texts on features of SAEs of a language model.

    Nothing can be said of a text without a letter (blank, digits, punctuation, emoji), nor of one
    on which no unit of the head fires. It is predicted as `unknown`, and its row of `predict_proba`
    sums to 0; those of all other texts sum to 1. Where some label is written without letters,
    digits, punctuation and symbols are enough.

    `save` writes the head with the names, paths and fingerprints of the model and the SAEs; a
    pickle (joblib too) holds the same. Their weights are not kept: they are loaded again when they
    are needed, and must be the same. A model that was made by `wrap` needs a name that `load_model`
    takes, or is given again. An SAE that was made in memory is pickled whole, and is given to
    `load` again.

    Parameters:
        model: a `LanguageModel`, or a name that `load_model` takes.
        saes: SAEs, or sources of them as `load_saes` takes them.
        head: one of `saefeat.lid.heads.sae_heads()`.
        seed: of the linear head's fit.
        unknown: what `predict` returns where nothing can be said. It is not a label, and not in
            `classes_`. A string, as scikit-learn's metrics need it, or None.

    Attributes after `fit`:
        classes_: the K labels, sorted, an array of strings [K].
        head_: the fitted `Head`.
    """

    # Of an identifier from a file or pickle.
    _known_model: ModelRecord | None = None
    _known_saes: Sequence[SaeHeader] = ()

    def __init__(
        self,
        model: Any = DEMO_MODEL,
        saes: Any = (),
        head: str = DEFAULT_HEAD,
        seed: int = 0,
        unknown: str | None = UNKNOWN,
    ) -> None:
        self.model, self.saes, self.head, self.seed, self.unknown = model, saes, head, seed, unknown

    def fit(self, texts: Any, labels: Any = None) -> LanguageIdentifier:
        """Fit the head on n texts and their n labels.

        Texts that say nothing are left out.

        Args:
            texts: a list of strings; or, without `labels`, pairs or a table with the columns `text`
                and `label`.

        Raises:
            UserError: the head is unknown, there is no SAE, there are fewer than two labels, or
                what `given_examples` and `check_examples` refuse.
        """
        if self.head not in sae_heads():
            raise UserError(
                f"unknown head {self.head}; choose from {', '.join(sae_heads())}", "head"
            )
        texts, labels = given_examples(texts, labels)
        of = check_examples(texts, labels, self.unknown)
        names = tuple(sorted(set(of)))
        if len(names) < 2:
            raise UserError("fitting needs texts of at least two labels")
        letters = need_letters(texts, of)
        usable = [i for i, text in enumerate(texts) if says_something(text, letters=letters)]
        texts, of = [texts[i] for i in usable], [of[i] for i in usable]
        self._load()
        lm, saes = self.lm_, self.saes_

        @cache
        def stats() -> dict[str, Stats]:
            return sum_by_label(lm, saes, Corpus(texts, of, [""] * len(of), names, "python"))

        data = FitData(
            texts,
            of,
            names,
            letters,
            self.seed,
            [sae.id for sae in saes],
            load_stats=lambda name: stats()[name],
            load_selection=lambda method: METHODS[method].rank(list(stats().values())),
            load_features=lambda copies: featurize(lm, saes, [*texts, *copies], letters=letters),
        )
        self.head_ = HEADS[self.head].fit(data)
        self.head_.letters = letters
        self.classes_ = np.array(names)
        return self

    def decision_function(self, texts: Any) -> np.ndarray:
        """Scores [n, K] float64; of a text that says nothing, those of an empty bag.

        Texts, here and below, are a list of strings, or a table with a column `text`.
        """
        return self._apply(Head.scores, texts)

    def predict_proba(self, texts: Any) -> np.ndarray:
        """Probabilities [n, K] float64, columns as in `classes_`.

        A row sums to 1, or to 0 where nothing can be said.
        """
        return self._apply(Head.probabilities, texts)

    def predict(self, texts: Any) -> np.ndarray:
        """Labels, and `unknown` where nothing can be said: an array of objects [n]."""
        labels = or_unknown(self._apply(Head.predict, texts), self.unknown)
        return np.array(labels, dtype=object)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Accuracy on texts X with labels y, which X may hold. Unknown counts as wrong."""
        X, y = given_examples(X, y)
        right = [a == str(b) for a, b in zip(self.predict(X), y, strict=True)]
        return float(np.average(right, weights=sample_weight)) if right else 0.0

    def save(self, path: str | Path) -> None:
        """Write the fitted identifier to one safetensors file.

        It holds the head, and the names, paths and fingerprints of the model and the SAEs.

        Raises:
            NotFittedError: it is not fitted.
            UserError: the model or an SAE has changed since it was fitted.
        """
        self._load_known()
        header: IdentifierHeader = {
            "model": _model_header(self.lm_),
            "saes": [_sae_header(sae) for sae in self.saes_],
            "seed": self.seed,
            "unknown": self.unknown,
        }
        replace(self.head_, identifier=header).save(Path(path))

    @classmethod
    def load(cls, path: str | Path, model: Any = None, saes: Any = None) -> LanguageIdentifier:
        """Read what `save` wrote, and load the model and the SAEs.

        Args:
            model: the same model as a `LanguageModel` or under another name; None: by its recorded
                name.
            saes: the same SAEs, or sources of them; None: by their recorded sources.

        Raises:
            UserError: the file is missing, damaged or holds a head without its model; or the model
                or an SAE is not found, or has changed since the identifier was fitted.
        """
        head = Head.load(Path(path))
        if (before := head.identifier) is None:
            raise UserError(f"{path} holds the head of a run; use it with the run")
        sources = [sae["source"] for sae in before["saes"]]
        if saes is None and None in sources:
            name = before["saes"][sources.index(None)]["id"]
            raise UserError(f"the SAE {name} of {path} has no recorded path; give the SAEs", "saes")
        made = cls(
            before["model"]["name"] if model is None else model,
            sources if saes is None else saes,
            head.name,
            before["seed"],
            before["unknown"],
        )
        made._known_model, made._known_saes = before["model"], before["saes"]
        made.head_, made.classes_ = head, np.array(head.labels)
        made._load_known()
        return made

    def _apply(self, method: Callable[[Head, Features], Any], texts: Any) -> Any:
        """The result of a method of the head on texts."""
        strings = given_texts(texts)
        self._load_known()
        features = featurize(self.lm_, self.saes_, strings, letters=self.head_.letters)
        return method(self.head_, features)

    def _load(self) -> None:
        """Load the model and the SAEs; known ones in the dtypes and by the ids that they had."""
        known, options = self._known_model, {}
        if known and known["name"] == self.model:
            options = {"dtype": known["dtype"], "revision": known["revision"]}
        self.lm_ = load_model(self.model, **options) if isinstance(self.model, str) else self.model
        by_source = {sae["source"]: sae for sae in self._known_saes}
        self.saes_: list[SAE] = []
        for one in self._given_saes():
            if isinstance(one, SAE):
                self.saes_.append(one)
            elif not isinstance(one, str | Path):
                raise UserError(
                    f"a value of type {type(one).__name__} is neither an SAE nor a source of SAEs"
                )
            elif before := by_source.get(str(one)):
                sae = load_sae(one, dtype=before["dtype"])
                self.saes_.append(replace(sae, id=before["id"]))
            else:
                self.saes_ += load_saes(str(one), self.lm_)
        if not self.saes_:
            raise UserError("give at least one SAE", "saes")
        # The user who has loaded an SAE has chosen its model.
        check_together(self.saes_, self.lm_, same_model=False)

    def _load_known(self) -> None:
        """Load the model and the SAEs of a fitted identifier, where they are not loaded.

        Raises NotFittedError, or UserError where something has changed since the fit.
        """
        check_is_fitted(self, "head_")
        if hasattr(self, "lm_"):
            return
        self._load()
        marks = {before["id"]: before["fingerprint"] for before in self._known_saes}
        here = {sae.id: sae.identity["fingerprint"] for sae in self.saes_}
        changed = [name for name in {**marks, **here} if marks.get(name) != here.get(name)]
        if not self._known_model or self.lm_.fingerprint != self._known_model["fingerprint"]:
            changed = [self.lm_.name]
        if changed:
            del self.lm_, self.saes_  # the next call checks again
            raise UserError(
                f"{changed[0]} has changed since the identifier was fitted; fit it again"
            )

    def _given_saes(self) -> list[Any]:
        return [self.saes] if isinstance(self.saes, str | Path | SAE) else list(self.saes)

    def __getstate__(self) -> dict[str, Any]:
        """The state, with names and sources in place of the model and the SAEs."""
        state: dict[str, Any] = dict(self.__dict__)
        known = () if "saes_" in state else self._known_saes
        lm, saes = state.pop("lm_", self.model), state.pop("saes_", self._given_saes())
        if isinstance(lm, LanguageModel):
            state["_known_model"] = _model_header(lm)
            state["model"] = state["_known_model"]["name"]
        # An SAE without a source is held whole, without what it has built to encode.
        state["saes"] = [
            (_source(one) or one.to("cpu")) if isinstance(one, SAE) else existing_path(str(one))
            for one in saes
        ]
        loaded = {one.id: _sae_header(one) for one in saes if isinstance(one, SAE)}
        others = [before for before in known if before["id"] not in loaded]
        return {**state, "_known_saes": [*others, *loaded.values()]}


def _model_header(lm: LanguageModel) -> ModelRecord:
    return ModelRecord(**{**lm.identity, "name": existing_path(lm.name)})


def _sae_header(sae: SAE) -> SaeHeader:
    mark = sae.identity["fingerprint"]
    return SaeHeader(id=sae.id, source=_source(sae), dtype=sae.dtype, fingerprint=mark)


def _source(sae: SAE) -> str | None:
    """Where `load_sae` finds an SAE again; None where it was made in memory."""
    return sae.record.get("source") or sae.record.get("path")
