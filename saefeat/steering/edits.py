"""Changes of a site's vectors: of the vectors themselves, or of the values of chosen units.

`add` and `replace` work on the vectors. `scale`, `ablate` and `clamp` work on units z and write
back only the difference that they make, `x + (z' - z) @ directions`: decoding all of z' would also
replace x by the SAE's reconstruction of it. Tokens of outlier norm are not edited, because the
statistics that the edits are made from leave them out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saefeat.dictionaries import Dictionary
from saefeat.tokens import outliers

Change = Callable[[Tensor, Tensor], Tensor]
"""(x float32 [batch, tokens, d], strength float32 [batch, tokens, 1]) -> the edited x."""

_Rule = Callable[[Tensor, Tensor], Tensor]  # (values z [..., m], strength) -> new values


def add(vector: Tensor, max_norm: float | None = None) -> Change:
    """Add strength * vector, float32 [d]. Vectors whose norm exceeds `max_norm` are kept."""
    return _edit_inliers(max_norm, lambda x, strength: x + strength * vector)


def replace(mean: Tensor, max_norm: float | None = None) -> Change:
    """Replace the whole vector by strength * mean, float32 [d]. For `max_norm` see `add`."""
    return _edit_inliers(max_norm, lambda x, strength: (strength * mean).expand_as(x))


def scale(dictionary: Dictionary, units: Sequence[int]) -> Change:
    """Multiply the units' values by 1 + strength: 1 doubles them, -1 sets them to zero.

    Here and below, an SAE has to be on the model's device.
    """
    return _edit_units(dictionary, units, lambda z, strength: z * (1 + strength))


def ablate(dictionary: Dictionary, units: Sequence[int]) -> Change:
    """Multiply the units' values by 1 - strength: 1 sets them to zero."""
    return _edit_units(dictionary, units, lambda z, strength: z * (1 - strength))


def clamp(
    dictionary: Dictionary, units: Sequence[int], values: Tensor, *, only_raise: bool = False
) -> Change:
    """Set the units' values to strength * values.

    Args:
        values: float32 [m], one per unit, on the model's device.
        only_raise: leave values that are higher already as they are.
    """
    if only_raise:
        return _edit_units(
            dictionary, units, lambda z, strength: torch.maximum(z, strength * values)
        )
    return _edit_units(dictionary, units, lambda z, strength: (strength * values).expand_as(z))


def _edit_units(dictionary: Dictionary, units: Sequence[int], rule: _Rule) -> Change:
    """Change the values z [..., m] of chosen units by a rule, and write the difference back."""
    index = torch.tensor(list(units), dtype=torch.int64)

    def edit(x: Tensor, strength: Tensor) -> Tensor:
        return dictionary.edit_units(x, index.to(x.device), lambda z: rule(z, strength))

    return _edit_inliers(dictionary.max_norm, edit)


def _edit_inliers(max_norm: float | None, change: Change) -> Change:
    """Make a change leave out the tokens that statistics leave out (see `saefeat.tokens`)."""
    if max_norm is None:
        return change
    return lambda x, strength: torch.where(outliers(x, max_norm)[..., None], x, change(x, strength))
