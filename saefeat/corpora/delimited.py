"""Rows of .csv, with the quotation marks of CSV, and of .tsv, by tabs and newlines."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from saefeat.corpora.columns import Columns, Row, check_columns, check_label
from saefeat.corpora.text import split_lines
from saefeat.io import UserError

UNQUOTED = "quoted in a .tsv"  # counts of cells, kept among the rows that are skipped or mended
OPEN = "a quotation mark kept as text"
_DELIMITERS = ",;\t|"
_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d+)?\s*")
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def csv_rows(path: Path, text: str, columns: Columns) -> Iterator[Row]:
    """Rows of comma-separated text, or of another delimiter where with it the header has the columns.

    Raises UserError for a row that cannot be parsed, or has another number of columns than the
    header.
    """
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(_lines_kept(text), delimiter=_delimiter(text, columns), strict=True)
    try:
        header = next(reader, [])
        check_columns(str(path), header, columns, flat=True)
        yield from _rows(path, header, columns, ((reader.line_num, row) for row in reader if row))
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num} cannot be parsed ({error})") from error


def tsv_rows(path: Path, text: str, columns: Columns, counts: Counter[str]) -> Iterator[Row]:
    """Rows of tab-separated text, one a line: a quotation mark that stays open takes no further line with it.

    Quotation marks that a writer of CSV put around a cell, doubling those inside, go, and such
    cells are counted. A cell that only begins with one is text as it stands, and is counted too.
    Raises UserError for a line with another number of columns than the header, such as the first of
    a quoted cell over several lines.
    """
    lines = split_lines(text)
    header = lines[0].split("\t")
    all_quoted = all(_QUOTED.fullmatch(cell) for cell in header)
    if all_quoted:
        header = [_unquote(cell) for cell in header]
    check_columns(str(path), header, columns, flat=True)
    rows = (
        (number, _cells(f"{path}: line {number}", line, len(header), all_quoted, counts))
        for number, line in enumerate(lines[1:], 2)
        if line
    )
    yield from _rows(path, header, columns, rows)


def _cells(where: str, line: str, width: int, all_quoted: bool, counts: Counter[str]) -> list[str]:
    cells = line.split("\t")
    if len(cells) != width and '"' in line:
        cells = _with_tabs_inside(where, cells)
    for n, cell in enumerate(cells):
        if not cell.startswith('"'):
            continue
        whole = _QUOTED.fullmatch(cell)
        if all_quoted and not whole:
            raise UserError(
                f"{where} has a quoted cell that is not closed, or marks inside it that are not doubled"
            )
        if whole and (all_quoted or '""' in whole[1] or "\t" in whole[1]):
            cells[n] = _unquote(cell)
            if not all_quoted:
                counts[UNQUOTED] += 1
        else:
            counts[OPEN] += 1
    return cells


def _with_tabs_inside(where: str, cells: list[str]) -> list[str]:
    """Cells joined again where a tab stood inside of quotation marks; raises UserError for marks that stay open."""
    joined: list[str] = []
    for cell in cells:
        if joined and joined[-1].startswith('"') and not _QUOTED.fullmatch(joined[-1]):
            joined[-1] += "\t" + cell
        else:
            joined.append(cell)
    if joined[-1].startswith('"') and not _QUOTED.fullmatch(joined[-1]):
        raise UserError(
            f"{where} begins a quoted cell that goes on in the next line, but a line of .tsv is a row; "
            "write such texts as .csv or .jsonl"
        )
    return joined


def _unquote(cell: str) -> str:
    return cell[1:-1].replace('""', '"')


def _rows(
    path: Path, header: list[str], columns: Columns, rows: Iterable[tuple[int, list[str]]]
) -> Iterator[Row]:
    """Text, label and id of numbered rows; raises UserError for labels that are numbers."""
    text, label = header.index(columns[0]), header.index(columns[1])
    identity = header.index(columns[2]) if columns[2] in header else None
    labels = set()
    for number, row in rows:
        if len(row) != len(header):
            raise UserError(f"{path}: line {number} has another number of columns than the header")
        labels.add(row[label])
        yield row[text], row[label], None if identity is None else row[identity]
    names = [name for name in labels if name.strip()]
    if names and all(
        map(_NUMBER.fullmatch, names)
    ):  # as `datasets` takes them; among names, a number is one too
        check_label(float(names[0]), f"{columns[1]} of {path}")


def _delimiter(text: str, columns: Columns) -> str:
    """The delimiter with which the header has most of the text and label columns; of equals, the comma."""
    line = text.partition("\n")[0].removesuffix("\r")

    def columns_found(delimiter: str) -> int:
        header = next(csv.reader([line], delimiter=delimiter), [])
        return (columns[0] in header) + (columns[1] in header)

    return max(_DELIMITERS, key=columns_found)


def _lines_kept(text: str) -> Iterator[str]:
    lines = text.split("\n")
    yield from (line + "\n" for line in lines[:-1])
    if lines[-1]:
        yield lines[-1]
