"""Examples of recipes and of the hub: read from the cache, or fetched into it part by part."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saefeat.corpora.columns import Row
from saefeat.corpora.extract import Part, read_part
from saefeat.corpora.failures import PAUSES, StreamBroken, is_local, is_temporary, source_error
from saefeat.corpora.reading import hub_revision, is_on_disk
from saefeat.corpora.request import Request
from saefeat.corpora.sources import Source
from saefeat.io import SCHEMA, UserError, atomic_path, cache_dir, fingerprint, first_line
from saefeat.progress import Say, quiet
from saefeat.resume import claim_file

_UNANSWERED = 2  # further attempts if the hub has not answered at all, as without a network
_NOT_IN_KEY = ("labels", "access_url", "alternative", "splits", "max_texts")  # fields of a source
_BATCH = 4096  # rows that are written or read at once
_FIELDS = pa.schema({"text": pa.string(), "label": pa.string(), "id": pa.string()})


def recipe_rows(
    request: Request, wanted: tuple[str, ...] | None, say: Say = quiet
) -> Iterator[Row]:
    """Rows of a recipe, label by label. Rows that are not in the cache are fetched.

    Raises UserError for a label or split that the recipe does not have, and for a source that
    cannot be read.
    """
    for source, labels in _assign(request, wanted):
        split = request.split or source.splits[0]
        max_texts = request.max_texts or source.max_texts
        if labels is None:
            yield from _cached(Part(source, split, None), max_texts, say)
            continue
        left = dict.fromkeys(labels, max_texts)
        for part in _parts(source, split, left):
            for row in _cached(part, max_texts, say):
                left[row[1]] -= bool(row[0].strip())
                yield row


def recipe_state(request: Request) -> list[Any] | None:
    """What the examples of a request depend on; None if one of its sources is on this disk."""
    sources = request.recipe.sources
    if any(is_on_disk(source) for source in sources):
        return None
    return [request.split, request.max_texts, [asdict(source) for source in sources]]


def _assign(
    request: Request, wanted: tuple[str, ...] | None
) -> list[tuple[Source, tuple[str, ...] | None]]:
    """Each source with the labels to read from it (None: all). Sources may share labels."""
    recipe, split = request.recipe, request.split
    sources = [s for s in recipe.sources if split is None or split in s.splits]
    main = sources[0]
    if not main.labels:
        return [(main, wanted)]
    asked = wanted or replace(recipe, sources=tuple(sources)).labels
    found = [(s, tuple(label for label in asked if label in s.labels)) for s in sources]
    other = tuple(label for label in asked if not any(label in s.labels for s in sources))
    if other:  # codes of the first source, which is the main one of a recipe
        if other[0] in recipe.labels:
            raise UserError(
                f"{recipe.name} has no {other[0]} in the split {split}; choose another split"
            )
        if not main.label and "{code}" not in main.files:
            raise UserError(
                f"{recipe.name} has no label {other[0]}; there are {', '.join(recipe.labels)}",
                "labels",
            )
        found[0] = (main, found[0][1] + other)
    return [(source, labels) for source, labels in found if labels]


def _parts(source: Source, split: str, left: dict[str, int]) -> Iterator[Part]:
    """The parts of a source in order.

    `left` is read when the next part is asked for, because earlier parts may have filled labels.
    """
    if not source.label:
        for label, count in list(left.items()):
            yield Part(source, split, {label: count}, code=source.labels.get(label, label))
        return
    for shard in range(source.shards):
        need = {label: count for label, count in left.items() if count > 0}
        if not need:
            return
        yield Part(source, split, need, shard=shard)


# --------------------------------------------------------------------------- cache


def _cached(part: Part, max_texts: int, say: Say) -> Iterator[Row]:
    """Rows of a part, from the cache or fetched into it. Local files are not cached."""
    if is_on_disk(part.source) and part.source.read != "hub":
        try:
            yield from read_part(part, max_texts, say)
        except UserError:
            raise
        except Exception as error:  # `datasets` passes on the errors of fsspec
            if is_local(error):
                raise
            raise source_error(error, part.source, part.code) from error
        return
    path = _cache_file(part, max_texts)
    revision = _kept_revision(path, part)
    if revision is None:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            # The constant of huggingface_hub is read only once, when the library is first imported.
            raise UserError(
                f"{part} is not in the cache and HF_HUB_OFFLINE is set; run once with a network"
            )
        with claim_file(path, wait=True):  # processes that start together want the same
            revision = _kept_revision(path, part)
            if revision is None:
                say(f"fetching {part}")
                revision = _fetch(part, path, max_texts, say)
    _say_revision(part, revision, say)
    for batch in pq.ParquetFile(path).iter_batches(_BATCH):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _kept_revision(path: Path, part: Part) -> str | None:
    """The revision of cached rows; None if there are none, or may be of another source.

    Earlier versions cached the rows of a local folder that was named like a data set of the hub;
    such files have no revision. A file that is of no use is removed.
    """
    if not path.exists():
        return None
    try:
        file = pq.ParquetFile(path)
        for _ in file.iter_batches(_BATCH):  # reads it once, because it may be damaged anywhere
            pass
    except (pa.ArrowException, OSError):
        path.unlink()
        return None
    metadata = file.metadata.metadata or {}
    revision = metadata.get(b"revision", b"").decode()
    unsure = part.source.read == "hub" and not is_on_disk(part.source) and not revision
    if unsure or file.schema_arrow.names != _FIELDS.names:
        path.unlink()
        return None
    return revision


def _say_revision(part: Part, revision: str, say: Say) -> None:
    if revision and part.source.read == "hub":  # the sources of recipes are pinned
        say(f"hub:{part.source.name} at revision {revision}")


def _cache_file(part: Part, max_texts: int) -> Path:
    request = {"schema": SCHEMA, "most": max_texts, **asdict(part)}
    for name in _NOT_IN_KEY:
        request["source"].pop(name)
    if part.need is not None:
        request["codes"] = {label: part.source.labels.get(label, label) for label in part.need}
    folder = re.sub(r"[^\w.+-]", "-", part.source.name)
    return cache_dir() / "corpora" / folder / f"{fingerprint(request)}.parquet"


# --------------------------------------------------------------------------- attempts


def _fetch(part: Part, path: Path, max_texts: int, say: Say) -> str:
    """Write the rows of a part to a file; return the revision of the hub that they come from.

    Retries after growing pauses if the network fails. Raises UserError if all attempts fail or the
    source cannot be read.
    """
    answered = False
    for attempt, pause in enumerate((*PAUSES, None)):
        try:
            with _silenced_clients():
                revision = hub_revision(part.source)
                answered = True
                source = replace(part.source, revision=revision or part.source.revision)
                rows = iter(read_part(replace(part, source=source), max_texts, say))
                _write(path, rows, revision)
                return revision
        except UserError:
            raise
        except StreamBroken as error:
            raise _unreachable(part, error.__cause__ or error) from error
        except Exception as error:  # `datasets` passes on the errors of fsspec and its clients
            if is_local(error):
                raise
            if not is_temporary(error):
                raise source_error(error, part.source, part.code) from error
            if pause is None or (attempt == _UNANSWERED and not answered):
                raise _unreachable(part, error) from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _write(path: Path, rows: Iterator[Row], revision: str) -> None:
    fields = _FIELDS.with_metadata({"revision": revision})
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, fields) as writer:
        while some := list(islice(rows, _BATCH)):
            writer.write_table(pa.table(list(zip(*some, strict=True)), fields))


def _unreachable(part: Part, error: BaseException) -> UserError:
    if part.source.read == "hub":  # the user has named it, perhaps wrongly
        advice = "check the name, or run again with a network; complete data sets are kept"
    else:
        advice = "run again with a network; what has been fetched is kept"
    reason = first_line(error)[:200]
    return UserError(f"{part} is not in the cache and cannot be fetched ({reason}); {advice}")


@contextmanager
def _silenced_clients() -> Iterator[None]:
    """Silence the log lines of the hub's client about its own attempts."""
    import_module("datasets")  # sets the levels of both loggers when it is imported
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
