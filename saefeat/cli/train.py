"""`saefeat train`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from saefeat.cli.common import DryRun, Fields, Out, say, say_plan, with_options
from saefeat.config import TrainConfig, TrainInputs

_SHOWN = Fields(
    *("architecture", "d_sae", "expansion", "k", "passes", "batch_size", "chunk_tokens", "lr"),
    *("dead_tokens", "seed"),
)


@with_options
def train(
    inputs: TrainInputs, config: Annotated[TrainConfig, _SHOWN], out: Out, dry_run: DryRun = False
) -> None:
    """Train SAEs for several sites from one stream of forward passes. Run again to resume."""
    from saefeat.corpora import make_plan
    from saefeat.run.opened import check_activations, load_inputs
    from saefeat.sae.objectives import check_config
    from saefeat.sae.train import train_saes

    check_config(config)
    lm, corpus = load_inputs(inputs, say)
    sites = list(inputs.sites)
    check_activations(lm, corpus, sites)
    plan = make_plan(corpus, lm, seed=config.seed, max_tokens=inputs.max_tokens, mixed=True)
    say_plan(lm, corpus, plan)
    if dry_run:
        _say_steps(lm, plan, sites, config)
        return
    for sae in train_saes(lm, plan, sites, out, config, say=say):
        typer.echo(f"{out / sae.id}: d_sae {sae.width}, {_describe_training(sae.record)}")


def _say_steps(lm: Any, plan: Any, sites: list[str], config: TrainConfig) -> None:
    from saefeat.hooks import site_width
    from saefeat.sae.train import plan_chunks, sae_width

    widths = {name: sae_width(config, site_width(lm, lm.site(name))) for name in sites}
    chunks = plan_chunks(plan, config)
    say(f"d_sae {widths}, {len(chunks)} chunks, {sum(chunk.steps for chunk in chunks)} steps")


def _describe_training(record: dict[str, Any]) -> str:
    average = record.get("training_average", record)  # older files have these figures only
    found = "FVU not measured, because no text is held out"
    if held := record.get("held_out"):
        found = f"{_quality(held)} on {held['tokens']:,} held-out tokens"
    return f"{found} (average over training: {_quality(average)}), dead {record['dead']:.1%}"


def _quality(figures: dict[str, Any]) -> str:
    return f"FVU {figures['fvu']:.3f}, L0 {figures['l0']:.1f}"
