"""Speed of generation with edits at several sites, as a share of plain generation.

    python scripts/bench_steering.py RUN --out scripts/results/bench_steering.json

`add` adds a vector at each of four sites, as features and the difference of means do. `ablate`
encodes every token with the run's SAEs and sets 100 features to zero at each of their sites. The
kinds are measured in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch
from common import in_turns, options, parse, record

from saefeat import steering
from saefeat.config import Decoding
from saefeat.generation import encode_prompts, generate
from saefeat.models import LanguageModel
from saefeat.run import open_run
from saefeat.run.grids import english_prompts
from saefeat.steering import Change, Schedule

WEAK = 0.05  # strength, so that edited texts do not end earlier


def seconds_per_token(
    lm: LanguageModel, ids: list[list[int]], changes: Mapping[str, Sequence[Change]], tokens: int
) -> float:
    start = time.monotonic()
    with steering.apply(lm, changes, WEAK, Schedule()):
        rows = generate(lm, ids, Decoding(max_new_tokens=tokens, temperature=0.0))
    return (time.monotonic() - start) / max(sum(map(len, rows)), 1)


def main() -> None:
    parser = options(__doc__, run=True)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parse(parser)
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
    measures: dict[str, Callable[[], float]] = {
        kind: lambda changes=changes: seconds_per_token(lm, ids, changes, arguments.tokens)
        for kind, changes in kinds.items()
    }
    times = {kind: median(some) for kind, some in in_turns(measures, arguments.rounds).items()}
    result = {
        "dtype": lm.dtype,
        "tokens_per_s": {kind: round(1 / value, 1) for kind, value in times.items()},
        "share_of_plain": {kind: round(times["plain"] / value, 3) for kind, value in times.items()},
    }
    record(arguments, result, lm.device)


if __name__ == "__main__":
    main()
