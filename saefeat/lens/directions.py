"""Directions that units write into the residual stream, and the tokens that these promote."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saefeat.io import UserError
from saefeat.lens.logits import top_tokens
from saefeat.models import LanguageModel, find_layers, resolve_site
from saefeat.models.sites import down_projection, norm_after, written_rows


class NoDirection(UserError):
    """It is not known what the units of a site write into the residual stream."""


def promoted_tokens(lm: LanguageModel, directions: Tensor, n: int = 8) -> list[list[str]]:
    """Return the n tokens of greatest logit for each direction [m, d], best first.

    A direction goes through the model's final norm and output projection (without its bias), as if
    it were the whole residual stream.
    """
    rows = top_tokens(lm, directions, n, bias=False).tolist()
    return [[lm.tokenizer.decode([token]) for token in row] for row in rows]


def neuron_directions(lm: LanguageModel, site: str, units: list[int]) -> Tensor:
    """Return what hidden neurons of `mlp_act@l` add to the residual stream, up to a factor: [m, d].

    It is their rows of the down projection, times the gain of the norm after the feed-forward part
    where there is one. Two things differ from token to token and are left out: the part along the
    token's own vector, which such a norm removes, and the sign of the gate that multiplies neurons
    in gated blocks.

    Raises NoDirection for other sites.
    """
    layer = resolve_site(lm.model, site).layer or 0
    blocks: Any = lm.model.get_submodule(find_layers(lm.model))
    module = down_projection(blocks[layer])
    if not site.startswith("mlp_act@") or module is None:
        raise NoDirection(f"the units of {site} have no known direction in the residual stream")
    rows = written_rows(module)[units]
    norm = norm_after(blocks[layer])
    return rows if norm is None else rows * _gain(norm, rows)


def _gain(norm: nn.Module, like: Tensor) -> Tensor:
    """Return the factor of each coordinate in a norm, [d], however the norm stores it.

    It is read from the norm of a vector with mean 0 and mean square 1, and of its negative, so that
    a bias cancels.
    """
    signs = torch.ones_like(like[0])
    signs[1::2] = -1
    with torch.inference_mode():
        return signs * (norm(signs) - norm(-signs)) / 2
