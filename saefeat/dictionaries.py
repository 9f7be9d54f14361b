"""Dictionaries: bases of units for a site. Neurons are the identity; SAEs share the interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from saefeat.codes import Codes
from saefeat.io import RunFailed, fingerprint, tensors_fingerprint

OUTLIER_FACTOR = 8.0  # tokens whose norm exceeds this many medians of the training sample are left out
_ROWS = 1024  # rows encoded at once, so that the pre-activations stay in cache
_CELLS = 2**25  # pre-activations held at once
# Units whose pre-activations are computed together: a product by tiles is several per cent faster on a CPU.
_TILE = 2048


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


ACTIVATIONS = ("topk", "groupmax", "relu", "jumprelu", "gated")
NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")
_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "b_gate", "gain")


@dataclass
class SAE:
    """A sparse autoencoder in the model's raw units.

    `pre = (t(x) - b_dec) @ W_enc + b_enc`, `z = activation(pre)`, `x' = t^-1(z @ W_dec + b_dec)`. The activations:

    - `topk`: the k greatest of relu(pre), ties to the lower unit;
    - `groupmax`: the greatest of relu(pre) of each of k runs of consecutive units;
    - `relu`; `jumprelu`: pre where it exceeds both `threshold` and 0;
    - `gated`: relu(gain * h + b_enc) where h + b_gate > 0, with h = (t(x) - b_dec) @ W_enc.

    Attributes:
        W_enc: [d_in, d_sae]; W_dec: [d_sae, d_in]; float32, or bfloat16 or float16 where they are stored so, which
            changes memory and no result: all arithmetic is on their values in `dtype`.
        b_enc: [d_sae]; b_dec: [d_in]; float32.
        k: greatest number of active units of a token (`topk`, `groupmax`).
        threshold, b_gate, gain: [d_sae] float32, of the activations that have them.
        centred: whether b_dec is subtracted from the input.
        normalize: t, which depends on the vector: none, layer_norm (mean 0, standard deviation 1) or
            constant_norm_rescale (norm sqrt(d_in)), as sae-lens defines them.
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
        return {"id": self.id, "kind": "sae", "site": self.site, "width": self.width, "fingerprint": fingerprint(parts),
                "dtype": self.dtype, "path": self.record.get("path")}  # fmt: skip

    def cells(self, device: str) -> int:
        """Pre-activations that `encode` holds at once on a device."""
        return self._rows(device) * self._units_held(device)

    def _rows(self, device: str) -> int:
        return max(16, min(_ROWS, _CELLS // self._units_held(device)))

    def _units_held(self, device: str) -> int:
        tiled = self.activation != "topk" and _tiles(self.width, torch.device(device)) > 1
        return _TILE if tiled else self.width

    @property
    def encoder_bytes(self) -> int:
        """Memory that `encode` takes beside the weights themselves."""
        dtype = getattr(torch, self.dtype)
        as_stored = self.activation != "topk" and self.W_enc.dtype == dtype and self.W_enc.is_contiguous()
        return 0 if as_stored else self.W_enc.numel() * dtype.itemsize

    @cached_property
    def _encoder(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        dtype = getattr(torch, self.dtype)
        if self.activation == "topk":
            return GroupedEncoder(self.W_enc, self.b_enc, self.k, dtype)
        return _DenseEncoder(self, dtype)

    def keeps(self, x: Tensor) -> Tensor | None:
        """Which of the vectors [n, d_in] count: those of no outlier norm. None: all of them."""
        return None if self.max_norm is None else finite(x.float().norm(dim=-1)) <= self.max_norm

    def encode(self, x: Tensor) -> Codes:
        """x [n, d_in] -> values and units [n, m]; of `topk` m is k, of greatest value first."""
        given = self._normalized(x.float())
        inputs = finite(given - self.b_dec if self.centred else given)
        if not len(x):
            empty = torch.zeros(0, max(self.k, 1), device=x.device)
            return Codes(empty, empty.long(), self.width)
        parts = [self._encoder(chunk) for chunk in inputs.split(self._rows(str(x.device)))]
        widest = max(values.shape[1] for values, _ in parts)
        pad = torch.nn.functional.pad
        values, indices = zip(*((pad(v, (0, widest - v.shape[1])), pad(i, (0, widest - i.shape[1]))) for v, i in parts),
                              strict=True)  # fmt: skip
        return Codes(torch.cat(values), torch.cat(indices), self.width)

    def decode(self, codes: Codes) -> Tensor:
        """[n, d_in] float32; of an SAE that normalises its input, the normalised vectors (see `reconstruct`)."""
        if codes.indices is None:
            return codes.values @ self.W_dec.float() + self.b_dec
        indices, rows = codes.indices, self.W_dec
        if rows.dtype != torch.float32:  # only those that fire, and not a copy of all
            units, indices = indices.unique(return_inverse=True)
            rows = rows[units].float()
        weights = codes.values.clamp(min=0)
        bags = torch.nn.functional.embedding_bag(indices, rows, per_sample_weights=weights, mode="sum")
        return bags + self.b_dec

    def reconstruct(self, x: Tensor) -> Tensor:
        """x [n, d_in] through the SAE, in the model's raw units: float32."""
        out = self.decode(self.encode(x))
        size = self.spread(x)
        if size is None:
            return out
        return out * size + (x.float().mean(-1, keepdim=True) if self.normalize == "layer_norm" else 0)

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
            return centred / (centred.std(-1, keepdim=True) + 1e-5)  # sae-lens adds the 1e-5 on the way in only
        if self.normalize == "constant_norm_rescale":
            return x * (self.d_in**0.5 / x.norm(dim=-1, keepdim=True))
        return x

    def to(self, device: str) -> SAE:
        """The same SAE with its tensors on a device; what `encode` builds for itself is the copy's own."""
        moved = replace(self, **{name: tensor.to(device) for name, tensor in self.tensors.items()})
        moved.__dict__["_identity"] = self.identity  # hashing it again would read every weight
        return moved


def finite(x: Tensor) -> Tensor:
    """Return x; raises RunFailed where it is not finite, which would pass for an outlier or a silent unit."""
    if not torch.isfinite(x.sum()):
        raise RunFailed("an activation is infinite or not a number")
    return x


class GroupedEncoder:
    """`TopK(relu(x @ W + b))` with an exact two-stage top-k, several times faster than one over all columns.

    Units are put in groups of consecutive units; the k units sought lie in the k groups with the greatest maxima.
    Selecting by keys (value, then lower unit) makes ties exact. Groups are in tiles of columns, laid out so that the
    maximum runs over whole rows: unit j of group i of a tile stands in column j * groups + i of the tile.
    """

    size = 16

    def __init__(self, weight: Tensor, bias: Tensor, k: int, dtype: torch.dtype) -> None:
        d_in, width = weight.shape
        self.k = min(k, width)
        groups = -(-width // self.size)
        tiles = _tiles(width, weight.device)
        wide = -(-groups // tiles) * self.size
        # Filled in place: a wide dictionary and a copy of it may not fit in memory together.
        self.weight = torch.zeros(tiles, d_in, wide, dtype=dtype, device=weight.device)
        self.bias = torch.full((tiles, wide), -torch.inf, dtype=dtype, device=weight.device)
        for start, columns, least in zip(range(0, width, wide), self.weight, self.bias, strict=False):
            _lay_out(weight[:, start : start + wide], columns, self.size)
            _lay_out(bias[None, start : start + wide], least[None], self.size)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, d_in] -> values float32 [n, k] (0 where fewer than k are positive) and units int64 [n, k]."""
        x = x.to(self.weight.dtype)
        pre = x.new_empty(len(self.weight), len(x), self.weight.shape[2])
        best = []
        for out, weight, bias in zip(pre, self.weight, self.bias, strict=True):
            torch.addmm(bias, x, weight, out=out)
            best.append(out.unflatten(1, (self.size, -1)).amax(1))  # while they are in the cache
        return self._top(pre, torch.cat(best, 1), self.k)

    @classmethod
    def top(cls, pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k greatest of pre-activations [n, columns] of one tile, as values and units, greatest first."""
        return cls._top(pre[None], pre.unflatten(1, (cls.size, -1)).amax(1), k)

    @classmethod
    def _top(cls, pre: Tensor, best: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The same of tiles [tiles, n, columns], given the maxima of all groups [n, groups]."""
        _, n, columns = pre.shape
        groups = columns // cls.size
        best = _keys(best, torch.arange(best.shape[1], device=pre.device))
        chosen = _LOW - (best.topk(min(k, best.shape[1]), sorted=False).values & _LOW)  # [n, k]
        inner = torch.arange(cls.size, device=pre.device)[:, None]
        row = torch.arange(n, device=pre.device)[:, None]
        start = ((chosen // groups) * n + row) * columns + chosen % groups
        values = pre.view(-1)[start[:, None, :] + inner * groups]
        units = chosen[:, None, :] * cls.size + inner
        top = _keys(values.flatten(1), units.flatten(1)).topk(k).values
        return (top >> 32).to(torch.int32).view(torch.float32), _LOW - (top & _LOW)


def _tiles(width: int, device: torch.device) -> int:
    return -(-width // _TILE) if device.type == "cpu" else 1


def _lay_out(columns: Tensor, out: Tensor, size: int) -> None:
    """Put columns [rows, m], groups of `size` of them after each other, into the layout of a tile, `out` [rows, wide].

    What m lacks of `wide` stays as it is.
    """
    groups, beyond = columns.shape[1] // size, columns.shape[1] % size
    laid = out.unflatten(1, (size, -1))
    laid[:, :, :groups] = columns[:, : groups * size].unflatten(1, (groups, size)).transpose(1, 2)
    laid[:, :beyond, groups : groups + 1] = columns[:, groups * size :, None]


_LOW = 2**32 - 1


def _keys(values: Tensor, units: Tensor) -> Tensor:
    """int64 keys that sort by value (negative ones as 0), then by lower unit.

    As integers, floats that are not negative sort as their values do.
    """
    keys = values.float().view(torch.int32).clamp(min=0).long()
    return keys.bitwise_left_shift_(32).bitwise_or_(_LOW - units)


class _DenseEncoder:
    """The other activations: pre-activations of a tile of units at a time, then those that fire, in rising order."""

    def __init__(self, sae: SAE, dtype: torch.dtype) -> None:
        self.sae = sae
        # Contiguous: weights that their file holds transposed are read row by row here.
        self.weight = sae.W_enc
        if sae.W_enc.dtype != dtype or not sae.W_enc.is_contiguous():
            self.weight = torch.empty(sae.W_enc.shape, dtype=dtype, device=sae.W_enc.device).copy_(sae.W_enc)
        gated = sae.activation == "gated"
        self.bias = (torch.zeros_like(sae.b_enc) if gated else sae.b_enc).to(dtype)
        self.bar = None if sae.threshold is None else sae.threshold.clamp(min=0)
        group = sae.width // sae.k if sae.activation == "groupmax" else 8  # see `_true_cells`
        self.tile = max(1, -(-sae.width // _tiles(sae.width, sae.W_enc.device)) // group) * group

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, d_in] -> values float32 [n, m] (0 after the last that fires) and units int64 [n, m]."""
        x = x.to(self.weight.dtype)
        if self.sae.activation == "groupmax":
            values, units = zip(*(self._greatest(pre, start) for pre, start in self._products(x)), strict=True)
            return torch.cat(values, 1), torch.cat(units, 1)
        found = _Firing(len(x), x.device)
        for pre, start in self._products(x):
            found.add(*self._fires(pre, slice(start, start + pre.shape[1])), start)
        return found.padded()

    def _products(self, x: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Pre-activations of the units of a tile, and the first of these."""
        for start in range(0, self.sae.width, self.tile):
            here = slice(start, start + self.tile)
            yield torch.addmm(self.bias[here], x, self.weight[:, here]).float(), start

    def _greatest(self, pre: Tensor, start: int) -> tuple[Tensor, Tensor]:
        group = self.sae.width // self.sae.k
        best, units = pre.unflatten(-1, (-1, group)).max(-1)
        return best.clamp(min=0), units + torch.arange(start, start + pre.shape[1], group, device=pre.device)

    def _fires(self, pre: Tensor, here: slice) -> tuple[Tensor, Tensor]:
        """Values of some units, and whether they fire."""
        if self.sae.gain is None or self.sae.b_gate is None:
            return pre, pre > (0.0 if self.bar is None else self.bar[here])
        values = pre * self.sae.gain[here] + self.sae.b_enc[here]
        return values, (values > 0) & (pre + self.sae.b_gate[here] > 0)


class _Firing:
    """The cells that fire in n rows, taken a tile of units at a time, in rising order of unit."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.counts = torch.zeros(n, dtype=torch.int64, device=device)
        self.parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, values: Tensor, fires: Tensor, start: int) -> None:
        """values, fires [n, m], of units start, start + 1, ..."""
        rows, units = _true_cells(fires)
        counts = torch.bincount(rows, minlength=len(values))
        first = self.counts - (counts.cumsum(0) - counts)  # what to add to a cell's number for its place in its row
        places = torch.arange(len(rows), device=values.device) + first[rows]
        self.parts.append((rows, places, units + start, values[rows, units]))
        self.counts += counts

    def padded(self) -> tuple[Tensor, Tensor]:
        """Values float32 and units int64 [n, m]; m is the greatest number of a row, at least 1."""
        rows, places, units, values = (torch.cat(part) for part in zip(*self.parts, strict=True))
        out = values.new_zeros(len(self.counts), max(int(self.counts.max()), 1))
        indices = torch.zeros_like(out, dtype=torch.int64)
        out[rows, places] = values
        indices[rows, places] = units
        return out, indices


def _true_cells(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the cells of bool [n, width] that are true, in order: eight are looked at as one number."""
    n, width = mask.shape
    if width % 8 or not mask.is_contiguous():
        rows, columns = mask.nonzero(as_tuple=True)
        return rows, columns
    rows, words = mask.view(torch.int64).nonzero(as_tuple=True)
    which, bit = mask.view(n, -1, 8)[rows, words].nonzero(as_tuple=True)
    return rows[which], words[which] * 8 + bit
