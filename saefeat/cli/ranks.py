"""A command on several processes (ranks): connected, told to stop together, ended together.

torchrun or Slurm starts the processes. Alone, nothing here changes a command.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from saefeat.cli.common import say
from saefeat.cli.failures import Failure, describe_failure

if TYPE_CHECKING:
    from saefeat.watch import Watch
    from saefeat.world import World


# Seconds after which a process that does nothing ends all. A batch takes seconds, and no file that
# is read or written as a whole takes so long.
PATIENCE = 2 * 3600
# With these a cluster stops a job. Windows has no SIGUSR1.
STOPS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Stop:
    """Whether the process was asked to save and end: by SIGTERM or SIGUSR1, or by Ctrl-C.

    A second Ctrl-C ends it at once.
    """

    def __init__(self) -> None:
        self.asked = False
        for number in (*STOPS, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __call__(self) -> bool:
        return self.asked


def started_together() -> bool:
    """Whether torchrun or a job script has started this process with others."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def leads() -> bool:
    """Whether this process is alone, or the first of those that were started together."""
    return not started_together() or os.environ["RANK"] == "0"


def launcher(alone: Sequence[str], together: Sequence[str]) -> list[str]:
    """The words that start this process as it was started, if it was on one machine.

    `alone`: those for one process. `together`: those for torchrun, after its options.
    """
    size = os.environ.get("WORLD_SIZE", "")
    if not started_together() or os.environ.get("LOCAL_WORLD_SIZE") != size:
        return [*alone]
    return ["torchrun", "--nproc-per-node", size, *together]


class Ranks:
    """The processes that run a command.

    Args:
        name: of the program, in messages.
    """

    def __init__(self, name: str) -> None:
        self.name, self.started = name, time.monotonic()
        self._watch: Watch | None = None
        self._stop: Stop

    def connect(self, world: World, device: str, timeout: float, patience: float) -> Stop:
        """Connect this process with the others, and end it when another fails.

        Args:
            device: where this process computes.
            timeout: seconds after which a process that does not answer fails the others.
            patience: seconds after which one that does nothing, and does not wait for others, does.

        Returns whether they are to save and end. From now on a signal asks for that, and no longer
        ends this process at once.
        """
        from saefeat.watch import Watch
        from saefeat.world import join

        def watch(store: Any) -> None:
            self._stop = Stop()
            self._watch = Watch(world, store, say, self._stop, patience)

        if world.size == 1:
            watch(None)
        else:  # a rank that dies while they connect is noticed too
            join(world, device, timeout, watch)
        return self._stop

    def finish(self) -> None:
        """All processes are done, after something that they left together."""
        if self._watch:
            from saefeat.world import leave

            self._watch.finish()
            leave()

    def fail(
        self, error: BaseException, command: Any, words: Sequence[str], program: Sequence[str]
    ) -> NoReturn:
        """Say what has failed, and end this process and those that work with it.

        See `describe_failure` for `command`, `words` and `program`. Raises the error if it is a bug
        of a process alone.
        """
        from saefeat.world import LostRank

        seconds = time.monotonic() - self.started
        failure = describe_failure(error, command, words, seconds, program)
        if self._watch:
            self._fail_together(self._watch, error, failure)
        if failure is None:
            raise error
        # All have read the same input; but a process may lack a GPU that the first one has, or the
        # first one itself.
        if leads() or "device" in getattr(error, "options", ()) or isinstance(error, LostRank):
            say(f"{self.name}: {failure.message}")
        sys.exit(failure.code)

    def _fail_together(
        self, watch: Watch, error: BaseException, failure: Failure | None
    ) -> NoReturn:
        from saefeat.world import LostRank

        if isinstance(error, LostRank):
            kept = "checkpoints are kept: start all ranks again to go on"
            watch.fail(f"{self.name}: {watch.find_lost()}; {kept}", 1)
        text = "".join(traceback.format_exception(error)).rstrip()
        message, code = failure or (text, 1)
        watch.fail(f"{self.name}: {message}", code)
