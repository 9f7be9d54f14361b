"""Changes of vectors along directions: clamp, erase, gate, step, stretch.

`saefeat.steering.makers` chooses the directions; here is only what is done with them. As in
`saefeat.steering.edits`, a change takes x float32 [batch, tokens, d] and strengths, and vectors
whose norm exceeds `max_norm` are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saefeat.dictionaries import Dictionary
from saefeat.steering.edits import Change, edit_inliers


def clamp_projection(
    axis: Tensor, low: float, high: float, max_norm: float | None = None, *, one_sided: bool = False
) -> Change:
    """Set the projection on an axis to low + strength * (high - low).

    The clamp of Stolfo et al. (ICLR 2025) has strength 1: it sets the projection to `high`.

    Args:
        axis: a unit vector, float32 [d].
        one_sided: move only the tokens that fall short of it (arXiv 2604.08169). With a negative
            strength they are those that exceed it.
    """

    def change(x: Tensor, strength: Tensor) -> Tensor:
        by = strength * (high - low)
        move = low + by - (x @ axis)[..., None]
        if one_sided:
            move = torch.where(by >= 0, move.clamp(min=0), move.clamp(max=0))
        return x + move * axis

    return edit_inliers(max_norm, change)


def erase(directions: Tensor, max_norm: float | None = None, *, orthogonal: bool = False) -> Change:
    """Subtract strength times the parts along directions, float32 [m, d] (arXiv 2505.05111).

    As published, each coefficient is that of the original vector, so what overlapping directions
    share is removed more than once. `orthogonal`: remove the span of the directions, once.
    """
    if orthogonal:
        _, sizes, basis = torch.linalg.svd(directions, full_matrices=False)
        rows = basis[sizes > 1e-5 * sizes.max()]
    else:
        rows = directions / directions.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return edit_inliers(max_norm, lambda x, strength: x - strength * (x @ rows.T @ rows))


def add_where_firing(
    vector: Tensor, gates: Sequence[tuple[Dictionary, Sequence[int]]], max_norm: float | None = None
) -> Change:
    """Add strength * vector, float32 [d], to the tokens on which a unit of the gates fires.

    Gated steering of arXiv 2505.05111, whose code is not released.

    Args:
        gates: dictionaries of the site, on the model's device, and units of each.
    """

    def change(x: Tensor, strength: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        fires = torch.zeros(len(flat), dtype=torch.bool, device=x.device)
        for dictionary, units in gates:
            index = torch.tensor(list(units), dtype=torch.int64, device=x.device)
            fires |= (dictionary.encode(flat).of(index) > 0).any(1)
        return x + strength * vector * fires.view(*x.shape[:-1], 1)

    return edit_inliers(max_norm, change)


def step(
    axis: Tensor, length: float, max_norm: float | None = None, *, relative: bool = False
) -> Change:
    """Add strength * length * axis, then restore the norm that the vector had (ReCoVeR).

    arXiv 2509.14814, with `--restore_norm`.

    Args:
        axis: a unit vector, float32 [d].
        relative: the length is in units of each vector's own norm.
    """

    def change(x: Tensor, strength: Tensor) -> Tensor:
        norm = x.norm(dim=-1, keepdim=True)
        moved = x + strength * length * (norm if relative else 1.0) * axis
        return moved * (norm / moved.norm(dim=-1, keepdim=True).clamp(min=1e-30))

    return edit_inliers(max_norm, change)


def stretch(
    axis: Tensor,
    centre: Tensor,
    factor: float,
    max_norm: float | None = None,
    *,
    side: float | None = None,
) -> Change:
    """Lengthen the part of x - centre along an axis by strength * factor (arXiv 2510.13849).

    Args:
        axis: a unit vector, float32 [d].
        centre: float32 [d].
        side: change only the tokens whose part has the sign of this number; None: all.
    """

    def change(x: Tensor, strength: Tensor) -> Tensor:
        part = ((x - centre) @ axis)[..., None]
        moved = part if side is None else torch.where(part * side > 0, part, 0.0)
        return x + strength * factor * moved * axis

    return edit_inliers(max_norm, change)
