"""Dictionaries: bases of units for a site. Neurons are the identity; SAEs share the interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from saefeat.activations import finite, inliers
from saefeat.codes import Codes
from saefeat.encoders import TILE, DenseEncoder, GroupedEncoder, tiles
from saefeat.io import fingerprint, tensors_fingerprint

_ROWS = 1024  # rows encoded at once, so that the pre-activations stay in cache
_CELLS = 2**25  # pre-activations held at once


class Dictionary(Protocol):
    """A basis of units for the vectors of a site."""

    @property
    def id(self) -> str: ...
    @property
    def site(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def signed(self) -> bool: ...
    @property
    def identity(self) -> dict[str, Any]: ...
    @property
    def max_norm(self) -> float | None: ...
    def keeps(self, x: Tensor) -> Tensor | None: ...
    def encode(self, x: Tensor) -> Codes: ...
    def decode(self, codes: Codes) -> Tensor: ...


@dataclass
class Identity:
    """The neurons of a site, or the coordinates of its vectors: every unit is one coordinate.

    Attributes:
        units: int64 [m], encode only these coordinates (heads read a few neurons of many).
        max_norm: tokens with a greater norm are left out of statistics and edits, or None: all
            count, as LAPE counts neurons.
    """

    site: str
    width: int
    units: Tensor | None = None
    max_norm: float | None = None

    @property
    def signed(self) -> bool:
        return self.units is None

    @property
    def id(self) -> str:
        return self.site

    @property
    def identity(self) -> dict[str, Any]:
        limit = {} if self.max_norm is None else {"max_norm": self.max_norm}
        mark = fingerprint(["identity", self.site, self.width, *limit.values()])
        return {
            "id": self.id,
            "kind": "identity",
            "site": self.site,
            "width": self.width,
            "fingerprint": mark,
            **limit,
        }

    def keeps(self, x: Tensor) -> Tensor | None:
        """Which of the vectors [n, width] count: those of no outlier norm. None: all of them."""
        return inliers(x, self.max_norm)

    def encode(self, x: Tensor) -> Codes:
        """x [n, width] -> dense codes float32, or sparse ones of the chosen `units`."""
        if self.units is None:
            return Codes(x.float(), None, self.width, signed=True)
        return Codes(x[:, self.units].float(), self.units.expand(len(x), -1), self.width)

    def decode(self, codes: Codes) -> Tensor:
        """[n, width] float32."""
        return codes.dense()

    @property
    def directions(self) -> Tensor:
        return torch.eye(self.width)


ACTIVATIONS = ("topk", "groupmax", "relu", "jumprelu", "gated")
NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")
_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "b_gate", "gain")


@dataclass
class SAE:
    """A sparse autoencoder in the model's raw units.

    `pre = (t(x) - b_dec) @ W_enc + b_enc`, `z = activation(pre)`, `x' = t^-1(z @ W_dec + b_dec)`.
    The activations:

    - `topk`: the k greatest of relu(pre), ties to the lower unit;
    - `groupmax`: the greatest of relu(pre) of each of k runs of consecutive units;
    - `relu`; `jumprelu`: pre where it exceeds both `threshold` and 0;
    - `gated`: relu(gain * h + b_enc) where h + b_gate > 0, with h = (t(x) - b_dec) @ W_enc.

    Attributes:
        W_enc: [d_in, d_sae]; W_dec: [d_sae, d_in]; float32, or bfloat16 or float16 where they are
        stored so, which
            changes memory and no result: all arithmetic is on their values in `dtype`.
        b_enc: [d_sae]; b_dec: [d_in]; float32.
        k: greatest number of active units of a token (`topk`, `groupmax`).
        threshold, b_gate, gain: [d_sae] float32, of the activations that have them.
        centred: whether b_dec is subtracted from the input.
        normalize: t, which depends on the vector: none, layer_norm (mean 0, standard deviation 1)
            or constant_norm_rescale (norm sqrt(d_in)), as sae-lens defines them.
        max_norm: tokens with a greater norm are left out of statistics (8 medians of the training
            sample), or None.
        dtype: of the products in `encode`, "float32" or "bfloat16" (then accumulated in float32).
        record: what else its directory says: model, revision, module path, token policy.
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
    def signed(self) -> bool:
        return False

    @property
    def width(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def directions(self) -> Tensor:
        """[d_sae, d_in], in the dtype that they are stored in."""
        return self.W_dec

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its weights by name."""
        return {name: value for name in _TENSORS if (value := getattr(self, name)) is not None}

    @property
    def identity(self) -> dict[str, Any]:
        return self._identity

    @cached_property
    def _identity(self) -> dict[str, Any]:
        # Of the values: the same weights stored in another dtype give the same codes.
        mark = tensors_fingerprint(self.tensors, torch.float32)
        parts: list[Any] = [mark, self.k, self.max_norm, self.dtype]
        if (self.activation, self.centred, self.normalize) != ("topk", True, "none"):
            parts += [self.activation, self.centred, self.normalize]
        return {
            "id": self.id,
            "kind": "sae",
            "site": self.site,
            "width": self.width,
            "fingerprint": fingerprint(parts),
            "dtype": self.dtype,
            "path": self.record.get("path"),
        }

    def cells(self, device: str) -> int:
        """Pre-activations that `encode` holds at once on a device."""
        return self._rows(device) * self._units_held(device)

    def _rows(self, device: str) -> int:
        return max(16, min(_ROWS, _CELLS // self._units_held(device)))

    def _units_held(self, device: str) -> int:
        tiled = self.activation != "topk" and tiles(self.width, torch.device(device)) > 1
        return TILE if tiled else self.width

    @property
    def encoder_bytes(self) -> int:
        """Memory that `encode` takes beside the weights themselves."""
        dtype = getattr(torch, self.dtype)
        as_stored = (
            self.activation != "topk" and self.W_enc.dtype == dtype and self.W_enc.is_contiguous()
        )
        return 0 if as_stored else self.W_enc.numel() * dtype.itemsize

    @cached_property
    def _encoder(self) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]:
        dtype = getattr(torch, self.dtype)
        if self.activation == "topk":
            return GroupedEncoder(self.W_enc, self.b_enc, self.k, dtype)
        runs = self.k if self.activation == "groupmax" else None
        parts = {"threshold": self.threshold, "b_gate": self.b_gate, "gain": self.gain}
        return DenseEncoder(self.W_enc, self.b_enc, dtype, runs=runs, **parts)

    def keeps(self, x: Tensor) -> Tensor | None:
        """Which of the vectors [n, d_in] count: those of no outlier norm. None: all of them."""
        return inliers(x, self.max_norm)

    def encode(self, x: Tensor) -> Codes:
        """x [n, d_in] -> values and units, [n, k] of `topk` and `groupmax`, else flat of those that fire (see `Codes`).

        Of `topk` the greatest value is first, of the others the lowest unit.
        """
        given = self._normalized(x.float())
        inputs = finite(given - self.b_dec if self.centred else given)
        if not len(x):
            empty = torch.zeros(0, max(self.k, 1), device=x.device)
            return Codes(empty, empty.long(), self.width)
        parts = [self._encoder(chunk) for chunk in inputs.split(self._rows(str(x.device)))]
        values, units = (
            torch.cat([part[0] for part in parts]),
            torch.cat([part[1] for part in parts]),
        )
        counts = [each for _, _, each in parts if each is not None]
        return Codes(values, units, self.width, counts=torch.cat(counts) if counts else None)

    def decode(self, codes: Codes) -> Tensor:
        """[n, d_in] float32; of an SAE that normalises its input, the normalised vectors (see `reconstruct`)."""
        if codes.indices is None:
            return codes.values @ self.W_dec.float() + self.b_dec
        indices, rows = codes.indices, self.W_dec
        if rows.dtype != torch.float32:  # only those that fire, and not a copy of all
            units, indices = indices.unique(return_inverse=True)
            rows = rows[units].float()
        weights = codes.values.clamp(min=0)
        starts = None if codes.counts is None else codes.counts.cumsum(0) - codes.counts
        bags = torch.nn.functional.embedding_bag(
            indices, rows, starts, per_sample_weights=weights, mode="sum"
        )
        return bags + self.b_dec

    def reconstruct(self, x: Tensor) -> Tensor:
        """x [n, d_in] through the SAE, in the model's raw units: float32."""
        out = self.decode(self.encode(x))
        size = self.spread(x)
        if size is None:
            return out
        return out * size + (
            x.float().mean(-1, keepdim=True) if self.normalize == "layer_norm" else 0
        )

    def spread(self, x: Tensor) -> Tensor | None:
        """What a unit of the SAE's own scale is at each vector, in raw units: float32 [..., 1]; None: 1 everywhere."""
        x = x.float()
        if self.normalize == "layer_norm":
            return (x - x.mean(-1, keepdim=True)).std(-1, keepdim=True)
        if self.normalize == "constant_norm_rescale":
            return x.norm(dim=-1, keepdim=True) / self.d_in**0.5
        return None

    def _normalized(self, x: Tensor) -> Tensor:
        if self.normalize == "layer_norm":
            centred = x - x.mean(-1, keepdim=True)
            return centred / (
                centred.std(-1, keepdim=True) + 1e-5
            )  # sae-lens adds the 1e-5 on the way in only
        if self.normalize == "constant_norm_rescale":
            return x * (self.d_in**0.5 / x.norm(dim=-1, keepdim=True))
        return x

    def to(self, device: str) -> SAE:
        """The same SAE with its tensors on a device; what `encode` builds for itself is the copy's own."""
        moved = replace(self, **{name: tensor.to(device) for name, tensor in self.tensors.items()})
        moved.__dict__["_identity"] = self.identity  # hashing it again would read every weight
        return moved
