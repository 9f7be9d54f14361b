"""The formats of SAEs on disk, one module each. This module imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saefeat.registry import Registry

if TYPE_CHECKING:
    from saefeat.dictionaries import SAE


@dataclass(frozen=True)
class Format:
    """How one library stores SAEs.

    Attributes:
        detect: whether a path is an SAE: a directory, or a file that matches `shared_files`. Does
            not raise for damaged files.
        read: reads the SAE at such a path; names of files and folders make its id. Raises
            UserError for files that are damaged or cannot be read.
        files: patterns of file names, for downloads.
        shared_files: pattern of SAEs that are single files of a common directory, or "".
        parent_file: name of a file with further facts in a directory above, or "".
        listed: the folders of SAEs that a directory should hold, according to a file in it.
        conversions: `conversion_func` of the SAEs in the registry of sae-lens that `read` reads
            (None: the format of sae-lens itself).
    """

    detect: Callable[[Path], bool]
    read: Callable[[Path], SAE]
    files: tuple[str, ...]
    shared_files: str = ""
    parent_file: str = ""
    listed: Callable[[Path], list[str]] = lambda directory: []
    conversions: tuple[str | None, ...] = ()


# In the order of detection: the first format that detects a directory reads it.
FORMATS: Registry[Format] = Registry(
    "SAE format",
    {
        "sparsify": "saefeat.sae.formats.sparsify:FORMAT",
        "sae-lens": "saefeat.sae.formats.sae_lens:FORMAT",
        "dictionary_learning": "saefeat.sae.formats.dictionary_learning:FORMAT",
        "Gemma Scope": "saefeat.sae.formats.gemma_scope:FORMAT",
        "Qwen-Scope": "saefeat.sae.formats.qwen_scope:FORMAT",
    },
)
