"""The fingerprint of a model's weights, which is the same in all dtypes and on all devices."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from saefeat.io import UserError

_VERSION = "2:"  # before each fingerprint
_ENTRIES = 4096  # of each weight
_STEP = 2_654_435_761  # between entries; a prime, so that they come from all rows and columns


def weights_fingerprint(model: nn.Module) -> str:
    """Return a digest of the names, shapes and signs of the weights: "2:" and 16 hex digits.

    It reads up to 4,096 entries of every weight. Rounding to another floating-point dtype is only
    certain to keep the sign of every value, zeros included. So a model has the same fingerprint in
    float32, float16 and bfloat16, however often it was rounded. Training changes some signs; a
    change that keeps all signs, such as scaling by a positive factor, is not noticed. Of weights
    stored as integers the values are read, and of those in a library's tensor class (torchao) the
    dequantised values.

    Raises UserError for weights that cannot be read: of an unknown tensor class, or without data.
    """
    digest = hashlib.sha256()
    names = {name for name, _ in model.named_parameters()}  # tied weights once
    for path, module in sorted(model.named_modules()):
        members = [name for name, _ in module.named_parameters(recurse=False)]
        own = {f"{path}.{name}".lstrip("."): name for name in members}
        if not own.keys() & names:
            continue
        with _loaded(module):
            for full in (full for full in own if full in names):
                weight = getattr(module, own[full])  # read here, because it may be loaded here
                digest.update(f"{full}|{tuple(weight.shape)}|".encode())
                digest.update(_sample(full, weight))
    return _VERSION + digest.hexdigest()[:16]


def is_outdated(mark: object) -> bool:
    """Return whether a fingerprint is of an older version, so that it cannot be compared."""
    return isinstance(mark, str) and not mark.startswith(_VERSION)


def devices(model: nn.Module) -> Iterator[torch.device]:
    """Yield the devices of the weights in memory; weights offloaded to a disk have none."""
    return (weight.device for weight in model.parameters() if not weight.is_meta)


def _loaded(module: nn.Module) -> AbstractContextManager[None]:
    """Bring a module's own weights into memory while the block runs, if they are offloaded."""
    if not any(weight.is_meta for weight in module.parameters(recurse=False)):
        return nullcontext()
    try:
        from accelerate.utils import align_module_device
    except ImportError:
        return nullcontext()
    return align_module_device(module)


def _sample(name: str, weight: Tensor) -> bytes:
    """Return the signs, or the integers, of some entries of a weight."""
    try:
        flat = _plain(weight.detach()).reshape(-1)
        picks = torch.arange(min(flat.numel(), _ENTRIES), device=flat.device)
        if flat.numel() > _ENTRIES:
            picks = picks * _STEP % flat.numel()
        entries = flat[picks]
        if entries.is_floating_point():
            entries = torch.signbit(entries.float())
        return entries.cpu().numpy().tobytes()
    except (NotImplementedError, RuntimeError, TypeError) as error:
        kind = "without data" if weight.is_meta else f"held as {type(weight.detach()).__name__}"
        raise UserError(
            f"the weight {name} of the model is {kind}, which cannot be read; load the model with "
            "its weights in memory"
        ) from error


def _plain(tensor: Tensor) -> Tensor:
    """Return the values of a tensor that a library has quantised or spread over devices."""
    if type(tensor).dequantize is not Tensor.dequantize or tensor.is_quantized:
        return tensor.dequantize()
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()
