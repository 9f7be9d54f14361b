"""Logit lens: the tokens that a direction of the residual stream promotes (nostalgebraist 2020)."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from saefeat.io import UserError
from saefeat.models import LanguageModel, find_layers, resolve_site
from saefeat.models.sites import down_projection, norm_after, written_rows

# Names of the final norm: of Llama and its kin, GPT-2, OPT and NeoX, Phi.
_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
_DIRECTIONS = 64  # projected at once; each gives as many logits as the vocabulary has tokens


class NoDirection(UserError):
    """It is not known what the units of a site write into the residual stream."""


def promoted_tokens(lm: LanguageModel, directions: Tensor, n: int = 8) -> list[list[str]]:
    """Return the n tokens of greatest logit for each direction [m, d], best first, as text."""
    rows = promoted_ids(lm, directions, n)
    return [[lm.tokenizer.decode([token]) for token in row] for row in rows]


def promoted_ids(lm: LanguageModel, directions: Tensor, n: int) -> list[list[int]]:
    """Return the ids of the n tokens of greatest logit for each direction [m, d], best first.

    A direction goes through the model's final norm and output projection, as if it were the whole
    residual stream.
    """
    weight = lm.unembedding()
    with torch.inference_mode():
        vectors = _final_norm(lm)(directions.to(lm.device, weight.dtype))
        parts = [(part @ weight.t()).float().topk(n).indices for part in vectors.split(_DIRECTIONS)]
    return [row for part in parts for row in part.tolist()]


def _final_norm(lm: LanguageModel) -> nn.Module:
    """Return what stands between the residual stream and the output projection.

    It is the norm of a known name that is nearest to the top of the module tree and in no block.
    Where the projection reads fewer dimensions (OPT-350m), the module that makes them follows.
    """
    modules = dict(lm.model.named_modules())
    norms = [path for path in modules if path.rpartition(".")[2] in _NORMS]
    norms = [path for path in norms if not re.search(r"\.\d+\.", path)]
    top = min(norms, key=lambda path: (path.count("."), path), default=None)
    narrowing = [module for path, module in modules.items() if path.endswith("decoder.project_out")]
    return nn.Sequential(nn.Identity() if top is None else modules[top], *narrowing)


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
