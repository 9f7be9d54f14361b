"""Rows of a corpus: in lists, or, where there are many, in an Arrow file mapped into memory.

A corpus of any size takes a few bytes of memory per example: the texts and ids stay in the file,
and the pages of it that were read are given back after some thousand texts.
"""

from __future__ import annotations

import mmap
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from saefeat.io import UserError, atomic_path, cache_dir, make_dir, read_json, write_json
from saefeat.resume import claim

MANY = 250_000  # examples; more of them are kept in a file
_MANY_CHARACTERS = 2**28
_BATCH = 4096  # texts of a record batch, and between two releases of pages
_BATCH_CHARACTERS = 2**26
_FIELDS = pa.schema(
    {"text": pa.string(), "label": pa.int32(), "id": pa.string(), "prompt": pa.string()}
)
_ROWS, _NOTES = "rows.arrow", "notes.json"

# Texts, labels, ids and prompts of some usable rows. A prompt is empty if there is none.
Usable = tuple[list[str], list[str], list[str], list[str]]
_Part = tuple[list[str], np.ndarray, list[str], list[str]]  # texts, codes, ids, prompts


class Rows:
    """Usable rows in their order.

    Attributes:
        texts: of the n rows.
        codes: int32 [n], the number of each row's label in `names`.
        names: of the labels.
        ids: of the rows.
        prompts: of the rows.
        notes: what else was found when they were read (JSON values).
        place: directory of the file; None for lists.
    """

    def __init__(
        self,
        texts: Sequence[str],
        codes: np.ndarray,
        names: list[str],
        ids: Sequence[str],
        prompts: Sequence[str],
        notes: dict[str, Any],
        place: Path | None = None,
    ) -> None:
        self.texts, self.codes, self.names, self.ids = texts, codes, names, ids
        self.prompts, self.notes, self.place = prompts, notes, place

    def where(self, chosen: np.ndarray) -> Rows:
        """The rows at which a mask [n] is set."""
        if chosen.all():
            return self
        rows = np.flatnonzero(chosen)
        texts, ids, prompts = (
            column.take(rows) if isinstance(column, Strings) else [column[i] for i in rows.tolist()]
            for column in (self.texts, self.ids, self.prompts)
        )
        codes = self.codes[rows]
        return Rows(texts, codes, self.names, ids, prompts, self.notes, self.place)

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """A JSON value that is made once and kept beside the file."""
        if self.place is None:
            return make()
        path = self.place / f"{name}.json"
        if not path.exists():
            write_json(path, make())
        return read_json(path)


class Strings(Sequence[str]):
    """A column of strings of a file that is mapped into memory.

    Args:
        arrays: its parts.
        release: called after some thousand strings were read.
        rows: int64, the rows that are seen; None for all.
    """

    def __init__(
        self, arrays: list[Any], release: Callable[[], None], rows: np.ndarray | None = None
    ) -> None:
        self.arrays, self.release, self.rows = arrays, release, rows
        self._ends = np.cumsum([len(array) for array in arrays]).tolist()
        self._read = 0

    def __len__(self) -> int:
        return (self._ends or [0])[-1] if self.rows is None else len(self.rows)

    def take(self, rows: np.ndarray) -> Strings:
        """The column with only these of its strings."""
        return Strings(self.arrays, self.release, rows if self.rows is None else self.rows[rows])

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        size = len(self)
        if not -size <= index < size:
            raise IndexError(index)
        row = index % size if self.rows is None else int(self.rows[index])
        part = bisect_right(self._ends, row)
        array = self.arrays[part]
        found = array[row - self._ends[part] + len(array)].as_py()
        self._count(1)
        return found

    def __iter__(self) -> Iterator[str]:
        start = 0
        for array, end in zip(self.arrays, self._ends, strict=True):
            if self.rows is not None:
                first, last = np.searchsorted(self.rows, [start, end])
                array = array.take(pa.array(self.rows[first:last] - start))
            yield from plain_strings(array)
            self._count(len(array))
            start = end

    def _count(self, number: int) -> None:
        self._read += number
        if self._read >= _BATCH:
            self._read = 0
            self.release()


class Names(Sequence[str]):
    """A column of labels: int32 codes [n] into a list of names."""

    def __init__(self, codes: np.ndarray, names: Sequence[str]) -> None:
        self.codes, self.names = codes, list(names)

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.names[code] for code in self.codes[index].tolist()]
        return self.names[self.codes[index]]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _BATCH):
            yield from self[start : start + _BATCH]

    def index(self, value: str, start: int = 0, stop: int | None = None) -> int:
        """The first position of a label, as that of a list."""
        codes = [code for code, name in enumerate(self.names) if name == value]
        start, stop, _ = slice(start, stop).indices(len(self))
        for begin in range(start, stop, _BATCH):  # most labels occur soon
            found = np.flatnonzero(np.isin(self.codes[begin : min(begin + _BATCH, stop)], codes))
            if len(found):
                return int(found[0]) + begin
        raise ValueError(value)


# --------------------------------------------------------------------------- reading and writing


def gather(blocks: Iterable[Usable], place: Path | None, notes: Callable[[], Any]) -> Rows:
    """Keep rows in lists, or in a file if there are more than MANY.

    Args:
        blocks: some rows each.
        place: directory of the file, which is kept; None for a file that lasts as long as the rows.
        notes: called at the end.
    """
    blocks = iter(blocks)
    names: dict[str, int] = {}
    first = _some(blocks, MANY, _MANY_CHARACTERS, names)
    more = next(blocks, None)
    if more is None and len(first[0]) <= MANY:
        texts, codes, ids, prompts = first
        return Rows(texts, codes, list(names), ids, prompts, notes())
    blocks = blocks if more is None else chain([more], blocks)
    temporary = None
    if place is None:
        base = make_dir(cache_dir() / "corpora")
        temporary = tempfile.TemporaryDirectory(prefix=".stream-", dir=base)
        place = Path(temporary.name)
    with claim(place, wait=True) if temporary is None else nullcontext():
        if not (place / _NOTES).exists():  # another process may have written it meanwhile
            _write(place / _ROWS, first, blocks, names)
            write_json(place / _NOTES, {"names": list(names), "notes": notes()})
    return _open(place, temporary)


def open_rows(place: Path) -> Rows | None:
    """The rows in a directory; None if there are none, or the files are damaged."""
    if not (place / _NOTES).exists():
        return None
    try:
        return _open(place, None)
    except (UserError, pa.ArrowException, OSError, KeyError, ValueError):
        (place / _NOTES).unlink()
        return None


def _some(blocks: Iterator[Usable], most: int, characters: int, names: dict[str, int]) -> _Part:
    """The rows of the next blocks: until there are so many, or about so many characters."""
    texts, ids, prompts = [], [], []
    codes = [np.empty(0, np.int32)]
    for block in blocks:
        for label in dict.fromkeys(block[1]):
            names.setdefault(label, len(names))
        codes.append(np.array([names[label] for label in block[1]], np.int32))
        for column, more in zip((texts, ids, prompts), (block[0], *block[2:]), strict=True):
            column += more
        characters -= sum(map(len, block[0])) + sum(map(len, block[3]))
        if len(texts) >= most or characters <= 0:
            break
    return texts, np.concatenate(codes), ids, prompts


def plain_strings(array: Any) -> list[Any]:
    """An Arrow array of strings as a list; `to_pylist` takes several times as long."""
    return array.to_numpy(zero_copy_only=False).tolist()


def _write(path: Path, first: _Part, blocks: Iterator[Usable], names: dict[str, int]) -> None:
    """Write the rows that were read `first`, which are emptied, and those that follow."""
    texts, codes, ids, prompts = first
    with (
        atomic_path(path) as unfinished,
        pa.OSFile(str(unfinished), "wb") as file,
        pa.ipc.new_file(file, _FIELDS) as writer,
    ):
        for start in range(0, len(texts), _BATCH):
            some = slice(start, start + _BATCH)
            writer.write_batch(_batch(texts[some], codes[some], ids[some], prompts[some]))
        for column in (texts, ids, prompts):
            column.clear()
        while (part := _some(blocks, _BATCH, _BATCH_CHARACTERS, names))[0]:
            writer.write_batch(_batch(*part))


def _batch(texts: list[str], codes: np.ndarray, ids: list[str], prompts: list[str]) -> Any:
    texts, ids, prompts = (pa.array(column, pa.string()) for column in (texts, ids, prompts))
    return pa.record_batch([texts, pa.array(codes), ids, prompts], _FIELDS)


def _open(place: Path, temporary: Any) -> Rows:
    kept = read_json(place / _NOTES)
    with (place / _ROWS).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def release(holds: Any = temporary) -> None:  # keeps a temporary directory as long as it lives
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_DONTNEED)

    reader = pa.ipc.open_file(pa.py_buffer(mapped))
    batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
    texts, ids, prompts = (
        Strings([batch.column(name) for batch in batches], release)
        for name in ("text", "id", "prompt")
    )
    codes = np.concatenate([batch.column("label").to_numpy() for batch in batches])
    release()
    where = place if temporary is None else None
    return Rows(texts, codes, kept["names"], ids, prompts, kept["notes"], where)
