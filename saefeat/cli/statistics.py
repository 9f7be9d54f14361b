"""`saefeat collect` and `saefeat merge`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from saefeat.cli.common import DryRun, Out, say, with_options
from saefeat.cli.ranks import PATIENCE
from saefeat.config import CollectConfig, SAEInputs
from saefeat.io import UserError
from saefeat.progress import Say, quiet

# Seconds for which a process that has counted its windows waits for the others. One that dies or
# does nothing ends it sooner.
WAITING = 7 * 86_400


@with_options
def collect(
    context: typer.Context,
    inputs: SAEInputs,
    config: CollectConfig,
    out: Out,
    dry_run: DryRun = False,
) -> None:
    """Collect statistics of SAE features and neurons by label. Run again to resume.

    Several processes collect together where torchrun or Slurm starts them.
    """
    from saefeat.run import collect as collect_all
    from saefeat.statistics import collected_kinds
    from saefeat.world import own_device, world_of_environment

    if not inputs.saes and not config.neurons:
        raise UserError("nothing to collect: give --saes or --neurons")
    collected_kinds(config.requested)  # refuses unknown names before the model is loaded
    world, together = world_of_environment(), {}
    inputs = replace(inputs, device=own_device(inputs.device, world))
    if dry_run and not world.leads:
        return
    if world.size > 1 and not dry_run:
        stop = context.obj.connect(world, "cpu", WAITING, PATIENCE)
        together = {"world": world, "stop": stop}
    speak = say if world.leads else quiet
    lm, corpus, saes = _load(inputs, config, world.local_size, speak)
    if dry_run:
        _say_forecast(lm, corpus, saes, config, inputs)
        return
    if world.size > 1:
        speak(f"{world.size} processes" + (f" of {lm.threads} threads" if lm.threads else ""))
    options = {"gate": inputs.gate, "say": speak, **together, **asdict(config)}
    for path in collect_all(lm, corpus, saes, out=out, **options):
        if world.leads:
            typer.echo(path)
    context.obj.finish()


def _load(
    inputs: SAEInputs, config: CollectConfig, processes: int, say: Say
) -> tuple[Any, Any, list[Any]]:
    """The model, the corpus and the SAEs of a collection, whose activations are checked."""
    from saefeat.run.opened import check_activations, load_given, load_inputs
    from saefeat.run.stages import collected_neurons

    lm, corpus = load_inputs(inputs, say, processes=processes)
    saes = load_given(inputs, lm)
    sites = [d.site for d in (*saes, *collected_neurons(lm, config))]
    check_activations(lm, corpus, sites, last_block=bool(saes) and inputs.gate)
    return lm, corpus, saes


def _say_forecast(
    lm: Any, corpus: Any, saes: list[Any], config: CollectConfig, inputs: SAEInputs
) -> None:
    from saefeat.run.forecast import forecast_collect
    from saefeat.run.opened import say_plan
    from saefeat.run.stages import check_fit, collection_plan

    plan = collection_plan(lm, corpus, config)
    say_plan(lm, plan, say)
    if saes and inputs.gate:
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
