"""`capture` and `intervene`: the only two places that touch hooks.

The model itself is never changed. Hooks and the replacement of `generate` are removed when a block
ends, also after an exception.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saefeat.io import UserError
from saefeat.models import LanguageModel, Site
from saefeat.models.sites import split_input
from saefeat.steps import Steps

Edit = Callable[[Tensor, Tensor], Tensor]
"""(activations [batch, tokens, d], steps int64 [batch, tokens]) -> replacement of the same shape.

A step is 0 on the prompt, n at the n-th generated token, and -1 where the value is kept: special
tokens and padding of the prompt.
"""

# Families whose blocks add the attention's output to the feed-forward part's own output tensor.
_OVERWRITING = ("falcon",)
_COMPILED = (
    "edits and captures need a model that is not compiled (load it anew, or compile it afterwards)"
)
_BATCHED = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


# --------------------------------------------------------------------------- reading


class _AllCaptured(Exception):
    """Ends a forward pass when every site has been read."""


@dataclass
class Captured:
    """What modules gave (or read) in the last forward pass: path -> [batch, tokens, d]."""

    paths: tuple[str, ...]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def run(self, module: nn.Module, **inputs: Any) -> dict[str, Tensor]:
        """Make a forward pass that stops after the last captured site; return the outputs by path.

        Args:
            module: the model that `capture` was given.
            **inputs: of its forward; `input_ids` is needed.

        Raises UserError when one of the modules did not run.
        """
        self.tensors.clear()
        with suppress(_AllCaptured):
            module(**inputs)
        missing = [path for path in self.paths if path not in self.tensors]
        if missing:
            raise UserError(
                f"the hook on {missing[0]} did not fire in a forward pass; name a module that runs"
            )
        shape = inputs["input_ids"].shape
        return {path: _by_row(tensor, shape) for path, tensor in self.tensors.items()}


@contextmanager
def capture(model: nn.Module, paths: tuple[str, ...]) -> Iterator[Captured]:
    """Read the outputs of modules while the block runs, with `captured.run(model, input_ids=...)`.

    Where a path ends with `:input`, it is the module's input (see `Site`).

    Raises UserError when the model is compiled, or the output of a module is no tensor.
    """
    _check_not_compiled(model)
    captured = Captured(paths)
    family = getattr(getattr(model, "config", None), "model_type", None)
    keep = Tensor.clone if family in _OVERWRITING else lambda tensor: tensor

    def hook_for(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, value: Any) -> None:
            captured.tensors[path] = keep(_tensor(value, path))
            if len(captured.tensors) == len(paths):
                raise _AllCaptured

        return hook

    with ExitStack() as handles:
        for path in paths:
            handles.enter_context(_register(model, path, hook_for(path)))
        yield captured


def _register(model: nn.Module, path: str, hook: Callable[[nn.Module, Any], Any]) -> Any:
    """Call a hook with a module and its output, or its input for a path that ends so.

    Where the hook returns a value, it takes the place of the output or the input.
    """
    name, of_input = split_input(path)
    module = model.get_submodule(name)
    if of_input:
        return module.register_forward_pre_hook(hook)
    return module.register_forward_hook(lambda module, _inputs, output: hook(module, output))


def site_width(lm: LanguageModel, site: Site) -> int:
    """Return the width d of a site, seen in a forward pass of one token."""
    ids = torch.tensor([[*lm.prefix, 0]], device=lm.device)
    with capture(lm.model, (site.path,)) as captured, torch.inference_mode():
        return captured.run(lm.model, input_ids=ids)[site.path].shape[-1]


def _tensor(output: Any, path: str) -> Tensor:
    """Return the output of a module, or its first part where that is a tuple."""
    try:
        found = output if isinstance(output, Tensor) else output[0]
    except (TypeError, LookupError):
        found = output
    if not isinstance(found, Tensor):
        kind = type(found).__name__
        raise UserError(f"the output of {path} is {kind}, not a tensor; name a module inside it")
    return found


def _by_row(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return [batch, tokens, d] where a feed-forward part (OPT) gives [batch * tokens, d]."""
    flat = tensor.dim() == 2 and len(tensor) == shape.numel()
    return tensor.view(*shape, -1) if flat else tensor


# --------------------------------------------------------------------------- editing


@contextmanager
def intervene(
    model: nn.Module, edits: Mapping[str, Edit], special_ids: frozenset[int] = frozenset()
) -> Iterator[None]:
    """Replace the outputs of modules while the block runs.

    Args:
        model: a model whose forward takes `input_ids` (and `attention_mask`).
        edits: path of a site -> edit. An edit returns the replacement; positions at step -1 keep
            their value.
        special_ids: token ids that are never edited on the prompt; padding is not edited either.
            Generated tokens always are, with a cache and without.

    `generate` reports the length of its prompt while the block runs, and does not compile the
    model. A function compiled outside the block (`torch.compile(model.forward)`) runs no hooks when
    it is called inside. A warning says so where the block saw no other forward pass.

    Raises:
        UserError: the model is compiled, an edited module does not run in a forward pass, or the
            steps of a pass cannot be told (a cache of unknown kind, `generate_batch`).
    """
    _check_not_compiled(model)
    steps = Steps(special_ids)
    seen = 0  # forward passes

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal seen
        _check_not_tracing()
        seen += 1
        steps.read_call(module.forward, args, kwargs)

    def after(_module: nn.Module, _args: Any, _output: Any) -> None:
        steps.current = None
        missing = [path for path in edits if path not in steps.edited]
        if missing and not steps.nested:  # a draft by the first layers leaves later ones out
            raise UserError(
                f"the edit of {missing[0]} did not run in a forward pass; name a module that every "
                f"pass runs; and {_COMPILED}"
            )

    with ExitStack() as handles:
        handles.enter_context(model.register_forward_pre_hook(before, with_kwargs=True))
        handles.enter_context(model.register_forward_hook(after))
        for path, edit in edits.items():
            handles.enter_context(_register(model, path, _edit_hook(path, edit, steps)))
        with _observed_generate(model, steps):
            yield
    if not seen:  # as where a compiled copy of the model was called
        message = "no forward pass of the model was seen under an edit"
        warnings.warn(message, RuntimeWarning, stacklevel=4)


def _edit_hook(path: str, edit: Edit, steps: Steps) -> Callable[..., Any]:
    """Return a hook that edits a module's output (or input) where the step is not -1."""

    def hook(_module: nn.Module, output: Any) -> Any:
        _check_not_tracing()
        steps.edited.add(path)
        given, now = _tensor(output, path), steps.current
        if now is None:
            raise UserError(
                f"{path} ran outside a forward pass of the model; call the model, not compiled"
            )
        old = _by_row(given, now.shape)
        if now.shape != old.shape[:2]:
            raise UserError(
                f"the output of {path} has shape {list(given.shape)} in a pass of "
                f"{list(now.shape)} rows and tokens; edit a module that gives one vector per token"
            )
        new = torch.where(now[..., None] >= 0, edit(old, now).to(old.dtype), old).view_as(given)
        return new if isinstance(output, Tensor) else (new, *output[1:])

    return hook


@contextmanager
def _observed_generate(model: nn.Module, steps: Steps) -> Iterator[None]:
    """Report calls of `model.generate` to `steps` while the block runs; refuse continuous batching.

    A forward pass alone does not show which of its tokens are the prompt. Only `generate` knows.
    """
    plain = getattr(model, "generate", None)
    if plain is None:
        yield
        return

    @functools.wraps(plain)
    def generate(inputs: Any = None, *args: Any, **options: Any) -> Any:
        # On a GPU, a static cache would have the forward pass compiled.
        if (config := options.get("generation_config")) is None:
            options["disable_compile"] = True
        else:
            options["generation_config"] = config = copy.deepcopy(config)
            config.disable_compile = True
        with steps.generation(inputs, options):
            return plain(inputs, *args, **options)

    def refuse(*_args: Any, **_options: Any) -> Any:
        raise UserError(
            "continuous batching (generate_batch) cannot be edited; use generate with many prompts"
        )

    replaced = {"generate": generate, **{name: refuse for name in _BATCHED if hasattr(model, name)}}
    before = {name: vars(model)[name] for name in replaced if name in vars(model)}
    vars(model).update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            del vars(model)[name]
        vars(model).update(before)


# --------------------------------------------------------------------------- compiled models


def _check_not_compiled(model: nn.Module) -> None:
    """Raise UserError for a compiled module: compiled code runs without hooks added later."""
    for path, module in model.named_modules():
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        if compiled or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
            raise UserError(f"{path or 'the model'} is compiled (torch.compile): {_COMPILED}")


def _check_not_tracing() -> None:
    """Raise UserError while torch.compile traces a hook: the trace would outlive the block."""
    if torch.compiler.is_compiling():
        raise UserError(f"the model is being compiled (torch.compile): {_COMPILED}")
