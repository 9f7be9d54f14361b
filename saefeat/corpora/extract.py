"""Make examples of the rows of a source, by its templates and codes."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from saefeat.corpora.columns import PARAMETERS, Row, check_label, required
from saefeat.corpora.reading import read_rows
from saefeat.corpora.sources import Source
from saefeat.corpora.text import clean_text
from saefeat.io import UserError
from saefeat.progress import Say, beat, quiet, track

_MAX_ROWS = 1_000_000  # of a data set of the hub whose labels are not named
_PLACE = re.compile(r"{([^{}]+)}")  # in a template


@dataclass(frozen=True)
class Part:
    """The unit of fetching and caching: texts of one file or of one label.

    Attributes:
        need: label -> number of texts still to read; None: all labels that occur, each with the
            default number.
        code: the source's code of the label, if the part has one label.
        shard: number of the file.
    """

    source: Source
    split: str
    need: dict[str, int] | None
    code: str = ""
    shard: int = 0

    def __str__(self) -> str:
        labels = list(self.need or ())
        named = ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
        return self.source.name + (f" ({named})" if named else "")


def read_part(part: Part, max_texts: int, say: Say = quiet) -> Iterator[Row]:
    """Read at most `max_texts` texts per label.

    They are the first texts of each label, or those with the smallest hashes if the source is
    `spread`. Blank texts are returned too, so that they are counted as skipped, but do not count
    towards `max_texts`.

    Raises UserError if a column is missing, labels are numbers, or no label is named and the data
    set has too many rows. For the errors of readers see `failures`.
    """
    if part.source.spread:
        with track(say, f"read {part}", None, "rows", brief=True) as bar:
            yield from heapq.nsmallest(
                max_texts,
                _counted(_examples(part, say), bar),
                key=lambda row: hashlib.sha256(row[0].encode()).digest(),
            )
        return
    total = None if part.need is None else sum(part.need.values())
    with track(say, f"read {part}", total, "texts", brief=True) as bar:
        yield from _first_texts(part, max_texts, _examples(part, say), bar)


def _counted(rows: Iterator[Row], bar: tqdm[Any]) -> Iterator[Row]:
    for row in rows:
        bar.update(1)
        yield row


def _first_texts(
    part: Part, max_texts: int, examples: Iterator[Row], bar: tqdm[Any]
) -> Iterator[Row]:
    need = part.need
    counts: Counter[str] = Counter()
    for number, row in enumerate(examples):
        label = row[1]
        if need is None and number >= _MAX_ROWS and max_texts <= part.source.max_texts:
            raise UserError(
                f"hub:{part.source.name} has more than {_MAX_ROWS:,} rows; name the labels",
                "labels",
            )
        if counts[label] >= (max_texts if need is None else need[label]):
            continue
        yield row
        if not row[0].strip():
            continue
        bar.update(1)
        counts[label] += 1
        if (
            need is not None
            and counts[label] == need[label]
            and all(counts[other] >= n for other, n in need.items())
        ):
            break


def _examples(part: Part, say: Say) -> Iterator[Row]:
    """Text ("" if missing), label and id of every row with one of the labels."""
    source = part.source
    only = next(iter(part.need)) if part.need and not source.label else None
    labels = _labels_by_code(source, part.need)
    for number, row in enumerate(read_rows(source, part.code, part.split, part.shard, say)):
        beat()  # the bar counts no row that is left out
        label = only
        if only is None:
            code = _code(source, row)
            label = code if labels is None else labels.get(code or "")
        if label is None:
            continue
        known = {"row": number, "code": part.code, "split": part.split}
        identity = _identity(source, row, known)
        text = clean_text(_fill(source, source.text, row, known, PARAMETERS.text) or "")
        yield text, label, identity if identity is None else clean_text(identity)


def _labels_by_code(source: Source, need: dict[str, int] | None) -> dict[str, str] | None:
    """Code -> label. A label that the source does not list is its own code."""
    if need is None:
        return None
    return {
        code: label
        for label in need
        for code in (source.labels[label].split() if label in source.labels else [label])
    }


def _code(source: Source, row: dict[str, Any]) -> str | None:
    value = required(source.name, row, source.label, PARAMETERS.label)
    check_label(value, f"{source.label} of {source.name}")
    if source.by_ending and value is not None:
        name, dot, ending = str(value).rpartition(".")
        return dot + ending if name else None
    return None if value is None else str(value)


def _fill(
    source: Source, template: str, row: dict[str, Any], known: dict[str, Any], parameter: str
) -> str | None:
    """Fill a template from a row and other `known` values; None if a value is null."""
    found = {
        name: known[name]
        if name in known and name not in row
        else required(source.name, row, name, parameter)
        for name in _PLACE.findall(template)
    }
    if any(value is None for value in found.values()):
        return None
    return _PLACE.sub(lambda match: str(found[match[1]]), template)


def _identity(source: Source, row: dict[str, Any], known: dict[str, Any]) -> str | None:
    """The id, which begins with the source's name in a recipe; None: use the hash of the text."""
    hub = source.read == "hub"
    if not source.identity or (hub and source.identity == "{id}" and "id" not in row):
        return None
    filled = _fill(source, source.identity, row, known, PARAMETERS.id)
    return filled if filled is None or hub else f"{source.name}/{filled}"
