"""Columns and splits by name: nested columns (`metadata.language`), names of class labels, what is no label."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Number
from typing import Any

from saefeat.io import UserError

Columns = tuple[str, str, str]  # names of the text, label and id columns
Row = tuple[Any, Any, Any]  # text, label, id
OPTIONS: Columns = ("--text-column", "--label-column", "--id-column")


def keys_to(column: str, names: Collection[str]) -> list[str] | None:
    """The keys that lead to a column among top names: itself, or `metadata`, `language`; None where none begins it."""
    if column in names:
        return [column]
    parts = column.split(".")
    for n in range(len(parts) - 1, 0, -1):
        if (head := ".".join(parts[:n])) in names:
            return [head, *parts[n:]]
    return None


def walk(value: Any, keys: Iterable[str]) -> Any:
    """What lies at keys within nested mappings; None within a null. Raises KeyError for what is not there."""
    for key in keys:
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise KeyError(key)
        value = value[key]
    return value


def row_values(
    where: str, row: Mapping[str, Any], columns: Columns, options: Columns = OPTIONS
) -> Row:
    """Text, label and id (None where there is none) of a row; raises UserError for a missing column."""
    text, label, identity = columns
    return (
        required(where, row, text, options[0]),
        required(where, row, label, options[1]),
        None
        if identity == "id" and "id" not in row
        else required(where, row, identity, options[2]),
    )


def required(where: str, row: Mapping[str, Any], column: str, option: str = "") -> Any:
    """The value of a column, which may be nested, in a row; raises UserError that lists the columns there are."""
    try:
        return walk(row, keys_to(column, row) or [column])
    except KeyError as error:
        raise UserError(no_column(where, column, names_within(row), option)) from error


def check_columns(
    where: str,
    present: Iterable[str],
    columns: Columns,
    options: Columns = OPTIONS,
    *,
    flat: bool = False,
) -> None:
    """Refuse a column that is not there, and one that is there twice. `flat`: nothing can be nested."""
    names = list(present)
    for column, option in zip(columns, options, strict=True):
        keys = keys_to(column, names)
        if (keys is None or (flat and len(keys) > 1)) and column != "id":
            raise UserError(no_column(where, column, names, option))
        if keys and names.count(keys[0]) > 1:
            raise UserError(
                f"{where}: there are {names.count(keys[0])} columns {keys[0]}; give each a name of its own"
            )


def no_column(where: str, column: str, names: Iterable[Any], option: str = "") -> str:
    """The sentence for a column that is not there."""
    hint = f" (use {option})" if option else ""
    return f"{where}: no column {column}; there are {', '.join(map(str, names))}{hint}"


def names_within(row: Mapping[str, Any], head: str = "") -> list[str]:
    """Names of all columns of a row, those within others as `metadata.language`."""
    found: list[str] = []
    for name, value in row.items():
        found += (
            names_within(value, f"{head}{name}.")
            if isinstance(value, Mapping) and value
            else [f"{head}{name}"]
        )
    return found


def check_label(
    label: Any, column: str, mend: str = "name a column of strings with --label-column"
) -> None:
    """Refuse a number, for which class it stands for is not said, and whatever else is no string."""
    if isinstance(label, Number):
        raise UserError(f"the label column {column} holds numbers without names; {mend}")
    if label is not None and not isinstance(label, str):
        raise UserError(
            f"the label column {column} holds values of the type {type(label).__name__}; {mend}"
        )


def class_names(features: Any, column: str) -> list[str] | None:
    """The names of a ClassLabel of `datasets` in its features, as objects or as JSON; None for any other column."""
    keys = keys_to(column, features) if isinstance(features, Mapping) else None
    try:
        kind = walk(features, keys or [column]) if keys else None
    except KeyError:
        return None
    names = kind.get("names") if isinstance(kind, Mapping) else getattr(kind, "names", None)
    return [str(name) for name in names] if isinstance(names, Sequence) else None


def named(label: Any, names: list[str] | None) -> Any:
    """The name of a class's number, None for a negative one, which stands for none; other labels as they are."""
    if names is None or type(label) is not int or label >= len(names):
        return label
    return names[label] if label >= 0 else None


def one_split(names: Sequence[str], where: str, prefix: str, asked: str = "") -> str:
    """The split asked for, else `train`, else the only one; else UserError, with `prefix` before a name."""
    chosen = asked or ("train" if "train" in names else names[0] if len(names) == 1 else "")
    if chosen not in names:
        raise UserError(f"{where} has the splits {', '.join(names)}; name one: {prefix}{names[0]}")
    return chosen
