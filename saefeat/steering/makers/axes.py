"""One direction of a site: added, clamps of the projection on it, and a stretch along it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saefeat.config import BOUNDARY, SteeringRecipe
from saefeat.steering.along import clamp_projection, stretch
from saefeat.steering.changes import label_mean
from saefeat.steering.edits import add
from saefeat.steering.makers.common import (
    Made,
    classes_at,
    direction_at,
    limit_at,
    no_units,
    on_device,
)
from saefeat.steering.materials import Materials

_FLAT = 0.05  # least mean of the source on an axis that is stretched, in standard deviations


def make_difference(m: Materials, _recipe: SteeringRecipe, label: str, site: str) -> Made:
    """Add the difference of means."""
    return {site: [add(on_device(m, m.difference(site, label)), limit_at(m, site))]}, 0


def make_clamp(m: Materials, recipe: SteeringRecipe, label: str, site: str) -> Made:
    """Set the projection on the difference of means to the label's mean (Stolfo et al., 2025).

    `one-sided` moves only the tokens that fall short of it. Of strength s, the target lies at s
    times the way from the source's mean to the label's.
    """
    one_sided = recipe.method == "one-sided"
    if recipe.edit.endswith(BOUNDARY):
        axis, low, high = _boundary(m, recipe, label, site)
    else:
        axis, length = direction_at(m, site, label)
        high = float(label_mean(m.collected.read(site), label) @ axis)
        low = high - length
    if m.random:  # the same way from the mean of the source
        axis = m.direction(axis, label, site)
        target = label_mean(m.collected.read(site), label)
        begin = float((target - m.collected.difference(site, label)) @ axis)
        low, high = begin, begin + high - low
    change = clamp_projection(on_device(m, axis), low, high, limit_at(m, site), one_sided=one_sided)
    return {site: [change]}, 0


def _boundary(
    m: Materials, recipe: SteeringRecipe, label: str, site: str
) -> tuple[Tensor, float, float]:
    """The axis of a logistic regression, the source's mean on it, and the boundary (2604.08169)."""
    from sklearn.linear_model import LogisticRegression

    near, far = classes_at(m, label, site)
    x = torch.cat([near, far]).double()
    centre, size = x.mean(0), x.std()
    # Of one scale for all coordinates, so that the boundary is that of the vectors themselves.
    model: Any = LogisticRegression(C=1.0, max_iter=300)
    model.fit(((x - centre) / size).numpy(), [1] * len(near) + [0] * len(far))
    weight = torch.from_numpy(model.coef_[0])
    axis = weight / weight.norm()
    high = float(centre @ axis - size * float(model.intercept_[0]) / weight.norm())
    low = float(far.double().mean(0) @ axis)
    if not low < high:
        raise no_units(recipe, label, "its tokens and those of the source are not separated")
    return axis, low, high


def make_stretch(m: Materials, recipe: SteeringRecipe, label: str, site: str) -> Made:
    """Stretch the first principal component from the source's mean to the label's (2510.13849).

    The axis is that of the tokens of all labels, or of the two (`stretch, pair`). With `source
    side`, only tokens on the side of the source's mean are changed. The paper asks so of later
    tokens only, and takes the side of the prompt.
    """
    near, far = classes_at(m, label, site)
    pooled = torch.cat([near, far])
    if not recipe.edit.startswith("stretch, pair"):
        pooled = m.evidence.sample(site, limit_at(m, site)).x
    centre = pooled.double().mean(0)
    moved = pooled.double() - centre
    axis = torch.linalg.eigh(moved.T @ moved).eigenvectors[:, -1]
    means = m.collected.read(site)
    target = label_mean(means, label)
    source = target - m.collected.difference(site, label)
    of_target, of_source = (float((mean - centre) @ axis) for mean in (target, source))
    if abs(of_source) < _FLAT * float((moved @ axis).std()):
        raise no_units(recipe, label, "the mean of the source lies at the centre of the axis")
    factor = of_target / of_source - 1
    if m.random:  # tokens move as far along a random axis, in the mean square
        spread = (moved @ axis).std()
        axis = m.direction(axis, label, site)
        factor *= float(spread / (moved @ axis).std())
        of_source = float((source - centre) @ axis)
    side = of_source if recipe.edit.endswith("source side") else None
    change = stretch(on_device(m, axis), on_device(m, centre), factor, limit_at(m, site), side=side)
    return {site: [change]}, 0
