"""Atomic writes, fingerprints, safetensors with a JSON header, and the errors for the user."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is imported inside functions, so that `--help` does not wait for it
    import torch

SCHEMA = 1
_CHUNK_VALUES = 2**24  # values of a tensor in a block of rows
TEMPORARY = ".saefeat-tmp"  # in the name of an unfinished file or directory, after a leading dot
_HEADER_KEY = "saefeat"  # the only metadata key: safetensors writes several in random order


class UserError(Exception):
    """Bad input: the command line prints the message and exits with 2.

    Args:
        message: one sentence that says what is wrong, where, and what would help. It names no
            flags of the command line.
        options: names of the parameters to change, as they are called in Python: "out",
            "max_tokens". The command line adds its flags for them.
        command: what to run first, as it is called on the command line: "lid fit".
    """

    def __init__(self, message: str, *options: str, command: str = "") -> None:
        super().__init__(message)
        self.options = options
        self.command = command


class RunFailed(Exception):
    """The run itself failed (NaN, a full disk). State is kept; the command line exits with 1.

    `remedy`: what helps, where the same command would fail again.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


def cache_dir() -> Path:
    """Directory of fetched and converted files: `$SAEFEAT_CACHE`, or one in the user's cache."""
    base = os.environ.get("SAEFEAT_CACHE")
    if base:
        return user_path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saefeat"


def user_path(text: str) -> Path:
    """The path with `~` expanded. Raises UserError if there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(
            f'cannot expand "~" in {text}: there is no such user; give an absolute path'
        ) from error


def absolute_path(path: str) -> str:
    """The absolute path. Links are followed only if the path contains `..`."""
    return os.path.realpath(path) if ".." in Path(path).parts else os.path.abspath(path)


def existing_path(name: str, absolute: Callable[[str], str] = absolute_path) -> str:
    """The absolute path of a file or directory that exists; any other name as it is."""
    path = os.path.expanduser(name)
    return absolute(path) if os.path.exists(path) else name


def visible(directory: Path, pattern: str = "*") -> list[Path]:
    """The paths in a directory that match, sorted. Hidden ones are temporary and left out."""
    return sorted(directory.glob(f"[!.]{pattern}"))


def make_dir(path: Path) -> Path:
    """Create a directory and check that it is writable.

    Raises UserError if it is not, and OSError if the disk is full.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(
            f"cannot write in {path}: {error.strerror or error}; choose another directory"
        ) from error
    return path


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk or the user's quota is full."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


@cache
def host_mark() -> str:
    """Eight hex digits that stand for this machine in the names of temporary files."""
    return fingerprint(socket.gethostname())[:8]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` on success and removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept, because some writers choose the format by it.
    unique = f"{host_mark()}-{secrets.token_hex(4)}"  # processes of two hosts may have one number
    temporary = path.with_name(f".{path.stem}.{unique}{TEMPORARY}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """Yield a hidden directory that replaces `directory` on success and is removed on failure.

    The previous content is deleted then; the caller checks whether it may be.
    """
    directory = directory.resolve()  # a link is kept, and its target is replaced
    make_dir(directory.parent)
    prefix = f".{directory.name}.{host_mark()}-"
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=prefix, suffix=TEMPORARY))
    temporary.chmod(0o755)  # mkdtemp gives access to the owner only
    before = temporary.with_name(f"{temporary.stem}-before{TEMPORARY}")
    try:
        yield temporary
        try:
            # A rename replaces an empty directory by itself.
            if directory.is_dir() and any(directory.iterdir()):
                os.rename(directory, before)
            os.rename(temporary, directory)
        except BaseException:
            if before.exists() and not directory.exists():
                os.rename(before, directory)
            raise
        # Deleted last: until the new directory is in place, this is the only copy.
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def wait_for_disk(path: Path) -> None:
    """Wait until a file, or the files in a directory and their names, are on the disk.

    So they outlast the end of the machine, not of the process alone. On Windows it does nothing.
    """
    if os.name == "nt":
        return
    folder = path if path.is_dir() else path.parent
    for each in [path] if path.is_file() else filter(Path.is_file, visible(folder)):
        _sync(each)
    with suppress(OSError):  # some file systems cannot do this with a directory
        _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value atomically. Raises ValueError if a number is not finite."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises UserError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable JSON file ({error})") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with the second if the first ends with a colon.

    It is the name of the error's type if there is no message.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])


def kept_json(path: Path) -> dict[str, Any]:
    """The JSON object in an optional file; empty if the file is missing, damaged or no object."""
    try:
        found = read_json(path) if path.exists() else {}
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def fingerprint(value: Any) -> str:
    """Sixteen hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def row_blocks(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """Split along dimension 0. A full copy of a wide tensor may not fit in memory."""
    if not tensor.dim():
        return [tensor]
    return tensor.split(max(1, _CHUNK_VALUES * len(tensor) // max(tensor.numel(), 1)))


def tensors_fingerprint(
    tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None
) -> str:
    """Sixteen hex digits of the SHA-256 of names, shapes, dtypes and bytes of tensors.

    With `dtype`, the tensors are hashed as if they had this dtype.
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name}|{tuple(tensor.shape)}|{dtype or tensor.dtype}|".encode())
        for rows in row_blocks(tensor):
            digest.update(
                rows.to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data
            )
    return digest.hexdigest()[:16]


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]
) -> None:
    """Write tensors and a JSON header atomically. The same content gives the same bytes."""
    from safetensors.torch import save_file

    text = json.dumps(header, sort_keys=True, ensure_ascii=True)
    with atomic_path(path) as temporary:
        save_file(
            {k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={_HEADER_KEY: text}
        )
        temporary.chmod(0o644)  # safetensors gives access to the owner only


def load_tensors(
    path: Path, names: Collection[str] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the tensors and the header that `save_tensors` wrote.

    `names`: read only these tensors, as far as they are there. Raises UserError if the file is
    missing, damaged or written by another program.
    """
    with open_tensors(path) as (file, header):
        wanted = [name for name in file.keys() if names is None or name in names]  # noqa: SIM118
        return {name: file.get_tensor(name) for name in wanted}, header


def tensor_names(path: Path) -> set[str]:
    """The names of the tensors in a file. Raises UserError as `load_tensors` does."""
    with open_tensors(path) as (file, _):
        return set(file.keys())


def read_columns(path: Path, name: str, columns: slice = slice(None)) -> torch.Tensor:
    """Read some columns of one of the tensors that `save_tensors` wrote; all of one dimension.

    Raises UserError as `load_tensors` does, and where there is no such tensor.
    """
    with open_tensors(path) as (file, _):
        if name not in file.keys():  # noqa: SIM118
            raise UserError(f"{path} has no tensor {name}; write it again")
        part = file.get_slice(name)
        return part[:] if len(part.get_shape()) == 1 else part[:, columns]


def read_header(path: Path) -> dict[str, Any]:
    """Read the header that `save_tensors` wrote. Raises UserError as `load_tensors` does."""
    with open_tensors(path) as (_, header):
        return header


@contextmanager
def open_tensors(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open a file that `save_tensors` wrote, to read some of it: the file, and its header.

    Raises UserError as `load_tensors` does, also for what goes wrong in the block.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if _HEADER_KEY not in metadata:
                raise UserError(f"{path} was not written by saefeat")
            yield file, json.loads(metadata[_HEADER_KEY])
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file ({error}); write it again"
        ) from error
