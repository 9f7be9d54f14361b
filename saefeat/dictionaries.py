"""Dictionaries: bases of units for a site. Neurons are the identity; SAEs share the interface."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from saefeat.codes import Codes
from saefeat.io import RunFailed, fingerprint, tensors_fingerprint

OUTLIER_FACTOR = 8.0  # tokens whose norm exceeds this many medians of the training sample are left out
_ROWS = 1024  # rows encoded at once, so that the pre-activations stay in cache


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
    def keeps(self, x: Tensor) -> Tensor | None: ...
    def encode(self, x: Tensor) -> Codes: ...
    def decode(self, codes: Codes) -> Tensor: ...


@dataclass
class Identity:
    """The neurons of a site, or the coordinates of its vectors: every unit is one coordinate.

    `units`: int64 [m], encode only these coordinates (heads read a few neurons of many).
    """

    site: str
    width: int
    units: Tensor | None = None

    @property
    def signed(self) -> bool:
        return self.units is None

    @property
    def id(self) -> str:
        return self.site

    @property
    def identity(self) -> dict[str, Any]:
        mark = fingerprint(["identity", self.site, self.width])
        return {"id": self.id, "kind": "identity", "site": self.site, "width": self.width, "fingerprint": mark}

    def keeps(self, x: Tensor) -> Tensor | None:
        """Identities leave no token out."""
        return None

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


@dataclass
class SAE:
    """A TopK sparse autoencoder in the model's raw units.

    `z = TopK(relu((x - b_dec) @ W_enc + b_enc))`, `x' = z @ W_dec + b_dec`; ties go to the lower unit.

    Attributes:
        W_enc: [d_in, d_sae]; b_enc: [d_sae]; W_dec: [d_sae, d_in]; b_dec: [d_in]; float32.
        k: greatest number of active units of a token.
        max_norm: tokens with a greater norm are left out of statistics (8 medians of the training sample), or None.
        dtype: of the products in `encode`, "float32" or "bfloat16" (then accumulated in float32).
        record: what else its directory says: model, revision, module path, token policy.
    """

    id: str
    site: str
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    k: int
    max_norm: float | None = None
    dtype: str = "float32"
    record: dict[str, Any] = field(default_factory=dict)

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
        """[d_sae, d_in] float32."""
        return self.W_dec

    @property
    def identity(self) -> dict[str, Any]:
        return self._identity

    @cached_property
    def _identity(self) -> dict[str, Any]:
        weights = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        mark = fingerprint([tensors_fingerprint(weights), self.k, self.max_norm, self.dtype])
        return {"id": self.id, "kind": "sae", "site": self.site, "width": self.width, "fingerprint": mark,
                "dtype": self.dtype, "path": self.record.get("path")}  # fmt: skip

    @cached_property
    def _grouped(self) -> GroupedEncoder:
        return GroupedEncoder(self.W_enc, self.b_enc, self.k, getattr(torch, self.dtype))

    def keeps(self, x: Tensor) -> Tensor | None:
        """Which of the vectors [n, d_in] count: those of no outlier norm. None: all of them."""
        return None if self.max_norm is None else _finite(x.float().norm(dim=-1)) <= self.max_norm

    def encode(self, x: Tensor) -> Codes:
        """x [n, d_in] -> values and units [n, k], of greatest value first."""
        centred = _finite(x.float() - self.b_dec)
        if not len(x):
            empty = torch.zeros(0, self.k, device=x.device)
            return Codes(empty, empty.long(), self.width)
        parts = [self._grouped(chunk) for chunk in centred.split(_ROWS)]
        values, indices = zip(*parts, strict=True)
        return Codes(torch.cat(values), torch.cat(indices), self.width)

    def decode(self, codes: Codes) -> Tensor:
        """[n, d_in] float32."""
        if codes.indices is None:
            return codes.values @ self.W_dec + self.b_dec
        weights = codes.values.clamp(min=0)
        bags = torch.nn.functional.embedding_bag(codes.indices, self.W_dec, per_sample_weights=weights, mode="sum")
        return bags + self.b_dec

    def to(self, device: str) -> SAE:
        """The same SAE with its tensors on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        return SAE(self.id, self.site, **moved, k=self.k, max_norm=self.max_norm, dtype=self.dtype, record=self.record)


def _finite(x: Tensor) -> Tensor:
    """Return x; raises RunFailed where it is not finite, which would pass for an outlier or a silent unit."""
    if not torch.isfinite(x.sum()):
        raise RunFailed("an activation is infinite or not a number")
    return x


class GroupedEncoder:
    """`TopK(relu(x @ W + b))` with an exact two-stage top-k, several times faster than one over all columns.

    Units are put in groups of consecutive units; the k units sought lie in the k groups with the greatest maxima.
    Columns are laid out so that the maximum runs over whole rows: unit u = i * size + j stands in column
    j * groups + i. Selecting by keys (value, then lower unit) makes ties exact.
    """

    size = 16

    def __init__(self, weight: Tensor, bias: Tensor, k: int, dtype: torch.dtype) -> None:
        width = weight.shape[1]
        self.k = min(k, width)
        self.groups = -(-width // self.size)
        padded = self.groups * self.size
        columns = torch.arange(padded, device=weight.device).view(self.groups, self.size).t().reshape(-1)
        inside = columns < width
        columns = columns.clamp(max=width - 1)
        self.weight = (weight[:, columns] * inside).to(dtype).contiguous()
        self.bias = torch.where(inside, bias[columns], -torch.inf).to(dtype)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, d_in] -> values float32 [n, k] (0 where fewer than k are positive) and units int64 [n, k]."""
        return self.top(torch.addmm(self.bias, x.to(self.weight.dtype), self.weight), self.k)

    @classmethod
    def top(cls, pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k greatest of pre-activations [n, columns], as values and units, greatest first."""
        n, columns = pre.shape
        groups = columns // cls.size
        pre = pre.view(n, cls.size, groups)
        k_groups = min(k, groups)
        best = _keys(pre.amax(1), torch.arange(groups, device=pre.device))
        chosen = _LOW - (best.topk(k_groups, sorted=False).values & _LOW)
        rows = pre.gather(2, chosen[:, None, :].expand(n, cls.size, k_groups))
        inner = torch.arange(cls.size, device=pre.device)
        units = chosen[:, None, :] * cls.size + inner[None, :, None]
        top = _keys(rows.reshape(n, -1), units.reshape(n, -1)).topk(k).values
        return (top >> 32).to(torch.int32).view(torch.float32), _LOW - (top & _LOW)


_LOW = 2**32 - 1


def _keys(values: Tensor, units: Tensor) -> Tensor:
    """int64 keys that sort by value (negative ones as 0), then by lower unit.

    As integers, floats that are not negative sort as their values do.
    """
    keys = values.float().view(torch.int32).clamp(min=0).long()
    return keys.bitwise_left_shift_(32).bitwise_or_(_LOW - units)
