"""Share of features that stay silent on held-out text.

python scripts/silent_features.py RUN [--tokens 50000] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from saefeat.collection import collect
from saefeat.corpora import make_plan
from saefeat.run import open_run, set_threads
from saefeat.statistics import Stats


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    set_threads()
    setting = open_run(arguments.run)
    budget = -(-arguments.tokens // len(setting.corpus.labels))
    plan = make_plan(
        setting.corpus, setting.lm, split="test", seed=setting.config.seed, max_tokens=budget
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = collect(setting.lm, plan, setting.saes, Path(folder))
        stats = {path.stem: Stats.load(path) for path in paths}
    silent = {
        name: round(float((s.fired.sum(0) == 0).float().mean()), 4) for name, s in stats.items()
    }
    result = {"tokens": plan.total, "silent": silent}
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
