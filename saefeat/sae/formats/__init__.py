"""The formats of SAEs on disk, one module each.

This module is light: the command line makes its help texts of `FORMATS`.
"""

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
    """How the SAEs of one library lie on disk.

    Attributes:
        detect: whether an SAE lies at a path: a directory, or a file whose name matches
            `shared_files`. It does not raise for damaged files.
        read: the SAE at such a path, its id by names of files and folders. Raises UserError for
            files that are damaged or cannot be read.
        files: patterns of the names of its files, which the hub is asked for.
        shared_files: pattern of the names of SAEs that are files, several in one directory; ""
            where every SAE has a directory.
        parent_file: name of a file in a directory above that says more about the SAE, or "".
        listed: folders of the SAEs that a directory should hold, according to a file in it.
        conversions: names in the registry of sae-lens of the conversions that `read` replaces
            (None: the format of sae-lens itself).
    """

    detect: Callable[[Path], bool]
    read: Callable[[Path], SAE]
    files: tuple[str, ...]
    shared_files: str = ""
    parent_file: str = ""
    listed: Callable[[Path], list[str]] = lambda directory: []
    conversions: tuple[str | None, ...] = ()


# In the order of detection: a directory is read in the first format that detects it.
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
