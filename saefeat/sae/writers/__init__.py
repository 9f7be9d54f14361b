"""The formats that SAEs are written in, one module each. This module imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saefeat.registry import Registry

if TYPE_CHECKING:
    from saefeat.dictionaries import SAE


@dataclass(frozen=True)
class Writer:
    """How SAEs are written for one library.

    Attributes:
        check: raises UserError for an SAE that the format cannot hold.
        write: writes an SAE into an existing directory. The library gives the same codes.
        library: `library_name` of the model card.
        loading: Python code that loads the SAE in `{folder}` as `sae`.
        encoding: Python code that encodes vectors `x` as `activations`.
        by_hookpoint: name directories by the module that the SAE reads, not by its id.
        summary_file: name of a file beside the directories, or "".
        summary: (base model, directory -> SAE) -> its content, a JSON object.
    """

    check: Callable[[SAE], None]
    write: Callable[[SAE, Path], None]
    library: str
    loading: str
    encoding: str
    by_hookpoint: bool = False
    summary_file: str = ""
    summary: Callable[[dict[str, Any], Mapping[str, SAE]], dict[str, Any]] = lambda model, saes: {}


WRITERS: Registry[Writer] = Registry(
    "export format",
    {
        "sae-lens": "saefeat.sae.writers.sae_lens:WRITER",
        "sparsify": "saefeat.sae.writers.sparsify:WRITER",
    },
    option="form",
)
