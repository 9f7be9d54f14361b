"""From the bytes of a file to clean lines: compression, encodings, unusable characters."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from saefeat.io import UserError

UNUSABLE = re.compile("[\0\ud800-\udfff]")  # NUL and lone surrogates: no tokenizer takes them
_UNPACK: dict[str, Any] = {  # by suffix, what opens a packed file
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path: pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"),
}
_BLOCK = 2**20  # bytes that are read at once
_UNPACK_COMMANDS = {  # of archives and compressions that are not read
    ".zip": "unzip",
    ".tar": "tar xf",
    ".tgz": "tar xf",
    ".7z": "7z x",
    ".lz4": "lz4 -d",
    ".Z": "uncompress",
}
_MARKS = (  # byte-order marks. UTF-32 comes before UTF-16, whose mark it begins with
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def plain_name(path: Path) -> Path:
    """The path without the suffix of a supported compression: `c.jsonl` for `c.jsonl.gz`."""
    return path.with_suffix("") if path.suffix in _UNPACK else path


def refuse_archive(path: Path) -> None:
    """Raise UserError, with the command that unpacks it, for an unsupported kind of archive."""
    command = _UNPACK_COMMANDS.get(path.suffix) or _UNPACK_COMMANDS.get(plain_name(path).suffix)
    if command:
        raise UserError(
            f"{path} is an archive of a kind that is not supported; unpack it first: "
            f"{command} {path}"
        )


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked by its suffix (.gz, .bz2, .xz, .zst).

    Raises UserError if the file cannot be read or unpacked.
    """
    return b"".join(_blocks(path))


def _blocks(path: Path) -> Iterator[bytes]:
    """The content of a file, unpacked, block by block. Raises UserError as `read_bytes` does."""
    refuse_archive(path)
    try:
        with path.open("rb") as plain:
            if path.suffix not in _UNPACK or not plain.read(1):
                plain.seek(0)
                yield from iter(lambda: plain.read(_BLOCK), b"")
                return
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    try:
        with _UNPACK[path.suffix](path) as file:
            yield from iter(lambda: file.read(_BLOCK), b"")
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise UserError(
            f"{path} cannot be unpacked ({error}); it may be truncated or in another format"
        ) from error


def raw_lines(path: Path) -> Iterator[str]:
    """The lines of a file, unpacked: UTF-8, or UTF-16 or UTF-32 with a byte-order mark.

    They are split at line feeds only and come without them; a carriage return before one is kept.
    Raises UserError if the file cannot be read, unpacked or decoded.
    """
    rest, some = "", None
    for text in _decoded(path):
        if some is None:
            _check_encoding(path, text[:4096])
        some = (rest + text).split("\n")
        rest = some.pop()
        yield from some
    if rest:
        yield rest


def text_lines(path: Path) -> Iterator[str]:
    """As `raw_lines`, without carriage returns at the ends."""
    return (line.removesuffix("\r") for line in raw_lines(path))


def _decoded(path: Path) -> Iterator[str]:
    """The text of a file, block by block."""
    blocks = _blocks(path)
    first = next(blocks, b"")
    encoding = _encoding(first)
    decoder, lines = codecs.getincrementaldecoder(encoding)(), 1
    try:
        for block in chain([first], blocks):
            text = decoder.decode(block)
            lines += text.count("\n")
            yield text
        if last := decoder.decode(b"", final=True):
            yield last
    except UnicodeDecodeError as error:
        problem = f"begins like {encoding.upper()} text but is not ({error.reason})"
        if encoding.startswith("utf-8"):
            line = lines + error.object[: error.start].count(b"\n")
            problem = f"is not UTF-8 text (line {line}); convert it to UTF-8"
        raise UserError(f"{path} {problem}") from error


def _check_encoding(path: Path, start: str) -> None:
    if start.count("\0") * 4 > len(start):
        raise UserError(
            f"{path} is not UTF-8 text; it looks like UTF-16 without a byte-order mark; convert it "
            "to UTF-8"
        )


def decode_anyhow(data: bytes) -> str:
    """The text of any bytes. What cannot be decoded becomes replacement characters."""
    return data.decode(_encoding(data), errors="replace")


def _encoding(data: bytes) -> str:
    return next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")


def split_lines(text: str) -> list[str]:
    """Lines without their ends, split at line feeds only: sentences contain U+2028 and the like."""
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def clean_text(text: str) -> str:
    """Drop a leading byte-order mark; replace each NUL and lone surrogate by a space."""
    return UNUSABLE.sub(" ", text.lstrip("\ufeff"))


def is_usable(text: str) -> bool:
    """Whether UNUSABLE finds nothing; faster than the search in long texts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
