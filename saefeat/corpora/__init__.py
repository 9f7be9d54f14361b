"""Labelled text: loading, splits, windows and the plan of batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from saefeat.corpora.corpus import Corpus, half_of, hashed, load_corpus
from saefeat.corpora.recipes import PAPER_LABELS
from saefeat.corpora.text import clean_text
from saefeat.io import UserError
from saefeat.models import LanguageModel
from saefeat.tokens import counted_tokens, without_special

__all__ = [
    "BATCH_TOKENS",
    "GPU_BATCH_TOKENS",
    "PAPER_LABELS",
    "TOKEN_LIMIT",
    "WINDOW",
    "Batch",
    "Corpus",
    "Plan",
    "clean_text",
    "fill_budget",
    "first_by_hash",
    "half_of",
    "hashed",
    "in_hashed_order",
    "load_corpus",
    "make_batch",
    "make_plan",
    "plan_batches",
]

WINDOW = 1024
TOKEN_LIMIT = 256
BATCH_TOKENS = 512  # padded tokens of a batch on a CPU, where larger batches only add padding
GPU_BATCH_TOKENS = 16_384
_SLICE = 256  # texts that are tokenised before the budgets are looked at again


@dataclass
class Batch:
    """Examples that are run together, padded on the right.

    Attributes:
        positions: of the examples in the corpus, one per row.
        input_ids: int64 [rows, tokens].
        attention_mask: int64 [rows, tokens], 0 for padding.
        counted: bool [rows, tokens], whether a token is neither special nor padding nor of a
            prompt.
    """

    positions: list[int]
    input_ids: Tensor
    attention_mask: Tensor
    counted: Tensor


@dataclass
class Plan:
    """Which examples are run, and in which windows and batches.

    It is made before any forward pass, so that it is the same in every shard. A window is WINDOW
    consecutive examples of the corpus, and the unit of work of shards and resumes.

    Attributes:
        corpus: the corpus.
        tokens: position -> token ids of a chosen example, without added special tokens. They begin
            with those of its prompt.
        counts: position -> number of counted tokens.
        policy: how the examples were chosen, as artefacts record it.
        skipped: reason -> number of examples that were left out or cut.
        order: positions in the order of the windows; None for the corpus's own order. SAE
            training orders examples by hashed id.
        prompts: position -> number of tokens of the prompt, of the examples that have one.
    """

    corpus: Corpus
    tokens: dict[int, list[int]]
    counts: dict[int, int]
    policy: dict[str, Any]
    skipped: dict[str, int]
    order: list[int] | None = None
    prompts: dict[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of counted tokens."""
        return sum(self.counts.values())

    @property
    def window_count(self) -> int:
        """Number of windows, including those without chosen examples."""
        size = len(self.corpus) if self.order is None else len(self.order)
        return -(-size // WINDOW)

    def window(self, number: int) -> list[int]:
        """Positions of the chosen examples of a window."""
        start = number * WINDOW
        if self.order is not None:
            return self.order[start : start + WINDOW]
        return [i for i in range(start, min(start + WINDOW, len(self.corpus))) if i in self.tokens]

    def batches(self, lm: LanguageModel, positions: list[int]) -> Iterator[Batch]:
        """Batches of these examples."""
        tokens, count_bos = {i: self.tokens[i] for i in positions}, self.policy["count_bos"]
        return plan_batches(lm, tokens, count_bos=count_bos, prompts=self.prompts)


def plan_batches(
    lm: LanguageModel,
    tokens: dict[int, list[int]],
    *,
    count_bos: bool = False,
    prompts: Mapping[int, int] | None = None,
) -> Iterator[Batch]:
    """Sort examples by length and fill batches up to the device's budget of padded tokens.

    No example is split. `tokens` maps positions to token ids, `prompts` those of examples with a
    prompt to the number of its tokens. `count_bos`: count the tokens that the tokenizer puts before
    a text.
    """
    budget = BATCH_TOKENS if lm.device == "cpu" else GPU_BATCH_TOKENS
    extra = len(lm.prefix) + len(lm.suffix)
    rows: list[int] = []

    def batch() -> Batch:
        before = [(prompts or {}).get(i, 0) for i in rows]
        return make_batch(lm, rows, [tokens[i] for i in rows], count_bos=count_bos, prompts=before)

    for position in sorted(tokens, key=lambda i: (len(tokens[i]), i)):
        if rows and (len(rows) + 1) * (len(tokens[position]) + extra) > budget:
            yield batch()
            rows = []
        rows.append(position)
    if rows:
        yield batch()


def make_batch(
    lm: LanguageModel,
    positions: list[int],
    tokens: list[list[int]],
    *,
    count_bos: bool = False,
    prompts: Sequence[int] = (),
) -> Batch:
    """Put the model's special tokens around token lists and pad them on the right.

    `prompts`: by row, the number of tokens of the prompt; by default there are none.
    """
    rows = [[*lm.prefix, *ids, *lm.suffix] for ids in tokens]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [lm.pad_id] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    ends = [len(lm.prefix) + length if length else 0 for length in prompts]
    counted = counted_tokens(ids, mask, lm.special_ids, lm.counted_before(count_bos), ends)
    return Batch(positions, ids, mask, counted)


def make_plan(
    corpus: Corpus,
    lm: LanguageModel,
    *,
    split: str = "train",
    seed: int = 0,
    max_tokens: int | None = None,
    token_limit: int = TOKEN_LIMIT,
    mixed: bool = False,
    count_bos: bool = False,
) -> Plan:
    """Choose the examples of a split that are run.

    Args:
        split: train, test or all.
        seed: of the split, and of the order in which budgets are filled.
        max_tokens: budget of counted tokens per label, filled by hashed id; None for no limit.
        token_limit: texts are cut after so many tokens, those of their prompts among them.
        mixed: order the examples by hashed id instead of the corpus's order, for SAE training.
        count_bos: count the tokens that the tokenizer puts before a text, as SAE-LAPE was
            published.

    Raises:
        UserError: a label has no usable text in the split.
    """
    by_hash = in_hashed_order(corpus, corpus.positions(split, seed), seed)
    tokens, counts, skipped, prompts = fill_budget(
        corpus, lm, by_hash, max_tokens, token_limit, count_bos=count_bos
    )
    filled = {corpus.of[i] for i in tokens}
    for label in corpus.labels:
        if label not in filled:
            raise UserError(
                f"the label {label} of {corpus.name} has no usable text in the {split} split",
                "labels",
            )
    policy = {"split": split, "seed": seed, "max_tokens": max_tokens, "token_limit": token_limit}
    policy |= {"special": "left out", "count_bos": count_bos}
    order = list(tokens) if mixed else None
    return Plan(corpus, tokens, counts, policy, skipped, order, prompts)


def fill_budget(
    corpus: Corpus,
    lm: LanguageModel,
    positions: Iterable[int],
    budget: int | None,
    token_limit: int = TOKEN_LIMIT,
    *,
    count_bos: bool = False,
) -> tuple[dict[int, list[int]], dict[int, int], dict[str, int], dict[int, int]]:
    """Take examples in this order until each label has `budget` counted tokens (None: no limit).

    No more texts are tokenised than needed, so that a small budget costs the same for a corpus of
    any size.

    Returns:
        position -> token ids of the examples that are taken; position -> number of counted tokens;
        reason -> number of examples that were left out or cut before their label was full;
        position -> number of tokens of the prompt, where there is one.
    """
    tokens: dict[int, list[int]] = {}
    counts: dict[int, int] = {}
    prompts: dict[int, int] = {}
    skipped: Counter[str] = Counter()
    used: Counter[str] = Counter()

    def open_to(position: int) -> bool:
        return budget is None or used[corpus.of[position]] < budget

    special, extra = lm.special_ids, lm.counted_before(count_bos)
    waiting = filter(open_to, positions)
    while some := list(islice(waiting, _SLICE)):
        before = [corpus.prompts[i] if corpus.prompts else "" for i in some]
        texts = [corpus.texts[i] for i in some]
        rows, lengths = lm.tokenize_prompted(before, texts, token_limit + 1)
        for i, row, length in zip(some, rows, lengths, strict=True):
            if not open_to(i):
                continue
            kept = row[:token_limit]
            count = len(without_special(kept[length:], special))
            skipped["cut at the token limit"] += len(row) > token_limit
            skipped["no tokens"] += not count
            if count:
                tokens[i], counts[i] = kept, count + (0 if length else extra)
                used[corpus.of[i]] += counts[i]
                if length:
                    prompts[i] = length
    return tokens, counts, {reason: n for reason, n in sorted(skipped.items()) if n}, prompts


def in_hashed_order(corpus: Corpus, positions: Iterable[int], seed: int) -> list[int]:
    """Sort positions by hashed id, the order in which budgets are filled."""
    return sorted(positions, key=lambda i: (hashed(seed, "budget", corpus.ids[i]), i))


def first_by_hash(corpus: Corpus, positions: list[int], seed: int, n: int) -> list[int]:
    """Choose at most n examples per label by hashed id; return them in the corpus's order."""
    taken: Counter[str] = Counter()
    chosen = []
    for i in in_hashed_order(corpus, positions, seed):
        if taken[corpus.of[i]] < n:
            taken[corpus.of[i]] += 1
            chosen.append(i)
    return sorted(chosen)
