"""Share of features that never fire on held-out text.

python scripts/silent_features.py RUN [--tokens 50000] [--out FILE]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from common import options, parse, record

from saefeat.collection import collect
from saefeat.corpora import make_plan
from saefeat.run import open_run
from saefeat.statistics import Stats


def main() -> None:
    parser = options(__doc__, run=True)
    parser.add_argument("--tokens", type=int, default=50_000)
    arguments = parse(parser)
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
    record(arguments, {"tokens": plan.total, "silent": silent})


if __name__ == "__main__":
    main()
