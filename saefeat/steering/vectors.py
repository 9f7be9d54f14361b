"""Steering vectors and limits, from statistics.

Strength 1 is one force for all methods: the length of the difference of means at the site.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from saefeat.dictionaries import Dictionary, Identity
from saefeat.io import UserError
from saefeat.statistics import Stats


def project_onto_units(
    units: Sequence[tuple[Dictionary, Sequence[int]]], difference: Tensor
) -> Tensor:
    """Project a difference of means onto the span of units' directions, and keep its norm.

    Of all weighted sums of the directions the projection is the one nearest to the difference; what
    the directions do not carry stays out. All coordinates of the site (the units of a whole
    identity) carry everything: the result is then the difference itself.

    Args:
        units: (dictionary, units) of the dictionaries of one site.
        difference: float64 [d].

    Returns:
        float32 [d] on the CPU; zero for no units.
    """
    if any(len(set(chosen)) == d.width == d.d_in for d, chosen in units):
        return difference.float()
    rows = [d.directions_of(chosen).cpu().double() for d, chosen in units if len(chosen)]
    if not rows:
        return torch.zeros_like(difference).float()
    span = torch.cat(rows).T
    # gelsd takes directions that depend on one another, as those of two SAEs of a site may.
    weights = torch.linalg.lstsq(span, difference.double()[:, None], driver="gelsd").solution
    return rescale((span @ weights)[:, 0], float(difference.norm()))


def rescale(vector: Tensor, length: float) -> Tensor:
    """Scale a vector to a length, float32; a zero vector stays zero."""
    return (vector.double() * (length / max(float(vector.double().norm()), 1e-30))).float()


def label_mean(stats: Stats, label: str) -> Tensor:
    """Mean values over all tokens of a label, float64 [width]. Raises UserError if unknown."""
    if label not in stats.labels:
        raise UserError(
            f"there is no label {label!r} in the statistics; they have {', '.join(stats.labels)}"
        )
    return stats.mean().cpu()[stats.labels.index(label)]


def norm_limit(dictionaries: Iterable[Dictionary]) -> float | None:
    """Greatest norm of a token that all of the dictionaries count; None: they count all tokens."""
    return min((d.max_norm for d in dictionaries if d.max_norm is not None), default=None)


def limit_of(means: Stats, dictionaries: Iterable[Dictionary]) -> float | None:
    """Greatest norm of a token that is edited at a site; None: all are.

    Args:
        means: statistics of the identity of the site, of which the difference of means is made.
        dictionaries: those of the site whose units steer.
    """
    return norm_limit([open_dictionary(means.header["dictionary"]), *dictionaries])


def open_dictionary(entry: Mapping[str, object]) -> Dictionary:
    """Open the dictionary of a header. Raises UserError when its directory is missing."""
    if entry.get("kind") == "identity":
        limit = entry.get("max_norm")
        return Identity(
            str(entry["site"]),
            int(str(entry["width"])),
            max_norm=None if limit is None else float(str(limit)),
        )
    from saefeat.sae.store import load_sae

    dtype = entry.get("dtype")
    return load_sae(Path(str(entry.get("path"))), dtype=None if dtype is None else str(dtype))
