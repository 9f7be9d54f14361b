"""The units that a recipe (`saefeat.config.SteeringRecipe`) chooses for a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from saefeat.config import CONSTANT, RANDOM, SOURCE_OFF, STEERING_METHODS, UNSTEERED, SteeringRecipe
from saefeat.dictionaries import SAE
from saefeat.methods.feature_diffmean import feature_diffmean
from saefeat.methods.lape import lape
from saefeat.statistics import Stats
from saefeat.steering.changes import Units, build_changes, check_counted, open_dictionary
from saefeat.steering.edits import LOGITS, Change
from saefeat.steering.makers import MAKERS, no_units, written_layer
from saefeat.steering.materials import Materials

_SEED = 11  # of the random units
NONE = SteeringRecipe(UNSTEERED, "none", (), CONSTANT, 0.0, {})


def with_controls(recipe: SteeringRecipe) -> list[SteeringRecipe]:
    """The unsteered model, a recipe, and, where it steers by features, random ones.

    Random features are added at the same sites with the same force. They are as many as `top` of
    the recipe allows, or 100 where it has no such parameter.
    """
    found = [NONE, recipe]
    if STEERING_METHODS[recipe.method].of_saes and recipe.method != RANDOM:
        random = STEERING_METHODS[RANDOM]
        kept = {x: recipe.parameters[x] for x in random.optional if x in recipe.parameters}
        kept |= {x: recipe.parameters.get(x, usual) for x, usual in random.parameters.items()}
        found.append(replace(recipe, method=RANDOM, edit=random.edits[0], parameters=kept))
    return found


class RecipeBuilder(Materials):
    """Builds the changes of recipes."""

    def build(self, recipe: SteeringRecipe, label: str) -> tuple[dict[str, list[Change]], int]:
        """Build the changes of a recipe for a label, and count the units that they are made of.

        Returns:
            Site -> changes, and the number of units; 0 for the whole difference of means.

        Raises NoUnits when the recipe finds no units for the label.
        """
        if recipe.method == UNSTEERED:
            return {}, 0
        if recipe.method in MAKERS:
            return self._make(recipe, label)
        chosen = {site: self._choose(recipe, label, site) for site in recipe.sites}
        counts = {
            site: sum(len(one.units) + len(one.silenced) for one in here)
            for site, here in chosen.items()
        }
        if not any(counts.values()):
            raise no_units(recipe, label)
        chosen = {site: here for site, here in chosen.items() if counts[site]}
        edit = recipe.edit.removesuffix(SOURCE_OFF)
        changes = build_changes(edit, chosen, label, self.collected)
        return changes, 0 if recipe.method == "diffmean" else sum(counts.values())

    def _make(self, recipe: SteeringRecipe, label: str) -> tuple[dict[str, list[Change]], int]:
        """Build the changes of a method of `saefeat.steering.makers`."""
        changes: dict[str, list[Change]] = {}
        total = 0
        for site in recipe.sites:
            made, units = MAKERS[recipe.method](self, recipe, label, site)
            total += units
            for at, here in made.items():
                changes.setdefault(at, []).extend(here)
        if not any(changes.values()):
            raise no_units(recipe, label)
        return changes, total

    def _choose(self, recipe: SteeringRecipe, label: str, site: str) -> list[Units]:
        """The units of a recipe at a site, possibly none."""
        if STEERING_METHODS[recipe.method].of_saes:
            return [self._choose_features(recipe, label, sae) for sae in self.saes_at(site)]
        identity = open_dictionary(self.collected.read(site).header["dictionary"])
        if recipe.method == "neurons":
            return [Units(identity, *self._choose_neurons(recipe, label, site))]
        # Every coordinate of the vectors; SAEs there add their limits on the norm.
        saes = [sae for sae in self.saes if sae.site == site]
        return [Units(identity, range(identity.width)), *(Units(sae, ()) for sae in saes)]

    def _choose_features(self, recipe: SteeringRecipe, label: str, sae: SAE) -> Units:
        """The features of a label, or as many random ones."""
        stats, source = self.collected.stats(sae), self.collected.source_label
        check_counted(stats, label, source)
        ranked = self.rank(feature_diffmean, [sae.id], source=source, **recipe.parameters)
        units = ranked.units(sae.id)[label]
        if recipe.method == RANDOM:
            units = random_units(stats, units, _SEED + stats.labels.index(label))
        return Units(sae, units)

    def _choose_neurons(
        self, recipe: SteeringRecipe, label: str, site: str
    ) -> tuple[list[int], list[int]]:
        """The LAPE neurons of a label, and those of the source label alone for "source off"."""
        neurons = self.rank(lape, recipe.sites, **recipe.parameters).units(site)
        off: set[int] = set()
        if recipe.edit.endswith(SOURCE_OFF):
            off = set(neurons[self.collected.source_label or ""]) - set(neurons[label])
        return neurons[label], sorted(off)


def sites_read(recipe: SteeringRecipe) -> list[str]:
    """The sites whose means a recipe is made from."""
    return [*(site for site in recipe.sites if site != LOGITS), *written_layer(recipe)]


def random_units(stats: Stats, chosen: Sequence[int], seed: int) -> list[int]:
    """Draw as many units as were chosen, from all others that fire."""
    fires = stats.fired.sum(0).bool()
    fires[list(chosen)] = False
    others = fires.nonzero().flatten()
    generator = torch.Generator().manual_seed(seed)
    return others[torch.randperm(len(others), generator=generator)[: len(chosen)]].tolist()
