"""Examples of a recipe: from the cache, else from the source, in parts that are kept as soon as they are whole."""

from __future__ import annotations

import hashlib
import heapq
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from saefeat.corpora.columns import Row, check_label, required
from saefeat.corpora.failures import is_full_disk, is_passing, sentence
from saefeat.corpora.reading import hub_revision, is_local, read_rows
from saefeat.corpora.recipes import Recipe, Request, Source
from saefeat.corpora.text import clean_text
from saefeat.io import SCHEMA, UserError, atomic_path, cache_dir, fingerprint, make_dir

PAUSES = (
    1.0,
    4.0,
    15.0,
)  # seconds before each further attempt; the hub's client has a few of its own
_ROWS = 1_000_000  # of a data set whose labels nobody named
_UNANSWERED = 2  # further attempts where the hub has not answered at all, as without a network
Say = Callable[[str], Any]


@dataclass(frozen=True)
class _Part:
    """What is fetched and kept as one: the texts that `need` still asks for, of one file or of one label.

    Attributes:
        need: label -> texts; None: at most the source's own number of whatever labels there are.
        code: the source's code where the part has one label.
    """

    source: Source
    split: str
    need: dict[str, int] | None
    code: str = ""
    shard: int = 0


def recipe_rows(
    request: Request, wanted: tuple[str, ...] | None, say: Say | None = None
) -> Iterator[Row]:
    """Rows of a recipe, label by label; what is not in the cache is fetched."""
    for source, labels in _assigned(request, wanted):
        split = request.split or source.splits[0]
        most = request.max_texts or source.max_texts
        if labels is None:
            yield from _kept(_Part(source, split, None), most, say)
            continue
        left = dict.fromkeys(labels, most)
        for part in _parts(source, split, left):
            for row in _kept(part, most, say):
                left[row[1]] -= bool(row[0].strip())
                yield row


def _assigned(
    request: Request, wanted: tuple[str, ...] | None
) -> list[tuple[Source, tuple[str, ...] | None]]:
    """Which source gives which labels (None: all that it has). Several may give the same."""
    recipe = request.recipe
    sources = [s for s in recipe.sources if request.split is None or request.split in s.splits]
    if not sources[0].labels:
        return [(sources[0], wanted)]
    asked = wanted or Recipe("", "", "", tuple(sources)).labels
    found = [
        (source, tuple(label for label in asked if label in source.labels)) for source in sources
    ]
    other = tuple(label for label in asked if not any(label in labels for _, labels in found))
    if other:  # the source's own codes; the first source of a recipe is its main one
        if other[0] in recipe.labels:
            raise UserError(
                f"{recipe.name} has no {other[0]} in the split {request.split}; choose another split"
            )
        if not sources[0].label and "{code}" not in sources[0].files:
            raise UserError(
                f"{recipe.name} has no label {other[0]}; there are {', '.join(recipe.labels)}"
            )
        found[0] = (found[0][0], found[0][1] + other)
    return [(source, labels) for source, labels in found if labels]


def _parts(source: Source, split: str, left: dict[str, int]) -> Iterator[_Part]:
    """Parts one after the other; what is `left` to ask for is looked up when a part's turn comes."""
    if not source.label:
        for label, count in list(left.items()):
            yield _Part(source, split, {label: count}, code=source.labels.get(label, label))
        return
    for shard in range(source.shards):
        need = {label: count for label, count in left.items() if count > 0}
        if not need:
            return
        yield _Part(source, split, need, shard=shard)


# --------------------------------------------------------------------------- cache


def _kept(part: _Part, most: int, say: Say | None) -> list[Row]:
    """Rows of a part, from the cache or fetched into it. Local sources are not kept."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = part.source
    if is_local(source) and source.read != "hub":
        return _attempts(part, most)[0]
    path = _place(part, most)
    if path.exists():
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError):
            table = pa.table({})  # damaged
        revision = (table.schema.metadata or {}).get(b"revision", b"").decode()
        # Without a revision, rows of the hub are those of a folder of that name, which earlier
        # versions read.
        if table.num_columns and (revision or source.read != "hub" or is_local(source)):
            _tell(part, revision, say)
            return list(zip(*(column.to_pylist() for column in table.columns), strict=True))
        path.unlink()
    if _offline():
        raise UserError(
            f"{_what(part)} is not in the cache and HF_HUB_OFFLINE is set; run once with a network"
        )
    make_dir(path.parent)
    if say is not None:
        say(f"fetching {_what(part)}")
    rows, revision = _attempts(part, most)
    _tell(part, revision, say)
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    table = pa.table(
        {n: pa.array(c, pa.string()) for n, c in zip(("text", "label", "id"), columns, strict=True)}
    )
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata({"revision": revision}), temporary)
    return rows


def _tell(part: _Part, revision: str, say: Say | None) -> None:
    if say is not None and revision and part.source.read == "hub":  # a recipe is pinned
        say(f"hub:{part.source.name} at revision {revision}")


def _place(part: _Part, most: int) -> Path:
    request = {"schema": SCHEMA, "most": most, **asdict(part)}
    for irrelevant in ("labels", "gate", "instead", "splits", "max_texts"):
        request["source"].pop(irrelevant)
    if part.need is not None:
        request["codes"] = {label: part.source.labels.get(label, label) for label in part.need}
    folder = re.sub(r"[^\w.+-]", "-", part.source.name)
    return cache_dir() / "corpora" / folder / f"{fingerprint(request)}.parquet"


def _offline() -> bool:
    # Not huggingface_hub's constant alone: that is read once, when the library is first imported.
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _what(part: _Part) -> str:
    labels = list(part.need or ())
    named = ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
    return part.source.name + (f" ({named})" if named else "")


# --------------------------------------------------------------------------- rows


def _attempts(part: _Part, most: int) -> tuple[list[Row], str]:
    """Rows of a part, and the revision of the hub that they are of.

    Tries again after growing pauses where the network fails; raises UserError when it stays so.
    """
    answered = False
    for attempt, pause in enumerate((*PAUSES, None)):
        try:
            with _quiet_client():
                revision = hub_revision(part.source)
                answered = True
                pinned = replace(
                    part, source=replace(part.source, revision=revision or part.source.revision)
                )
                return _read(pinned, most), revision
        except UserError:
            raise
        except (
            Exception
        ) as error:  # `datasets` hands on whatever its readers, fsspec and the hub's client raise
            if is_full_disk(error):
                raise
            if not is_passing(error):
                raise UserError(sentence(error, part.source, part.code)) from error
            if pause is None or (attempt == _UNANSWERED and not answered):
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                named = part.source.read == "hub"  # by the user
                kept = "it is kept once it is whole" if named else "what has come is kept"
                raise UserError(
                    f"{_what(part)} is not in the cache and cannot be fetched ({reason[:200]}); "
                    f"{'check the name, or ' * named}run again when the network is there, {kept}"
                ) from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def _quiet_client() -> Iterator[None]:
    # They tell of each of their own attempts; what came of them is told once, by us.
    import_module("datasets")  # which sets the levels of both
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _read(part: _Part, most: int) -> list[Row]:
    """The first texts of each label of a part, or, for a source that is `spread`, those of the least hashes."""
    if part.source.spread:
        return heapq.nsmallest(
            most, _examples(part), key=lambda row: hashlib.sha256(row[0].encode()).digest()
        )
    left = None if part.need is None else dict(part.need)
    counts: dict[str, int] = {}
    rows = []
    for number, row in enumerate(_examples(part)):
        label = row[1]
        if left is None and number >= _ROWS:
            raise UserError(
                f"hub:{part.source.name} has more than {_ROWS:,} rows; name the labels with --labels"
            )
        if counts.get(label, 0) >= (most if left is None else left[label]):
            continue
        rows.append(row)
        if not row[0].strip():
            continue  # skipped later, and counted as such
        counts[label] = counts.get(label, 0) + 1
        if (
            left is not None
            and counts[label] >= left[label]
            and all(counts.get(n, 0) >= m for n, m in left.items())
        ):
            break
    return rows


def _examples(part: _Part) -> Iterator[Row]:
    """Text, label and id of every row that has one of the labels asked for; no text is an empty one."""
    source = part.source
    own = next(iter(part.need)) if part.need and not source.label else None
    labels = _by_code(source, part.need)
    for number, row in enumerate(read_rows(source, part.code, part.split, part.shard)):
        if own is None:
            code = _code(source, row)
            label = code if labels is None else labels.get(code or "")
        else:
            label = own
        if label is None:
            continue
        known = {"row": number, "code": part.code, "split": part.split}
        identity = _identity(source, row, known)
        text = clean_text(_fill(source, source.text, row, known) or "")
        yield text, label, identity if identity is None else clean_text(identity)


def _by_code(source: Source, need: dict[str, int] | None) -> dict[str, str] | None:
    if need is None:
        return None
    own = {
        label: source.labels[label].split() if label in source.labels else [label] for label in need
    }
    return {code: label for label, codes in own.items() for code in codes}


def _code(source: Source, row: dict[str, Any]) -> str | None:
    value = required(source.name, row, source.label, "--label-column")
    check_label(value, f"{source.label} of {source.name}")
    if source.by_ending and value is not None:
        name, dot, ending = str(value).rpartition(".")
        return dot + ending if name else None
    return None if value is None else str(value)


def _fill(
    source: Source,
    template: str,
    row: dict[str, Any],
    known: dict[str, Any],
    option: str = "--text-column",
) -> str | None:
    """A template with a row's values, and with what else is known of it; None where one of the values is null."""
    found = {
        name: known[name]
        if name in known and name not in row
        else required(source.name, row, name, option)
        for name in re.findall(r"{([^{}]+)}", template)
    }
    if any(value is None for value in found.values()):
        return None
    return re.sub(r"{([^{}]+)}", lambda match: str(found[match[1]]), template)


def _identity(source: Source, row: dict[str, Any], known: dict[str, Any]) -> str | None:
    """The id, which a recipe begins with the source's name; None: the text's hash will do."""
    if source.read == "hub" and source.identity == "{id}" and "id" not in row:
        return None
    filled = _fill(source, source.identity, row, known, "--id-column") if source.identity else None
    return filled if filled is None or source.read == "hub" else f"{source.name}/{filled}"
