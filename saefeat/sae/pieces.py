"""The state of one SAE's training in files: one for each rank among which its units were split.

Any number of ranks reads the files, each the rows of its own units.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefeat.io import UserError, open_tensors, read_header, save_tensors
from saefeat.resume import STATE
from saefeat.sae.trainer import Trainer


def write_piece(directory: Path, trainer: Trainer, header: Mapping[str, Any], here: int) -> None:
    """Write this rank's part of a state.

    Args:
        directory: of the SAE in a checkpoint.
        header: says to which checkpoint the piece belongs.
        here: number of the rank, among those that split the units, whose piece is in the directory;
            the others are beside it.
    """
    split = trainer.split
    tensors = {name: value.cpu() for name, value in trainer.state().items()}
    found = {**header, "piece": split.rank, "pieces": split.size}
    save_tensors(_path(directory, split.rank, here), tensors, found)


def read_pieces(directory: Path, trainer: Trainer, header: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read this rank's part of a state that `write_piece` wrote.

    Raises UserError when a piece is missing, damaged, or not of this checkpoint.
    """
    first = read_header(directory / STATE)
    here, pieces = first.get("piece", 0), first.get("pieces", 1)
    paths = [_path(directory, number, here) for number in range(pieces)]
    with ExitStack() as stack:
        files = []
        for number, path in enumerate(paths):
            file, found = stack.enter_context(open_tensors(path))
            if found != {**header, "piece": number, "pieces": len(paths)}:
                raise UserError(f"{path} is of another checkpoint")
            files.append(file)
        return {name: _read(files, name, trainer) for name in files[0].keys()}  # noqa: SIM118


def _path(directory: Path, number: int, here: int) -> Path:
    if number == here:
        return directory / STATE
    return directory.with_name(f"{directory.name}.rows-{number}.safetensors")


def _read(files: list[Any], name: str, trainer: Trainer) -> Tensor:
    if not trainer.has_rows(name) or len(files) == trainer.split.size == 1:
        return files[0].get_tensor(name)
    parts = [file.get_slice(name) for file in files]
    return own_rows(parts, trainer.objective.TABLE, trainer.split.rank, trainer.split.size)


def own_rows(parts: list[Any], table: int, rank: int, size: int) -> Tensor:
    """Read a rank's rows of a tensor that pieces of one size hold, in the order of the objective.

    Each piece has some columns of a table of all rows, and the rank too; see `Objective.own_rows`.
    """
    held = parts[0].get_shape()[0] // table  # columns of a piece
    own = held * len(parts) // size
    found = []
    for number, part in enumerate(parts):
        low = max(rank * own - number * held, 0)
        high = min((rank + 1) * own - number * held, held)
        if low < high:
            rows = range(0, table * held, held)
            found.append(torch.stack([part[row + low : row + high] for row in rows]))
    return torch.cat(found, 1).flatten(0, 1)
