"""Read Parquet files, with errors that name the file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from saefeat.io import UserError


def read_table(
    path: Path, columns: pa.Schema | None = None, nullable: Collection[str] = ()
) -> pa.Table:
    """Read a Parquet file.

    Args:
        columns: names and types of the columns to read; None: all columns, whatever they are.
        nullable: those of `columns` that may hold nulls.

    Raises:
        UserError: the file is missing or damaged, lacks one of the columns, or one of them has
            another type or holds nulls.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file")
    try:
        with pq.ParquetFile(path) as file:
            table = file.read(None if columns is None else columns.names)
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is not a readable Parquet file ({reason}); write it again"
        ) from error
    for field in columns or ():
        if table.schema.get_field_index(field.name) < 0:
            problem = "is missing"
        elif table.schema.field(field.name).type != field.type:
            problem = f"is of type {table.schema.field(field.name).type}, not {field.type}"
        elif field.name not in nullable and table[field.name].null_count:
            problem = "holds nulls"
        else:
            continue
        raise UserError(
            f"{path} is not what saefeat writes there (column {field.name} {problem}); "
            "write it again"
        )
    return table
