"""Logit lens: the tokens that a unit's direction promotes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saefeat.io import UserError
from saefeat.models import LanguageModel, find_layers, resolve_site

_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
_DOWN = ("down_proj", "c_proj", "dense_4h_to_h", "fc2")


def promoted_tokens(lm: LanguageModel, directions: Tensor, n: int = 8) -> list[list[str]]:
    """The n tokens of greatest logit for each direction [m, d] of the residual stream, best first.

    The direction goes through the model's final norm and output projection, as a residual stream made of it alone.
    """
    dtype = lm.unembedding().dtype
    with torch.inference_mode():
        vectors = _final_norm(lm)(directions.to(lm.device, dtype))
        best = [(part @ lm.unembedding().t()).float().topk(n).indices.tolist() for part in vectors.split(64)]
    return [[lm.tokenizer.decode([token]) for token in row] for part in best for row in part]


def _final_norm(lm: LanguageModel) -> nn.Module:
    parent = lm.model.get_submodule(find_layers(lm.model).rpartition(".")[0])
    for holder in (parent, getattr(lm.model, lm.model.base_model_prefix, lm.model)):
        for name in _NORMS:
            if isinstance(getattr(holder, name, None), nn.Module):
                return getattr(holder, name)
    return nn.Identity()


def neuron_directions(lm: LanguageModel, site: str, units: list[int]) -> Tensor:
    """[m, d]: what hidden neurons of `mlp_act@l` write, rows of the down projection. UserError for other sites."""
    resolved = resolve_site(lm.model, site)
    block: Any = lm.model.get_submodule(find_layers(lm.model))[resolved.layer or 0]  # type: ignore[index]
    for name in _DOWN:
        if site.startswith("mlp_act@") and hasattr(block.mlp, name):
            module = getattr(block.mlp, name)
            weight = module.weight.detach()
            # nn.Linear keeps [d, neurons], GPT-2's Conv1D [neurons, d].
            return weight[:, units].t() if isinstance(module, nn.Linear) else weight[units]
    raise UserError(f"the units of {site} have no known direction in the residual stream")
