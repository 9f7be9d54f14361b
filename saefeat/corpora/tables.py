"""Rows of a table with any columns: .jsonl, .csv, .tsv and .parquet files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saefeat.corpora.columns import no_column
from saefeat.corpora.text import clean_text, plain_name, raw_lines, refuse_archive, text_lines
from saefeat.io import UserError, first_line

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_table(
    path: Path,
    texts: Mapping[str, str],
    parameter: str = "",
    *,
    others: Mapping[str, str] | None = None,
    blank: bool = True,
) -> list[dict[str, Any]]:
    """Read the rows of a file as dicts from column to value; cells of .csv and .tsv are strings.

    Args:
        texts: column that each row must have, with a string -> the parameter that names it.
        parameter: the one that names the file.
        others: the same for columns of any values.
        blank: whether the strings may be blank.

    Raises UserError where the file is missing, has no row, cannot be parsed, or lacks a column, or
    where a cell is no string, or blank.
    """
    hint = [parameter] if parameter else []
    if not path.is_file():
        raise UserError(f"the table {path} does not exist or is not a file", *hint)
    refuse_archive(path)
    kind = plain_name(path).suffix
    if kind not in (".jsonl", ".parquet", *_DELIMITERS):
        raise UserError(f"the table {path} must end in .jsonl, .csv, .tsv or .parquet", *hint)
    read = {".jsonl": _jsonl, ".parquet": _parquet}.get(kind, _delimited)
    rows = list(read(path))
    if not rows:
        raise UserError(f"the table {path} has no rows", *hint)
    for number, row in enumerate(rows, 1):
        for column, name in {**texts, **(others or {})}.items():
            if column not in row:
                raise no_column(f"{path}: row {number}", column, row, name)
        for column in texts:
            cell = row[column]
            if not isinstance(cell, str) or not (blank or cell.strip()):
                raise UserError(f"{path}: row {number} has no text in the column {column}", *hint)
            row[column] = clean_text(cell)
    return rows


def json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with its place for messages; blank lines are skipped.

    Raises UserError for a line that is no JSON object.
    """
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{where} is not a JSON object")
        yield where, row


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    yield from (row for _, row in json_objects(path))


def _delimited(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    lines = (line + "\n" for line in raw_lines(path))
    reader = csv.reader(lines, delimiter=_DELIMITERS[plain_name(path).suffix], strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise UserError(f"{path} names a column twice")
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
