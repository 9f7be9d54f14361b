"""How well SAEs fit text that they are not trained on: in total, by label, and in the model's loss.

The same text is used at intervals of a training and at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saefeat.corpora import Plan, fill_budget, hashed_order
from saefeat.dictionaries import SAE
from saefeat.models import LanguageModel, Site
from saefeat.sae.chunks import gather_sites, read_chunk, single_chunk, vector_labels
from saefeat.sae.fit_check import MIN_TOKENS, measure_fit
from saefeat.sae.layouts import by_site
from saefeat.sae.losses import (
    LossTexts,
    choose_texts,
    clean_losses,
    describe_losses,
    spliced_losses,
    zero_losses,
)
from saefeat.world import World

HELD_OUT_TOKENS = 4096  # counted tokens of the held-out text, equally many per label
# A token whose loss is measured takes as long as 15 trained tokens where the vocabulary is large
# and the SAEs are small (262k and 2,560 units at two sites, on a CPU); elsewhere far less. So the
# evaluations of a training take less than 3 per cent of its time.
_EVALUATED = 0.002  # tokens whose loss is measured per trained token
_EVALUATIONS = 20  # of a training at most


@dataclass
class HeldOut:
    """Held-out text, and what the model makes of it.

    Attributes:
        buffers: site -> vectors bfloat16 [n, d_in], of the sites that this rank owns.
        codes: by vector, the number of its label in the corpus, int64 [n].
    """

    lm: LanguageModel
    plan: Plan
    buffers: dict[str, Tensor]
    codes: Tensor
    _zero: dict[str, list[float]] = field(default_factory=dict)

    def fit(self, sae: SAE) -> dict[str, Any]:
        """The fit of an SAE to the text; see `measure_fit`."""
        return {**measure_fit(sae, self.buffers[sae.site]), "split": self.plan.policy["split"]}

    @cached_property
    def texts(self) -> LossTexts:
        """The texts on which losses are measured."""
        return choose_texts(self.lm, self.plan)

    @cached_property
    def _clean(self) -> list[float]:
        return clean_losses(self.lm, self.texts)

    def evaluate(self, sae: SAE) -> dict[str, Any]:
        """Measure the losses with an SAE, and its fit by label.

        Returns:
            loss: see `describe_losses`. labels: for each label with text, the fit to its vectors
            (`measure_fit`, around their own mean) and `loss`.
        """
        if sae.site not in self._zero:  # the same whenever it is measured
            self._zero[sae.site] = zero_losses(self.lm, self.texts, sae)
        spliced = spliced_losses(self.lm, self.texts, sae)
        sums = {"clean": self._clean, "spliced": spliced, "zero": self._zero[sae.site]}
        labels = {}
        for code, label in enumerate(self.plan.corpus.labels):
            x = self.buffers[sae.site][self.codes == code]
            if len(x):
                loss = describe_losses(self.texts, sums, label)
                labels[label] = {**measure_fit(sae, x), "loss": loss}
        return {"loss": describe_losses(self.texts, sums), "labels": labels}


def read_held_out(lm: LanguageModel, plan: Plan, sites: Sequence[Site], world: World) -> HeldOut:
    """Run the model over a held-out plan. All ranks take part, and each gets the sites it owns."""
    chunk = single_chunk(plan)
    with torch.inference_mode():
        part = read_chunk(lm, plan, sites, chunk, world)
        buffers = gather_sites(part, [site.name for site in sites], by_site(world)).buffers
    return HeldOut(lm, plan, buffers, vector_labels(lm, plan, chunk))


def steps_between(steps: int, batch_size: int, sites: int, texts: LossTexts) -> int:
    """The steps between two evaluations of a training of so many; 0: there is no time for one."""
    budget = _EVALUATED * steps * batch_size / max(texts.total, 1)
    number = min(_EVALUATIONS, int((budget - 1 - sites) / sites))  # once: clean, and zeros by site
    return -(-steps // number) if number > 0 else 0


def held_out_plan(lm: LanguageModel, plan: Plan) -> Plan | None:
    """Plan about HELD_OUT_TOKENS tokens that `plan` leaves out; None if there are too few.

    They come from the test split if the plan is of the train split. Examples that share an id with
    one of the plan (translations) are left out.
    """
    corpus, policy = plan.corpus, plan.policy
    split, seed = ("test" if policy["split"] == "train" else "all"), policy["seed"]
    positions = corpus.in_split(split, seed)
    if split == "all":  # else no id is in both splits
        known = corpus.hashes(seed, "budget", at=plan.chosen)
        positions = positions[~np.isin(corpus.hashes(seed, "budget", at=positions), known)]
    tokens, counts, skipped, prompts = fill_budget(
        corpus,
        lm,
        hashed_order(corpus, positions, seed),
        max(1, HELD_OUT_TOKENS // len(corpus.labels)),
        policy["token_limit"],
        count_bos=policy["count_bos"],
    )
    policy = {**policy, "split": split}
    held = Plan(corpus, tokens, counts, policy, skipped, prompts=prompts)
    return held if held.total >= MIN_TOKENS else None
