"""Collection: its tokens/s as a share of those of the bare forward pass over the same batches.

    python scripts/bench_collect.py --out scripts/results/bench_collect.json

Bare and full passes alternate batch by batch in one run, so a drifting machine hits both; the bare
pass stops at the deepest site too. SAEs have random weights of the right shape: the time does not
depend on what they have learned.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from saefeat.collection import observe
from saefeat.corpora import PAPER_LABELS, Batch, Corpus, load_corpus, make_plan
from saefeat.dictionaries import SAE, Dictionary
from saefeat.hooks import capture, site_width
from saefeat.models import LanguageModel, load_model, native_bf16
from saefeat.run import neurons, set_threads
from saefeat.statistics import ACCUMULATORS, default_kinds


def random_sae(lm: LanguageModel, site: str, expansion: int, k: int) -> SAE:
    d_in = site_width(lm, lm.site(site))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(expansion * d_in, d_in, generator=generator)
    rows /= rows.norm(dim=1, keepdim=True)
    zeros = torch.zeros(len(rows))
    dtype = "bfloat16" if native_bf16(lm.device) else "float32"
    return SAE(
        site,
        site,
        rows.t().contiguous(),
        zeros,
        rows,
        torch.zeros(d_in),
        k,
        max_norm=1e9,
        dtype=dtype,
    )


def compare(
    lm: LanguageModel, dictionaries: Sequence[Dictionary], batches: list[Batch], corpus: Corpus
) -> float:
    """Seconds of the bare passes over seconds of the full ones."""
    kinds = [*default_kinds(), ACCUMULATORS["histograms"]]
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
        if number:  # the first is a warm-up
            bare += middle - start
            full += time.perf_counter() - middle
    return bare / full


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded:gemma-3-270m")
    parser.add_argument(
        "--sites", default="resid_post@5,mlp_out@5,resid_post@8,mlp_out@8,resid_post@11,mlp_out@11"
    )
    parser.add_argument("--max-tokens", type=int, default=800)
    parser.add_argument("--expansion", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    threads = set_threads()
    lm = load_model(arguments.model)
    corpus = load_corpus("embedded:eld", labels=PAPER_LABELS)
    plan = make_plan(corpus, lm, max_tokens=arguments.max_tokens)
    batches = [
        b
        for w in range(plan.window_count)
        for b in plan.batches(lm, plan.window(w))
        if plan.window(w)
    ]
    saes: list[Dictionary] = [
        random_sae(lm, site, arguments.expansion, 32) for site in arguments.sites.split(",")
    ]
    cases: dict[str, list[Dictionary]] = {
        "six sites": saes,
        "three sites": saes[:3],
        "six sites and all neurons": [*saes, *neurons(lm)],
    }
    shares = {
        name: sorted(compare(lm, chosen, batches, corpus) for _ in range(arguments.repeats))
        for name, chosen in cases.items()
    }
    result = {
        "machine": {
            "processor": platform.machine(),
            "threads": threads,
            "native_bf16": native_bf16("cpu"),
        },
        "arguments": {key: str(value) for key, value in vars(arguments).items() if key != "out"},
        "tokens": plan.total,
        "share_of_bare_speed": {
            name: {"median": v[len(v) // 2], "all": v} for name, v in shares.items()
        },
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
