"""Steps of kept norm at every layer, and coordinates that are overwritten."""

from __future__ import annotations

from torch import Tensor

from saefeat.codes import STEP
from saefeat.config import SteeringRecipe
from saefeat.steering.along import step
from saefeat.steering.changes import label_mean, open_dictionary
from saefeat.steering.edits import Change, clamp
from saefeat.steering.makers.common import (
    NOTHING,
    Made,
    direction_at,
    limit_at,
    no_units,
    on_device,
)
from saefeat.steering.materials import Materials
from saefeat.tokens import OUTLIER_FACTOR


def make_step(m: Materials, recipe: SteeringRecipe, label: str, site: str) -> Made:
    """Take a step of kept norm at each layer (ReCoVeR, arXiv 2509.14814).

    Along (mean of the label - m) - beta (mean of the source - m), m the mean over labels. Strength
    1 is the length of the difference of means; for `step, absolute` it is 1, as published, for
    `step, relative` the norm of the vector itself.

    The paper leaves the first position of the prompt as it is. Here, as in all edits, special
    tokens are left as they are: where the tokenizer puts none before a text, its first token is
    edited too.
    """
    means = m.collected.read(site)
    _, length = direction_at(m, site, label)
    target = label_mean(means, label)
    source = target - m.collected.difference(site, label)
    centre = means.mean().cpu()[means.counted].mean(0)
    axis = (target - centre) - recipe.parameters["beta"] * (source - centre)
    if not axis.any():
        return NOTHING
    relative = recipe.edit.endswith("relative")
    length = 1.0 if relative or recipe.edit.endswith("absolute") else length
    unit = on_device(m, m.direction(axis / axis.norm(), label, site))
    return {site: [step(unit, length, limit_at(m, site), relative=relative)]}, 0


def make_overwrite(m: Materials, recipe: SteeringRecipe, label: str, site: str) -> Made:
    """Overwrite the coordinates whose means differ most (arXiv 2510.07213).

    They get strength times their mean in the label. Differences and means are those of the layer
    `layer` of the stream, or else of the site itself; the paper takes the end of the stream. That
    is the output of the last layer for Aya; for Llama it is the stream before the last MLP, which
    is no site here. With `clamp, monolingual` the difference is that of the label's means at the
    layer `anchor`, or else the site itself, and at `layer`; the paper's anchor is 19. Coordinates
    of outlier mean are left out; the paper names them for each model.
    """
    layer, anchor = recipe.parameters.get("layer"), recipe.parameters.get("anchor")
    read = site if layer is None else _stream(layer)
    means = m.collected.read(read)
    if means.mean().shape != m.collected.read(site).mean().shape:
        raise no_units(recipe, label, f"{read} has other coordinates; choose other sites")
    difference = m.collected.difference(read, label).clone()
    if recipe.edit.endswith("monolingual"):
        at = m.collected.read(site if anchor is None else _stream(anchor))
        difference = label_mean(at, label) - label_mean(means, label)
    every = means.total.cpu()[means.counted].sum(0).double() * STEP / means.tokens.sum()
    factor = recipe.parameters.get("outlier_factor", OUTLIER_FACTOR)
    outliers = every.abs() > factor * every.abs().median()
    difference[outliers] = 0
    order = difference.abs().argsort(descending=True, stable=True)[: int(recipe.parameters["top"])]
    chosen = order[difference[order] != 0].tolist()
    units = m.units(means, chosen, label, outliers.nonzero().flatten().tolist())
    if not units:
        return NOTHING
    values = on_device(m, label_mean(means, label)[units])
    return {site: [_overwrite(m, site, units, values)]}, len(units)


def _overwrite(m: Materials, site: str, units: list[int], values: Tensor) -> Change:
    header = {**m.collected.read(site).header["dictionary"], "max_norm": limit_at(m, site)}
    return clamp(open_dictionary(header), units, values)


def written_layer(recipe: SteeringRecipe) -> list[str]:
    """The further sites whose means an overwriting recipe reads."""
    named = (recipe.parameters.get(name) for name in ("layer", "anchor"))
    return [_stream(layer) for layer in named if layer is not None]


def _stream(layer: float) -> str:
    return f"resid_post@{int(layer)}"
