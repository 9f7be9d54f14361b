"""Progress of long work: a bar with the time left on a terminal, lines elsewhere (by tqdm)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

Say = Callable[[str], None]  # takes one line of text for the user, without its line feed

LINE_SECONDS = 10.0  # between two lines of one piece of work, where there is no terminal
_BAR_SECONDS = 0.1
_BRIEF_SECONDS = 0.5  # before a bar for brief work appears
_LINE = "{desc}: {n:,} of {total:,}{unit}, {rate_fmt}, {remaining} left{postfix}"
_LINE_WITHOUT_TOTAL = "{desc}: {n:,}{unit}, {rate_fmt}{postfix}"


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
    first = _BRIEF_SECONDS if terminal else LINE_SECONDS
    with _Bar(
        total=total,
        initial=done,
        desc=name,
        unit=f" {unit}",
        file=terminal or _Lines(say),
        mininterval=_BAR_SECONDS if terminal else LINE_SECONDS,
        miniters=1,  # look at the clock at every update
        delay=max(first, 1e-9) if brief or not terminal else 0.0,  # no line for an empty start
        dynamic_ncols=terminal is not None,
        bar_format=None if terminal else _LINE if total is not None else _LINE_WITHOUT_TOTAL,
        unit_scale=True,
        leave=not terminal,
    ) as bar:
        if not brief:
            bar.delay = 0.0  # `close` says the last line only after the delay
        yield bar


class _Bar(tqdm):
    monitor_interval = 0  # without tqdm's thread: every update looks at the clock

    def set_postfix_str(self, s: str = "", refresh: bool = False) -> None:
        """Show these figures with the next update. tqdm would show them at once, as a line each."""
        super().set_postfix_str(s, refresh)


class _Lines:
    """A file that passes every state of a bar on as a line."""

    def __init__(self, say: Say) -> None:
        self.say = say

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            self.say(line)

    def flush(self) -> None:
        """Nothing is buffered."""
