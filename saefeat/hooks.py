"""`capture` and `intervene`: the only two places that touch hooks. The model itself is never changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saefeat.io import UserError
from saefeat.models import LanguageModel, Site

Edit = Callable[[Tensor, Tensor], Tensor]
"""(activations [batch, tokens, d], editable [batch, tokens] bool) -> replacement of the same shape."""


class _AllCaptured(Exception):
    """Ends a forward pass once every site has been read."""


@dataclass
class Captured:
    """The vectors of the last forward pass: path -> [batch, tokens, d]."""

    paths: tuple[str, ...]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def run(self, module: nn.Module, **inputs: Any) -> dict[str, Tensor]:
        """One forward pass, stopped after the last captured site. Raises UserError for a hook that did not fire."""
        self.tensors.clear()
        try:
            module(**inputs)
        except _AllCaptured:
            pass
        silent = [path for path in self.paths if path not in self.tensors]
        if silent:
            raise UserError(f"the hook on {silent[0]} did not fire in a forward pass; name a module that is run")
        shape = inputs["input_ids"].shape
        return {path: _by_row(tensor, shape) for path, tensor in self.tensors.items()}


def _by_row(tensor: Tensor, shape: torch.Size) -> Tensor:
    """[batch, tokens, d], also where a model (OPT) runs its feed-forward part on [batch * tokens, d]."""
    return tensor.view(*shape, -1) if tensor.dim() == 2 and len(tensor) == shape.numel() else tensor


def _tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def capture(model: nn.Module, paths: tuple[str, ...]) -> Iterator[Captured]:
    """Read the outputs of modules by their dotted path in `model`.

    Use `captured.run(model, input_ids=...)` inside the block. Hooks are removed when it ends, whatever happens.
    """
    captured = Captured(paths)
    handles = []

    def hook_for(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            captured.tensors[path] = _tensor(output)
            if len(captured.tensors) == len(paths):
                raise _AllCaptured

        return hook

    try:
        for path in paths:
            handles.append(model.get_submodule(path).register_forward_hook(hook_for(path)))
        yield captured
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def intervene(model: nn.Module, edits: Mapping[str, Edit], special_ids: frozenset[int] = frozenset()) -> Iterator[None]:
    """Replace the outputs of modules while the block runs.

    Args:
        model: a model whose forward takes `input_ids` (and `attention_mask`).
        edits: module path -> edit. An edit returns the replacement; positions that are not editable keep their value.
        special_ids: token ids that are never edited on the prompt; padding is not edited either. With a cache,
            decoded steps (one new token a row) are always edited.
    """
    handles = []
    editable: list[Tensor | None] = [None]

    def look(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        editable[0] = None if ids is None else _editable(ids, kwargs.get("attention_mask"), special_ids)

    def hook_for(edit: Edit) -> Callable[..., Any]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            given = _tensor(output)
            mask = editable[0]
            old = given if mask is None else _by_row(given, mask.shape)
            if mask is None or mask.shape != old.shape[:2]:
                mask = torch.ones(old.shape[:2], dtype=torch.bool, device=old.device)
            new = torch.where(mask[..., None], edit(old, mask).to(old.dtype), old).view_as(given)
            return new if isinstance(output, Tensor) else (new, *output[1:])

        return hook

    try:
        handles.append(model.register_forward_pre_hook(look, with_kwargs=True))
        for path, edit in edits.items():
            handles.append(model.get_submodule(path).register_forward_hook(hook_for(edit)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _editable(ids: Tensor, attention_mask: Tensor | None, special_ids: frozenset[int]) -> Tensor:
    decoding = ids.shape[1] == 1 and attention_mask is not None and attention_mask.shape[1] > 1
    if decoding:
        return torch.ones_like(ids, dtype=torch.bool)
    specials = torch.tensor(sorted(special_ids), dtype=ids.dtype, device=ids.device)
    mask = ~torch.isin(ids, specials)
    if attention_mask is not None and attention_mask.dim() == 2:
        mask &= attention_mask[:, -ids.shape[1] :].bool()
    return mask


def site_width(lm: LanguageModel, site: Site) -> int:
    """Width d of a site, seen in a forward pass of one token."""
    ids = torch.tensor([[*lm.prefix, 0]], device=lm.device)
    with capture(lm.model, (site.path,)) as captured, torch.inference_mode():
        return captured.run(lm.model, input_ids=ids)[site.path].shape[-1]
