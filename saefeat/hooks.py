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
"""(activations [batch, tokens, d], steps int64 [batch, tokens]) -> replacement of the same shape.

A step is 0 on the prompt, n at the n-th generated token, and -1 where the value is kept: special tokens and padding.
"""


_WRITES_OVER = ("falcon",)  # families whose blocks add the attention's output to the feed-forward part's own tensor


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


def _tensor(output: Any, path: str) -> Tensor:
    try:
        found = output if isinstance(output, Tensor) else output[0]
    except (TypeError, LookupError):
        found = output
    if not isinstance(found, Tensor):
        raise UserError(f"the output of {path} is no tensor but {type(found).__name__}; name a module inside it")
    return found


@contextmanager
def capture(model: nn.Module, paths: tuple[str, ...]) -> Iterator[Captured]:
    """Read the outputs of modules by their dotted path in `model`.

    Use `captured.run(model, input_ids=...)` inside the block. Hooks are removed when it ends, whatever happens.
    """
    captured = Captured(paths)
    handles = []
    family = getattr(getattr(model, "config", None), "model_type", None)
    keep = Tensor.clone if family in _WRITES_OVER else lambda tensor: tensor

    def hook_for(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            captured.tensors[path] = keep(_tensor(output, path))
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
        edits: module path -> edit. An edit returns the replacement; positions at step -1 keep their value.
        special_ids: token ids that are never edited on the prompt; padding is not edited either. Generated tokens
            always are, with a cache and without.
    """
    handles = []
    steps = _Steps(special_ids)

    def look(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        past = None if cache is None else int(cache.get_seq_length())
        by_token = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None  # static caches bring others
        steps.read(kwargs.get("input_ids", args[0] if args else None), by_token, past)

    def hook_for(path: str, edit: Edit) -> Callable[..., Any]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            given = _tensor(output, path)
            at = steps.now
            old = given if at is None else _by_row(given, at.shape)
            if at is None or at.shape != old.shape[:2]:  # a forward pass on vectors: all of it is prompt
                at = torch.zeros(old.shape[:2], dtype=torch.int64, device=old.device)
            new = torch.where(at[..., None] >= 0, edit(old, at).to(old.dtype), old).view_as(given)
            return new if isinstance(output, Tensor) else (new, *output[1:])

        return hook

    try:
        handles.append(model.register_forward_pre_hook(look, with_kwargs=True))
        for path, edit in edits.items():
            handles.append(model.get_submodule(path).register_forward_hook(hook_for(path, edit)))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Steps:
    """The step of every position of the present forward pass (see `Edit`), from its token ids."""

    def __init__(self, special_ids: frozenset[int]) -> None:
        self.special = torch.tensor(sorted(special_ids), dtype=torch.int64)
        self.text: Tensor | None = None  # ids of the last pass, where it had no cache
        self.start: int | None = None  # tokens before the first generated one
        self.length = 0  # of all tokens in the last pass, with those in the cache
        self.now: Tensor | None = None  # int64 [batch, tokens]

    def read(self, ids: Tensor | None, mask: Tensor | None, past: int | None) -> None:
        """Look at one forward pass; mask [batch, tokens with those in the cache]; past: tokens in its cache, if any."""
        if ids is None:
            self.now = self.text = self.start = None
            return
        total = (past or 0) + ids.shape[1] if mask is None else mask.shape[1]
        if ids.shape[1] == 1 and total > 1:  # a step with a cache
            if self.start is None or total != self.length + 1:  # of a text whose beginning was not seen
                self.start = total - 1
            self.now = torch.full_like(ids, total - self.start)
        elif past is None and self.start is not None and self._goes_on(ids):
            step = torch.arange(ids.shape[1], device=ids.device) - self.start + 1
            self.now = torch.where(step > 0, step, self._prompt_steps(ids, mask))
        else:
            self.start = total
            self.now = self._prompt_steps(ids, mask)
        self.text = ids if past is None else None
        self.length = total

    def _goes_on(self, ids: Tensor) -> bool:
        """Whether this is the last pass's text with one more token, run without a cache."""
        if self.text is None or (len(ids), ids.shape[1] - 1) != self.text.shape:
            return False
        begun = (ids[:, None, :-1] == self.text).all(-1)  # beam search lets rows change places
        return bool(begun.any(1).all())

    def _prompt_steps(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        kept = torch.isin(ids, self.special.to(ids.device, ids.dtype))
        if mask is not None:
            kept |= ~mask[:, -ids.shape[1] :].bool()
        return -kept.long()


def site_width(lm: LanguageModel, site: Site) -> int:
    """Width d of a site, seen in a forward pass of one token."""
    ids = torch.tensor([[*lm.prefix, 0]], device=lm.device)
    with capture(lm.model, (site.path,)) as captured, torch.inference_mode():
        return captured.run(lm.model, input_ids=ids)[site.path].shape[-1]
