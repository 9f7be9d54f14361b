"""A fitted head: weights on the bags of texts; scores, explanations, files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import with_config
from typing_extensions import TypedDict

from saefeat.artefacts import ModelRecord
from saefeat.io import SCHEMA, UserError, load_tensors, save_tensors
from saefeat.lid.features import Features, root_counts
from saefeat.schema import STRICT, checked


class SaeHeader(TypedDict):
    """An SAE that an identifier reads. `source` is None where the SAE was made in memory."""

    id: str
    source: str | None
    dtype: str
    fingerprint: str


class IdentifierHeader(TypedDict):
    """What a `LanguageIdentifier` adds to the file of its head."""

    model: ModelRecord
    saes: list[SaeHeader]
    seed: int
    unknown: str | None


@with_config(STRICT)
class HeadHeader(TypedDict):
    """The header of the file of a head."""

    schema: int
    head: str
    labels: list[str]
    root: bool
    probabilistic: bool
    reads: dict[str, str]
    letters: NotRequired[bool]  # heads of older versions lack it
    identifier: NotRequired[IdentifierHeader]


_PARTS = {"units": np.int64, "counts": np.float64, "sums": np.float64}  # fields by dictionary


@dataclass
class Head:
    """A fitted head.

    Attributes:
        name: of the head, such as "linear".
        labels: K labels.
        units: dictionary id -> int64 [m], the units that the head reads.
        counts: dictionary id -> float64 [m, K], weights on the firing tokens of a unit.
        sums: dictionary id -> float64 [m, K], weights on the sum of its values.
        intercept: float64 [K]; empty: 0.
        root: take square roots of the counts and divide each row by its length, over all
            dictionaries together.
        probabilistic: scores are logarithms of probabilities up to a constant.
        reads: dictionary id -> fingerprint of the dictionary that the head was fitted on.
        letters: whether a text needs a letter to say something; False where some label is written
            without letters.
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
        """Scores of n texts: float64 [n, K]."""
        rows = self._rows(features)
        total = np.zeros((len(features), len(self.labels)))
        total += self.intercept if len(self.intercept) else 0.0
        for name in sorted(self.units):  # so that a loaded head adds in the same order
            units = self.units[name]
            total += rows[name][:, units] @ self.counts[name]
            if name in self.sums:
                total += features.sums[name][:, units] @ self.sums[name]
        return total

    def known(self, features: Features) -> np.ndarray:
        """Whether any unit that the head reads fires: bool [n]."""
        fired = np.zeros(len(features), bool)
        for name, units in self.units.items():
            fired |= np.asarray(features.counts[name][:, units].sum(1)).ravel() > 0
        return fired

    def predict(self, features: Features) -> list[str | None]:
        """The label of greatest score, ties to the first; None where no unit of the head fires."""
        best = zip(self.scores(features).argmax(1), self.known(features), strict=True)
        return [self.labels[k] if known else None for k, known in best]

    def probabilities(self, features: Features) -> np.ndarray:
        """Probabilities [n, K] float64.

        They are the softmax of the scores where these are logarithms, else each label's share of
        the positive scores. A row sums to 1, or to 0 where nothing can be said (`predict` gives
        None).
        """
        scores = self.scores(features)
        if self.probabilistic:
            shifted = np.exp(scores - scores.max(1, keepdims=True)) * self.known(features)[:, None]
            # The greatest value of a row is 1, unless the whole row is 0.
            return shifted / np.maximum(shifted.sum(1, keepdims=True), 1.0)
        positive = np.clip(scores, 0, None)
        total = positive.sum(1, keepdims=True)
        return np.divide(positive, total, out=np.zeros_like(positive), where=total > 0)

    def evidence(self, features: Features, n: int = 5) -> list[list[dict[str, Any]]]:
        """Per text, the n units that contribute most to the predicted label.

        They are compared with the mean of the other labels. A unit is a dict with the keys
        dictionary, unit and weight.
        """
        best = self.scores(features).argmax(1)
        rows = self._rows(features)
        found: list[list[dict[str, Any]]] = [[] for _ in range(len(features))]
        for name, units in self.units.items():
            picked = sp.csr_matrix(rows[name][:, units])
            sums = sp.csr_matrix(features.sums[name][:, units]) if name in self.sums else None
            for i, k in enumerate(best):
                of_text = None if sums is None else sums[i]
                found[i] += self._contributions(name, picked[i], of_text, k)
        for row in found:
            row.sort(key=lambda u: (-u["weight"], u["dictionary"], u["unit"]))
        return [row[:n] for row in found]

    def _contributions(
        self, name: str, row: sp.csr_matrix, sums: Any, k: int
    ) -> list[dict[str, Any]]:
        """The units of one dictionary that speak for label k in one text."""
        weight = _lead(self.counts[name][row.indices], k) * row.data
        if sums is not None:
            values = np.asarray(sums[:, row.indices].todense())[0]
            weight = weight + _lead(self.sums[name][row.indices], k) * values
        units = self.units[name][row.indices]
        return [
            {"dictionary": name, "unit": int(u), "weight": round(float(w), 6)}
            for u, w in zip(units, weight, strict=True)
            if w > 0
        ]

    def _rows(self, features: Features) -> Mapping[str, sp.csr_matrix]:
        return root_counts(features.counts) if self.root else features.counts

    def save(self, path: Path, identifier: IdentifierHeader | None = None) -> None:
        """Write one safetensors file. `identifier`: added to its header."""
        arrays = {"intercept": self.intercept.astype(np.float64)}
        for kind, dtype in _PARTS.items():
            arrays |= {f"{kind}|{n}": a.astype(dtype) for n, a in getattr(self, kind).items()}
        header: HeadHeader = {
            "schema": SCHEMA,
            "head": self.name,
            "labels": list(self.labels),
            "root": self.root,
            "probabilistic": self.probabilistic,
            "reads": self.reads,
            "letters": self.letters,
        }
        if identifier is not None:
            header["identifier"] = identifier
        save_tensors(path, {name: torch.from_numpy(a) for name, a in arrays.items()}, header)

    @classmethod
    def load(cls, path: Path) -> Head:
        """Read what `save` wrote. Raises UserError when the file is missing, damaged or foreign."""
        return cls.load_with_header(path)[0]

    @classmethod
    def load_with_header(cls, path: Path) -> tuple[Head, HeadHeader]:
        """Read a head and the header of its file. Raises as `load`."""
        tensors, found = load_tensors(path)
        if "head" not in found or found.get("schema") != SCHEMA:
            raise UserError(f"{path} holds no head of this version; fit it again")
        header = checked(HeadHeader, found, path)
        parts: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in _PARTS}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("|")
            if kind in parts:
                parts[kind][name] = tensor.numpy()
        if "intercept" not in tensors:
            raise UserError(f"{path} is damaged: it has no intercept; fit the head again")
        head = cls(
            header["head"],
            tuple(header["labels"]),
            **parts,
            intercept=tensors["intercept"].numpy(),
            root=header["root"],
            probabilistic=header["probabilistic"],
            reads=header["reads"],
            letters=header.get("letters", True),
        )
        if problem := head._find_problem():
            raise UserError(f"{path} is damaged: {problem}; fit the head again")
        return head, header

    def _find_problem(self) -> str | None:
        units, k = self.units, len(self.labels)
        weights = [*self.counts.items(), *self.sums.items()]
        if self.counts.keys() != units.keys() or not self.sums.keys() <= units.keys():
            return "it has weights without units"
        if not all(u.ndim == 1 and u.dtype.kind == "i" and (u >= 0).all() for u in units.values()):
            return "its units are not numbers of units"
        if not all(w.shape == (len(units[name]), k) for name, w in weights):
            return "its weights do not fit its units and labels"
        if self.intercept.shape not in ((0,), (k,)):
            return "its intercept does not fit its labels"
        values = [self.intercept, *(w for _, w in weights)]
        if not all(w.dtype.kind == "f" and np.isfinite(w).all() for w in values):
            return "a weight is not a finite number"
        return None


def _lead(weights: np.ndarray, k: int) -> np.ndarray:
    """Weights for label k minus the mean of those for the other labels: [m]."""
    others = weights.shape[1] - 1
    return weights[:, k] - (weights.sum(1) - weights[:, k]) / max(others, 1)
