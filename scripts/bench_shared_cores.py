"""Speed of a process that shares its cores, by how long threads spin while they wait.

    python scripts/bench_shared_cores.py --out scripts/results/bench_shared_cores.json

Each process generates text and measures losses with the embedded model on all cores. One process
runs alone, or two run at the same time; `default` spins as long as libgomp does by itself,
`saefeat` as `saefeat.cli` sets it. The settings take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median
from typing import Any

from common import options, parse, record, show

from saefeat.cli import SPINS
from saefeat.generation import Decoding, encode_prompts, generate, losses_by_label
from saefeat.models import load_model
from saefeat.run.grids import english_prompts

MODEL, PROMPTS, TOKENS, REPEATS = "embedded:gemma-3-270m", 16, 16, 3
SETTINGS = {"default": "300000", "saefeat": SPINS}  # GOMP_SPINCOUNT


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parse(parser)
    if arguments.work:
        print(json.dumps(work()))
        return
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for _ in range(arguments.rounds):
        for count, name in ((1, "alone"), (2, "two")):
            for setting, spins in SETTINGS.items():
                found.setdefault(name, {}).setdefault(setting, []).extend(run(spins, count))
    seconds = {
        name: {
            setting: {part: median(one[part] for one in some) for part in some[0]}
            for setting, some in settings.items()
        }
        for name, settings in found.items()
    }
    ratios = {
        name: {part: each["saefeat"][part] / each["default"][part] for part in each["default"]}
        for name, each in seconds.items()
    }
    result = {"seconds": seconds, "saefeat_over_default": ratios, "each": found}
    show({"seconds": seconds, "saefeat_over_default": ratios})
    record(arguments, result)


def run(spins: str, count: int) -> list[dict[str, float]]:
    """Run the work in processes at the same time; the seconds of each."""
    environment = {**os.environ, "GOMP_SPINCOUNT": spins}
    command = [sys.executable, __file__, "--work"]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    return [json.loads(process.communicate()[0]) for process in started]


def work() -> dict[str, Any]:
    """Median seconds of each part, of several repetitions."""
    lm, prompts = load_model(MODEL), english_prompts()
    ids = encode_prompts(lm, prompts[:PROMPTS], TOKENS)
    texts = {"en": [" ".join(prompts[i : i + 4]) for i in range(0, 40, 4)]}
    spent: dict[str, list[float]] = {"generate": [], "losses": []}
    for _ in range(REPEATS):
        begun = time.perf_counter()
        generate(lm, ids, Decoding(max_new_tokens=TOKENS))
        spent["generate"].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        losses_by_label(lm, texts)
        spent["losses"].append(time.perf_counter() - begun)
    return {part: median(some) for part, some in spent.items()}


if __name__ == "__main__":
    main()
