"""The units that a recipe (`saefeat.config.SteeringRecipe`) chooses for a label."""

from __future__ import annotations

from dataclasses import replace

from saefeat.config import (
    AT_RANDOM,
    CONSTANT,
    FEATURES,
    PROMPTING,
    RANDOM,
    RANDOM_VECTOR,
    SOURCE_OFF,
    STEERING_METHODS,
    UNSTEERED,
    SteeringRecipe,
)
from saefeat.dictionaries import SAE
from saefeat.io import UserError
from saefeat.methods.feature_diffmean import feature_diffmean
from saefeat.methods.lape import lape
from saefeat.steering.changes import Units, build_changes, check_counted, open_dictionary
from saefeat.steering.edits import LOGITS, Change
from saefeat.steering.makers import MAKERS, no_units, written_layer
from saefeat.steering.materials import Materials

_TWINS = {RANDOM: FEATURES, RANDOM_VECTOR: "diffmean"}  # methods that are controls of others
NONE = SteeringRecipe(UNSTEERED, "none", (), CONSTANT, 0.0, {})


def with_controls(recipe: SteeringRecipe) -> dict[str, SteeringRecipe]:
    """The unsteered model, a recipe, and its random twin, by name.

    The twin makes the same edit with the same force at the same sites. In place of chosen units
    (features, neurons, coordinates, tokens) it has as many random ones, in place of a direction a
    random one of the same length. A gate that adds the difference of means has random features as
    gates. A table of log-odds is shuffled over the tokens.

    Raises UserError for prompting, which does not change the model.
    """
    if recipe.method == PROMPTING:
        raise UserError(
            f"{PROMPTING} changes the prompts and not the model, so it has no place here; choose "
            "another method",
            "method",
        )
    found = {UNSTEERED: NONE, recipe.method: recipe}
    if recipe.method not in (UNSTEERED, *_TWINS):
        found[RANDOM] = replace(recipe, edit=recipe.edit + AT_RANDOM)
    return found


class RecipeBuilder(Materials):
    """Builds the changes of recipes."""

    def build(self, recipe: SteeringRecipe, label: str) -> tuple[dict[str, list[Change]], int]:
        """Build the changes of a recipe for a label, and count the units that they are made of.

        Returns:
            Site -> changes, and the number of units; 0 for methods that choose none. There are no
            changes for the unsteered model, whatever its prompts.

        Raises NoUnits when the recipe finds no units for the label.
        """
        if recipe.method in (UNSTEERED, PROMPTING):
            return {}, 0
        if recipe.method in _TWINS or recipe.edit.endswith(AT_RANDOM):
            method, edit = _TWINS.get(recipe.method, recipe.method), recipe.edit
            plain = replace(recipe, method=method, edit=edit.removesuffix(AT_RANDOM))
            return replace(self, random=True).build(plain, label)
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
        return changes, sum(counts.values())

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
        return [Units(identity, *self._choose_neurons(recipe, label, site))]

    def _choose_features(self, recipe: SteeringRecipe, label: str, sae: SAE) -> Units:
        """The features of a label."""
        stats, source = self.collected.stats(sae), self.collected.source_label
        check_counted(stats, label, source)
        ranked = self.rank(feature_diffmean, [sae.id], source=source, **recipe.parameters)
        return Units(sae, self.units(stats, ranked.units(sae.id)[label], label))

    def _choose_neurons(
        self, recipe: SteeringRecipe, label: str, site: str
    ) -> tuple[list[int], list[int]]:
        """The LAPE neurons of a label, and those of the source label alone for "source off"."""
        neurons = self.rank(lape, recipe.sites, **recipe.parameters).units(site)
        off: set[int] = set()
        if recipe.edit.endswith(SOURCE_OFF):
            off = set(neurons[self.collected.source_label or ""]) - set(neurons[label])
        own = len(neurons[label])
        stats = self.collected.read(site)
        found = self.units(stats, [*neurons[label], *sorted(off)], label)
        return found[:own], found[own:]


def sites_read(recipe: SteeringRecipe) -> list[str]:
    """The sites whose means a recipe is made from."""
    return [*(site for site in recipe.sites if site != LOGITS), *written_layer(recipe)]
