"""`saefeat export`: SAEs for other libraries, and the vector of one feature for other tools."""

from __future__ import annotations

from typing import Annotated

import typer

from saefeat.cli.common import Out
from saefeat.io import UserError


def export(
    source: Annotated[
        str, typer.Argument(metavar="SAE_OR_RUN", help="A run directory, or what --saes takes.")
    ],
    out: Out,
    form: Annotated[
        str | None, typer.Option("--format", help="sae-lens or sparsify: one folder per SAE.")
    ] = None,
    feature: Annotated[
        str | None,
        typer.Option("--feature", help="SAE:UNIT: its vector only, as .safetensors or .npy."),
    ] = None,
) -> None:
    """Write SAEs as other libraries open them, with a model card; or the vector of one feature."""
    if (form is None) == (feature is None):
        raise UserError("give either --format sae-lens or sparsify, or --feature SAE:UNIT")
    from saefeat.sae.export import export_direction, export_saes

    if feature is not None:
        about = export_direction(source, feature, out)
        typer.echo(
            f"{out}: unit {about['unit']} of {about['sae']} at {about['site']}, "
            f"norm {about['norm']:.4f}"
        )
    elif form is not None:
        for folder in export_saes(source, form, out):
            typer.echo(folder)
