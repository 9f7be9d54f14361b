"""Language identification: bags of units of texts, and heads that read them.

Every head is linear in the bag of an example: it has a weight for each (unit, label) on the number
of tokens on which the unit fires, and `sae-min-max` also one on the sum of its values. So all heads
are stored, applied and explained in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saefeat.lid.identifier import LanguageIdentifier

__all__ = ["LanguageIdentifier"]


def __getattr__(name: str) -> Any:
    # Imported on demand: help texts list the heads, and do not wait for torch.
    if name == "LanguageIdentifier":
        from saefeat.lid.identifier import LanguageIdentifier

        return LanguageIdentifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
