"""`saefeat train`."""

from __future__ import annotations

from typing import Annotated

import typer

from saefeat.cli.common import DryRun, Fields, Out, say, with_options
from saefeat.config import FollowConfig, TrainConfig, TrainInputs

_SHOWN = Fields(
    *("architecture", "d_sae", "expansion", "k", "passes", "batch_size", "chunk_tokens", "lr"),
    *("dead_tokens", "seed"),
)


@with_options
def train(
    inputs: TrainInputs,
    config: Annotated[TrainConfig, _SHOWN],
    follow: FollowConfig,
    out: Out,
    dry_run: DryRun = False,
) -> None:
    """Train SAEs for several sites from one stream of forward passes. Run again to resume."""
    from saefeat.run.training import describe_steps, describe_training, prepare_training
    from saefeat.sae.train import train_saes

    prepared = prepare_training(inputs, config, follow, say)
    if dry_run:
        say(describe_steps(prepared, config))
        return
    lm, plan, sites = prepared.lm, prepared.plan, prepared.sites
    for sae in train_saes(lm, plan, sites, out, config, follow=follow, say=say):
        typer.echo(f"{out / sae.id}: {describe_training(sae)}")
