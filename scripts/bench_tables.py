"""Cost of the accumulators on request, as a share of the time of a collection without them.

    python scripts/bench_tables.py --out scripts/results/bench_tables.json

All hidden neurons and one SAE of random weights are counted. In every batch, what each accumulator
adds is timed right after what is always done (the forward pass, encoding, counts and examples), so
that a slow phase of the machine affects both. The files of each window are written and timed too.
What an accumulator does once, at the end of a collection, is told apart.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from bench_collect import make_sae
from common import by_commas, options, parse, record, show

from saefeat.collection import observe
from saefeat.corpora import PAPER_LABELS, Plan, half_of, load_corpus, make_plan
from saefeat.dictionaries import Dictionary
from saefeat.models import LanguageModel, load_model
from saefeat.run import neurons
from saefeat.statistics import ACCUMULATORS, Accumulator, collected_kinds

States = list[tuple[str, Accumulator]]  # with the ids of their dictionaries


def empty(kind: type[Accumulator], dictionaries: list[Dictionary], plan: Plan) -> States:
    labels = plan.corpus.labels
    return [
        (d.id, kind.zeros(labels, d.width, signed=d.signed, dictionary=d.identity))
        for d in dictionaries
        if kind.applies(d)
    ]


def save(states: States, out: Path, window: int, plan: Plan) -> None:
    for dictionary, state in states:
        state.save(state.path(out / state.FOLDER, dictionary, window), plan.corpus)


def measure(
    lm: LanguageModel, plan: Plan, dictionaries: list[Dictionary], names: list[str]
) -> dict[str, Any]:
    """Seconds of one pass over the plan: `always`, and of each accumulator."""
    out, spent = Path(tempfile.mkdtemp()), defaultdict[str, float](float)
    kinds = {name: ACCUMULATORS[name] for name in names}
    always = [pair for kind in collected_kinds() for pair in empty(kind, dictionaries, plan)]
    states = {name: empty(kind, dictionaries, plan) for name, kind in kinds.items()}
    half = {i for i in plan.tokens if not half_of(plan.corpus.ids[i], plan.policy["seed"])}
    for window in range(plan.window_count):
        batches = plan.batches(lm, plan.window(window))
        inputs = observe(lm, dictionaries, batches, plan.corpus, half=half)
        start = time.perf_counter()
        for _, observed in inputs:
            for dictionary, state in always:
                state.add(observed[dictionary])
            spent["always"] += time.perf_counter() - start
            for name, some in states.items():
                start = time.perf_counter()
                for dictionary, state in some:
                    state.add(observed[dictionary])
                spent[name] += time.perf_counter() - start
            start = time.perf_counter()
        for name, kind in kinds.items():
            if kind.EACH_WINDOW:
                start = time.perf_counter()
                save(states[name], out, window, plan)
                spent[name] += time.perf_counter() - start
                states[name] = empty(kind, dictionaries, plan)
    for name, kind in kinds.items():
        if not kind.EACH_WINDOW:
            start = time.perf_counter()
            save(states[name], out, 0, plan)
            spent[f"{name} once"] += time.perf_counter() - start
    files = {name: (out / kind.FOLDER).rglob("*") for name, kind in kinds.items()}
    sizes = {name: sum(f.stat().st_size for f in of if f.is_file()) for name, of in files.items()}
    shutil.rmtree(out)
    return {"seconds": dict(spent), "bytes": sizes}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", default="embedded:gemma-3-270m")
    parser.add_argument("--site", default="mlp_out@5")
    parser.add_argument(
        "--with", dest="names", default="halves,responses,patterns,importances,distributions"
    )
    parser.add_argument("--max-tokens", type=int, default=800)
    parser.add_argument("--expansion", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parse(parser)
    lm, names = load_model(arguments.model), by_commas(arguments.names)
    corpus = load_corpus("embedded:eld", labels=PAPER_LABELS)
    plan = make_plan(corpus, lm, max_tokens=arguments.max_tokens)
    dictionaries: list[Dictionary] = [
        make_sae(lm, arguments.site, arguments.expansion),
        *neurons(lm, kind="mlp_hidden"),
    ]
    rounds = [measure(lm, plan, dictionaries, names) for _ in range(arguments.repeats)]
    cost = {}
    for name in names:
        shares = [each["seconds"][name] / each["seconds"]["always"] for each in rounds]
        once = [each["seconds"].get(f"{name} once", 0.0) for each in rounds]
        cost[name] = {
            "share": round(median(shares), 4),
            "shares": [round(share, 4) for share in shares],
            "seconds_once": round(median(once), 2),
            "bytes": rounds[0]["bytes"][name],
        }
        show({name: cost[name]})
    speed = plan.total / min(each["seconds"]["always"] for each in rounds)
    record(
        arguments,
        {
            "tokens": plan.total,
            "examples": len(plan.tokens),
            "tokens_per_second_without": round(speed, 1),
            "cost": cost,
        },
    )


if __name__ == "__main__":
    main()
