"""Parquet files of accumulators whose output is a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import with_config
from typing_extensions import TypedDict

from saefeat import parquet
from saefeat.io import SCHEMA
from saefeat.schema import STRICT, checked
from saefeat.statistics.base import Accumulator

_HELP = "collect it again"


@with_config(STRICT)
class Manifest(TypedDict):
    """What a table says of itself, in its metadata; `dictionary` is an id."""

    schema: int
    dictionary: str
    labels: list[str]


def write_rows(path: Path, columns: Mapping[str, Any], of: Accumulator) -> None:
    """Write the columns of an accumulator's table."""
    manifest = Manifest(schema=SCHEMA, dictionary=of.dictionary, labels=list(of.labels))
    parquet.write_table(path, pa.table(columns), manifest)


def read_rows(
    path: Path, fields: pa.Schema, filters: list[Any] | None = None
) -> tuple[pa.Table, Manifest]:
    """Read what `write_rows` wrote, as `parquet.read_table` does, and its manifest."""
    table = parquet.read_table(path, fields, filters, _HELP)
    return table, checked(Manifest, parquet.read_header(table), path, help=_HELP)
