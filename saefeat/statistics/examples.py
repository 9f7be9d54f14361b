"""Highest-activating examples: per unit, the examples in which it fires most strongly."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pyarrow as pa
import torch
from torch import Tensor

from saefeat.io import UserError
from saefeat.parquet import required
from saefeat.statistics.base import Accumulator, Field, Observed
from saefeat.statistics.tables import read_rows, write_rows

if TYPE_CHECKING:
    from saefeat.corpora import Corpus

N = 5  # examples per unit
Row = tuple[str, str, str]  # id, label and text of an example
_NUMBERS = {"unit": pa.int64(), "place": pa.int64(), "value": pa.float32(), "position": pa.int64()}
_TEXTS = ("id", "label", "text")
_COLUMNS = required(_NUMBERS | dict.fromkeys(_TEXTS, pa.string()))


class TopExamples(Accumulator):
    """Per unit, the N examples with the greatest activation of a token.

    `value` [width, N] is the activation (-inf: none), `position` [width, N] the place of the
    example in the corpus (-1: none), both sorted by falling value. Of equal values the earlier
    example comes first, so merging is exact in any order. Both fields are reduced together.
    """

    FIELDS: ClassVar = {
        "value": Field(("unit", N), "joint", torch.float32, neutral=-torch.inf),
        "position": Field(("unit", N), "joint", torch.int64, neutral=-1),
    }
    FOLDER = "examples"
    SUFFIX = ".parquet"
    SIGNED = False

    rows: Mapping[int, Row] = MappingProxyType({})  # those of a file, by position

    def add(self, observed: Observed) -> None:
        bag = observed.bag.rows()
        assert bag.example is not None and bag.unit is not None
        position = observed.positions.to(bag.example.device)[bag.example]
        self._insert(bag.unit, bag.max, position)

    def _insert(self, unit: Tensor, value: Tensor, position: Tensor) -> None:
        """Add pairs of unit and example, [m] each, in place."""
        beats = value >= self.value[unit, -1]
        unit, value, position = unit[beats], value[beats], position[beats]
        touched = unit.unique()
        unit = torch.cat([touched.repeat_interleave(N), unit])
        value = torch.cat([self.value[touched].view(-1), value])
        position = torch.cat([self.position[touched].view(-1), position])
        order = torch.argsort(position, stable=True)
        order = order[torch.argsort(value[order], descending=True, stable=True)]
        order = order[torch.argsort(unit[order], stable=True)]
        unit, value, position = unit[order], value[order], position[order]
        counts = torch.unique_consecutive(unit, return_counts=True)[1]
        starts = torch.cumsum(counts, 0) - counts
        place = torch.arange(len(unit), device=unit.device) - starts.repeat_interleave(counts)
        best = place < N
        self.value[unit[best], place[best]] = value[best]
        self.position[unit[best], place[best]] = position[best]

    def reduce(self, other: Self) -> dict[str, Tensor]:
        width = max(len(self.value), len(other.value))  # a file has no units beyond its last row
        made = self.zeros(self.labels, width, device=str(self.value.device))
        for each in (self, other):
            unit, place = (each.position >= 0).nonzero(as_tuple=True)
            made._insert(unit, each.value[unit, place], each.position[unit, place])
        return made.tensors

    def merge(self, other: Self) -> Self:
        made = super().merge(other)
        made.rows = {**self.rows, **other.rows}
        return made

    def save(self, path: Path, corpus: Corpus | None = None) -> None:
        """Write Parquet rows unit, place, value, position, id, label, text.

        `corpus` has the texts at the positions; what was loaded from files needs none.
        """
        unit, place = (self.position >= 0).nonzero(as_tuple=True)
        rows = [
            self.rows[i] if corpus is None else (corpus.ids[i], corpus.of[i], corpus.texts[i])
            for i in self.position[unit, place].tolist()
        ]
        numbers = (unit, place, self.value[unit, place], self.position[unit, place])
        columns: dict[str, Any] = {
            name: tensor.cpu().numpy() for name, tensor in zip(_NUMBERS, numbers, strict=True)
        }
        for k, name in enumerate(_TEXTS):
            columns[name] = pa.array([row[k] for row in rows], pa.string())
        write_rows(path, columns, self)

    @classmethod
    def load(cls, path: Path) -> Self:
        table, manifest = read_rows(path, _COLUMNS)
        unit, place, value, position = (
            torch.from_numpy(table[name].to_numpy().copy()) for name in _NUMBERS
        )
        if len(unit) and not (unit.min() >= 0 and place.min() >= 0 and place.max() < N):
            raise UserError(f"{path} is damaged; collect it again")
        width = int(unit.max()) + 1 if len(unit) else 0
        dictionary = {"id": manifest["dictionary"]}
        top = cls.zeros(tuple(manifest["labels"]), width, dictionary=dictionary)
        top.value[unit, place], top.position[unit, place] = value, position
        texts = zip(*(table[name].to_pylist() for name in _TEXTS), strict=True)
        top.rows = dict(zip(position.tolist(), texts, strict=True))
        return top


def read_passages(path: Path, units: Collection[int]) -> dict[int, list[dict[str, Any]]]:
    """The rows {text, label, value} of some units in a file, by unit, the greatest value first.

    Raises UserError when the file is damaged.
    """
    table, _ = read_rows(path, _COLUMNS, [("unit", "in", sorted(set(units)))])
    found: dict[int, list[dict[str, Any]]] = {}
    for row in sorted(table.to_pylist(), key=lambda row: (row["unit"], row["place"])):
        if not abs(row["value"]) < torch.inf:
            raise UserError(f"{path} has a value that is not finite; collect it again")
        passage = {key: row[key] for key in ("text", "label", "value")}
        found.setdefault(row["unit"], []).append(passage)
    return found
