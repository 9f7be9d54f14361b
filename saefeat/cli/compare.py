"""`saefeat compare`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saefeat.cli.common import load_run, print_table, say, with_options
from saefeat.config import CompareConfig
from saefeat.io import UserError

if TYPE_CHECKING:
    from saefeat.artefacts.comparison import Comparison

_HEAD = ("pool", "rule", "units", "labels", "stability", "F1", "F1 20", "selectivity", "steering")


@with_options
def compare(
    config: CompareConfig,
    run: Annotated[Path | None, typer.Argument(help="Directory of a run.")] = None,
    stats: Annotated[
        Path | None,
        typer.Option(help="Statistics in place of the run's; without a run, these alone."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the result; default RUN/compare.")
    ] = None,
) -> None:
    """Lay all rules that choose units side by side, at equal numbers of units.

    By label: how many units, how far two halves of the texts agree, identification by the chosen
    units alone, how much the label's own text suffers without them, and steering with them. Random
    units stand beside each. Run it again to resume.
    """
    from saefeat.run.compare import compare_rules, compare_stats

    if run is not None:
        result = compare_rules(load_run(run), config, source=stats, out=out)
    elif stats is not None and out is not None:
        result = compare_stats(stats, out, config, say=say)
    else:
        raise UserError("give the directory of a run, or --stats and --out")
    print_comparison(result)
    place = out or (run or Path()) / "compare"
    typer.echo(f"{place}: metrics.json, with intervals, and the selections")


def print_comparison(result: Comparison) -> None:
    """Print a row per rule and pool."""
    rows: list[list[str]] = [list(_HEAD)]
    for row in result["rows"]:
        counts = list(row["units"].values())
        lengths, ablation, steering = row["identification"], row["ablation"], row["steering"]
        rows.append(
            [
                row["pool"],
                row["method"],
                f"{sum(counts) / max(len(counts), 1):.0f}",
                str(sum(count > 0 for count in counts)),
                f"{row['stability']['mean']:.2f}" if row["stability"] else "-",
                _beside(lengths and lengths["all"], "f1_macro"),
                _beside(lengths and lengths["20"], "f1_macro"),
                _beside(ablation, "selectivity"),
                _beside(steering, "score"),
            ]
        )
    print_table(rows, right=range(2, len(_HEAD)))
    if "measured" in result:
        typer.echo("in brackets: as many random units; means over the labels that have units")
    for left in result["left_out"]:
        reason = f"left out: {left['pool']} {left['method']}: {left['reason']}"
        typer.echo(f"{reason} (saefeat {left['command']})" if left["command"] else reason)


def _beside(values: Mapping[str, Any] | None, name: str) -> str:
    """A figure, and that of random units."""
    return f"{values[name]:.3f} ({values['random']:.3f})" if values else "-"
