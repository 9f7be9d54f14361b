"""The selection: a table of the units that a method chose for each label, in the method's order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
from torch import Tensor

from saefeat.io import SCHEMA, UserError, atomic_path
from saefeat.statistics import Stats

if TYPE_CHECKING:
    import pandas

_HEADER_KEY = b"saefeat"
_FIELDS = pa.schema(
    [
        ("dictionary", pa.string()),
        ("site", pa.string()),
        ("unit", pa.int64()),
        ("label", pa.string()),
        ("rank", pa.int64()),
        ("score", pa.float64()),
        ("probability", pa.float32()),
        ("mean_firing", pa.float64()),
        ("mean", pa.float64()),
        ("max", pa.float32()),
    ]
)
COLUMNS = tuple(_FIELDS.names)


@dataclass(frozen=True)
class Part:
    """What a method chose from one dictionary, not yet ranked: rows in the columns of `Selection`, rank 0."""

    labels: tuple[str, ...]
    header: Mapping[str, Any]
    table: pa.Table


def part(stats: Stats, unit: Tensor, label: Tensor, score: Tensor) -> Part:
    """Rows of chosen cells. unit[m], label[m] int64: the cells (label by position); score[m] float64."""
    unit, label = unit.cpu(), label.cpu()
    chosen, column = torch.unique(unit, return_inverse=True)
    # Narrowed first, so that the means are computed for the chosen units only.
    tensors = {name: value.cpu() for name, value in stats.tensors.items()}
    tensors = {
        name: value if value.dim() == 1 else value[:, chosen] for name, value in tensors.items()
    }
    few = Stats(stats.labels, tensors, stats.header)
    columns = {
        "dictionary": [stats.dictionary] * len(unit),
        "site": [stats.site] * len(unit),
        "unit": unit.numpy(),
        "label": [stats.labels[i] for i in label.tolist()],
        "rank": np.zeros(len(unit), dtype=np.int64),
        "score": score.cpu().double().numpy(),
        "probability": few.probability()[label, column].numpy(),
        "mean_firing": few.mean_firing()[label, column].numpy(),
        "mean": few.mean()[label, column].numpy(),
        "max": few.max[label, column].numpy(),
    }
    return Part(stats.labels, stats.header, pa.table(columns, schema=_FIELDS))


def places(label: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """Place (from 1) of each row among the rows of its label, by the keys ascending, the first one first. [m] int64."""
    order = np.lexsort((*reversed(keys), label))
    in_order = label[order]
    place = np.empty(len(label), dtype=np.int64)
    place[order] = np.arange(1, len(label) + 1) - np.searchsorted(in_order, in_order)
    return place


@dataclass(frozen=True)
class Selection:
    """One row per chosen (dictionary, site, unit, label), sorted by label (in the order of `labels`) and rank.

    Attributes:
        table: columns `COLUMNS`: rank from 1 within each label; score as the method defines it;
            probability (float32), mean_firing, mean (over all tokens) and max of the unit for that
            label.
        header: method, parameters, labels (all, also those without rows), dictionaries `{id: {site,
            width, fingerprint, ...}}` and, where known, model.
    """

    table: pa.Table
    header: dict[str, Any]

    @classmethod
    def build(
        cls,
        method: str,
        parameters: Mapping[str, Any],
        parts: Sequence[Part],
        *,
        by: Literal["score", "probability"] = "score",
    ) -> Selection:
        """Pool parts and rank them, lowest score first, or highest probability first.

        Ties are broken by (score, dictionary, unit). Raises UserError when there is no part, when a
        dictionary comes twice, or when labels or models differ.
        """
        labels = _common_labels(parts)
        header: dict[str, Any] = {
            "method": method,
            "parameters": dict(parameters),
            "labels": list(labels),
            "dictionaries": {
                p.header["dictionary"]["id"]: dict(p.header["dictionary"]) for p in parts
            },
        }
        if "model" in parts[0].header:
            header["model"] = parts[0].header["model"]
        table = pa.concat_tables([p.table for p in parts])
        score = _column(table, "score")
        _, dictionary = np.unique(
            np.array(table["dictionary"].to_pylist(), dtype=object), return_inverse=True
        )
        keys = [score, dictionary, _column(table, "unit")]
        if by == "probability":
            keys.insert(0, -_column(table, "probability"))
        return cls(_ranked(table, labels, *keys), header)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.header["labels"])

    @property
    def dictionaries(self) -> dict[str, dict[str, Any]]:
        return self.header["dictionaries"]

    def __len__(self) -> int:
        return self.table.num_rows

    def save(self, path: Path | str) -> None:
        """Write Parquet with the header as JSON in the schema metadata; the same selection gives the same bytes."""
        text = json.dumps(
            {"schema": SCHEMA, **self.header}, sort_keys=True, ensure_ascii=True, allow_nan=False
        )
        table = self.table.combine_chunks().replace_schema_metadata({_HEADER_KEY: text.encode()})
        with atomic_path(Path(path)) as temporary:
            pyarrow.parquet.write_table(table, temporary)

    @classmethod
    def load(cls, path: Path | str) -> Selection:
        """Read what `save` wrote; raises UserError when missing, damaged, of another program or another schema."""
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist or is not a file")
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                table = file.read()
            header = json.loads((table.schema.metadata or {}).get(_HEADER_KEY, b"null"))
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{path} is not a readable Parquet file ({reason}); write it again"
            ) from error
        if (
            not isinstance(header, dict)
            or not table.schema.equals(_FIELDS)
            or "method" not in header
        ):
            raise UserError(f"{path} is not a selection written by saefeat")
        schema = header.pop("schema", None)
        if schema != SCHEMA:
            raise UserError(f"{path} has schema {schema}, this version reads {SCHEMA}; rank again")
        if not _is_whole(table, header):
            raise UserError(f"{path} is damaged; rank again")
        return cls(table.replace_schema_metadata(None), header)

    def to_pandas(self) -> pandas.DataFrame:
        return self.table.to_pandas()

    def to_csv(self, path: Path | str) -> None:
        """Write the rows as CSV with a line of column names; the header stays behind."""
        with atomic_path(Path(path)) as temporary:
            pyarrow.csv.write_csv(self.table, temporary)

    def for_label(self, label: str) -> Selection:
        """The rows of one label; raises UserError for a label that the selection does not know."""
        if label not in self.labels:
            raise UserError(
                f"there is no label {label!r} in the selection; its labels are {', '.join(self.labels)}"
            )
        return self.filter(
            np.array([name == label for name in self.table["label"].to_pylist()], dtype=bool)
        )

    def units(self, dictionary: str) -> dict[str, list[int]]:
        """The units of one dictionary by label, in rank order; every label has a list, if an empty one."""
        if dictionary not in self.dictionaries:
            known = ", ".join(sorted(self.dictionaries))
            raise UserError(
                f"there is no dictionary {dictionary!r} in the selection; its dictionaries are {known}"
            )
        units: dict[str, list[int]] = {label: [] for label in self.labels}
        for owner, unit, label in self._cells():
            if owner == dictionary:
                units[label].append(unit)
        return units

    def head(self, n: int) -> Selection:
        """The first n units of each label."""
        return self.filter(_column(self.table, "rank") <= n)

    def filter(self, keep: np.ndarray) -> Selection:
        """The rows where keep[len] is true, ranked anew from 1 in the order they have."""
        table = self.table.filter(pa.array(keep))
        return Selection(_ranked(table, self.labels, _column(table, "rank")), self.header)

    def without_shared(self) -> Selection:
        """The rows of units that belong to one label only."""
        owners: dict[tuple[str, int], int] = {}
        for dictionary, unit, _ in self._cells():
            owners[dictionary, unit] = owners.get((dictionary, unit), 0) + 1
        return self.filter(
            np.array([owners[d, unit] == 1 for d, unit, _ in self._cells()], dtype=bool)
        )

    def intersection(self, other: Selection) -> Selection:
        """The rows whose (dictionary, unit, label) are in both, with the numbers and the order of this one."""
        return self._where("intersection", other, present=True)

    def difference(self, other: Selection) -> Selection:
        """The rows whose (dictionary, unit, label) are not in the other, in the order of this one."""
        return self._where("difference", other, present=False)

    def union(self, other: Selection) -> Selection:
        """The rows of this one, then, within each label, those of the other that are new."""
        header = _combined(self, other, "union")
        header["labels"] = list(dict.fromkeys(self.labels + other.labels))
        mine = set(self._cells())
        new = other.table.filter(
            pa.array([cell not in mine for cell in other._cells()], type=pa.bool_())
        )
        table = pa.concat_tables([self.table, new])
        return Selection(_ranked(table, header["labels"], np.arange(table.num_rows)), header)

    def _where(self, name: str, other: Selection, *, present: bool) -> Selection:
        theirs = set(other._cells())
        kept = self.filter(
            np.array([(cell in theirs) == present for cell in self._cells()], dtype=bool)
        )
        return Selection(kept.table, _combined(self, other, name))

    def _cells(self) -> list[tuple[str, int, str]]:
        columns = [self.table[name].to_pylist() for name in ("dictionary", "unit", "label")]
        return list(zip(*columns, strict=True))


def _is_whole(table: pa.Table, header: dict[str, Any]) -> bool:
    """Whether the header says what a selection's says, and every row is of a label and a dictionary that it names."""
    labels, dictionaries = header.get("labels"), header.get("dictionaries")
    if not isinstance(labels, list) or not isinstance(dictionaries, dict):
        return False
    texts = [header["method"], header.get("stats", ""), *labels]
    inside = [header.get("parameters", {}), *dictionaries.values()]
    widths = {name: one.get("width") for name, one in dictionaries.items() if isinstance(one, dict)}
    if not all(isinstance(t, str) for t in texts) or not all(
        isinstance(one, dict) for one in inside
    ):
        return False
    if len(set(labels)) < len(labels) or not all(type(width) is int for width in widths.values()):
        return False
    if any(table[name].null_count for name in COLUMNS):
        return False
    columns = (table[name].to_pylist() for name in ("dictionary", "label", "unit", "rank"))
    rows = zip(*columns, strict=True)
    return all(
        label in labels and 0 <= unit < widths.get(name, 0) and rank > 0
        for name, label, unit, rank in rows
    )


def _column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy()


def _ranked(table: pa.Table, labels: Sequence[str], *keys: np.ndarray) -> pa.Table:
    """The table sorted by label and then by the keys, with its ranks."""
    position = {label: i for i, label in enumerate(labels)}
    label = np.array([position[name] for name in table["label"].to_pylist()], dtype=np.int64)
    place = places(label, *keys)
    order = np.lexsort((place, label))
    rank = _FIELDS.get_field_index("rank")
    return (
        table.take(pa.array(order))
        .set_column(rank, _FIELDS.field(rank), pa.array(place[order]))
        .combine_chunks()
    )


def _common_labels(parts: Sequence[Part]) -> tuple[str, ...]:
    """The labels of all parts; raises UserError when the parts cannot be pooled."""
    if not parts:
        raise UserError("there are no statistics to rank; give at least one dictionary")
    seen: set[str] = set()
    for each in parts:
        name = each.header["dictionary"]["id"]
        if each.labels != parts[0].labels:
            raise UserError(
                f"the labels of {name} are not those of the first dictionary; rank them apart"
            )
        if each.header.get("model") != parts[0].header.get("model"):
            raise UserError(
                f"the model of {name} is not that of the first dictionary; rank them apart"
            )
        if name in seen:
            raise UserError(f"the dictionary {name} is given twice")
        seen.add(name)
    return parts[0].labels


def _combined(left: Selection, right: Selection, name: str) -> dict[str, Any]:
    """The header of a set operation; raises UserError when the two are of different models or dictionaries."""
    if left.header.get("model") != right.header.get("model"):
        raise UserError(f"the {name} of two selections needs the same model in both")
    for key in left.dictionaries.keys() & right.dictionaries.keys():
        if left.dictionaries[key].get("fingerprint") != right.dictionaries[key].get("fingerprint"):
            raise UserError(
                f"the {name} of two selections needs the same dictionary {key} in both; rank one again"
            )
    sources = [
        {key: each.header[key] for key in ("method", "parameters")} for each in (left, right)
    ]
    dictionaries = {**right.dictionaries, **left.dictionaries}
    return {
        **left.header,
        "method": name,
        "parameters": {"of": sources},
        "dictionaries": dictionaries,
    }
