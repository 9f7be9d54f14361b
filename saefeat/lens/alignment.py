"""MEXA: how far translations are nearest to each other (Kargaran et al., arXiv 2410.05873)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saefeat.activations import counted_vectors
from saefeat.corpora import Batch, plan_batches
from saefeat.lens.logits import before_projection
from saefeat.lens.stream import by_row
from saefeat.models import LanguageModel

POOLINGS = ("weighted mean", "last token")
Embeddings = dict[tuple[str, str], NDArray[np.float64]]
"""(site, one of POOLINGS) -> the embeddings of n texts, float64 [n, d]."""


def cosines(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines of the rows of [n, d] and [m, d]: float64 [n, m]; NaN for a vector of zeros."""
    with np.errstate(invalid="ignore", divide="ignore"):
        units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, other)]
    return units[0] @ units[1].T


def aligned(similarity: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each pair (i, i) of texts is aligned, given similarities [n, n]: bool [n].

    It is where its similarity is greater than all others of its row and of its column. A tie is
    none. The score MEXA is the mean.
    """
    others = np.where(np.eye(len(similarity), dtype=bool), -np.inf, similarity)
    own = similarity.diagonal()
    return (own > others.max(1)) & (own > others.max(0))


def aligned_otherwise(similarity: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each pair (i, i + 1) of texts that are no translations is aligned: bool [n].

    The last text is paired with the first. As in `aligned`, but that the translations of both texts
    of a pair do not compete: they would win, and so the better a model is, the lower the mean would
    be. So the mean is a level of chance.

    Args:
        similarity: [n, n], n at least 3.
    """
    others = np.where(np.eye(len(similarity), dtype=bool), -np.inf, similarity)
    return aligned(np.roll(others, -1, axis=1))


def embed_texts(lm: LanguageModel, rows: Sequence[list[int]], sites: Sequence[str]) -> Embeddings:
    """Embed n rows of tokens at sites of the residual stream, as MEXA does.

    The weighted mean is sum(t * h_t) / sum(t) with t = 1, 2, ... over all tokens, those that the
    tokenizer puts around a text among them. The last token is the last of these. The stream after
    the last block is read behind the final norm, as the last hidden states of transformers are.

    Args:
        rows: token ids, without those around a text.
    """
    found: dict[tuple[str, str], list[NDArray[np.float64]]] = {
        (site, pooling): [np.empty(0)] * len(rows) for site in sites for pooling in POOLINGS
    }
    last = f"resid_post@{lm.n_layers - 1}"
    for batch, vectors in counted_vectors(lm, _whole(lm, rows), sites):
        for site, x in vectors.items():
            if site == last:
                x = before_projection(lm, x)
            for number, part in by_row(batch, x):
                for pooling, pooled in zip(POOLINGS, _pool(part.double()), strict=True):
                    found[site, pooling][number] = pooled.cpu().numpy()
    return {key: np.stack(parts) for key, parts in found.items()}


def _whole(lm: LanguageModel, rows: Sequence[list[int]]) -> Iterator[Batch]:
    """Batches of which all tokens are read but the padding."""
    for batch in plan_batches(lm, dict(enumerate(rows))):
        yield replace(batch, counted=batch.attention_mask.bool())


def _pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted mean and the last of vectors [tokens, d]: [d] each."""
    weights = torch.arange(1, len(x) + 1, dtype=x.dtype, device=x.device)
    return weights @ x / weights.sum(), x[-1]
