"""Rows of .csv (quoted cells, several delimiters) and .tsv (one row per line)."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from saefeat.corpora.columns import Columns, Row, check_columns, check_label
from saefeat.corpora.text import raw_lines, text_lines
from saefeat.io import UserError

# Names of counts of cells. They are kept among the reasons for skipped and repaired rows.
UNQUOTED = "quoted in a .tsv"
KEPT_QUOTE = "a quotation mark kept as text"
_DELIMITERS = ",;\t|"
_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d+)?\s*")
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def csv_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Rows of a file of comma-separated text.

    Another delimiter is used if the header has more of the text and label columns with it.
    Raises UserError for a row that cannot be parsed, or whose number of columns differs from the
    header's.
    """
    csv.field_size_limit(2**31 - 1)
    lines = raw_lines(path)
    first = next(lines, "")
    reader = csv.reader(
        (line + "\n" for line in chain([first], lines)),
        delimiter=_delimiter(first, columns),
        strict=True,
    )
    try:
        header = next(reader, [])
        check_columns(str(path), header, columns, flat=True)
        yield from _select(path, header, columns, ((reader.line_num, row) for row in reader if row))
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num} cannot be parsed ({error})") from error


def _delimiter(line: str, columns: Columns) -> str:
    """The delimiter with which the header has most of the two columns; the comma is preferred."""
    line = line.removesuffix("\r")

    def columns_found(delimiter: str) -> int:
        header = next(csv.reader([line], delimiter=delimiter), [])
        return (columns.text in header) + (columns.label in header)

    return max(_DELIMITERS, key=columns_found)


def tsv_rows(path: Path, columns: Columns, counts: Counter[str]) -> Iterator[Row]:
    """Rows of a file of tab-separated text, one per line.

    A quotation mark that is not closed does not affect other lines. If a CSV writer put quotation
    marks around a cell and doubled those inside, they are removed and the cell is counted. A cell
    that only begins with a quotation mark is kept unchanged and counted.

    Raises UserError for a line whose number of columns differs from the header's, such as the first
    line of a quoted cell that spans several lines.
    """
    lines = text_lines(path)
    header = next(lines, "").split("\t")
    all_quoted = all(_QUOTED.fullmatch(cell) for cell in header)
    if all_quoted:
        header = [_unquote(cell) for cell in header]
    check_columns(str(path), header, columns, flat=True)
    rows = (
        (number, _cells(f"{path}: line {number}", line, len(header), all_quoted, counts))
        for number, line in enumerate(lines, 2)
        if line
    )
    yield from _select(path, header, columns, rows)


def _cells(where: str, line: str, width: int, all_quoted: bool, counts: Counter[str]) -> list[str]:
    """The cells of a line of .tsv, without the quotation marks of a CSV writer."""
    cells = line.split("\t")
    if len(cells) != width and '"' in line:
        cells = _join_quoted(where, cells)
    for n, cell in enumerate(cells):
        if not cell.startswith('"'):
            continue
        quoted = _QUOTED.fullmatch(cell)
        if all_quoted and not quoted:
            raise UserError(
                f"{where} has a quoted cell that is not closed, or contains quotation marks that "
                "are not doubled"
            )
        if quoted and (all_quoted or '""' in quoted[1] or "\t" in quoted[1]):
            cells[n] = _unquote(cell)
            if not all_quoted:
                counts[UNQUOTED] += 1
        else:
            counts[KEPT_QUOTE] += 1
    return cells


def _join_quoted(where: str, cells: list[str]) -> list[str]:
    """Join cells that a tab inside quotation marks has split."""
    joined: list[str] = []
    for cell in cells:
        if joined and _is_open(joined[-1]):
            joined[-1] += "\t" + cell
        else:
            joined.append(cell)
    if _is_open(joined[-1]):
        raise UserError(
            f"{where} begins a quoted cell that continues on the next line, but each line of a "
            ".tsv is a row; write such texts as .csv or .jsonl"
        )
    return joined


def _is_open(cell: str) -> bool:
    return cell.startswith('"') and not _QUOTED.fullmatch(cell)


def _unquote(cell: str) -> str:
    return cell[1:-1].replace('""', '"')


def _select(
    path: Path, header: list[str], columns: Columns, rows: Iterable[tuple[int, list[str]]]
) -> Iterator[Row]:
    """The values of numbered rows. Raises UserError if all labels are numbers.

    All cells are text. As in `datasets`, a column is numeric if every cell is a number; a number
    among names is a name.
    """
    places = [header.index(name) if name in header else None for name, _ in columns.named]
    label, labels = header.index(columns.label), set()
    for number, row in rows:
        if len(row) != len(header):
            raise UserError(f"{path}: line {number} has another number of columns than the header")
        labels.add(row[label])
        yield tuple(None if place is None else row[place] for place in places)
    names = [name for name in labels if name.strip()]
    if names and all(map(_NUMBER.fullmatch, names)):
        check_label(float(names[0]), f"{columns.label} of {path}")
