"""Rows of a table with any columns: .jsonl, .csv, .tsv and .parquet files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saefeat.corpora.columns import no_column
from saefeat.corpora.text import plain_name, raw_lines, refuse_archive, text_lines
from saefeat.io import UserError, first_line

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_table(path: Path, needed: Mapping[str, str]) -> list[dict[str, Any]]:
    """Read the rows of a file as dicts from column to value; cells of .csv and .tsv are strings.

    `needed`: column that each row must have -> the parameter that names it.

    Raises UserError where the file is missing, has no row, cannot be parsed, or lacks a column.
    """
    if not path.is_file():
        raise UserError(f"the table {path} does not exist or is not a file")
    refuse_archive(path)
    kind = plain_name(path).suffix
    if kind not in (".jsonl", ".parquet", *_DELIMITERS):
        raise UserError(f"the table {path} must end in .jsonl, .csv, .tsv or .parquet")
    read = {".jsonl": _jsonl, ".parquet": _parquet}.get(kind, _delimited)
    rows = list(read(path))
    if not rows:
        raise UserError(f"the table {path} has no rows")
    for number, row in enumerate(rows, 1):
        for column, parameter in needed.items():
            if column not in row:
                raise no_column(f"{path}: row {number}", column, row, parameter)
    return rows


def column_of(rows: list[dict[str, Any]], column: str) -> list[str]:
    """A column of strings. Raises UserError with the number of the first row that has none."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row[column], str):
            raise UserError(f"row {number}: the column {column} holds no text; give a string")
    return [row[column] for row in rows]


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is not a JSON object")
        yield row


def _delimited(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    lines = (line + "\n" for line in raw_lines(path))
    reader = csv.reader(lines, delimiter=_DELIMITERS[plain_name(path).suffix], strict=True)
    try:
        header = next(reader, [])
        for cells in reader:
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{path}: line {reader.line_num} has {len(cells)} cells, the header "
                    f"{len(header)}"
                )
            if cells:
                yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num} cannot be parsed ({error})") from error


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        yield from pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({first_line(error)})") from error
