"""Sequences of random tokens: text without a language, as a control (LangFIR, arXiv 2604.03532)."""

from __future__ import annotations

from statistics import median_low

import torch

from saefeat.corpora import Corpus, Plan
from saefeat.models import LanguageModel

LABEL = "random-tokens"


def random_plan(lm: LanguageModel, plan: Plan, number: int) -> Plan:
    """Plan the run of random sequences of tokens beside the texts of a plan.

    Each token is drawn evenly from the tokenizer's own vocabulary, without special and added
    tokens, by the seed of the plan. BOS and EOS stand around a sequence as around a text.

    Args:
        plan: of the texts. The sequences have the median length of its texts.
        number: of sequences.

    Returns:
        A plan of one label, `LABEL`.
    """
    lengths = zip(plan.chosen.tolist(), plan.lengths(plan.chosen).tolist(), strict=True)
    length = median_low(number - plan.prompts.get(i, 0) for i, number in lengths)
    generator = torch.Generator().manual_seed(plan.policy["seed"])
    vocabulary = torch.tensor(_ordinary(lm))
    drawn = vocabulary[torch.randint(len(vocabulary), (number, length), generator=generator)]
    tokens = dict(enumerate(drawn.tolist()))
    texts = [lm.tokenizer.decode(ids) for ids in tokens.values()]
    names = [f"random {i}" for i in tokens]
    counted = length + lm.counted_before(plan.policy["count_bos"])
    policy = plan.policy | {"sequences": number, "length": length}
    corpus = Corpus(texts, [LABEL] * number, names, (LABEL,), LABEL)
    return Plan(corpus, tokens, dict.fromkeys(tokens, counted), policy, {})


def _ordinary(lm: LanguageModel) -> list[int]:
    """The ids of the vocabulary that are neither special nor added to it, and have an embedding."""
    left_out = lm.special_ids | set(lm.tokenizer.added_tokens_decoder)
    size = min(len(lm.tokenizer), lm.model.get_input_embeddings().weight.shape[0])
    return [token for token in range(size) if token not in left_out]
