"""SAEs in directories of any format: where they are, and the SAE of one place."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from saefeat.dictionaries import SAE
from saefeat.io import UserError, absolute_path, in_words, natural
from saefeat.models import KINDS
from saefeat.sae.formats import FORMATS, Format

# Folders below a source that are searched. Gemma Scope has layer/width/sparsity, sparsify has
# hookpoint/seed.
_DEPTH = 4
_SITE = re.compile(rf"(?:{'|'.join(KINDS)})@\d+|\w+(?:\.\w+)+")


def detect_format(path: Path) -> Format | None:
    """The format of the SAE at a path, a directory or a file; None where there is no SAE."""
    return next((form for form in FORMATS.values() if form.detect(path)), None)


def find(root: Path) -> list[Path]:
    """Places of the SAEs at or below a path: directories, and files that are an SAE.

    Numbers in names are sorted by value. Hidden directories and those inside an SAE are not
    searched. Links are followed when they lead out of `root`; otherwise the target itself is found.

    Raises UserError for broken links and unreadable directories, which may stand for SAEs.
    """
    if root.is_file():
        return [root] if detect_format(root) else []
    found: list[Path] = []
    inside = os.path.join(os.path.realpath(root), "")
    for path, folders, files in os.walk(root, followlinks=True, onerror=_refuse_unreadable):
        here = Path(path)
        _check_links(here, files)
        shared = (here / name for name in files if is_shared_file(name))
        found += filter(detect_format, shared)
        if is_sae := detect_format(here) is not None:
            found.append(here)
        if is_sae or len(here.relative_to(root).parts) == _DEPTH:
            folders.clear()
        shown = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in shown if not _is_link_to(here / name, inside)]
    return sorted(found, key=natural)


def is_shared_file(name: str) -> bool:
    """Whether a file of this name may be an SAE that shares its directory with others."""
    return any(form.shared_files and fnmatch(name, form.shared_files) for form in FORMATS.values())


def _is_link_to(path: Path, inside: str) -> bool:
    return path.is_symlink() and os.path.join(os.path.realpath(path), "").startswith(inside)


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(
        f"the folder {error.filename} cannot be read ({error.strerror}); change its permissions, "
        "or name the SAEs one by one"
    ) from error


def _check_links(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        if path.is_symlink() and not path.exists() and not name.startswith("."):
            raise UserError(
                f"the link {path} is broken; repair or remove it, or name the SAEs one by one"
            )


def read(path: Path, reader: Callable[[Path], SAE] | None = None) -> SAE:
    """The SAE at a path, with the path in its record; reader: in place of that of its format.

    Raises UserError where there is no SAE, or one that cannot be read.
    """
    path = Path(absolute_path(str(path)))  # links keep their names, which may tell ids and sites
    form = detect_format(path)
    if form is None:
        raise UserError(
            f"{path} holds no SAE; give a directory in the format of {in_words(FORMATS)}"
        )
    try:
        sae = (reader or form.read)(path)
    except UserError as error:  # values of a configuration may hold line breaks
        raise UserError(" ".join(str(error).splitlines()), *error.options) from error
    return replace(sae, id=sae_name(sae.id, sae.site), record={**sae.record, "path": str(path)})


def sae_name(name: str, site: str) -> str:
    """The id of an SAE by its name. Files are named by it, so it never begins with a dot.

    The name of a site is the id of its identity dictionary, so it gets a prefix.
    """
    name = name.lstrip(".") or "sae"
    return f"sae-{name}" if name == site or _SITE.fullmatch(name) else name
