"""Rows of a source: streams of the hub through `datasets`, and files and archives that are fetched whole."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from saefeat.corpora.columns import class_names, keys_to, named, one_split, walk
from saefeat.corpora.recipes import Source
from saefeat.io import UserError, cache_dir, file_sha256, make_dir

_TIMEOUT = 60  # seconds without a byte
_FIRST = 5  # seconds for the one question that is asked before a data set of the hub is read


def is_local(source: Source) -> bool:
    """Whether a source lies on this machine. An id of the hub does not, whatever folder of that name there is."""
    return "://" not in source.at and (source.read != "hub" or os.path.isabs(source.at))


def hub_revision(source: Source) -> str:
    """The commit that a source of the hub is read at; empty for others.

    One question without the client's own attempts, which take longer than ours: without a network
    it fails at once.
    """
    from huggingface_hub import HfApi

    if source.at.startswith("hf://datasets/"):
        repo, _, revision = source.at.removeprefix("hf://datasets/").partition("@")
    elif source.read == "hub" and not is_local(source):
        repo, revision = source.at, source.revision
    else:
        return ""
    found = HfApi().dataset_info(repo, revision=revision or None, timeout=_FIRST, expand=["sha"])
    return found.sha or revision


def read_rows(source: Source, code: str, split: str, shard: int) -> Iterator[dict[str, Any]]:
    """Rows of the files of a source that hold `code` (or, with a label column, every code), as column -> value."""
    path = source.files.format(code=code, split=split, shard=shard)
    if source.read == "hub":
        return _hub(source, split)
    if source.read == "archive":
        return _archive(_fetched(source, source.at), path)
    if source.read == "wili":
        return _wili(_fetched(source, source.at), split)
    if source.read == "lines":
        return _lines(_fetched(source, f"{source.at}/{path}"))
    if source.read == "tsv":
        return _tabbed(_stream("text", f"{source.at}/{path}"))
    return _stream(source.read, f"{source.at}/{path}")


def _stream(builder: str, url: str) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    # The builder is named, so that no script, card or configuration of the data set is looked at.
    return iter(load_dataset(builder, data_files=url, split="train", streaming=True))


def _tabbed(lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    # No CSV reader: a text may begin with a quotation mark, or be a number or `NA` as a whole.
    header = next(lines, {"text": ""})["text"].split("\t")
    for line in lines:
        yield dict(zip(header, line["text"].split("\t"), strict=False))


def _hub(source: Source, split: str) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    # Without the scheme, `datasets` would read a folder of that name in its place.
    at = source.at if is_local(source) else f"hf://datasets/{source.at}"
    streams = load_dataset(
        at, source.files or None, revision=source.revision or None, streaming=True
    )
    names = [str(name) for name in streams]
    stream = streams[
        one_split(names, source.name, f"hub:{source.name}:{source.files or 'default'}:", split)
    ]
    classes = class_names(stream.features, source.label)
    for row in stream:
        if classes is not None:
            # Beside its column, under the whole name, which is looked for first: the column may be
            # nested.
            row[source.label] = named(walk(row, keys_to(source.label, row) or ()), classes)
        yield row


# --------------------------------------------------------------------------- whole files


def _fetched(source: Source, url: str) -> Path:
    """A file on disk, its checksum compared where one is known; a local path stands for itself."""
    remote = "://" in url
    path = Path(url)
    if remote:
        folder = cache_dir() / "corpora" / "files" / hashlib.sha256(url.encode()).hexdigest()[:8]
        path = folder / Path(urlsplit(url).path).name
        if not path.exists():
            _download(url, path)
    if source.sha256 and file_sha256(path) != source.sha256:
        if remote:
            path.unlink()
        raise UserError(
            f"{url} is not the file that {source.name} is pinned to (its SHA-256 differs); try again"
        )
    return path


def _download(url: str, path: Path) -> None:
    make_dir(path.parent)
    # Beside the target, so that the last step is a rename, and two processes never share a name.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        partial = Path(folder) / "partial"
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, partial.open("wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)
            expected = answer.headers.get("Content-Length")
        if expected is not None and partial.stat().st_size != int(expected):
            raise ConnectionError(f"{partial.stat().st_size} of {expected} bytes came")
        os.replace(partial, path)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line in file:
            yield {"text": line.rstrip("\r\n")}


def _archive(path: Path, pattern: str) -> Iterator[dict[str, Any]]:
    """The lines of the members that match, members in order of their names."""
    found = False
    for data in _members(path, pattern):
        found = True
        try:
            lines = data.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError:
            continue  # MUREL's authors leave out files that are not UTF-8
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
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            file = (
                archive.extractfile(member) if fnmatch.fnmatchcase(member.name, pattern) else None
            )
            if file is not None:
                yield file.read()


def _wili(path: Path, split: str) -> Iterator[dict[str, Any]]:
    with zipfile.ZipFile(path) as archive:
        texts, codes = (
            archive.read(f"{part}_{split}.txt").decode().rstrip("\n").split("\n") for part in "xy"
        )
    if len(texts) != len(codes):
        raise UserError(f"{path}: x_{split}.txt has {len(texts)} lines, y_{split}.txt {len(codes)}")
    return iter([{"text": text, "code": code} for text, code in zip(texts, codes, strict=True)])
