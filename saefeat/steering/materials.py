"""What recipes are built from: statistics, SAEs, rankings of units, and evidence of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from saefeat.dictionaries import SAE
from saefeat.io import UserError
from saefeat.selection import Selection
from saefeat.statistics import Stats
from saefeat.steering.changes import Collected
from saefeat.steering.evidence import Evidence
from saefeat.steering.twins import SEED, random_units, random_vector


@dataclass
class Materials:
    """What recipes are built from. Rankings of units, which a sweep asks for often, are kept.

    Attributes:
        collected: statistics of the SAEs and of the identities of the sites, with a source label.
        saes: the SAEs whose features may steer.
        evidence: what is measured of the model when a recipe needs it.
        random: whether random units and directions take the place of those that are chosen: the
            control of a method.
    """

    collected: Collected
    saes: Sequence[SAE]
    evidence: Evidence
    random: bool = False
    _rankings: dict[Any, Selection] = field(default_factory=dict, repr=False)

    def saes_at(self, site: str) -> list[SAE]:
        """The SAEs at a site. Raises UserError when there are none."""
        found = [sae for sae in self.saes if sae.site == site]
        if not found:
            have = ", ".join(sae.site for sae in self.saes)
            raise UserError(f"the run has no SAE at {site}; it has them at {have}", "sites")
        return found

    def rank(
        self, method: Callable[..., Selection], names: Sequence[str], **parameters: Any
    ) -> Selection:
        """Rank the units of dictionaries by a published rule."""
        key = (method, *names, *sorted(parameters.items()))
        if key not in self._rankings:
            stats = [self.collected.read(name) for name in names]
            self._rankings[key] = method(stats, **parameters)
        return self._rankings[key]

    def units(
        self, stats: Stats, chosen: Sequence[int], label: str, avoid: Sequence[int] = ()
    ) -> list[int]:
        """The chosen units; for a control as many others that fire, fewer where there are fewer.

        Args:
            avoid: further units that a control leaves out.
        """
        if not self.random:
            return list(chosen)
        seed = SEED + stats.labels.index(label)
        return random_units(stats, [*chosen, *avoid], seed)[: len(chosen)]

    def direction(self, chosen: Tensor, label: str, site: str) -> Tensor:
        """The chosen vector [d]; for a control one of random direction and the same length."""
        return random_vector(chosen, label, site) if self.random else chosen

    def difference(self, site: str, label: str) -> Tensor:
        """The difference of means at a site, float64 [d]; for a control a vector of its length."""
        return self.direction(self.collected.difference(site, label), label, site)
