"""Objectives: the SAE architectures that can be trained, one module each.

The trainer does what all architectures share: normalisation, optimiser, dead units, checkpoints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saefeat.config import TrainConfig
from saefeat.registry import Registry
from saefeat.world import ALONE, World

Parameters = dict[str, Tensor]


@dataclass
class Step:
    """Results of one step on a batch, or on a rank's part of it, x [n, d].

    Those of the whole batch are the sums of those of its parts. Of units that are split among
    ranks, gradients of rows, `fired` and `l0` are those of this rank; the rest is that of all.
    """

    loss: Tensor  # squared error of a reconstruction, over the tokens of the batch: []
    gradients: Parameters  # of the loss, by parameter
    error: Tensor  # reconstruction minus input [n, d]
    fired: Tensor  # which units of this rank fired on the vectors, bool [rows]
    l0: Tensor  # number of active units of this rank, over the tokens of the batch: []

    @classmethod
    def zeros(cls, x: Tensor, parameters: Parameters, width: int) -> Step:
        """The results of a part without vectors, x [0, d]."""
        nothing = {name: torch.zeros_like(value) for name, value in parameters.items()}
        fired = torch.zeros(width, dtype=torch.bool, device=x.device)
        return cls(x.new_zeros(()), nothing, x, fired, x.new_zeros(()))


class Objective(ABC):
    """An SAE architecture in training, on inputs of mean 0 and variance 1 per coordinate.

    dtype: of the encoder product.
    world: the ranks that share each batch.
    split: the ranks among which the units are split. Their vectors are the same; each has the rows
        of its units of the parameters, and adds to a reconstruction what its units give.
    """

    TABLE = 1  # the rows are in the order of a table [TABLE, n], of which a rank has some columns
    UNSPLIT: tuple[str, ...] = ("b_dec",)  # parameters that are not one row per unit

    def __init__(
        self, config: TrainConfig, dtype: torch.dtype, world: World = ALONE, split: World = ALONE
    ) -> None:
        self.config, self.dtype, self.world, self.split = config, dtype, world, split

    def own_rows(self, rows: Tensor) -> Tensor:
        """This rank's rows [width / ranks, ...] of those of all units [width, ...]."""
        table = rows.unflatten(0, (self.TABLE, -1))
        # Contiguous, because the fused Adam takes any parameter for that.
        return table.chunk(self.split.size, 1)[self.split.rank].flatten(0, 1).contiguous()

    def own_places(self, rows: Tensor, count: int) -> Tensor:
        """Of some rows of all units, int64 [m], those among the `count` rows of this rank.

        They are numbered as this rank's rows.
        """
        if self.split.size == 1:
            return rows
        columns = count // self.TABLE
        row, column = rows // (columns * self.split.size), rows % (columns * self.split.size)
        column = column - self.split.rank * columns
        return (row * columns + column)[(column >= 0) & (column < columns)]

    def all_rows(self, parts: Tensor) -> Tensor:
        """The rows of all units [width, ...], given those of each rank [ranks, n, ...]."""
        return parts.unflatten(1, (self.TABLE, -1)).transpose(0, 1).flatten(0, 2)

    @staticmethod
    @abstractmethod
    def check_width(width: int, config: TrainConfig) -> None:
        """Raise UserError if no SAE of this architecture has this width."""

    @abstractmethod
    def initialize(self, d_in: int, width: int, generator: torch.Generator) -> Parameters:
        """Initial values of this rank's parameters, float32 on the CPU.

        `width` is that of the SAE. Its units are the same for any number of ranks.
        """

    @abstractmethod
    def step(self, x: Tensor, parameters: Parameters, tokens: int) -> Step:
        """Loss and gradients on x [n, d_in], at least one vector of a batch of `tokens`."""

    @abstractmethod
    def revive(
        self, x: Tensor, parameters: Parameters, step: Step, dead: Tensor, first: int
    ) -> None:
        """Add gradients to a step that make dead units fire again.

        All ranks call it together, with the loss of the whole batch in `step`. `dead`: rows of
        the dead units of all ranks, int64 [m]. `first`: number of the vectors of x that are in the
        first quarter of the batch.
        """

    @abstractmethod
    def fold(self, parameters: Parameters, mean: Tensor, scale: Tensor) -> dict[str, Any]:
        """Arguments of `dictionaries.SAE` in raw units: raw = mean [d_in] + scale [] * input.

        The parameters are those of all units, which may be in another order there.
        """


OBJECTIVES: Registry[type[Objective]] = Registry(
    "SAE architecture", {"topk": "saefeat.sae.objectives.topk:TopK"}
)


def check_config(config: TrainConfig) -> None:
    """Raise UserError for an unknown architecture, or a `d_sae` that it cannot have."""
    objective = OBJECTIVES[config.architecture]
    if config.d_sae:
        objective.check_width(config.d_sae, config)


def sae_width(config: TrainConfig, d_in: int) -> int:
    """Width of the SAE at a site of width d_in. Raises UserError if the objective refuses it."""
    width = config.d_sae or config.expansion * d_in
    OBJECTIVES[config.architecture].check_width(width, config)
    return width
