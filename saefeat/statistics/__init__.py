"""Statistics of units by label: a commutative monoid, exact under any partition and any order.

Counts are int64. Sums are int64 in steps of 2^-20: each value is rounded once (half to even) where
it is read, so adding is associative and the bytes do not depend on how the text was cut up.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefeat.codes import STEP, Bag
from saefeat.io import SCHEMA, RunFailed, UserError, load_tensors, read_header, save_tensors

# Each field's reduction; `merge`, distributed reduction, save, load and equality loop over this
# table.
REDUCTIONS = {
    "tokens": "sum",
    "examples": "sum",
    "fired": "sum",
    "fired_examples": "sum",
    "sum": "sum",
    "total": "sum",
    "min": "min",
    "max": "max",
}
_LIMIT = 2**62  # two sums below it can be added without overflow


@dataclass
class Stats:
    """Per label and unit: how often, how strongly a unit of one dictionary fired.

    Attributes:
        labels: the K labels, in order.
        tensors: `tokens[K]`, `examples[K]`, and per unit `fired`, `fired_examples`, `sum`, `total`
            (int64, `[K, width]`, sums in steps of 2^-20), `min`, `max` (float32, over firing
            values; +inf and -inf where nothing fired). `total` is over all tokens, negative values
            included; for codes that are never negative it equals `sum` and is not stored.
        header: what the statistics are of: model, dictionary, corpus, token policy, windows.
    """

    labels: tuple[str, ...]
    tensors: dict[str, Tensor]
    header: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def zeros(
        cls,
        labels: tuple[str, ...],
        width: int,
        *,
        signed: bool,
        device: str = "cpu",
        **header: Any,
    ) -> Stats:
        """The neutral element. `signed`: codes may be negative, so `total` is kept apart from `sum`."""
        k = len(labels)
        tensors = {
            name: torch.zeros(k, dtype=torch.int64, device=device)
            for name in ("tokens", "examples")
        }
        names = ["fired", "fired_examples", "sum"] + (["total"] if signed else [])
        tensors |= {name: torch.zeros(k, width, dtype=torch.int64, device=device) for name in names}
        tensors["min"] = torch.full((k, width), torch.inf, device=device)
        tensors["max"] = torch.full((k, width), -torch.inf, device=device)
        return cls(labels, tensors, header)

    def __getattr__(self, name: str) -> Tensor:
        if name == "total" and "total" not in self.tensors:
            return self.tensors["sum"]
        try:
            return self.__dict__["tensors"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def width(self) -> int:
        return self.tensors["fired"].shape[1]

    @property
    def dictionary(self) -> str:
        return self.header["dictionary"]["id"]

    @property
    def site(self) -> str:
        return self.header["dictionary"]["site"]

    def probability(self) -> Tensor:
        """p[K, width] float32: firing tokens / counted tokens; 0 where a label has no tokens."""
        return self.fired.float() / self.tokens.clamp(min=1).float()[:, None]

    def mean(self) -> Tensor:
        """Mean over all tokens, [K, width] float64, negative values included; 0 for a label without tokens."""
        return self.total.double() * STEP / self.tokens.clamp(min=1)[:, None]

    def mean_firing(self) -> Tensor:
        """Mean over the firing tokens, [K, width] float64; 0 where nothing fired."""
        return self.sum.double() * STEP / self.fired.clamp(min=1)

    def add(self, bag: Bag, labels: Tensor, tokens: Tensor) -> None:
        """Add a bag of E examples in place. labels[E]: row of each example; tokens[E]: its counted tokens."""
        self.tensors["tokens"].index_add_(0, labels, tokens)
        self.tensors["examples"].index_add_(0, labels, torch.ones_like(tokens))
        bag.reduce_into(self.tensors, labels)

    def merge(self, other: Stats) -> Stats:
        """The sum of both; neither input changes. Headers must agree (see `check_mergeable`).

        Names and paths, which may differ, are those of the operand with the smaller first window.
        """
        combine = {"sum": torch.add, "min": torch.minimum, "max": torch.maximum}
        tensors = {
            name: combine[REDUCTIONS[name]](value, other.tensors[name])
            for name, value in self.tensors.items()
        }
        header = min(self.header, other.header, key=_rank)
        if "windows" in header:
            windows = sorted(self.header["windows"] + other.header["windows"])
            header = {**header, "windows": windows}
        return Stats(self.labels, tensors, header).checked()

    def checked(self) -> Stats:
        """Return self; raises RunFailed when a sum has left the exact range."""
        for name in ("sum", "total"):
            if (
                name in self.tensors
                and self.tensors[name].numel()
                and self.tensors[name].abs().max() >= _LIMIT
            ):
                raise RunFailed(
                    f"the {name} of a unit of {self.header.get('dictionary')} exceeds the exact range"
                )
        return self

    def equal(self, other: Stats) -> bool:
        if self.labels != other.labels or self.tensors.keys() != other.tensors.keys():
            return False
        return all(torch.equal(value, other.tensors[name]) for name, value in self.tensors.items())

    def save(self, path: Path) -> None:
        tensors = {name: value.cpu() for name, value in self.tensors.items()}
        save_tensors(
            path,
            tensors,
            {"schema": SCHEMA, "step": STEP, "labels": list(self.labels), **self.header},
        )

    @classmethod
    def load(cls, path: Path) -> Stats:
        """Read statistics; raises UserError when the file is damaged or of another schema or step."""
        tensors, header = load_tensors(path)
        _check_header(header, path)
        _check_tensors(tensors, len(header["labels"]), path)
        return cls(tuple(header["labels"]), tensors, _bare(header))

    @classmethod
    def read_header(cls, path: Path) -> dict[str, Any]:
        """The `header` of statistics in a file, without its tensors; raises UserError as `load` does."""
        header = read_header(path)
        _check_header(header, path)
        return _bare(header)


def _check_header(header: dict[str, Any], path: Path) -> None:
    if header.get("schema") != SCHEMA or header.get("step") != STEP:
        raise UserError(
            f"{path} has schema {header.get('schema')} and step {header.get('step')}; collect it again"
        )
    if "labels" not in header:
        raise UserError(f"{path} holds no statistics; it was written for something else")
    labels, windows, dictionary = (
        header["labels"],
        header.get("windows", []),
        header.get("dictionary", {}),
    )
    names = (
        [dictionary.get(key, "") for key in ("id", "site")]
        if isinstance(dictionary, dict)
        else [None]
    )
    lists = isinstance(labels, list) and isinstance(windows, list)
    whole = (
        lists
        and all(isinstance(name, str) for name in [*labels, *names])
        and len(set(labels)) == len(labels)
    )
    if not whole or not all(type(w) is int for w in windows):
        raise UserError(f"the header of {path} is damaged; collect it again")


def _check_tensors(tensors: dict[str, Tensor], labels: int, path: Path) -> None:
    """Raises UserError where a tensor is missing, of another shape or of another type than `Stats` says."""
    if "fired" not in tensors:
        raise UserError(f"{path} holds no statistics; it was written for something else")
    shape = (labels, *tensors["fired"].shape[1:])
    wanted = {name: (labels,) if name in ("tokens", "examples") else shape for name in REDUCTIONS}
    if "total" not in tensors:  # of codes that are never negative
        wanted.pop("total")
    kinds = {name: torch.float32 if name in ("min", "max") else torch.int64 for name in wanted}
    found = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    if len(shape) != 2 or found != {name: (wanted[name], kinds[name]) for name in wanted}:
        raise UserError(
            f"the tensors of {path} are not those of statistics of {labels} labels; collect it again"
        )


def _bare(header: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in header.items() if key not in ("schema", "step", "labels")}


def _rank(header: dict[str, Any]) -> tuple[float, str]:
    """Of headers in a merge: the smaller first window before, none last."""
    return min(header.get("windows", []), default=float("inf")), json.dumps(header, sort_keys=True)


def comparable(header: dict[str, Any]) -> dict[str, Any]:
    """What must agree between shards: not the windows, nor names and paths, which may differ between machines."""
    ignored = {"model": ("name", "revision"), "dictionary": ("path",), "corpus": ("name",)}
    return {
        key: {k: v for k, v in value.items() if k not in ignored[key]} if key in ignored else value
        for key, value in header.items()
        if key != "windows"
    }


def check_mergeable(first: Stats, other: Stats, where: str) -> None:
    """Raises UserError when two statistics are of different things or share a window."""
    one, two = comparable(first.header), comparable(other.header)
    # The cause first: the limits of dictionaries follow from the model, the corpus and the policy.
    for key in sorted(one.keys() | two.keys(), key=lambda key: (key == "dictionary", key)):
        if one.get(key) != two.get(key):
            raise UserError(
                f"{where}: cannot merge, its {key} differs: {first.header.get(key)} / {other.header.get(key)}"
            )
    if first.labels != other.labels:
        raise UserError(f"{where}: cannot merge, the labels differ")
    shared = set(first.header.get("windows", [])) & set(other.header.get("windows", []))
    if shared:
        raise UserError(f"{where}: cannot merge, window {min(shared)} is counted in both")
