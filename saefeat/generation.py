"""Generate from prompts, and measure text: perplexity, distinct trigrams, likelihood.

Nothing here knows of steering: inside `steering.apply` the same functions run an edited model, and
edit its logits.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from saefeat.config import Decoding
from saefeat.corpora import TOKEN_LIMIT
from saefeat.io import UserError
from saefeat.models import LanguageModel

SKIPPED = 5  # new tokens that perplexity leaves out: the switch of language is not judged
BATCH = 128  # prompts decoded together
LOGITS = 2**28  # greatest number of logits held at once

LogitEdit = Callable[[Tensor, Tensor], Tensor]
"""(logits float32 [rows, places, vocabulary], steps int64 [rows, places]) -> the edited logits.

The step of a place is 0 on the prompt and n at the n-th new token, as in `saefeat.hooks.Edit`.
"""
_EDITS: ContextVar[tuple[tuple[Any, LogitEdit], ...]] = ContextVar("logit edits", default=())


@contextmanager
def edited_logits(lm: LanguageModel, edits: Sequence[LogitEdit]) -> Iterator[None]:
    """Edit the logits of `generate`, `token_losses` and what is made of them, in the block."""
    token = _EDITS.set((*_EDITS.get(), *((lm.model, edit) for edit in edits)))
    try:
        yield
    finally:
        _EDITS.reset(token)


def _edits_of(lm: LanguageModel) -> list[LogitEdit]:
    return [edit for model, edit in _EDITS.get() if model is lm.model]


def edit_text_logits(lm: LanguageModel, logits: Tensor) -> Tensor:
    """The logits of texts, [rows, places, vocabulary], as `edited_logits` edits them.

    Of a text, all tokens are the prompt. The result has the dtype of the logits.
    """
    edits, edited = _edits_of(lm), logits
    steps = torch.zeros(logits.shape[:2], dtype=torch.int64, device=logits.device)
    for edit in edits:
        edited = edit(edited.float(), steps)
    return edited.to(logits.dtype)


def logit_processors(lm: LanguageModel, start: int) -> list[Any]:
    """The edits of `edited_logits` as logits processors of a `generate` of transformers.

    Args:
        start: tokens of the prompts in the batch, padding included.
    """
    edits = _edits_of(lm)
    return [_Edited(edits, start)] if edits else []


def encode_prompts(
    lm: LanguageModel, prompts: Sequence[str], new_tokens: int, *, chat: bool = False
) -> list[list[int]]:
    """Encode prompts to token ids, BOS included.

    Args:
        new_tokens: number of tokens that are to be generated.
        chat: put each prompt through the chat template, as the user's turn.

    Raises UserError when a prompt is empty or exceeds the model's context with the new tokens, or
    when the tokenizer has no chat template.
    """
    if chat and not getattr(lm.tokenizer, "chat_template", None):
        raise UserError(f"the model {lm.name} has no chat template; give plain prompts", "chat")
    limit = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
    rows = []
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise UserError(f"prompt {number} is empty; give it some text")
        if chat:
            turn = [{"role": "user", "content": prompt}]
            ids = lm.tokenizer.apply_chat_template(
                turn, add_generation_prompt=True, return_dict=True
            )["input_ids"]
        else:
            ids = lm.prefix + lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if limit and len(ids) + new_tokens > limit:
            raise UserError(
                f"prompt {number} has {len(ids)} tokens; with {new_tokens} more it exceeds {limit}"
            )
        rows.append(list(ids))
    return rows


def generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    repeat: int | None = None,
    repetition_penalty: float = 1.0,
    stops: Sequence[str] = (),
) -> list[list[int]]:
    """Generate the new tokens of each prompt, cut at the first end-of-text token.

    Prompt i has random numbers of its own, whatever else is in the batch and however the model is
    edited, so that a text does not depend on what it is generated with.

    Args:
        prompts: token ids, BOS included.
        repeat: prompts i and i + repeat are the same prompt under different edits, and share their
            random numbers; None: all prompts differ.
        repetition_penalty: divides positive logits, and multiplies negative ones, of tokens that
            the prompt or the text so far has.
        stops: no more tokens are generated for a text that has one of these strings. Its tokens
            are kept, and padding may follow: `cut_at_stops` cuts them.
    """
    from transformers import GenerationConfig, StoppingCriteriaList

    ends = end_tokens(lm)
    generator = torch.Generator().manual_seed(decoding.seed)
    shape = (repeat or len(prompts), decoding.max_new_tokens, decoding.top_k)
    uniform = torch.rand(shape, generator=generator).clamp(min=1e-20)
    # A fresh configuration: penalties and the like that the model brings are not our decoding.
    options = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(ends) or None,
        pad_token_id=lm.pad_id,
    )
    rows: list[list[int]] = []
    for start in range(0, len(prompts), BATCH):
        ids, mask = _pad_left(lm, prompts[start : start + BATCH])
        processors: list[Any] = []
        criteria = StoppingCriteriaList()
        if repetition_penalty != 1:
            processors.append(_Penalty(repetition_penalty, mask))
        processors += logit_processors(lm, ids.shape[1])
        if stops:
            criteria.append(_StopAfter(lm, stops, ids.shape[1]))
        if decoding.temperature > 0:
            numbers = uniform[torch.arange(start, start + len(ids)) % len(uniform)]
            gumbel = -(-numbers.log()).log().to(ids.device)
            processors.append(_Sampler(decoding, ids.shape[1], gumbel))
        with torch.inference_mode():
            out = lm.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=options,
                logits_processor=processors,
                stopping_criteria=criteria,
                **_keep_logits(lm, 1),
            )
        rows += out[:, ids.shape[1] :].tolist()
    return [list(takewhile(lambda token: token not in ends, row)) for row in rows]


class _Edited:
    """Edits of the logits as a logits processor.

    Args:
        start: tokens of the prompts in the batch, padding included.
    """

    def __init__(self, edits: Sequence[LogitEdit], start: int) -> None:
        self.edits, self.start = edits, start

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        steps = torch.full((len(ids), 1), ids.shape[1] - self.start, device=ids.device)
        logits = scores.float()[:, None]
        for edit in self.edits:
            logits = edit(logits, steps)
        return logits[:, 0]


class _Sampler:
    """Top-k sampling as a logits processor, with random numbers of its own for each row.

    By the Gumbel-max trick, the argmax of logits / temperature plus Gumbel noise is a sample of
    their softmax. Only the k best logits get noise, and only the argmax stays finite. That is far
    cheaper than drawing from a distribution over the whole vocabulary.

    Args:
        start: tokens of the prompts in the batch, padding included.
        noise: float32 [rows, new tokens, top_k], standard Gumbel.
    """

    def __init__(self, decoding: Decoding, start: int, noise: Tensor) -> None:
        self.decoding, self.start, self.noise = decoding, start, noise

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.topk(min(self.decoding.top_k, scores.shape[1]))
        noise = self.noise[:, ids.shape[1] - self.start, : best.values.shape[1]]
        pick = (best.values.float() / self.decoding.temperature + noise).argmax(1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, best.indices.gather(1, pick), 0.0)


class _Penalty:
    """Repetition penalty (arXiv 1909.05858) as a logits processor. Padding is not penalised.

    `mask`: int64 [rows, tokens], 0 on the padding of the prompts.
    """

    def __init__(self, penalty: float, mask: Tensor) -> None:
        self.penalty, self.padding = penalty, mask == 0

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        seen = ids.clone()
        start = self.padding.shape[1]
        seen[:, :start] = torch.where(self.padding, ids[:, start - 1, None], ids[:, :start])
        old = scores.gather(1, seen)
        new = torch.where(old > 0, old / self.penalty, old * self.penalty)
        return scores.scatter(1, seen, new)


class _StopAfter:
    """Stops a text that has one of some strings.

    `stop_strings` of transformers would also stop at a string that begins in the prompt.

    Args:
        start: tokens of the prompts in the batch, padding included.
    """

    def __init__(self, lm: LanguageModel, stops: Sequence[str], start: int) -> None:
        self.lm, self.stops, self.start = lm, stops, start

    def __call__(self, ids: Tensor, _scores: Any, **_options: Any) -> Tensor:
        texts = texts_of(self.lm, ids[:, self.start :].tolist())
        return torch.tensor([_has(text, self.stops) for text in texts], device=ids.device)


def _has(text: str, stops: Sequence[str]) -> bool:
    return any(stop in text for stop in stops)


def texts_of(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> list[str]:
    """Decode rows of token ids to texts, without special tokens."""
    return [lm.tokenizer.decode(list(row), skip_special_tokens=True) for row in rows]


def cut_at_stops(
    lm: LanguageModel, rows: Sequence[Sequence[int]], stops: Sequence[str]
) -> tuple[list[list[int]], list[str]]:
    """Cut continuations before the first of some strings: their tokens, and their texts.

    The first is the string that is complete first. A token of which a part stands before the string
    is not among the tokens; that part is in the text. A row is read token by token, so that what
    was generated after a string makes no difference.
    """
    if not stops:
        return [list(row) for row in rows], texts_of(lm, rows)
    cut = [_cut_at_stops(lm, row, stops) for row in rows]
    return [row for row, _ in cut], [text for _, text in cut]


def _cut_at_stops(
    lm: LanguageModel, row: Sequence[int], stops: Sequence[str]
) -> tuple[list[int], str]:
    texts = [""]  # of the first 0, 1, ... tokens
    for n in range(1, len(row) + 1):
        texts += texts_of(lm, [row[:n]])
        if _has(texts[n], stops):
            text = texts[n][: min(texts[n].find(stop) for stop in stops if stop in texts[n])]
            kept = max(m for m in range(n) if text.startswith(texts[m]))
            return list(row[:kept]), text
    return list(row), texts[-1]


def perplexities(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[Sequence[int]],
    skip: int = SKIPPED,
) -> list[float | None]:
    """Perplexity of each continuation after its first `skip` tokens, given its prompt.

    None for continuations of at most `skip` tokens. prompts, rows: token ids.
    """
    texts = [[*prompt, *row] for prompt, row in zip(prompts, rows, strict=True)]
    losses = _mean_losses(lm, texts, [len(row) - skip for row in rows])
    return [None if loss is None else perplexity(loss) for loss in losses]


def perplexity(loss: float) -> float:
    """exp of a mean loss in nats; infinite where that exceeds a float."""
    return math.exp(loss) if loss < 700 else math.inf


def text_losses(lm: LanguageModel, texts: Sequence[str], limit: int) -> list[float]:
    """Mean negative log-likelihood of each text, in nats per token.

    Texts are cut at `limit` tokens. nan for a text without tokens to predict.
    """
    ids = [lm.prefix + row for row in lm.tokenize(list(texts), limit)]
    losses = _mean_losses(lm, ids, [_predicted(lm, row) for row in ids])
    return [math.nan if loss is None else loss for loss in losses]


def _predicted(lm: LanguageModel, ids: Sequence[int]) -> int:
    """How many tokens of a text, its prefix included, are predicted."""
    return len(ids) - max(len(lm.prefix), 1)


def predictable(lm: LanguageModel, texts: Sequence[str]) -> list[str]:
    """The texts that have a token to predict."""
    rows = lm.tokenize(list(texts), TOKEN_LIMIT)
    pairs = zip(texts, rows, strict=True)
    return [text for text, row in pairs if _predicted(lm, lm.prefix + row) > 0]


def losses_by_label(
    lm: LanguageModel, texts: Mapping[str, Sequence[str]]
) -> dict[str, list[float | None]]:
    """Mean NLL of each text under the model as it is now, by label; None where there is none."""
    flat = [text for some in texts.values() for text in some]
    found = iter(text_losses(lm, flat, TOKEN_LIMIT))
    return {
        label: [None if math.isnan(loss := next(found)) else loss for _ in some]
        for label, some in texts.items()
    }


def _mean_losses(
    lm: LanguageModel, rows: Sequence[Sequence[int]], counts: Sequence[int]
) -> list[float | None]:
    """Mean of `token_losses` of each row, None where the count is not positive."""
    means: list[float | None] = [None] * len(rows)
    jobs = [i for i, n in enumerate(counts) if n > 0]
    found = token_losses(lm, [rows[i] for i in jobs], [counts[i] for i in jobs])
    for i, losses in zip(jobs, found, strict=True):
        means[i] = sum(losses) / len(losses)
    return means


def token_losses(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    counts: Sequence[int],
    logits_held: int | None = None,
) -> list[list[float]]:
    """Negative log-likelihoods (nats) of the last `counts[i]` tokens of each row.

    `logits_held`: greatest number of logits held at once; default LOGITS. A row is never split.
    """
    found: list[list[float]] = [[] for _ in rows]
    most = (logits_held or LOGITS) // lm.unembedding().shape[0]
    for group in _group_by_length(rows, counts, most):
        ids, mask = _pad_left(lm, [rows[i] for i in group])
        wanted = max(counts[i] for i in group)
        with torch.inference_mode():
            more = {**_position_ids(lm, mask), **_keep_logits(lm, wanted + 1)}
            logits = lm.model(input_ids=ids, attention_mask=mask, use_cache=False, **more).logits
            for place, i in enumerate(group):
                last = logits[place, -counts[i] - 1 : -1].float()
                last = edit_text_logits(lm, last[None])[0]
                loss = cross_entropy(last, ids[place, -counts[i] :], reduction="none")
                found[i] = loss.tolist()
    return found


def _group_by_length(
    rows: Sequence[Sequence[int]], counts: Sequence[int], most: int
) -> Iterator[list[int]]:
    """Group rows of similar length, with logits at `most` places; yields indices."""
    group: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        longest = max(counts[j] for j in [*group, i]) + 1
        if group and (len(group) + 1) * longest > most:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def distinct_trigrams(rows: Iterable[Sequence[int] | Sequence[str]]) -> float:
    """Share of distinct trigrams of tokens per row, mean over rows of at least 3 tokens."""
    trigrams = [list(zip(row, row[1:], row[2:], strict=False)) for row in rows]
    shares = [len(set(found)) / len(found) for found in trigrams if found]
    return sum(shares) / len(shares) if shares else 0.0


def _pad_left(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, int64 [rows, tokens], padded on the left."""
    pad = partial(pad_sequence, batch_first=True, padding_side="left")
    ids = [torch.tensor(row) for row in rows]
    mask = pad([torch.ones_like(row) for row in ids])
    return pad(ids, padding_value=lm.pad_id).to(lm.device), mask.to(lm.device)


def _position_ids(lm: LanguageModel, mask: Tensor) -> dict[str, Tensor]:
    """Positions counted from the first token after the padding. GPT-2 would count the padding."""
    if "position_ids" not in inspect.signature(lm.model.forward).parameters:
        return {}
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def _keep_logits(lm: LanguageModel, n: int) -> dict[str, Tensor]:
    """Options of a forward pass that computes logits at the last n positions only, if it has one.

    They are given as a tensor of indices. Given as a number, the model would slice the vectors to a
    view, for which torch copies the output projection once per row.
    """
    if "logits_to_keep" not in inspect.signature(lm.model.forward).parameters:
        return {}
    return {"logits_to_keep": torch.arange(-n, 0, device=lm.device)}


def end_tokens(lm: LanguageModel) -> set[int]:
    """Return the end-of-text tokens of model and tokenizer; each has one, several or none."""
    found = (lm.model.generation_config.eos_token_id, lm.tokenizer.eos_token_id)
    lists = [ends if isinstance(ends, list) else [ends] for ends in found]
    return {token for ends in lists for token in ends if token is not None}
