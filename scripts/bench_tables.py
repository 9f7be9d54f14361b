"""Speed of a collection with each accumulator on request, as a share of the speed without.

    python scripts/bench_tables.py --out scripts/results/bench_tables.json

Collections of all hidden neurons and one SAE of random weights, written to disk, take turns. The
share is that of the best rounds, because other work on the machine only slows a round down.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_collect import make_sae
from common import by_commas, in_turns, options, parse, record, show

from saefeat.collection import collect
from saefeat.corpora import PAPER_LABELS, Plan, load_corpus, make_plan
from saefeat.dictionaries import Dictionary
from saefeat.models import LanguageModel, load_model
from saefeat.run import neurons
from saefeat.statistics import ACCUMULATORS


def collecting(
    lm: LanguageModel, plan: Plan, dictionaries: list[Dictionary], name: str, sizes: dict[str, int]
) -> Callable[[], float]:
    """A call that collects with an accumulator (none for an empty name), and times it."""

    def call() -> float:
        out = Path(tempfile.mkdtemp())
        places = {name: out / ACCUMULATORS[name].FOLDER} if name else {}
        start = time.perf_counter()
        collect(lm, plan, dictionaries, out, places=places)
        found = time.perf_counter() - start
        if name:
            files = places[name].rglob("*")
            sizes[name] = sum(file.stat().st_size for file in files if file.is_file())
        shutil.rmtree(out)
        return found

    return call


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", default="embedded:gemma-3-270m")
    parser.add_argument("--site", default="mlp_out@5")
    parser.add_argument(
        "--with", dest="names", default="responses,patterns,importances,distributions"
    )
    parser.add_argument("--max-tokens", type=int, default=800)
    parser.add_argument("--expansion", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parse(parser)
    lm = load_model(arguments.model)
    plan = make_plan(
        load_corpus("embedded:eld", labels=PAPER_LABELS), lm, max_tokens=arguments.max_tokens
    )
    dictionaries: list[Dictionary] = [
        make_sae(lm, arguments.site, arguments.expansion),
        *neurons(lm, kind="mlp_hidden"),
    ]
    sizes: dict[str, int] = {}
    cases = {
        name or "without": collecting(lm, plan, dictionaries, name, sizes)
        for name in ["", *by_commas(arguments.names)]
    }
    seconds = in_turns(cases, arguments.repeats)
    result: dict[str, Any] = {"tokens": plan.total, "examples": len(plan.tokens), "cases": {}}
    for name, values in seconds.items():
        result["cases"][name] = {
            "tokens_per_second": round(plan.total / min(values), 1),
            "share_of_speed_without": round(min(seconds["without"]) / min(values), 4),
            "seconds": [round(value, 2) for value in values],
            "bytes": sizes.get(name, 0),
        }
        show({name: result["cases"][name]})
    record(arguments, result)


if __name__ == "__main__":
    main()
