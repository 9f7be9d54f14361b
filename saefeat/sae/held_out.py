"""How good SAEs are on text that they were not trained on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor

from saefeat.corpora import Plan, fill_budget, in_hashed_order
from saefeat.dictionaries import SAE
from saefeat.models import LanguageModel
from saefeat.sae.gate import LEAST, fidelity

TOKENS = 4096  # counted tokens of the sample, the labels alike


def held_out_plan(lm: LanguageModel, plan: Plan) -> Plan | None:
    """Some TOKENS tokens of the corpus that the plan keeps out; None where there are too few to tell anything.

    They are of the test split where the plan is of the train split, and of no example that shares
    its id with one of the plan (a translation).
    """
    corpus, policy = plan.corpus, plan.policy
    split = "test" if policy["split"] == "train" else "all"
    known = {corpus.ids[i] for i in plan.tokens}
    positions = [i for i in corpus.positions(split, policy["seed"]) if corpus.ids[i] not in known]
    tokens, counts, skipped = fill_budget(
        corpus,
        lm,
        in_hashed_order(corpus, positions, policy["seed"]),
        max(1, TOKENS // len(corpus.labels)),
        policy["token_limit"],
        count_bos=policy["count_bos"],
    )
    held = Plan(corpus, tokens, counts, {**policy, "split": split}, skipped)
    return held if held.total >= LEAST else None


def measured(sae: SAE, held: Plan | None, vectors: dict[str, Tensor]) -> dict[str, Any]:
    """The entry `held_out` of an SAE's record: fvu, l0, silent, tokens and the split; empty without held-out text.

    vectors: [n, d_in] by site, of the plan.
    """
    if held is None:
        return {}
    return {**asdict(fidelity(sae, vectors[sae.site])), "split": held.policy["split"]}
