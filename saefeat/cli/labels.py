"""`saefeat labels`: codes of languages from one system to another."""

from __future__ import annotations

from typing import Annotated

import typer


def labels(
    codes: Annotated[list[str], typer.Argument(help="Codes of any system, BCP-47 tags, English names.")],
    to: Annotated[
        str | None, typer.Option("--to", help="iso639-1, iso639-3, flores, nllb, wili, fasttext, name; default all.")
    ] = None,
    source: Annotated[str | None, typer.Option("--from", help="The system of CODES, where two differ (als).")] = None,
) -> None:
    """What labels are called in another code system; / separates what a label leaves open."""
    from saefeat.labels import SYSTEMS, convert, counterparts

    if to is not None:
        rows = [[code, convert(code, to, source)] for code in codes]
    else:
        rows = [[code, *("/".join(counterparts(code, name, source)) or "-" for name in SYSTEMS)] for code in codes]
    rows = [["label", *([to] if to else SYSTEMS)], *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
