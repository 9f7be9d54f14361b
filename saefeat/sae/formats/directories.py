"""Find the SAEs below a directory, and read the SAE at one path, in any format."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from saefeat.dictionaries import SAE
from saefeat.io import UserError, absolute_path
from saefeat.models import KINDS
from saefeat.resume import STATE
from saefeat.sae.formats import FORMATS, Format
from saefeat.words import in_words, natural

# Greatest depth that is searched. Gemma Scope has layer/width/sparsity, sparsify hookpoint/seed.
_DEPTH = 4
_SITE = re.compile(rf"(?:{'|'.join(KINDS)})@\d+|\w+(?:\.\w+)+")


def detect_format(path: Path) -> Format | None:
    """The format of the SAE at a path, a directory or a file; None if there is no SAE."""
    return next((form for form in FORMATS.values() if form.detect(path)), None)


def find(root: Path) -> list[Path]:
    """Find the SAEs at or below a path: directories, and files that are an SAE.

    Numbers in names are sorted by value. Hidden directories and those inside an SAE are not
    searched. A link is followed if it leads out of `root`; else its target is found anyway.

    Raises UserError for broken links and unreadable directories, because they may be SAEs, and for
    an unfinished training below `root`; its checkpoint is found where `root` is the checkpoint.
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
            _refuse_unfinished(here, root)
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


def _refuse_unfinished(path: Path, root: Path) -> None:
    if (path / STATE).is_file() and len(path.relative_to(root).parts) > 1:
        raise UserError(
            f"{path.parent.parent} is an unfinished training; run it again to finish it, or give a "
            f"checkpoint of it, such as {path.parent}"
        )


def _check_links(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        if path.is_symlink() and not path.exists() and not name.startswith("."):
            raise UserError(
                f"the link {path} is broken; repair or remove it, or name the SAEs one by one"
            )


def read(path: Path, reader: Callable[[Path], SAE] | None = None) -> SAE:
    """Read the SAE at a path and record the path. `reader` replaces the reader of its format.

    Raises UserError if there is no SAE, or if it cannot be read.
    """
    path = Path(absolute_path(str(path)))  # links keep their names, which may contain the site
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
    """The id of an SAE of this name. It names files, so it never begins with a dot.

    A name that is a site gets a prefix, because the site is the id of its identity dictionary.
    """
    name = name.lstrip(".") or "sae"
    return f"sae-{name}" if name == site or _SITE.fullmatch(name) else name
