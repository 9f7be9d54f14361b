"""Random twins of what steers: as many units, or a direction of the same length. They are seeded.

A method is compared with the same edit of random units, or along a random direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saefeat.corpora import hashed
from saefeat.statistics import Stats

SEED = 11


def random_units(stats: Stats, chosen: Sequence[int], seed: int) -> list[int]:
    """Draw as many units as were chosen, from all others that fire."""
    fires = stats.fired.sum(0).bool()
    fires[list(chosen)] = False
    others = fires.nonzero().flatten()
    generator = torch.Generator().manual_seed(seed)
    return others[torch.randperm(len(others), generator=generator)[: len(chosen)]].tolist()


def random_vector(like: Tensor, *of: Any) -> Tensor:
    """A random direction with the shape, dtype and length of a vector; `of` seeds it."""
    drawn = torch.randn(like.shape, generator=_generator(of), dtype=torch.float64)
    return (drawn * (like.double().norm() / drawn.norm())).to(like.dtype)


def shuffled(values: Tensor, *of: Any) -> Tensor:
    """The values of a vector in a random order; `of` seeds it."""
    return values[torch.randperm(len(values), generator=_generator(of))]


def _generator(of: Sequence[Any]) -> torch.Generator:
    return torch.Generator().manual_seed(hashed(SEED, *of))
