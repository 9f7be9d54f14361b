"""Test-time edits: units are set to a statistic of the values that all units have at the moment.

Rahmanisa et al., arXiv 2507.22581.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from saefeat.codes import Codes
from saefeat.dictionaries import Dictionary
from saefeat.steering.edits import Change, edit_inliers

_CELLS = 2**24  # values of units of several tokens held at once

_Statistic = Callable[[Tensor, Tensor], Tensor]
"""(values of all units [..., n], values of the edited units [..., m]) -> the statistic [...]."""


def quantile_of(values: Tensor, quantile: float) -> Tensor:
    """The quantile over the last dimension, as `torch.quantile`, but for any number of values."""
    count = values.shape[-1]
    place = quantile * (count - 1)
    rank = int(place)

    def smallest(k: int) -> Tensor:
        return values.amax(-1) if k == count else values.kthvalue(k, -1).values

    below = smallest(rank + 1)
    return below if rank == place else below.lerp(smallest(rank + 2), place - rank)


def _quantile_of_all(quantile: float, every: Tensor, _units: Tensor) -> Tensor:
    return quantile_of(every, quantile)


def _deviation_of_units(every: Tensor, units: Tensor) -> Tensor:
    return (units - every.median(-1, keepdim=True).values).abs().median(-1).values


STATISTICS: dict[str, _Statistic] = {
    "mean": lambda every, _: every.mean(-1),
    "std": lambda every, _: every.std(-1),
    "iqr": lambda every, _: quantile_of(every, 0.75) - quantile_of(every, 0.25),
    "mad": _deviation_of_units,
}
"""Statistics of `follow` as the code of arXiv 2507.22581 computes them, all but quantiles.

std: divided by n - 1, the default of torch. iqr: the quantile .75 less that of .25, by linear
interpolation. mad: the median, over the edited units alone, of the distances of their values from
the median of all units; each median is that of torch, the lower one of two middle values. Most
features of a token are 0, and so are their iqr and mad; these two are for neurons.
"""


def follow(
    dictionary: Dictionary,
    units: Sequence[int],
    statistic: float | str = 1.0,
    *,
    added: bool = False,
    of_pass: bool = False,
) -> Change:
    """Set the units' values to strength * a statistic of the present values of all units.

    Args:
        statistic: a quantile from 0 to 1, between neighbours by linear interpolation, of which 1 is
            the maximum; or the name of one of `STATISTICS`.
        added: add it to the units' values instead.
        of_pass: False: each token has the statistic of its own values, so that an edit of a token
            does not depend on the others, and generation is the same with and without a cache.
            True: as published, each row has one statistic of all its tokens in the forward pass. A
            pass with a cache holds the new tokens alone, so that generation with and without a
            cache differ; it is meant for passes over whole texts. Only tokens that are edited
            count, which leaves out padding, special tokens (the published code takes BOS in) and
            outliers.
    """
    index = torch.tensor(list(units), dtype=torch.int64)
    if isinstance(statistic, str):
        measure = STATISTICS[statistic]
    else:
        measure = partial(_quantile_of_all, statistic)

    def change(x: Tensor, strength: Tensor) -> Tensor:
        if not len(index):
            return x
        codes, chosen = dictionary.encode(x.flatten(0, -2)), index.to(x.device)
        if of_pass:
            level = _level_of_rows(codes, chosen, _counted(dictionary, x, strength), measure)
        else:
            level = _level_of_tokens(codes, chosen, measure).view(*x.shape[:-1], 1)
        target = strength * level
        return dictionary.edit_units(
            x, chosen, lambda z: z + target if added else target.expand_as(z)
        )

    return edit_inliers(dictionary.max_norm, change)


def _counted(dictionary: Dictionary, x: Tensor, strength: Tensor) -> Tensor:
    """Which tokens are edited: bool [batch, tokens]."""
    edited, kept = strength[..., 0] != 0, dictionary.keeps(x.flatten(0, -2))
    return edited if kept is None else edited & kept.view_as(edited)


def _level_of_rows(codes: Codes, units: Tensor, counted: Tensor, measure: _Statistic) -> Tensor:
    """The statistic of the values of the counted tokens of each row: float32 [batch, 1, 1]."""
    level = torch.zeros(len(counted), 1, 1, device=counted.device)
    places = torch.arange(counted.numel(), device=counted.device).view_as(counted)
    for row, (some, keep) in enumerate(zip(places, counted, strict=True)):
        if keep.any():
            every = codes.at(some[keep])
            level[row] = measure(every.flatten(), every[:, units].flatten())
    return level


def _level_of_tokens(codes: Codes, units: Tensor, measure: _Statistic) -> Tensor:
    """The statistic of the values of each token: float32 [n]."""
    tokens = torch.arange(len(codes), device=codes.values.device)
    parts = map(codes.at, tokens.split(max(1, _CELLS // codes.width)))
    return torch.cat([measure(every, every[:, units]) for every in parts])
