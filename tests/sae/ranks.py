"""Run by `test_ranks.py` in each of several processes: what a rank computes, written to files."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from saefeat.config import TrainConfig
from saefeat.io import save_tensors
from saefeat.sae.chunks import Activations
from saefeat.sae.objectives.topk import INITIAL_NORM
from saefeat.sae.trainer import Trainer
from saefeat.world import World, join, world_of_environment

D_IN, TOKENS, STEPS = 16, 1024, 50
CONFIG = TrainConfig(k=4, d_sae=64, batch_size=64, dead_tokens=512, lr=1e-2, dtype="float64")


def vectors() -> torch.Tensor:
    """A chunk bfloat16 with an offset and an outlier."""
    x = torch.randn(TOKENS, D_IN, generator=torch.Generator().manual_seed(0)) * 3 + 1
    x[5] *= 100
    return x.bfloat16()


def held(world: World) -> Activations:
    """This rank's part of the chunk: every rank has runs of 40 vectors in turn."""
    x = vectors()
    rank = torch.arange(TOKENS) // 40 % world.size
    places = [(rank == each).nonzero().squeeze(-1) for each in range(world.size)]
    return Activations({"site": x[places[world.rank]]}, places, world)


def train(world: World, config: TrainConfig, steps: int) -> Trainer:
    """Steps on batches that are the same for any number of ranks."""
    part, trainer = held(world), Trainer(D_IN, config, STEPS, "cpu", world)
    trainer.parameters["b_enc"][:16] = -2.5 * INITIAL_NORM  # units that AuxK revives
    trainer.fit_scaler(part.buffers["site"])
    usable = part.places_of(trainer.usable(part.buffers["site"]))
    assert len(usable) == TOKENS - 1
    g = torch.Generator().manual_seed(1)
    for step in range(steps):
        drawn = usable[torch.randint(len(usable), (config.batch_size,), generator=g)]
        if step == 7:  # a batch of vectors that the first rank has
            drawn = usable[torch.arange(config.batch_size) % 30]
        trainer.step(*part.take("site", drawn))
    return trainer


def results(world: World) -> dict[str, torch.Tensor]:
    """State after all steps in float64, and gradients of the first step in float32."""
    with torch.inference_mode():
        found = train(world, CONFIG, STEPS).state()
        first = train(world, replace(CONFIG, dtype="float32"), 1)
        grads = {f"first.{k}": p.grad for k, p in first.parameters.items() if p.grad is not None}
        revived = train(world, CONFIG, 12).dead_share
    return found | grads | {"dead": torch.tensor(revived)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    world = world_of_environment()
    join(world, "cpu", 30)
    save_tensors(Path(sys.argv[1]) / f"{world.rank}.safetensors", results(world), {})
    world.barrier()
