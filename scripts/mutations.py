"""Random damage to files: bytes, JSON values, safetensors, Parquet and lines."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.numpy import save_file

ODD = (
    None,
    True,
    -1,
    0,
    1,
    2**63,
    1e308,
    float("nan"),
    "",
    "x" * 300,
    "\ud800",
    "nan",
    "../..",
    [],
    {},
    [None],
    [[[[]]]],
    {"a": 1},
)


def mutate(path: Path, draw: Random) -> str:
    """Damage a file in place by a random mutation of its kind. Returns a description."""
    kinds: list[Callable[[Path, Random], str]] = [_bytes, _bytes, _replace]
    structured = {
        ".json": _json,
        ".safetensors": _safetensors,
        ".parquet": _parquet,
        ".jsonl": _lines,
        ".csv": _lines,
        ".tsv": _lines,
        ".txt": _lines,
    }.get(path.suffix)
    if structured:
        kinds += [structured] * 5
    return draw.choice(kinds)(path, draw)


def _replace(path: Path, draw: Random) -> str:
    how = draw.choice(("empty", "missing", "directory", "link to nothing", "text"))
    path.unlink()
    if how == "empty":
        path.touch()
    elif how == "directory":
        path.mkdir()
    elif how == "link to nothing":
        path.symlink_to("nowhere")
    elif how == "text":
        path.write_text("not what it was\n")
    return how


def _bytes(path: Path, draw: Random) -> str:
    data = bytearray(path.read_bytes())
    at, size = draw.randrange(max(len(data), 1)), draw.choice((1, 7, 64, 1000))
    how = draw.choice(("cut", "flip", "zeros", "noise", "insert", "remove", "again"))
    if how == "cut":
        del data[at:]
    elif how == "flip" and data:
        data[at] ^= 1 << draw.randrange(8)
    elif how in ("zeros", "noise"):
        part = slice(at, min(at + size, len(data)))
        data[part] = bytes(part.stop - at) if how == "zeros" else draw.randbytes(part.stop - at)
    elif how == "insert":
        data[at:at] = draw.randbytes(size)
    elif how == "remove":
        del data[at : at + size]
    else:
        data += data[at:]
    path.write_bytes(bytes(data))
    return f"{how} at byte {at}"


def _json(path: Path, draw: Random) -> str:
    value = json.loads(path.read_text(encoding="utf-8"))
    value, change = damaged(value, draw)
    path.write_text(json.dumps(value), encoding="utf-8")
    return change


def damaged(value: Any, draw: Random, trail: str = "") -> tuple[Any, str]:
    """A copy of a JSON value in which one member is odd, missing or renamed; and a description."""
    inner = isinstance(value, dict | list) and len(value) > 0
    if not inner or (trail and draw.random() < 0.3):
        odd = draw.choice(ODD)
        return odd, f"{trail or 'all'} = {str(odd)[:20]!r}"
    copy: Any = value.copy()
    key: Any = draw.choice(list(copy)) if isinstance(copy, dict) else draw.randrange(len(copy))
    how = draw.random()
    if how < 0.2:
        del copy[key]
        return copy, f"{trail}.{key} removed"
    if how < 0.3 and isinstance(copy, dict):
        copy[f"{key}x"] = copy.pop(key)
        return copy, f"{trail}.{key} renamed"
    copy[key], change = damaged(copy[key], draw, f"{trail}.{key}")
    return copy, change


def _safetensors(path: Path, draw: Random) -> str:
    with safe_open(str(path), framework="np") as file:
        metadata = file.metadata() or {}
        tensors: dict[str, np.ndarray] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    how = draw.choice(
        ("header", "header", "gone", "renamed", "dtype", "rows", "columns", "flat", "values", "big")
    )
    if how == "header" and metadata:
        key = draw.choice(sorted(metadata))
        try:
            value, change = damaged(json.loads(metadata[key]), draw)
            metadata[key] = json.dumps(value)
        except ValueError:
            metadata[key], change = "", "emptied"
        how = f"header {change}"
    elif how in ("gone", "renamed"):
        gone = tensors.pop(name)
        if how == "renamed":
            tensors[f"{name}x"] = gone
    elif how == "dtype":
        tensors[name] = tensor.astype(
            draw.choice((np.float16, np.float64, np.int32, np.uint8, np.bool_))
        )
    elif how in ("rows", "columns") and tensor.ndim:
        keep = tensor[: len(tensor) // 2] if how == "rows" else tensor[..., : tensor.shape[-1] // 2]
        tensors[name] = np.ascontiguousarray(keep)
    elif how == "flat":
        tensors[name] = tensor.reshape(-1)
    elif how == "values":
        tensors[name] = np.full_like(tensor, np.nan if tensor.dtype.kind == "f" else -1)
    else:
        _claim_more(path)
        return "more claimed than present"
    save_file(tensors, path, metadata=metadata)
    return f"{name} {how}"


def _claim_more(path: Path) -> None:
    """Write a header with a tensor that is far longer than the file."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    name = next(key for key in header if key != "__metadata__")
    header[name]["shape"] = [2**40]
    header[name]["data_offsets"][1] = header[name]["data_offsets"][0] + 2**42
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def _parquet(path: Path, draw: Random) -> str:
    table = pq.read_table(path)
    metadata = dict(table.schema.metadata or {})
    name = draw.choice(table.column_names)
    at = table.column_names.index(name)
    how = draw.choice(
        ("header", "header", "gone", "renamed", "strings", "nulls", "no rows", "odd values")
    )
    if how == "header" and metadata:
        key = draw.choice(sorted(metadata))
        try:
            value, change = damaged(json.loads(metadata[key]), draw)
            metadata[key] = json.dumps(value).encode()
        except ValueError:
            metadata[key], change = b"", "emptied"
        table, how = table.replace_schema_metadata(metadata), f"header {change}"
    elif how == "gone":
        table = table.remove_column(at)
    elif how == "renamed":
        table = table.rename_columns([f"{c}x" if c == name else c for c in table.column_names])
    elif how == "strings":
        table = table.set_column(
            at, name, pa.array([str(v) for v in table[name].to_pylist()], pa.string())
        )
    elif how == "nulls":
        table = table.set_column(
            at, table.schema.field(at), pa.nulls(len(table), table.schema.field(at).type)
        )
    elif how == "no rows":
        table = table.slice(0, 0)
    else:
        kind = table.schema.field(at).type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            odd = (
                draw.choice((-1, 10**6))
                if pa.types.is_integer(kind)
                else draw.choice((float("nan"), -1e30))
            )
            table = table.set_column(at, table.schema.field(at), pa.array([odd] * len(table), kind))
        elif pa.types.is_string(kind):
            table = table.set_column(
                at, table.schema.field(at), pa.array(["xx"] * len(table), kind)
            )
    pq.write_table(table, path)
    return f"{name} {how}"


def _lines(path: Path, draw: Random) -> str:
    lines = path.read_bytes().split(b"\n")
    at = draw.randrange(len(lines))
    odd = {
        "NUL": b"a\0b",
        "latin-1": "ä\u00ff".encode("latin-1"),
        "quote": b'"',
        "brace": b"{",
        "tabs": b"\t\t\t",
        "blank": b"   ",
        "huge": b"x" * 200_000,
        "number": b"17",
        "null": b"null",
        "BOM": b"\xef\xbb\xbfa,b",
        "surrogate": b'{"text": "\\ud800", "label": "de"}',
        "list": b'{"text": ["a"], "label": "de"}',
        "other keys": b'{"words": "a"}',
        "label null": b'{"text": "a", "label": null}',
    }
    how = draw.choice(sorted(odd))
    place = draw.choice(("in place of", "before", "inside", "in place of the first"))
    if place == "in place of":
        lines[at] = odd[how]
    elif place == "before":
        lines.insert(at, odd[how])
    elif place == "inside":
        middle = len(lines[at]) // 2
        lines[at] = lines[at][:middle] + odd[how] + lines[at][middle:]
    else:
        lines[0] = odd[how]
    path.write_bytes(b"\n".join(lines))
    return f"{how} {place} line {at}"


def copy(source: Path, target: Path) -> Path:
    """A copy of a file or directory."""
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    return target
