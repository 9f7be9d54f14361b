"""Progress of long work: bars with the time left on a terminal, plain lines elsewhere (by tqdm)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

Say = Callable[[str], None]  # takes one line of text for the user, without its end

LINE_SECONDS = 10.0  # between the lines of one bar where there is no terminal
_BAR_SECONDS = 0.1
_LINE = "{desc}: {n:,} of {total:,}{unit}, {rate_fmt}, {remaining} left{postfix}"


def quiet(_: str) -> None:
    """Say nothing."""


class Console:
    """Writes lines to standard error, above the open bars where it is a terminal."""

    @property
    def terminal(self) -> TextIO | None:
        """Where bars can be drawn; None where standard error is a file or a pipe."""
        return sys.stderr if sys.stderr.isatty() else None

    def __call__(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()


@contextmanager
def track(
    say: Say, name: str, total: int, unit: str = "tokens", done: int = 0
) -> Iterator[tqdm[Any]]:
    """Show the progress of a piece of work while the block runs.

    Args:
        say: takes lines. One with a `terminal` (see `Console`) gets a bar there.
        name: what is done, as a stage is called on the command line: "train", "lid fit".
        total: how many units the work has.
        unit: what is counted.
        done: how many units an earlier process has done.

    Yields:
        The bar: call `update(n)` for every n units done, `set_postfix_str(text)` for figures.
    """
    terminal = getattr(say, "terminal", None)
    with _Bar(
        total=total,
        initial=done,
        desc=name,
        unit=f" {unit}",
        file=terminal or _Lines(say),
        mininterval=_BAR_SECONDS if terminal else LINE_SECONDS,
        miniters=1,  # look at the clock at every update: updates are seconds apart
        delay=0.0 if terminal else 1e-9,  # no line before anything is done
        dynamic_ncols=terminal is not None,
        bar_format=None if terminal else _LINE,
        unit_scale=True,
        leave=terminal is None,
    ) as bar:
        yield bar


class _Bar(tqdm):
    monitor_interval = 0  # no thread that looks at the bars: every update does


class _Lines:
    """A file for tqdm that hands every state of the bar on as a line."""

    def __init__(self, say: Say) -> None:
        self.say = say

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            self.say(line)

    def flush(self) -> None:
        """Lines are handed on at once."""
