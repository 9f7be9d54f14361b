"""`capture` and `intervene`: the only two places that touch hooks. The model itself is never changed."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saefeat.io import UserError
from saefeat.models import LanguageModel, Site
from saefeat.steps import Steps

Edit = Callable[[Tensor, Tensor], Tensor]
"""(activations [batch, tokens, d], steps int64 [batch, tokens]) -> replacement of the same shape.

A step is 0 on the prompt, n at the n-th generated token, and -1 where the value is kept: special tokens and padding.
"""


_WRITES_OVER = (
    "falcon",
)  # families whose blocks add the attention's output to the feed-forward part's own tensor


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
            raise UserError(
                f"the hook on {silent[0]} did not fire in a forward pass; name a module that is run"
            )
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
        raise UserError(
            f"the output of {path} is no tensor but {type(found).__name__}; name a module inside it"
        )
    return found


@contextmanager
def capture(model: nn.Module, paths: tuple[str, ...]) -> Iterator[Captured]:
    """Read the outputs of modules by their dotted path in `model`.

    Use `captured.run(model, input_ids=...)` inside the block. Hooks are removed when it ends,
    whatever happens.
    """
    _check_not_compiled(model)
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
def intervene(
    model: nn.Module, edits: Mapping[str, Edit], special_ids: frozenset[int] = frozenset()
) -> Iterator[None]:
    """Replace the outputs of modules while the block runs.

    Args:
        model: a model whose forward takes `input_ids` (and `attention_mask`).
        edits: module path -> edit. An edit returns the replacement; positions at step -1 keep their
            value.
        special_ids: token ids that are never edited on the prompt; padding is not edited either.
            Generated tokens always are, with a cache and without.

    While the block runs, `model.generate` tells how long its prompt is, and does not compile the
    model. A compiled function that was made outside the block (`torch.compile(model.forward)`) and
    is called inside it runs no hook of
    the model: that is noticed by a warning alone, where no other pass was seen.

    Raises:
        UserError: the model is compiled (edits would not run), an edited module does not run in a
            forward pass, or the steps of a pass cannot be told (a cache of unknown kind,
            `generate_batch`).
    """
    _check_not_compiled(model)
    handles = []
    steps = Steps(special_ids)
    passes = 0

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal passes
        _check_not_tracing()
        passes += 1
        steps.read(module.forward, args, kwargs)

    def after(_module: nn.Module, _args: Any, _output: Any) -> None:
        steps.now = None
        silent = [path for path in edits if path not in steps.ran]
        if silent and not steps.nested:  # an early exit leaves later layers out
            raise UserError(
                f"the edit of {silent[0]} did not run in a forward pass; name a module that every pass runs; "
                f"and {_COMPILED}"
            )

    def hook_for(path: str, edit: Edit) -> Callable[..., Any]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            _check_not_tracing()
            steps.ran.add(path)
            given, at = _tensor(output, path), steps.now
            if at is None:
                raise UserError(
                    f"{path} was run outside a forward pass of the model; call the model, not compiled"
                )
            old = _by_row(given, at.shape)
            if at.shape != old.shape[:2]:
                raise UserError(
                    f"the output of {path} has shape {list(given.shape)} in a pass of {list(at.shape)} rows and "
                    "tokens; edit a module that gives one vector per token"
                )
            new = torch.where(at[..., None] >= 0, edit(old, at).to(old.dtype), old).view_as(given)
            return new if isinstance(output, Tensor) else (new, *output[1:])

        return hook

    try:
        handles.append(model.register_forward_pre_hook(look, with_kwargs=True))
        handles.append(model.register_forward_hook(after))
        for path, edit in edits.items():
            handles.append(model.get_submodule(path).register_forward_hook(hook_for(path, edit)))
        with _telling_generate(model, steps):
            yield
        if not passes:  # as where a compiled copy of the model was called
            warnings.warn(
                "no forward pass of the model was seen under an edit", RuntimeWarning, stacklevel=4
            )
    finally:
        for handle in handles:
            handle.remove()


_COMPILED = (
    "edits and captures need a model that is not compiled (load it anew, or compile it afterwards)"
)
_BATCHED = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


def _check_not_compiled(model: nn.Module) -> None:
    """Raises UserError for a compiled module: what was compiled runs without hooks that come later."""
    for path, module in model.named_modules():
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        if compiled or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
            raise UserError(f"{path or 'the model'} is compiled (torch.compile): {_COMPILED}")


def _check_not_tracing() -> None:
    """Raises UserError while torch.compile traces a hook: the trace would outlive the block."""
    if torch.compiler.is_compiling():
        raise UserError(f"the model is being compiled (torch.compile): {_COMPILED}")


@contextmanager
def _telling_generate(model: nn.Module, steps: Steps) -> Iterator[None]:
    """While the block runs, calls of `model.generate` are told to `steps`, and continuous batching is refused."""
    plain = getattr(model, "generate", None)
    if plain is None:
        yield
        return

    @functools.wraps(plain)
    def generate(inputs: Any = None, *args: Any, **options: Any) -> Any:
        # On a GPU, a static cache would have the forward pass compiled.
        if options.get("generation_config") is None:
            options["disable_compile"] = True
        else:
            options["generation_config"] = copy.deepcopy(options["generation_config"])
            options["generation_config"].disable_compile = True
        with steps.generation(inputs, options):
            return plain(inputs, *args, **options)

    def refuse(*_args: Any, **_options: Any) -> Any:
        raise UserError(
            "continuous batching (generate_batch) cannot be edited; use generate with a list of prompts"
        )

    own = {"generate": generate, **{name: refuse for name in _BATCHED if hasattr(model, name)}}
    before = {name: vars(model)[name] for name in own if name in vars(model)}
    try:
        for name, function in own.items():
            setattr(model, name, function)
        yield
    finally:
        for name in own:
            delattr(model, name)
            if name in before:
                setattr(model, name, before[name])


def site_width(lm: LanguageModel, site: Site) -> int:
    """Width d of a site, seen in a forward pass of one token."""
    ids = torch.tensor([[*lm.prefix, 0]], device=lm.device)
    with capture(lm.model, (site.path,)) as captured, torch.inference_mode():
        return captured.run(lm.model, input_ids=ids)[site.path].shape[-1]
