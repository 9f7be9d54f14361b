"""Strength by a budget of loss: all settings damage the model's reading equally (SAE-TS).

SAE-TS (arXiv 2411.02193) raises the strength until the loss of ordinary text exceeds a budget. Here
it is bisected, and the budget is the loss of the unedited model plus a number of nats, the same for
every method. Texts are read at full strength, so the model generates so as well: settings under a
budget have the schedule `CONSTANT`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from saefeat.config import CONSTANT, PROMPTING, UNSTEERED, SteeringRecipe
from saefeat.generation import text_losses
from saefeat.run.steer import Bench, pick_test_texts
from saefeat.steering import Change, NoUnits, apply

TEXTS, TOKENS = 64, 32  # of the source label; SAE-TS reads as many tokens of a text
_GREATEST = 64.0  # strength that is tried
_STEPS = 12  # halvings
_CLOSE = 0.03  # nats


def at_full_strength(grid: Sequence[SteeringRecipe]) -> list[SteeringRecipe]:
    """The settings of a grid under the schedule `CONSTANT`, the first strength of each."""
    found: dict[str, SteeringRecipe] = {}
    for recipe in grid:
        recipe = replace(recipe, schedule=CONSTANT)
        found.setdefault(repr(replace(recipe, strength=0.0)), recipe)
    return list(found.values())


@dataclass
class LossBudget:
    """Finds the strength at which a recipe raises the loss of source texts by `nats`."""

    bench: Bench
    nats: float
    _found: dict[Any, float | None] = field(default_factory=dict, repr=False)

    @cached_property
    def texts(self) -> list[str]:
        return pick_test_texts(self.bench.opened, self.bench.source_label, TEXTS)

    @cached_property
    def clean(self) -> float:
        return self.loss({}, 0.0)

    def loss(self, changes: Mapping[str, Sequence[Change]], strength: float) -> float:
        """The mean over texts of their mean NLL under changes at full strength, in nats."""
        with apply(self.bench.opened.lm, changes, strength):
            losses = text_losses(self.bench.opened.lm, self.texts, TOKENS)
        known = [loss for loss in losses if not math.isnan(loss)]
        return sum(known) / len(known) if known else math.inf

    def fit(self, recipe: SteeringRecipe, label: str) -> SteeringRecipe:
        """The recipe with the strength that uses up the budget; without edits, as it is.

        Raises NoUnits where no strength does. The schedule plays no part here; see
        `at_full_strength`.
        """
        if recipe.method in (UNSTEERED, PROMPTING):
            return recipe
        key = (repr(replace(recipe, strength=0.0, schedule=CONSTANT)), label)
        if key not in self._found:
            changes, _ = self.bench.builder.build(recipe, label)
            self._found[key] = self._bisect(changes, recipe.strength)
        found = self._found[key]
        if found is None:
            raise NoUnits(
                f"no strength of {recipe.method} ({recipe.edit}) raises the loss of "
                f"{self.bench.source_label} texts by {self.nats:g} nats"
            )
        return replace(recipe, strength=found)

    def _bisect(self, changes: Mapping[str, Sequence[Change]], begin: float) -> float | None:
        """The strength of the budget; None where the loss stays below it, or jumps over it."""
        low, high = 0.0, begin

        def excess(strength: float) -> float:
            return self.loss(changes, strength) - self.clean - self.nats

        while (over := excess(high)) < -_CLOSE:
            low, high = high, 2 * high
            if high > _GREATEST:
                return None
        at = high
        for _ in range(_STEPS):
            if abs(over) <= _CLOSE:
                return at
            low, high = (low, at) if over > 0 else (at, high)
            at = (low + high) / 2
            over = excess(at)
        return None
