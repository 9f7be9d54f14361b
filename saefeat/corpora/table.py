"""Small tables that users give beside a corpus, such as prompts with expected words."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from saefeat.corpora.text import clean_text, plain_name, text_lines
from saefeat.io import UserError


def read_cells(path: Path, needed: Sequence[str], parameter: str) -> list[dict[str, str]]:
    """Read a .csv file, or a .tsv file without quoted cells: one dict per row, column -> cell.

    Args:
        needed: columns that have to be there; there may be more.
        parameter: of the library, by which the file is named.

    Raises UserError when the file cannot be read, has no rows, lacks a column, names one twice, or
    when a row has another number of cells than the header.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file", parameter)
    lines = (line + "\n" for line in text_lines(path))
    tabs = plain_name(path).suffix == ".tsv"
    reader = (
        csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        if tabs
        else csv.reader(lines, strict=True)
    )
    try:
        header, *rows = [row for row in reader if row] or [[]]
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num} cannot be parsed ({error})") from error
    header = [clean_text(name).strip() for name in header]
    if missing := [name for name in needed if name not in header]:
        raise UserError(f"{path} has no column {missing[0]}; it has {', '.join(header) or 'none'}")
    if len(set(header)) < len(header):
        raise UserError(f"{path} names a column twice")
    if not rows:
        raise UserError(f"{path} has no rows below its header")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise UserError(
                f"{path}: row {number} has {len(row)} cells, but the header has {len(header)}"
            )
    return [dict(zip(header, map(clean_text, row), strict=True)) for row in rows]
