"""Weight files of SAEs: read without running what is in them, checked, and named as `SAE` does.

Weights may be larger than memory. They are mapped into memory where the file allows it and are
never copied as a whole: what has to change is changed part by part and, where it is large, written
into an unnamed file that is mapped in its place.
"""

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
from safetensors.torch import load_file, save_file
from torch import Tensor

from saefeat.io import UserError, cache_dir, row_blocks

_LARGE = 2**28  # bytes above which a changed tensor is put into a file
_KEPT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of matrices
_AXES = {"W_enc": ("d_in", "d_sae"), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a `.safetensors`, `.npz` or `.pt` file.

    Raises UserError where the file is damaged or holds anything but plain tensors.
    """
    if path.is_dir():
        raise UserError(
            f"{path} is a directory and should be the file of the weights; fetch or save it again"
        )
    readers: dict[str, Callable[[Path], Any]] = {
        ".safetensors": load_file,
        ".npz": _read_npz,
        ".pt": _read_pickle,
    }
    try:
        found = readers[path.suffix](path)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} cannot be read (a damaged pickle, or one of more than tensors); save its "
            "state_dict"
        ) from error
    except Exception as error:  # a damaged pickle or archive raises anything
        text = str(error).strip() or type(error).__name__
        first = re.split(r"\.?\s*\n|\.\s", text)[0].rstrip(".")
        raise UserError(f"{path} cannot be read ({first}); fetch or save it again") from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise UserError(f"{path} cannot be read (it holds more than tensors); save its state_dict")
    odd = next((name for name, value in found.items() if not _is_plain(value)), None)
    if odd is not None:
        raise UserError(
            f"{path}: {odd} is sparse, quantised or without data; save it as a plain tensor"
        )
    return {name: value.detach() for name, value in found.items()}


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _read_pickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _read_npz(path: Path) -> dict[str, Tensor]:
    """The numeric arrays of an archive. It may hold other things beside them."""
    with zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():
            raise ValueError(f"{broken} is damaged")
        found = {
            entry.filename.removesuffix(".npy"): _read_array(path, archive, entry)
            for entry in archive.infolist()
        }
    return {name: _as_tensor(array) for name, array in found.items() if array is not None}


def _as_tensor(array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(array)
    if isinstance(array, np.memmap) or not tensor.is_floating_point() or tensor.nbytes < _LARGE:
        return tensor
    return to_float32(tensor)


def _read_array(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray | None:
    """A numeric array of an archive; None for a member that is none.

    numpy itself always copies arrays of an archive into memory. An array that is stored without
    compression lies in the file as it is, so it is mapped from there: after the header of the ZIP
    member (30 bytes, the member's name and an extra field) and the header of the array.
    """
    with path.open("rb") as file, archive.open(entry) as member:
        if member.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
            return None
        member.seek(0)
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(member)
        if dtype.kind not in "biufc" or not dtype.isnative or dtype.itemsize > 8:
            return None  # torch has no such dtype
        file.seek(entry.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")  # of the name and of the extra field
        start = entry.header_offset + 30 + int(lengths.sum()) + member.tell()
        if entry.compress_type != zipfile.ZIP_STORED or start % dtype.itemsize:
            member.seek(0)  # compressed, or not aligned to the size of a number
            return np.lib.format.read_array(member, allow_pickle=False)
    order: Any = "F" if fortran else "C"
    # Copy on write: torch asks for writable memory, and nothing writes into it.
    return np.memmap(path, dtype, "c", start, shape, order)


def to_float32(tensor: Tensor, change: Callable[[Tensor], Tensor] = lambda rows: rows) -> Tensor:
    """A tensor in float32 with its rows changed; a large one is mapped from an unnamed file.

    Mapped memory can be dropped by the system where memory is short. The file disappears with the
    tensor. Where there is no room for the file, the tensor is made in memory.

    Args:
        change: function of some rows.
    """
    if tensor.numel() * 4 >= _LARGE:
        with suppress(OSError):
            cache_dir().mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=cache_dir()) as file:
                for rows in row_blocks(tensor):
                    file.write(change(rows.float()).contiguous().numpy().data)
                file.flush()
                return torch.from_numpy(np.memmap(file, np.float32, "c", shape=tuple(tensor.shape)))
    return change(tensor.float())


def sae_tensors(
    tensors: Mapping[str, Tensor],
    layout: Mapping[str, str],
    where: Path | str,
    size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """The tensors of an `SAE` by its own names, as its arguments.

    They are float32; matrices in half precision stay as they are. A single number stands for all
    units.

    Args:
        tensors: of the file.
        layout: name of `SAE` -> name in the file, which ends in `.T` where the file has the
            transpose.
        where: place of the tensors, for messages.
        size: d_in and d_sae; those of W_enc by default.

    Raises UserError for a tensor that is missing, has another shape, is empty, is not of a
    floating-point dtype, or is not finite.
    """
    d_in, d_sae = size or _size(tensors, layout["W_enc"])
    sizes = {"d_in": d_in, "d_sae": d_sae}
    found: dict[str, Any] = {}
    for name, theirs in layout.items():
        key = theirs.removesuffix(".T")
        shape = tuple(sizes[axis] for axis in _AXES.get(name, ("d_sae",)))
        wanted = shape if key == theirs else shape[::-1]
        tensor = _checked(tensors.get(key), wanted, f"{where}: {key}")
        found[name] = tensor if key == theirs else tensor.T
    return found


def _size(tensors: Mapping[str, Tensor], encoder: str) -> tuple[int, int]:
    """d_in and d_sae of an encoder; zeros where there is none."""
    tensor = tensors.get(encoder.removesuffix(".T"))
    if tensor is None or tensor.dim() != 2:
        return 0, 0
    rows, columns = tensor.shape
    return (columns, rows) if encoder.endswith(".T") else (rows, columns)


def _checked(tensor: Tensor | None, shape: tuple[int, ...], what: str) -> Tensor:
    """A tensor of this shape. Raises UserError where it cannot be one of an SAE."""
    if tensor is not None and tensor.dim() == 0 and len(shape) == 1:
        tensor = tensor.expand(shape)
    if tensor is None or tuple(tensor.shape) != shape:
        raise UserError(f"{what} is missing or has not the shape {shape}; fetch or save it again")
    if 0 in shape:
        raise UserError(f"{what} of the shape {shape} is empty; fetch or save it again")
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(
            f"{what} is {kind}, and weights are floating-point numbers; fetch or save it again"
        )
    if tensor.dim() != 2 or tensor.dtype not in _KEPT_DTYPES:
        tensor = to_float32(tensor)
    # Minimum and maximum of values with a NaN among them are both NaN.
    ends = [end for part in row_blocks(tensor) for end in part.aminmax()]
    if not torch.isfinite(torch.stack(ends)).all():
        raise UserError(f"{what} holds values that are not finite; fetch or train the SAE again")
    return tensor


def with_unit_decoder(found: Mapping[str, Tensor]) -> dict[str, Any]:
    """The same reconstructions with decoder rows of norm 1: their norms go into the encoder."""
    norms = torch.cat([rows.float().norm(dim=1) for rows in row_blocks(found["W_dec"])])
    return {
        **found,
        "W_dec": to_float32(
            found["W_dec"], lambda rows: rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
        ),
        "W_enc": to_float32(found["W_enc"], lambda rows: rows * norms),
        "b_enc": found["b_enc"] * norms,
    }


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors in float32 as a `.safetensors` file."""
    save_file({n: t.detach().float().cpu().contiguous() for n, t in tensors.items()}, path)
    path.chmod(0o644)  # safetensors lets nobody else read it
