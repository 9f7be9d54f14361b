"""The interface of dictionaries, and the identity: neurons, or the coordinates of a site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from saefeat.codes import Codes
from saefeat.io import fingerprint
from saefeat.tokens import inliers

Rule = Callable[[Tensor], Tensor]
"""Values of units, float32 [..., m] -> their new values, of the same shape."""


class Dictionary:
    """A basis of units for the vectors of a site.

    Code that uses dictionaries does not ask for their class: SAEs and neurons have these methods.

    Attributes:
        id: unique in a run.
        site: where its vectors are read or written.
        width: number of units.
        d_in: width of the vectors.
        signed: whether values may be negative. Codes are then dense, and bags keep totals.
        max_norm: vectors with a greater norm are left out of statistics and edits; None: all count.
        identity: what headers record: id, kind, site, width, fingerprint, and what else opens the
            dictionary again.
        directions: what each unit writes: [width, d_in], in the dtype that it is stored in.
        norms: float32 [width], the norm of what each unit of value 1 adds to what the model
            computes; None where it differs from token to token, or is not known.
        weight_bytes: size of its weights.
        encoder_bytes: memory that `encode` keeps beside the weights.
        weights_read: bytes of the weights that `encode` reads where they are stored.
    """

    id: str
    site: str
    width: int
    d_in: int
    signed: bool = False
    max_norm: float | None
    identity: dict[str, Any]
    directions: Tensor
    norms: Tensor | None = None
    weight_bytes: int = 0
    encoder_bytes: int = 0
    weights_read: int = 0

    def keeps(self, x: Tensor) -> Tensor | None:
        """Return which vectors [n, d_in] count: bool [n]; None: all (see `saefeat.tokens`)."""
        return inliers(x, self.max_norm)

    def select(self, x: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Leave out the vectors that the dictionary does not count.

        Args:
            x: vectors [n, d_in] of the counted tokens of a batch.
            counted: which tokens these are, bool [rows, tokens] on the CPU.
        """
        kept = self.keeps(x)
        if kept is None or kept.all():
            return x, counted
        return x[kept], counted.masked_scatter(counted, kept.cpu())

    def encode(self, x: Tensor) -> Codes:
        """Return the codes of vectors x [n, d_in] of any floating-point dtype."""
        raise NotImplementedError

    def decode(self, codes: Codes) -> Tensor:
        """Return vectors float32 [n, d_in]."""
        raise NotImplementedError

    def directions_of(self, units: Sequence[int]) -> Tensor:
        """Return the directions of some units: float32 [m, d_in]."""
        return self.directions[list(units)].float()

    def edit_units(self, x: Tensor, units: Tensor, rule: Rule) -> Tensor:
        """Return x float32 [..., d_in] with a rule applied to the values of units int64 [m]."""
        raise NotImplementedError

    def spread(self, x: Tensor) -> Tensor | None:
        """Return the factor from the units' scale to each vector's, float32 [..., 1]; None: 1."""
        return None

    def to(self, device: str) -> Self:
        """Return the dictionary on a device."""
        return self

    def cells(self, device: str) -> int:
        """Return how many pre-activations `encode` holds at once on a device, at most."""
        return 0


@dataclass
class Identity(Dictionary):
    """The neurons of a site, or the coordinates of its vectors: every unit is one coordinate.

    Attributes:
        units: int64 [m], encode only these coordinates (heads read a few neurons of many).
        max_norm: None where all vectors count, as LAPE counts neurons.
        norms: see `Dictionary`; of what the down projection reads, they are its columns' norms.
    """

    site: str
    width: int
    units: Tensor | None = None
    max_norm: float | None = None
    norms: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.id, self.d_in, self.signed = self.site, self.width, self.units is None

    @property
    def identity(self) -> dict[str, Any]:
        limit = {} if self.max_norm is None else {"max_norm": self.max_norm}
        mark = fingerprint(["identity", self.site, self.width, *limit.values()])
        what = {"id": self.id, "kind": "identity", "site": self.site, "width": self.width}
        return {**what, "fingerprint": mark, **limit}

    @property
    def directions(self) -> Tensor:
        return torch.eye(self.width)

    def directions_of(self, units: Sequence[int]) -> Tensor:
        index = torch.tensor(list(units), dtype=torch.int64)
        return torch.nn.functional.one_hot(index, self.width).float()

    def encode(self, x: Tensor) -> Codes:
        """Return dense codes float32 of x [n, width], or sparse ones of the chosen `units`."""
        if self.units is None:
            return Codes(x.float(), None, self.width, signed=True)
        return Codes(x[:, self.units].float(), self.units.expand(len(x), -1), self.width)

    def decode(self, codes: Codes) -> Tensor:
        return codes.dense()

    def edit_units(self, x: Tensor, units: Tensor, rule: Rule) -> Tensor:
        return x.index_copy(-1, units, rule(x[..., units]))

    def to(self, device: str) -> Identity:
        return self if self.units is None else replace(self, units=self.units.to(device))
