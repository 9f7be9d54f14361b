"""The selection: a table of the units that a method chose for each label, in the method's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NotRequired

import numpy as np
import pyarrow as pa
import pyarrow.csv
from pydantic import with_config
from typing_extensions import TypedDict

from saefeat.io import SCHEMA, UserError, atomic_path
from saefeat.parquet import read_header, read_table, write_table
from saefeat.ranking import FIELDS, Part, column_of, common_labels, positions, rank_rows
from saefeat.schema import STRICT, checked

if TYPE_CHECKING:
    import pandas


@with_config({"extra": "allow"})
class _Dictionary(TypedDict):
    width: int


@with_config(STRICT)
class _Header(TypedDict):
    method: str
    parameters: NotRequired[dict[str, Any]]
    labels: list[str]
    dictionaries: dict[str, _Dictionary]
    model: NotRequired[dict[str, Any]]
    classes: NotRequired[dict[str, dict[str, float]]]  # class -> dictionary -> number of units
    stats: NotRequired[str]


@dataclass(frozen=True)
class Selection:
    """Chosen units: one row per (dictionary, site, unit, label).

    Rows are sorted by label, in the order of `labels`, and by rank.

    Attributes:
        table: columns `COLUMNS`. rank counts from 1 within each label; score is what the method
            defines (float64); probability (float32), mean_firing (float64), mean (float64, over all
            tokens) and max (float32) are those of the unit in the texts of that label, in the
            model's raw units.
        header: method, parameters, labels (all of them, also those without rows), dictionaries
            `{id: {site, width, fingerprint, ...}}` and, where they are known, the model, the
            directory of the statistics, and the number of units of each class by dictionary.
    """

    table: pa.Table
    header: dict[str, Any]

    @classmethod
    def build(
        cls,
        parts: Sequence[Part],
        *,
        by: Literal["score", "probability"] = "score",
        method: str = "",
        parameters: Mapping[str, Any] = MappingProxyType({}),
        classes: Mapping[str, Mapping[str, float]] | None = None,
    ) -> Selection:
        """Pool parts and rank their rows, lowest score or highest probability first.

        Ties are broken by (score, dictionary, unit). `method`, `parameters` (see
        `saefeat.methods.records_parameters`) and `classes` are for the header.

        Raises:
            UserError: there is no part, a dictionary comes twice, or labels or models differ.
        """
        labels = common_labels(parts)
        dictionaries = [dict(part.header["dictionary"]) for part in parts]
        header: dict[str, Any] = {
            "method": method,
            "parameters": dict(parameters),
            "labels": list(labels),
            "dictionaries": {each["id"]: each for each in dictionaries},
        }
        if "model" in parts[0].header:
            header["model"] = parts[0].header["model"]
        if classes is not None:
            header["classes"] = {name: dict(counts) for name, counts in classes.items()}
        table = pa.concat_tables([part.table for part in parts])
        names = sorted(header["dictionaries"])
        keys = [column_of(table, "score"), positions(table["dictionary"], names)]
        if by == "probability":
            keys.insert(0, -column_of(table, "probability"))
        return cls(rank_rows(table, labels, *keys, column_of(table, "unit")), header)

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, also those without rows."""
        return tuple(self.header["labels"])

    @property
    def dictionaries(self) -> dict[str, dict[str, Any]]:
        """Id -> header of each dictionary that was ranked."""
        return self.header["dictionaries"]

    def __len__(self) -> int:
        """Number of rows."""
        return self.table.num_rows

    def save(self, path: Path | str) -> None:
        """Write Parquet, with the header as JSON in the schema metadata.

        Equal selections give equal bytes.
        """
        header = {"schema": SCHEMA, **self.header}
        write_table(Path(path), self.table.combine_chunks(), header, compression="snappy")

    @classmethod
    def load(cls, path: Path | str) -> Selection:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing, damaged, no selection, or of another version.
        """
        path = Path(path)
        table = read_table(path)
        header = read_header(table)
        if "method" not in header or not table.schema.equals(FIELDS):
            raise UserError(f"{path} is not a selection written by saefeat")
        schema = header.pop("schema", None)
        if schema != SCHEMA:
            raise UserError(f"{path} has schema {schema}, this version reads {SCHEMA}; rank again")
        checked(_Header, header, path)
        _check_rows(table, header, path)
        return cls(table.replace_schema_metadata(None), header)

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a data frame."""
        return self.table.to_pandas()

    def to_csv(self, path: Path | str) -> None:
        """Write the rows as CSV with a line of column names. The header is not written."""
        with atomic_path(Path(path)) as temporary:
            pyarrow.csv.write_csv(self.table, temporary)

    def for_label(self, label: str) -> Selection:
        """The rows of one label. Raises UserError for a label that is not in the selection."""
        if label not in self.labels:
            raise UserError(
                f"there is no label {label!r} in the selection; "
                f"its labels are {', '.join(self.labels)}"
            )
        return self.filter(positions(self.table["label"], self.labels) == self.labels.index(label))

    def counts(self) -> dict[str, int]:
        """Label -> number of its rows."""
        of = positions(self.table["label"], self.labels)
        numbers = np.bincount(of, minlength=len(self.labels))
        return dict(zip(self.labels, numbers.tolist(), strict=True))

    def units(self, dictionary: str) -> dict[str, list[int]]:
        """Label -> units of one dictionary, in rank order; the list of a label may be empty.

        Raises UserError for a dictionary that is not in the selection.
        """
        if dictionary not in self.dictionaries:
            known = ", ".join(sorted(self.dictionaries))
            raise UserError(
                f"there is no dictionary {dictionary!r} in the selection; "
                f"its dictionaries are {known}"
            )
        rows = self.table.filter(positions(self.table["dictionary"], [dictionary]) == 0)
        of, unit = positions(rows["label"], self.labels), column_of(rows, "unit")
        return {label: unit[of == k].tolist() for k, label in enumerate(self.labels)}

    def head(self, n: int) -> Selection:
        """The first n units of each label."""
        return self.filter(column_of(self.table, "rank") <= n)

    def filter(self, keep: np.ndarray | Sequence[bool]) -> Selection:
        """The rows where `keep`, bool [rows], is true, ranked again from 1 in their order."""
        table = self.table.filter(pa.array(keep, pa.bool_()))
        return Selection(rank_rows(table, self.labels, column_of(table, "rank")), self.header)

    def cells(self) -> list[tuple[str, int, str]]:
        """(dictionary, unit, label) of every row."""
        columns = [self.table[name].to_pylist() for name in ("dictionary", "unit", "label")]
        return list(zip(*columns, strict=True))


def _check_rows(table: pa.Table, header: Mapping[str, Any], path: Path) -> None:
    """Raise UserError where the rows do not fit the header."""
    labels, dictionaries = header["labels"], header["dictionaries"]
    widths = np.array([*(each["width"] for each in dictionaries.values()), 0])  # the last: unknown
    width = widths[positions(table["dictionary"], [*dictionaries])]
    unit, rank = column_of(table, "unit"), column_of(table, "rank")
    if (
        len(set(labels)) < len(labels)
        or any(column.null_count for column in table.columns)
        or (positions(table["label"], labels) < 0).any()
        or not ((unit >= 0) & (unit < width) & (rank > 0)).all()
    ):
        raise UserError(f"{path} is damaged; rank again")
