"""Claim an output, and resume the work on it after a kill.

Every stage claims its output, so that no other process writes there. It leaves things of another
kind alone (`check_replaceable`), and compares what the output belongs to with what is asked for
(`check_same`). A long one keeps its state in a `Checkpoint` until the output is written, so that
the same command continues where it was stopped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saefeat.io import (
    TEMPORARY,
    UserError,
    fingerprint,
    host_mark,
    load_tensors,
    make_dir,
    read_header,
    save_tensors,
)
from saefeat.progress import Say, quiet, waiting

if TYPE_CHECKING:
    from torch import Tensor

    from saefeat.world import World

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_WORK = 20  # a checkpoint that takes a second is followed by at least 20 seconds of work
STATE = "state.safetensors"  # of unfinished work, in a directory of its own

_ABANDONED = 3600.0  # seconds; a process that writes changes its files all the time
# Names of temporary files and directories, see `saefeat.io.atomic_path` and `replacing`.
_OURS = re.compile(
    rf"\.(?P<name>.+)\.(?P<host>[0-9a-f]{{8}})-\w+(?P<before>-before)?{re.escape(TEMPORARY)}.*"
)

# (process, directory). A forked process inherits this set, but it does not hold the locks.
_claimed: set[tuple[int, Path]] = set()


@contextmanager
def claim(directory: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing in a directory while the block runs.

    Half-written files of killed processes are removed first. A process may claim a directory twice.
    There is no protection on Windows, nor on file systems without locks.

    Args:
        wait: wait for another process that holds the directory.

    Raises UserError when another process holds the directory.
    """
    place = make_dir(directory).resolve()
    mine = (os.getpid(), place)
    if mine in _claimed or fcntl is None:
        yield
        return
    handle = os.open(place, os.O_RDONLY)
    _claimed.add(mine)
    try:
        try:
            with waiting():
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UserError(
                f"another process is writing in {directory}; wait until it ends, or choose another "
                "output directory",
                "out",
            ) from error
        except OSError:  # a file system without locks
            pass
        else:
            _clear(place)
        yield
    finally:
        _claimed.discard(mine)
        os.close(handle)  # releases the lock, as the end of the process does


@contextmanager
def claim_together(directory: Path, world: World) -> Iterator[None]:
    """Claim a directory for all ranks of a world, by its first. All leave the block together.

    Raises UserError on a rank that does not see the directory, and as `claim`.
    """
    with claim(directory) if world.leads else nullcontext():
        world.barrier()
        if not directory.is_dir():
            raise UserError(f"rank {world.rank} does not see {directory}; all ranks need it", "out")
        yield
        world.barrier()


def check_alike(world: World, value: Any) -> None:
    """Raise UserError if a JSON value, of what this rank works on, is not that of the first."""
    mark = fingerprint(value)
    if world.share(mark) != mark:
        raise UserError(
            f"rank {world.rank} has another model, corpus, SAE or setting than the first; give all "
            "machines the same files"
        )


@contextmanager
def claim_file(out: Path, *, wait: bool = False) -> Iterator[Path]:
    """Keep other processes from writing a file while the block runs.

    What is claimed is a directory beside it, which the block may use; it is removed if it is empty
    at the end. A claim of the parent would remove the temporary files of other outputs.

    `wait` and what is raised are those of `claim`.
    """
    place = _partial(out)
    with claim(place, wait=wait):
        try:
            yield place
        finally:
            _remove_empty(place)


def _partial(out: Path) -> Path:
    return out.with_name(f"{out.stem}-partial")


def _remove_empty(directory: Path) -> None:
    with suppress(OSError):  # other files are there
        directory.rmdir()


def _clear(directory: Path) -> None:
    """Remove the temporary files of killed processes.

    Locks of some file systems do not reach other hosts. So what another host has written stays
    until it was not changed for `_ABANDONED` seconds. A directory that was being replaced gets its
    old content back if the new one is not there (see `saefeat.io.replacing`).
    """
    for path in sorted(directory.rglob(f".*{TEMPORARY}*"), reverse=True):
        found = _OURS.fullmatch(path.name)
        if not found or (found["host"] != host_mark() and not _is_abandoned(path)):
            continue
        if path.is_file():
            path.unlink(missing_ok=True)
        elif path.is_dir():
            if found["before"] and not path.with_name(found["name"]).exists():
                path.rename(path.with_name(found["name"]))
            else:
                shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path) -> bool:
    try:
        # Not the time of the content: renaming a directory does not change that.
        changed = max(each.stat().st_ctime for each in (path, *path.rglob("*")))
    except FileNotFoundError:  # its process is at work
        return False
    return time.time() - changed > _ABANDONED


def check_replaceable(out: Path, kind: str, ours: Callable[[Path], bool]) -> None:
    """Raise UserError when `out` exists and is not of a kind, such as "selection".

    `ours` tells whether it is. It may raise UserError with a reason why not.
    """
    reason = ""
    try:
        fine = not out.exists() or ours(out)
    except UserError as error:
        fine, reason = False, f" ({error})"
    if not fine:
        raise UserError(f"{out} exists and is no {kind}{reason}; choose another output", "out")


def check_same(place: Path, found: Any, request: Any, what: str) -> None:
    """Raise UserError when an output belongs to something else than what is asked for.

    Args:
        place: the output, a file or a directory.
        found: the request that the output records, a JSON value.
        request: what is asked for now, a JSON value. Tuples count as lists.
        what: what is there, in the message: "statistics", "an unfinished training".
    """
    if not _equal(found, request):
        raise UserError(
            f"{place} holds {what} of something else; choose another output or remove it", "out"
        )


def _equal(one: Any, other: Any) -> bool:
    return json.loads(json.dumps(one)) == json.loads(json.dumps(other))


@dataclass(frozen=True)
class Checkpoint:
    """The state of unfinished work, in one file that is replaced as a whole.

    Attributes:
        path: the file (safetensors). It is removed when the work is done.
        request: JSON value that says what the work is of.
        what: the work, in messages: "the training".
        threads: threads of the process, which change the last digits of sums; None on a GPU.
        restart: whether the work starts again when the state is damaged, or of another request or
            number of threads. Otherwise the first two are errors, and another number of threads is
            reported.
        say: takes notes for the user.
    """

    path: Path
    request: Any
    what: str
    threads: int | None
    restart: bool = False
    say: Say = quiet

    def load(
        self, names: Collection[str] | None = None
    ) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The values and tensors of the last `save`; None to start at the beginning.

        `names`: read only these tensors. Raises UserError when the state is damaged or belongs to
        something else.
        """
        if not self.path.exists():
            return None
        try:
            tensors, header = load_tensors(self.path, names)
            check_same(self.path, _request(header), self.request, f"the state of {self.what}")
        except UserError:
            if self.restart:
                return None
            raise
        before, now = header["threads"], self.threads
        if before != now and self.restart:
            self.say(
                f"note: {self.what} starts again, because it was begun with {before} threads and "
                f"there are {now} now, which changes the figures"
            )
            return None
        if before != now:
            self.say(
                f"note: {self.what} goes on with {now} threads after {before}; the last digits "
                "may differ from those of a run that was not stopped"
            )
        return json.loads(header["values"]), tensors

    def save(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Replace the state by these JSON values and tensors."""
        # As a text, because headers sort the keys of objects, and outputs keep their order.
        text = json.dumps(dict(values))
        header = {"request": self.request, "threads": self.threads, "values": text}
        save_tensors(self.path, tensors or {}, header)

    def clear(self) -> None:
        """Remove the state: the work is done."""
        self.path.unlink(missing_ok=True)


def pause_after(pause: float, seconds: float) -> float:
    """Seconds to the next checkpoint after one that took `seconds`, at least `pause`.

    At most a twentieth of the time goes to checkpoints. No pause (0) stays none.
    """
    return max(pause, _WORK * seconds) if pause else 0.0


@contextmanager
def resume(
    out: Path, request: Any, what: str, threads: int | None, say: Say = quiet
) -> Iterator[Checkpoint]:
    """Claim an output file, and keep the state of the work on it beside it, until the block ends.

    A state of another request or number of threads is dropped (`restart`); after an exception the
    state stays, for the next call. See `Checkpoint` for the arguments.
    """
    with claim_file(out) as place:
        checkpoint = Checkpoint(place / STATE, request, what, threads, restart=True, say=say)
        yield checkpoint
        checkpoint.clear()


def is_begun(out: Path) -> bool:
    """Whether there is a state of unfinished work on an output file."""
    return (_partial(out) / STATE).exists()


def clear_finished(out: Path, request: Any) -> None:
    """Remove the state of work on an output file if it is of a request that is finished.

    It is left over if the process was killed after it had written the output.
    """
    path = _partial(out) / STATE
    with suppress(UserError):  # damaged: the next call begins again
        if path.exists() and _equal(saved_request(path), request):
            path.unlink()
            _remove_empty(path.parent)


def saved_request(path: Path) -> Any:
    """The request of the state in a file; None without a file, or for one of an older version.

    Raises UserError when the file is damaged.
    """
    return _request(read_header(path)) if path.exists() else None


def _request(header: Any) -> Any:
    known = isinstance(header, dict) and header.keys() == {"request", "threads", "values"}
    return header["request"] if known and isinstance(header["values"], str) else None
