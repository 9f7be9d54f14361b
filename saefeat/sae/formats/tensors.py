"""Weight files of SAEs: read without running what is in them, checked, and named as `SAE` names them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from saefeat.io import UserError

_ROWS = 4096  # looked at together
_AXES = {"W_enc": ("d_in", "d_sae"), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}  # the others are [d_sae]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a `.safetensors`, `.npz` or `.pt` file; raises UserError where it holds anything else."""
    readers: dict[str, Callable[[Path], Any]] = {".safetensors": load_file, ".npz": _arrays, ".pt": _pickled}
    try:
        found = readers[path.suffix](path)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} cannot be read (a damaged pickle, or one of more than tensors); save its state_dict"
        ) from error
    except Exception as error:  # a damaged pickle or archive raises anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read ({first}); fetch or save it again") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path} cannot be read (it holds more than tensors); save its state_dict")
    return found


def _arrays(path: Path) -> dict[str, Tensor]:
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("it is one array and no archive")
    with file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def _pickled(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def canonical(
    tensors: Mapping[str, Tensor], layout: Mapping[str, str], where: Path | str, size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """The tensors of an `SAE` by its own names, float32: arguments of it.

    Args:
        layout: name of `SAE` -> name in the file, with `.T` at its end where the file has it transposed.
        where: of the tensors, for messages.
        size: d_in and d_sae; those of W_enc unless given.

    Raises UserError for one that is missing, of another shape or not finite. A lone number stands for all units.
    """
    found: dict[str, Any] = {}
    sizes = dict(zip(("d_in", "d_sae"), size, strict=True)) if size else {}
    for name, theirs in layout.items():
        key = theirs.removesuffix(".T")
        tensor = tensors.get(key)
        if tensor is not None and tensor.dim() == 2 and not sizes and name == "W_enc":
            sizes = dict(zip(("d_in", "d_sae"), tensor.shape[:: -1 if key != theirs else 1], strict=True))
        shape = tuple(sizes.get(axis, 0) for axis in _AXES.get(name, ("d_sae",)))
        if tensor is not None and tensor.dim() == 0 and len(shape) == 1:
            tensor = tensor.expand(shape)
        wanted = shape[::-1] if key != theirs else shape
        if tensor is None or tuple(tensor.shape) != wanted:
            raise UserError(f"{where}: {key} is missing or has not the shape {wanted}; fetch or save it again")
        # No copy where none is needed: weights stay in their file, mapped into memory.
        tensor = (tensor.T if key != theirs else tensor).float()
        if not all(torch.isfinite(rows).all() for rows in tensor.split(_ROWS)):
            raise UserError(f"{where}: {key} holds values that are not finite; fetch or train the SAE again")
        found[name] = tensor
    return found


def positive(cfg: Mapping[str, Any], key: str, where: Path | str) -> int:
    """A positive whole number of a configuration; raises UserError where it has none."""
    value = cfg.get(key)
    if type(value) is not int or value < 1:
        raise UserError(f"{where}: {key} is missing or not a positive number; add what the SAE was trained with")
    return value


def active(cfg: Mapping[str, Any], d_sae: int, where: Path | str) -> int:
    """The k of a TopK SAE; raises UserError where it is missing or greater than d_sae."""
    k = positive(cfg, "k", where)
    if k > d_sae:
        raise UserError(f"{where}: k {k} is greater than d_sae {d_sae}; correct it")
    return k


def figures(fvu: Any = None, l0: Any = None, dead: Any = None) -> dict[str, float]:
    """What files state of an SAE, as far as it can be: a part of its record."""
    told = {"fvu": fvu, "l0": l0, "dead": dead}
    return {name: float(value) for name, value in told.items()
            if type(value) in (int, float) and 0 <= value < 1e9}  # fmt: skip


def rest(share: Any) -> Any:
    """1 minus a share, where it is a number."""
    return 1 - share if type(share) in (int, float) else None


def json_object(value: Any, where: Path) -> dict[str, Any]:
    """The value where it is a JSON object; raises UserError where it is not."""
    if not isinstance(value, dict):
        raise UserError(f"{where} is not a JSON object; fetch or save it again")
    return value


def encoding_dtype(value: Any, where: Path | str) -> str:
    """The name of the dtype of the products in `encode`; raises UserError for one that cannot be."""
    if value not in ("float32", "bfloat16"):
        raise UserError(f"{where}: an SAE cannot encode with the dtype {value}; only float32 and bfloat16 can")
    return value
