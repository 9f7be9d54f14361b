"""One training step of a TopK SAE with gradients written out: a dense encoder product, sparse everything else."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, linear

from saefeat.encoders import GroupedEncoder

_ROWS = 512  # tokens selected at once, so that the pre-activations stay in cache
TINY = 1e-8  # least norm of a decoder row that is divided by


@dataclass
class Gradients:
    """Gradients of the loss, and what the step saw: `error` [n, d] and `units` int64 [n, k] with `values` [n, k]."""

    encoder: Tensor
    b_enc: Tensor
    decoder: Tensor
    b_dec: Tensor
    loss: Tensor
    error: Tensor
    values: Tensor
    units: Tensor


def topk_step(
    x: Tensor,
    encoder: Tensor,
    b_enc: Tensor,
    decoder: Tensor,
    b_dec: Tensor,
    k: int,
    dtype: torch.dtype,
) -> Gradients:
    """Loss mean((x' - x)^2) * d of x [n, d] and its gradients.

    encoder, decoder: float32 [d_sae, d], one row a unit; d_sae is a multiple of the group size of
    the top-k. Decoder
    rows have any length: units compete by the length of what they would add, pre-activation times
    decoder norm, as they will once the norms are folded into the encoder.
    dtype: of the encoder product.
    """
    centred = x - b_dec
    norms = decoder.norm(dim=1)
    values, units = _select(centred, encoder * norms[:, None], b_enc * norms, k, dtype)
    values = values / norms[units].clamp(min=TINY)
    error = embedding_bag(units, decoder, per_sample_weights=values, mode="sum") - centred
    slope = error * (2 / len(x))
    d_values = _row_products(slope, decoder, units) * (values > 0)

    order = torch.argsort(units.view(-1), stable=True)
    token = order // units.shape[1]
    counts = torch.bincount(units.view(-1), minlength=len(encoder))
    offsets = torch.cumsum(counts, 0) - counts
    d_decoder = embedding_bag(
        token, slope, offsets, mode="sum", per_sample_weights=values.view(-1)[order]
    )
    d_encoder = embedding_bag(
        token, centred, offsets, mode="sum", per_sample_weights=d_values.view(-1)[order]
    )
    d_b_enc = torch.bincount(units.view(-1), weights=d_values.view(-1), minlength=len(encoder)).to(
        x.dtype
    )
    d_b_dec = slope.sum(0) - d_b_enc @ encoder
    loss = error.square().sum() / len(x)
    return Gradients(d_encoder, d_b_enc, d_decoder, d_b_dec, loss, error, values, units)


def _select(
    x: Tensor, encoder: Tensor, b_enc: Tensor, k: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """TopK in which rows stand for columns of the grouped layout: any fixed order of units serves in training."""
    groups = len(encoder) // GroupedEncoder.size
    weight, bias = encoder.to(dtype), b_enc.to(dtype)
    parts = [GroupedEncoder.top(linear(rows, weight, bias), k) for rows in x.to(dtype).split(_ROWS)]
    values, units = (torch.cat(part) for part in zip(*parts, strict=True))
    return values, (units % GroupedEncoder.size) * groups + units // GroupedEncoder.size


def _row_products(a: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """out[i, j] = a[i] . rows[index[i, j]]"""
    n, k = index.shape
    if a.device.type != "cpu":
        parts = zip(a.split(256), index.split(256), strict=True)
        return torch.cat([torch.bmm(rows[i], v[:, :, None]).squeeze(-1) for v, i in parts])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CSR tensors are in beta
        ends = torch.arange(0, n * k + 1, k)
        wanted = torch.sparse_csr_tensor(
            ends, index.reshape(-1), a.new_zeros(n * k), (n, len(rows))
        )
    return torch.sparse.sampled_addmm(wanted, a, rows.t(), beta=0.0).values().view(n, k)


def aux_step(
    x: Tensor, error: Tensor, encoder: Tensor, b_enc: Tensor, decoder: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """AuxK (Gao et al., arXiv 2406.04093): the k best of the dead units reconstruct what the others left.

    x: centred input [n, d]; error: reconstruction minus input [n, d]; encoder, decoder: rows of the
    dead units. Returns the gradients (encoder, b_enc, decoder) of mean((e' - e)^2) / mean(e^2).
    """
    pre = torch.addmm(b_enc, x, encoder.t())
    units = (pre * decoder.norm(dim=1)).topk(min(k, len(encoder)), sorted=False).indices
    codes = torch.zeros_like(pre).scatter_(1, units, pre.gather(1, units).clamp(min=0))
    scale = 2 / error.square().sum().clamp(min=1e-12)
    slope = (codes @ decoder + error) * scale
    d_codes = (slope @ decoder.t()) * (codes > 0)
    return d_codes.t() @ x, d_codes.sum(0), codes.t() @ slope
