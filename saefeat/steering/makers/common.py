"""What makers share: their type, and the directions and limits of a site."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from saefeat.config import STEERING_METHODS, SteeringRecipe
from saefeat.steering.changes import NoUnits, check_counted, limit_of
from saefeat.steering.edits import Change
from saefeat.steering.materials import Materials

Made = tuple[Mapping[str, list[Change]], int]
Maker = Callable[[Materials, SteeringRecipe, str, str], Made]

NOTHING: Made = ({}, 0)


def no_units(recipe: SteeringRecipe, label: str, why: str = "") -> NoUnits:
    """The error of a recipe that has nothing to steer with."""
    where = ", ".join(recipe.sites)
    why = why or STEERING_METHODS[recipe.method].remedy
    return NoUnits(f"the method {recipe.method} has no units for {label} at {where}; {why}")


def limit_at(m: Materials, site: str) -> float | None:
    """The greatest norm of a token that is edited at a site."""
    return limit_of(m.collected.read(site), [sae for sae in m.saes if sae.site == site])


def on_device(m: Materials, vector: Tensor) -> Tensor:
    return vector.float().to(m.collected.device)


def direction_at(m: Materials, site: str, label: str) -> tuple[Tensor, float]:
    """The unit vector of the difference of means, float64 [d], and the length of the difference.

    For a control the unit vector is random.

    Raises NoUnits where the means do not differ.
    """
    difference = m.difference(site, label)
    length = float(difference.norm())
    if not length:
        raise NoUnits(f"the means of {label} and of its source are equal at {site}")
    return difference / length, length


def classes_at(m: Materials, label: str, site: str) -> tuple[Tensor, Tensor]:
    """Samples of the vectors of the label and of its source, which may be all other labels."""
    means, source = m.collected.read(site), m.collected.source_label
    check_counted(means, label, source)
    sample = m.evidence.sample(site, limit_at(m, site))
    others = [name for name in sample.labels if name != label]
    return sample.take([label]), sample.take(others if source is None else [source])
