"""Prompting: the unsteered model is told in the prompt which language to answer in.

The rival of steering in CLaS-Bench (arXiv 2601.08331, "prompting I"). The instruction is English.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from saefeat.config import PROMPTING, SteeringRecipe
from saefeat.io import UserError
from saefeat.labels import language_name
from saefeat.models import LanguageModel
from saefeat.steering import NoUnits


def instruct(label: str) -> str:
    """What is put before a prompt. Raises NoUnits for a label that is not a language."""
    try:
        return f"Respond in {language_name(label)}.\n"
    except UserError as error:
        raise NoUnits(f"the method {PROMPTING} has no name for {label}: {error}") from error


def told(lm: LanguageModel, prompts: Sequence[Sequence[int]], label: str) -> list[list[int]]:
    """The prompts (token ids, BOS included) with the instruction before their text."""
    begin, words = len(lm.prefix), _instruction(lm, label)
    return [[*ids[:begin], *words, *ids[begin:]] for ids in prompts]


def longest(lm: LanguageModel, recipes: Iterable[SteeringRecipe], labels: Iterable[str]) -> int:
    """Tokens of the longest instruction that recipes put before a prompt; 0 without prompting."""
    most = 0
    if any(recipe.method == PROMPTING for recipe in recipes):
        for label in labels:
            with suppress(NoUnits):
                most = max(most, len(_instruction(lm, label)))
    return most


def _instruction(lm: LanguageModel, label: str) -> list[int]:
    return lm.tokenizer(instruct(label), add_special_tokens=False)["input_ids"]
