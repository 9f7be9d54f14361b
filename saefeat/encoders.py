"""How SAEs encode: pre-activations by tiles of units, and of them those that fire."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Units whose pre-activations are computed together: a product by tiles is several per cent faster
# on a CPU.
TILE = 2048


class GroupedEncoder:
    """`TopK(relu(x @ W + b))` with an exact two-stage top-k, several times faster than one over all columns.

    Units are put in groups of consecutive units; the k units sought lie in the k groups with the
    greatest maxima. Selecting by keys (value, then lower unit) makes ties exact. Groups are in
    tiles of columns, laid out so that the
    maximum runs over whole rows: unit j of group i of a tile stands in column j * groups + i of the
    tile.
    """

    size = 16

    def __init__(self, weight: Tensor, bias: Tensor, k: int, dtype: torch.dtype) -> None:
        d_in, width = weight.shape
        self.k = min(k, width)
        groups = -(-width // self.size)
        count = tiles(width, weight.device)
        wide = -(-groups // count) * self.size
        # Filled in place: a wide dictionary and a copy of it may not fit in memory together.
        self.weight = torch.zeros(count, d_in, wide, dtype=dtype, device=weight.device)
        self.bias = torch.full((count, wide), -torch.inf, dtype=dtype, device=weight.device)
        for start, columns, least in zip(
            range(0, width, wide), self.weight, self.bias, strict=False
        ):
            _lay_out(weight[:, start : start + wide], columns, self.size)
            _lay_out(bias[None, start : start + wide], least[None], self.size)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        """x [n, d_in] -> values float32 [n, k] (0 where fewer than k are positive) and units int64 [n, k]."""
        x = x.to(self.weight.dtype)
        pre = x.new_empty(len(self.weight), len(x), self.weight.shape[2])
        best = []
        for out, weight, bias in zip(pre, self.weight, self.bias, strict=True):
            torch.addmm(bias, x, weight, out=out)
            best.append(out.unflatten(1, (self.size, -1)).amax(1))  # while they are in the cache
        return *self._top(pre, torch.cat(best, 1), self.k), None

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


def tiles(width: int, device: torch.device) -> int:
    return -(-width // TILE) if device.type == "cpu" else 1


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


class DenseEncoder:
    """The other activations: pre-activations of a tile of units at a time, then those that fire, in rising order."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        dtype: torch.dtype,
        *,
        runs: int | None = None,
        threshold: Tensor | None = None,
        b_gate: Tensor | None = None,
        gain: Tensor | None = None,
    ) -> None:
        """runs: of `groupmax`, how many runs of units there are; the others as `SAE` has them."""
        self.weight = weight
        # Contiguous: weights that their file holds transposed are read row by row here.
        if weight.dtype != dtype or not weight.is_contiguous():
            self.weight = torch.empty(weight.shape, dtype=dtype, device=weight.device).copy_(weight)
        self.b_mag, self.b_gate, self.gain = bias, b_gate, gain
        self.bias = (bias if b_gate is None else torch.zeros_like(bias)).to(dtype)
        self.bar = None if threshold is None else threshold.clamp(min=0)
        self.width = weight.shape[1]
        self.run = None if runs is None else self.width // runs
        step = self.run or 8  # see `_true_cells`
        self.tile = max(1, -(-self.width // tiles(self.width, weight.device)) // step) * step

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """x [n, d_in] -> values float32 [n, runs], units int64 [n, runs] and None; without runs, those that fire.

        These are values [m], units [m] and how many each vector has, int64 [n]; see `Codes`.
        """
        x = x.to(self.weight.dtype)
        if self.run is not None:
            values, units = zip(
                *(_greatest(pre, self.run, at) for pre, at in self._products(x)), strict=True
            )
            return torch.cat(values, 1), torch.cat(units, 1), None
        found = _Firing(len(x), x.device)
        for pre, start in self._products(x):
            found.add(*self._fires(pre, slice(start, start + pre.shape[1])), start)
        return found.flat()

    def _products(self, x: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Pre-activations of the units of a tile, and the first of these."""
        for start in range(0, self.width, self.tile):
            here = slice(start, start + self.tile)
            yield torch.addmm(self.bias[here], x, self.weight[:, here]).float(), start

    def _fires(self, pre: Tensor, here: slice) -> tuple[Tensor, Tensor]:
        """Values of some units, and whether they fire."""
        if self.gain is None or self.b_gate is None:
            return pre, pre > (0.0 if self.bar is None else self.bar[here])
        values = pre * self.gain[here] + self.b_mag[here]
        return values, (values > 0) & (pre + self.b_gate[here] > 0)


def _greatest(pre: Tensor, run: int, start: int) -> tuple[Tensor, Tensor]:
    """The greatest of each run of pre-activations [n, m] of units start, start + 1, ..., as values and units."""
    best, units = pre.unflatten(-1, (-1, run)).max(-1)
    return best.clamp(min=0), units + torch.arange(
        start, start + pre.shape[1], run, device=pre.device
    )


class _Firing:
    """The cells that fire in n rows, taken a tile of units at a time, in rising order of unit."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.counts = torch.zeros(n, dtype=torch.int64, device=device)
        self.parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, values: Tensor, fires: Tensor, start: int) -> None:
        """values, fires [n, m], of units start, start + 1, ..."""
        rows, units = _true_cells(fires)
        counts = torch.bincount(rows, minlength=len(values))
        first = self.counts - (
            counts.cumsum(0) - counts
        )  # what to add to a cell's number for its place in its row
        places = torch.arange(len(rows), device=values.device) + first[rows]
        self.parts.append((rows, places, units + start, values[rows, units]))
        self.counts += counts

    def flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values float32 [m] and units int64 [m], row by row, and how many each row has, int64 [n]."""
        first = self.counts.cumsum(0) - self.counts
        total = sum(len(part[0]) for part in self.parts)
        out = torch.empty(total, device=first.device)
        indices = torch.empty(total, dtype=torch.int64, device=first.device)
        for rows, places, units, values in self.parts:
            at = first[rows] + places
            out[at] = values
            indices[at] = units
        return out, indices, self.counts


def _true_cells(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the cells of bool [n, width] that are true, in order: eight are looked at as one number."""
    n, width = mask.shape
    if width % 8 or not mask.is_contiguous():
        rows, columns = mask.nonzero(as_tuple=True)
        return rows, columns
    rows, words = mask.view(torch.int64).nonzero(as_tuple=True)
    which, bit = mask.view(n, -1, 8)[rows, words].nonzero(as_tuple=True)
    return rows[which], words[which] * 8 + bit
