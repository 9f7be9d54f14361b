"""`saefeat labels`: codes of languages from one system to another."""

from __future__ import annotations

from typing import Annotated

import typer

from saefeat.io import UserError


def labels(
    codes: Annotated[
        list[str], typer.Argument(help="Codes of any system, BCP-47 tags, English names.")
    ],
    to: Annotated[
        str | None,
        typer.Option(
            "--to", help="iso639-1, iso639-3, flores, nllb, wili, fasttext, name; default all."
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="The system of CODES, where two differ (als).")
    ] = None,
) -> None:
    """What labels are called in another code system; / separates what a label leaves open.

    A label that cannot be converted has the reason in its row, and the exit code is 2.
    """
    from saefeat.labels import SYSTEMS, codes_of, convert, counterparts

    for system in filter(None, (to, source)):
        codes_of(system)  # an unknown one is refused once, not in every row
    rows = [["label", *([to] if to else SYSTEMS)]]
    refused: dict[str, str] = {}
    for code in codes:
        try:
            if to is not None:
                rows.append([code, convert(code, to, source)])
            else:
                rows.append(
                    [code, *("/".join(counterparts(code, name, source)) or "-" for name in SYSTEMS)]
                )
        except UserError as error:
            if len(codes) == 1:
                raise
            refused[code] = str(error)
            rows.append([code])
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        typer.echo("  ".join([*cells, *([refused[row[0]]] if len(row) == 1 else [])]).rstrip())
    if refused:
        have = f"one code in {to}" if to else "a meaning"
        raise UserError(f"without {have}: {', '.join(refused)}; their rows say why")
