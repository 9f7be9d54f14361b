"""Parquet files with a JSON header, and errors that name the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saefeat.io import UserError, atomic_path, first_line

_KEY = b"saefeat"  # of the header in the metadata


def required(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    """Return a schema of columns without missing values."""
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


def read_table(
    path: Path, fields: pa.Schema | None = None, filters: Any = None, help: str = "write it again"
) -> pa.Table:
    """Read columns of a Parquet file.

    Args:
        fields: the columns; None: all, whatever they are. One that is not nullable has no missing
            values.
        filters: as in `pyarrow.parquet.read_table`.
        help: what the user can do, for the message.

    Raises:
        UserError: the file is missing or damaged, or a column is missing, of another type, or has
            missing values or text that is not UTF-8.
    """
    try:
        found = pq.read_schema(path)
        for field in fields or ():
            _check_column(found, field, path, help)
        names = None if fields is None else fields.names
        table = pq.read_table(path, columns=names, filters=filters)
        table.validate(full=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = first_line(error)
        raise UserError(f"{path} is not a readable Parquet file ({reason}); {help}") from error
    for field in fields or ():
        if table[field.name].null_count and not field.nullable:
            raise UserError(f"{path} is damaged ({field.name} has gaps); {help}")
    return table


def _check_column(found: pa.Schema, field: pa.Field, path: Path, help: str) -> None:
    if found.get_field_index(field.name) < 0:  # as for a name that stands twice
        raise UserError(f"{path} is damaged (no column {field.name}); {help}")
    kind = found.field(field.name).type
    if kind != field.type and not (field.nullable and pa.types.is_null(kind)):
        raise UserError(f"{path} is damaged ({field.name} is {kind}); {help}")


def read_header(table: pa.Table) -> dict[str, Any]:
    """Return the header in the metadata of a table; empty where there is none."""
    try:
        header = json.loads((table.schema.metadata or {}).get(_KEY, b"null"))
    except ValueError:
        return {}
    return header if isinstance(header, dict) else {}


def write_table(
    path: Path, table: pa.Table, header: Mapping[str, Any] | None = None, compression: str = "zstd"
) -> None:
    """Write a Parquet file atomically. The same content gives the same bytes."""
    if header is not None:
        text = json.dumps(header, sort_keys=True, allow_nan=False)
        table = table.replace_schema_metadata({_KEY: text})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression=compression)
