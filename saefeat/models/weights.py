"""What identifies the weights of a model, in any dtype and wherever they are held."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from saefeat.io import UserError

_VERSION = "2:"
_ENTRIES = 4096  # of a weight
_STEP = 2_654_435_761  # a prime: the entries are of all rows and columns


def weights_fingerprint(model: nn.Module) -> str:
    """A mark of the names, the shapes and the signs of up to 4,096 entries of every weight: "2:" and 16 hex digits.

    Rounding to another floating-point dtype keeps the sign of every value, zeros included, and
    nothing else for sure. So a model has one fingerprint in float32, float16 and bfloat16, however
    often it was rounded. Training changes some signs. A change that keeps all signs, such as a
    module scaled by a positive factor, does not show. Weights that are stored as integers count by
    their values, and those of a tensor class of a library (torchao) as what they stand for.

    Raises UserError for weights that cannot be read: of an unknown tensor class, or without data.
    """
    digest = hashlib.sha256()
    names = {name for name, _ in model.named_parameters()}  # tied weights once
    for path, module in sorted(model.named_modules()):
        own = [
            (f"{path}.{name}".lstrip("."), name)
            for name, _ in module.named_parameters(recurse=False)
        ]
        own = [(whole, name) for whole, name in own if whole in names]
        if not own:
            continue
        with _loaded(module):
            for whole, name in own:
                weight = getattr(module, name)
                digest.update(f"{whole}|{tuple(weight.shape)}|".encode())
                digest.update(_sample(whole, weight))
    return _VERSION + digest.hexdigest()[:16]


def is_outdated(mark: object) -> bool:
    """Whether a fingerprint was made by an older version of saefeat, so that it says nothing of the weights at hand."""
    return isinstance(mark, str) and not mark.startswith(_VERSION)


def devices(model: nn.Module) -> Iterator[torch.device]:
    """The devices of the weights that are in memory: those offloaded to a disk are on none."""
    return (weight.device for weight in model.parameters() if not weight.is_meta)


def _loaded(module: nn.Module) -> AbstractContextManager[None]:
    """Bring the module's own weights back into memory where accelerate has offloaded them."""
    if not any(weight.is_meta for weight in module.parameters(recurse=False)):
        return nullcontext()
    try:
        from accelerate.utils import align_module_device
    except ImportError:
        return nullcontext()
    return align_module_device(module)


def _sample(name: str, weight: Tensor) -> bytes:
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
            f"the weight {name} of the model is {kind}, which cannot be read; load the model with its weights in memory"
        ) from error


def _plain(tensor: Tensor) -> Tensor:
    """The values of a tensor that a library has quantised or spread over devices."""
    if type(tensor).dequantize is not Tensor.dequantize or tensor.is_quantized:
        return tensor.dequantize()
    whole = getattr(tensor, "full_tensor", None)
    return tensor if whole is None else whole()
