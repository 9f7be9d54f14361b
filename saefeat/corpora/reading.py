"""Rows of a source: streams through `datasets`, and files and archives that are fetched whole."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from saefeat.corpora.columns import choose_split, class_name, class_names, keys_to, value_at
from saefeat.corpora.failures import PAUSES, StreamBroken, is_temporary
from saefeat.corpora.sources import Source
from saefeat.io import UserError, atomic_path, cache_dir, file_sha256, make_dir
from saefeat.progress import Say, copy_bytes, quiet, track

_TIMEOUT = 60  # seconds without a byte
_STATE_ROWS = 1000  # between two notes of the position in a stream
_REVISION_TIMEOUT = 5  # seconds for the one request before a data set of the hub is read


def is_on_disk(source: Source) -> bool:
    """Whether a source is local. An id of the hub is not, even if a folder has that name."""
    return "://" not in source.at and (source.read != "hub" or os.path.isabs(source.at))


def hub_revision(source: Source) -> str:
    """The commit at which a source of the hub is read; empty for other sources.

    It makes one request with a short timeout and without the retries of the hub's client, so that
    it fails at once without a network.
    """
    from huggingface_hub import HfApi

    if source.at.startswith("hf://datasets/"):
        repo, _, revision = source.at.removeprefix("hf://datasets/").partition("@")
    elif source.read == "hub" and not is_on_disk(source):
        repo, revision = source.at, source.revision
    else:
        return ""
    found = HfApi().dataset_info(
        repo, revision=revision or None, timeout=_REVISION_TIMEOUT, expand=["sha"]
    )
    return found.sha or revision


def read_rows(
    source: Source, code: str, split: str, shard: int, say: Say = quiet
) -> Iterator[dict[str, Any]]:
    """Rows of one file of a source, as column -> value.

    `code` is that of the file's label; empty if the source has a label column. `shard` is the
    number of the file.
    """
    path = source.files.format(code=code, split=split, shard=shard)
    url = f"{source.at}/{path}"
    if source.read == "hub":
        return _hub(source, split)
    if source.read == "archive":
        return _archive(_fetch(source, source.at, say), path)
    if source.read == "wili":
        return _wili(_fetch(source, source.at, say), split)
    if source.read == "lines":
        return _lines(_fetch(source, url, say))
    if source.read == "tsv":
        return _tab_separated(_stream("text", url))
    return _stream(source.read, url)


def _stream(builder: str, url: str) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    # With a named builder, no script, card or configuration of the data set is read.
    return _resuming(load_dataset(builder, data_files=url, split="train", streaming=True))


def _resuming(stream: Any) -> Iterator[dict[str, Any]]:
    """Rows of a stream of `datasets`, which goes on at its position where the network fails.

    Raises StreamBroken if it fails several times without a row between, and what the stream raises
    before its first row or for other reasons.
    """
    state, since, failures = None, 0, 0  # the last position noted, rows since then
    while True:
        try:
            if state is not None:
                stream.load_state_dict(state)
            for row in islice(stream, since, None):
                yield row
                since, failures = since + 1, 0
                if since == _STATE_ROWS:
                    state, since = stream.state_dict(), 0
            return
        except Exception as error:  # `datasets` passes on the errors of fsspec and its clients
            if (state is None and not since) or not is_temporary(error):
                raise
            if failures == len(PAUSES):
                raise StreamBroken from error
            time.sleep(PAUSES[failures])
            failures += 1


def _tab_separated(lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    # Not by a CSV reader: a text may begin with a quotation mark, or be a number or `NA`.
    header = next(lines, {"text": ""})["text"].split("\t")
    for line in lines:
        yield dict(zip(header, line["text"].split("\t"), strict=False))


def _hub(source: Source, split: str) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    # Without the scheme, `datasets` would prefer a local folder of that name.
    at = source.at if is_on_disk(source) else f"hf://datasets/{source.at}"
    revision = source.revision or None
    streams = load_dataset(at, source.files or None, revision=revision, streaming=True)
    prefix = f"hub:{source.name}:{source.files or 'default'}:"
    stream = streams[choose_split([str(name) for name in streams], source.name, prefix, split)]
    classes = class_names(stream.features, source.label)
    for row in _resuming(stream):
        if classes is not None:
            # Under the full name, which is looked up first: the column may be nested.
            keys = keys_to(source.label, row) or ()
            row[source.label] = class_name(value_at(row, keys), classes)
        yield row


# --------------------------------------------------------------------------- whole files


def _fetch(source: Source, url: str, say: Say) -> Path:
    """Fetch the file of a URL into the cache; a local file is used in place.

    Raises UserError if its SHA-256 is not the one that the source states.
    """
    remote = "://" in url
    path = Path(url)
    if remote:
        folder = cache_dir() / "corpora" / "files" / hashlib.sha256(url.encode()).hexdigest()[:8]
        path = folder / Path(urlsplit(url).path).name
        if not path.exists():
            _download(url, path, say)
    if source.sha256 and file_sha256(path) != source.sha256:
        if remote:
            path.unlink()
        raise UserError(
            f"{url} is not the file that {source.name} is pinned to (its SHA-256 differs); try "
            "again"
        )
    return path


def _download(url: str, path: Path, say: Say) -> None:
    make_dir(path.parent)
    with (
        atomic_path(path) as partial,
        urllib.request.urlopen(url, timeout=_TIMEOUT) as answer,
        partial.open("wb") as file,
    ):
        length = answer.headers.get("Content-Length")
        total = None if length is None else int(length)
        with track(say, f"fetch {path.name}", total, "bytes", brief=True) as bar:
            copy_bytes(answer, file, bar)
        if total is not None and file.tell() != total:
            raise ConnectionError(f"received {file.tell()} of {total} bytes")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line in file:
            yield {"text": line.rstrip("\r\n")}


def _archive(path: Path, pattern: str) -> Iterator[dict[str, Any]]:
    """Lines of the members that match a pattern, in the order of the members' names."""
    found = False
    for data in _members(path, pattern):
        found = True
        try:
            lines = data.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError:
            continue  # the authors of MUREL leave out files that are not UTF-8
        yield from ({"text": line.strip()} for line in lines if line.strip())
    if not found:
        raise FileNotFoundError(pattern)


def _members(path: Path, pattern: str) -> Iterator[bytes]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(fnmatch.filter(archive.namelist(), pattern)):
                yield archive.read(name)
        return
    with tarfile.open(path) as archive:
        for name in sorted(fnmatch.filter(archive.getnames(), pattern)):
            if file := archive.extractfile(name):
                yield file.read()


def _wili(path: Path, split: str) -> Iterator[dict[str, Any]]:
    with zipfile.ZipFile(path) as archive:
        texts, codes = (
            archive.read(f"{part}_{split}.txt").decode().rstrip("\n").split("\n") for part in "xy"
        )
    if len(texts) != len(codes):
        raise UserError(
            f"{path}: x_{split}.txt has {len(texts)} lines, but y_{split}.txt has {len(codes)}"
        )
    return iter([{"text": text, "code": code} for text, code in zip(texts, codes, strict=True)])
