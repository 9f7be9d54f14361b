"""Speed of generation with edits at four sites, as a share of plain generation's tokens/s.

    python scripts/bench_steering.py RUN --out scripts/results/bench_steering.json

`add` puts a vector at each of four sites, as features and the difference of means do; `ablate`
encodes every token with the run's SAE and silences 100 features, at the SAEs' sites.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch

from saefeat import steering
from saefeat.config import Decoding
from saefeat.generation import encode_prompts, generate
from saefeat.models import LanguageModel
from saefeat.run import open_run, set_threads
from saefeat.run.grids import english_prompts
from saefeat.steering import Change, Schedule


def seconds(
    lm: LanguageModel, ids: list[list[int]], changes: Mapping[str, Sequence[Change]], tokens: int
) -> float:
    decoding = Decoding(max_new_tokens=tokens, temperature=0.0)
    start = time.monotonic()
    with steering.apply(lm, changes, 0.05, Schedule()):  # weak, so that texts do not end early
        rows = generate(lm, ids, decoding)
    return (time.monotonic() - start) / max(sum(map(len, rows)), 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    threads = set_threads()
    setting = open_run(arguments.run, with_corpus=False)
    lm = setting.lm
    ids = encode_prompts(lm, english_prompts()[: arguments.prompts], arguments.tokens)
    d = setting.saes[0].d_in
    depths = [lm.n_layers * i // 5 for i in (1, 2, 3, 4)]
    kinds: dict[str, dict[str, list[Change]]] = {
        "plain": {},
        "add at four sites": {
            f"resid_post@{at}": [steering.add(torch.randn(d, device=lm.device))] for at in depths
        },
        "ablate 100 features at each SAE": {
            s.site: [steering.ablate(s, range(100))]
            for s in (sae.to(lm.device) for sae in setting.saes)
        },
    }
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(arguments.rounds + 1):
        for kind, changes in kinds.items():
            taken[kind].append(seconds(lm, ids, changes, arguments.tokens))
    best = {kind: median(times[1:]) for kind, times in taken.items()}  # the first round warms up
    result = {
        "threads": threads,
        "dtype": lm.dtype,
        "tokens_per_s": {kind: round(1 / value, 1) for kind, value in best.items()},
        "share_of_plain": {kind: round(best["plain"] / value, 3) for kind, value in best.items()},
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
