"""Sparse autoencoders as dictionaries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from saefeat.codes import Codes
from saefeat.dictionaries.base import Dictionary, Rule
from saefeat.encoders import TILE, DenseEncoder, GroupedEncoder, tiles
from saefeat.io import fingerprint, row_blocks, tensors_fingerprint
from saefeat.tokens import finite

ACTIVATIONS = ("topk", "groupmax", "relu", "jumprelu", "gated")
NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")
_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "b_gate", "gain")
_ROWS = 1024  # vectors encoded at once, so that their pre-activations stay in the cache
_CELLS = 2**25  # pre-activations held at once


@dataclass
class SAE(Dictionary):
    """A sparse autoencoder in the model's raw units.

    `pre = (t(x) - b_dec) @ W_enc + b_enc`, `z = activation(pre)`, `x' = t^-1(z @ W_dec + b_dec)`.
    The activations:

    - `topk`: the k greatest of relu(pre), ties to the lower unit (Gao et al. 2024, arXiv
      2406.04093);
    - `groupmax`: the greatest of relu(pre) of each of k runs of consecutive units;
    - `relu`;
    - `jumprelu`: pre where it exceeds both `threshold` and 0 (Rajamanoharan et al. 2024, arXiv
      2407.14435);
    - `gated`: relu(gain * h + b_enc) where h + b_gate > 0, with h = (t(x) - b_dec) @ W_enc
      (Rajamanoharan et al. 2024, arXiv 2404.16014).

    Attributes:
        W_enc: [d_in, d_sae]; float32, or bfloat16 or float16 where the weights are stored so. This
            changes memory and no result: all arithmetic is on the values in `dtype`.
        b_enc: float32 [d_sae].
        W_dec: [d_sae, d_in], as W_enc.
        b_dec: float32 [d_in].
        k: greatest number of active units of a token (`topk`, `groupmax`).
        max_norm: vectors with a greater norm are left out of statistics and edits (8 medians of
            the training sample); None: all count.
        dtype: of the products in `encode`, "float32" or "bfloat16" (then accumulated in float32).
        record: what else its directory says: model, revision, module path, token policy.
        activation: one of `ACTIVATIONS`.
        threshold, b_gate, gain: float32 [d_sae], of the activations that have them.
        centred: whether b_dec is subtracted from the input.
        normalize: t, which depends on the vector: none, layer_norm (mean 0, standard deviation 1)
            or constant_norm_rescale (norm sqrt(d_in)), as sae-lens defines them.
    """

    id: str
    site: str
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    k: int = 0
    max_norm: float | None = None
    dtype: str = "float32"
    record: dict[str, Any] = field(default_factory=dict)
    activation: str = "topk"
    threshold: Tensor | None = None
    b_gate: Tensor | None = None
    gain: Tensor | None = None
    centred: bool = True
    normalize: str = "none"

    @property
    def width(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def directions(self) -> Tensor:
        return self.W_dec

    @cached_property
    def norms(self) -> Tensor | None:
        if self.normalize != "none":  # the scale differs from token to token
            return None
        return torch.cat([rows.float().norm(dim=1) for rows in row_blocks(self.W_dec)])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its weights by name."""
        return {name: value for name in _TENSORS if (value := getattr(self, name)) is not None}

    @cached_property
    def identity(self) -> dict[str, Any]:
        # Of the values: the same weights stored in another dtype give the same codes.
        mark = tensors_fingerprint(self.tensors, torch.float32)
        parts: list[Any] = [mark, self.k, self.max_norm, self.dtype]
        if (self.activation, self.centred, self.normalize) != ("topk", True, "none"):
            parts += [self.activation, self.centred, self.normalize]
        what = {"id": self.id, "kind": "sae", "site": self.site, "width": self.width}
        path = self.record.get("path")
        return {**what, "fingerprint": fingerprint(parts), "dtype": self.dtype, "path": path}

    # ----------------------------------------------------------------------- codes

    def encode(self, x: Tensor) -> Codes:
        """Return values and units of vectors x [n, d_in]; raises RunFailed when one is not finite.

        Both are [n, k] for `topk` (greatest value first) and `groupmax` (lowest unit first), and
        flat for the other activations, which keep the units that fire (see `Codes`).
        """
        normalized = self._normalized(x.float())
        inputs = finite(normalized - self.b_dec if self.centred else normalized)
        if not len(x):
            empty = torch.zeros(0, max(self.k, 1), device=x.device)
            return Codes(empty, empty.long(), self.width)
        parts = [self._encoder(chunk) for chunk in inputs.split(self._rows(str(x.device)))]
        values = torch.cat([part[0] for part in parts])
        units = torch.cat([part[1] for part in parts])
        counts = [each for _, _, each in parts if each is not None]
        return Codes(values, units, self.width, counts=torch.cat(counts) if counts else None)

    def decode(self, codes: Codes) -> Tensor:
        """Return vectors float32 [n, d_in].

        An SAE that normalises its input gives the normalised vectors (see `reconstruct`).
        """
        if codes.indices is None:
            return codes.values @ self.W_dec.float() + self.b_dec
        indices, rows = codes.indices, self.W_dec
        if rows.dtype != torch.float32:  # convert the units that fire, not a copy of all
            units, indices = indices.unique(return_inverse=True)
            rows = rows[units].float()
        weights = codes.values.clamp(min=0)
        starts = None if codes.counts is None else codes.counts.cumsum(0) - codes.counts
        sums = torch.nn.functional.embedding_bag(
            indices, rows, starts, per_sample_weights=weights, mode="sum"
        )
        return sums + self.b_dec

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return vectors x [n, d_in] through the SAE, in the model's raw units: float32."""
        out, size = self.decode(self.encode(x)), self.spread(x)
        if size is not None:
            out = out * size
        if self.normalize == "layer_norm":
            out = out + x.float().mean(-1, keepdim=True)
        return out

    def spread(self, x: Tensor) -> Tensor | None:
        x = x.float()
        if self.normalize == "layer_norm":
            return (x - x.mean(-1, keepdim=True)).std(-1, keepdim=True)
        if self.normalize == "constant_norm_rescale":
            return x.norm(dim=-1, keepdim=True) / self.d_in**0.5
        return None

    def edit_units(self, x: Tensor, units: Tensor, rule: Rule) -> Tensor:
        """Encode x, change the values of some units and add the difference along their directions.

        What the SAE does not reconstruct stays as it is. The SAE has to be on the device of x.
        """
        z = self.encode(x.flatten(0, -2)).of(units).view(*x.shape[:-1], -1)
        moved, size = (rule(z) - z) @ self.W_dec[units].float(), self.spread(x)
        return x + (moved if size is None else moved * size)

    def _normalized(self, x: Tensor) -> Tensor:
        if self.normalize == "layer_norm":
            centred = x - x.mean(-1, keepdim=True)
            # sae-lens adds the 1e-5 on the way in only.
            return centred / (centred.std(-1, keepdim=True) + 1e-5)
        if self.normalize == "constant_norm_rescale":
            return x * (self.d_in**0.5 / x.norm(dim=-1, keepdim=True))
        return x

    @cached_property
    def _encoder(self) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]:
        dtype = getattr(torch, self.dtype)
        if self.activation == "topk":
            return GroupedEncoder(self.W_enc, self.b_enc, self.k, dtype)
        runs = self.k if self.activation == "groupmax" else None
        parts = {"threshold": self.threshold, "b_gate": self.b_gate, "gain": self.gain}
        return DenseEncoder(self.W_enc, self.b_enc, dtype, runs=runs, **parts)

    # ----------------------------------------------------------------------- memory

    def to(self, device: str) -> SAE:
        """Return a copy on a device, with its own encoder, whose memory is freed with it."""
        moved = replace(self, **{name: tensor.to(device) for name, tensor in self.tensors.items()})
        vars(moved)["identity"] = self.identity  # computing it again would read every weight
        return moved

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def encoder_bytes(self) -> int:
        dtype = getattr(torch, self.dtype)
        in_place = self.activation != "topk" and self.W_enc.dtype == dtype
        in_place = in_place and self.W_enc.is_contiguous()
        return 0 if in_place else self.W_enc.numel() * dtype.itemsize

    @property
    def weights_read(self) -> int:
        return 0 if self.encoder_bytes else self.W_enc.nbytes

    def cells(self, device: str) -> int:
        return self._rows(device) * self._units_held(device)

    def _rows(self, device: str) -> int:
        return max(16, min(_ROWS, _CELLS // self._units_held(device)))

    def _units_held(self, device: str) -> int:
        tiled = self.activation != "topk" and tiles(self.width, torch.device(device)) > 1
        return TILE if tiled else self.width
