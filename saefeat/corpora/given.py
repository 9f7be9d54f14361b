"""Texts and labels given as Python objects: lists, pairs, rows by column name, and tables.

A table is any object that has column names and returns a column by its name: a dict of lists, a
Dataset, a data frame of pandas or polars, an Arrow table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from saefeat.corpora.columns import (
    Columns,
    Row,
    check_columns,
    check_label,
    class_name,
    class_names,
    keys_to,
    names_within,
    no_column,
    required,
    row_values,
    value_at,
)
from saefeat.corpora.examples import check_lengths
from saefeat.corpora.store import plain_strings
from saefeat.corpora.text import clean_text
from saefeat.io import UserError


def listed(values: Any, what: str) -> list[Any]:
    """Values as a list.

    Raises UserError for a value that is not a list, and for a single string.
    """
    need = f"{what} should be a list of strings, not"
    if isinstance(values, str | bytes):
        raise UserError(f"{need} one string; write [{values[:20]!r}]")
    if not _is_sequence(values) or getattr(values, "ndim", 1) != 1:
        raise UserError(f"{need} a value of type {type(values).__name__}")
    return _plain(values)


def given_texts(texts: Any) -> list[str]:
    """Texts as a list of strings, cleaned by `clean_text`.

    Args:
        texts: a list or another iterable of strings, or a table or rows with a column `text`.

    Raises:
        UserError: `texts` is one string, or contains a value that is not a string.
    """
    names = _names(texts)
    if names is not None and "text" not in names:
        raise UserError(f"{no_column('the table of texts', 'text', names)}; give the column itself")
    values = listed(texts, "texts") if names is None else _plain(texts["text"])
    found = []
    for position, value in enumerate(values):
        text = required(f"row {position}", value, "text") if isinstance(value, Mapping) else value
        if not isinstance(text, str):
            kind = "missing" if text is None else f"a value of type {type(text).__name__}"
            raise UserError(f"the text at position {position} is {kind}, not a string")
        found.append(clean_text(str(text)))
    return found


def given_examples(texts: Any, labels: Any = None) -> tuple[list[str], list[Any]]:
    """Texts and their labels.

    Args:
        texts: as for `given_texts`; without `labels`, as for `given_rows`.
        labels: one label per text, or None if `texts` contains them.

    Raises:
        UserError: as `given_texts` and `given_rows` do, or the numbers of texts and labels differ.
    """
    if labels is None:
        rows = list(given_rows(texts, Columns()))
        return given_texts([text for text, *_ in rows]), [label for _, label, *_ in rows]
    strings, of = given_texts(texts), listed(labels, "labels")
    check_lengths(strings, of)
    return strings, of


def given_rows(data: Any, columns: Columns) -> Iterator[Row]:
    """Rows of labelled text given as a Python object.

    Args:
        data: (text, label) pairs, (text, label, id) triples, mappings by column name, or a table.
        columns: names of the columns of mappings and tables.

    Raises:
        UserError: `data` is none of these, a column is missing, or a label is not a string.
    """
    if _names(data) is not None:
        return table_rows(data, columns, "the table")
    if isinstance(data, str | bytes) or not _is_sequence(data):
        raise UserError(
            f"a value of type {type(data).__name__} is not labelled text; give (text, label) "
            "pairs, or a table with columns text and label"
        )
    return _rows(data, columns)


def _is_sequence(values: Any) -> bool:
    # The order of a set differs between processes.
    return isinstance(values, Iterable) and not isinstance(values, Mapping | Set)


def _rows(data: Iterable[Any], columns: Columns) -> Iterator[Row]:
    classes = class_names(_features(data), columns.label)
    for number, row in enumerate(data.tolist() if isinstance(data, np.ndarray) else data):
        where = f"row {number}"
        if isinstance(row, Mapping):
            text, label, *others = row_values(where, row, columns)
            label, place = class_name(label, classes), f"{columns.label} ({where})"
        elif isinstance(row, Sequence) and not isinstance(row, str | bytes) and len(row) in (2, 3):
            text, label, *others = (*row, None)[:3]
            place = "(the second of each pair)"
        else:
            shown = " ".join(repr(row).split())
            shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
            raise UserError(
                f"{where} is {shown}; give (text, label) pairs or (text, label, id) triples"
            )
        check_label(label, place, from_column=False)
        yield text, label, *others


def table_rows(table: Any, columns: Columns, where: str) -> Iterator[Row]:
    """Rows of a table. Raises UserError, in which `where` names the table, as `given_rows` does."""
    names = _names(table) or []
    check_columns(where, names, columns)
    texts, labels, *others = (
        _column(table, names, column, parameter, where)
        if keys_to(column, names) is not None
        else None  # of the column of ids, which may be missing
        for column, parameter in columns.named
    )
    assert texts is not None and labels is not None
    others = [[None] * len(labels) if each is None else each for each in others]
    if any(len(each) != len(labels) for each in (texts, *others)):
        raise UserError(
            f"the columns of {where} have different lengths: {len(texts):,} texts, "
            f"{len(labels):,} labels"
        )
    classes = class_names(_features(table), columns.label)
    of = labels if classes is None else [class_name(label, classes) for label in labels]
    if not set(map(type, of)) <= {str, type(None)}:
        for label in of:
            check_label(label, f"{columns.label} of {where}")
    return iter(zip(texts, of, *others, strict=True))


def _names(table: Any) -> list[str] | None:
    """Column names of a table; None for any other object. Raises UserError for a set of splits."""
    found = getattr(table, "column_names", None)
    if isinstance(found, Mapping):
        splits = list(found)
        raise UserError(
            f"a {type(table).__name__} has the splits {', '.join(splits)}; give one, such as "
            f"data[{splits[0]!r}]"
        )
    if isinstance(table, Mapping):
        return list(table)
    if found is None:
        found = getattr(table, "columns", None)
    return list(found) if isinstance(found, Iterable) and hasattr(table, "__getitem__") else None


def _column(table: Any, names: list[str], column: str, parameter: str, where: str) -> list[Any]:
    """Values of a column, which may be nested. Raises UserError for a missing nested field."""
    first, *inner = keys_to(column, names) or [column]
    values = listed(table[first], f"the column {first} of {where}")
    try:
        return [value_at(value, inner) for value in values] if inner else values
    except KeyError as error:
        within = names_within({first: next((value for value in values if value is not None), None)})
        others = [name for name in names if name != first]
        raise no_column(where, column, [*others, *within], parameter) from error


def _plain(values: Any) -> list[Any]:
    """A list of plain Python values, None for each missing one."""
    if str(getattr(values, "type", "")) in ("string", "large_string"):  # of Arrow
        return plain_strings(values)
    methods = [name for name in ("to_pylist", "tolist", "to_list") if hasattr(values, name)]
    plain = getattr(values, methods[0])() if methods else list(values)
    if hasattr(values, "isna"):  # pandas
        return [None if gap else value for value, gap in zip(plain, values.isna(), strict=True)]
    return plain


def _features(table: Any) -> Any:
    """Features of `datasets` of a table: objects, or JSON in an Arrow table's metadata, or None."""
    if hasattr(table, "features"):
        return table.features
    metadata = getattr(getattr(table, "schema", None), "metadata", None)
    if not isinstance(metadata, Mapping) or b"huggingface" not in metadata:
        return None
    try:
        return json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):  # metadata of another program
        return None
