"""GGUF files as safetensors directories in the cache: shards joined, complete, verified."""

from __future__ import annotations

import errno
import hashlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from saefeat.io import UserError, cache_dir, file_sha256, make_dir, read_json, replacing, write_json

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})")  # as llama.cpp names them
_COUNT = "split.count"


def converted(gguf: Path, name: str | None = None) -> Path:
    """The safetensors directory of a GGUF model: made once, verified, rebuilt when damaged.

    Args:
        gguf: the file, or any of its shards, which lie beside it.
        name: of the directory; the file's own unless given.

    Raises UserError for a shard that is not there, and for a file that is damaged or lacks weights.
    """
    files = _shards(gguf)
    digests = [file_sha256(file) for file in files]
    digest = (
        digests[0] if len(files) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )
    match = _SHARD.fullmatch(gguf.stem)
    target = cache_dir() / "models" / f"{name or (match[1] if match else gguf.stem)}-{digest[:12]}"
    if _intact(target):
        return target
    try:
        with replacing(target) as temporary:
            _convert(files, temporary)
            made = {p.name: file_sha256(p) for p in sorted(temporary.iterdir())}
            write_json(
                temporary / "saefeat.json", {"gguf_sha256": digest, "files": made, "complete": True}
            )
            if _intact(target):
                raise FileExistsError(target)  # another process was faster, and may be reading it
    except OSError:
        if not _intact(target):
            raise
    return target


def _shards(gguf: Path) -> list[Path]:
    match = _SHARD.fullmatch(gguf.stem)
    if not match:
        return [gguf]
    count = int(match[3])
    files = [
        gguf.with_name(f"{match[1]}-{number:05d}-of-{match[3]}.gguf")
        for number in range(1, count + 1)
    ]
    lacking = [file.name for file in files if not file.is_file()]
    if lacking:
        raise UserError(
            f"the model file {gguf} is one of {count} shards, and {lacking[0]} is not beside it; "
            "fetch all of them"
        )
    return files or [gguf]


def _intact(directory: Path) -> bool:
    """Whether a conversion is what was written, and was found complete: earlier versions did not look."""
    try:
        record = read_json(directory / "saefeat.json")
        files = record["files"].items()
        return record.get("complete") is True and all(
            file_sha256(directory / name) == mark for name, mark in files
        )
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return False


def _convert(files: list[Path], out: Path) -> None:
    try:
        import gguf as _  # noqa: F401
    except ImportError as error:
        raise UserError(
            "reading a .gguf model needs the package gguf; install saefeat[demo]"
        ) from error
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with _one_file(files) as gguf:
            where: dict[str, Any] = {
                "pretrained_model_name_or_path": str(gguf.parent),
                "gguf_file": gguf.name,
            }
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **where,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(**where)
    except (MemoryError, UserError):
        raise
    except Exception as error:  # its readers check nothing, so damaged files raise anything
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"cannot read {files[0]} as a GGUF model ({said(error)}); fetch or write it again"
        ) from error
    model, info = loaded
    check_complete(f"{files[0]} as a GGUF model", info)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def check_complete(what: str, info: dict[str, Any]) -> None:
    """Raises UserError for a model that lacks weights by transformers' report: it would go on with random ones."""
    lacking = sorted(info["missing_keys"])
    if lacking:
        others = f" and {len(lacking) - 1} others" if len(lacking) > 1 else ""
        raise UserError(
            f"cannot load {what}: its weights lack {lacking[0]}{others}; fetch or save it again, whole"
        )


def said(error: Exception) -> str:
    """The first line of a message, with the second where it announces that."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])


@contextmanager
def _one_file(files: list[Path]) -> Iterator[Path]:
    """The model as one file: transformers reads no shards. They are joined beside the cache for the time of it."""
    from gguf import GGUFReader

    readers = [GGUFReader(file) for file in files]
    if len(files) == 1:
        field = readers[0].get_field(_COUNT)
        count = 1 if field is None else int(field.contents())
        if count > 1:
            raise UserError(
                f"the model file {files[0]} is one of {count} shards; give all of them the names that "
                f"they had, such as {files[0].stem}-00001-of-{count:05d}.gguf"
            )
        yield files[0]
        return
    with tempfile.TemporaryDirectory(
        dir=make_dir(cache_dir() / "models"), prefix=".joined-"
    ) as folder:
        joined = Path(folder) / "model.gguf"
        _join(readers, joined)
        yield joined


def _join(readers: list[Any], out: Path) -> None:
    from gguf import GGUFValueType, GGUFWriter

    first = readers[0].fields
    writer = GGUFWriter(out, first["general.architecture"].contents())
    for name, field in first.items():
        if (
            name.startswith(("GGUF.", "split.")) or name == "general.architecture"
        ):  # the writer makes its own
            continue
        kind = field.types[0]
        writer.add_key_value(
            name,
            field.contents(),
            kind,
            sub_type=field.types[-1] if kind == GGUFValueType.ARRAY else None,
        )
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.data.shape, tensor.data.dtype, tensor.n_bytes, tensor.tensor_type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()
