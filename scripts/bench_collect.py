"""Speed of a collection as a share of the bare forward pass over the same batches.

    python scripts/bench_collect.py --out scripts/results/bench_collect.json

Bare and full passes alternate batch by batch, so that a slow phase of the machine affects both. The
bare pass stops at the deepest site too. The SAEs have random weights.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from common import by_commas, options, parse, random_sae, record

from saefeat.collection import observe
from saefeat.corpora import PAPER_LABELS, Batch, Corpus, load_corpus, make_plan
from saefeat.dictionaries import SAE, Dictionary
from saefeat.hooks import capture, site_width
from saefeat.models import LanguageModel, load_model, native_bf16
from saefeat.run import neurons
from saefeat.statistics import collected_kinds


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


def main() -> None:
    parser = options(__doc__)
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
