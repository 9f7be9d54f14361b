"""Importances: per example, how much the model's vectors change when a unit is deactivated."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from saefeat.statistics.base import Field, Observed
from saefeat.statistics.by_example import EXAMPLES, ByExample

if TYPE_CHECKING:
    from saefeat.dictionaries import Dictionary


class Importances(ByExample):
    """The importance of each unit for each example (PLND: Zhao et al., arXiv 2402.18815).

    `importance` float32 [rows, width] is the norm of the change of what the unit writes into, over
    all counted tokens, when its value is set to 0: the root of the sum of its squared values, times
    the norm of what it writes. For neurons at `mlp_hidden` that is the output of the down
    projection, before a norm that may follow. For an SAE it is its site. Dictionaries whose units
    have no such norm (`Dictionary.norms`) have no importances.
    """

    FIELDS: ClassVar = EXAMPLES | {"importance": Field(("row", "unit"), "joint", torch.float32)}
    FOLDER = "importances"

    @classmethod
    def applies(cls, dictionary: Dictionary) -> bool:
        return dictionary.norms is not None

    def values(self, observed: Observed) -> dict[str, Tensor]:
        assert observed.dictionary is not None and observed.dictionary.norms is not None
        found = observed.codes.norms(observed.lengths)
        return {"importance": found * observed.dictionary.norms.to(found.device)}
