"""Labelled text in local files and directories, and the embedded text."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from saefeat.assets import fetch
from saefeat.corpora.columns import Columns, Row, check_label, choose_split, row_values
from saefeat.corpora.delimited import csv_rows, tsv_rows
from saefeat.corpora.given import table_rows
from saefeat.corpora.recipes import RECIPES
from saefeat.corpora.text import plain_name, read_bytes, read_text, refuse_archive, split_lines
from saefeat.io import UserError, first_line, user_path
from saefeat.labels import to_labels
from saefeat.progress import Say, quiet

_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
_NO_LABELS = {"readme", "license", "licence", "notice", "copying", "changelog", "authors"}


def local_rows(
    name: str,
    columns: Columns,
    wanted: tuple[str, ...] | None,
    counts: Counter[str],
    say: Say = quiet,
) -> Iterator[Row]:
    """Rows of `embedded:eld`, of a file or of a directory.

    Args:
        wanted: only these labels; None for all.
        counts: reason -> number of rows, files or cells that are skipped or repaired, added to.

    Raises:
        UserError: the corpus does not exist, cannot be read or parsed, lacks a column, or has
            numbers as labels (in .csv and .tsv: numbers only).
    """
    if name.startswith("embedded:"):
        return _embedded(name, say)
    path = user_path(name)
    if os.path.isdir(path):  # `Path.is_dir` raises an error if the name is too long
        saved = any((path / file).is_file() for file in ("state.json", "dataset_dict.json"))
        return _saved(path, columns) if saved else _directory(path, wanted, counts)
    if not os.path.exists(path):
        raise UserError(
            f"the corpus {name} does not exist; give a file, a directory of LABEL.txt, "
            f"embedded:eld, hub:REPO, or one of {', '.join(RECIPES)}"
        )
    refuse_archive(path)
    suffix = plain_name(path).suffix
    if suffix not in _SUFFIXES:
        raise UserError(
            f"the corpus {path} must end in {', '.join(_SUFFIXES)}, or be a directory of LABEL.txt"
        )
    if suffix == ".parquet":
        return _parquet(path, columns)
    text = read_text(path)
    if not text:
        raise UserError(f"the corpus {path} is empty")
    if suffix == ".tsv":
        return tsv_rows(path, text, columns, counts)
    return (csv_rows if suffix == ".csv" else _jsonl)(path, text, columns)


def _embedded(name: str, say: Say) -> Iterator[Row]:
    if name != "embedded:eld":
        raise UserError(f"unknown embedded corpus {name}; there is embedded:eld")
    for number, line in enumerate(split_lines(read_text(fetch("eld", say=say))), 1):
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
            for line in split_lines(read_text(file)) or [""]:
                yield line, label, None


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
    return table_rows(found, columns, str(path))


def _jsonl(path: Path, text: str, columns: Columns) -> Iterator[Row]:
    for number, line in enumerate(split_lines(text), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{where} is not a JSON object")
        values = row_values(where, row, columns)
        check_label(values[1], f"{columns.label} of {path}")
        yield values


def _parquet(path: Path, columns: Columns) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        packed = plain_name(path) != path
        table = pq.read_table(pa.BufferReader(read_bytes(path)) if packed else path)
        table.validate(full=True)  # finds strings that are not UTF-8, among other damage
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({first_line(error)})") from error
    return table_rows(table, columns, str(path))
