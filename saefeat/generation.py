"""Generate from prompts and measure what came out: perplexity, distinct trigrams, likelihood of texts.

Nothing here knows of steering: inside `steering.apply` the same functions run an edited model.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from saefeat.config import Decoding
from saefeat.io import UserError
from saefeat.models import LanguageModel

SKIPPED = 5  # new tokens before perplexity is measured: the switch of language itself is not what is judged
BATCH = 128  # prompts decoded together
LOGITS = 2**28  # greatest number of logits held at once


def encode_prompts(
    lm: LanguageModel, prompts: Sequence[str], new_tokens: int, *, chat: bool = False
) -> list[list[int]]:
    """Token ids of each prompt, BOS included.

    chat: put each prompt through the chat template as the user's turn. Raises UserError for an
    empty prompt, one that does not fit the model's context with `new_tokens` more, or a tokenizer
    without a chat template.
    """
    if chat and not getattr(lm.tokenizer, "chat_template", None):
        raise UserError(f"the model {lm.name} has no chat template; leave --chat out")
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
) -> list[list[int]]:
    """The new tokens of each prompt (ids, BOS included), cut at the first end-of-text token.

    The i-th prompt has random numbers of its own, whatever stands beside it and however the model
    is edited.

    repeat: prompts i and i + repeat are the same prompt under another edit, and share their random
    numbers.
    """
    from transformers import GenerationConfig

    ends = set(_as_list(lm.model.generation_config.eos_token_id)) | set(
        _as_list(lm.tokenizer.eos_token_id)
    )
    generator = torch.Generator().manual_seed(decoding.seed)
    shape = (repeat or len(prompts), decoding.max_new_tokens, decoding.top_k)
    uniform = torch.rand(shape, generator=generator).clamp(min=1e-20)
    rows: list[list[int]] = []
    for start in range(0, len(prompts), BATCH):
        ids, mask = _padded(lm, prompts[start : start + BATCH])
        own = torch.arange(start, start + len(ids)) % len(uniform)
        sampler = _Sampler(decoding, ids.shape[1], -(-uniform[own].log()).log().to(ids.device))
        with torch.inference_mode():
            out = lm.model.generate(
                input_ids=ids,
                attention_mask=mask,
                # A fresh one: penalties and the like that the model brings along are not part of
                # our decoding.
                generation_config=GenerationConfig(
                    max_new_tokens=decoding.max_new_tokens,
                    do_sample=False,
                    eos_token_id=sorted(ends) or None,
                    pad_token_id=lm.pad_id,
                ),
                logits_processor=[sampler] if decoding.temperature > 0 else [],
                **_last(lm, 1),
            )
        rows += out[:, ids.shape[1] :].tolist()
    return [
        row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows
    ]


class _Sampler:
    """Top-k sampling as a logits processor: the greatest of the k best logits plus Gumbel noise is all that is left.

    Far cheaper than drawing from a distribution over the whole vocabulary, and each row has its own
    noise.
    """

    def __init__(self, decoding: Decoding, start: int, noise: Tensor) -> None:
        self.decoding, self.start, self.noise = (
            decoding,
            start,
            noise,
        )  # noise [rows, new tokens, top_k]

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.topk(min(self.decoding.top_k, scores.shape[1]))
        noise = self.noise[:, ids.shape[1] - self.start, : best.values.shape[1]]
        pick = (best.values.float() / self.decoding.temperature + noise).argmax(1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, best.indices.gather(1, pick), 0.0)


def texts_of(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> list[str]:
    """The text of each row of token ids, special tokens left out."""
    return [lm.tokenizer.decode(list(row), skip_special_tokens=True) for row in rows]


def perplexities(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[Sequence[int]],
    skip: int = SKIPPED,
) -> list[float | None]:
    """Perplexity of each continuation from token `skip` + 1 on, given its prompt; None for shorter ones."""
    jobs = [i for i, row in enumerate(rows) if len(row) > skip]
    values: list[float | None] = [None] * len(rows)
    texts = [[*prompts[i], *rows[i]] for i in jobs]
    for i, losses in zip(
        jobs, token_losses(lm, texts, [len(rows[i]) - skip for i in jobs]), strict=True
    ):
        values[i] = perplexity(sum(losses) / len(losses))
    return values


def perplexity(loss: float) -> float:
    """exp of a mean loss in nats; infinite where that is too great for a number."""
    return math.exp(loss) if loss < 700 else math.inf


def text_losses(lm: LanguageModel, texts: Sequence[str], limit: int) -> list[float]:
    """Mean negative log-likelihood (nats a token) of each text, cut at `limit` tokens; nan for an empty one."""
    ids = [lm.prefix + row for row in lm.tokenize(list(texts), limit)]
    counts = [max(len(row) - max(len(lm.prefix), 1), 0) for row in ids]
    losses = iter(
        token_losses(
            lm, [r for r, n in zip(ids, counts, strict=True) if n], [n for n in counts if n]
        )
    )
    return [sum(row) / n if n and (row := next(losses)) else math.nan for n in counts]


def token_losses(
    lm: LanguageModel, rows: Sequence[Sequence[int]], counts: Sequence[int]
) -> Iterator[list[float]]:
    """Negative log-likelihood (nats) of the last `counts[i]` tokens of each row, in the order of the rows."""
    found: dict[int, list[float]] = {}
    for group in _by_length(rows, counts, lm.unembedding().shape[0]):
        ids, mask = _padded(lm, [rows[i] for i in group])
        wanted = max(counts[i] for i in group)
        with torch.inference_mode():
            more = {**_positions(lm, mask), **_last(lm, wanted + 1)}
            logits = lm.model(input_ids=ids, attention_mask=mask, use_cache=False, **more).logits
            for place, i in enumerate(group):
                n = counts[i]
                loss = torch.nn.functional.cross_entropy(
                    logits[place, -n - 1 : -1].float(), ids[place, -n:], reduction="none"
                )
                found[i] = loss.tolist()
    return (found[i] for i in range(len(rows)))


def _by_length(
    rows: Sequence[Sequence[int]], counts: Sequence[int], vocabulary: int
) -> Iterator[list[int]]:
    """Indices of rows in groups of like length, whose logits fit in memory."""
    group: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        longest = max([counts[j] for j in group] + [counts[i]]) + 1
        if group and (len(group) + 1) * longest * vocabulary > LOGITS:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def distinct_trigrams(rows: Iterable[Sequence[int]]) -> float:
    """Share of distinct ones among all trigrams of tokens within each row, mean over rows of 3 tokens or more."""
    shares = []
    for row in rows:
        trigrams = list(zip(row, row[1:], row[2:], strict=False))
        if trigrams:
            shares.append(len(set(trigrams)) / len(trigrams))
    return sum(shares) / len(shares) if shares else 0.0


def _padded(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, padded on the left."""
    longest, pad = max(map(len, rows)), lm.pad_id
    gaps = [[pad] * (longest - len(row)) for row in rows]
    ids = [[*gap, *row] for gap, row in zip(gaps, rows, strict=True)]
    mask = [[0] * len(gap) + [1] * len(row) for gap, row in zip(gaps, rows, strict=True)]
    return torch.tensor(ids, device=lm.device), torch.tensor(mask, device=lm.device)


def _positions(lm: LanguageModel, mask: Tensor) -> dict[str, Tensor]:
    """Positions counted from the first token that is not padding, which GPT-2 does not see for itself."""
    if "position_ids" not in inspect.signature(lm.model.forward).parameters:
        return {}
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def _last(lm: LanguageModel, n: int) -> dict[str, Tensor]:
    """The option of a forward pass that gives logits at the last n positions only, where the model has it.

    As a tensor: picked by a number, the vectors are a view, for which torch copies the output
    projection once a row.
    """
    if "logits_to_keep" not in inspect.signature(lm.model.forward).parameters:
        return {}
    return {"logits_to_keep": torch.arange(-n, 0, device=lm.device)}


def _as_list(value: int | Sequence[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)
