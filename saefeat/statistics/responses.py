"""Responses: per example, the mean of each unit over the tokens, and how often it fired."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from saefeat.codes import STEP
from saefeat.statistics.base import Field, Observed
from saefeat.statistics.by_example import EXAMPLES, ByExample


class Responses(ByExample):
    """The mean response of each unit to each example (Kojima et al., arXiv 2404.02431).

    `mean` float32 [rows, width] is over all counted tokens, negative values included. `fired` int16
    [rows, width] is the number of tokens on which the unit fired, `tokens` int32 [rows] the number
    of counted tokens: resampled by example, they give firing probabilities.
    """

    FIELDS: ClassVar = EXAMPLES | {
        "tokens": Field(("row",), "joint", torch.int32),
        "mean": Field(("row", "unit"), "joint", torch.float32),
        "fired": Field(("row", "unit"), "joint", torch.int16),
    }
    FOLDER = "responses"

    def values(self, observed: Observed) -> dict[str, Tensor]:
        bag, lengths = observed.bag, observed.lengths
        total = bag.table(bag.sum if bag.total is None else bag.total)
        each = lengths.clamp(min=1).to(total.device)[:, None]
        mean = (total.double() * STEP / each).float()
        # A text is cut at far fewer tokens than 2^15.
        return {"tokens": lengths, "mean": mean, "fired": bag.table(bag.tokens)}
