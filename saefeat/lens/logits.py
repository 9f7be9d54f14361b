"""Decode vectors of the residual stream by the model's own output projection."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from saefeat.hooks import capture
from saefeat.io import UserError
from saefeat.models import LanguageModel

# Names of the final norm: of Llama and its kin, GPT-2, OPT and NeoX, Phi.
_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
_VECTORS = 64  # decoded at once; each gives as many logits as the vocabulary has tokens
_TOLERANCE = 0.1  # of the standard deviation of logits; bfloat16 rounds those of 20 to .1


def logits(lm: LanguageModel, vectors: Tensor, *, norm: bool = True, bias: bool = True) -> Tensor:
    """Decode vectors [n, d] of the residual stream: float32 [n, vocabulary].

    Args:
        norm: put them through the model's final norm. So the vectors after the last block give the
            model's own logits. Without it, papers decode earlier layers (arXiv 2402.18815).
        bias: add that of the output projection, if it has one. No vector of the stream gives it.
    """
    head: Any = lm.model.get_output_embeddings()
    with torch.inference_mode():
        x = before_projection(lm, vectors, norm=norm)
        found = head(x) if bias else linear(x, lm.unembedding())
        return _scaled(lm, found.float())


def before_projection(lm: LanguageModel, vectors: Tensor, *, norm: bool = True) -> Tensor:
    """Return what the output projection reads of vectors [n, d] of the stream: [n, d'].

    After the last block these are the last hidden states of transformers. They have the dtype of
    the output projection, and d' = d but where a model makes fewer dimensions.

    Args:
        norm: put them through the model's final norm.
    """
    with torch.inference_mode():
        x = vectors.to(lm.device, lm.unembedding().dtype)
        for module in [*_final_norm(lm)] * norm + _narrowing(lm):
            x = module(x)
        return x


def decoded(
    lm: LanguageModel, vectors: Tensor, *, norm: bool = True, bias: bool = True
) -> Iterator[tuple[slice, Tensor]]:
    """As `logits`, for any number of vectors: yields the rows of a part and its logits."""
    for start in range(0, len(vectors), _VECTORS):
        rows = slice(start, start + _VECTORS)
        yield rows, logits(lm, vectors[rows], norm=norm, bias=bias)


def top_tokens(
    lm: LanguageModel, vectors: Tensor, n: int, *, norm: bool = True, bias: bool = True
) -> Tensor:
    """Find the n tokens of greatest logit for each vector [m, d], best first: int64 [m, n].

    `norm`, `bias`: see `logits`.
    """
    n = min(n, lm.unembedding().shape[0])
    found = decoded(lm, vectors, norm=norm, bias=bias)
    parts = [part.topk(n).indices.cpu() for _, part in found]
    return torch.cat(parts) if parts else torch.empty(0, n, dtype=torch.int64)


def top_probabilities(
    lm: LanguageModel, vectors: Tensor, n: int, *, norm: bool = True
) -> tuple[Tensor, Tensor]:
    """As `top_tokens`, with the next-token probability of each token: float32 [m, n]."""
    n = min(n, lm.unembedding().shape[0])
    ids, chances = torch.empty(0, n, dtype=torch.int64), torch.empty(0, n)
    for _, part in decoded(lm, vectors, norm=norm):
        top = part.topk(n)
        best = top.values[:, :1]
        # Row by row, so that a row stays in the cache. What is less than e^-80 of the best adds
        # nothing, and its exponential would be a subnormal number, which takes very long.
        pairs = zip(part, best, strict=True)
        total = torch.stack([(row - one).clamp_(min=-80).exp_().sum() for row, one in pairs])
        chance = (top.values - best).exp() / total[:, None]
        ids, chances = torch.cat([ids, top.indices.cpu()]), torch.cat([chances, chance.cpu()])
    return ids, chances


def set_probabilities(
    lm: LanguageModel, vectors: Tensor, sets: Sequence[Sequence[Sequence[int]]], *, norm: bool
) -> Tensor:
    """Sum the next-token probabilities over sets of tokens: float64 [n, K].

    Args:
        vectors: [n, d].
        sets: for each vector, K sets of token ids. An id counts once.
    """
    found = []
    for rows, part in decoded(lm, vectors, norm=norm):
        chances = part.double().softmax(-1).cpu()
        for row, of in zip(chances, sets[rows], strict=True):
            found.append(torch.stack([row[sorted(set(ids))].sum() for ids in of]))
    return torch.stack(found)


def check_decoding(lm: LanguageModel) -> None:
    """Raise UserError unless vectors after the last block give the model's own logits.

    A family of models may do something between that is not known here.
    """
    ids = torch.tensor([[*lm.prefix, *range(min(8, lm.embedding_rows))]], device=lm.device)
    path = lm.site(f"resid_post@{lm.n_layers - 1}").path
    with capture(lm.model, (path,)) as captured, torch.inference_mode():
        last = captured.run(lm.model, input_ids=ids, use_cache=False)[path][0]
    with torch.inference_mode():
        own = lm.model(input_ids=ids, use_cache=False).logits[0].float()
    if not (logits(lm, last) - own).abs().max() <= _TOLERANCE * own.std():
        raise UserError(
            f"the logit lens does not know what {lm.name} does between its last block and its "
            "logits; use the kinds that decode no tokens: alignment and probe",
            "kinds",
        )


def _final_norm(lm: LanguageModel) -> list[nn.Module]:
    """Return the norm between the residual stream and the output projection; none if none is known.

    It is the norm of a known name that is nearest to the top of the module tree and in no block.
    """
    modules = dict(lm.model.named_modules())
    norms = [path for path in modules if path.rpartition(".")[2] in _NORMS]
    norms = [path for path in norms if not re.search(r"\.\d+\.", path)]
    top = min(norms, key=lambda path: (path.count("."), path), default=None)
    return [] if top is None else [modules[top]]


def _narrowing(lm: LanguageModel) -> list[nn.Module]:
    """Return what makes fewer dimensions, where the projection reads fewer (OPT-350m)."""
    modules = lm.model.named_modules()
    return [module for path, module in modules if path.endswith("decoder.project_out")]


def _scaled(lm: LanguageModel, found: Tensor) -> Tensor:
    """Return logits as the model scales them: Cohere, Granite, and the cap of Gemma 2."""
    config = lm.model.config.get_text_config()
    found = found * (getattr(lm.model, "logit_scale", None) or 1.0)
    found = found / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return found if cap is None else torch.tanh(found / cap) * cap
