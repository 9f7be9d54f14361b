"""Objectives: the SAE architectures that can be trained, one module each.

An objective knows the parameters of its architecture, their initial values, the loss and gradients
of one step, and how trained parameters become an inference SAE. The trainer knows the rest:
normalisation of the input, the optimiser, dead units and checkpoints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from saefeat.config import TrainConfig
from saefeat.registry import Registry

Parameters = dict[str, Tensor]
S = TypeVar("S", bound="Step")


@dataclass
class Step:
    """What one step finds on a batch x [n, d].

    Attributes:
        loss: squared error of a reconstruction, mean over the tokens: float32 [].
        gradients: of the loss, by parameter.
        fired: which units fired on the batch, bool [d_sae].
        l0: mean number of active units per token, [].
    """

    loss: Tensor
    gradients: Parameters
    fired: Tensor
    l0: Tensor


class Objective(ABC, Generic[S]):
    """An SAE architecture in training, in coordinates where the input has mean 0 and variance 1.

    Args:
        config: how SAEs are trained.
        dtype: of the encoder product.
    """

    def __init__(self, config: TrainConfig, dtype: torch.dtype) -> None:
        self.config, self.dtype = config, dtype

    @staticmethod
    @abstractmethod
    def check_width(width: int, config: TrainConfig) -> None:
        """Raise UserError when no SAE of this architecture can have this width."""

    @abstractmethod
    def initialize(self, d_in: int, width: int, generator: torch.Generator) -> Parameters:
        """Initial values of the parameters, float32 on the CPU, in the order of the optimiser."""

    @abstractmethod
    def step(self, x: Tensor, parameters: Parameters) -> S:
        """Loss and gradients on x [n, d_in]."""

    @abstractmethod
    def revive(self, x: Tensor, parameters: Parameters, step: S, dead: Tensor) -> None:
        """Add to the gradients of a step what brings dead units (int64 [m]) back to life."""

    @abstractmethod
    def fold(self, parameters: Parameters, mean: Tensor, scale: Tensor) -> Mapping[str, Any]:
        """Arguments of `dictionaries.SAE` for inference in raw units, x = mean + scale * input.

        mean: [d_in]; scale: []. Units may be put in another order than that of the parameters.
        """


OBJECTIVES: Registry[type[Objective[Any]]] = Registry(
    "SAE architecture", {"topk": "saefeat.sae.objectives.topk:TopK"}
)


def sae_width(config: TrainConfig, d_in: int) -> int:
    """Width of an SAE at a site of width d_in. Raises UserError when there can be no such SAE."""
    width = config.d_sae or config.expansion * d_in
    OBJECTIVES[config.architecture].check_width(width, config)
    return width
