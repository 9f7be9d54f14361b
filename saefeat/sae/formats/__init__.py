"""The formats of SAEs on disk, one module each: `holds` knows its directories, `read` makes an `SAE` of one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType

from saefeat.dictionaries import SAE
from saefeat.io import UserError, whole_path
from saefeat.models import KINDS
from saefeat.sae.formats import dictionary_learning, gemma_scope, qwen_scope, sae_lens, sparsify

_FORMATS = (sparsify, sae_lens, dictionary_learning, gemma_scope, qwen_scope)
FILES = sorted({name for form in _FORMATS for name in form.FILES})
_DEPTH = 4  # folders below a source; Gemma Scope has layer/width/sparsity, sparsify hookpoint/seed
_PLACE = re.compile(rf"(?:{'|'.join(KINDS)})@\d+|\w+(?:\.\w+)+")


def form_of(directory: Path) -> ModuleType | None:
    """The format of the SAE in a directory (of Qwen-Scope: in a file), if it holds one."""
    return next((form for form in _FORMATS if form.holds(directory)), None)


def find(root: Path) -> list[Path]:
    """The SAE directories at or below a directory, unsorted; hidden ones and those inside an SAE are left out.

    Of Qwen-Scope, which has many SAEs in a directory, their files.
    """
    if root.is_file():
        return [root] if form_of(root) else []
    found: list[Path] = []
    for path, folders, files in os.walk(root):
        here = Path(path)
        found += [here / name for name in files if qwen_scope.holds(here / name)]
        if form_of(here):
            found.append(here)
        if found[-1:] == [here] or len(here.relative_to(root).parts) == _DEPTH:
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
    return found


def read(directory: Path) -> SAE:
    """The SAE in a directory of any format, its path in the record; raises UserError where it cannot be read.

    Its id is the directory's name (see `identifier`).
    """
    directory = Path(whole_path(str(directory)))  # names tell ids and sites, those of links too
    form = form_of(directory)
    if form is None:
        raise UserError(f"{directory} holds no SAE; give a directory in one of the formats of sae-lens, sparsify, "
                        "dictionary_learning or Gemma Scope")  # fmt: skip
    sae = form.read(directory)
    # The cache of the hub links files to others whose names tell nothing.
    sae.record["path"] = str(directory.resolve() if directory.is_dir() else directory.parent.resolve() / directory.name)
    sae.id = identifier(sae.id, sae.site)
    return sae


def identifier(name: str, site: str) -> str:
    """An SAE's id by its name, which names files too: none of them is hidden.

    The name of a place in a model is the id of the place's own identity dictionary.
    """
    name = name.lstrip(".") or "sae"
    return f"sae-{name}" if name == site or _PLACE.fullmatch(name) else name
