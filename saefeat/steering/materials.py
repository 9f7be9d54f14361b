"""What recipes are built from: statistics, SAEs, rankings of units, and evidence of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from saefeat.dictionaries import SAE
from saefeat.io import UserError
from saefeat.selection import Selection
from saefeat.steering.changes import Collected
from saefeat.steering.evidence import Evidence


@dataclass
class Materials:
    """What recipes are built from. Rankings of units, which a sweep asks for often, are kept.

    Attributes:
        collected: statistics of the SAEs and of the identities of the sites, with a source label.
        saes: the SAEs whose features may steer.
        evidence: what is measured of the model when a recipe needs it.
    """

    collected: Collected
    saes: Sequence[SAE]
    evidence: Evidence
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
