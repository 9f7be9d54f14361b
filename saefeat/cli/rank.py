"""`saefeat rank`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from saefeat.cli.common import Out, say
from saefeat.config import DEFAULT_METHOD
from saefeat.methods import METHODS


def rank(
    stats: Annotated[Path, typer.Argument(help="Directory of statistics.")],
    out: Out,
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}.")] = DEFAULT_METHOD,
    parameters: Annotated[
        list[str] | None, typer.Option("-p", help="name=value; may be repeated.")
    ] = None,
    dictionaries: Annotated[
        list[str] | None, typer.Option(help="Pattern of dictionary ids; may be repeated.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Units to print per label.")] = 3,
    lens: Annotated[
        bool, typer.Option("--lens/--no-lens", help="Print the tokens that units promote.")
    ] = True,
    certainty: Annotated[
        Path | None,
        typer.Option(
            help="Write q-values and intervals of the units here (.parquet or .csv); "
            "needs statistics collected --with responses."
        ),
    ] = None,
) -> None:
    """Rank units by how specific they are to a label. Writes Parquet, or CSV if --out ends so."""
    from saefeat.methods import parse_parameters
    from saefeat.run.stages import rank_into

    given = parse_parameters(method, parameters or [])
    selection = rank_into(out, stats, method, dictionaries=dictionaries, **given)
    print_counts(out, selection)
    if certainty:
        _measure(selection, stats, certainty)
    if show:
        _print_units(stats, selection, show, lens)


def print_counts(out: Path, selection: Any) -> None:
    """Print the number of units per label of a selection that was written."""
    counts = [f"{label} {count}" for label, count in selection.counts().items()]
    typer.echo(f"{out}: {len(selection)} rows; {', '.join(counts)}")


def _measure(selection: Any, stats: Path, out: Path) -> None:
    from saefeat.run.certainty import certainty_into

    found = certainty_into(out, selection, stats, say=say)
    stable = ", ".join(f"{label} {share:.2f}" for label, share in found.stability.items())
    chosen, tested = found.significant()
    typer.echo(f"{out}: q < .05 for {chosen:.1%} of the rows, {tested:.1%} of all units that fire")
    if stable:
        typer.echo(f"units that two halves of the texts agree on: {stable}")


def _print_units(stats: Path, selection: Any, show: int, lens: bool) -> None:
    from saefeat.run.shown import load_for_lens, shown_units
    from saefeat.rundir import examples_of

    if lens:
        say("loading the model for the tokens that units promote (--no-lens skips it)")
    lm, saes = load_for_lens(selection, stats, say) if lens else (None, {})
    for row in shown_units(lm, selection, saes, examples_of(stats), show):
        for line in _describe(row):
            typer.echo(line)


def _describe(row: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{row['label']} {row['rank']}. {row['dictionary']}:{row['unit']}  "
        f"score {row['score']:.4f}  p {row['probability']:.4f}"
    )
    if row["tokens"]:
        tokens = (json.dumps(token, ensure_ascii=False) for token in row["tokens"])
        yield f"    promotes {' '.join(tokens)}"
    for passage in row["passages"][:1]:
        yield f"    fires on [{passage['label']}] {passage['text'][:160]}"
