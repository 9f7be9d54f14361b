"""How good SAEs are on text that they were not trained on."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from saefeat.corpora import Plan, fill_budget, in_hashed_order
from saefeat.dictionaries import SAE
from saefeat.models import LanguageModel
from saefeat.sae.fit_check import MIN_TOKENS, measure_fit

TOKENS = 4096  # counted tokens of the sample, equally many per label


def held_out_plan(lm: LanguageModel, plan: Plan) -> Plan | None:
    """About TOKENS tokens of the corpus that a plan leaves out; None where there are too few.

    They are of the test split where the plan is of the train split. No example shares its id with
    an example of the plan (a translation).
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
    return held if held.total >= MIN_TOKENS else None


def measure(sae: SAE, held: Plan | None, vectors: dict[str, Tensor]) -> dict[str, Any]:
    """The entry `held_out` of an SAE's record: fvu, l0, silent, tokens and the split.

    It is empty without held-out text.

    Args:
        held: the plan of the text.
        vectors: site -> its activations [n, d_in].
    """
    if held is None:
        return {}
    return {**measure_fit(sae, vectors[sae.site]), "split": held.policy["split"]}
