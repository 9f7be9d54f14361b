"""Files and failures: atomic writes, canonical fingerprints, safetensors with a JSON header, user errors."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if (
    TYPE_CHECKING
):  # torch is imported where it is needed: the command line's `--help` does not wait for it
    import torch

T = TypeVar("T")
SCHEMA = 1
_VALUES = 2**24  # of a tensor, looked at together
TEMPORARY = ".saefeat-tmp"  # in the name of what is being written, which begins with a dot
_HEADER_KEY = "saefeat"  # one metadata key: safetensors writes several in random order


class UserError(Exception):
    """Bad input: the command line prints the message and exits with 2.

    Args:
        message: one sentence that says what is wrong, where, and how to mend it. It names no flags
            of the command line.
        options: names of the parameters to change, as they are called in Python: "out",
            "max_tokens". The command line adds its flags for them.
        command: what to run first, as it is called on the command line: "lid fit".
    """

    def __init__(self, message: str, *options: str, command: str = "") -> None:
        super().__init__(message)
        self.options = options
        self.command = command


class RunFailed(Exception):
    """The run itself failed (NaN, a disk that fills up). State is kept. The command line exits with 1."""


def cache_dir() -> Path:
    """Directory of fetched and converted assets: `$SAEFEAT_CACHE`, else `saefeat` in the user's cache."""
    base = os.environ.get("SAEFEAT_CACHE")
    if base:
        return user_path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saefeat"


def user_path(text: str) -> Path:
    """The path of a text, `~` as the user's home; raises UserError where there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{text} is in the home of a user who is not known here; write the whole path"
        ) from error


def whole_path(path: str) -> str:
    """The absolute path, by the names that were given: links are followed only where `..` leads out of them."""
    return os.path.realpath(path) if ".." in Path(path).parts else os.path.abspath(path)


def make_dir(path: Path) -> Path:
    """Create a directory and check that it can be written; raises UserError otherwise, OSError for a full disk."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"cannot write in {path}: {error.strerror or error}; choose another directory"
        ) from error
    return path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success rename it to `path`, on failure remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays, because some writers choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{TEMPORARY}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """Yield a hidden directory beside this one; on success it takes its place, on failure it is removed.

    What was there before is gone then: whether it may be is for the caller to check.
    """
    directory = directory.resolve()  # a link stays, and what it points to is replaced
    make_dir(directory.parent)
    temporary = Path(
        tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-", suffix=TEMPORARY)
    )
    temporary.chmod(0o755)  # mkdtemp lets nobody else in
    before = temporary.with_name(f"{temporary.stem}-before{TEMPORARY}")
    try:
        yield temporary
        try:
            if directory.is_dir() and any(
                directory.iterdir()
            ):  # the rename itself replaces an empty one
                os.rename(directory, before)
            os.rename(temporary, directory)
        except BaseException:
            if before.exists() and not directory.exists():
                os.rename(before, directory)
            raise
        shutil.rmtree(
            before, ignore_errors=True
        )  # only now: until the new is there, it is all there is
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file; raises UserError naming the file when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable JSON file ({error})") from error


def understood(path: Path, read: Callable[[], T]) -> T:
    """What `read` makes of a file; raises UserError when it is not what saefeat writes there."""
    try:
        return read()
    except (LookupError, TypeError, ValueError, AttributeError, OSError, ArithmeticError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{path} is not what saefeat writes there ({_told(error)}); write it again"
        ) from error


def _told(error: Exception) -> str:
    return (
        f"{type(error).__name__}: {str(error).splitlines()[0]}"
        if str(error)
        else type(error).__name__
    )


def kept_json(path: Path) -> dict[str, Any]:
    """A JSON object that an earlier call may have kept; empty where there is none, or what is there is damaged."""
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
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def in_parts(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """Rows of a tensor in parts that are small beside it: a copy of a wide one would not fit in memory."""
    return (
        tensor.split(max(1, _VALUES * len(tensor) // max(tensor.numel(), 1)))
        if tensor.dim()
        else [tensor]
    )


def tensors_fingerprint(
    tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None
) -> str:
    """Sixteen hex digits over names, shapes, dtypes and bytes of tensors, of their values in `dtype` if given."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name}|{tuple(tensor.shape)}|{dtype or tensor.dtype}|".encode())
        for rows in in_parts(tensor):
            digest.update(
                rows.to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data
            )
    return digest.hexdigest()[:16]


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]
) -> None:
    """Write tensors and one JSON header atomically; the same content gives the same bytes."""
    from safetensors.torch import save_file

    text = json.dumps(header, sort_keys=True, ensure_ascii=True)
    with atomic_path(path) as temporary:
        save_file(
            {k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={_HEADER_KEY: text}
        )
        temporary.chmod(0o644)  # safetensors lets nobody else read it


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote; raises UserError when missing, damaged or of another program."""
    with _opened(path) as (file, header):
        return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118


def read_header(path: Path) -> dict[str, Any]:
    """The header that `save_tensors` wrote, without its tensors; raises UserError as `load_tensors` does."""
    with _opened(path) as (_, header):
        return header


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
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
