"""Checkpoints of a training: a directory of SAEs, each with its state, that an index names.

The index is replaced when all ranks have written their files, and what it named before is removed
after that. So a process that is killed at any moment leaves a whole checkpoint behind. The files do
not depend on the number of ranks. The weights are there twice: folded into an SAE that can be
loaded, and as the trainer has them, because folding cannot be undone to the last digit.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from saefeat.dictionaries import SAE
from saefeat.io import UserError, fingerprint, load_tensors, replacing, save_tensors
from saefeat.progress import Say
from saefeat.resume import STATE, Checkpoint, saved_request
from saefeat.sae.trainer import Trainer
from saefeat.sae.writers import WRITERS
from saefeat.world import World

INDEX = "training.safetensors"
VERSION = 3  # of what a checkpoint holds
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
        records: JSON value that says what the training is of.
        threads: see `Checkpoint`.
    """

    def __init__(
        self, out: Path, records: Any, threads: int | None, world: World, say: Say
    ) -> None:
        self.out, self.world = out, world
        request = [VERSION, fingerprint(records)]
        self.index = Checkpoint(out / INDEX, request, "the training", threads, say=say)

    def load(self, trainers: Mapping[str, Trainer]) -> Position:
        """Put the trainers (by the names of their files) in the last state that was saved.

        Raises UserError when it is damaged, belongs to something else, or is of another version.
        """
        self._check_version()
        found = self.index.load()
        if found is None:
            return Position()
        position = Position(**found[0])
        for name, trainer in trainers.items():
            path = self._folder(position) / name / STATE
            tensors, header = load_tensors(path)
            if header != asdict(position):
                raise UserError(f"{path} does not belong to {self.index.path}; remove both", "out")
            trainer.restore(tensors, position.steps)
        return position

    def _check_version(self) -> None:
        path = self.index.path
        found = saved_request(path)
        known = isinstance(found, list) and found[:1] == [VERSION]
        if path.exists() and not known:
            raise UserError(
                f"{path} was written by another version of saefeat; finish the training with that, "
                "or choose another output directory",
                "out",
            )

    def save(self, position: Position, saes: Iterable[tuple[SAE, Mapping[str, Tensor]]]) -> None:
        """Replace the checkpoint. Each rank gives some of the SAEs, with the states of trainers."""
        for sae, state in saes:
            tensors = {name: value.cpu() for name, value in state.items()}
            with replacing(self._folder(position) / sae.id) as directory:
                WRITERS["sae-lens"].write(sae, directory)
                save_tensors(directory / STATE, tensors, asdict(position))
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
