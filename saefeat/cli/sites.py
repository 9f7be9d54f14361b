"""`saefeat sites`: the places of a model where vectors can be read or written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import groupby
from typing import Annotated, Any

import typer

from saefeat.cli.common import say

_COLUMNS = ("site", "width", "module", "sparsify", "transformer_lens")


def sites(
    model: Annotated[
        str, typer.Argument(help="Hub id, directory, .gguf file, or embedded:gemma-3-270m.")
    ],
    every: Annotated[bool, typer.Option("--all", help="Each layer by itself.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One object a line, each layer by itself.")
    ] = False,
) -> None:
    """Every site of a model: its module, its width, its name in other tools. Weights are not loaded."""
    from saefeat.models import load_skeleton
    from saefeat.models.sites import MEANINGS, describe_sites

    rows = [
        {**row, "meaning": MEANINGS[row["kind"]]}
        for row in describe_sites(load_skeleton(model, say))
    ]
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    shown = rows if every else list(_by_range(rows))
    _print_table([row for row in shown if not row["refused"]])
    for row in shown:
        if row["refused"]:
            typer.echo(f"{row['site']}: {row['refused']}")
    for kind, meaning in MEANINGS.items():
        typer.echo(f"{kind}: {meaning}")


def _by_range(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Runs of layers that differ in nothing but their number as one row, with L for the number."""

    def general(row: dict[str, Any]) -> dict[str, Any]:
        number = re.compile(rf"(?<=[.@]){row['layer']}(?!\d)")
        return {
            k: number.sub("L", v) if isinstance(v, str) else v
            for k, v in row.items()
            if k != "layer"
        }

    for row, run in groupby(rows, general):
        layers = [member["layer"] for member in run]
        span = f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else f"{layers[0]}"
        yield {**row, "site": f"{row['kind']}@{span}"}


def _print_table(rows: list[dict[str, Any]]) -> None:
    head = dict(
        zip(_COLUMNS, ("site", "width", "module", "sparsify", "TransformerLens"), strict=True)
    )
    lines = [
        [str(row[name] if row[name] is not None else "-") for name in _COLUMNS]
        for row in [head, *rows]
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    for line in lines:
        typer.echo(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
