"""What each rank of a collection has counted so far, kept in one file per rank until the end.

No window is counted in two of the files. So together they hold what is counted, whatever the number
of ranks: those that resume share out the files, and merge what they take. At the end the statistics
of each dictionary are merged from the files of all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from saefeat.io import RunFailed, tensor_names
from saefeat.progress import Say, beat, quiet
from saefeat.resume import STATE, Checkpoint, saved_request
from saefeat.statistics import Accumulator
from saefeat.world import World

States = dict[str, list[Accumulator]]  # by dictionary
Kept = list[tuple[int, list[int]]]  # number of a file, and the windows that it holds


@dataclass(frozen=True)
class Shares:
    """The files of an unfinished collection, in a directory that all ranks see.

    Attributes:
        folder: the directory.
        request, threads: see `saefeat.resume.Checkpoint`.
        say: takes notes for the user, on the first rank.
    """

    folder: Path
    request: Any
    threads: int | None
    world: World
    say: Say

    def _file(self, number: int, say: Say = quiet) -> Checkpoint:
        path = share_file(self.folder, number)
        return Checkpoint(path, self.request, "the collection", self.threads, say=say)

    def find(self, states: States, is_whole: Callable[[list[int]], bool]) -> Kept:
        """The files with all tensors of the states. The first rank calls it; others are removed.

        `is_whole`: whether the files that belong to windows are there. Raises UserError when a file
        is damaged or belongs to something else.
        """
        names, found, seen = _tensors(states).keys(), [], set()
        for number in numbers(self.folder):
            file = self._file(number, quiet if found else self.say)
            values, _ = file.load(names=()) or ({}, {})
            windows = values["windows"]
            # A window that two files hold is that of a rank that was killed as it took over both.
            fine = seen.isdisjoint(windows) and is_whole(windows)
            if fine and names <= tensor_names(file.path):
                found.append((number, windows))
                seen.update(windows)
            else:
                file.clear()
        return found

    def take(self, states: States, kept: Kept) -> list[int]:
        """Add this rank's part of the files to its states, and return their windows."""
        mine = [each for each in kept if each[0] % self.world.size == self.world.rank]
        done = [window for _, windows in mine for window in windows]
        for number, _ in mine:
            self._add(states, number)
        if any(number != self.world.rank for number, _ in mine):
            self.save(states, done)
            for number, _ in mine:
                if number != self.world.rank:
                    self._file(number).clear()
        return done

    def save(self, states: States, windows: Sequence[int]) -> None:
        """Replace this rank's file."""
        tensors = {name: tensor.cpu() for name, tensor in _tensors(states).items()}
        self._file(self.world.rank).save({"windows": [*windows]}, tensors)

    def merge(self, zeros: States, windows: Sequence[int]) -> States:
        """The statistics of some dictionaries, from the files of all ranks.

        Args:
            zeros: empty states of the dictionaries, which are filled.
            windows: those that the files should hold.

        Raises RunFailed if they hold others.
        """
        found = [w for rank in range(self.world.size) for w in self._add(zeros, rank)]
        if sorted(found) != list(windows):
            raise RunFailed(f"another process has written in {self.folder}")
        return zeros

    def _add(self, states: States, number: int) -> list[int]:
        """Add what a file holds to the states, and return its windows."""
        values, tensors = self._file(number).load(_tensors(states).keys()) or ({"windows": []}, {})
        for dictionary, accumulators in states.items():
            for state in accumulators if tensors else []:
                beat()
                _add(state, {f: tensors[_name(state, f, dictionary)] for f in state.tensors})
        return values["windows"]


def share_file(folder: Path, number: int) -> Path:
    """The file of a rank, by its number."""
    name = Path(STATE)
    return folder / (f"{name.stem}-{number}{name.suffix}" if number else STATE)


def numbers(folder: Path) -> list[int]:
    """The numbers of the files that are in a directory, ascending."""
    name = Path(STATE)
    found = [path.stem.removeprefix(f"{name.stem}-") for path in folder.glob(f"{name.stem}*")]
    return sorted(int(each) if each.isdigit() else 0 for each in found)


def begun_request(folder: Path) -> Any:
    """The request of the first file in a directory; None if there is none. Raises UserError."""
    return next((saved_request(share_file(folder, number)) for number in numbers(folder)), None)


def clear_shares(folder: Path) -> None:
    """Remove the files in a directory: their dictionaries are done."""
    for number in numbers(folder):
        share_file(folder, number).unlink()


def deal(windows: Collection[int], sizes: Mapping[int, int], world: World) -> list[int]:
    """This rank's part of the windows, ascending. The parts have about equally many tokens.

    `sizes`: window -> number of its tokens.
    """
    given, loads = [0] * len(windows), [0] * world.size
    order = sorted(windows, key=lambda window: (-sizes[window], window))
    for place, window in enumerate(order):
        given[place] = rank = loads.index(min(loads))
        loads[rank] += sizes[window]
    return sorted(w for w, rank in zip(order, given, strict=True) if rank == world.rank)


def _tensors(states: States) -> dict[str, Tensor]:
    """Every tensor of the states, by its name in a file."""
    return {
        _name(state, field, dictionary): tensor
        for dictionary, accumulators in states.items()
        for state in accumulators
        for field, tensor in state.tensors.items()
    }


def _name(state: Accumulator, field: str, dictionary: str) -> str:
    return f"{type(state).__name__}|{field}|{dictionary}"


def _add(state: Accumulator, tensors: Mapping[str, Tensor]) -> None:
    """Merge the tensors of an accumulator of the same kind into a state, in place."""
    here = {name: tensor.to(state.tensors[name].device) for name, tensor in tensors.items()}
    merged = state.reduce(type(state)(state.labels, here, state.header))
    for name, tensor in state.tensors.items():
        tensor.copy_(merged[name])
