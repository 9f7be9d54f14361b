"""What a sweep tries: prompts, and recipes by method, site, schedule and strength."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files

from saefeat.io import UserError
from saefeat.models import LanguageModel
from saefeat.run.stages import neuron_layers
from saefeat.run.steer import TOP
from saefeat.steering import CONSTANT, Schedule, SteeringRecipe

STRENGTHS = (1.0, 1.3, 1.6, 2.0)
SHARED = (0.5, 0.7, 0.9, 1.2)  # strengths at each of several sites
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

    Features, the difference of means and random features steer at each group of sites, neurons at
    all layers.

    Args:
        groups: sites that are steered together.
        strengths: of vectors; default those for one site, or for each of several.
    """
    grid = [
        SteeringRecipe(method, "add", tuple(sites), schedule, strength, parameters)
        for method, parameters, schedules in (
            ("features", {"top": TOP}, _SCHEDULES),
            ("diffmean", {}, _SCHEDULES),
            ("random", {"top": TOP}, _SCHEDULES[:1]),
        )
        for sites in groups
        for schedule in schedules
        for strength in strengths or _default_strengths(sites)
    ]
    off = "clamp, source off"
    clamps = (
        ("clamp", CONSTANT, 0.05),
        (off, CONSTANT, 0.03),
        (off, CONSTANT, 0.05),
        (off, _START_ONLY, 0.05),
    )
    layers = _neuron_sites(lm)
    grid += [
        SteeringRecipe("neurons", edit, layers, schedule, strength, {"top_rate": rate})
        for edit, schedule, rate in clamps
        for strength in (1.0, 1.5)
        if layers
    ]
    return grid


def demo_grid(sites: Sequence[str]) -> list[SteeringRecipe]:
    """List what the demo tries: features and the difference of means."""
    return [
        SteeringRecipe(method, "add", tuple(sites), Schedule(), strength, parameters)
        for method, parameters in (("features", {"top": TOP}), ("diffmean", {}))
        for strength in _default_strengths(sites)
    ]


def _default_strengths(sites: Sequence[str]) -> tuple[float, ...]:
    return SHARED if len(sites) > 1 else STRENGTHS


def _neuron_sites(lm: LanguageModel) -> tuple[str, ...]:
    """`mlp_act` of every layer that has it; empty for a family whose neurons are not known."""
    try:
        return tuple(f"mlp_act@{layer}" for layer in neuron_layers(lm))
    except UserError:
        return ()
