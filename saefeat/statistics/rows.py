"""Accumulators of rows: what was added stays in parts until the rows are read."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from saefeat.statistics.base import Accumulator


class Rows(Accumulator):
    """An accumulator whose fields all have the axis "row".

    A subclass names the field `KEY` by which the rows stand. Rows of equal keys stay in their
    order.
    """

    KEY: ClassVar[str]
    ON_REQUEST = True
    EACH_WINDOW = True

    _added: tuple[dict[str, Tensor], ...] = ()  # parts since the rows were read last

    @property
    def tensors(self) -> dict[str, Tensor]:
        # To copy all rows at every batch would take quadratic time.
        if self._added:
            self._tensors, self._added = self._joined([self._tensors, *self._added]), ()
        return self._tensors

    def append(self, columns: dict[str, Tensor]) -> None:
        """Add rows: field -> values, which get the type of the field."""
        part = {name: column.to(self.FIELDS[name].dtype) for name, column in columns.items()}
        self._added = (*self._added, part)

    def reduce(self, other: Self) -> dict[str, Tensor]:
        return self._joined([self.tensors, other.tensors])

    def _joined(self, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """All rows, by key."""
        rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        key = rows[self.KEY]
        if (key.diff() >= 0).all():
            return rows
        order = key.argsort(stable=True)
        return {name: column[order] for name, column in rows.items()}
