"""What a sweep tries (prompts, sites, recipes), and the recipe without a sweep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.resources import files

from saefeat.config import BOUNDARY, CONSTANT, PROMPTING, STEERING_METHODS, Schedule, SteeringRecipe
from saefeat.hooks import site_width
from saefeat.io import UserError
from saefeat.models import LanguageModel
from saefeat.models.sites import UnknownSite
from saefeat.run.opened import OpenRun
from saefeat.run.stages import neuron_layers
from saefeat.steering.edits import LOGITS

STRENGTHS = (1.0, 1.3, 1.6, 2.0)
SHARED = (0.5, 0.7, 0.9, 1.2)  # strengths at each of several sites
_STRENGTH, _SHARED_STRENGTH = 1.3, 0.7  # by default, at one site and at each of several
_SCHEDULES = (Schedule(), Schedule(rest=0.15))
_START_ONLY = Schedule(first=4, rest=0.0)  # of clamps: weak ones would hold the units down
_STRONG = (1.0, 1.3, 1.6)  # of clamps of the projection
# Of the published methods at the sites of features: edit, schedule, strengths; () stands for those
# of vectors. Here and below, the first setting of an edit, and of a method, is the published one.
_PUBLISHED: dict[str, Sequence[tuple[str, Schedule, Sequence[float]]]] = {
    "clamp": [("clamp", CONSTANT, _STRONG), ("clamp", _START_ONLY, _STRONG)],
    "one-sided": [(f"clamp{BOUNDARY}", CONSTANT, STRENGTHS), ("clamp", CONSTANT, _STRONG)],
    "ablation": [("erase", CONSTANT, (1.0, 2.0)), ("erase, orthogonal", CONSTANT, (1.0, 2.0))],
    "gated": [("add", CONSTANT, ()), ("add", Schedule(), ())],
    "codes": [(edit, Schedule(), ()) for edit in STEERING_METHODS["codes"].edits],
    "langfir": [("add", Schedule(), ())],
    "output-score": [(edit, Schedule(), ()) for edit in STEERING_METHODS["output-score"].edits],
}
_STEPS = {"step, absolute": (1.0,), "step": (0.05, 0.1, 0.15), "step, relative": (0.02, 0.05)}
_RANDOM_RATE = {"langfir": {"random_rate": 0.1}}
_STRETCHES = (1.0, 0.7, 1.3)
_LOGITS = {"boost": (1.0, 2.0), "boost-adaptive": (1.0, 2.0), "log-odds": (0.5, 1.0, 2.0)}
_PROMPTED = SteeringRecipe(PROMPTING, "instruct", (), CONSTANT, 1.0, {})
_OVERWRITTEN = 0.1  # share of the coordinates; 400 of 4,096 to 5,120 as published


def english_prompts() -> list[str]:
    """The fixed English prompts, kind after kind; every second one is a half with all kinds."""
    kinds = json.loads(files("saefeat.run").joinpath("prompts.json").read_text(encoding="utf-8"))
    return [prompt for group in kinds.values() for prompt in group]


def full_grid(
    lm: LanguageModel,
    groups: Sequence[Sequence[str]],
    strengths: Sequence[float] | None = None,
    sites: Sequence[str] | None = None,
) -> list[SteeringRecipe]:
    """List what `steer sweep` tries.

    Methods with `by_site` steer at each group of sites, other published ones at the first group or
    where they need it, neurons at all layers. Prompting has one setting. Random controls, which
    are not basic, are tried by the first schedule alone.

    Args:
        groups: sites that are steered together.
        strengths: of vectors that are added; default those for one site, or for each of several.
        sites: of pca and overwrite, which read no SAE; default the middle of the stream.
    """
    first = tuple(groups[0])
    return [
        *_vectors(groups, strengths),
        *_published(first, strengths or _default_strengths(first)),
        *_whole(lm, tuple(sites or ())),
        *_neurons(lm),
        _PROMPTED,
    ]


def _vectors(
    groups: Sequence[Sequence[str]], strengths: Sequence[float] | None
) -> list[SteeringRecipe]:
    return [
        SteeringRecipe(name, "add", tuple(sites), schedule, strength, method.parameters)
        for name, method in reversed(STEERING_METHODS.items())
        if method.by_site
        for sites in groups
        for schedule in _SCHEDULES[: None if method.basic else 1]
        for strength in strengths or _default_strengths(sites)
    ]


def _published(sites: tuple[str, ...], added: Sequence[float]) -> list[SteeringRecipe]:
    """The methods of `saefeat.steering.makers` that steer where features do.

    `added`: strengths of vectors.
    """
    return [
        SteeringRecipe(
            *(method, edit, sites, at, strength),
            {**STEERING_METHODS[method].parameters, **_RANDOM_RATE.get(method, {})},
        )
        for method, settings in _PUBLISHED.items()
        for edit, at, strengths in settings
        for strength in strengths or added
    ]


def _whole(lm: LanguageModel, sites: tuple[str, ...]) -> list[SteeringRecipe]:
    """The methods of `saefeat.steering.makers` at the logits and in the stream."""
    tried = [
        (method, STEERING_METHODS[method].edits[0], (LOGITS,), CONSTANT, strength, {})
        for method, strengths in _LOGITS.items()
        for strength in strengths
    ]
    with suppress(UnknownSite):  # the blocks of this family are not known
        stream = tuple(f"resid_post@{layer}" for layer in range(lm.n_layers))
        width = site_width(lm, lm.site(stream[0]))
        tried += [
            ("recover", edit, stream, CONSTANT, strength, {})
            for edit, strengths in _STEPS.items()
            for strength in strengths
        ]
        at, few = sites or (stream[lm.n_layers // 2],), {"top": round(_OVERWRITTEN * width)}
        last = {**few, "layer": lm.n_layers - 1}
        tried += [
            ("pca", edit, at, CONSTANT, strength, {})
            for edit in STEERING_METHODS["pca"].edits
            for strength in _STRETCHES
        ]
        tried += [
            ("overwrite", edit, at, CONSTANT, strength, last)
            for edit in STEERING_METHODS["overwrite"].edits
            for strength in (0.4, 0.05, 0.1, 0.2)
        ]
        tried += [("overwrite", "clamp", at, CONSTANT, s, few) for s in _STRETCHES]
    return [
        SteeringRecipe(m, edit, at, schedule, s, {**STEERING_METHODS[m].parameters, **more})
        for m, edit, at, schedule, s, more in tried
    ]


def _neurons(lm: LanguageModel) -> list[SteeringRecipe]:
    try:
        layers = tuple(f"mlp_act@{layer}" for layer in neuron_layers(lm))
    except UnknownSite:  # the neurons of this family are not known
        return []
    clamps = (
        ("clamp", CONSTANT, 0.05),
        ("clamp, source off", CONSTANT, 0.03),
        ("clamp, source off", CONSTANT, 0.05),
        ("clamp, source off", _START_ONLY, 0.05),
    )
    return [
        SteeringRecipe("neurons", edit, layers, schedule, strength, {"top_rate": rate})
        for edit, schedule, rate in clamps
        for strength in (1.0, 1.5)
    ]


def demo_grid(sites: Sequence[str]) -> list[SteeringRecipe]:
    """List what the demo tries: the basic methods."""
    return [
        SteeringRecipe(name, "add", tuple(sites), Schedule(), strength, method.parameters)
        for name, method in reversed(STEERING_METHODS.items())
        if method.basic
        for strength in _default_strengths(sites)
    ]


def _default_strengths(sites: Sequence[str]) -> tuple[float, ...]:
    return SHARED if len(sites) > 1 else STRENGTHS


def default_recipe(
    opened: OpenRun, method: str, edit: str | None = None, sites: Sequence[str] | None = None
) -> SteeringRecipe:
    """The recipe of any label where no sweep has tried a method: the published setting.

    `edit` and `sites`: default those of the method.

    Raises UserError for an unknown method, or one that this family of models does not have.
    """
    grid = full_grid(opened.lm, [sites or steering_sites(opened)])
    found = [one for one in grid if one.method == method and edit in (None, one.edit)]
    if not found:
        known = ", ".join([*reversed(STEERING_METHODS)][:-1])
        raise UserError(f"there is no setting for {method}; the methods are {known}", "method")
    recipe = found[0] if sites is None else replace(found[0], sites=tuple(sites))
    if not STEERING_METHODS[method].by_site:
        return recipe
    return replace(recipe, strength=_SHARED_STRENGTH if len(recipe.sites) > 1 else _STRENGTH)


def steering_sites(opened: OpenRun) -> list[str]:
    """Sites where features steer by default.

    The residual stream at the SAE nearest to 30 % depth; every SAE's site if none reads the stream.
    """
    stream = _stream_layers(opened)
    if not stream:
        return list(dict.fromkeys(sae.site for sae in opened.saes))
    depth = 0.3 * (opened.lm.n_layers - 1)
    return [min(stream, key=lambda site: abs(stream[site] - depth))]


def stream_sites(opened: OpenRun) -> list[str]:
    """Sites of the residual stream with an SAE, up to the one where features steer by default."""
    stream, last = _stream_layers(opened), steering_sites(opened)
    if not stream:
        return last
    return sorted((s for s in stream if stream[s] <= stream[last[0]]), key=stream.__getitem__)


def _stream_layers(opened: OpenRun) -> dict[str, int]:
    """Site -> layer of the SAEs that read the residual stream."""
    stream = [sae.site for sae in opened.saes if sae.site.startswith("resid_post@")]
    return {site: int(site.split("@")[1]) for site in stream}
