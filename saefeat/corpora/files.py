"""Labelled text in local files and directories, and the embedded text."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from saefeat.corpora.columns import Columns, Row, check_label, one_split, row_values
from saefeat.corpora.delimited import csv_rows, tsv_rows
from saefeat.corpora.given import table_rows
from saefeat.corpora.text import plain_name, read_bytes, read_text, refuse_archive, split_lines
from saefeat.io import UserError, user_path
from saefeat.labels import to_labels

_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
_NO_LABELS = {"readme", "license", "licence", "notice", "copying", "changelog", "authors"}


def local_rows(
    source: str, columns: Columns, wanted: tuple[str, ...] | None, counts: Counter[str]
) -> Iterator[Row]:
    """Rows of `embedded:eld`, of a file or of a directory; `columns` name text, label and id.

    counts: reason -> what is left out or mended here, added to.

    Raises UserError for labels that are numbers; in .csv and .tsv, where all is text, for a column
    of nothing else.
    """
    if source.startswith("embedded:"):
        return _embedded(source)
    path = user_path(source)
    if os.path.isdir(path):  # pathlib's would raise for a name that is too long
        saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
        return _saved(path, columns) if saved else _directory(path, wanted, counts)
    if not os.path.exists(path):
        raise UserError(
            f"the corpus {source} does not exist; give a file, a directory of "
            "LABEL.txt, embedded:eld, hub:REPO or a name of `saefeat corpus list`"
        )
    refuse_archive(path)
    suffix = plain_name(path).suffix
    if suffix not in _SUFFIXES:
        raise UserError(
            f"the corpus {source} must end in {', '.join(_SUFFIXES)}, or be a directory of LABEL.txt"
        )
    if suffix == ".parquet":
        return _parquet(path, columns)
    text = read_text(path)
    if not text:
        raise UserError(f"the corpus {source} is empty")
    if suffix == ".jsonl":
        return _jsonl(path, text, columns)
    return (
        csv_rows(path, text, columns) if suffix == ".csv" else tsv_rows(path, text, columns, counts)
    )


def _embedded(source: str) -> Iterator[Row]:
    from saefeat.assets import fetch

    if source != "embedded:eld":
        raise UserError(f"unknown embedded corpus {source}; there is embedded:eld")
    for number, line in enumerate(split_lines(read_text(fetch("eld"))), 1):
        label, tab, text = line.partition("\t")
        if not tab:
            raise UserError(f"{source}: line {number} has no tab")
        yield text, label, None


def _directory(path: Path, wanted: tuple[str, ...] | None, counts: Counter[str]) -> Iterator[Row]:
    """Lines of LABEL.txt, also packed; hidden files and a README, unless it is asked for, are no labels."""
    files: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        bare = plain_name(file)
        if bare.suffix != ".txt":
            continue
        asked = wanted is not None and bare.stem in wanted
        if bare.name.startswith(".") or (bare.stem.lower() in _NO_LABELS and not asked):
            counts["files that are no labels"] += 1
        elif bare.stem in files:
            raise UserError(f"{files[bare.stem]} and {file} are of one label; remove one of them")
        else:
            files[bare.stem] = file
    if not files:
        others = sorted(
            file.name for file in path.iterdir() if plain_name(file).suffix in _SUFFIXES
        )
        instead = f"; give one of its files, such as {path / others[0]}" if others else ""
        raise UserError(f"the corpus directory {path} holds no LABEL.txt files{instead}")
    chosen = files if wanted is None else to_labels(files, wanted)
    for label, file in files.items():
        if label in chosen:
            for line in split_lines(read_text(file)) or [
                ""
            ]:  # a label without a line is a label without text
                yield line, label, None


def _saved(path: Path, columns: Columns) -> Iterator[Row]:
    """Rows of a folder that `save_to_disk` of `datasets` wrote."""
    from datasets import load_from_disk

    try:
        found = load_from_disk(str(path))
    except Exception as error:  # whatever its readers raise for a folder that is not whole
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is no readable folder of save_to_disk ({reason})") from error
    if isinstance(found, dict):
        found = found[one_split([str(name) for name in found], str(path), f"{path}/")]
    return table_rows(found, columns, str(path))


def _jsonl(path: Path, text: str, columns: Columns) -> Iterator[Row]:
    for number, line in enumerate(split_lines(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is not a JSON object")
        values = row_values(f"{path}: line {number}", row, columns)
        check_label(values[1], f"{columns[1]} of {path}")
        yield values


def _parquet(path: Path, columns: Columns) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(
            pa.BufferReader(read_bytes(path)) if plain_name(path) != path else path
        )
        table.validate(full=True)  # such as strings that are not UTF-8
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is not a readable Parquet file ({str(error).splitlines()[0]})"
        ) from error
    return table_rows(table, columns, str(path))
