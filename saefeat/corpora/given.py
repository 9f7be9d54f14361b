"""Texts and labels that a program hands over: lists, pairs, rows by name, and tables of datasets, pandas and others.

A table is whatever has names of columns and gives a column by its name: a dict of lists, a Dataset,
a data frame of pandas or polars, an Arrow table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from saefeat.corpora.columns import (
    OPTIONS,
    Columns,
    Row,
    check_columns,
    check_label,
    class_names,
    keys_to,
    named,
    names_within,
    no_column,
    required,
    row_values,
    walk,
)
from saefeat.corpora.text import clean_text
from saefeat.io import UserError

COLUMNS: Columns = ("text", "label", "id")
ARGUMENTS: Columns = ("text_column", "label_column", "id_column")  # of `load_corpus`
_NO_OPTIONS: Columns = ("", "", "")


def listed(values: Any, what: str) -> list[Any]:
    """Values as a list; raises UserError for one string, whose characters nobody means, and for what is no list."""
    if isinstance(values, str | bytes):
        raise UserError(
            f"{what} should be a list of strings, not one string; write [{values[:20]!r}]"
        )
    if not _in_order(values) or getattr(values, "ndim", 1) != 1:
        raise UserError(
            f"{what} should be a list of strings, not a value of the type {type(values).__name__}"
        )
    return _plain(values)


def given_texts(texts: Any) -> list[str]:
    """Texts that a user gives: a list or another iterable of strings, or a table or rows with a column `text`.

    They come back as `clean_text` leaves them. Raises UserError for one string and for a value that
    is no string.
    """
    names = _names(texts)
    if names is not None and "text" not in names:
        raise UserError(f"{no_column('the table of texts', 'text', names)}; give the column itself")
    values = listed(texts, "texts") if names is None else _plain(texts["text"])
    found = []
    for position, value in enumerate(values):
        text = required(f"row {position}", value, "text") if isinstance(value, Mapping) else value
        if not isinstance(text, str):
            kind = "missing" if text is None else f"a value of the type {type(text).__name__}"
            raise UserError(f"the text at position {position} is {kind}, not a string")
        found.append(clean_text(str(text)))
    return found


def given_examples(texts: Any, labels: Any = None) -> tuple[list[str], list[Any]]:
    """Texts as `given_texts` takes them, and their labels; without labels, texts are what `given_rows` takes.

    Raises UserError also where the numbers of texts and labels differ.
    """
    if labels is None:
        rows = list(given_rows(texts, COLUMNS, _NO_OPTIONS))
        return given_texts([text for text, _, _ in rows]), [label for _, label, _ in rows]
    strings, of = given_texts(texts), listed(labels, "labels")
    if len(strings) != len(of):
        raise UserError(
            f"there are {len(strings):,} texts but {len(of):,} labels; give one label for each text"
        )
    return strings, of


def given_rows(source: Any, columns: Columns, options: Columns = ARGUMENTS) -> Iterator[Row]:
    """Rows of (text, label) pairs, (text, label, id) triples, mappings by column, or a table.

    Raises UserError for one string, for a row that is none of these, and for labels that are no
    strings.
    """
    if _names(source) is not None:
        return table_rows(source, columns, "the table", options)
    if isinstance(source, str | bytes) or not _in_order(source):
        raise UserError(
            f"a value of the type {type(source).__name__} is no labelled text; give (text, label) pairs, "
            "or a table with columns text and label"
        )
    return _each(source, columns, options)


def _in_order(values: Any) -> bool:
    # A set has another order in every process.
    return isinstance(values, Iterable) and not isinstance(values, Mapping | Set)


def _each(source: Iterable[Any], columns: Columns, options: Columns) -> Iterator[Row]:
    classes = class_names(_features(source), columns[1])
    for number, row in enumerate(source.tolist() if isinstance(source, np.ndarray) else source):
        where = f"row {number}"
        if isinstance(row, Mapping):
            text, label, identity = row_values(where, row, columns, options)
            label = named(label, classes)
            check_label(label, f"{columns[1]} ({where})", "give strings")
        elif (
            isinstance(row, str | bytes) or not isinstance(row, Sequence) or len(row) not in (2, 3)
        ):
            raise UserError(
                f"{where} is {_shown(row)}; give (text, label) pairs or (text, label, id) triples"
            )
        else:
            text, label, identity = (*row, None)[:3]
            check_label(label, "(the second of each pair)", "give strings")
        yield text, label, identity


def _shown(row: Any) -> str:
    text = " ".join(repr(row).split())
    return text if len(text) <= 40 else f"{text[:40]}..."


def table_rows(
    table: Any, columns: Columns, where: str, options: Columns = OPTIONS
) -> Iterator[Row]:
    """Rows of a table; `where` names it in errors, `options` how columns are named."""
    names = _names(table) or []
    check_columns(where, names, columns, options)
    texts, labels = (
        _column(table, names, *pair, where) for pair in zip(columns[:2], options[:2], strict=True)
    )
    has_ids = keys_to(columns[2], names) is not None
    ids = _column(table, names, columns[2], options[2], where) if has_ids else [None] * len(labels)
    if not len(texts) == len(labels) == len(ids):
        raise UserError(
            f"the columns of {where} have different lengths: {len(texts):,} texts, {len(labels):,} labels"
        )
    classes = class_names(_features(table), columns[1])
    of = [named(label, classes) for label in labels]
    for label in of:
        check_label(label, f"{columns[1]} of {where}")
    return iter(zip(texts, of, ids, strict=True))


def _names(table: Any) -> list[str] | None:
    """Names of the columns of a table; None for what is none. Raises UserError for several tables in one."""
    found = getattr(table, "column_names", None)
    if isinstance(found, Mapping):
        splits = list(found)
        raise UserError(
            f"a {type(table).__name__} has the splits {', '.join(splits)}; give one: data[{splits[0]!r}]"
        )
    if isinstance(table, Mapping):
        return list(table)
    if found is None:
        found = getattr(table, "columns", None)
    return list(found) if isinstance(found, Iterable) and hasattr(table, "__getitem__") else None


def _column(table: Any, names: list[str], column: str, option: str, where: str) -> list[Any]:
    """Values of a column, which may be nested; raises UserError where it is not in the column that should hold it."""
    first, *inner = keys_to(column, names) or [column]
    values = listed(table[first], f"the column {first} of {where}")
    try:
        return [walk(value, inner) for value in values] if inner else values
    except KeyError as error:
        within = names_within({first: next((value for value in values if value is not None), None)})
        others = [name for name in names if name != first]
        raise UserError(no_column(where, column, [*others, *within], option)) from error


def _plain(values: Any) -> list[Any]:
    """A list of plain values, None for each that is missing."""
    method = next(
        (name for name in ("to_pylist", "tolist", "to_list") if hasattr(values, name)), None
    )
    plain = list(values) if method is None else getattr(values, method)()
    if hasattr(values, "isna"):  # pandas
        return [
            None if missing else value for value, missing in zip(plain, values.isna(), strict=True)
        ]
    return plain


def _features(table: Any) -> Any:
    """Features of `datasets` that a table has, as objects or, in an Arrow table's metadata, as JSON."""
    if hasattr(table, "features"):
        return table.features
    try:
        return json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
