"""How SAEs encode: pre-activations by tiles of units, and of these the units that fire.

The two-stage top-k. A selection of the k greatest among 100,000 columns costs more than the matrix
product before it. So units are put into groups of 16 consecutive ones, and the greatest of each
group is kept while the tile is in the cache. The k units sought lie in the k groups with the
greatest maxima: each of these k groups has a unit at least as great as any unit outside of them.
The second stage therefore looks at 16 k candidates. Ties have to go to the lower unit, so both
stages compare integer keys (value, then lower unit) instead of values. The result is exact.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Units whose pre-activations are computed together. On a CPU, a product by tiles is several per
# cent faster than a whole one.
TILE = 2048
_LOW = 2**32 - 1  # the lower half of a key


def tiles(width: int, device: torch.device) -> int:
    """Return the number of tiles into which the units of a dictionary are cut on a device."""
    return -(-width // TILE) if device.type == "cpu" else 1


# --------------------------------------------------------------------------- top-k


class GroupedEncoder:
    """`TopK(relu(x @ W + b))` with an exact two-stage top-k, several times faster than a plain one.

    Columns of a tile are laid out so that the maxima of all groups are taken over whole rows: unit
    j of group i of a tile stands in column j * groups + i of the tile. Missing units of the last
    group have the bias -inf.

    Attributes:
        size: units of a group.
    """

    size = 16

    def __init__(self, weight: Tensor, bias: Tensor, k: int, dtype: torch.dtype) -> None:
        """Take weight [d_in, width], bias [width], k and the dtype of the products."""
        d_in, width = weight.shape
        self.k = min(k, width)
        groups = -(-width // self.size)
        count = tiles(width, weight.device)
        columns = -(-groups // count) * self.size  # of a tile
        # Filled in place: a wide dictionary and two copies of it may not fit in memory together.
        self.weight = torch.zeros(count, d_in, columns, dtype=dtype, device=weight.device)
        self.bias = torch.full((count, columns), -torch.inf, dtype=dtype, device=weight.device)
        for tile, start in enumerate(range(0, width, columns)):
            units = slice(start, start + columns)
            _lay_out(weight[:, units], self.weight[tile], self.size)
            _lay_out(bias[None, units], self.bias[tile : tile + 1], self.size)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return values float32 [n, k], zeros last, and units int64 [n, k] of x [n, d_in]."""
        x = x.to(self.weight.dtype)
        pre = x.new_empty(len(self.weight), len(x), self.weight.shape[2])
        maxima = []
        for out, weight, bias in zip(pre, self.weight, self.bias, strict=True):
            torch.addmm(bias, x, weight, out=out)
            maxima.append(_group_maxima(out, self.size))  # while the tile is in the cache
        return *self._top(pre, torch.cat(maxima, 1), self.k), None

    @classmethod
    def top(cls, pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k greatest values and their units, [n, k], greatest first.

        `pre` are pre-activations [n, columns] in the layout of one tile.
        """
        return cls._top(pre[None], _group_maxima(pre, cls.size), k)

    @classmethod
    def _top(cls, pre: Tensor, maxima: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Do the same for tiles [tiles, n, columns], given the maxima [n, groups] of all groups."""
        _, n, columns = pre.shape
        groups = columns // cls.size  # of a tile
        keys = _keys(maxima, torch.arange(maxima.shape[1], device=pre.device))
        best = keys.topk(min(k, maxima.shape[1]), sorted=False).values
        chosen = _LOW - (best & _LOW)  # groups [n, k]
        inner = torch.arange(cls.size, device=pre.device)[:, None]
        row = torch.arange(n, device=pre.device)[:, None]
        start = ((chosen // groups) * n + row) * columns + chosen % groups
        values = pre.view(-1)[start[:, None, :] + inner * groups]
        units = chosen[:, None, :] * cls.size + inner
        top = _keys(values.flatten(1), units.flatten(1)).topk(k).values
        return (top >> 32).to(torch.int32).view(torch.float32), _LOW - (top & _LOW)


def _group_maxima(pre: Tensor, size: int) -> Tensor:
    """Return the maxima [n, groups] of pre-activations [n, columns] of a tile."""
    return pre.unflatten(1, (size, -1)).amax(1)


def _lay_out(columns: Tensor, out: Tensor, size: int) -> None:
    """Put columns [rows, m] of consecutive units into `out` [rows, at least m], a tile's layout."""
    groups, left = divmod(columns.shape[1], size)
    tile = out.unflatten(1, (size, -1))
    tile[:, :, :groups] = columns[:, : groups * size].unflatten(1, (groups, size)).transpose(1, 2)
    tile[:, :left, groups : groups + 1] = columns[:, groups * size :, None]


def _keys(values: Tensor, units: Tensor) -> Tensor:
    """Return int64 keys that sort by value (negative ones as 0), then by lower unit.

    The bits of floats that are not negative, read as integers, sort as the floats do.
    """
    keys = values.float().view(torch.int32).clamp(min=0).long()
    return keys.bitwise_left_shift_(32).bitwise_or_(_LOW - units)


# --------------------------------------------------------------------------- other activations


class DenseEncoder:
    """The other activations: all pre-activations of a tile, then the units that fire."""

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
        """Take weight [d_in, width], bias [width] and the dtype of the products.

        `runs` is the number of runs of units for `groupmax`; `threshold` [width] is for `jumprelu`,
        `b_gate` and `gain` [width] for `gated`.
        """
        self.weight = weight
        # Contiguous: weights that their file holds transposed are read row by row here.
        if weight.dtype != dtype or not weight.is_contiguous():
            self.weight = torch.empty(weight.shape, dtype=dtype, device=weight.device).copy_(weight)
        self.b_mag, self.b_gate, self.gain = bias, b_gate, gain
        self.bias = (bias if b_gate is None else torch.zeros_like(bias)).to(dtype)
        self.threshold = None if threshold is None else threshold.clamp(min=0)
        self.width = weight.shape[1]
        self.run = None if runs is None else self.width // runs  # units of a run
        step = self.run or 8  # no run is cut; eight cells are looked at as one, see `_true_cells`
        self.tile = max(1, -(-self.width // tiles(self.width, weight.device)) // step) * step

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Encode vectors x [n, d_in].

        With runs, return values float32 [n, runs], units int64 [n, runs] and None. Else return the
        units that fire, in rising order for each vector: values [m], units [m], and the number
        of them for each vector, int64 [n] (see `Codes`).
        """
        x = x.to(self.weight.dtype)
        if self.run is not None:
            parts = [_greatest(pre, self.run, start) for pre, start in self._products(x)]
            values, units = zip(*parts, strict=True)
            return torch.cat(values, 1), torch.cat(units, 1), None
        return self._firing(x)

    def _products(self, x: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Yield the pre-activations of each tile, and its first unit."""
        for start in range(0, self.width, self.tile):
            here = slice(start, start + self.tile)
            yield torch.addmm(self.bias[here], x, self.weight[:, here]).float(), start

    def _fires(self, pre: Tensor, here: slice) -> tuple[Tensor, Tensor]:
        """Return the values of some units, and whether they fire."""
        if self.gain is None or self.b_gate is None:
            return pre, pre > (0.0 if self.threshold is None else self.threshold[here])
        values = pre * self.gain[here] + self.b_mag[here]
        return values, (values > 0) & (pre + self.b_gate[here] > 0)

    def _firing(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Collect the units that fire tile by tile, and put them in order row by row."""
        counts = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        parts = []
        for pre, start in self._products(x):
            values, fires = self._fires(pre, slice(start, start + pre.shape[1]))
            rows, units = _true_cells(fires)
            here = torch.bincount(rows, minlength=len(x))
            # A cell's place in its row is its number in the tile plus this.
            offset = counts - (here.cumsum(0) - here)
            places = torch.arange(len(rows), device=x.device) + offset[rows]
            parts.append((rows, places, units + start, values[rows, units]))
            counts += here
        first = counts.cumsum(0) - counts
        indices = first.new_empty(sum(len(part[0]) for part in parts))
        out = torch.empty_like(indices, dtype=torch.float32)
        for rows, places, units, values in parts:
            at = first[rows] + places
            out[at], indices[at] = values, units
        return out, indices, counts


def _greatest(pre: Tensor, run: int, start: int) -> tuple[Tensor, Tensor]:
    """Return the greatest value of each run of units, and its unit; `pre` begins at `start`."""
    best, units = pre.unflatten(-1, (-1, run)).max(-1)
    first = torch.arange(start, start + pre.shape[1], run, device=pre.device)
    return best.clamp(min=0), units + first


def _true_cells(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns of the true cells of a mask [n, width], in order."""
    if mask.shape[1] % 8 or not mask.is_contiguous():
        rows, columns = mask.nonzero(as_tuple=True)
        return rows, columns
    # Few units fire, so eight cells are looked at as one integer first.
    rows, words = mask.view(torch.int64).nonzero(as_tuple=True)
    which, byte = mask.unflatten(1, (-1, 8))[rows, words].nonzero(as_tuple=True)
    return rows[which], words[which] * 8 + byte
