"""Speed and memory of trainings on many GPUs, on paper; the formulas are checked on two processes.

    python scripts/simulate_training.py --out scripts/results/simulate_training.json

For each layout and number of GPUs: tokens/s per rank, the share of time in exchange, and memory per
rank. A chunk of activations is read (the forward passes are shared out over all ranks), exchanged,
and used in steps. Nothing overlaps. These are counted per weight of the encoder and per token:

- the encoder product, 2 flops per weight and token; the forward pass, 2 per weight of the model;
- traffic of memory: `WEIGHT_BYTES` per weight of the encoder and step, for casts, gradients,
  clipping and Adam; `UNIT_BYTES` per pre-activation; `ACTIVE_BYTES` per active unit and dimension;
- sums over n ranks: 2 (n - 1) / n times their bytes; gatherings: (n - 1) times those of each rank.

In the layouts over sites and over features, as many neighbouring ranks as there are sites or GPUs
of a node are one copy of the SAEs; the copies share each batch and sum gradients.

Rates are options. Their defaults are of the data sheet of NVIDIA's H100 SXM: 989 TFLOP/s (bfloat16,
dense), 3.35 TB/s of memory, NVLink of 900 GB/s, which is 450 GB/s in each direction; the network is
one link of 400 Gbit/s per GPU (50 GB/s), and ranks of a node that sum together use their links
together. Of each rate, the share `--reached` is taken for reached. The revival of dead units,
evaluation and checkpoints are not counted.

The check trains random vectors in one process and in two by gloo. The rates of matrix products,
memory and connection are measured first, and the same formulas predict the steps from them. It
needs two idle cores: ranks on CPUs share memory and caches with each other and with other work. Not
in the formulas is the first use of new memory, for which a CPU takes some 7 ms per 20 MB: an
exchange, whose messages and result are new, takes longer than predicted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from common import by_commas, median_seconds, options, record, show

from saefeat.config import TrainConfig
from saefeat.sae.chunks import Activations, gather_sites
from saefeat.sae.layouts import by_site, owned
from saefeat.sae.trainer import Trainer
from saefeat.world import ALONE, World, join, world_of_environment

# Per weight of the encoder and step, in bytes. There are two parameters per weight: encoder and
# decoder. Norms of the decoder 4; encoder times norms, and the cast to bfloat16, 4 + 4 + 4 + 2;
# gradients set 8; their norm 8 and their scaling 16; Adam reads 4 values and writes 3, 2 x 28.
WEIGHT_BYTES = 4 + 14 + 8 + 8 + 16 + 56
UNIT_BYTES = 2 * 3  # a pre-activation is written, and read by the two stages of the selection
ACTIVE_BYTES = 4 * 4  # reconstruction, products with the error, two gradients: float32 rows
LAYOUTS = ("data", "sites", "features")
NODE = 8  # GPUs of a node


@dataclass(frozen=True)
class Shape:
    """A training: its model, SAEs and batches."""

    weights: float  # of the blocks that are run, which a token passes
    bytes: float  # of the model in memory
    d_in: int
    d_sae: int
    sites: int
    k: int
    batch: int
    chunk: int
    passes: int


_LLAMA = Shape(0.973e9, 2.47e9, 2048, 131_072, 16, 32, 8192, 1_048_576, 1)
SHAPES = {
    "Llama-3.2-1B, 131k, 16 sites": _LLAMA,
    "Llama-3.2-1B, 131k, 16 sites, large batches": replace(_LLAMA, batch=65_536),
    "Gemma-3-270m, 2,560, 4 sites": Shape(72e6, 0.54e9, 640, 2560, 4, 32, 1024, 65_536, 2),
}


@dataclass(frozen=True)
class Rates:
    """What a rank reaches: flops/s, and bytes/s of its memory and connections.

    `wait` is the time that an exchange takes besides its bytes, per doubling of the ranks.
    """

    matrix: float
    memory: float
    near: float  # between GPUs of a node
    far: float  # between nodes
    wait: float


@dataclass(frozen=True)
class Split:
    """How ranks share the work: `copies` of the SAEs, of `parts` ranks each."""

    layout: str
    parts: int
    copies: int

    @property
    def size(self) -> int:
        return self.parts * self.copies


def split(layout: str, shape: Shape, size: int) -> Split:
    """As many ranks of a copy as there are sites, or GPUs of a node."""
    most = {"data": 1, "sites": shape.sites, "features": NODE}[layout]
    parts = math.gcd(size, most)
    return Split(layout, parts, size // parts)


# --------------------------------------------------------------------------- the formulas


def step_seconds(shape: Shape, parts: Split, rates: Rates) -> float:
    """Seconds of a step of all SAEs of a rank, without exchange."""
    tokens = shape.batch / parts.copies
    units = shape.d_sae / (parts.parts if parts.layout == "features" else 1)
    saes = math.ceil(shape.sites / parts.parts) if parts.layout == "sites" else shape.sites
    weights = shape.d_in * units
    active = tokens * shape.k / (parts.parts if parts.layout == "features" else 1)
    moved = WEIGHT_BYTES * weights + UNIT_BYTES * tokens * units
    moved += ACTIVE_BYTES * active * shape.d_in
    return saes * (2 * tokens * weights / rates.matrix + moved / rates.memory)


def step_exchange(shape: Shape, parts: Split, rates: Rates) -> tuple[float, float]:
    """Bytes that a rank sends in a step of all its SAEs, and the seconds that this takes."""
    tokens, among = shape.batch / parts.copies, parts.parts if parts.layout == "features" else 1
    saes = math.ceil(shape.sites / parts.parts) if parts.layout == "sites" else shape.sites
    weights = shape.d_in * shape.d_sae / among
    total, seconds = 0.0, 0.0
    if parts.copies > 1:  # gradients of encoder and decoder, and the counts of the batch
        sent = summed(4 * (2 * weights + 2 * shape.d_sae / among + 2 * shape.d_in), parts.copies)
        links = max(1, NODE // parts.parts)  # of the node, that the ranks of a sum use together
        rate = min(rates.near, links * rates.far) if parts.size > NODE else rates.near
        total += sent
        seconds += sent / rate + waits(5, parts.copies, rates)
    if among > 1:  # candidates of the selection, reconstructions, which units fired
        sent = (among - 1) * 4 * (tokens * shape.k + shape.d_sae / among)
        sent += summed(4 * (tokens + 1) * shape.d_in, among)
        total += sent
        seconds += sent / rates.near + waits(5, among, rates)
    return saes * total, saes * seconds


def chunk_exchange(shape: Shape, parts: Split, rates: Rates) -> tuple[float, float]:
    """Bytes of activations that a rank gets from the others of its copy, and the seconds."""
    if parts.parts == 1:
        return 0.0, 0.0
    sites = math.ceil(shape.sites / parts.parts) if parts.layout == "sites" else shape.sites
    rows = shape.chunk / parts.copies
    got = 2 * rows * shape.d_in * sites * (parts.parts - 1) / parts.parts
    copied = 4 * got * parts.parts / (parts.parts - 1)  # into one message, and out of it
    rate = rates.near if parts.parts <= NODE else rates.far
    turns = math.ceil(shape.sites / parts.parts) if parts.layout == "sites" else shape.sites
    return got, got / rate + copied / rates.memory + waits(turns, parts.parts, rates)


def summed(size: float, ranks: int) -> float:
    """Bytes that a rank sends when so many bytes are summed over ranks."""
    return 2 * (ranks - 1) / ranks * size


def waits(exchanges: int, ranks: int, rates: Rates) -> float:
    return exchanges * math.log2(ranks) * rates.wait


def memory(shape: Shape, parts: Split) -> float:
    """Bytes of memory of a rank: model, SAEs with optimiser and gradients, activations."""
    sites = math.ceil(shape.sites / parts.parts) if parts.layout == "sites" else shape.sites
    among = parts.parts if parts.layout == "features" else 1
    saes = 40 * sites * shape.d_in * shape.d_sae / among
    read = 2 * shape.chunk / parts.size * shape.sites * shape.d_in
    used = 2 * shape.chunk / parts.copies * sites * shape.d_in if parts.parts > 1 else 0
    return shape.bytes + saes + read + used


def simulate(shape: Shape, layout: str, size: int, rates: Rates) -> dict[str, Any]:
    """A row of the table: the time of a chunk and its parts."""
    parts = split(layout, shape, size)
    steps = max(1, round(shape.chunk * shape.passes / shape.batch))
    read = 2 * shape.weights * shape.chunk / size / rates.matrix
    work = steps * step_seconds(shape, parts, rates)
    sent, each = step_exchange(shape, parts, rates)
    got, once = chunk_exchange(shape, parts, rates)
    whole = read + work + steps * each + once
    return {
        "layout": layout,
        "gpus": size,
        "copies": parts.copies,
        "tokens_per_s_per_rank": round(shape.chunk / whole / size),
        "tokens_per_s": round(shape.chunk / whole),
        "exchange_share": round((steps * each + once) / whole, 3),
        "read_share": round(read / whole, 3),
        "gb_per_rank": round(memory(shape, parts) / 1e9, 1),
        "mb_per_step": round(sent / 1e6, 1),
        "gb_per_chunk": round(got / 1e9, 3),
        "tokens_per_rank_and_step": shape.batch // parts.copies,
    }


# --------------------------------------------------------------------------- the check


CHECK = Shape(0, 0, 640, 2560, 2, 32, 1024, 16_384, 1)
STEPS = 12


def rate_of(call: Callable[[], object], amount: float, rounds: int = 5) -> float:
    """Amount per second of a call, in the median of some rounds."""
    return amount / median_seconds(call, rounds)


def check_rank() -> None:
    """Measure rates and steps in this rank, and print them."""
    torch.set_num_threads(1)
    world = world_of_environment()
    join(world, "cpu", 300)
    found: dict[str, Any] = {}
    with torch.inference_mode():
        if world.size == 1:
            found = {"batch": {n: trained(replace(CHECK, batch=n), ALONE) for n in (1024, 512)}}
            found["matrix"] = matrix_rate()
        else:
            count = CHECK.d_in * CHECK.d_sae  # new values each time, as gradients are
            added = rate_of(lambda: world.add(torch.zeros(count)), summed(4 * count, world.size))
            found["near"] = added
            found["wait"] = 1 / rate_of(world.barrier, 1, 50)
            found["data"] = trained(CHECK, world)
            found["exchange"] = exchanged(world)
            found["sites"] = trained(replace(CHECK, sites=1), ALONE)
    world.barrier()
    show(found)


def matrix_rate() -> float:
    dtype = Trainer(16, TrainConfig(d_sae=256, k=4), 1, "cpu").dtype
    x, weight = (torch.ones(n, CHECK.d_in, dtype=dtype) for n in (512, CHECK.d_sae))
    return rate_of(lambda: x @ weight.t(), 2 * x.numel() * len(weight))


def trained(shape: Shape, world: World) -> float:
    """Seconds of a step of all SAEs of a shape, on a part of the batch if a world shares it."""
    config = TrainConfig(k=shape.k, d_sae=shape.d_sae, batch_size=shape.batch, aux=0.0)
    x = torch.randn(shape.batch // world.size, shape.d_in).bfloat16()
    places = None if world.size == 1 else torch.arange(world.rank, shape.batch, world.size)
    trainers = [Trainer(shape.d_in, config, 10_000, "cpu", world) for _ in range(shape.sites)]
    for trainer in trainers:
        trainer.fit_scaler(x)
    times = []
    for _ in range(STEPS):
        world.barrier()
        begun = time.perf_counter()
        for trainer in trainers:
            trainer.step(x, places)
        times.append(time.perf_counter() - begun)
    return sorted(times)[len(times) // 2]


def exchanged(world: World) -> float:
    """Seconds in which two ranks exchange the activations of a chunk, one site for each."""
    sites, rows = [f"s{i}" for i in range(CHECK.sites)], CHECK.chunk // world.size
    places = list(torch.arange(CHECK.chunk).split(rows))
    times = []
    for _ in range(5):
        held = {site: torch.ones(rows, CHECK.d_in, dtype=torch.bfloat16) for site in sites}
        world.barrier()
        begun = time.perf_counter()
        whole = gather_sites(Activations(held, places, world), sites, by_site(world))
        times.append(time.perf_counter() - begun)
        assert list(whole.buffers) == owned(sites, world)
    return sorted(times)[len(times) // 2]


def check() -> dict[str, Any]:
    """Predict the steps of two processes by the formulas, and compare with measured ones."""
    alone, both = start(1), start(2)
    one = float(alone["batch"]["1024"])
    rates = Rates(alone["matrix"], 1.0, both["near"], both["near"], both["wait"])
    products = step_seconds(CHECK, Split("data", 1, 1), replace(rates, memory=math.inf))
    moved = step_seconds(CHECK, Split("data", 1, 1), replace(rates, matrix=math.inf))
    rates = replace(rates, memory=moved / (one - products))
    small = replace(CHECK, batch=512)
    data, sites = Split("data", 1, 2), Split("sites", 2, 1)
    predicted = {
        "a step of half the batch, alone": step_seconds(small, Split("data", 1, 1), rates),
        "a step over data": step_seconds(CHECK, data, rates) + step_exchange(CHECK, data, rates)[1],
        "a step over sites": step_seconds(CHECK, sites, rates),
        "exchange of a chunk over sites": chunk_exchange(CHECK, sites, rates)[1],
    }
    measured = [alone["batch"]["512"], both["data"], both["sites"], both["exchange"]]
    rows = {
        name: {"predicted_ms": round(1e3 * guess, 2), "measured_ms": round(1e3 * found, 2)}
        for (name, guess), found in zip(predicted.items(), measured, strict=True)
    }
    for name, row in rows.items():
        show({name: row})
    return {"rates": asdict(rates), "whole_step_ms": round(1e3 * one, 2), "rows": rows}


def start(size: int) -> dict[str, Any]:
    """Run `check_rank` in so many processes; what the first of them prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--rank"],
            env=os.environ | {key: str(v) for key, v in (shared | {"RANK": rank}).items()},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a process of the check failed")
    return json.loads(outputs[0].splitlines()[-1])


# --------------------------------------------------------------------------- results


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    heads = ("layout", "GPUs", "copies", "tokens/s per rank", "in all", "exchange", "GB per rank")
    names = ("layout", "gpus", "copies", "tokens_per_s_per_rank", "tokens_per_s")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [f"{row[name]:,}" if name != "layout" else row[name] for name in names]
        cells += [f"{row['exchange_share']:.0%}", f"{row['gb_per_rank']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def simulated(arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    reached = arguments.reached
    rates = Rates(
        *(reached * arguments.matrix, reached * arguments.memory),
        *(reached * arguments.near, reached * arguments.far, arguments.wait),
    )
    sizes = [int(size) for size in by_commas(arguments.gpus)]
    found = {}
    for name, shape in SHAPES.items():
        shape = replace(shape, batch=arguments.batch or shape.batch)
        found[name] = [simulate(shape, how, n, rates) for n in sizes for how in LAYOUTS]
        print(f"\n{name}, {shape.batch:,} tokens per step\n\n{table(found[name])}\n")
    return found


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--gpus", default="8,64,512", help="numbers of GPUs, by commas")
    parser.add_argument("--matrix", type=float, default=989e12, help="flops/s, bfloat16")
    parser.add_argument("--memory", type=float, default=3.35e12, help="bytes/s")
    parser.add_argument("--near", type=float, default=450e9, help="bytes/s between GPUs of a node")
    parser.add_argument("--far", type=float, default=50e9, help="bytes/s between nodes, per GPU")
    parser.add_argument("--reached", type=float, default=0.5, help="share of these rates")
    parser.add_argument("--wait", type=float, default=2e-5, help="seconds of an exchange, per hop")
    parser.add_argument("--batch", type=int, help="tokens per step; default those of the shape")
    parser.add_argument("--no-check", action="store_true", help="without the two processes")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        check_rank()
        return
    found = {"simulated": simulated(arguments)}
    if not arguments.no_check:
        found["check"] = check()
    if arguments.out:
        record(arguments, found)


if __name__ == "__main__":
    main()
