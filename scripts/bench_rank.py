"""Time and memory of the rules that need counts alone, on statistics of many wide dictionaries.

    python scripts/bench_rank.py WORK --out scripts/results/bench_rank.json

The script writes below WORK random sparse counts of 16 dictionaries of 131,072 units with 15 labels
(1 GB), and counts of random tokens. A unit fires on a share of tokens that falls with its place,
like features of SAEs do; one unit in eight is of one label, and some are of all. Then each rule
ranks the units in a process of its own, whose time and greatest memory are measured.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import ROOT, options, parse, record, show

from saefeat.codes import STEP
from saefeat.corpora.random_tokens import LABEL
from saefeat.methods import METHODS
from saefeat.run import rank, set_threads
from saefeat.statistics import Stats
from saefeat.statistics.files import CONTROL

TOKENS, EXAMPLES = 100_000, 2_000  # of each label
# A name in the result -> the rule and its parameters.
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name, rule in METHODS.items() if not rule.accumulators},
    "lape, 400 per label": ("lape", {"per_label": 400}),
    "ternary, normalised": ("ternary", {"normalised": True}),
    "diffmean, by labels": ("diffmean", {"others": "labels"}),
    "diffmean, from a source": ("diffmean", {"source": "l00"}),
}


def make_stats(name: str, labels: tuple[str, ...], width: int, seed: int) -> Stats:
    """Random counts of a dictionary."""
    generator = torch.Generator().manual_seed(seed)
    k = len(labels)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    dictionary = {"id": name, "site": "mlp_out@0", "width": width, "kind": "sae"}
    stats = Stats.zeros(labels, width, dictionary=dictionary)
    # Most units fire on less than a thousandth of the tokens, a few on nearly all.
    rate = (uniform(width) ** 12)[None] * uniform(k, width)
    special = uniform(width) < 1 / 8
    owner = torch.randint(k, (width,), generator=generator)
    other = torch.arange(k)[:, None] != owner
    rate[other & special] *= 0.01
    fired = (rate * TOKENS).long()
    in_examples = (fired.double() * (0.3 + 0.7 * uniform(k, width))).long()
    value = (1 + 4 * uniform(k, width)) * (fired > 0)
    tensors = stats.tensors
    tensors["tokens"] += TOKENS
    tensors["examples"] += EXAMPLES
    tensors["fired"] += fired
    tensors["fired_examples"] += in_examples.clamp(max=EXAMPLES)
    tensors["sum"] += (fired.double() * value / STEP).long()
    for field in ("min", "max"):
        tensors[field].copy_(torch.where(fired > 0, value, tensors[field]))
    return stats


def write_stats(place: Path, dictionaries: int, labels: int, width: int) -> None:
    names = tuple(f"l{k:02d}" for k in range(labels))
    for number in range(dictionaries):
        name = f"sae-{number:02d}"
        for folder, of in ((place, names), (place / CONTROL, (LABEL,))):
            file = Stats.path(folder, name)
            if not file.exists():
                make_stats(name, of, width, number).save(file)


def measure(stats: Path, rule: str) -> None:
    """Rank by a rule, save the selection, and print what it took as JSON."""
    set_threads()
    name, parameters = RULES[rule]
    start = time.perf_counter()
    selection = rank(stats, name, dictionaries=["*"], **parameters)
    ranked = time.perf_counter()
    selection.save(stats.parent / f"{rule}.parquet")
    saved = time.perf_counter()
    status = Path("/proc/self/status").read_text()
    peaks = re.findall(r"VmHWM:\s+(\d+) kB", status)  # of this process, libraries included
    found = {"rank": round(ranked - start, 1), "save": round(saved - ranked, 1)}
    found |= {"peak": round(int(peaks[0]) * 1024 / 1e9, 2), "rows": len(selection)}
    print(json.dumps(found))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--dictionaries", type=int, default=16)
    parser.add_argument("--width", type=int, default=131_072)
    parser.add_argument("--labels", type=int, default=15)
    parser.add_argument("--rule", choices=RULES, help="measure this rule in this process")
    given = parse(parser)
    stats = given.work / "stats"
    if given.rule:
        measure(stats, given.rule)
        return
    write_stats(stats, given.dictionaries, given.labels, given.width)
    result: dict[str, Any] = {"units": "seconds and GB", "rules": {}}
    for rule in RULES:
        command = [sys.executable, __file__, str(given.work), "--rule", rule]
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if told.returncode:
            raise SystemExit(told.stderr)
        result["rules"][rule] = json.loads(told.stdout.splitlines()[-1])
        show({rule: result["rules"][rule]})
    record(given, result)


if __name__ == "__main__":
    main()
