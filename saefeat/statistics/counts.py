"""Counts: per label and unit, how often and how strongly the unit fired."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from saefeat.codes import STEP, Bag
from saefeat.io import UserError
from saefeat.statistics.base import Accumulator, Field, Observed

_BY_UNIT = ("label", "unit")


class Stats(Accumulator):
    """Per label and unit: how often and how strongly a unit of one dictionary fired.

    The tensors are `tokens[K]`, `examples[K]`, and per unit `fired`, `fired_examples`, `sum`,
    `total` (int64, `[K, width]`, sums in steps of 2^-20), `min`, `max` (float32, over firing
    values; +inf and -inf where nothing fired). `total` is over all tokens, negative values
    included; for codes that are never negative it equals `sum` and is not stored.
    """

    FIELDS: ClassVar = {
        "tokens": Field(("label",), "sum"),
        "examples": Field(("label",), "sum"),
        "fired": Field(_BY_UNIT, "sum"),
        "fired_examples": Field(_BY_UNIT, "sum"),
        "sum": Field(_BY_UNIT, "sum"),
        "total": Field(_BY_UNIT, "sum", signed_only=True),
        "min": Field(_BY_UNIT, "min", torch.float32),
        "max": Field(_BY_UNIT, "max", torch.float32),
    }
    FORMAT: ClassVar = {"step": STEP}

    def __getattr__(self, name: str) -> Tensor:
        if name == "total" and name not in self.tensors:
            return self.tensors["sum"]
        return super().__getattr__(name)

    @property
    def width(self) -> int:
        return self.fired.shape[1]

    @property
    def counted(self) -> Tensor:
        """Which labels have tokens: bool [K] on the CPU."""
        return self.tokens.cpu() > 0

    @property
    def counted_labels(self) -> list[str]:
        """The labels that have tokens, in order."""
        return [self.labels[k] for k in self.counted.nonzero().flatten().tolist()]

    def row(self, label: str) -> int:
        """The position of a label. Raises UserError for an unknown one."""
        if label not in self.labels:
            known = ", ".join(self.labels)
            raise UserError(f"there is no label {label!r} in the statistics; they have {known}")
        return self.labels.index(label)

    def probability(self) -> Tensor:
        """Firing tokens / counted tokens, float32 [K, width]; 0 where a label has no tokens."""
        return self.fired.float() / self.tokens.clamp(min=1).float()[:, None]

    def mean(self) -> Tensor:
        """Mean over all tokens, negative values included, float64 [K, width].

        It is 0 where a label has no tokens.
        """
        return self.total.double() * STEP / self.tokens.clamp(min=1)[:, None]

    def mean_firing(self) -> Tensor:
        """Mean over the firing tokens, float64 [K, width]; 0 where nothing fired."""
        return self.sum.double() * STEP / self.fired.clamp(min=1)

    def add(self, observed: Observed) -> None:
        self.add_bag(observed.bag, observed.labels, observed.lengths)

    def add_bag(self, bag: Bag, labels: Tensor, lengths: Tensor) -> None:
        """Add a bag of E examples in place.

        Args:
            labels: int64 [E], the row of each example's label.
            lengths: int64 [E], their counted tokens.
        """
        tokens = lengths.to(labels.device)
        self.tokens.index_add_(0, labels, tokens)
        self.examples.index_add_(0, labels, torch.ones_like(tokens))
        values = {name: getattr(bag, name) for name in ("sum", "total", "min", "max")}
        values |= {"fired": bag.tokens, "fired_examples": bag.tokens > 0}
        for name, value in values.items():
            if name in self.tensors and value is not None:
                bag.reduce_into(self.tensors[name], value, labels, self.FIELDS[name].reduction)
