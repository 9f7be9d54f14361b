"""Parquet files of accumulators whose output is a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from saefeat.io import SCHEMA, UserError, atomic_path
from saefeat.schema import STRICT, checked

_KEY = b"saefeat"


class Manifest(TypedDict):
    """What a table says of itself, in its metadata."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    schema: int
    dictionary: str
    labels: list[str]


def write_table(path: Path, table: Any, dictionary: str, labels: Sequence[str]) -> None:
    """Write a pyarrow table. `dictionary`: the id of the dictionary whose units it is of."""
    import pyarrow.parquet as pq

    manifest = Manifest(schema=SCHEMA, dictionary=dictionary, labels=list(labels))
    metadata = {_KEY: json.dumps(manifest, sort_keys=True)}
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")


def read_table(
    path: Path, columns: Mapping[str, str], filters: list[Any] | None = None
) -> tuple[Any, Manifest]:
    """Read what `write_table` wrote: the pyarrow table and its manifest.

    Args:
        columns: name -> type, as pyarrow writes it, of every column.
        filters: rows to read, as `pyarrow.parquet.read_table` takes them.

    Raises UserError when the file is damaged or has other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        found = {name: str(kind) for name, kind in zip(schema.names, schema.types, strict=True)}
        if found != columns or _KEY not in (schema.metadata or {}):
            raise UserError(f"{path} is not a table that saefeat writes there; collect it again")
        manifest = json.loads(schema.metadata[_KEY])
        table = pq.read_table(path, filters=filters)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a readable Parquet file; collect it again") from error
    if any(column.null_count for column in table.columns):
        raise UserError(f"{path} has an empty cell; collect it again")
    return table, checked(Manifest, manifest, path)
