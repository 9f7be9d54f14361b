"""`saefeat demo`, `run`, `report` and `fetch`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from saefeat.cli.common import DryRun, Fields, Out, say, with_options
from saefeat.cli.lid import print_metrics
from saefeat.cli.steer import print_steering
from saefeat.config import DEMO, RunConfig
from saefeat.io import UserError


@with_options
def demo(
    config: Annotated[RunConfig, Fields("model", "labels", "seed", "device", "dtype", preset=DEMO)],
    out: Out,
    dry_run: DryRun = False,
) -> None:
    """Run the whole path on an embedded model and the embedded text in 15 languages."""
    from saefeat.corpora import PAPER_LABELS

    _run(replace(config, labels=config.labels or PAPER_LABELS), out, dry_run)


@with_options
def run(context: typer.Context, config: RunConfig, out: Out, dry_run: DryRun = False) -> None:
    """Run the whole path on a model and a corpus. SAEs are trained when none are given."""
    for name in ("sites", "d_sae", "k", "train_tokens") if config.saes else ():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UserError(
                f"--saes takes SAEs that exist, --{name.replace('_', '-')} is for new ones: give "
                "one or the other"
            )
    _run(config, out, dry_run)


def _run(config: RunConfig, out: Path, dry_run: bool) -> None:
    from saefeat.run import run as run_all
    from saefeat.rundir import RunDir

    report = run_all(config, out, say=say, dry_run=dry_run)
    if report is None:
        return
    files = RunDir(out)
    print_metrics(files.load_lid_metrics())
    if files.steering_metrics.exists():
        print_steering(files.load_steering_metrics())
    typer.echo(f"report: {report}")


def report(run: Annotated[Path, typer.Argument(help="Run directory.")]) -> None:
    """Write RUN/report.html, one self-contained page."""
    from saefeat.report import write_report

    typer.echo(write_report(run))


def fetch(
    assets: Annotated[list[str] | None, typer.Argument(help="Assets; default all.")] = None,
) -> None:
    """Fetch embedded assets into the cache (SAEFEAT_CACHE) ahead of time."""
    from saefeat.assets import ASSETS
    from saefeat.assets import fetch as fetch_asset
    from saefeat.models.conversion import convert

    names = assets or list(ASSETS)
    for name in names:
        if name not in ASSETS:
            raise UserError(f"unknown asset {name}; there are {', '.join(ASSETS)}")
    for name in names:
        typer.echo(ASSETS[name].describe())
        path = fetch_asset(name, recheck=True, say=say)
        typer.echo(f"  {path}")
        if path.suffix == ".gguf":
            typer.echo(f"  {convert(path, name, say)}")
