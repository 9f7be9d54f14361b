"""Checkpoints of a training: a directory of SAEs, each with its state, that an index names.

The index is replaced when all ranks have written their files, and what it named before is removed
after that. So a process that is killed at any moment leaves a whole checkpoint behind. The files do
not depend on the number of ranks, but for one thing: where the units of an SAE are split among
ranks, each of them writes its rows of the state, which any number of ranks can read. The weights
are there twice: folded into an SAE that can be loaded, and as the trainer has them, because folding
cannot be undone to the last digit.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saefeat.dictionaries import SAE
from saefeat.io import UserError, fingerprint, replacing, wait_for_disk
from saefeat.progress import Say
from saefeat.resume import Checkpoint, saved_request
from saefeat.sae.pieces import read_pieces, write_piece
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


@dataclass(frozen=True)
class Part:
    """What a rank writes of an SAE and its state."""

    name: str  # directory of the SAE
    sae: SAE | None  # on the rank that writes it
    trainer: Trainer
    writer: int  # number of that rank among those that split the units


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
        kept = None
        if self.world.leads:
            self._check_version()
            kept = self.index.load()
        kept = self.world.share(kept and kept[0])
        position = Position(**kept) if kept else None
        if self.world.leads:
            self._remove(self._folders(but=position))  # of a save that was killed
        if position is None:
            return Position()
        for name, trainer in trainers.items():
            try:
                found = read_pieces(self._folder(position) / name, trainer, asdict(position))
            except UserError as error:
                raise UserError(
                    f"the checkpoint is damaged ({error}); remove {self.index.path} to start the "
                    "training again, or choose another output directory",
                    "out",
                ) from error
            trainer.restore(found, position.steps)
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

    def save(self, position: Position, parts: Iterable[Part]) -> None:
        """Replace the checkpoint. Each rank gives what it writes of it."""
        for part in parts:
            place, header = self._folder(position) / part.name, asdict(position)
            if part.sae is None:
                write_piece(place, part.trainer, header, part.writer)
            else:
                with replacing(place) as directory:
                    WRITERS["sae-lens"].write(part.sae, directory)
                    write_piece(directory, part.trainer, header, part.writer)
                    wait_for_disk(directory)
            wait_for_disk(place.parent)
        self.world.barrier()
        if self.world.leads:
            self.index.save(asdict(position))
            wait_for_disk(self.index.path)
            self._remove(self._folders(but=position))

    def clear(self) -> None:
        """Remove the checkpoint of this training, which is done; leave that of another."""
        if not self.index.path.exists() or saved_request(self.index.path) == self.index.request:
            self.index.clear()
            self._remove(self._folders())

    def _folder(self, position: Position) -> Path:
        return self.out / f"{_FOLDER}{position.steps}"

    def _folders(self, but: Position | None = None) -> Iterable[Path]:
        kept = but and self._folder(but)
        found = self.out.glob(f"{_FOLDER}*")
        return [each for each in found if each.name[len(_FOLDER) :].isdigit() and each != kept]

    @staticmethod
    def _remove(folders: Iterable[Path]) -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
