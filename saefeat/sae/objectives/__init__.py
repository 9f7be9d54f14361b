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

Parameters = dict[str, Tensor]


@dataclass
class Step:
    """Results of one step on a batch x [n, d]."""

    loss: Tensor  # squared error of a reconstruction, mean over the tokens: []
    gradients: Parameters  # of the loss, by parameter
    error: Tensor  # reconstruction minus input [n, d]
    fired: Tensor  # which units fired on the batch, bool [d_sae]
    l0: Tensor  # mean number of active units per token, []


class Objective(ABC):
    """An SAE architecture in training, on inputs of mean 0 and variance 1 per coordinate.

    dtype: of the encoder product.
    """

    def __init__(self, config: TrainConfig, dtype: torch.dtype) -> None:
        self.config, self.dtype = config, dtype

    @staticmethod
    @abstractmethod
    def check_width(width: int, config: TrainConfig) -> None:
        """Raise UserError if no SAE of this architecture has this width."""

    @abstractmethod
    def initialize(self, d_in: int, width: int, generator: torch.Generator) -> Parameters:
        """Initial values of the parameters, float32 on the CPU."""

    @abstractmethod
    def step(self, x: Tensor, parameters: Parameters) -> Step:
        """Loss and gradients on x [n, d_in]."""

    @abstractmethod
    def revive(self, x: Tensor, parameters: Parameters, step: Step, dead: Tensor) -> None:
        """Add gradients to a step that make dead units (int64 [m]) fire again."""

    @abstractmethod
    def fold(self, parameters: Parameters, mean: Tensor, scale: Tensor) -> dict[str, Any]:
        """Arguments of `dictionaries.SAE` in raw units: raw = mean [d_in] + scale [] * input.

        The units may be in another order than in the parameters.
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
