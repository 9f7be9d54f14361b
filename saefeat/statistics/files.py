"""A directory of statistics: one `<dictionary>.safetensors` per dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saefeat.io import UserError, visible
from saefeat.statistics.counts import Stats

UNFINISHED = "partial"  # a directory that exists as long as a collection is unfinished


def stats_file(directory: Path, dictionary: str) -> Path:
    """The file of the statistics of a dictionary in a directory."""
    return Stats.path(directory, dictionary)


def stats_header(directory: Path, dictionary: str) -> dict[str, Any]:
    """Read the header of the statistics of a dictionary, without their tensors."""
    return Stats.read_header(stats_file(directory, dictionary))


def list_stats(directory: Path) -> dict[str, Path]:
    """Dictionary id -> file, sorted. One file may be given in place of a directory.

    Raises UserError when there are none, or when their collection is unfinished.
    """
    if directory.is_file():
        return {directory.stem: directory}
    files = visible(directory, f"*{Stats.SUFFIX}")
    if not files:
        raise UserError(f"{directory} holds no statistics; collect them first", command="collect")
    if (directory / UNFINISHED).exists():
        raise UserError(f"{directory} is unfinished; finish collecting it", command="collect")
    return {file.stem: file for file in files}


def load_stats(directory: Path, dictionary: str) -> Stats:
    """Statistics of a dictionary in a directory. Raises UserError when they are not there."""
    path = stats_file(directory, dictionary)
    if not path.is_file():
        message = f"{directory} holds no statistics of {dictionary}; collect them first"
        raise UserError(message, command="collect")
    return Stats.load(path)


class StatsFiles(Sequence[Stats]):
    """Statistics that are read from disk each time they are asked for, one at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:  # slices are not needed
        return Stats.load(self.paths[index])
