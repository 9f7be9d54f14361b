"""The step of every position of a forward pass.

A step is 0 on the prompt, n at the n-th generated token, and -1 where the value is kept (special
tokens and padding of the prompt).

A forward pass does not say which of its tokens are the prompt: with a cache it holds the new tokens
only; without one, the whole text; several candidates at once under assisted decoding or prompt
lookup; a piece of a long prompt under chunked prefill; a row per beam. So a step is computed as the
position in the text (tokens in the cache before the pass included) minus the length of the prompt.
That is right for all of these, given the length of the prompt:

- Inside `generate` it is known where `generate` was called (`Steps.generation`).
- Outside, with a cache: several tokens at once are a prompt, and single tokens after them are
  generated. The length is kept per cache.
- Outside, without a cache: a text that is the last one plus one token goes on from it; any other is
  a prompt.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from saefeat.io import UserError
from saefeat.tokens import is_special


@dataclass
class _Generation:
    """One call of `generate`."""

    prompt_length: int  # tokens of the prompt, padding included
    mask: Tensor | None  # [rows, prompt] as given to `generate`, 0 on padding
    last_length: int = 0  # tokens of its last pass without a cache


@dataclass(frozen=True)
class _Pass:
    """A forward pass of [rows, tokens]."""

    rows: int
    tokens: int
    device: torch.device
    ids: Tensor | None  # int64 [rows, tokens]; None for a pass on vectors
    mask: Tensor | None  # [rows, past + tokens], where one was given
    cache: Any
    past: int  # tokens in the cache before the pass


class Steps(threading.local):
    """Follows the forward passes of a model; each thread follows its own.

    Attributes:
        current: int64 [rows, tokens], steps of the present forward pass; None outside of one.
        edited: paths of the modules that were edited in it.
    """

    def __init__(self, special_ids: frozenset[int]) -> None:
        self.special_ids = special_ids
        self.current: Tensor | None = None
        self.edited: set[str] = set()
        self._generations: list[_Generation] = []  # the innermost last
        # Per cache: length of the prompt, and tokens that went into it.
        self._prompt_lengths: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._cache_lengths: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        # The last pass without a cache and outside of `generate`: its ids and its prompt's length.
        self._last_ids: Tensor | None = None
        self._last_prompt_length = 0

    @property
    def nested(self) -> bool:
        """Whether the present pass is of a `generate` that another `generate` has called."""
        return len(self._generations) > 1

    @contextmanager
    def generation(self, inputs: Any, options: Mapping[str, Any]) -> Iterator[None]:
        """Follow a call of `generate`, with its first argument and those by name, in the block."""
        self._generations.append(self._start_generation(inputs, options))
        self._last_ids = None
        try:
            yield
        finally:
            self._generations.pop()

    def _start_generation(self, inputs: Any, options: Mapping[str, Any]) -> _Generation:
        if self._generations:  # a draft by the model's first layers goes on from the same prompt
            outer = self._generations[0]
            return _Generation(outer.prompt_length, outer.mask)
        prompt = options.get("inputs_embeds")
        if prompt is None:
            prompt = options.get("input_ids") if inputs is None else inputs
        # An empty prompt begins with one token (BOS).
        length = prompt.shape[1] if isinstance(prompt, Tensor) and prompt.dim() > 1 else 1
        mask = options.get("attention_mask")
        return _Generation(length, mask if _is_token_mask(mask) else None)

    def read_call(self, forward: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        """Set `current` for a call of the forward. Raises UserError where steps are unknown."""
        self.edited.clear()
        call = self._read_pass(_named_arguments(forward, args, options))
        if self._generations:
            inside = self._generations[-1]
            prompt, mask = _prompt_length_inside(inside, call), inside.mask
        else:
            prompt, mask = self._prompt_length_outside(call), None
        if call.cache is not None:
            self._prompt_lengths[call.cache] = prompt
            self._cache_lengths[call.cache] = call.past + call.tokens
        self.current = self._compute_steps(call, prompt, mask)

    def _read_pass(self, given: Mapping[str, Any]) -> _Pass:
        ids, vectors = given.get("input_ids"), given.get("inputs_embeds")
        mask = given.get("attention_mask")
        like = ids if isinstance(ids, Tensor) else vectors
        if not isinstance(like, Tensor) or like.dim() < 2:
            raise UserError(
                "a forward pass under an edit has neither input_ids [rows, tokens] nor "
                "inputs_embeds; give it one"
            )
        cache = _find_cache(given)
        ids, mask = ids if like is ids else None, mask if _is_token_mask(mask) else None
        rows, tokens = like.shape[:2]
        return _Pass(rows, tokens, like.device, ids, mask, cache, self._tokens_in(cache))

    def _tokens_in(self, cache: Any) -> int:
        """Return the number of tokens in a cache."""
        if cache is None:
            return 0
        try:
            return int(cache.get_seq_length())
        except (ValueError, NotImplementedError):  # caches of state-space models do not tell
            return self._cache_lengths.get(cache, 0)

    def _prompt_length_outside(self, call: _Pass) -> int:
        """Return the length of the prompt in a pass that `generate` did not make."""
        if call.cache is None:
            if call.ids is None or not self._continues_last_text(call.ids):
                self._last_prompt_length = call.tokens
            self._last_ids = call.ids
            return self._last_prompt_length
        self._last_ids = None
        if call.tokens > 1 or not call.past:
            return call.past + call.tokens
        return min(self._prompt_lengths.get(call.cache, call.past), call.past)

    def _continues_last_text(self, ids: Tensor) -> bool:
        """Return whether ids are the last text with one more token, run without a cache."""
        text = self._last_ids
        if text is None or (len(ids), ids.shape[1] - 1) != text.shape:
            return False
        return bool((ids[:, :-1] == text).all())

    def _compute_steps(self, call: _Pass, prompt: int, prompt_mask: Tensor | None) -> Tensor:
        columns = torch.arange(call.past, call.past + call.tokens, device=call.device)
        steps = (columns - prompt + 1).clamp(min=0).expand(call.rows, -1)
        unedited = torch.zeros_like(steps, dtype=torch.bool)
        if call.ids is not None:
            unedited |= is_special(call.ids, self.special_ids)
        if call.mask is not None:
            unedited |= ~call.mask[:, -call.tokens :].bool()
        # Several beams or continuations of a row of the prompt share its padding.
        if prompt_mask is not None and call.rows % len(prompt_mask) == 0:
            real = prompt_mask[:, columns[columns < prompt_mask.shape[1]]].bool()
            copies = call.rows // len(prompt_mask)
            unedited[:, : real.shape[1]] |= ~real.repeat_interleave(copies, 0)
        return torch.where(steps > 0, steps, -unedited.long())


def _prompt_length_inside(generation: _Generation, call: _Pass) -> int:
    """Return the length of the prompt in a pass that `generate` made."""
    if call.cache is None:
        if call.tokens <= generation.last_length:  # without a cache, each pass has a longer text
            raise UserError(
                f"a forward pass of generate has {call.tokens} tokens after one of "
                f"{generation.last_length}, and no cache that can be read, so the steps of an edit "
                "are unknown; use a cache class of transformers"
            )
        generation.last_length = call.tokens
    if call.ids is None:  # prompt tuning puts vectors before the prompt
        generation.prompt_length = max(generation.prompt_length, call.past + call.tokens)
    return generation.prompt_length


def _named_arguments(
    forward: Any, args: tuple[Any, ...], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a call by name, those of `**kwargs` among them."""
    signature = inspect.signature(forward)
    try:
        given = dict(signature.bind_partial(*args, **options).arguments)
    except TypeError:  # the call itself will say what is wrong with it
        return dict(options)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
        elif parameter.kind is parameter.VAR_POSITIONAL and given.pop(name, ()):
            given.setdefault("input_ids", args[0])
    return given


def _find_cache(given: Mapping[str, Any]) -> Any:
    """Return the argument that is a cache; None where the pass has none."""
    caches = [v for v in given.values() if callable(getattr(v, "get_seq_length", None))]
    found = {id(cache): cache for cache in caches}
    if len(found) > 1:
        raise UserError(
            "a forward pass under an edit has two caches, so the steps of its tokens are unknown"
        )
    for name, value in given.items():
        plain = value is None or isinstance(value, bool | int | Tensor) or id(value) in found
        if ("cache" in name or "past" in name) and not plain:
            raise UserError(
                f"a forward pass under an edit has a {name} of type {type(value).__name__}, which "
                "does not tell how many tokens it holds, so the steps of its tokens are unknown; "
                "use a cache class of transformers"
            )
    return next(iter(found.values()), None)


def _is_token_mask(mask: Any) -> bool:
    """Return whether a mask is [rows, tokens]; static caches bring others."""
    return isinstance(mask, Tensor) and mask.dim() == 2
