"""Ranks end together: one that fails, dies or hangs ends the others, and is named.

Each rank sets a sign of life in the store of the ranks every second, from a thread. The first rank
looks at the signs of all, the others at that of the first. A process that is dead or stopped gives
no sign. One whose work hangs, in a file system for example, says for how long it has done nothing
(`saefeat.progress.Pulse`). So no rank waits for ever in an exchange that another never reaches,
whatever started the processes.
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
from math import inf
from typing import Any, NamedTuple, NoReturn

from saefeat.progress import PULSE
from saefeat.world import World

BEAT_SECONDS = 1.0  # between two signs of life
SILENT_SECONDS = 40.0  # without a sign, after which a rank is taken for dead
_LEAVING_SECONDS = 3.0  # for which a first rank that has failed waits for the others to see it
_LOST_BEATS = 5  # after which a rank that answers no more is named
_FAILED, _STOP = "failed", "stop"


class _Sign(NamedTuple):
    """What a rank says of itself."""

    number: int = 0
    idle: float = 0  # seconds for which it has done nothing, without waiting for others
    host: str = "an unknown machine"


class _Still:
    """For how long a value has not changed, by the looks of this process.

    Looks are counted, and not the time between them: all processes may have been stopped meanwhile.
    """

    def __init__(self) -> None:
        self.value, self.looks = None, 0

    def look(self, value: Any) -> float:
        """Seconds for which the value has been this, at one look every BEAT_SECONDS."""
        self.looks = self.looks + 1 if value == self.value else 0
        self.value = value
        return self.looks * BEAT_SECONDS


class Watch:
    """Ends this process when another rank fails.

    Args:
        world: this process.
        store: of the ranks, from `saefeat.world.join`; None if alone.
        say: takes the line that says why.
        stop: if it is asked to stop on one rank, it is so on all. It has an attribute `asked`.
        patience: seconds after which a rank that does nothing fails the others.
    """

    def __init__(
        self,
        world: World,
        store: Any,
        say: Callable[[str], None],
        stop: Any = None,
        patience: float = inf,
    ) -> None:
        self.world, self.store, self.say, self.stop = world, store, say, stop
        self.patience = patience
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._own, self._first = _Sign(0, 0, socket.gethostname()), _Sign()
        if store is not None:
            self._set_sign()
            self._thread.start()
            threading.Thread(target=self._watch_store, daemon=True).start()

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
            signs = {rank: self._sign(rank) for rank in ranks}
        except RuntimeError:  # the store has ended with its process
            return "the first rank or its machine has ended"
        names = {rank: f"rank {rank} on {sign.host}" for rank, sign in signs.items()}
        if silent := [names[rank] for rank in ranks if signs[rank] == before[rank]]:
            return " and ".join(silent) + " has ended"
        idle, rank = max((signs[rank].idle, rank) for rank in ranks)
        if idle > 2 * _LOST_BEATS * BEAT_SECONDS:
            return f"{names[rank]} has done nothing for {idle:.0f} s"
        return "the connection to another rank has ended"

    def _sign(self, rank: int) -> _Sign:
        key = f"alive/{rank}"
        if not self.store.check([key]):
            return _Sign()
        number, idle, host = self.store.get(key).decode().split(" ", 2)
        return _Sign(int(number), float(idle), host)

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
        world, host = self.world, self._own.host
        return "" if world.size == 1 else f" (rank {world.rank} of {world.size}, on {host})"

    def _exit(self, code: int) -> NoReturn:
        # Nothing may wait for the other ranks now, as the destructors of torch.distributed do.
        self._over.set()
        sys.stdout.flush()
        sys.stderr.flush()
        self._leave(_LEAVING_SECONDS)
        os._exit(code)

    def _set_sign(self) -> None:
        self.store.set(f"alive/{self.world.rank}", " ".join(map(str, self._own)))

    def _watch(self) -> None:
        watched = range(1, self.world.size) if self.world.leads else [0]
        seen = {rank: _Still() for rank in watched}
        work, looks = _Still(), 0
        while not self._over.wait(BEAT_SECONDS):
            looks += 1
            idle = work.look((PULSE.beats, PULSE.waiting and looks))
            self._own = self._own._replace(number=looks, idle=idle)
            try:
                self._set_sign()
                self._end_if_failed()
                self._pass_on_stop()
                for rank in watched:
                    self._look(rank, seen[rank])
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

    def _look(self, rank: int, seen: _Still) -> None:
        sign = self._sign(rank)
        if rank == 0:
            self._first = sign
        if seen.look(sign) > SILENT_SECONDS:
            self.fail(_silent(rank, sign), 1)
        if sign.idle > self.patience:
            self.fail(f"rank {rank} on {sign.host} has done nothing for {sign.idle:.0f} s", 1)

    def _watch_store(self) -> None:
        """End this process if the store does not answer, because its process is stopped.

        Nothing may call the store here: a call that gets no answer never returns.
        """
        watching = _Still()
        while self._thread.is_alive():
            time.sleep(BEAT_SECONDS)
            if watching.look(self._own.number) > SILENT_SECONDS:
                self.say(_silent(0, self._first) + self._suffix())
                sys.stderr.flush()
                os._exit(1)


def _silent(rank: int, sign: _Sign) -> str:
    return f"rank {rank} on {sign.host} has given no sign for {SILENT_SECONDS:.0f} s"
