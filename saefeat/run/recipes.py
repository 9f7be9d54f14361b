"""The recipe that a command steers with: of the last sweep or the default, as its options say."""

from __future__ import annotations

from dataclasses import replace

from saefeat.config import FEATURES, STEERING_METHODS, RecipeChoice, SteeringRecipe
from saefeat.io import UserError
from saefeat.run.grids import default_recipe
from saefeat.run.steer import Bench
from saefeat.rundir import RunDir
from saefeat.steering import NoUnits
from saefeat.steering.edits import LOGITS


def choose_recipe(bench: Bench, label: str, choice: RecipeChoice) -> SteeringRecipe:
    """The recipe of the last sweep, or the default one, with what is asked for in its place.

    With another edit or other sites than those of the sweep, the recipe is the default one of them,
    because schedule and strength were tuned for the others.

    Raises UserError for an edit that the method does not have, and for sites that the model or the
    SAEs of the run do not have; else as `load_recipe`.
    """
    recipe = load_recipe(bench, label, choice.method)
    edit, sites = choice.edit or recipe.edit, recipe.sites
    edits = STEERING_METHODS[choice.method].edits
    if edit not in edits:
        known = "; ".join(edits)
        raise UserError(f"{choice.method} has no edit {edit!r}; it has: {known}", "edit")
    if choice.sites is not None:
        sites = tuple(dict.fromkeys(choice.sites))
        _check_sites(bench, recipe, sites)
    if (edit, sites) != (recipe.edit, recipe.sites):
        recipe = default_recipe(bench.opened, choice.method, edit, sites)
    return recipe if choice.strength is None else replace(recipe, strength=choice.strength)


def _check_sites(bench: Bench, recipe: SteeringRecipe, sites: tuple[str, ...]) -> None:
    if recipe.sites in ((LOGITS,), ()):
        raise UserError(f"{recipe.method} edits no site of the model", "sites")
    for site in sites:
        try:
            bench.opened.lm.site(site)
        except UserError as error:
            raise UserError(str(error), "sites") from error
        if STEERING_METHODS[recipe.method].of_saes:
            bench.builder.saes_at(site)


def load_recipe(bench: Bench, label: str, method: str = FEATURES) -> SteeringRecipe:
    """Load the recipe that the last sweep chose for a label; a default one if none has tried it.

    Raises UserError when the sweep steered away from another label or there is no such method, and
    NoUnits when the sweep has nothing for the label.
    """
    path, label = bench.run.settings, bench.find_target(label)
    if not path.exists():
        return default_recipe(bench.opened, method)
    source, recipes = load_recipes(bench.run)
    if source != bench.source_label:
        message = f"{path} is of steering away from {source}, not {bench.source_label}; sweep again"
        raise UserError(message, command="steer sweep")
    if method not in recipes:
        return default_recipe(bench.opened, method)
    if label not in recipes[method]:
        raise NoUnits(f"{path} has no setting for {label}; sweep again", command="steer sweep")
    return recipes[method][label]


def load_recipes(run: RunDir) -> tuple[str, dict[str, dict[str, SteeringRecipe]]]:
    """Load the source label and the recipes, by method and label, that sweeps have chosen."""
    settings = run.load_settings()
    return settings["source"], settings["methods"] | {FEATURES: settings["labels"]}
