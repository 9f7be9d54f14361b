"""Labelled text in local files: .jsonl, .csv, .tsv, .parquet, a directory of LABEL.txt, the embedded text."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from numbers import Number
from pathlib import Path
from typing import Any

from saefeat.io import UserError, user_path

_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d+)?\s*")
Row = tuple[Any, Any, Any]  # text, label, id


def local_rows(source: str, columns: tuple[str, str, str], wanted: tuple[str, ...] | None) -> Iterator[Row]:
    """Rows of `embedded:eld`, of a file or of a directory of LABEL.txt; `columns` name text, label and id.

    Raises UserError for labels that are numbers; in .csv and .tsv, where all is text, for a column of nothing else.
    """
    if source.startswith("embedded:"):
        return _embedded(source)
    path = user_path(source)
    if os.path.isdir(path):  # pathlib's would raise for a name that is too long
        return _directory(path, wanted)
    if not os.path.exists(path):
        raise UserError(
            f"the corpus {source} does not exist; give a file, a directory of "
            "LABEL.txt, embedded:eld, hub:REPO or a name of `saefeat corpus list`"
        )
    if path.suffix not in _SUFFIXES:
        raise UserError(f"the corpus {source} must end in {', '.join(_SUFFIXES)}, or be a directory of LABEL.txt")
    if path.stat().st_size == 0:
        raise UserError(f"the corpus {source} is empty")
    if path.suffix == ".parquet":
        return _parquet(path, columns)
    text = _read_text(path)
    if path.suffix == ".jsonl":
        return _jsonl(path, text, columns)
    return _delimited(path, text, columns, "\t" if path.suffix == ".tsv" else ",")


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is not UTF-8 text (line {line}); convert it to UTF-8") from error


def _lines(text: str) -> list[str]:
    # Not splitlines(): sentences contain other line separators such as U+2028.
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines[:-1] if lines and not lines[-1] else lines)]


def _embedded(source: str) -> Iterator[Row]:
    from saefeat.assets import fetch

    if source != "embedded:eld":
        raise UserError(f"unknown embedded corpus {source}; there is embedded:eld")
    for number, line in enumerate(_lines(_read_text(fetch("eld"))), 1):
        label, tab, text = line.partition("\t")
        if not tab:
            raise UserError(f"{source}: line {number} has no tab")
        yield text, label, None


def _directory(path: Path, wanted: tuple[str, ...] | None) -> Iterator[Row]:
    files = sorted(path.glob("*.txt"))
    if not files:
        raise UserError(f"the corpus directory {path} holds no LABEL.txt files")
    for file in files:
        if wanted is None or file.stem in wanted:
            for line in _lines(_read_text(file)) or [""]:  # a label without a line is a label without text
                yield line, file.stem, None


def _jsonl(path: Path, text: str, columns: tuple[str, str, str]) -> Iterator[Row]:
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is not a JSON object")
        _check_columns(f"{path}: line {number}", row, columns)
        check_label(row[columns[1]], f"{columns[1]} of {path}")
        yield row[columns[0]], row[columns[1]], row.get(columns[2])


def _delimited(path: Path, text: str, columns: tuple[str, str, str], delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(_lines_kept(text), delimiter=delimiter, strict=True)
    labels = set()
    try:
        _check_columns(str(path), reader.fieldnames or [], columns)
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{path}: line {reader.line_num} has another number of columns than the header")
            labels.add(row[columns[1]])
            yield row[columns[0]], row[columns[1]], row.get(columns[2])
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.reader.line_num} cannot be parsed ({error})") from error
    named = [label for label in labels if label.strip()]
    if named and all(map(_NUMBER.fullmatch, named)):  # as `datasets` takes them; among names, a number is one too
        check_label(float(named[0]), f"{columns[1]} of {path}")


def _lines_kept(text: str) -> Iterator[str]:
    lines = text.split("\n")
    yield from (line + "\n" for line in lines[:-1])
    if lines[-1]:
        yield lines[-1]


def _parquet(path: Path, columns: tuple[str, str, str]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({str(error).splitlines()[0]})") from error
    _check_columns(str(path), table.column_names, columns)
    ids = table[columns[2]].to_pylist() if columns[2] in table.column_names else [None] * len(table)
    labels = table[columns[1]].to_pylist()
    names = _class_names(table.schema, columns[1])
    if names and all(label is None or (type(label) is int and label < len(names)) for label in labels):
        labels = [None if label is None or label < 0 else names[label] for label in labels]
    for label in labels:
        check_label(label, f"{columns[1]} of {path}")
    return iter(zip(table[columns[0]].to_pylist(), labels, ids, strict=True))


def _class_names(schema: Any, column: str) -> list[str] | None:
    """The names of a ClassLabel, which `datasets` writes beside its numbers."""
    try:
        kind = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        return [str(name) for name in kind["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def check_label(label: Any, column: str, mend: str = "name a column of strings with --label-column") -> None:
    """Refuse a number, for which class it stands for is not said, and whatever else is no string."""
    if isinstance(label, Number):
        raise UserError(f"the label column {column} holds numbers without names; {mend}")
    if label is not None and not isinstance(label, str):
        raise UserError(f"the label column {column} holds values of the type {type(label).__name__}; {mend}")


def _check_columns(where: str, present: Iterable[str], columns: tuple[str, str, str]) -> None:
    names = list(present)
    for column, option in zip(columns[:2], ("--text-column", "--label-column"), strict=True):
        if column not in names:
            raise UserError(f"{where}: no column {column}; there are {', '.join(map(str, names))} (use {option})")
    if columns[2] != "id" and columns[2] not in names:
        raise UserError(f"{where}: no column {columns[2]}; there are {', '.join(map(str, names))} (use --id-column)")
    for column in columns:
        if names.count(column) > 1:
            raise UserError(f"{where}: there are {names.count(column)} columns {column}; give each a name of its own")


def clean_text(text: str) -> str:
    """Replace NUL and lone surrogates, which no tokenizer takes, by spaces."""
    if text.isascii() and "\0" not in text:
        return text
    return "".join(" " if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in text)
