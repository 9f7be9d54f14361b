"""Merge the statistics of shards. The bytes are those of one collection of all their windows."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

from saefeat.io import UserError, replacing
from saefeat.resume import check_replaceable
from saefeat.statistics import ACCUMULATORS, Accumulator, Stats, comparable
from saefeat.statistics.files import CONTROL, list_stats, stats_file


def merge(sources: Sequence[Path], out: Path) -> list[str]:
    """Merge the statistics of shards into the directory `out`, which appears at once.

    Args:
        sources: directories that `collect` wrote, of shards of one collection.

    Returns:
        Warnings: windows that are missing.

    Raises:
        UserError: statistics of different models, dictionaries or corpora, windows counted twice,
            files that only some of the sources have, or an `out` that is not empty.
    """
    if not sources:
        raise UserError("name at least one directory of statistics to merge")
    for source in sources:
        if not source.is_dir():
            raise UserError(f"{source} holds no statistics; name directories of statistics")
    files = {source: list_stats(source) for source in sources}
    names = list(files[sources[0]])
    for source in sources:
        if list(files[source]) != names:
            raise UserError(f"{source} and {sources[0]} hold statistics of different dictionaries")
    check_replaceable(out, "empty directory", lambda _: out.is_dir() and not any(out.iterdir()))
    # A shard without windows has no files of windows.
    full = [source for source in sources if _windows(files[source][names[0]])[0]]
    with replacing(out) as temporary:
        for kind in ACCUMULATORS.values():
            folder = Path(kind.FOLDER)
            if kind.EACH_WINDOW:
                for source in _all_or_none(full, folder):
                    shutil.copytree(source / folder, temporary / folder, dirs_exist_ok=True)
                continue
            for name in names:
                file = kind.path(folder, name)
                if found := _all_or_none(sources, file):
                    _merge_files(kind, [source / file for source in found], temporary / file)
        missing: list[str] = []
        if found := _all_or_none(sources, Path(CONTROL)):
            gaps = merge([source / CONTROL for source in found], temporary / CONTROL)
            missing = [f"{CONTROL}: {gap}" for gap in gaps]
        windows, count = _windows(stats_file(temporary, names[0]))
    gap = sorted(set(range(count)) - set(windows))
    if gap:
        missing.insert(0, f"{len(gap)} of {count} windows are in no shard, the first is {gap[0]}")
    return missing


def _windows(file: Path) -> tuple[list[int], int]:
    """The windows in statistics, and how many there are in all."""
    header = Stats.read_header(file)
    return header.get("windows", []), header.get("window_count", 0)


def _merge_files(kind: type[Accumulator], files: Sequence[Path], out: Path) -> None:
    def merged(total: Accumulator, file: Path) -> Accumulator:
        other = kind.load(file)
        check_mergeable(total, other, str(file))
        return total.merge(other)

    reduce(merged, files[1:], kind.load(files[0])).save(out)


def _all_or_none(sources: Sequence[Path], part: Path) -> Sequence[Path]:
    """The sources that have a part. Raises UserError when only some of them have it."""
    have = [source for source in sources if (source / part).exists()]
    lack = [source for source in sources if source not in have]
    if have and lack:
        raise UserError(f"{lack[0]} has no {part}, but {have[0]} has; collect both alike")
    return have


def check_mergeable(first: Accumulator, other: Accumulator, where: str) -> None:
    """Raise UserError when statistics are of different things or share a window.

    `where` is the place of `other`, in the message.
    """
    one, two = comparable(first.header), comparable(other.header)
    # The cause first: the limits of dictionaries follow from the model, the corpus and the policy.
    for key in sorted(one.keys() | two.keys(), key=lambda key: (key == "dictionary", key)):
        if one.get(key) != two.get(key):
            found = f"{first.header.get(key)} / {other.header.get(key)}"
            raise UserError(f"{where}: cannot merge, its {key} differs: {found}")
    if first.labels != other.labels:
        raise UserError(f"{where}: cannot merge, the labels differ")
    shared = set(first.header.get("windows", [])) & set(other.header.get("windows", []))
    if shared:
        raise UserError(f"{where}: cannot merge, window {min(shared)} is counted in both")
