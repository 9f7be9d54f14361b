"""Load models and tokenizers, and find the sites of a model."""

from __future__ import annotations

from saefeat.models.language_model import LanguageModel, wrap
from saefeat.models.loading import (
    choose_device,
    choose_dtype,
    load_model,
    load_skeleton,
    native_bf16,
)
from saefeat.models.sites import KINDS, Site, find_layers, resolve_site

__all__ = [
    "KINDS",
    "LanguageModel",
    "Site",
    "choose_device",
    "choose_dtype",
    "find_layers",
    "load_model",
    "load_skeleton",
    "native_bf16",
    "resolve_site",
    "wrap",
]
