"""The step of every position of a forward pass: 0 on the prompt, n at the n-th generated token, -1 where it is kept.

A step is a position minus the length of the prompt, so it is right for every way of decoding: with
a cache and without, several candidates at once (assisted decoding, prompt lookup), a prompt in
chunks, beams. The length of the prompt is known where `generate` was called. Outside it, several
tokens at once are a prompt, and single tokens that follow them are generated.
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


@dataclass
class _Generation:
    """One call of `generate`.

    Attributes:
        prompt: number of tokens of the prompt, padding included.
        mask: [rows, prompt] as given to `generate`, 0 on padding; None where none was given.
        seen: tokens of its last pass without a cache.
    """

    prompt: int
    mask: Tensor | None
    seen: int = 0


@dataclass(frozen=True)
class _Pass:
    """What a forward pass is called with: rows and tokens, their ids, the tokens in its cache before them."""

    rows: int
    tokens: int
    device: torch.device
    ids: Tensor | None  # None: a pass on vectors
    mask: Tensor | None  # [rows, tokens with those in the cache]
    cache: Any
    past: int


class Steps(threading.local):
    """Counts the forward passes of a model; each thread counts its own.

    Attributes:
        now: int64 [rows, tokens], steps of the present forward pass; None outside of one.
        ran: paths of the modules that were edited in it.
        nested: whether the present pass is inside a `generate` that another `generate` has called.
    """

    def __init__(self, special_ids: frozenset[int]) -> None:
        self.special = torch.tensor(sorted(special_ids), dtype=torch.int64)
        self.now: Tensor | None = None
        self.ran: set[str] = set()
        self._generations: list[_Generation] = []
        self._starts: WeakKeyDictionary[Any, int] = (
            WeakKeyDictionary()
        )  # cache -> length of its prompt
        self._ends: WeakKeyDictionary[Any, int] = (
            WeakKeyDictionary()
        )  # cache -> tokens that went into it
        self._text: Tensor | None = (
            None  # ids of the last pass, where it had no cache and was in no `generate`
        )
        self._start = 0  # of that text

    @property
    def nested(self) -> bool:
        return len(self._generations) > 1

    @contextmanager
    def generation(self, inputs: Any, options: Mapping[str, Any]) -> Iterator[None]:
        """A call of `generate`: its first argument, and those by name."""
        prompt = options.get("inputs_embeds")
        if prompt is None:
            prompt = options.get("input_ids") if inputs is None else inputs
        mask = options.get("attention_mask")
        # A prompt of nothing begins with one token (BOS). Candidates of an early exit go on from
        # the text so far.
        length = prompt.shape[1] if isinstance(prompt, Tensor) and prompt.dim() > 1 else 1
        if self._generations:
            length, mask = self._generations[0].prompt, self._generations[0].mask
        self._generations.append(_Generation(length, mask if _flat(mask) else None))
        self._text = None
        try:
            yield
        finally:
            self._generations.pop()

    def read(self, forward: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        """Look at a call of the model's forward. Raises UserError where its positions cannot be told."""
        self.ran.clear()
        call = self._pass(_arguments(forward, args, options))
        inside = self._generations[-1] if self._generations else None
        start = self._start_outside(call) if inside is None else _start_inside(inside, call)
        if call.cache is not None:
            self._starts[call.cache], self._ends[call.cache] = start, call.past + call.tokens
        self.now = self._steps(call, start, None if inside is None else inside.mask)

    def _pass(self, given: Mapping[str, Any]) -> _Pass:
        ids, vectors, mask = (
            given.get("input_ids"),
            given.get("inputs_embeds"),
            given.get("attention_mask"),
        )
        like = ids if isinstance(ids, Tensor) else vectors
        if not isinstance(like, Tensor) or like.dim() < 2:
            raise UserError(
                "a forward pass under an edit has neither input_ids [rows, tokens] nor inputs_embeds; give it one"
            )
        cache = _cache(given)
        return _Pass(
            like.shape[0],
            like.shape[1],
            like.device,
            ids if like is ids else None,
            mask if _flat(mask) else None,
            cache,
            self._past(cache),
        )

    def _past(self, cache: Any) -> int:
        """Tokens in a cache; those of one that does not tell (state-space models) are counted here."""
        if cache is None:
            return 0
        try:
            return int(cache.get_seq_length())
        except (ValueError, NotImplementedError):
            return self._ends.get(cache, 0)

    def _start_outside(self, call: _Pass) -> int:
        """Length of the prompt, of a pass that `generate` did not make."""
        if call.cache is None:
            goes_on = call.ids is not None and self._goes_on(call.ids)
            self._start = self._start if goes_on else call.tokens
            self._text = call.ids
            return self._start
        self._text = None
        if call.tokens > 1 or not call.past:
            return call.past + call.tokens
        return min(self._starts.get(call.cache, call.past), call.past)

    def _goes_on(self, ids: Tensor) -> bool:
        """Whether this is the last pass's text with one more token, run without a cache."""
        text = self._text
        return (
            text is not None
            and (len(ids), ids.shape[1] - 1) == text.shape
            and bool((ids[:, :-1] == text).all())
        )

    def _steps(self, call: _Pass, start: int, prompt_mask: Tensor | None) -> Tensor:
        columns = torch.arange(call.past, call.past + call.tokens, device=call.device)
        steps = (columns - start + 1).clamp(min=0).expand(call.rows, -1)
        kept = torch.zeros_like(steps, dtype=torch.bool)
        if call.ids is not None:
            kept |= torch.isin(call.ids, self.special.to(call.device, call.ids.dtype))
        if call.mask is not None:
            kept |= ~call.mask[:, -call.tokens :].bool()
        if (
            prompt_mask is not None and call.rows % len(prompt_mask) == 0
        ):  # several beams or continuations per row
            of = prompt_mask[:, columns[columns < prompt_mask.shape[1]]].bool()
            kept[:, : of.shape[1]] |= ~of.repeat_interleave(call.rows // len(prompt_mask), 0)
        return torch.where(steps > 0, steps, -kept.long())


def _start_inside(generation: _Generation, call: _Pass) -> int:
    """Length of the prompt, of a pass that `generate` made."""
    if call.cache is None:
        if (
            call.tokens <= generation.seen
        ):  # without a cache, the text of each pass is longer than the last
            raise UserError(
                f"a forward pass of generate has {call.tokens} tokens after one of {generation.seen}, and no cache "
                "that can be read, so the steps of an edit are unknown; use a cache class of transformers"
            )
        generation.seen = call.tokens
    if call.ids is None:  # prompt tuning puts vectors before the prompt
        generation.prompt = max(generation.prompt, call.past + call.tokens)
    return generation.prompt


def _arguments(forward: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, those of `**kwargs` among them."""
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


def _cache(given: Mapping[str, Any]) -> Any:
    """The argument that tells how many tokens it holds; None where the pass has none."""
    found = {
        id(value): value
        for value in given.values()
        if callable(getattr(value, "get_seq_length", None))
    }
    if len(found) > 1:
        raise UserError(
            "a forward pass under an edit has two caches, so the steps of its tokens are unknown"
        )
    for name, value in given.items():
        plain = value is None or isinstance(value, bool | int | Tensor) or id(value) in found
        if ("cache" in name or "past" in name) and not plain:
            raise UserError(
                f"a forward pass under an edit has a {name} of type {type(value).__name__}, which does not tell how "
                "many tokens it holds, so the steps of its tokens are unknown; use a cache class of transformers"
            )
    return next(iter(found.values()), None)


def _flat(mask: Any) -> bool:
    """Whether a mask marks tokens [rows, tokens]; static caches bring others."""
    return isinstance(mask, Tensor) and mask.dim() == 2
