"""Run by `test_ranks.py` in each of several processes: what a rank computes, written to files.

Its arguments are a directory, and layouts as words like `features:2`, with the number of replicas.
The variable DEVICE says where the ranks compute.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from saefeat.config import TrainConfig
from saefeat.io import save_tensors
from saefeat.sae.chunks import Activations, gather_sites
from saefeat.sae.layouts import Mesh, make_mesh
from saefeat.sae.objectives.topk import INITIAL_NORM, TopK
from saefeat.sae.trainer import Trainer
from saefeat.world import ALONE, World, join, leave, world_of_environment

D_IN, TOKENS, STEPS = 16, 1024, 50
CONFIG = TrainConfig(k=4, d_sae=64, batch_size=64, dead_tokens=512, lr=1e-2, dtype="float64")
SITES = ["one", "two"]
DEVICE = os.environ.get("DEVICE", "cpu")


def vectors(site: str) -> torch.Tensor:
    """A chunk bfloat16 with an offset and an outlier."""
    g = torch.Generator().manual_seed(SITES.index(site))
    x = torch.randn(TOKENS, D_IN, generator=g) * 3 + 1
    x[5] *= 100
    return x.bfloat16().to(DEVICE)


def held(mesh: Mesh) -> Activations:
    """What this rank trains on, of a chunk of which every rank has runs of 40 vectors in turn."""
    world = mesh.world
    rank = torch.arange(TOKENS) // 40 % world.size
    places = [(rank == each).nonzero().squeeze(-1).to(DEVICE) for each in range(world.size)]
    buffers = {site: vectors(site)[places[world.rank]] for site in SITES}
    return gather_sites(Activations(buffers, places, world), SITES, mesh)


def train(
    mesh: Mesh, site: str, config: TrainConfig
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Train on batches that are the same for any number of ranks.

    Returns the state at the end, and what was seen: the gradients of the first step, the FVU and
    the share of dead units after each.
    """
    part = held(mesh)
    trainer = Trainer(D_IN, config, STEPS, DEVICE, mesh.copies, mesh.split)
    first = torch.arange(config.d_sae or 0) < 16  # rows of units that AuxK revives
    trainer.parameters["b_enc"][trainer.objective.own_rows(first).to(DEVICE)] = -2.5 * INITIAL_NORM
    trainer.fit_scaler(part.buffers[site])
    usable = part.places_of(trainer.usable(part.buffers[site]))
    assert len(usable) == TOKENS - 1
    g, figures, seen = torch.Generator().manual_seed(1), [], {}
    for step in range(STEPS):
        drawn = usable[torch.randint(len(usable), (config.batch_size,), generator=g).to(DEVICE)]
        if step in (7, 12):  # a batch of vectors that the first rank has
            drawn = usable[torch.arange(config.batch_size, device=DEVICE) % 30]
        trainer.step(*part.take(site, drawn))
        figures.append([float(trainer.fvu), trainer.dead_share])
        if step == 0:
            seen = {f"first.{name}": p.grad for name, p in trainer.parameters.items()}
    seen["curve"], seen["dead"] = torch.tensor(figures).T.contiguous()
    return trainer.state(), seen


def results(mesh: Mesh) -> dict[str, torch.Tensor]:
    """For each site, or one that this rank trains, what comes of it in float64 and float32."""
    single = replace(CONFIG, dtype="float32")
    found = {}
    with torch.inference_mode():
        for site in mesh.trained(SITES)[: 1 if mesh.world.size > 1 else None]:
            last, double = train(mesh, site, CONFIG)
            _, curves = train(mesh, site, single)
            found |= {f"{site}:{name}": value for name, value in last.items()}
            seen = {**curves, "dead": double["dead"]}
            found |= {f"{site}:{name}": value for name, value in seen.items()}
    return {name: value.cpu() for name, value in found.items()}


def codes(split: World) -> dict[str, torch.Tensor]:
    """Codes [units of this rank, n] by dtype, most of them with ties, of a TopK SAE."""
    g = torch.Generator().manual_seed(3)
    x, encoder = (torch.randint(-2, 3, (n, D_IN), generator=g).double() for n in (200, 192))
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        objective = TopK(replace(CONFIG, k=60), dtype, split=split)
        if dtype == torch.float64:  # its ties are in no order
            x, encoder = (torch.randn(each.shape, generator=g).double() for each in (x, encoder))
        part = objective.own_rows(encoder)
        norms = torch.zeros_like(part)
        norms[:, 0] = 1
        kind = dtype if dtype == torch.float64 else torch.float32
        parameters = {"encoder": part.to(DEVICE, kind), "decoder": norms.to(DEVICE, kind)}
        parameters["b_enc"] = parameters["encoder"].new_zeros(len(part))
        values, rows = objective.select(x.to(DEVICE, kind), parameters)
        dense = values.new_zeros(len(x), len(part)).scatter_add(1, rows, values)
        found[f"codes.{dtype}"] = dense.t().cpu()
    return found


def through_the_host(call):
    """A collective whose tensors are moved to the CPU and back, because gloo takes no others."""

    def moved(found, sent, *sizes, group=None):
        several = found if isinstance(found, list) else [found]
        copies = [each.cpu() for each in several]
        call(copies if isinstance(found, list) else copies[0], sent.cpu(), *sizes, group=group)
        for each, copy in zip(several, copies, strict=True):
            each.copy_(copy)

    return moved


if __name__ == "__main__":
    torch.set_num_threads(1)
    world = world_of_environment()
    join(world, "cpu", 30)
    if DEVICE != "cpu":  # NCCL wants a GPU for each rank
        dist.all_gather = through_the_host(dist.all_gather)
        dist.all_to_all_single = through_the_host(dist.all_to_all_single)
    for word in sys.argv[2:]:
        layout, _, replicas = word.partition(":")
        mesh = make_mesh(world, layout, int(replicas))
        found = results(mesh) | (codes(mesh.split) if mesh.split is not ALONE else {})
        place = {"rank": mesh.split.rank, "size": mesh.split.size}
        save_tensors(Path(sys.argv[1]) / f"{word}-{world.rank}.safetensors", found, place)
    world.barrier()
    leave()
