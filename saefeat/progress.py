"""Progress of long work: a bar with the time left on a terminal, lines elsewhere (by tqdm).

What is done is counted too, so that another thread can tell work that goes on from a process that
hangs (`saefeat.watch`).
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, TextIO

from tqdm import tqdm

Say = Callable[[str], None]  # takes one line of text for the user, without its line feed

LINE_SECONDS = 10.0  # between two lines of one piece of work, where there is no terminal
_BAR_SECONDS = 0.1
_BLOCK = 2**20  # bytes that are copied at a time
_BRIEF_SECONDS = 0.5  # before a bar for brief work appears
# By whether a terminal shows them, and whether the total is known.
_FORMATS = {
    (True, True): "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {speed}{postfix}]",
    (True, False): "{desc}: {n_fmt} {unit} [{elapsed}, {speed}{postfix}]",
    (False, True): "{desc}: {n:,} of {total:,} {unit}, {speed}, {remaining} left{postfix}",
    (False, False): "{desc}: {n:,} {unit}, {speed}{postfix}",
}


@dataclass
class Pulse:
    """Whether the work of this process goes on.

    Attributes:
        beats: pieces of work that are done.
        waiting: number of blocks that wait for something else now.
    """

    beats: int = 0
    waiting: int = 0


PULSE = Pulse()


def beat() -> None:
    """Count a piece of work as done, where no bar does."""
    PULSE.beats += 1


@contextmanager
def waiting() -> Iterator[None]:
    """The block waits for other processes or for the network, as long as they take."""
    PULSE.waiting += 1
    try:
        yield
    finally:
        PULSE.waiting -= 1
        beat()


def quiet(_: str) -> None:
    """Say nothing."""


class Console:
    """Writes lines to standard error, above the open bars if it is a terminal."""

    @property
    def terminal(self) -> TextIO | None:
        """The terminal on which bars are drawn; None if standard error is a file or a pipe."""
        return sys.stderr if sys.stderr.isatty() else None

    def __call__(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()


@contextmanager
def track(
    say: Say,
    name: str,
    total: int | None,
    unit: str = "tokens",
    *,
    done: int = 0,
    brief: bool = False,
) -> Iterator[tqdm[Any]]:
    """Show the progress of a piece of work while the block runs.

    Args:
        say: takes lines. If it has a `terminal` (see `Console`), a bar is drawn there instead.
        name: what is done, as a stage is called on the command line: "train", "lid fit".
        total: how many units the work has; None if it is not known.
        unit: what is counted.
        done: how many units an earlier process has done.
        brief: the work is usually done before a first line is due, and then says nothing.
            Otherwise the last line is said in any case.

    Yields:
        The bar: call `update(n)` for every n units done, `set_postfix_str(text)` to add figures.
    """
    terminal = getattr(say, "terminal", None)
    options: dict[str, Any] = {
        "total": total,
        "initial": done,
        "desc": name,
        "unit": unit,
        "unit_scale": True,
        "miniters": 1,  # look at the clock at every update
        "mininterval": _BAR_SECONDS if terminal else LINE_SECONDS,
        "bar_format": _FORMATS[terminal is not None, total is not None],
    }
    if terminal:
        delay = _BRIEF_SECONDS if brief else 0.0
        bar = _Bar(file=terminal, leave=False, dynamic_ncols=True, delay=delay, **options)
    else:
        bar = _Lines(say, delay=max(LINE_SECONDS, 1e-9), **options)  # no line for an empty start
        if not brief:
            bar.delay = 0.0  # `close` says the last line only after the delay
    with bar:
        yield bar


def copy_bytes(source: IO[bytes], target: IO[bytes], bar: tqdm[Any]) -> None:
    """Copy the rest of a file; `bar` counts bytes."""
    while block := source.read(_BLOCK):
        target.write(block)
        bar.update(len(block))


class _Bar(tqdm):
    monitor_interval = 0  # without tqdm's thread: every update looks at the clock

    def update(self, n: float | None = 1) -> bool | None:
        """As tqdm does. Every update is a sign that the work goes on."""
        beat()
        return super().update(n)

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> bool:
        """As tqdm does, but the lock is released when `say` raises: others would wait for ever."""
        with self.get_lock():
            self.display()
        return True

    def set_postfix_str(self, s: str = "", refresh: bool = False) -> None:
        """Show these figures with the next update. tqdm would show them at once, as a line each."""
        super().set_postfix_str(s, refresh)

    @property
    def format_dict(self) -> dict[str, Any]:
        """The values of the formats, `speed` among them."""
        found = dict(super().format_dict)
        rate = found["rate"] or (self.n - self.initial) / (found["elapsed"] or 1)
        rate, time = (rate, "s") if rate >= 1 or not rate else (60 * rate, "min")
        return found | {"speed": f"{self.format_sizeof(rate)} {self.unit}/{time}"}


class _Lines(_Bar):
    """Passes each state on as a line."""

    def __init__(self, say: Say, **options: Any) -> None:
        self.say, self.said = say, None
        super().__init__(file=io.StringIO(), **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Say the state once: `close` shows it again."""
        state = (self.n, self.postfix)
        if state != self.said:
            self.said = state
            self.say(str(self))
        return True
