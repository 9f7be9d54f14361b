"""Speed of a collection as a share of the bare forward pass over the same batches.

    python scripts/bench_collect.py --out scripts/results/bench_collect.json

With `--whole` it is the tokens per second of a whole collection of six sites and all neurons, by
one process or by several:

    torchrun --nproc-per-node 2 scripts/bench_collect.py --whole

Bare and full passes alternate batch by batch, so that a slow phase of the machine affects both. The
bare pass stops at the deepest site too. The SAEs have random weights.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from common import by_commas, options, parse, random_sae, record

from saefeat.activations import counted_vectors
from saefeat.collection import collect, observe
from saefeat.corpora import PAPER_LABELS, Batch, Corpus, Plan, load_corpus, make_plan
from saefeat.dictionaries import SAE, Dictionary
from saefeat.hooks import capture, site_width
from saefeat.models import LanguageModel, load_model, native_bf16
from saefeat.run import neurons, set_threads
from saefeat.statistics import collected_kinds
from saefeat.world import join, world_of_environment


def make_sae(lm: LanguageModel, site: str, expansion: int) -> SAE:
    """A random SAE whose products have the dtype of SAEs trained here."""
    d_in = site_width(lm, lm.site(site))
    dtype = "bfloat16" if native_bf16(lm.device) else "float32"
    return random_sae(site, site, d_in, expansion * d_in, max_norm=1e9, dtype=dtype)


def compare(
    lm: LanguageModel, dictionaries: Sequence[Dictionary], batches: list[Batch], corpus: Corpus
) -> float:
    """Seconds of the bare passes over seconds of the full ones."""
    kinds = collected_kinds(["histograms"])
    states = {
        d.id: [
            kind.zeros(corpus.labels, d.width, signed=d.signed, dictionary=d.identity)
            for kind in kinds
            if kind.applies(d)
        ]
        for d in dictionaries
    }
    paths = tuple(dict.fromkeys(lm.site(d.site).path for d in dictionaries))
    bare = full = 0.0
    for number, batch in enumerate([batches[0], *batches]):
        start = time.perf_counter()
        with capture(lm.model, paths) as captured, torch.inference_mode():
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            captured.run(lm.model, **inputs, use_cache=False)
        middle = time.perf_counter()
        for _, observed in observe(lm, dictionaries, iter([batch]), corpus):
            for name, one in observed.items():
                for state in states[name]:
                    state.add(one)
        if number:  # the first batch warms up
            bare += middle - start
            full += time.perf_counter() - middle
    return bare / full


def collect_whole(lm: LanguageModel, dictionaries: Sequence[Dictionary], plan: Plan) -> float:
    """Tokens per second of a collection by this process and those that were started with it."""
    world = world_of_environment()
    join(world, "cpu", 600)
    set_threads(world.local_size)
    for _ in counted_vectors(lm, plan.batches(lm, plan.window(0)[:64]), [dictionaries[-1].site]):
        pass  # warms up
    with TemporaryDirectory() as folder:
        out = Path(str(world.share(folder)))
        world.barrier()
        start = time.perf_counter()
        collect(lm, plan, dictionaries, out, world=world)
        seconds = time.perf_counter() - start
        world.barrier()
    return plan.total / seconds


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--whole", action="store_true", help="the speed of a whole collection")
    parser.add_argument("--model", default="embedded:gemma-3-270m")
    parser.add_argument(
        "--sites", default="resid_post@5,mlp_out@5,resid_post@8,mlp_out@8,resid_post@11,mlp_out@11"
    )
    parser.add_argument("--max-tokens", type=int, default=800)
    parser.add_argument("--expansion", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parse(parser)
    lm = load_model(arguments.model)
    corpus = load_corpus("embedded:eld", labels=PAPER_LABELS)
    plan = make_plan(corpus, lm, max_tokens=arguments.max_tokens)
    windows = [plan.window(number) for number in range(plan.window_count)]
    batches = [batch for window in windows if window for batch in plan.batches(lm, window)]
    saes: list[Dictionary] = [
        make_sae(lm, site, arguments.expansion) for site in by_commas(arguments.sites)
    ]
    if arguments.whole:
        speed = collect_whole(lm, [*saes, *neurons(lm)], plan)
        world = world_of_environment()
        result = {"tokens": plan.total, "processes": world.size, "tokens_per_second": speed}
        if world.leads:
            record(arguments, result)
        return
    cases: dict[str, list[Dictionary]] = {
        "six sites": saes,
        "three sites": saes[:3],
        "six sites and all neurons": [*saes, *neurons(lm)],
    }
    shares = {}
    for name, chosen in cases.items():
        values = sorted(compare(lm, chosen, batches, corpus) for _ in range(arguments.repeats))
        shares[name] = {"median": values[len(values) // 2], "all": values}
    record(arguments, {"tokens": plan.total, "share_of_bare_speed": shares})


if __name__ == "__main__":
    main()
