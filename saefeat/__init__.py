"""saefeat: find, rank and use the language features inside a language model.

The names below are the public ones. A whole run is `saefeat.run.run(RunConfig(...), out)`.

What `rank` returns is a `Selection`. `assess_certainty` measures how sure its units are. `combine`
and `shared` make new selections of it; `label_overlap` and `rule_overlap` say how far sets of units
overlap, `layer_rows` in which layers they are.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saefeat.config import RunConfig, TrainConfig
    from saefeat.corpora import load_corpus, make_plan
    from saefeat.io import UserError
    from saefeat.lid.identifier import LanguageIdentifier
    from saefeat.models import load_model
    from saefeat.overlap import label_overlap, rule_overlap
    from saefeat.partition import layer_rows
    from saefeat.run import collect, rank
    from saefeat.run.certainty import assess_certainty
    from saefeat.sae.store import load_sae, load_saes, save_sae
    from saefeat.sae.train import train_saes
    from saefeat.selection import Selection
    from saefeat.sets import combine, shared
    from saefeat.statistics import Stats
    from saefeat.steering import steer

_HOMES = {
    "LanguageIdentifier": "saefeat.lid.identifier",
    "RunConfig": "saefeat.config",
    "Selection": "saefeat.selection",
    "Stats": "saefeat.statistics",
    "TrainConfig": "saefeat.config",
    "UserError": "saefeat.io",
    "assess_certainty": "saefeat.run.certainty",
    "collect": "saefeat.run",
    "combine": "saefeat.sets",
    "label_overlap": "saefeat.overlap",
    "layer_rows": "saefeat.partition",
    "load_corpus": "saefeat.corpora",
    "load_model": "saefeat.models",
    "load_sae": "saefeat.sae.store",
    "load_saes": "saefeat.sae.store",
    "make_plan": "saefeat.corpora",
    "rank": "saefeat.run",
    "rule_overlap": "saefeat.overlap",
    "save_sae": "saefeat.sae.store",
    "shared": "saefeat.sets",
    "steer": "saefeat.steering",
    "train_saes": "saefeat.sae.train",
}
__all__ = [
    "LanguageIdentifier",
    "RunConfig",
    "Selection",
    "Stats",
    "TrainConfig",
    "UserError",
    "assess_certainty",
    "collect",
    "combine",
    "label_overlap",
    "layer_rows",
    "load_corpus",
    "load_model",
    "load_sae",
    "load_saes",
    "make_plan",
    "rank",
    "rule_overlap",
    "save_sae",
    "shared",
    "steer",
    "train_saes",
]


def __getattr__(name: str) -> Any:
    # Imported on demand: the command line answers `--help` without loading torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'saefeat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
