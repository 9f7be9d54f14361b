"""Weight files of SAEs: read without running what is in them, checked, and named as `SAE` names them."""

from __future__ import annotations

import pickle
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from saefeat.io import UserError, cache_dir, in_parts

_LARGE = 2**28  # bytes of a tensor that is better in a file than in memory
_STORED = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
)  # dtypes in which matrices stay as they are
_AXES = {
    "W_enc": ("d_in", "d_sae"),
    "W_dec": ("d_sae", "d_in"),
    "b_dec": ("d_in",),
}  # the others are [d_sae]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a `.safetensors`, `.npz` or `.pt` file, mapped into memory where its form allows it.

    Raises UserError where it holds anything else.
    """
    if path.is_dir():
        raise UserError(
            f"{path} is a directory and should be the file of the weights; fetch or save it again"
        )
    readers: dict[str, Callable[[Path], Any]] = {
        ".safetensors": load_file,
        ".npz": _arrays,
        ".pt": _pickled,
    }
    try:
        found = readers[path.suffix](path)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} cannot be read (a damaged pickle, or one of more than tensors); save its state_dict"
        ) from error
    except Exception as error:  # a damaged pickle or archive raises anything
        first = re.split(r"\.?\s*\n|\.\s", str(error).strip() or type(error).__name__)[0].rstrip(
            "."
        )
        raise UserError(f"{path} cannot be read ({first}); fetch or save it again") from error
    if not isinstance(found, dict) or not all(
        isinstance(value, Tensor) for value in found.values()
    ):
        raise UserError(f"{path} cannot be read (it holds more than tensors); save its state_dict")
    odd = next((name for name, value in found.items() if not _is_plain(value)), None)
    if odd is not None:
        raise UserError(
            f"{path}: {odd} is sparse, quantised or without data; save it as a plain tensor"
        )
    return {name: value.detach() for name, value in found.items()}


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of numbers of an archive, which may hold other things beside them."""
    with zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():
            raise ValueError(f"{broken} is damaged")
        found = {
            entry.filename.removesuffix(".npy"): _array(path, archive, entry)
            for entry in archive.infolist()
        }
    return {name: _kept(array) for name, array in found.items() if array is not None}


def _kept(array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(array)
    copied = (
        tensor.is_floating_point() and tensor.nbytes >= _LARGE and not isinstance(array, np.memmap)
    )
    return settled(tensor) if copied else tensor


def _array(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray | None:
    """An array of numbers, at its place in the file where that can be; None for what is none."""
    with path.open("rb") as file, archive.open(entry) as member:
        if member.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
            return None
        member.seek(0)
        version = np.lib.format.read_magic(member)
        header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = header(member)
        if (
            dtype.kind not in "biufc" or not dtype.isnative or dtype.itemsize > 8
        ):  # of those torch has none
            return None
        file.seek(entry.header_offset + 26)
        names = np.frombuffer(
            file.read(4), "<u2"
        )  # lengths of the name and of the extra field before the data
        start = entry.header_offset + 30 + int(names.sum()) + member.tell()
        if (
            entry.compress_type != zipfile.ZIP_STORED or start % dtype.itemsize
        ):  # numbers lie at multiples of their size
            member.seek(0)
            return np.lib.format.read_array(member, allow_pickle=False)
    order: Any = "F" if fortran else "C"
    return np.memmap(
        path, dtype, "c", start, shape, order
    )  # torch wants it writable; nobody writes


def _pickled(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def settled(tensor: Tensor, change: Callable[[Tensor], Tensor] = lambda rows: rows) -> Tensor:
    """A tensor in float32, its rows changed; a large one in a file, as those of SAEs' own files.

    There it leaves memory where that is short, and it is made part by part. The file has no name
    and goes with the tensor. Without room for it the tensor is made in memory.
    """
    if tensor.numel() * 4 >= _LARGE:
        with suppress(OSError):
            cache_dir().mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=cache_dir()) as file:
                for rows in in_parts(tensor):
                    file.write(change(rows.float()).contiguous().numpy().data)
                file.flush()
                return torch.from_numpy(np.memmap(file, np.float32, "c", shape=tuple(tensor.shape)))
    return change(tensor.float())


def canonical(
    tensors: Mapping[str, Tensor],
    layout: Mapping[str, str],
    where: Path | str,
    size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """The tensors of an `SAE` by its own names, arguments of it: float32, matrices in half precision as they are.

    Args:
        layout: name of `SAE` -> name in the file, with `.T` at its end where the file has it
            transposed.
        where: of the tensors, for messages.
        size: d_in and d_sae; those of W_enc unless given.

    Raises UserError for one that is missing, of another shape, empty, of no floating-point dtype or
    not finite. A lone number stands for all units.
    """
    found: dict[str, Any] = {}
    sizes = dict(zip(("d_in", "d_sae"), size, strict=True)) if size else {}
    for name, theirs in layout.items():
        key = theirs.removesuffix(".T")
        tensor = tensors.get(key)
        if tensor is not None and tensor.dim() == 2 and not sizes and name == "W_enc":
            sizes = dict(
                zip(("d_in", "d_sae"), tensor.shape[:: -1 if key != theirs else 1], strict=True)
            )
        shape = tuple(sizes.get(axis, 0) for axis in _AXES.get(name, ("d_sae",)))
        if tensor is not None and tensor.dim() == 0 and len(shape) == 1:
            tensor = tensor.expand(shape)
        wanted = shape[::-1] if key != theirs else shape
        if tensor is None or tuple(tensor.shape) != wanted:
            raise UserError(
                f"{where}: {key} is missing or has not the shape {wanted}; fetch or save it again"
            )
        if 0 in wanted:
            raise UserError(
                f"{where}: {key} of the shape {wanted} is empty; fetch or save it again"
            )
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"{where}: {key} is {kind}, and weights are floating-point numbers; fetch or save it again"
            )
        # No copy where none is needed: weights stay in their file, mapped into memory.
        if tensor.dim() != 2 or tensor.dtype not in _STORED:
            tensor = settled(tensor)
        ends = [
            end for part in in_parts(tensor) for end in part.aminmax()
        ]  # NaN is both of its ends
        if not torch.isfinite(torch.stack(ends)).all():
            raise UserError(
                f"{where}: {key} holds values that are not finite; fetch or train the SAE again"
            )
        found[name] = tensor.T if key != theirs else tensor
    return found


def unit_decoder(found: dict[str, Tensor]) -> None:
    """Give decoder rows the length 1, and units their activations in lengths of them: the same reconstructions."""
    norms = torch.cat([rows.float().norm(dim=1) for rows in in_parts(found["W_dec"])])
    found["W_dec"] = settled(
        found["W_dec"], lambda rows: rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    )
    found["W_enc"], found["b_enc"] = (
        settled(found["W_enc"], lambda rows: rows * norms),
        found["b_enc"] * norms,
    )
