"""The rows that methods choose, and their ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from saefeat.io import UserError
from saefeat.statistics import Stats

FIELDS = pa.schema(
    {
        "dictionary": pa.string(),
        "site": pa.string(),
        "unit": pa.int64(),
        "label": pa.string(),
        "rank": pa.int64(),
        "score": pa.float64(),
        "probability": pa.float32(),
        "mean_firing": pa.float64(),
        "mean": pa.float64(),
        "max": pa.float32(),
    }
)
COLUMNS = tuple(FIELDS.names)


@dataclass(frozen=True)
class Part:
    """What a method chose from one dictionary, not ranked yet: a table of `COLUMNS` with rank 0."""

    labels: tuple[str, ...]
    header: Mapping[str, Any]
    table: pa.Table


def make_part(stats: Stats, unit: Tensor, label: Tensor, score: Tensor) -> Part:
    """Make the rows of chosen units.

    Args:
        stats: statistics of the dictionary.
        unit: int64 [m].
        label: int64 [m], positions in `stats.labels`.
        score: float64 [m].
    """
    unit, label = unit.cpu(), label.cpu()
    chosen, column = torch.unique(unit, return_inverse=True)
    # Means are computed for the chosen units only.
    tensors = {name: t.cpu() for name, t in stats.tensors.items()}
    tensors = {name: t if t.dim() == 1 else t[:, chosen] for name, t in tensors.items()}
    few = Stats(stats.labels, tensors, stats.header)
    columns = {
        "dictionary": pa.repeat(stats.dictionary, len(unit)),
        "site": pa.repeat(stats.site, len(unit)),
        "unit": unit.numpy(),
        "label": pa.array(stats.labels, pa.string()).take(pa.array(label.numpy())),
        "rank": np.zeros(len(unit), np.int64),
        "score": score.cpu().double().numpy(),
        "probability": few.probability()[label, column].numpy(),
        "mean_firing": few.mean_firing()[label, column].numpy(),
        "mean": few.mean()[label, column].numpy(),
        "max": few.max[label, column].numpy(),
    }
    return Part(stats.labels, stats.header, pa.table(columns, schema=FIELDS))


def rank_within_labels(label: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """Rank each row among the rows of its label, by ascending keys; the first key decides first.

    Args:
        label: int64 [m], positions of labels.
        keys: [m] each.

    Returns:
        int64 [m], from 1.
    """
    order = np.lexsort((*reversed(keys), label))
    in_order = label[order]
    rank = np.empty(len(label), dtype=np.int64)
    rank[order] = np.arange(1, len(label) + 1) - np.searchsorted(in_order, in_order)
    return rank


def column_of(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy()


def positions(column: pa.ChunkedArray, names: Sequence[str]) -> np.ndarray:
    """The position of each string of a column [m] in the names, -1 for others: int64 [m]."""
    options = pc.SetLookupOptions(pa.array(names, pa.string()))
    found = pc.call_function("index_in", [column], options)
    return found.fill_null(-1).to_numpy().astype(np.int64)


def rank_rows(table: pa.Table, labels: Sequence[str], *keys: np.ndarray) -> pa.Table:
    """The table sorted by label and by the keys, with new ranks."""
    label = positions(table["label"], labels)
    rank = rank_within_labels(label, *keys)
    order = np.lexsort((rank, label))
    at = FIELDS.get_field_index("rank")
    ranks = pa.array(rank[order])
    return table.take(order).set_column(at, FIELDS.field(at), ranks).combine_chunks()


def common_labels(parts: Sequence[Part]) -> tuple[str, ...]:
    """The labels of all parts. Raises UserError when the parts cannot be pooled."""
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
