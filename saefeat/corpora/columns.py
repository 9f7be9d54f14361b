"""Names of columns, also nested ones (`metadata.language`), and the values of label columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Number
from typing import Any, NamedTuple

from saefeat.io import UserError

Row = tuple[Any, Any, Any]  # text, label, id


class Columns(NamedTuple):
    """Names of the columns of text, label and id. The id column may be missing if it is `id`."""

    text: str = "text"
    label: str = "label"
    id: str = "id"


PARAMETERS = Columns("text_column", "label_column", "id_column")  # of `load_corpus`


def keys_to(column: str, names: Collection[str]) -> list[str] | None:
    """The keys that lead to a column from a row.

    `metadata.language` is the column of that name, or else the field `language` of the column
    `metadata`. None if no column of `names` begins it.
    """
    if column in names:
        return [column]
    parts = column.split(".")
    for n in range(len(parts) - 1, 0, -1):
        if (head := ".".join(parts[:n])) in names:
            return [head, *parts[n:]]
    return None


def value_at(value: Any, keys: Iterable[str]) -> Any:
    """The value at keys of nested mappings; None inside a null. Raises KeyError for no such key."""
    for key in keys:
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise KeyError(key)
        value = value[key]
    return value


def row_values(where: str, row: Mapping[str, Any], columns: Columns) -> Row:
    """Text, label and id of a row, None for no id. Raises UserError for a missing column."""
    text, label, identity = columns
    return (
        required(where, row, text, PARAMETERS.text),
        required(where, row, label, PARAMETERS.label),
        None
        if identity == "id" and "id" not in row
        else required(where, row, identity, PARAMETERS.id),
    )


def required(where: str, row: Mapping[str, Any], column: str, *parameter: str) -> Any:
    """The value of a column of a row. Raises UserError that lists the columns if it is missing.

    Args:
        where: names the row in the message.
        row: column -> value.
        column: the name, which may be nested.
        parameter: the parameter that names the column, if there is one.
    """
    try:
        return value_at(row, keys_to(column, row) or [column])
    except KeyError as error:
        raise no_column(where, column, names_within(row), *parameter) from error


def check_columns(
    where: str, present: Iterable[str], columns: Columns, *, flat: bool = False
) -> None:
    """Raise UserError for a column that is missing or occurs twice.

    Args:
        where: names the table in the message.
        present: the names of its columns.
        columns: the columns to look for.
        flat: whether nested columns are impossible, as in .csv.
    """
    names = list(present)
    for column, parameter in zip(columns, PARAMETERS, strict=True):
        keys = keys_to(column, names)
        if (keys is None or (flat and len(keys) > 1)) and column != "id":
            raise no_column(where, column, names, parameter)
        if keys and names.count(keys[0]) > 1:
            raise UserError(
                f"{where}: {names.count(keys[0])} columns are called {keys[0]}; rename them"
            )


def no_column(where: str, column: str, names: Iterable[Any], *parameter: str) -> UserError:
    """The error for a column that is missing among `names`."""
    return UserError(
        f"{where}: no column {column}; there are {', '.join(map(str, names))}", *parameter
    )


def names_within(row: Mapping[str, Any], head: str = "") -> list[str]:
    """Names of all columns of a row, nested ones as `metadata.language`."""
    found: list[str] = []
    for name, value in row.items():
        found += (
            names_within(value, f"{head}{name}.")
            if isinstance(value, Mapping) and value
            else [f"{head}{name}"]
        )
    return found


def check_label(label: Any, column: str, *, from_column: bool = True) -> None:
    """Raise UserError for a label that is neither a string nor None.

    A number is refused because it does not say which class it stands for.

    Args:
        label: the value.
        column: where it stands, in the message.
        from_column: whether the user can name another column. Otherwise strings have to be given.
    """
    if label is None or isinstance(label, str):
        return
    holds = (
        "numbers without names"
        if isinstance(label, Number)
        else f"values of type {type(label).__name__}"
    )
    raise UserError(
        f"the label column {column} holds {holds}; "
        + ("name a column of strings" if from_column else "give strings"),
        *([PARAMETERS.label] if from_column else []),
    )


def class_names(features: Any, column: str) -> list[str] | None:
    """The names of a ClassLabel of `datasets`; None for any other column.

    Args:
        features: the features of the table, as objects of `datasets` or as JSON.
        column: the name of the column, which may be nested.
    """
    keys = keys_to(column, features) if isinstance(features, Mapping) else None
    try:
        kind = value_at(features, keys) if keys else None
    except KeyError:
        return None
    names = kind.get("names") if isinstance(kind, Mapping) else getattr(kind, "names", None)
    return [str(name) for name in names] if isinstance(names, Sequence) else None


def class_name(label: Any, names: list[str] | None) -> Any:
    """The name of a class number, None for a negative one (no class). Other labels stay."""
    if names is None or type(label) is not int or label >= len(names):
        return label
    return names[label] if label >= 0 else None


def choose_split(names: Sequence[str], where: str, prefix: str, split: str = "") -> str:
    """The split asked for, or else `train`, or else the only one.

    Raises UserError that proposes `prefix` and a name if there is no such split.
    """
    chosen = split or ("train" if "train" in names else names[0] if len(names) == 1 else "")
    if chosen not in names:
        raise UserError(
            f"{where} has the splits {', '.join(names)}; name one, such as {prefix}{names[0]}"
        )
    return chosen
