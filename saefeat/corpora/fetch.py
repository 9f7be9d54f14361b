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
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from saefeat.corpora.columns import Row
from saefeat.corpora.extract import Part, read_part
from saefeat.corpora.failures import is_local, is_temporary, source_error
from saefeat.corpora.reading import hub_revision, is_on_disk
from saefeat.corpora.request import Request
from saefeat.corpora.sources import Source
from saefeat.io import SCHEMA, UserError, atomic_path, cache_dir, fingerprint, first_line, make_dir
from saefeat.progress import Say, quiet

PAUSES = (1.0, 4.0, 15.0)  # seconds before each further attempt; the hub's client has its own too
_UNANSWERED = 2  # further attempts if the hub has not answered at all, as without a network
_NOT_IN_KEY = ("labels", "access_url", "alternative", "splits", "max_texts")  # fields of a source
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


def _cached(part: Part, max_texts: int, say: Say) -> list[Row]:
    """Rows of a part, from the cache or fetched into it. Local files are not cached."""
    if is_on_disk(part.source) and part.source.read != "hub":
        return _attempt(part, max_texts, say)[0]
    path = _cache_file(part, max_texts)
    if path.exists():
        kept = _read_cache(path, part)
        if kept is not None:
            _say_revision(part, kept[1], say)
            return kept[0]
        path.unlink()
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        # The constant of huggingface_hub is read only once, when the library is first imported.
        raise UserError(
            f"{part} is not in the cache and HF_HUB_OFFLINE is set; run once with a network"
        )
    make_dir(path.parent)
    say(f"fetching {part}")
    rows, revision = _attempt(part, max_texts, say)
    _say_revision(part, revision, say)
    table = pa.table(list(zip(*rows, strict=True)) or [[], [], []], _FIELDS)
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata({"revision": revision}), temporary)
    return rows


def _read_cache(path: Path, part: Part) -> tuple[list[Row], str] | None:
    """Cached rows and their revision; None if the file is damaged or may be of another source.

    Earlier versions cached the rows of a local folder that was named like a data set of the hub;
    such files have no revision.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError):
        return None
    revision = (table.schema.metadata or {}).get(b"revision", b"").decode()
    unsure = part.source.read == "hub" and not is_on_disk(part.source) and not revision
    if unsure or table.column_names != _FIELDS.names:
        return None
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True)), revision


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


def _attempt(part: Part, max_texts: int, say: Say) -> tuple[list[Row], str]:
    """Rows of a part, and the revision of the hub that they come from.

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
                return read_part(replace(part, source=source), max_texts, say), revision
        except UserError:
            raise
        except Exception as error:  # `datasets` passes on the errors of fsspec and its clients
            if is_local(error):
                raise
            if not is_temporary(error):
                raise source_error(error, part.source, part.code) from error
            if pause is None or (attempt == _UNANSWERED and not answered):
                raise _unreachable(part, error) from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _unreachable(part: Part, error: Exception) -> UserError:
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
