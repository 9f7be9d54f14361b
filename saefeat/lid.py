"""Language identification: a featurizer (texts -> bags of units) and heads that read the bags.

Every head is linear in an example's bag: a weight for each (unit, label) on the number of tokens on
which the unit fired, and for `sae-min-max` one on the sum of its values. So all are stored, applied
and explained in one way.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.feature_selection import chi2
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_is_fitted

from saefeat.codes import STEP, Bag, to_steps
from saefeat.collection import encode_batches, observe, on_device, passes
from saefeat.corpora import TOKEN_LIMIT, WINDOW, Corpus, clean_text, plan_batches
from saefeat.corpora.examples import (
    UNKNOWN,
    check_examples,
    need_letters,
    or_unknown,
    says_something,
)
from saefeat.corpora.given import given_examples, given_texts
from saefeat.dictionaries import SAE, Dictionary
from saefeat.io import SCHEMA, UserError, load_tensors, save_tensors, whole_path
from saefeat.methods import METHODS
from saefeat.models import LanguageModel, load_model
from saefeat.sae.store import check_together, load_sae, load_saes
from saefeat.selection import Selection
from saefeat.statistics import Stats

SAE_HEADS = ("sae-count", "sae-min-max", "naive-bayes", "linear")
HEADS = ("sae-count", "sae-min-max", "neuron-count", "naive-bayes", "linear")
LENGTHS = (10, 20, 50, None)  # characters; None: the whole text
SHORT = 20  # `linear` also learns from the first 20 characters of each text,
CAPITALS = 0.2  # and from the texts and those beginnings in capitals; such a copy weighs so much, for they are rare
DENSE_BYTES = 1.5e9  # below it the fit is dense, which is several times faster
WEIGHTS = (
    2**24
)  # of the linear head at most, one a unit and label; fitting takes some 200 bytes for each
_C = 10.0


@dataclass
class Features:
    """Bags of n texts as sparse matrices: dictionary id -> CSR [n, width] of firing tokens, and of sums of values."""

    counts: dict[str, sp.csr_matrix]
    sums: dict[str, sp.csr_matrix]

    @classmethod
    def stack(cls, parts: Sequence[Features]) -> Features:
        """Rows of all parts, one after the other."""
        joined = [
            {
                name: sp.csr_matrix(sp.vstack([getattr(p, kind)[name] for p in parts]))
                for name in getattr(parts[0], kind)
            }
            for kind in ("counts", "sums")
        ]
        return cls(*joined)

    def __len__(self) -> int:
        return int(next(iter(self.counts.values())).get_shape()[0])


def featurize(
    lm: LanguageModel,
    dictionaries: Sequence[Dictionary],
    texts: Sequence[str],
    *,
    token_limit: int = TOKEN_LIMIT,
    count_bos: bool = False,
    letters: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> Features:
    """Bags of texts. Texts that say nothing (`says_something`), and those without tokens, have empty rows.

    count_bos: count the tokens that the tokenizer puts before a text, as SAE-LAPE was published.
    letters: whether a text needs a letter to say something; False for heads whose `letters` is.

    Dictionaries that do not fit in memory together take several passes over the texts.
    """
    builder = _Builder({d.id: d.width for d in dictionaries})
    ids = lm.tokenize([clean_text(text) for text in texts], token_limit)
    special = lm.special_ids
    told = [says_something(text, letters=letters) for text in texts]

    def one_pass(
        group: Sequence[Dictionary],
    ) -> None:  # a function, so that what it has moved goes when it ends
        here = [on_device(dictionary, lm.device) for dictionary in group]
        for start in range(0, len(ids), WINDOW):
            window = range(start, min(start + WINDOW, len(ids)))
            rows = {i: ids[i] for i in window if told[i] and any(t not in special for t in ids[i])}
            for batch, results in encode_batches(
                lm, here, plan_batches(lm, rows, count_bos=count_bos)
            ):
                positions = np.asarray(batch.positions)
                for name, (codes, lengths) in results.items():
                    builder.add(name, codes.bag(lengths), positions)
            progress(f"lid: {window.stop:,} of {len(ids):,} texts")

    for group in passes(dictionaries, lm.device):
        one_pass(group)
    return builder.build(len(texts))


class _Builder:
    def __init__(self, widths: dict[str, int]) -> None:
        self.widths = widths
        self.parts: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in widths}

    def add(self, name: str, bag: Bag, positions: np.ndarray) -> None:
        rows = bag.rows()
        assert rows.example is not None and rows.unit is not None
        columns = (rows.unit.int(), rows.tokens.float(), rows.sum.double() * STEP)
        self.parts[name].append(
            (positions[rows.example.cpu().numpy()], *(c.cpu().numpy() for c in columns))
        )

    def build(self, n: int) -> Features:
        features = Features({}, {})
        for name, parts in self.parts.items():
            row, unit, tokens, total = (
                (np.concatenate(c) if parts else np.zeros(0) for c in zip(*parts, strict=True))
                if parts
                else (np.zeros(0, np.int64),) * 4
            )
            shape = (n, self.widths[name])
            features.counts[name] = sp.csr_matrix(
                (tokens.astype(np.float32), (row, unit)), shape=shape
            )
            features.sums[name] = sp.csr_matrix(
                (total.astype(np.float64), (row, unit)), shape=shape
            )
        return features


def features_from_bags(
    directory: Path, widths: dict[str, int], positions: Sequence[int]
) -> Features:
    """Read bags that `collect` wrote (`directory/<id>/window-*.parquet`); rows in the order of `positions`."""
    import pyarrow.parquet as pq

    place = np.full(max(positions, default=0) + 1, -1, np.int64)
    place[np.asarray(positions, np.int64)] = np.arange(len(positions))
    features = Features({}, {})
    for name, width in widths.items():
        files = sorted((directory / name).glob("window-*.parquet"))
        if not files:
            raise UserError(f"{directory / name} holds no bags; collect with --bags")
        tables = [
            pq.read_table(file, columns=["example", "unit", "tokens", "sum"]) for file in files
        ]
        columns = [
            np.concatenate([t[c].to_numpy() for t in tables])
            for c in ("example", "unit", "tokens", "sum")
        ]
        known = np.full(len(columns[0]), -1, np.int64)
        inside = columns[0] < len(place)
        known[inside] = place[columns[0][inside]]
        keep = known >= 0
        index = (known[keep], columns[1][keep])
        shape = (len(positions), width)
        features.counts[name] = sp.csr_matrix(
            (columns[2][keep].astype(np.float32), index), shape=shape
        )
        features.sums[name] = sp.csr_matrix(
            (columns[3][keep].astype(np.float64), index), shape=shape
        )
    return features


# --------------------------------------------------------------------------- heads


@dataclass
class Head:
    """A fitted head.

    Attributes:
        units: dictionary id -> int64 [m], the units it reads.
        counts, sums: dictionary id -> float64 [m, K], weights on a unit's firing tokens and on the
            sum of its values.
        intercept: float64 [K].
        root: take square roots of the counts and divide each row by its length, over all
            dictionaries together.
        probabilistic: scores are logarithms of probabilities up to a constant.
        reads: dictionary id -> fingerprint of the dictionary that it was fitted on.
        letters: whether a text needs a letter to say something; False where some label is written
            without any.
    """

    name: str
    labels: tuple[str, ...]
    units: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]
    sums: dict[str, np.ndarray] = field(default_factory=dict)
    intercept: np.ndarray = field(default_factory=lambda: np.zeros(0))
    root: bool = False
    probabilistic: bool = False
    reads: dict[str, str] = field(default_factory=dict)
    letters: bool = True

    def scores(self, features: Features) -> np.ndarray:
        """float64 [n, K]."""
        rows = _rooted(features.counts) if self.root else features.counts
        total = np.zeros((len(features), len(self.labels)))
        if len(self.intercept):
            total += self.intercept
        for name, units in self.units.items():
            total += rows[name][:, units] @ self.counts[name]
            if name in self.sums:
                total += features.sums[name][:, units] @ self.sums[name]
        return total

    def known(self, features: Features) -> np.ndarray:
        """bool [n]: whether any unit that the head reads fired."""
        fired = np.zeros(len(features), bool)
        for name, units in self.units.items():
            fired |= np.asarray(features.counts[name][:, units].sum(1)).ravel() > 0
        return fired

    def predict(self, features: Features) -> list[str | None]:
        """The label of greatest score, ties to the first; None where no unit of the head fired."""
        best = self.scores(features).argmax(1)
        return [
            self.labels[k] if ok else None for k, ok in zip(best, self.known(features), strict=True)
        ]

    def probabilities(self, features: Features) -> np.ndarray:
        """[n, K]: softmax of the scores where they are logarithms, else each label's share of the positive scores.

        Rows sum to 1, but to 0 where nothing can be said (`predict` gives None).
        """
        scores = self.scores(features)
        if self.probabilistic:
            shifted = np.exp(scores - scores.max(1, keepdims=True)) * self.known(features)[:, None]
            return shifted / np.maximum(
                shifted.sum(1, keepdims=True), 1.0
            )  # the greatest is 1, or all are 0
        positive = np.clip(scores, 0, None)
        total = positive.sum(1, keepdims=True)
        return np.divide(positive, total, out=np.zeros_like(positive), where=total > 0)

    def evidence(self, features: Features, n: int = 5) -> list[list[dict[str, Any]]]:
        """Per text the n units that spoke most for the predicted label, against the mean of the other labels."""
        best = self.scores(features).argmax(1)
        rows = _rooted(features.counts) if self.root else features.counts
        found: list[list[dict[str, Any]]] = [[] for _ in range(len(features))]
        for name, units in self.units.items():
            picked = sp.csr_matrix(rows[name][:, units])
            sums = sp.csr_matrix(features.sums[name][:, units]) if name in self.sums else None
            for i in range(len(features)):
                found[i] += self._contributions(
                    name, picked[i], None if sums is None else sums[i], int(best[i])
                )
        return [
            sorted(row, key=lambda u: (-u["weight"], u["dictionary"], u["unit"]))[:n]
            for row in found
        ]

    def _contributions(
        self, name: str, row: sp.csr_matrix, sums: Any, k: int
    ) -> list[dict[str, Any]]:
        weight = _against_rest(self.counts[name][row.indices], k) * row.data
        if sums is not None:
            weight = (
                weight
                + _against_rest(self.sums[name][row.indices], k)
                * np.asarray(sums[:, row.indices].todense())[0]
            )
        units = self.units[name][row.indices]
        return [
            {"dictionary": name, "unit": int(u), "weight": round(float(w), 6)}
            for u, w in zip(units, weight, strict=True)
            if w > 0
        ]

    def save(self, path: Path) -> None:
        """One safetensors file."""
        tensors = {
            f"units|{n}": torch.from_numpy(u.astype(np.int64)) for n, u in self.units.items()
        }
        tensors |= {
            f"counts|{n}": torch.from_numpy(w.astype(np.float64)) for n, w in self.counts.items()
        }
        tensors |= {
            f"sums|{n}": torch.from_numpy(w.astype(np.float64)) for n, w in self.sums.items()
        }
        tensors["intercept"] = torch.from_numpy(self.intercept.astype(np.float64))
        flags = {
            "root": self.root,
            "probabilistic": self.probabilistic,
            "reads": self.reads,
            "letters": self.letters,
        }
        save_tensors(
            path,
            tensors,
            {"schema": SCHEMA, "head": self.name, "labels": list(self.labels), **flags},
        )

    @classmethod
    def load(cls, path: Path) -> Head:
        """Read a head; raises UserError when the file is missing, damaged or something else."""
        tensors, header = load_tensors(path)
        if "head" not in header or header.get("schema") != SCHEMA:
            raise UserError(f"{path} holds no head of this version; fit it again")
        parts: dict[str, dict[str, np.ndarray]] = {"units": {}, "counts": {}, "sums": {}}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("|")
            if name:
                parts[kind][name] = tensor.numpy()
        return cls(
            header["head"],
            tuple(header["labels"]),
            **parts,
            intercept=tensors["intercept"].numpy(),
            root=header["root"],
            probabilistic=header["probabilistic"],
            reads=header["reads"],
            letters=header.get("letters", True),  # heads of older runs lack it
        )


def _against_rest(weights: np.ndarray, k: int) -> np.ndarray:
    others = weights.shape[1] - 1
    return weights[:, k] - (weights.sum(1) - weights[:, k]) / max(others, 1)


def _rooted(counts: dict[str, sp.csr_matrix]) -> dict[str, sp.csr_matrix]:
    """Square roots of the counts, each row divided by its length over all dictionaries together."""
    squares = sum(np.asarray(matrix.sum(1)).ravel() for matrix in counts.values())
    scale = sp.diags(1 / np.sqrt(np.maximum(squares, 1e-12)))
    return {name: sp.csr_matrix(scale @ matrix.power(0.5)) for name, matrix in counts.items()}


def selection_head(name: str, selection: Selection, stats: Sequence[Stats]) -> Head:
    """`sae-count`, `sae-min-max` and `neuron-count` of SAE-LAPE (arXiv 2507.11230), on selected units.

    sae-count and neuron-count: tokens on which units of the label fire. sae-min-max: their values,
    scaled by the
    least and greatest value that the unit has over all labels: (value - least) / (greatest - least
    + 1e-6), unclamped.
    `least` is rounded to the steps that sums are kept in, as the values in them are: else a unit
    whose values are all equal, which scores 0, would have the rounding of its sum divided by 1e-6.
    """
    head = Head(name, tuple(selection.labels), {}, {})
    for s in stats:
        chosen = selection.units(s.dictionary)
        units = np.array(sorted({u for members in chosen.values() for u in members}), np.int64)
        if not len(units):
            continue
        where = {u: i for i, u in enumerate(units.tolist())}
        member = np.zeros((len(units), len(head.labels)))
        for k, label in enumerate(head.labels):
            member[[where[u] for u in chosen.get(label, [])], k] = 1
        head.units[s.dictionary] = units
        if name == "sae-min-max":
            low, high = s.min[:, units].amin(0), s.max[:, units].amax(0)
            scale = 1 / ((high.double() - low.double()).numpy() + 1e-6)
            least = to_steps(low).double().numpy() * STEP
            head.counts[s.dictionary] = member * (-least * scale)[:, None]
            head.sums[s.dictionary] = member * scale[:, None]
        else:
            head.counts[s.dictionary] = member
    return head


def naive_bayes_head(stats: Sequence[Stats], labels: Sequence[str], alpha: float = 1.0) -> Head:
    """Multinomial naive Bayes over firing units, read from the statistics: no fitting pass, uniform prior."""
    head = Head("naive-bayes", tuple(labels), {}, {}, probabilistic=True)
    total = sum(s.fired.double().sum(1) for s in stats)
    width = sum(s.width for s in stats)
    for s in stats:
        log_p = torch.log(
            (s.fired.double() + alpha) / (torch.as_tensor(total) + alpha * width)[:, None]
        )
        head.units[s.dictionary] = np.arange(s.width)
        head.counts[s.dictionary] = log_p.T.numpy()
    return head


def linear_copies(
    texts: Sequence[str], of: Sequence[str], *, letters: bool = True
) -> tuple[list[str], list[str], np.ndarray]:
    """What the linear head learns from beside n whole texts: beginnings and capitals.

    Copies that say nothing are left out, and copies in capitals of what has no small letters.

    Returns:
        texts; their labels; the weights of the n whole texts (1) and then of these copies, float64.
    """
    short = [text[:SHORT] for text in texts]
    capitals = [
        (text.upper(), label)
        for kind in (texts, short)
        for text, label in zip(kind, of, strict=True)
        if text.upper() != text
    ]
    rows = [(*row, 1.0) for row in zip(short, of, strict=True)] + [
        (*row, CAPITALS) for row in capitals
    ]
    rows = [row for row in rows if says_something(row[0], letters=letters)]
    weights = np.array([1.0] * len(texts) + [weight for _, _, weight in rows])
    return [text for text, _, _ in rows], [label for _, label, _ in rows], weights


def linear_head(
    features: Features,
    of: Sequence[str],
    labels: Sequence[str],
    *,
    weights: np.ndarray | None = None,
    seed: int = 0,
) -> Head:
    """Logistic regression on square-rooted, length-normalised counts of the units of the given dictionaries.

    All of them where they make at most `WEIGHTS` weights; else those that tell most of the labels
    by chi-squared.
    weights: of the rows, float64 [n]; default 1 (see `linear_copies`).
    """
    rooted = _rooted(features.counts)
    names = sorted(rooted)
    x = sp.csr_matrix(sp.hstack([rooted[name] for name in names]), dtype=np.float32)
    kept, most = np.arange(x.get_shape()[1]), WEIGHTS // len(labels)
    if len(kept) > most:
        kept = _telling(x, of, most)
        x = sp.csr_matrix(x[:, kept])
    dense = x.toarray() if math.prod(x.get_shape()) * 4 <= DENSE_BYTES else x
    model = LogisticRegression(C=_C, max_iter=200, tol=1e-3, random_state=seed)
    fitted = model.fit(dense, np.asarray(of), sample_weight=weights)
    order = [list(fitted.classes_).index(label) for label in labels]
    coefficients, intercept = fitted.coef_, fitted.intercept_
    if len(labels) == 2:  # scikit-learn keeps one row for two classes
        coefficients = np.vstack([-coefficients, coefficients]) / 2
        intercept = np.concatenate([-intercept, intercept]) / 2
    head = Head("linear", tuple(labels), {}, {}, root=True, probabilistic=True)
    head.intercept = np.asarray(intercept, np.float64)[order]
    start = 0
    for name in names:
        width = rooted[name].get_shape()[1]
        mine = (kept >= start) & (kept < start + width)
        head.units[name] = kept[mine] - start
        head.counts[name] = np.asarray(coefficients[order][:, mine], np.float64).T
        start += width
    return head


def _telling(x: sp.csr_matrix, of: Sequence[str], most: int) -> np.ndarray:
    """So many columns of x that tell most of the labels by chi-squared: int64, rising; ties to the first."""
    scores, _ = chi2(x, np.asarray(of))
    return np.sort(
        np.argsort(-np.nan_to_num(scores, nan=-1.0), kind="stable")[:most]
    )  # NaN: of those that never fire


# --------------------------------------------------------------------------- estimator


class LanguageIdentifier(ClassifierMixin, BaseEstimator):
    """A scikit-learn classifier of texts on the features of SAEs of a language model.

    Nothing can be said of a text without a letter (`says_something`: blank, digits, punctuation,
    emoji), nor of one on which no unit of the head fires. It is predicted as `unknown`, and its row
    of `predict_proba` sums to 0, those of all other texts to 1.

    A pickle (joblib too) holds the head, the model's name and the sources of the SAEs, not their
    weights; these are loaded again when they are needed, and must be the same. So the name of a
    model that `wrap` made must be one that `load_model` takes. An SAE that was made in memory has
    no source and is held whole.

    Parameters:
        model: a `LanguageModel`, or a name that `load_model` takes.
        saes: SAEs, or sources of them.
        head: sae-count, sae-min-max, naive-bayes or linear.
        unknown: what `predict` gives where nothing can be said. It is no label, and not in
            `classes_`. A string, as scikit-learn's metrics need it, or None.

    Attributes after `fit`: `classes_`, `head_`.
    """

    # Of an estimator from a pickle: what its model was, and its SAEs by their sources.
    _model_was: Mapping[str, Any] = {}
    _saes_were: Mapping[str, Any] = {}

    def __init__(
        self,
        model: Any = "embedded:gemma-3-270m",
        saes: Any = (),
        head: str = "linear",
        seed: int = 0,
        unknown: str | None = UNKNOWN,
    ) -> None:
        self.model, self.saes, self.head, self.seed, self.unknown = model, saes, head, seed, unknown

    def fit(self, texts: Any, labels: Any = None) -> LanguageIdentifier:
        """Fit the head on n texts and their n labels, or on pairs or a table with the columns `text` and `label`.

        Texts that say nothing are left out.

        Raises:
            UserError: an unknown head, no SAE, fewer than two labels, or what `given_examples` and
                `check_examples` refuse.
        """
        if self.head not in SAE_HEADS:
            raise UserError(f"unknown head {self.head}; use {', '.join(SAE_HEADS)}")
        texts, labels = given_examples(texts, labels)
        of = check_examples(texts, labels, self.unknown)
        names = tuple(sorted(set(of)))
        if len(names) < 2:
            raise UserError("fitting needs texts of at least two labels")
        letters = need_letters(texts, of)
        told = [i for i, text in enumerate(texts) if says_something(text, letters=letters)]
        self._load()
        self.head_ = self._fitted([texts[i] for i in told], [of[i] for i in told], names, letters)
        self.head_.letters = letters
        self.classes_ = np.array(names)
        return self

    def _fitted(
        self, texts: list[str], of: list[str], names: tuple[str, ...], letters: bool
    ) -> Head:
        if self.head == "linear":
            copies, copies_of, weights = linear_copies(texts, of, letters=letters)
            features = featurize(self.lm_, self.saes_, texts + copies, letters=letters)
            return linear_head(features, of + copies_of, names, weights=weights, seed=self.seed)
        stats = self._stats(Corpus(texts, of, [""] * len(texts), names, "python"))
        if self.head == "naive-bayes":
            return naive_bayes_head(stats, names)
        return selection_head(self.head, METHODS["sae-lape"].rank(stats), stats)

    def _load(self) -> None:
        """Load the model and the SAEs; those of a pickle in the dtypes and by the ids that they had."""
        was = self._model_was if self._model_was.get("name") == self.model else {}
        load = {name: was[name] for name in ("dtype", "revision") if name in was}
        self.lm_ = load_model(self.model, **load) if isinstance(self.model, str) else self.model
        self.saes_: list[SAE] = []
        for one in self._given():
            if isinstance(one, SAE):
                self.saes_.append(one)
            elif not isinstance(one, str | Path):
                raise UserError(
                    f"a value of type {type(one).__name__} is neither an SAE nor a source of SAEs"
                )
            elif had := self._saes_were.get(str(one)):
                self.saes_.append(replace(load_sae(one, dtype=had["dtype"]), id=had["id"]))
            else:
                self.saes_ += load_saes(str(one), self.lm_)
        if not self.saes_:
            raise UserError("give at least one SAE")
        check_together(
            self.saes_, self.lm_, same_model=False
        )  # whoever loaded an SAE has chosen its model

    def _given(self) -> list[Any]:
        return [self.saes] if isinstance(self.saes, str | Path | SAE) else list(self.saes)

    def __getstate__(self) -> dict[str, Any]:
        """The state with names and sources in the place of the model and the SAEs, and what these were."""
        state: dict[str, Any] = dict(self.__dict__)
        lm, saes = state.pop("lm_", self.model), state.pop("saes_", self._given())
        if isinstance(lm, LanguageModel):
            state["model"] = _absolute(lm.name)
            state["_model_was"] = {**lm.identity, "name": state["model"]}
        state["saes"] = [_source(one) for one in saes]
        pairs = [
            (source, one)
            for source, one in zip(state["saes"], saes, strict=True)
            if isinstance(one, SAE)
        ]
        known = {
            source if isinstance(source, str) else one.id: one.identity for source, one in pairs
        }
        return {**state, "_saes_were": {**self._saes_were, **known}}

    def _ready(self) -> None:
        """Load what a pickle left out; raises NotFittedError, or UserError where something has changed since."""
        check_is_fitted(self)
        if hasattr(self, "lm_"):
            return
        self._load()
        before = {was["id"]: was["fingerprint"] for was in self._saes_were.values()}
        changed = [
            sae.id for sae in self.saes_ if sae.identity["fingerprint"] != before.get(sae.id)
        ]
        if self.lm_.fingerprint != self._model_was["fingerprint"]:
            changed = [self.lm_.name]
        if changed:
            del self.lm_, self.saes_  # the next call looks again
            raise UserError(
                f"{changed[0]} has changed since the identifier was fitted; fit it again"
            )

    def _features(self, texts: Any) -> Features:
        strings = given_texts(texts)
        self._ready()
        return featurize(self.lm_, self.saes_, strings, letters=self.head_.letters)

    def _stats(self, corpus: Corpus) -> list[Stats]:
        ids = self.lm_.tokenize([clean_text(text) for text in corpus.texts], TOKEN_LIMIT)
        special = self.lm_.special_ids
        rows = {i: tokens for i, tokens in enumerate(ids) if any(t not in special for t in tokens)}
        groups = passes(self.saes_, self.lm_.device, len(corpus.labels))
        return [stats for group in groups for stats in self._one_pass(group, corpus, rows)]

    def _one_pass(
        self, group: Sequence[Dictionary], corpus: Corpus, rows: dict[int, list[int]]
    ) -> list[Stats]:
        device = self.lm_.device
        here = [on_device(dictionary, device) for dictionary in group]
        found = {
            d.id: Stats.zeros(
                corpus.labels, d.width, signed=d.signed, device=device, dictionary=d.identity
            )
            for d in here
        }
        for _, observed in observe(self.lm_, here, plan_batches(self.lm_, rows), corpus):
            for name, one in observed.items():
                found[name].add(one)
        return [
            Stats(s.labels, {name: t.cpu() for name, t in s.tensors.items()}, s.header)
            for s in found.values()
        ]

    def decision_function(self, texts: Any) -> np.ndarray:
        """[n, K] scores; of a text that says nothing, what the head has without evidence.

        Texts are a list of strings, or a table with a column `text`, here and below.
        """
        features = self._features(texts)
        return self.head_.scores(features)

    def predict_proba(self, texts: Any) -> np.ndarray:
        """[n, K], columns as `classes_`; a row sums to 1, but to 0 where nothing can be said."""
        features = self._features(texts)
        return self.head_.probabilities(features)

    def predict(self, texts: Any) -> np.ndarray:
        """Labels, and `unknown` where nothing can be said: an array of objects [n]."""
        features = self._features(texts)
        return np.array(or_unknown(self.head_.predict(features), self.unknown), dtype=object)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Accuracy on texts X with labels y, which may stand in X; what is unknown counts as wrong."""
        X, y = given_examples(X, y)
        right = [a == str(b) for a, b in zip(self.predict(X), y, strict=True)]
        return float(np.average(right, weights=sample_weight)) if right else 0.0


def _absolute(source: str) -> str:
    """A path that is here as one that holds from everywhere; any other name as it is."""
    return (
        whole_path(os.path.expanduser(source))
        if os.path.exists(os.path.expanduser(source))
        else source
    )


def _source(one: Any) -> Any:
    """Where an SAE can be loaded again: a source as `load_sae` takes it, or the SAE itself where it has none."""
    if isinstance(one, SAE):
        return (
            one.record.get("source") or one.record.get("path") or one.to("cpu")
        )  # without what it built to encode
    return _absolute(str(one))
