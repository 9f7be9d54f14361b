"""Labelled text in local files and directories, and the embedded text."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saefeat.assets import fetch
from saefeat.corpora.ahead import ahead
from saefeat.corpora.columns import (
    Columns,
    Row,
    check_columns,
    check_label,
    choose_split,
    keys_to,
    row_values,
)
from saefeat.corpora.delimited import csv_rows, tsv_rows
from saefeat.corpora.given import table_rows
from saefeat.corpora.recipes import RECIPES
from saefeat.corpora.tables import json_objects
from saefeat.corpora.text import plain_name, read_bytes, refuse_archive, text_lines
from saefeat.io import UserError, absolute_path, first_line, user_path, visible
from saefeat.labels import to_labels
from saefeat.progress import Say, quiet

_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
_BUFFER = 2**22  # bytes of a column of a Parquet file that are read ahead
_BATCH = 8192  # rows of a table that are read at once
_NO_LABELS = {"readme", "license", "licence", "notice", "copying", "changelog", "authors"}


def local_rows(
    name: str,
    columns: Columns,
    wanted: tuple[str, ...] | None,
    counts: Counter[str],
    say: Say = quiet,
) -> Iterator[Row]:
    """Rows of `embedded:eld`, of a file or of a directory (see `local_path`).

    Args:
        wanted: only these labels; None for all.
        counts: reason -> number of rows, files or cells that are skipped or repaired, added to.

    Raises:
        UserError: the corpus does not exist, cannot be read or parsed, lacks a column, or has
            numbers as labels (in .csv and .tsv: numbers only).
    """
    path = local_path(name)
    if path is None:
        return _embedded(name, say)
    if os.path.isdir(path):  # `Path.is_dir` raises an error if the name is too long
        if _is_saved(path):
            return _saved(path, columns)
        if shards := _shards(path):
            return (row for shard in shards for row in _file(shard, columns, counts))
        return _directory(path, wanted, counts)
    return _file(path, columns, counts)


def local_path(name: str) -> Path | None:
    """The file or directory of a corpus that is neither a recipe nor on the hub; None: embedded.

    Raises UserError where there is none, or where a file is of another kind.
    """
    if not name.strip():  # such as a shell variable that is not set; as a path it would be `.`
        raise UserError(
            "the corpus has an empty name; give a file, a directory of LABEL.txt, or embedded:eld"
        )
    if name.startswith("embedded:"):
        if name != "embedded:eld":
            raise UserError(f"unknown embedded corpus {name}; there is embedded:eld")
        return None
    path = user_path(name)
    if not os.path.exists(path):
        raise UserError(
            f"the corpus {name} does not exist; give a file, a directory of LABEL.txt, "
            f"embedded:eld, hub:REPO, or one of {', '.join(RECIPES)}"
        )
    if not os.path.isdir(path):
        _check_kind(path)
    return path


def local_state(name: str) -> list[Any] | None:
    """What changes when the files of a corpus do: their paths, sizes and times.

    None for a corpus that is no file or directory.
    """
    if name.startswith("embedded:") or not name.strip():
        return None
    path = user_path(name)
    if not os.path.exists(path):
        return None
    files = [path]
    if os.path.isdir(path):
        nested = _is_saved(path) and (path / "dataset_dict.json").exists()
        files = [f for f in visible(path, "*/*" if nested else "*") if f.is_file()]
    found = [(absolute_path(str(f)), f.stat()) for f in files]
    return [[f, state.st_size, state.st_mtime_ns] for f, state in found]


def _check_kind(path: Path) -> None:
    """Raise UserError unless the name of a file says that it may hold a corpus."""
    refuse_archive(path)
    if plain_name(path).suffix not in _SUFFIXES:
        raise UserError(
            f"the corpus {path} must end in {', '.join(_SUFFIXES)}, or be a directory of LABEL.txt"
        )


def _file(path: Path, columns: Columns, counts: Counter[str]) -> Iterator[Row]:
    _check_kind(path)
    suffix = plain_name(path).suffix
    if suffix == ".parquet":
        return _parquet(path, columns)
    if not os.path.getsize(path):
        raise UserError(f"the corpus {path} is empty")
    if suffix == ".tsv":
        return tsv_rows(path, columns, counts)
    return (csv_rows if suffix == ".csv" else _jsonl)(path, columns)


def _shards(path: Path) -> list[Path]:
    """The files of a directory that are shards of one corpus: their names differ in numbers only.

    None where a directory has files LABEL.txt.
    """
    files = visible(path)
    if any(
        plain_name(file).suffix == ".txt" and file.stem.lower() not in _NO_LABELS for file in files
    ):
        return []
    found = [file for file in files if plain_name(file).suffix in _SUFFIXES]
    names = {re.sub(r"\d+", "0", file.name) for file in found}
    return found if len(names) == 1 and all(re.search(r"\d", file.name) for file in found) else []


def _is_saved(path: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote a directory."""
    return any((path / file).is_file() for file in ("state.json", "dataset_dict.json"))


def _embedded(name: str, say: Say) -> Iterator[Row]:
    for number, line in enumerate(text_lines(fetch("eld", say=say)), 1):
        label, tab, text = line.partition("\t")
        if not tab:
            raise UserError(f"{name}: line {number} has no tab")
        yield text, label, None


def _directory(path: Path, wanted: tuple[str, ...] | None, counts: Counter[str]) -> Iterator[Row]:
    """Lines of the files LABEL.txt of a directory.

    Hidden files are skipped and counted, and so are files such as README.txt, unless `wanted` names
    them. An empty file yields one blank row, so that its label is reported as one without text.
    """
    files: dict[str, Path] = {}
    others = []
    for file in sorted(path.iterdir()):
        bare = plain_name(file)
        if bare.suffix in _SUFFIXES:
            others.append(file)
        if bare.suffix != ".txt":
            continue
        asked = wanted is not None and bare.stem in wanted
        if bare.name.startswith(".") or (bare.stem.lower() in _NO_LABELS and not asked):
            counts["files that are no labels"] += 1
        elif bare.stem in files:
            raise UserError(f"{files[bare.stem]} and {file} have the same label; remove one")
        else:
            files[bare.stem] = file
    if not files:
        instead = f"; give one of its files, such as {others[0]}" if others else ""
        raise UserError(f"the corpus directory {path} holds no LABEL.txt files{instead}")
    chosen = files if wanted is None else to_labels(files, wanted)
    for label, file in files.items():
        if label in chosen:
            line = None
            for line in text_lines(file):
                yield line, label, None
            if line is None:
                yield "", label, None


def _saved(path: Path, columns: Columns) -> Iterator[Row]:
    """Rows of a directory that `save_to_disk` of `datasets` wrote."""
    from datasets import load_from_disk

    try:
        found = load_from_disk(str(path))
    except Exception as error:  # its readers raise errors of many types for a damaged directory
        raise UserError(
            f"{path} is not a readable directory of save_to_disk ({first_line(error)})"
        ) from error
    if isinstance(found, dict):
        found = found[choose_split([str(name) for name in found], str(path), f"{path}/")]
    # In parts, because the columns of a part become lists.
    for start in range(0, max(1, len(found)), _BATCH):
        some = found.select(range(start, min(start + _BATCH, len(found))))
        yield from table_rows(some, columns, str(path))


def _jsonl(path: Path, columns: Columns) -> Iterator[Row]:
    for where, row in json_objects(path):
        values = row_values(where, row, columns)
        check_label(values[1], f"{columns.label} of {path}")
        yield values


def _parquet(path: Path, columns: Columns) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    damage = (pa.ArrowException, OSError)
    try:
        packed = plain_name(path) != path
        source = pa.BufferReader(read_bytes(path)) if packed else path
        file = pq.ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER)
        schema = file.schema_arrow
        check_columns(str(path), schema.names, columns)
        if not file.metadata.num_rows:
            yield from table_rows(schema.empty_table(), columns, str(path))
        for part in ahead(_parts(file, schema, columns)):
            yield from table_rows(part, columns, str(path))
    except damage as error:
        raise UserError(f"{path} is not a readable Parquet file ({first_line(error)})") from error


def _parts(file: Any, schema: Any, columns: Columns) -> Iterator[Any]:
    """The rows of a Parquet file as tables, whose strings are checked."""
    import pyarrow as pa

    for batch in file.iter_batches(_BATCH, columns=_heads(schema.names, columns)):
        part = pa.Table.from_batches([batch]).replace_schema_metadata(schema.metadata)
        part.validate(full=True)  # finds strings that are not UTF-8, among other damage
        yield part


def _heads(names: list[str], columns: Columns) -> list[str] | None:
    """The columns to read; None for all, where one is nested and errors list the fields of all."""
    keys = [found for column, _ in columns.named if (found := keys_to(column, names))]
    if any(len(found) > 1 for found in keys):
        return None
    return [head for head, *_ in keys]
