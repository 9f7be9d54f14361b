"""`saefeat sites`: the places of a model where vectors can be read or written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import groupby
from typing import Annotated, Any

import typer

from saefeat.cli.common import print_table
from saefeat.config import MODEL

_COLUMNS = {  # key of a row -> heading
    "site": "site",
    "width": "width",
    "module": "module",
    "sparsify": "sparsify",
    "transformer_lens": "TransformerLens",
}


def sites(
    model: Annotated[str, typer.Argument(help=MODEL)],
    every: Annotated[bool, typer.Option("--all", help="Print each layer by itself.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per site, one per line.")
    ] = False,
) -> None:
    """Show every site of a model: its module, its width, its names in other tools.

    Weights are not loaded.
    """
    from saefeat.models import load_skeleton
    from saefeat.models.sites import MEANINGS, describe_sites

    rows = describe_sites(load_skeleton(model))
    if as_json:
        for row in rows:
            typer.echo(json.dumps({**row, "meaning": MEANINGS[row["kind"]]}))
        return
    shown = rows if every else list(_by_range(rows))
    table = [[str(row[key] or "-") for key in _COLUMNS] for row in shown if not row["refused"]]
    print_table([list(_COLUMNS.values()), *table])
    for row in shown:
        if row["refused"]:
            typer.echo(f"{row['site']}: {row['refused']}")
    for kind, meaning in MEANINGS.items():
        typer.echo(f"{kind}: {meaning}")


def _by_range(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Merge consecutive layers whose rows differ in the layer's number only; L stands for it."""

    def without_layer(row: dict[str, Any]) -> str:
        number = re.compile(rf"(?<=[.@]){row['layer']}(?!\d)")
        return number.sub("L", json.dumps({**row, "layer": None}))

    for text, group in groupby(rows, without_layer):
        row, layers = json.loads(text), [member["layer"] for member in group]
        span = f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else f"{layers[0]}"
        yield {**row, "site": f"{row['kind']}@{span}"}
