"""A directory of statistics: one `<dictionary>.safetensors` per dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saefeat.io import UserError, visible
from saefeat.statistics import ACCUMULATORS, Accumulator, comparable
from saefeat.statistics.by_example import ByExample
from saefeat.statistics.counts import Stats

CONTROL = "random-tokens"  # a directory of statistics of random tokens, within those of texts
UNFINISHED = "partial"  # a directory that exists as long as a collection is unfinished


def stats_file(directory: Path, dictionary: str) -> Path:
    """The file of the statistics of a dictionary in a directory."""
    return Stats.path(directory, dictionary)


def stats_header(directory: Path, dictionary: str) -> dict[str, Any]:
    """Read the header of the statistics of a dictionary, without their tensors.

    Raises UserError when they are not there.
    """
    return Stats.read_header(_existing(directory, dictionary))


def stats_origin(directory: Path, dictionary: str) -> dict[str, Any]:
    """What the statistics of a dictionary were collected from and how, as JSON (see `comparable`).

    The request of a result holds it, so that the result is measured again once the statistics are
    collected anew from other text or with other options.

    Raises UserError when they are not there.
    """
    return comparable(stats_header(directory, dictionary))


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
    return Stats.load(_existing(directory, dictionary))


def _existing(directory: Path, dictionary: str) -> Path:
    path = stats_file(directory, dictionary)
    if not path.is_file():
        message = f"{directory} holds no statistics of {dictionary}; collect them first"
        raise UserError(message, command="collect")
    return path


class StatsFiles(Sequence[Any]):
    """Statistics that are read from disk each time they are asked for, one at a time."""

    def __init__(self, paths: Sequence[Path], kind: type[Accumulator] = Stats) -> None:
        self.paths, self.kind = paths, kind

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:  # slices are not needed
        return self.kind.load(self.paths[index])


def control_of(directory: Path, headers: Sequence[Mapping[str, Any]]) -> Sequence[Stats]:
    """The statistics of dictionaries on random tokens, which are read when they are asked for.

    Args:
        headers: those of the dictionaries' statistics on texts.

    Raises:
        UserError: they were not collected, or with another model or dictionary.
    """
    paths = [stats_file(directory / CONTROL, header["dictionary"]["id"]) for header in headers]
    for path, header in zip(paths, headers, strict=True):
        if not path.exists() or (path.parent / UNFINISHED).exists():
            raise UserError(
                f"{directory} holds no statistics of random tokens; collect them too",
                "random_tokens",
                command="collect --random-tokens 100",
            )
        found, wanted = comparable(Stats.read_header(path)), comparable(dict(header))
        if any(found.get(key) != wanted.get(key) for key in ("model", "dictionary")):
            raise UserError(f"{path} is not of the model and SAE of its texts; collect it again")
    return StatsFiles(paths)


def collected_beside(
    directory: Path, name: str, headers: Sequence[Mapping[str, Any]]
) -> Sequence[Any]:
    """What an accumulator has collected of dictionaries, in or beside a directory of statistics.

    Args:
        name: of the accumulator.
        headers: those of the dictionaries' statistics.

    Returns:
        For each dictionary its `Table`, if the accumulator is one by example; else the accumulator,
        which is read when it is asked for.

    Raises:
        UserError: it was not collected, is damaged, or belongs to another collection.
    """
    kind = ACCUMULATORS[name]
    places = [root / kind.FOLDER for root in (directory, directory.parent)]
    place = next((place for place in places if place.is_dir()), places[0])
    of = [header["dictionary"]["id"] for header in headers]
    for each in of:
        path = kind.path(place, each)
        if not (path.parent if kind.EACH_WINDOW else path).exists():
            message = f"{directory} holds no {name} of {each}; collect them too"
            raise UserError(message, "with_", command=f"collect --with {name}")
    if issubclass(kind, ByExample):
        return [kind.open(place, header) for header in headers]
    paths = [kind.path(place, each) for each in of]
    for path, header in zip(paths, headers, strict=True):
        if kind.read_header(path) != header:
            raise UserError(f"{path} is not of the collection of its statistics; collect it again")
    return StatsFiles(paths, kind)
