"""`saefeat labels`: codes of languages from one system to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from saefeat.cli.common import print_table
from saefeat.cli.failures import flags_of
from saefeat.io import UserError


def labels(
    context: typer.Context,
    codes: Annotated[
        list[str], typer.Argument(help="Codes of any system, BCP-47 tags, English names.")
    ],
    to: Annotated[
        str | None,
        typer.Option(
            "--to", help="iso639-1, iso639-3, flores, nllb, wili, fasttext, name; default all."
        ),
    ] = None,
    from_system: Annotated[
        str | None, typer.Option("--from", help="The system of CODES, where two differ (als).")
    ] = None,
) -> None:
    """Show what labels are called in other code systems; / separates several possible codes.

    The row of a label that cannot be converted gives the reason, and the exit code is 2.
    """
    from saefeat.labels import SYSTEMS, codes_of

    for system in filter(None, (to, from_system)):
        codes_of(system)  # an unknown system is refused once, not in every row
    systems = [to] if to else list(SYSTEMS)
    rows, notes = [["label", *systems]], {}  # number of a row -> its note
    for code in codes:
        try:
            rows.append([code, *_codes(code, to, systems, from_system)])
        except UserError as error:
            if len(codes) == 1:
                raise
            notes[len(rows)] = f"{error}{flags_of(error, context.command)}"
            rows.append([code])
    print_table(rows, notes=notes)
    if notes:
        refused = ", ".join(rows[i][0] for i in notes)
        lack = f"no single code in {to}" if to else "no meaning"
        raise UserError(f"{lack} for {refused}; their rows give the reasons")


def _codes(code: str, to: str | None, systems: Sequence[str], from_system: str | None) -> list[str]:
    from saefeat.labels import convert, counterparts

    if to is not None:
        return [convert(code, to, from_system)]
    return ["/".join(counterparts(code, name, from_system)) or "-" for name in systems]
