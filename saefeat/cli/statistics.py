"""`saefeat collect` and `saefeat merge`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from saefeat.cli.common import DryRun, Out, say, say_plan, with_options
from saefeat.config import CollectConfig, SAEInputs
from saefeat.io import UserError


@with_options
def collect(inputs: SAEInputs, config: CollectConfig, out: Out, dry_run: DryRun = False) -> None:
    """Collect statistics of SAE features and neurons by label. Run again to resume."""
    from saefeat.run import collect as collect_all
    from saefeat.run.opened import check_activations, load_given, load_inputs
    from saefeat.run.stages import collected_neurons
    from saefeat.statistics import collected_kinds

    if not inputs.saes and not config.neurons:
        raise UserError("nothing to collect: give --saes or --neurons")
    collected_kinds(config.requested)  # refuses unknown names before the model is loaded
    lm, corpus = load_inputs(inputs, say)
    saes, gate = load_given(inputs, lm), bool(inputs.saes) and inputs.gate
    sites = [d.site for d in (*saes, *collected_neurons(lm, config))]
    check_activations(lm, corpus, sites, last_block=gate)
    if dry_run:
        _say_forecast(lm, corpus, saes, config, gate)
        return
    for path in collect_all(lm, corpus, saes, out=out, gate=gate, say=say, **asdict(config)):
        typer.echo(path)


def _say_forecast(lm: Any, corpus: Any, saes: list[Any], config: CollectConfig, gate: bool) -> None:
    from saefeat.run.forecast import forecast_collect
    from saefeat.run.stages import check_fit, collection_plan

    plan = collection_plan(lm, corpus, config)
    say_plan(lm, corpus, plan)
    if gate:
        check_fit(lm, saes, corpus, config.seed, say)
    say(forecast_collect(lm, saes, plan, config))


def merge(
    stats: Annotated[list[Path], typer.Argument(help="Directories of statistics, one per shard.")],
    out: Out,
) -> None:
    """Merge the statistics of shards."""
    from saefeat.statistics.merging import merge as merge_all

    for warning in merge_all(stats, out):
        say(f"warning: {warning}")
    typer.echo(out)
