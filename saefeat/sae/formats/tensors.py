"""Read and check the weights of SAEs. No code in a file is run.

Weights may be larger than memory. They are mapped into memory if the file allows it, and never
copied as a whole. A tensor that has to be changed is changed in blocks of rows; a large one is
written to an unnamed file, which is mapped in its place.
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

    Raises UserError for a damaged file, and for one that holds anything but plain tensors.
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
    for name, value in found.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise UserError(
                f"{path}: {name} is sparse, quantised or without data; save it as a plain tensor"
            )
    return {name: value.detach() for name, value in found.items()}


def _read_pickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _read_npz(path: Path) -> dict[str, Tensor]:
    """The numeric arrays of an archive; other members are ignored."""
    with zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():
            raise ValueError(f"{broken} is damaged")
        arrays = {
            entry.filename.removesuffix(".npy"): _read_array(path, archive, entry)
            for entry in archive.infolist()
        }
    found = {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}
    for name, tensor in found.items():
        mapped = isinstance(arrays[name], np.memmap)
        if not mapped and tensor.is_floating_point() and tensor.nbytes >= _LARGE:
            found[name] = to_float32(tensor)
    return found


def _read_array(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray | None:
    """A numeric array of an archive; None for any other member.

    numpy always copies the arrays of an archive into memory. But an array that is stored without
    compression can be mapped from the file: its bytes follow the header of the ZIP member (30
    bytes, the member's name and an extra field) and the header of the array.
    """
    form = np.lib.format
    with path.open("rb") as file, archive.open(entry) as member:
        if member.read(len(form.MAGIC_PREFIX)) != form.MAGIC_PREFIX:
            return None
        member.seek(0)
        first = form.read_magic(member) == (1, 0)
        header = form.read_array_header_1_0 if first else form.read_array_header_2_0
        shape, fortran, dtype = header(member)
        if dtype.kind not in "biufc" or not dtype.isnative or dtype.itemsize > 8:
            return None  # torch has no such dtype
        file.seek(entry.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")  # of the name and of the extra field
        start = entry.header_offset + 30 + int(lengths.sum()) + member.tell()
        if entry.compress_type != zipfile.ZIP_STORED or start % dtype.itemsize:
            member.seek(0)  # compressed, or not aligned to the size of a number
            return form.read_array(member, allow_pickle=False)
    order: Any = "F" if fortran else "C"
    # Copy on write: torch asks for writable memory, and nothing writes into it.
    return np.memmap(path, dtype, "c", start, shape, order)


def to_float32(tensor: Tensor, change: Callable[[Tensor], Tensor] = lambda rows: rows) -> Tensor:
    """Convert a tensor to float32 and apply `change` to its rows, block by block.

    A large result is mapped from an unnamed file, which disappears with the tensor, because the
    system can drop mapped memory. It is held in memory if there is no room for the file.
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
    """The tensors of an `SAE`, as its arguments.

    They are float32; matrices in half precision keep their dtype. A single number in the file
    holds for all units.

    Args:
        layout: name in `SAE` -> name in the file, with `.T` if the file has the transpose.
        where: the file, for messages.
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
    if "gain" in found:  # every format has its logarithm
        found["gain"] = found["gain"].exp()
    return found


def _size(tensors: Mapping[str, Tensor], encoder: str) -> tuple[int, int]:
    """d_in and d_sae of an encoder; zeros if there is none."""
    tensor = tensors.get(encoder.removesuffix(".T"))
    if tensor is None or tensor.dim() != 2:
        return 0, 0
    rows, columns = tensor.shape
    return (columns, rows) if encoder.endswith(".T") else (rows, columns)


def _checked(tensor: Tensor | None, shape: tuple[int, ...], what: str) -> Tensor:
    """The tensor, checked. Raises UserError if it has another shape or unusable values."""
    if tensor is not None and tensor.dim() == 0 and len(shape) == 1:
        tensor = tensor.expand(shape)
    wrong = ""
    if tensor is None or tuple(tensor.shape) != shape:
        wrong = f"is missing or has not the shape {shape}"
    elif 0 in shape:
        wrong = f"of the shape {shape} is empty"
    elif not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        wrong = f"is {kind}, and weights are floating-point numbers"
    if tensor is None or wrong:
        raise UserError(f"{what} {wrong}; fetch or save it again")
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

    def unit(rows: Tensor) -> Tensor:
        return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)

    return {
        **found,
        "W_dec": to_float32(found["W_dec"], unit),
        "W_enc": to_float32(found["W_enc"], lambda rows: rows * norms),
        "b_enc": found["b_enc"] * norms,
    }


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors in float32 as a `.safetensors` file."""
    save_file({n: t.detach().float().cpu().contiguous() for n, t in tensors.items()}, path)
    path.chmod(0o644)  # safetensors lets nobody else read it
