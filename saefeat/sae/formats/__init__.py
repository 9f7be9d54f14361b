"""The formats of SAEs on disk, one module each: `holds` knows its directories, `read` makes an `SAE` of one."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

from saefeat.dictionaries import SAE
from saefeat.io import UserError
from saefeat.sae.formats import dictionary_learning, gemma_scope, sae_lens, sparsify

_FORMATS = (sparsify, sae_lens, dictionary_learning, gemma_scope)
FILES = sorted({name for form in _FORMATS for name in form.FILES})
_DEPTH = 4  # folders below a source; Gemma Scope has layer/width/sparsity, sparsify hookpoint/seed


def form_of(directory: Path) -> ModuleType | None:
    """The format of the SAE in a directory, if it holds one."""
    return next((form for form in _FORMATS if form.holds(directory)), None)


def find(root: Path) -> list[Path]:
    """The SAE directories at or below a directory, unsorted; hidden ones and those inside an SAE are left out."""
    found = []
    for path, folders, _ in os.walk(root):
        here = Path(path)
        if form_of(here):
            found.append(here)
        if found[-1:] == [here] or len(here.relative_to(root).parts) == _DEPTH:
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
    return found


def read(directory: Path) -> SAE:
    """The SAE in a directory of any format, its path in the record; raises UserError where it cannot be read."""
    directory = Path(os.path.abspath(directory))  # names tell ids and sites, those of links too
    form = form_of(directory)
    if form is None:
        raise UserError(f"{directory} holds no SAE; give a directory in one of the formats of sae-lens, sparsify, "
                        "dictionary_learning or Gemma Scope")  # fmt: skip
    sae = form.read(directory)
    sae.record["path"] = str(directory.resolve())
    return sae
