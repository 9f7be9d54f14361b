"""Labelled text: sources, splits, windows and the plan of batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from saefeat.corpora.corpus import Corpus, hashed, load_corpus
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
    "in_hashed_order",
    "load_corpus",
    "make_batch",
    "make_plan",
    "plan_batches",
]

WINDOW = 1024
TOKEN_LIMIT = 256
BATCH_TOKENS = 512  # padded tokens of a batch on a CPU, where larger ones only add padding
GPU_BATCH_TOKENS = 16_384
_SLICE = 256  # texts that are tokenised before the budgets are looked at again


@dataclass
class Batch:
    """Examples that are run together: positions in the corpus and padded inputs [rows, tokens]."""

    positions: list[int]
    input_ids: Tensor
    attention_mask: Tensor
    counted: Tensor  # bool [rows, tokens]: neither special nor padding


@dataclass
class Plan:
    """Which examples are run, in which windows and batches; decided before any forward pass.

    Attributes:
        tokens: position -> token ids without added special tokens, of the chosen examples only.
        counts: position -> counted tokens.
        policy: what artefacts record of the choice.
        order: the examples' order when it is not the corpus's own (SAE training mixes them by
            hashed id).
    """

    corpus: Corpus
    tokens: dict[int, list[int]]
    counts: dict[int, int]
    policy: dict[str, Any]
    skipped: dict[str, int]
    order: list[int] | None = None

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def window_count(self) -> int:
        size = len(self.corpus) if self.order is None else len(self.order)
        return -(-size // WINDOW)

    def window(self, number: int) -> list[int]:
        """Positions of the chosen examples of a window."""
        start = number * WINDOW
        if self.order is not None:
            return self.order[start : start + WINDOW]
        return [i for i in range(start, min(start + WINDOW, len(self.corpus))) if i in self.tokens]

    def batches(self, lm: LanguageModel, positions: list[int]) -> Iterator[Batch]:
        """The batches of a window's examples."""
        return plan_batches(
            lm, {i: self.tokens[i] for i in positions}, count_bos=self.policy["count_bos"]
        )


def plan_batches(
    lm: LanguageModel, tokens: dict[int, list[int]], *, count_bos: bool = False
) -> Iterator[Batch]:
    """Cut examples into batches: sorted by length, filled to a budget of padded tokens, none split."""
    budget = BATCH_TOKENS if lm.device == "cpu" else GPU_BATCH_TOKENS
    extra = len(lm.prefix) + len(lm.suffix)
    rows: list[int] = []
    for position in sorted(tokens, key=lambda i: (len(tokens[i]), i)):
        if rows and (len(rows) + 1) * (len(tokens[position]) + extra) > budget:
            yield make_batch(lm, rows, [tokens[i] for i in rows], count_bos=count_bos)
            rows = []
        rows.append(position)
    if rows:
        yield make_batch(lm, rows, [tokens[i] for i in rows], count_bos=count_bos)


def make_batch(
    lm: LanguageModel, positions: list[int], tokens: list[list[int]], *, count_bos: bool = False
) -> Batch:
    """Pad token lists on the right, with the model's special tokens around them."""
    rows = [[*lm.prefix, *ids, *lm.suffix] for ids in tokens]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [lm.pad_id] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    counted = counted_tokens(ids, mask, lm.special_ids, len(lm.prefix) if count_bos else 0)
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
    """Choose examples of a split; `max_tokens` is a budget of counted tokens per label, filled by hashed id.

    `mixed`: order the examples by hashed id instead of the corpus's own order, for SAE training.
    `count_bos`: count the tokens that the tokenizer puts before a text, as SAE-LAPE was published.
    Raises UserError when a label has no usable text in the split.
    """
    by_hash = in_hashed_order(corpus, corpus.positions(split, seed), seed)
    tokens, counts, skipped = fill_budget(
        corpus, lm, by_hash, max_tokens, token_limit, count_bos=count_bos
    )
    for label in corpus.labels:
        if not any(corpus.of[i] == label for i in tokens):
            raise UserError(
                f"the label {label} of {corpus.name} has no usable text in the {split} split"
            )
    policy = {"split": split, "seed": seed, "max_tokens": max_tokens, "token_limit": token_limit}
    policy |= {"special": "left out", "count_bos": count_bos}
    return Plan(corpus, tokens, counts, policy, skipped, list(tokens) if mixed else None)


def fill_budget(
    corpus: Corpus,
    lm: LanguageModel,
    positions: Iterable[int],
    budget: int | None,
    token_limit: int = TOKEN_LIMIT,
    *,
    count_bos: bool = False,
) -> tuple[dict[int, list[int]], dict[int, int], dict[str, int]]:
    """Token ids and counted tokens of examples, taken in this order until each label has `budget` counted tokens.

    Also how many were left out or cut, and why, of those that came before their label was full.
    Texts are read in
    slices, and none beyond: a small budget costs as much for a large corpus as for a small one.
    """
    tokens: dict[int, list[int]] = {}
    counts: dict[int, int] = {}
    skipped: Counter[str] = Counter()
    used: Counter[str] = Counter()

    def open_to(position: int) -> bool:
        return budget is None or used[corpus.of[position]] < budget

    special, waiting = lm.special_ids, iter(positions)
    while some := list(islice(filter(open_to, waiting), _SLICE)):
        for i, row in zip(
            some, lm.tokenize([corpus.texts[i] for i in some], token_limit + 1), strict=True
        ):
            if not open_to(i):
                continue
            count = len(without_special(row[:token_limit], special))
            skipped["cut at the token limit"] += len(row) > token_limit
            skipped["no tokens"] += not count
            if count:
                tokens[i] = row[:token_limit]
                counts[i] = count + (len(lm.prefix) if count_bos else 0)
                used[corpus.of[i]] += counts[i]
    return tokens, counts, {reason: n for reason, n in sorted(skipped.items()) if n}


def in_hashed_order(corpus: Corpus, positions: Iterable[int], seed: int) -> list[int]:
    """Positions in the order of their hashed ids, in which budgets are filled."""
    return sorted(positions, key=lambda i: (hashed(seed, "budget", corpus.ids[i]), i))


def first_by_hash(corpus: Corpus, positions: list[int], seed: int, n: int) -> list[int]:
    """At most n examples of each label, chosen by hashed id, in the corpus's order."""
    taken: Counter[str] = Counter()
    chosen = []
    for i in in_hashed_order(corpus, positions, seed):
        if taken[corpus.of[i]] < n:
            taken[corpus.of[i]] += 1
            chosen.append(i)
    return sorted(chosen)
