"""saefeat: find, rank and use the language features inside a language model."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "load_model": "saefeat.models",
    "load_corpus": "saefeat.corpora",
    "load_saes": "saefeat.sae.store",
    "collect": "saefeat.pipeline",
    "rank": "saefeat.pipeline",
    "LanguageIdentifier": "saefeat.lid",
    "Selection": "saefeat.selection",
    "UserError": "saefeat.io",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    # Imported on demand: the command line answers `--help` without loading torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'saefeat' has no attribute {name!r}")
