"""Convert GGUF models to safetensors directories in the cache: once each, complete and verified."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import with_config
from typing_extensions import TypedDict

from saefeat import schema
from saefeat.io import (
    UserError,
    cache_dir,
    file_sha256,
    first_line,
    is_disk_full,
    make_dir,
    replacing,
)
from saefeat.progress import Say, quiet, track

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})")  # as llama.cpp names them
_COUNT = "split.count"
_STEPS = 4  # of a conversion: read the header, the weights, the tokenizer, write


@with_config(schema.STRICT)
class _Record(TypedDict):
    """Content of `saefeat.json` in a converted model, by which damage is noticed."""

    gguf_sha256: str  # of the GGUF file, or of the digests of its shards
    files: dict[str, str]  # SHA-256 by name
    complete: bool  # whether the GGUF had all weights; missing in files of earlier versions


def convert(gguf: Path, name: str | None = None, say: Say = quiet) -> Path:
    """Return the safetensors directory of a GGUF model; it is converted if missing or damaged.

    Args:
        gguf: the file, or any of its shards, which lie beside it.
        name: of the directory; default the file's own.
        say: takes a line before the work, and its progress.

    Raises UserError for a missing shard, and for a file that is damaged or lacks weights.
    """
    files = _shards(gguf)
    digest = "".join(file_sha256(file) for file in files)
    if len(files) > 1:
        digest = hashlib.sha256(digest.encode()).hexdigest()
    match = _SHARD.fullmatch(gguf.stem)
    name = name or (match[1] if match else gguf.stem)
    target = cache_dir() / "models" / f"{name}-{digest[:12]}"
    if _intact(target):
        return target
    say(f"converting {name} to safetensors, which is done once and takes up to a minute")
    try:
        with replacing(target) as temporary:
            with track(say, f"convert {name}", _STEPS, "steps") as bar:
                _convert(files, temporary, bar.update)
            made = {p.name: file_sha256(p) for p in sorted(temporary.iterdir())}
            record = _Record(gguf_sha256=digest, files=made, complete=True)
            schema.write(_Record, temporary / "saefeat.json", record)
            if _intact(target):
                raise FileExistsError(target)  # another process was faster, and may be reading it
    except OSError:
        if not _intact(target):
            raise
    return target


def _shards(gguf: Path) -> list[Path]:
    """Return all files of a model, given one of them."""
    match = _SHARD.fullmatch(gguf.stem)
    if not match:
        return [gguf]
    count = int(match[3])
    names = [f"{match[1]}-{number:05d}-of-{match[3]}.gguf" for number in range(1, count + 1)]
    files = [gguf.with_name(name) for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"the model file {gguf} is one of {count} shards, and {missing[0]} is not beside it; "
            "fetch all of them"
        )
    return files or [gguf]


def _intact(directory: Path) -> bool:
    """Return whether a converted model is complete and has the bytes that were written."""
    try:
        record = schema.read(_Record, directory / "saefeat.json")
        marks = record["files"].items()
        return record["complete"] and all(file_sha256(directory / n) == mark for n, mark in marks)
    except (UserError, OSError):
        return False


def _convert(files: list[Path], out: Path, done: Callable[[], object]) -> None:
    """Write a model and its tokenizer to `out`; `done` is called after each step."""
    try:
        import gguf as _  # noqa: F401
    except ImportError as error:
        message = "reading a .gguf model needs the package gguf; install saefeat[demo]"
        raise UserError(message) from error
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    silence_transformers()
    try:
        with _headers_read_once(), _one_file(files) as gguf:
            done()
            folder, name = str(gguf.parent), gguf.name
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
            )
            done()
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
            done()
    except (MemoryError, UserError):
        raise
    except Exception as error:  # the readers check nothing, so damaged files raise anything
        if is_disk_full(error):
            raise
        raise UserError(
            f"cannot read {files[0]} as a GGUF model ({first_line(error)}); fetch or write it again"
        ) from error
    model, info = loaded
    check_complete(f"{files[0]} as a GGUF model", info)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    done()


def silence_transformers() -> None:
    """Turn off the progress bars and warnings of transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def check_complete(what: str, info: dict[str, Any]) -> None:
    """Raise UserError for a model that lacks weights, for which transformers takes random ones.

    `what` names the model in the message; `info` is the `output_loading_info` of transformers.
    """
    missing = sorted(info["missing_keys"])
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        lack = f"its weights lack {missing[0]}{others}"
        raise UserError(f"cannot load {what}: {lack}; fetch or save all of it again")


# --------------------------------------------------------------------------- reading GGUF


@contextmanager
def _headers_read_once() -> Iterator[None]:
    """Let transformers parse the header of each file once while the block runs.

    It would parse it for the configuration, the weights and the tokenizer. The header of Gemma has
    262,144 tokens and takes some ten seconds each time, which is most of a conversion.
    """
    import gguf

    reader = gguf.GGUFReader
    once = lru_cache(reader)
    gguf.GGUFReader = lambda path, *_: once(str(path))
    try:
        yield
    finally:
        gguf.GGUFReader = reader


@contextmanager
def _one_file(files: list[Path]) -> Iterator[Path]:
    """Yield the model as one file: shards, which transformers cannot read, are joined first."""
    from gguf import GGUFReader

    readers = [GGUFReader(file) for file in files]
    if len(files) == 1:
        field = readers[0].get_field(_COUNT)
        count = 1 if field is None else int(field.contents())
        if count > 1:
            raise UserError(
                f"the model file {files[0]} is one of {count} shards; give all of them the names "
                f"that they had, such as {files[0].stem}-00001-of-{count:05d}.gguf"
            )
        yield files[0]
        return
    folder = make_dir(cache_dir() / "models")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".joined-") as temporary:
        joined = Path(temporary) / "model.gguf"
        _join(readers, joined)
        yield joined


def _join(readers: list[Any], out: Path) -> None:
    """Write the tensors of all shards and the fields of the first to one file."""
    from gguf import GGUFValueType, GGUFWriter

    fields = readers[0].fields
    writer = GGUFWriter(out, fields["general.architecture"].contents())
    for name, field in fields.items():
        # The writer makes these itself.
        if name.startswith(("GGUF.", "split.")) or name == "general.architecture":
            continue
        kind = field.types[0]
        members = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=members)
    for tensor in (tensor for reader in readers for tensor in reader.tensors):
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
