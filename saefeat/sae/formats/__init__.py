"""The formats of SAEs on disk, one module each: `holds` knows its directories, `read` makes an `SAE` of one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

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

    Of Qwen-Scope, which has many SAEs in a directory, their files. Links that lead out of the
    directory are followed; what they lead to inside it is found there, under its own name. Raises
    UserError for links that lead nowhere and for folders that cannot be read, which may be SAEs.
    """
    if root.is_file():
        return [root] if form_of(root) else []
    found: list[Path] = []
    inside = os.path.join(os.path.realpath(root), "")
    for path, folders, files in os.walk(root, followlinks=True, onerror=_unreadable):
        here = Path(path)
        _check_links(here, files)
        found += [here / name for name in files if qwen_scope.holds(here / name)]
        if form_of(here):
            found.append(here)
        if found[-1:] == [here] or len(here.relative_to(root).parts) == _DEPTH:
            folders.clear()
        links = {name for name in folders if (here / name).is_symlink()}
        again = {
            name
            for name in links
            if os.path.join(os.path.realpath(here / name), "").startswith(inside)
        }
        folders[:] = [name for name in folders if not name.startswith(".") and name not in again]
    return found


def _unreadable(error: OSError) -> None:
    raise UserError(
        f"the folder {error.filename} cannot be read ({error.strerror}); give it the right to, or name the "
        "SAEs one by one"
    ) from error


def _check_links(folder: Path, names: list[str]) -> None:
    for name in names:
        if (
            (folder / name).is_symlink()
            and not (folder / name).exists()
            and not name.startswith(".")
        ):
            raise UserError(
                f"the link {folder / name} leads nowhere; mend or remove it, or name the SAEs one by one"
            )


def read(
    directory: Path, overrides: Mapping[str, Any] | None = None, scaling: float | None = None
) -> SAE:
    """The SAE in a directory of any format, its path in the record; raises UserError where it cannot be read.

    Its id is the directory's name (see `identifier`). What a registry knows of an SAE of sae-lens
    is given as `overrides` and `scaling` (see `sae_lens.read`).
    """
    directory = Path(whole_path(str(directory)))  # names tell ids and sites, those of links too
    form = form_of(directory)
    if form is None:
        raise UserError(
            f"{directory} holds no SAE; give a directory in one of the formats of sae-lens, sparsify, "
            "dictionary_learning or Gemma Scope"
        )
    try:
        sae = (
            sae_lens.read(directory, overrides, scaling)
            if form is sae_lens
            else form.read(directory)
        )
    except UserError as error:  # values of a configuration may hold ends of lines
        raise UserError(" ".join(str(error).splitlines())) from error
    sae.record["path"] = str(directory)  # what a link leads to may have a name that tells nothing
    sae.id = identifier(sae.id, sae.site)
    return sae


def identifier(name: str, site: str) -> str:
    """An SAE's id by its name, which names files too: none of them is hidden.

    The name of a place in a model is the id of the place's own identity dictionary.
    """
    name = name.lstrip(".") or "sae"
    return f"sae-{name}" if name == site or _PLACE.fullmatch(name) else name
