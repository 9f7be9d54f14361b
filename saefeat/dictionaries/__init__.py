"""Dictionaries: bases of units for the vectors of a site.

Neurons are the identity dictionary. SAEs have the same interface.
"""

from __future__ import annotations

from saefeat.dictionaries.base import Dictionary, Identity, Rule
from saefeat.dictionaries.sae import ACTIVATIONS, NORMALIZATIONS, SAE

__all__ = ["ACTIVATIONS", "NORMALIZATIONS", "SAE", "Dictionary", "Identity", "Rule"]
