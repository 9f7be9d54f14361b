"""Continue prompts, steered and unsteered, and put each text beside its unsteered twin."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from saefeat.config import PROMPTING, STEERING_METHODS, SteeringRecipe
from saefeat.forcing import Measured, finite_or_none
from saefeat.generation import encode_prompts
from saefeat.run import prompting
from saefeat.run.steer import Bench
from saefeat.steering.recipes import NONE


def continue_prompts(
    bench: Bench, label: str, prompts: Sequence[str], recipe: SteeringRecipe, *, chat: bool = False
) -> list[dict[str, Any]]:
    """Continue prompts, steered and unsteered.

    Returns:
        One object per prompt: prompt, label, strength, the values of `pair_twins`, distinct3 and
        distinct3_twin, line_pass and word_pass (see `saefeat.confusion`; None for a text that is
        too short).
    """
    label = bench.find_target(label)
    encode = partial(
        encode_prompts, bench.opened.lm, new_tokens=bench.decoding.max_new_tokens, chat=chat
    )
    ids, told = encode(prompts), None
    if recipe.method == PROMPTING:
        told = encode([prompting.instruct(label) + prompt for prompt in prompts])
    if STEERING_METHODS[recipe.method].of_saes:
        for site in recipe.sites:
            for sae in bench.builder.saes_at(site):
                bench.builder.collected.stats(sae)  # refused before anything is collected
    bench.collect_missing([recipe])
    (steered,), _ = bench.measure(recipe, label, ids, [recipe.strength], told)
    (twin,), _ = bench.measure(NONE, label, ids, [NONE.strength])
    head = {"label": label, "strength": recipe.strength}
    lines, words = bench.passes(steered.texts, label)
    return [
        {
            "prompt": prompt,
            **head,
            **row,
            "distinct3": steered.distinct3[i],
            "distinct3_twin": twin.distinct3[i],
            "line_pass": lines[i],
            "word_pass": words[i],
        }
        for i, (prompt, row) in enumerate(zip(prompts, pair_twins(steered, twin), strict=True))
    ]


def pair_twins(steered: Measured, unsteered: Measured) -> list[dict[str, Any]]:
    """Text, judgement and perplexity of each steered continuation and of its unsteered twin."""
    return [
        {
            "text": text,
            "twin": unsteered.texts[i],
            "judged": steered.judged[i],
            "judged_twin": unsteered.judged[i],
            "perplexity": finite_or_none(steered.perplexity[i]),
            "perplexity_twin": finite_or_none(unsteered.perplexity[i]),
        }
        for i, text in enumerate(steered.texts)
    ]
