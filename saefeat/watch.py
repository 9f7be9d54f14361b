"""Ranks end together: one that fails or dies ends the others within a minute, and is named.

Each rank sets a sign of life in the store of the ranks every few seconds, from a thread. The first
rank looks at the signs of all, the others at that of the first. So no rank waits for ever in an
exchange that another never reaches, whatever started the processes.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn

from saefeat.world import World

BEAT_SECONDS = 1.0  # between two signs of life
SILENT_SECONDS = 40.0  # without a sign, after which a rank is taken for dead
_LEAVING_SECONDS = 3.0  # for which a first rank that has failed waits for the others to see it
_LOST_BEATS = 5  # after which a rank that answers no more is named
_FAILED, _STOP = "failed", "stop"


class Watch:
    """Ends this process when another rank fails.

    Args:
        world: this process.
        store: of the ranks, from `saefeat.world.join`; None if alone.
        say: takes the line that says why.
        stop: if it is asked to stop on one rank, it is so on all. It has an attribute `asked`.
    """

    def __init__(
        self, world: World, store: Any, say: Callable[[str], None], stop: Any = None
    ) -> None:
        self.world, self.store, self.say, self.stop = world, store, say, stop
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if store is not None:
            self._set_sign(0)
            self._thread.start()

    def finish(self) -> None:
        """Stop watching: all ranks are done (after a barrier)."""
        self._over.set()
        if self.store is None:
            return
        self._thread.join()
        self._leave(SILENT_SECONDS)

    def _leave(self, seconds: float) -> None:
        """Say that this rank ends. The first, with which the store ends, waits for the others."""
        if self.store is None:
            return
        with suppress(RuntimeError):  # a rank is dead
            self.store.set(f"left/{self.world.rank}", "")
            if self.world.leads:
                keys = [f"left/{rank}" for rank in range(self.world.size)]
                self.store.wait(keys, timedelta(seconds=seconds))

    def find_lost(self) -> str:
        """Wait a little, and say which ranks have ended. The process ends if one has said why."""
        ranks = [rank for rank in range(self.world.size) if rank != self.world.rank]
        try:
            before = {rank: self._sign(rank) for rank in ranks}
            for _ in range(_LOST_BEATS):
                time.sleep(BEAT_SECONDS)
                self._end_if_failed()
            silent = [rank for rank in ranks if self._sign(rank) == before[rank]]
        except RuntimeError:  # the store has ended with its process
            return "the first rank or its machine has ended"
        if not silent:
            return "the connection to another rank has ended"
        return " and ".join(f"rank {each} on {self._host(each)}" for each in silent) + " has ended"

    def _sign(self, rank: int) -> str:
        key = f"alive/{rank}"
        return self.store.get(key).decode() if self.store.check([key]) else ""

    def _host(self, rank: int) -> str:
        return self._sign(rank).partition(" ")[2] or "an unknown machine"

    def fail(self, message: str, code: int) -> NoReturn:
        """End all ranks: say why, unless another rank was first, and exit at once."""
        text = f"{message}{self._suffix()}"
        first, note = True, f"{code} {text}"
        if self.store is not None:
            with suppress(RuntimeError):  # the store has ended with its process
                first = self.store.compare_set(_FAILED, "", note).decode() == note
        if first:
            self.say(text)
        self._exit(code)

    def _end_if_failed(self) -> None:
        """End as the rank that has failed, and has said why."""
        if self.store.check([_FAILED]):
            self._exit(int(self.store.get(_FAILED).split()[0]))

    def _suffix(self) -> str:
        world = self.world
        host = socket.gethostname()
        return "" if world.size == 1 else f" (rank {world.rank} of {world.size}, on {host})"

    def _exit(self, code: int) -> NoReturn:
        # Nothing may wait for the other ranks now, as the destructors of torch.distributed do.
        self._over.set()
        sys.stdout.flush()
        sys.stderr.flush()
        self._leave(_LEAVING_SECONDS)
        os._exit(code)

    def _set_sign(self, number: int) -> None:
        self.store.set(f"alive/{self.world.rank}", f"{number} {socket.gethostname()}")

    def _watch(self) -> None:
        watched = range(1, self.world.size) if self.world.leads else [0]
        seen = {rank: ("", time.monotonic()) for rank in watched}
        number = 0
        while not self._over.wait(BEAT_SECONDS):
            number += 1
            try:
                self._set_sign(number)
                self._end_if_failed()
                self._pass_on_stop()
                for rank in watched:
                    self._look(rank, seen)
            except RuntimeError as error:
                if not self._over.is_set():
                    self.fail(f"the first rank or its machine has ended ({error})", 1)

    def _pass_on_stop(self) -> None:
        if self.stop is None:
            return
        if self.stop.asked:
            self.store.set(_STOP, "")
        elif self.store.check([_STOP]):
            self.stop.asked = True

    def _look(self, rank: int, seen: dict[int, tuple[str, float]]) -> None:
        now, sign = time.monotonic(), self._sign(rank)
        if sign != seen[rank][0]:
            seen[rank] = (sign, now)
        elif now - seen[rank][1] > SILENT_SECONDS:
            self.fail(
                f"rank {rank} on {self._host(rank)} has given no sign for {SILENT_SECONDS:.0f} s", 1
            )
