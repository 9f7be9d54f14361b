"""What a language model loses when an SAE's output takes the place of the site's vectors.

The loss is that of the next token, in nats per token: `clean` of the model as it is, `spliced` with
the output of the SAE at its site, `zero` with zeros there (zero-ablation). The loss recovered is
(zero - spliced) / (zero - clean), as in Bricken et al. 2023 ("Towards Monosemanticity") and
Rajamanoharan et al. 2024 (arXiv 2404.16014). 1 is a perfect SAE, 0 one as bad as zeros.

Tokens on which SAEs are not trained keep their vectors in all three: special tokens, and those of
outlier norm. Tokens of prompts are replaced, but their own loss does not count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saefeat.corpora import Plan
from saefeat.dictionaries import SAE
from saefeat.generation import token_losses
from saefeat.hooks import Edit, intervene
from saefeat.models import LanguageModel
from saefeat.tokens import outliers

_LOGITS = 2**25  # held at once on a CPU, where it takes long to get more memory
LOSS_TOKENS = 1024  # of the texts on which losses are measured, equally many per label


@dataclass(frozen=True)
class LossTexts:
    """Texts whose next tokens are predicted.

    Attributes:
        rows: token ids, with those that the tokenizer puts before a text.
        counts: by row, the number of its last tokens that are predicted, at least 1.
        labels: by row.
    """

    rows: list[list[int]]
    counts: list[int]
    labels: list[str]

    @property
    def total(self) -> int:
        """Number of tokens in the rows."""
        return sum(map(len, self.rows))


def choose_texts(lm: LanguageModel, plan: Plan, budget: int = LOSS_TOKENS) -> LossTexts:
    """Take texts of a plan, in the order in which it was filled, up to equal budgets per label."""
    used: Counter[str] = Counter()
    share = budget / max(1, len(plan.corpus.labels))
    rows, counts, labels = [], [], []
    for position, number in plan.counts.items():
        label = plan.corpus.of[position]
        row = [*lm.prefix, *plan.tokens[position]]
        before = len(lm.prefix) + plan.prompts.get(position, 0)
        count = len(row) - max(before, 1)
        if used[label] < share and count > 0:
            used[label] += number
            rows.append(row)
            counts.append(count)
            labels.append(label)
    return LossTexts(rows, counts, labels)


def clean_losses(lm: LanguageModel, texts: LossTexts) -> list[float]:
    """Sum of the losses of each text under the model as it is."""
    return _sums(lm, texts, {})


def zero_losses(lm: LanguageModel, texts: LossTexts, sae: SAE) -> list[float]:
    """Sum of the losses of each text with zeros at the site of an SAE."""
    return _replaced(lm, texts, sae, torch.zeros_like)


def spliced_losses(lm: LanguageModel, texts: LossTexts, sae: SAE) -> list[float]:
    """Sum of the losses of each text with the output of an SAE, on the model's device, at its site.

    Raises RunFailed when a vector is not finite.
    """
    return _replaced(lm, texts, sae, sae.reconstruct)


def _replaced(
    lm: LanguageModel, texts: LossTexts, sae: SAE, change: Callable[[Tensor], Tensor]
) -> list[float]:
    def edit(x: Tensor, steps: Tensor) -> Tensor:
        chosen = steps >= 0
        if sae.max_norm is not None:
            chosen &= ~outliers(x, sae.max_norm)
        new = x.clone()
        new[chosen] = change(x[chosen].float()).to(x.dtype)
        return new

    return _sums(lm, texts, {lm.site(sae.site).path: edit})


def _sums(lm: LanguageModel, texts: LossTexts, edits: Mapping[str, Edit]) -> list[float]:
    held = _LOGITS if lm.device == "cpu" else None
    with intervene(lm.model, edits, lm.special_ids):
        found = token_losses(lm, texts.rows, texts.counts, held)
    return [math.fsum(losses) for losses in found]


def describe_losses(
    texts: LossTexts, sums: Mapping[str, Sequence[float]], label: str | None = None
) -> dict[str, Any]:
    """Mean losses per token of all texts, or of those with a label.

    Args:
        sums: `clean`, `spliced` and `zero`: by text, the sum of its losses.

    Returns:
        tokens: number of predicted tokens; clean, spliced, zero: mean loss in nats per token;
        recovered: the loss recovered. A figure is None where it is not finite or there is no
        text, and the last one where zeros do not raise the loss.
    """
    chosen = [i for i, of in enumerate(texts.labels) if label in (None, of)]
    tokens = sum(texts.counts[i] for i in chosen)
    totals = {name: math.fsum(of[i] for i in chosen) for name, of in sums.items()}
    mean = {name: total / tokens if tokens else math.nan for name, total in totals.items()}
    damage = mean["zero"] - mean["clean"]
    mean["recovered"] = (mean["zero"] - mean["spliced"]) / damage if damage > 0 else math.nan
    finite = {name: value if math.isfinite(value) else None for name, value in mean.items()}
    return {"tokens": tokens, **finite}
