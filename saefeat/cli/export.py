"""`saefeat export`: SAEs for other libraries, and the vector of one feature for other tools."""

from __future__ import annotations

from typing import Annotated

import typer

from saefeat.cli.common import Out
from saefeat.io import UserError
from saefeat.sae.writers import WRITERS


def export(
    source: Annotated[
        str, typer.Argument(metavar="SAE_OR_RUN", help="A run directory, or what --saes takes.")
    ],
    out: Out,
    form: Annotated[
        str | None, typer.Option("--format", help=f"{' or '.join(WRITERS)}: one folder per SAE.")
    ] = None,
    feature: Annotated[
        str | None,
        typer.Option("--feature", help="SAE:UNIT: its vector only, as .safetensors or .npy."),
    ] = None,
) -> None:
    """Write SAEs as other libraries open them, with a model card; or the vector of one feature."""
    if (form is None) == (feature is None):
        raise UserError(f"give either --format ({' or '.join(WRITERS)}) or --feature SAE:UNIT")
    from saefeat.export import export_direction, export_saes

    if feature is not None:
        about = export_direction(source, feature, out)
        typer.echo(
            f"{out}: unit {about['unit']} of {about['sae']} at {about['site']}, "
            f"norm {about['norm']:.4f}"
        )
    elif form is not None:
        for folder in export_saes(source, form, out):
            typer.echo(folder)
