"""`saefeat compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saefeat.cli.common import load_run, print_table, say, with_options
from saefeat.config import CompareConfig
from saefeat.io import UserError

if TYPE_CHECKING:
    from saefeat.artefacts.comparison import Comparison

_HEAD = ("pool", "rule", "units", "halves", "F1", "F1 20", "ablation", "random", "steering")


@with_options
def compare(
    config: CompareConfig,
    run: Annotated[Path | None, typer.Argument(help="Directory of a run.")] = None,
    stats: Annotated[
        Path | None, typer.Option(help="Statistics; without a run, these alone are compared.")
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
    from saefeat.run.compare import compare as compare_rules
    from saefeat.run.compare import compare_stats

    if run is not None:
        result = compare_rules(load_run(run), config, source=stats, out=out)
    elif stats is not None and out is not None:
        result = compare_stats(stats, out, config, say=say)
    else:
        raise UserError("give the directory of a run, or --stats and --out")
    print_comparison(result)


def print_comparison(result: Comparison) -> None:
    """Print a row per rule and pool."""
    rows: list[list[str]] = [list(_HEAD)]
    for row in result["rows"]:
        counts = list(row["units"].values())
        found, ablation, steering = row["identification"], row["ablation"], row["steering"]
        rows.append(
            [
                row["pool"],
                row["method"],
                f"{sum(counts) / max(len(counts), 1):.0f}",
                f"{row['stability']['mean']:.2f}" if row["stability"] else "-",
                f"{found['all']['f1_macro']:.3f}" if found else "-",
                f"{found['20']['f1_macro']:.3f}" if found else "-",
                f"{ablation['selectivity']:.3f}" if ablation else "-",
                f"{ablation['random']:.3f}" if ablation else "-",
                f"{steering['score']:.3f} ({steering['random']:.3f})" if steering else "-",
            ]
        )
    print_table(rows, right=range(2, len(_HEAD)))
    for left in result["left_out"]:
        typer.echo(f"left out: {left['pool']} {left['method']}: {left['reason']}")
