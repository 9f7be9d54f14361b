"""Tables by example: one row per example, with a value for every unit of a dictionary.

There is one safetensors file per window, with the rows in the order of the corpus. The ids of the
examples are in its header.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from saefeat.io import UserError, read_columns, read_header
from saefeat.statistics.base import Accumulator, Field, Observed, comparable
from saefeat.statistics.rows import Rows

if TYPE_CHECKING:
    from saefeat.corpora import Corpus

EXAMPLES = {  # the fields of every table
    "position": Field(("row",), "joint"),
    "label": Field(("row",), "joint", torch.int32),
}
_IDS, _LIMIT = "ids", "limit"  # in the header: the ids of the rows, and the examples per label


class ByExample(Rows):
    """A table by example. A subclass declares `FIELDS`, with `EXAMPLES`, and defines `values`.

    `position` is the place of an example in the corpus, `label` the row of its label. An example
    without counted tokens has no row. Every label keeps its first `limit` examples by hashed id,
    so that texts of one id stay together.
    """

    KEY = "position"
    IN_RUN = False
    LIMITED = True

    ids: Mapping[int, str] = MappingProxyType({})  # those of a file, by position

    @classmethod
    def zeros(
        cls,
        labels: tuple[str, ...],
        width: int,
        *,
        signed: bool = False,
        device: str = "cpu",
        **header: Any,
    ) -> Self:
        """The neutral element. Rows are kept on the CPU, whatever the device of the codes."""
        return super().zeros(labels, width, signed=signed, **header)

    def values(self, observed: Observed) -> dict[str, Tensor]:
        """The other fields of the examples of a batch: [E, width] each."""
        raise NotImplementedError

    def add(self, observed: Observed) -> None:
        chosen = observed.lengths > 0
        if observed.kept is not None:
            chosen &= observed.kept
        if chosen.any():
            columns = {"position": observed.positions, "label": observed.labels}
            columns |= self.values(observed)
            here = {name: column.cpu() for name, column in columns.items()}
            if not chosen.all():
                here = {name: column[chosen] for name, column in here.items()}
            self.append(here)

    def merge(self, other: Self) -> Self:
        made = super().merge(other)
        made.ids = {**self.ids, **other.ids}
        return made

    def save(self, path: Path, corpus: Corpus | None = None) -> None:
        """Write the file. `corpus` has the ids; what was loaded from a file needs none."""
        positions = self.position.tolist()
        ids = [self.ids[i] if corpus is None else corpus.ids[i] for i in positions]
        filed = type(self)(self.labels, self.tensors, {**self.header, _IDS: ids})
        Accumulator.save(filed, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        made = super().load(path)
        ids = _take_ids(made.header, path)
        if len(ids) != len(made.position):
            raise UserError(f"{path} is damaged; collect it again")
        made.ids = dict(zip(made.position.tolist(), ids, strict=True))
        return made

    @classmethod
    def open(cls, place: Path, stats: Mapping[str, Any]) -> Table:
        """Open the table of a dictionary in the directory `place`.

        Args:
            stats: the header of the dictionary's statistics, of the same collection.

        Raises:
            UserError: a file is missing or damaged, or comes from another collection.
        """
        what, ids, label, seen, labels = stats["dictionary"], [], [], set(), ()
        files = tuple(cls.path(place, what["id"], window) for window in stats.get("windows", []))
        for file in files:
            if not file.exists():
                raise UserError(f"{file} is missing; collect it again")
            labels, header = cls._parse(read_header(file), file)
            ids += _take_ids(header, file)
            label.append(read_columns(file, "label").long())
            seen.add((header.pop(_LIMIT, None), labels))
            if comparable(header) != comparable(dict(stats)) or len(seen) > 1:
                raise UserError(
                    f"{file} is not of the collection of {what['id']}; collect it again"
                )
        rows = torch.cat([torch.zeros(0, dtype=torch.int64), *label])
        table = Table(what["id"], labels, rows, ids, what["width"], files)
        if len(rows) != len(ids) or not ((rows >= 0) & (rows < len(table.labels))).all():
            raise UserError(f"the table {place / what['id']} is damaged; collect it again")
        return table


def _take_ids(header: dict[str, Any], path: Path) -> list[str]:
    """Remove the ids from a header, and return them."""
    ids = header.pop(_IDS, None)
    if not isinstance(ids, list) or not all(isinstance(each, str) for each in ids):
        raise UserError(f"{path} is damaged; collect it again")
    return ids


@dataclass(frozen=True)
class Table:
    """The rows of all windows of one dictionary, in files.

    Attributes:
        dictionary: its id.
        labels: the K labels.
        label: int64 [n], the row of each example's label.
        ids: of the n examples.
        width: number of units.
    """

    dictionary: str
    labels: tuple[str, ...]
    label: Tensor
    ids: list[str]
    width: int
    _files: tuple[Path, ...]
    _kept: Tensor | None = None  # bool, which rows of the files are there; None: all

    def of_rows(self, kept: Tensor) -> Table:
        """The table of some examples: bool [n]."""
        every = torch.ones(len(self.ids), dtype=torch.bool) if self._kept is None else self._kept
        rows = every.clone()
        rows[every] = kept
        ids = [name for name, keep in zip(self.ids, kept.tolist(), strict=True) if keep]
        return replace(self, label=self.label[kept], ids=ids, _kept=rows)

    def read(self, field: str, first: int = 0, end: int | None = None) -> Tensor:
        """A field of the units from `first` to before `end`: [n, units]."""
        found = torch.cat([read_columns(file, field, slice(first, end)) for file in self._files])
        return found if self._kept is None else found[self._kept]

    def windows(self, field: str) -> Iterator[tuple[Tensor, Tensor]]:
        """For each file, the label of each row, int64 [m], and a field of all units [m, width]."""
        first = 0
        for file in self._files:
            label, values = read_columns(file, "label").long(), read_columns(file, field)
            kept = slice(None) if self._kept is None else self._kept[first : first + len(label)]
            first += len(label)
            yield label[kept], values[kept]

    def counted(self, labels: Sequence[str], least: int = 1) -> list[int]:
        """The rows of the labels that have examples.

        Raises UserError where the labels are not those of `labels`, a label has examples but fewer
        than `least`, or fewer than two labels have some.
        """
        if self._files and self.labels != tuple(labels):
            raise UserError(f"the labels of the table of {self.dictionary} are others; rank anew")
        counts = torch.bincount(self.label, minlength=len(labels)).tolist()
        for label, count in zip(labels, counts, strict=True):
            if 0 < count < least:
                raise UserError(
                    f"the label {label} has {count} examples in the table of {self.dictionary}, "
                    f"but the rule needs {least}; collect more text, or leave the label out"
                )
        found = [k for k, count in enumerate(counts) if count]
        if len(found) < 2:
            raise UserError(
                f"the table of {self.dictionary} has examples of {len(found)} labels, but the rule "
                "needs two; collect text of more labels"
            )
        return found


def chunks(width: int, rows: int, cells: int = 2**24) -> Sequence[range]:
    """Split units so that `rows` values of each come to about `cells` at once."""
    step = max(1, cells // max(rows, 1))
    return [range(first, min(first + step, width)) for first in range(0, width, step)]
