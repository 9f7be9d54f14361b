"""Speed of several ranks that train SAEs, against one process with as many threads.

    python scripts/bench_ranks.py --out scripts/results/bench_ranks.json

The job is that of `train/configs/gemma-3-270m.toml` with fewer tokens. One process with R threads
and R ranks with one thread each train the same SAEs in turns, and nothing else should run. Counted
is the time of `train_saes`, from a barrier on: reading, steps, exchange, the fit to held-out text,
and writing. Loading is not. Tokens/s are the counted tokens of the text over these seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from common import ROOT, by_commas, in_turns, options, record, show

CONFIG = Path("train/configs/gemma-3-270m.toml")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG, help="what is trained, in TOML")
    parser.add_argument("--max-tokens", type=int, default=1200, help="counted tokens per label")
    parser.add_argument("--chunk-tokens", type=int, default=32_768)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layouts", default="sites,data", help="by commas")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments.one)
        return
    delattr(arguments, "one")
    work = Path(tempfile.mkdtemp(prefix="bench-ranks-"))
    try:
        record(arguments, compare(arguments, work))
    finally:
        shutil.rmtree(work)


def compare(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure one process and the layouts of several in turns."""
    layouts, rows = by_commas(arguments.layouts), []

    def total(name: str, ranks: int) -> float:
        found = run(arguments, work, name, ranks)
        rows.append({"what": name, **found})
        show(rows[-1])
        return found["tokens_per_s"]

    measures = {"one": partial(total, "one", 1)}
    measures |= {name: partial(total, name, arguments.ranks) for name in layouts}
    found = in_turns(measures, arguments.rounds)
    pairs = {
        name: [mine / alone for mine, alone in zip(found[name], found["one"], strict=True)]
        for name in layouts
    }
    return {
        "tokens_per_s": {name: median(values) for name, values in found.items()},
        "share_of_one": {name: median(values) for name, values in pairs.items()},
        "pairs": pairs,
        "rows": rows,
    }


def run(arguments: argparse.Namespace, work: Path, name: str, ranks: int) -> dict[str, Any]:
    """Train once in so many processes; what the first of them has measured."""
    job = tomllib.loads((ROOT / arguments.config).read_text())
    out, path = work / "out", work / "job.json"
    changes = {"max_tokens": arguments.max_tokens, "chunk_tokens": arguments.chunk_tokens}
    changes |= {"out": str(out), "threads": arguments.ranks // ranks, "device": "cpu"}
    changes |= {"layout": name if ranks > 1 else "sites"}
    path.write_text(json.dumps(job | changes))
    shutil.rmtree(out, ignore_errors=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": port, "OMP_NUM_THREADS": arguments.ranks // ranks}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--one", str(path)],
            cwd=ROOT,
            env=os.environ | {key: str(value) for key, value in place.items()},
            stdout=subprocess.PIPE,
            text=True,
        )
        for place in ({**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(ranks))
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{name} failed")
    return json.loads(outputs[0].splitlines()[-1])


def measure(path: Path) -> None:
    """Train in this rank, and print the seconds and those of each part."""
    from saefeat.run.training import prepare_training, read_job
    from saefeat.sae import train
    from saefeat.sae.checkpoints import Checkpoints
    from saefeat.world import World, join, world_of_environment

    job, world = read_job(path), world_of_environment()
    spent: defaultdict[str, float] = defaultdict(float)

    def time_calls(owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def timed(*given: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            found = call(*given, **named)
            spent[{"_save": "end"}.get(name, name)] += time.perf_counter() - begun
            return found

        setattr(owner, name, timed)

    for owner, name in (
        *((train, "read_chunk"), (train, "gather_sites"), (train, "_save")),
        *((Checkpoints, "save"), (World, "any"), (World, "add"), (World, "concat")),
    ):
        time_calls(owner, name)
    join(world, "cpu", job.ranks.timeout_seconds)
    prepared = prepare_training(
        *(job.inputs, job.training, job.follow), processes=world.size, threads=job.ranks.threads
    )
    world.barrier()
    spent.clear()
    begun = time.perf_counter()
    train.train_saes(
        *(prepared.lm, prepared.plan, prepared.sites, job.out, job.training),
        world=world,
        layout=job.ranks.layout,
        checkpoint_seconds=job.ranks.checkpoint_seconds,
    )
    took = time.perf_counter() - begun
    tokens = prepared.plan.total
    show(
        {
            "tokens": tokens,
            "seconds": round(took, 2),
            "tokens_per_s": round(tokens / took, 1),
            "load": os.getloadavg()[0],
            "parts": {name: round(seconds, 2) for name, seconds in spent.items()},
        }
    )
    world.barrier()


if __name__ == "__main__":
    main()
