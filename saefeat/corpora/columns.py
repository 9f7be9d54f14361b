"""Names of columns, also nested ones (`metadata.language`), and the values of label columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Number
from typing import Any, NamedTuple

from saefeat.config import ID, LABEL, TEXT
from saefeat.io import UserError

Row = tuple[Any, ...]  # text, label, id and, where its column is named, prompt


class Columns(NamedTuple):
    """Names of the columns of text, label, id and prompt.

    The id column may be missing if it is `id`. Without a name there is no column of prompts.
    """

    text: str = TEXT
    label: str = LABEL
    id: str = ID
    prompt: str | None = None

    @property
    def named(self) -> list[tuple[str, str]]:
        """The columns that have a name, each with the parameter of `load_corpus` that names it."""
        pairs = zip(self, PARAMETERS, strict=True)
        return [(column, str(parameter)) for column, parameter in pairs if column is not None]


# Of `load_corpus`.
PARAMETERS = Columns("text_column", "label_column", "id_column", "prompt_column")
_OPTIONAL = (PARAMETERS.id, ID)


def keys_to(column: str, names: Collection[str]) -> list[str] | None:
    """The keys that lead from a row to a column; None if there is no such column in `names`.

    `metadata.language` is the column of that name, or else the field `language` of the column
    `metadata`.
    """
    parts = column.split(".")
    for n in range(len(parts), 0, -1):
        if (head := ".".join(parts[:n])) in names:
            return [head, *parts[n:]]
    return None


def value_at(value: Any, keys: Iterable[str]) -> Any:
    """The value at keys of nested mappings, None below a null. Raises KeyError if missing."""
    for key in keys:
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise KeyError(key)
        value = value[key]
    return value


def row_values(where: str, row: Mapping[str, Any], columns: Columns) -> Row:
    """The values of the named columns; None for an id that may be missing.

    Raises UserError for a missing column.
    """
    return tuple(
        None
        if (parameter, column) == _OPTIONAL and "id" not in row
        else required(where, row, column, parameter)
        for column, parameter in columns.named
    )


def required(where: str, row: Mapping[str, Any], column: str, *parameter: str) -> Any:
    """The value of a column of a row, which may be nested.

    Raises UserError that lists the columns, and has `parameter` as option, if it is missing.
    """
    try:
        return value_at(row, keys_to(column, row) or [column])
    except KeyError as error:
        raise no_column(where, column, names_within(row), *parameter) from error


def check_columns(
    where: str, present: Iterable[str], columns: Columns, *, flat: bool = False
) -> None:
    """Raise UserError for a column that is missing or occurs twice. `flat`: none is nested."""
    names = list(present)
    for column, parameter in columns.named:
        keys = keys_to(column, names)
        optional = (parameter, column) == _OPTIONAL
        if (keys is None or (flat and len(keys) > 1)) and not optional:
            raise no_column(where, column, names, parameter)
        if keys and (n := names.count(keys[0])) > 1:
            raise UserError(f"{where}: {n} columns are called {keys[0]}; rename them")


def no_column(where: str, column: str, names: Iterable[Any], *parameter: str) -> UserError:
    """The error for a column that is missing among `names`."""
    found = ", ".join(map(str, names))
    return UserError(f"{where}: no column {column}; there are {found}", *parameter)


def names_within(row: Mapping[str, Any], head: str = "") -> list[str]:
    """Names of all columns of a row, nested ones as `metadata.language`."""
    found: list[str] = []
    for name, value in row.items():
        nested = isinstance(value, Mapping) and value
        found += names_within(value, f"{head}{name}.") if nested else [f"{head}{name}"]
    return found


def check_label(label: Any, column: str, *, from_column: bool = True) -> None:
    """Raise UserError for a label that is neither a string nor None.

    Numbers are refused, because they are classes without names. `from_column`: whether the user
    can name another column; otherwise strings have to be given.
    """
    if label is None or isinstance(label, str):
        return
    number = isinstance(label, Number)
    holds = "numbers without names" if number else f"values of type {type(label).__name__}"
    start = f"the label column {column} holds {holds}"
    if from_column:
        raise UserError(f"{start}; name a column of strings", PARAMETERS.label)
    raise UserError(f"{start}; give strings")


def class_names(features: Any, column: str) -> list[str] | None:
    """The names of a column that is a ClassLabel of `datasets`; None for any other column.

    `features` are those of a table, as objects of `datasets` or as JSON.
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
