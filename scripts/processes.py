"""Programs in forks of this process: killed at a moment, counted, or copied before each stage.

Everything is imported before the fork, so that a start costs little; yet what is killed is a real
process.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saefeat import cli, run

TIMEOUT = 120
# Bytes of address space of a process: a number that asks for too much memory fails in the process
# instead of taking the machine down.
ADDRESS_SPACE = 2**34


@dataclass
class Ended:
    """How a process ended.

    Attributes:
        code: exit code, negative for a signal.
        out: what it wrote to standard output.
        err: what it wrote to standard error.
        seconds: how long it ran.
        operations: operations on watched files.
    """

    code: int
    out: str
    err: str
    seconds: float
    operations: int = 0

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.err

    @property
    def sentence(self) -> str:
        """The last line of standard error, if it is a message of saefeat."""
        last = (self.err.strip().splitlines() or [""])[-1]
        ours = last.startswith("saefeat: ") or "Error" in last or "╰" in last
        return last if ours else ""


@dataclass(frozen=True)
class Watch:
    """What a process does with the files below a directory.

    Attributes:
        directory: whose files are watched.
        kill_before: the process gets SIGKILL before its operation of this number.
        snapshots: a directory into which the watched one is copied before each stage of a run.
    """

    directory: Path
    kill_before: int | None = None
    snapshots: Path | None = None


@dataclass
class Child:
    """A process that has been started."""

    pid: int
    folder: Path
    begun: float

    def wait(self, seconds: float) -> Ended:
        """Wait for its end; kill it after so many seconds since its start."""
        status = 0
        while time.monotonic() - self.begun < seconds:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                break
            time.sleep(0.002)
        else:
            os.kill(self.pid, signal.SIGKILL)
            status = os.waitpid(self.pid, 0)[1]
        out, err = ((self.folder / name).read_text(errors="replace") for name in ("out", "err"))
        count = self.folder / "operations"
        operations = int(count.read_text()) if count.exists() else 0
        shutil.rmtree(self.folder)
        return Ended(
            os.waitstatus_to_exitcode(status), out, err, time.monotonic() - self.begun, operations
        )


def call(
    argv: list[str],
    watch: Watch | None = None,
    *,
    after: float | None = None,
    meanwhile: Callable[[], None] | None = None,
    timeout: float = TIMEOUT,
    stdin: str = "",
) -> Ended:
    """Run `saefeat ARGV` in a process of its own.

    Args:
        argv: the arguments.
        watch: whose files are watched.
        after: the process is killed after so many seconds.
        meanwhile: is called while the process runs.
        timeout: the longest that the process may run.
        stdin: its standard input.
    """
    child = start(argv, watch, stdin=stdin)
    if meanwhile:
        meanwhile()
    return child.wait(min(after or timeout, timeout))


def start(
    argv: list[str],
    watch: Watch | None = None,
    *,
    stdin: str = "",
    program: Callable[[], object] = cli.main,
    environment: Mapping[str, str] | None = None,
) -> Child:
    """Start `saefeat ARGV`, or another program, in a fork.

    `environment`: variables that the fork has besides those of this process.
    """
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    (folder / "in").write_text(stdin)
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.environ.update(environment or {})
        _run(argv, folder, watch, program)
    return Child(pid, folder, time.monotonic())


def _run(argv: list[str], folder: Path, watch: Watch | None, program: Callable[[], object]) -> None:
    """Run a program in the fork; never returns."""
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        _redirect(folder)
        count = [0]
        if watch:
            count = _count_operations(watch)
            _take_snapshots(watch)
        sys.argv = ["saefeat", *argv]
        try:
            program()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        (folder / "operations").write_text(str(count[0]))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _redirect(folder: Path) -> None:
    """Connect the standard streams with files of the folder."""
    write = os.O_WRONLY | os.O_CREAT
    for number, (name, mode) in enumerate((("in", os.O_RDONLY), ("out", write), ("err", write))):
        os.dup2(os.open(folder / name, mode, 0o600), number)
    sys.stdin, sys.stdout = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    sys.stderr = os.fdopen(os.dup(2), "w", errors="backslashreplace")  # as Python's own stream


def _count_operations(watch: Watch) -> list[int]:
    """Count operations on files of the directory, and kill the process before the chosen one."""
    count, inside = [0], str(watch.directory)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            if not isinstance(given[0], str | os.PathLike) or not (given[2] or 0) & (
                os.O_WRONLY | os.O_RDWR
            ):
                return
        elif event not in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            return
        if inside in str(given[0]):
            count[0] += 1
            if count[0] == watch.kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def _take_snapshots(watch: Watch) -> None:
    """Copy the directory before each stage of a run."""
    if watch.snapshots is None:
        return
    timed, target = run._timed, watch.snapshots

    @contextmanager
    def copying(opened: run.OpenRun, index: Any, stage: str) -> Iterator[None]:
        shutil.copytree(watch.directory, target / stage)
        with timed(opened, index, stage):
            yield

    run._timed = copying
