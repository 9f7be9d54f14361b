"""saefeat: find, rank and use the language features inside a language model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saefeat.corpora import load_corpus
    from saefeat.io import UserError
    from saefeat.lid import LanguageIdentifier
    from saefeat.models import load_model
    from saefeat.run import collect, rank
    from saefeat.sae.store import load_saes
    from saefeat.selection import Selection
    from saefeat.steering import steer

_HOMES = {
    "load_model": "saefeat.models",
    "load_corpus": "saefeat.corpora",
    "load_saes": "saefeat.sae.store",
    "collect": "saefeat.run",
    "rank": "saefeat.run",
    "LanguageIdentifier": "saefeat.lid",
    "steer": "saefeat.steering",
    "Selection": "saefeat.selection",
    "UserError": "saefeat.io",
}
__all__ = [
    "LanguageIdentifier",
    "Selection",
    "UserError",
    "collect",
    "load_corpus",
    "load_model",
    "load_saes",
    "rank",
    "steer",
]


def __getattr__(name: str) -> Any:
    # Imported on demand: the command line answers `--help` without loading torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'saefeat' has no attribute {name!r}")
