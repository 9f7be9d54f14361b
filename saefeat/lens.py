"""Logit lens: the tokens that a unit's direction promotes."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from saefeat.io import UserError
from saefeat.models import LanguageModel, find_layers, resolve_site
from saefeat.models.sites import down_projection, norm_after

_NORMS = (
    "norm",
    "ln_f",
    "final_layer_norm",
    "final_layernorm",
)  # Llama and its kin, GPT-2, OPT and NeoX, Phi


def promoted_tokens(lm: LanguageModel, directions: Tensor, n: int = 8) -> list[list[str]]:
    """The n tokens of greatest logit for each direction [m, d] of the residual stream, best first.

    The direction goes through the model's final norm and output projection, as a residual stream
    made of it alone.
    """
    dtype = lm.unembedding().dtype
    with torch.inference_mode():
        vectors = _final_norm(lm)(directions.to(lm.device, dtype))
        best = [
            (part @ lm.unembedding().t()).float().topk(n).indices.tolist()
            for part in vectors.split(64)
        ]
    return [[lm.tokenizer.decode([token]) for token in row] for part in best for row in part]


def _final_norm(lm: LanguageModel) -> nn.Module:
    """The norm before the output projection: of that name, and nearest to the top of the module tree.

    Where the projection reads fewer dimensions (OPT-350m), the module that makes them comes with
    it.
    """
    named = [
        (path.count("."), path)
        for path, _ in lm.model.named_modules()
        if path.rpartition(".")[2] in _NORMS
    ]
    named = [
        (depth, path) for depth, path in named if not re.search(r"\.\d+\.", path)
    ]  # not those of blocks
    norm = lm.model.get_submodule(min(named)[1]) if named else nn.Identity()
    narrow = [
        module for path, module in lm.model.named_modules() if path.endswith("decoder.project_out")
    ]
    return nn.Sequential(norm, *narrow)


def neuron_directions(lm: LanguageModel, site: str, units: list[int]) -> Tensor:
    """[m, d]: what hidden neurons of `mlp_act@l` add to the residual stream, of any length. UserError for other sites.

    They are rows of the down projection, times the gain of the norm after the feed-forward part
    where there is one. The norm also takes away the part of a neuron's effect that lies along the
    token's own vector. It is left out here, for it differs from token to token. So is the sign of
    the gate, where a gate multiplies the neurons.
    """
    resolved = resolve_site(lm.model, site)
    block: Any = lm.model.get_submodule(find_layers(lm.model))[resolved.layer or 0]  # type: ignore[index]
    module = down_projection(block)
    if not site.startswith("mlp_act@") or module is None:
        raise UserError(f"the units of {site} have no known direction in the residual stream")
    weight = module.weight.detach()
    # nn.Linear keeps [d, neurons], GPT-2's Conv1D [neurons, d].
    rows = weight[:, units].t() if isinstance(module, nn.Linear) else weight[units]
    norm = norm_after(block)
    return rows if norm is None else rows * _gain(norm, rows)


def _gain(norm: nn.Module, like: Tensor) -> Tensor:
    """[d]: what a norm multiplies each coordinate by, whether it keeps that factor or how far it is from 1.

    Read from a vector of mean 0 and mean square 1 and its negative, so that a bias falls out.
    """
    signs = torch.ones_like(like[0])
    signs[1::2] = -1
    with torch.inference_mode():
        return signs * (norm(signs) - norm(-signs)) / 2
