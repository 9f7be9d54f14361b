"""Checkpoints of a training: one file per site, in a directory that an index names.

The index is replaced when all ranks have written their files, and what it named before is removed
after that. So a process that is killed at any moment leaves a whole checkpoint behind. The files do
not depend on the number of ranks.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saefeat.io import UserError, load_tensors, save_tensors
from saefeat.progress import Say
from saefeat.resume import Checkpoint
from saefeat.sae.trainer import Trainer
from saefeat.world import World

INDEX = "training.safetensors"
_FOLDER = "training-"  # and the number of steps


@dataclass(frozen=True)
class Position:
    """How far a training is."""

    chunk: int = 0  # the one in use
    step: int = 0  # steps on this chunk that are done
    steps: int = 0  # that are done in all


class Checkpoints:
    """The checkpoints of a training in its output directory, which all ranks see.

    Args:
        request: JSON value that says what the training is of.
        threads: see `Checkpoint`.
    """

    def __init__(
        self, out: Path, request: Any, threads: int | None, world: World, say: Say
    ) -> None:
        self.out, self.world = out, world
        self.index = Checkpoint(out / INDEX, request, "the training", threads, say=say)

    def load(self, trainers: Mapping[str, Trainer]) -> Position:
        """Put the trainers (by the names of their files) in the last state that was saved.

        Raises UserError when it is damaged, or belongs to something else.
        """
        found = self.index.load()
        if found is None:
            return Position()
        position = Position(**found[0])
        for name, trainer in trainers.items():
            path = self._folder(position) / f"{name}.safetensors"
            tensors, header = load_tensors(path)
            if header != asdict(position):
                raise UserError(f"{path} does not belong to {self.index.path}; remove both", "out")
            trainer.restore(tensors, position.steps)
        return position

    def save(self, position: Position, trainers: Mapping[str, Trainer]) -> None:
        """Replace the state by that of these trainers; each rank writes some of them."""
        for name, trainer in trainers.items():
            tensors = {key: value.cpu() for key, value in trainer.state().items()}
            save_tensors(self._folder(position) / f"{name}.safetensors", tensors, asdict(position))
        self.world.barrier()
        if self.world.leads:
            self.index.save(asdict(position))
            self._remove(self._folders(but=position))

    def clear(self) -> None:
        """Remove the state: the training is done."""
        self.index.clear()
        self._remove(self._folders())

    def _folder(self, position: Position) -> Path:
        return self.out / f"{_FOLDER}{position.steps}"

    def _folders(self, but: Position | None = None) -> Iterable[Path]:
        kept = but and self._folder(but)
        return [path for path in self.out.glob(f"{_FOLDER}*") if path != kept]

    @staticmethod
    def _remove(folders: Iterable[Path]) -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
