"""What a sweep tries (prompts, sites, recipes), and the recipe without a sweep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files

from saefeat.config import CONSTANT, STEERING_METHODS, Schedule, SteeringRecipe
from saefeat.io import UserError
from saefeat.models import LanguageModel
from saefeat.models.sites import UnknownSite
from saefeat.run.opened import OpenRun
from saefeat.run.stages import neuron_layers

STRENGTHS = (1.0, 1.3, 1.6, 2.0)
SHARED = (0.5, 0.7, 0.9, 1.2)  # strengths at each of several sites
_STRENGTH, _SHARED_STRENGTH = 1.3, 0.7  # by default, at one site and at each of several
_SCHEDULES = (Schedule(), Schedule(rest=0.15))
_START_ONLY = Schedule(first=4, rest=0.0)  # of clamps: weak ones would hold the units down


def english_prompts() -> list[str]:
    """The fixed English prompts, kind after kind; every second one is a half with all kinds."""
    kinds = json.loads(files("saefeat.run").joinpath("prompts.json").read_text(encoding="utf-8"))
    return [prompt for group in kinds.values() for prompt in group]


def full_grid(
    lm: LanguageModel, groups: Sequence[Sequence[str]], strengths: Sequence[float] | None = None
) -> list[SteeringRecipe]:
    """List what `steer sweep` tries.

    Methods that add a vector steer at each group of sites, neurons at all layers. Controls, which
    are not basic, are tried by the first schedule alone.

    Args:
        groups: sites that are steered together.
        strengths: of vectors; default those for one site, or for each of several.
    """
    grid = [
        SteeringRecipe(name, "add", tuple(sites), schedule, strength, method.parameters)
        for name, method in reversed(STEERING_METHODS.items())
        if method.by_site
        for sites in groups
        for schedule in _SCHEDULES[: None if method.basic else 1]
        for strength in strengths or _default_strengths(sites)
    ]
    try:
        layers = tuple(f"mlp_act@{layer}" for layer in neuron_layers(lm))
    except UnknownSite:  # the neurons of this family are not known
        return grid
    clamps = (
        ("clamp", CONSTANT, 0.05),
        ("clamp, source off", CONSTANT, 0.03),
        ("clamp, source off", CONSTANT, 0.05),
        ("clamp, source off", _START_ONLY, 0.05),
    )
    return grid + [
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


def default_recipe(opened: OpenRun, method: str) -> SteeringRecipe:
    """The recipe of any label before there was a sweep. Raises UserError for other methods."""
    basic = [name for name, one in reversed(STEERING_METHODS.items()) if one.basic]
    if method not in basic:
        raise UserError(
            f"there is no setting for {method}; before a sweep the methods are "
            f"{' and '.join(basic)}",
            "method",
        )
    sites = tuple(steering_sites(opened))
    strength = _SHARED_STRENGTH if len(sites) > 1 else _STRENGTH
    parameters = STEERING_METHODS[method].parameters
    return SteeringRecipe(method, "add", sites, Schedule(), strength, parameters)


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
