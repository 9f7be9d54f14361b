"""Published ways to steer, each a function of what was collected to changes by site.

`saefeat.steering.recipes` builds the methods that choose units and edit these. A maker takes
materials, a recipe, the label to steer towards and one site of the recipe. It returns the changes
and the number of units that they are made of, and no changes where it has none there.
Strength 1 has the length of the difference of means at the site wherever a vector is added.

For the random twin of a method the materials are `random`: what a maker chooses goes through
`Materials.units` or `Materials.direction`, which then draw as many random units, or a direction.
"""

from __future__ import annotations

from saefeat.steering.makers.axes import make_clamp, make_difference, make_stretch
from saefeat.steering.makers.common import Maker, no_units
from saefeat.steering.makers.features import (
    make_codes,
    make_erase,
    make_few_features,
    make_gated,
    make_output_score,
)
from saefeat.steering.makers.stream import make_overwrite, make_step, written_layer
from saefeat.steering.makers.tokens import make_boost, make_log_odds

__all__ = ["MAKERS", "no_units", "written_layer"]

MAKERS: dict[str, Maker] = {
    "diffmean": make_difference,
    "clamp": make_clamp,
    "one-sided": make_clamp,
    "ablation": make_erase,
    "gated": make_gated,
    "recover": make_step,
    "overwrite": make_overwrite,
    "pca": make_stretch,
    "codes": make_codes,
    "output-score": make_output_score,
    "langfir": make_few_features,
    "boost": make_boost,
    "boost-adaptive": make_boost,
    "log-odds": make_log_odds,
}
