"""Bags: per example and unit, how often and how strongly the unit fired."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch

from saefeat.codes import STEP
from saefeat.io import UserError
from saefeat.parquet import read_table, required
from saefeat.statistics.base import Field, Observed
from saefeat.statistics.rows import Rows
from saefeat.statistics.tables import read_rows, write_rows

if TYPE_CHECKING:
    from saefeat.corpora import Corpus

_TYPES = {  # in memory and in a file
    "batch": (torch.int64, None),
    "example": (torch.int64, pa.int64()),
    "label": (torch.int32, pa.dictionary(pa.int32(), pa.string())),
    "unit": (torch.int32, pa.int32()),
    "tokens": (torch.int32, pa.int32()),
    "sum": (torch.int64, pa.float64()),
    "min": (torch.float32, pa.float32()),
    "max": (torch.float32, pa.float32()),
}
_COLUMNS = required({name: kind for name, (_, kind) in _TYPES.items() if kind is not None})
_READ = pa.schema([_COLUMNS.field(name) for name in ("example", "unit", "tokens", "sum")])


class Bags(Rows):
    """The rows of the firing pairs of example and unit, in one file per window.

    `example` is the place of the example in the corpus, `label` the row of its label, `sum` is in
    steps of 2^-20. The rows stand by batch, example of the batch, and unit.
    """

    FIELDS: ClassVar = {name: Field(("row",), "joint", kind) for name, (kind, _) in _TYPES.items()}
    FOLDER = "bags"
    SUFFIX = ".parquet"
    KEY = "batch"
    SIGNED = False

    def add(self, observed: Observed) -> None:
        rows = observed.bag.rows()
        assert rows.example is not None and rows.unit is not None
        columns = {
            "batch": torch.full_like(rows.example, observed.batch),
            "example": observed.positions.to(rows.example.device)[rows.example],
            "label": observed.labels[rows.example],
            **{name: getattr(rows, name) for name in ("unit", "tokens", "sum", "min", "max")},
        }
        self.append(columns)

    def save(self, path: Path, corpus: Corpus | None = None) -> None:
        """Write Parquet rows example, label, unit, tokens, sum, min, max; `sum` as float64."""
        names = _COLUMNS.names
        columns: dict[str, Any] = {name: self.tensors[name].cpu().numpy() for name in names}
        columns["sum"] = (self.sum.double() * STEP).cpu().numpy()
        columns["label"] = pa.DictionaryArray.from_arrays(
            pa.array(columns["label"]), pa.array(list(self.labels), pa.string())
        )
        write_rows(path, columns, self)

    @classmethod
    def load(cls, path: Path) -> Self:
        table, manifest = read_rows(path, _COLUMNS)
        columns = {name: table[name] for name in _COLUMNS.names}
        columns["label"] = columns["label"].combine_chunks().indices
        made = {name: torch.from_numpy(c.to_numpy().copy()) for name, c in columns.items()}
        made["sum"] = (made["sum"] / STEP).round().long()
        # The rows of a file stay together. Files of different windows stand by their examples.
        first = int(made["example"].min()) if len(made["example"]) else 0
        made["batch"] = torch.full_like(made["example"], first)
        header = {"dictionary": {"id": manifest["dictionary"]}}
        return cls(tuple(manifest["labels"]), made, header)


def read_bags(place: Path, dictionary: str, width: int) -> Iterator[list[np.ndarray]]:
    """Read the bags of a dictionary, of `width` units, that were saved in the directory `place`.

    Yields:
        For each window: example int64, unit int32, tokens int32 and sum float64 of its rows, [m].

    Raises:
        UserError: there are no bags, or a file is damaged.
    """
    files = sorted((place / dictionary).glob(f"window-*{Bags.SUFFIX}"))
    if not files:
        raise UserError(f"{place / dictionary} holds no bags; collect them first", "bags")
    for file in files:
        table = read_table(file, _READ, help="collect the bags again")
        _, unit, _, total = columns = [table[name].to_numpy() for name in _READ.names]
        if not np.isfinite(total).all() or ((unit < 0) | (unit >= width)).any():
            raise UserError(f"{file} is damaged; collect the bags again")
        yield columns
