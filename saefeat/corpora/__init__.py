"""Labelled text: loading, splits, windows and the plan of batches."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saefeat.corpora.ahead import ahead
from saefeat.corpora.chosen import Choice, Counts, Retokenized, kept_choice
from saefeat.corpora.corpus import Corpus, half_of, hashed, load_corpus
from saefeat.corpora.mixing import check_mixing, label_budgets
from saefeat.corpora.recipes import PAPER_LABELS
from saefeat.corpora.store import Strings
from saefeat.corpora.text import clean_text
from saefeat.io import UserError, cache_dir, fingerprint
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
    "hashed_order",
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
_KEPT_TOKENS = 2**24  # token ids that a plan keeps; of more, it makes those of a window anew
_SPARSE = 4  # windows of a large corpus hold chosen examples only if fewer than 1 in 4 are chosen
_BLOCK = 2**16  # positions whose labels are looked up at once


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
    consecutive examples of the corpus, and the unit of work of shards and resumes. Where a plan
    takes few of the examples of a large corpus, a window is WINDOW consecutive chosen examples:
    else each would hold a few texts. The policy says so then, under "windows".

    Attributes:
        corpus: the corpus.
        tokens: position -> token ids of a chosen example, without added special tokens. They begin
            with those of its prompt. A large plan keeps their numbers alone, and tokenises a text
            whenever it is asked for.
        counts: position -> number of counted tokens.
        policy: how the examples were chosen, as artefacts record it.
        skipped: reason -> number of examples that were left out or cut.
        order: chosen positions in the order of the windows; None where windows are cut from all
            positions of the corpus. SAE training orders examples by hashed id.
        prompts: position -> number of tokens of the prompt, of the examples that have one.
    """

    corpus: Corpus
    tokens: Mapping[int, list[int]]
    counts: Mapping[int, int]
    policy: dict[str, Any]
    skipped: dict[str, int]
    order: Sequence[int] | None = None
    prompts: Mapping[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of counted tokens."""
        if isinstance(self.counts, Counts):
            return int(self.counts.numbers.sum(dtype=np.int64))
        return sum(self.counts.values())

    @property
    def chosen(self) -> np.ndarray:
        """Positions of the chosen examples: int64, ascending."""
        if isinstance(self.counts, Counts):
            return self.counts.positions
        return np.array(sorted(self.tokens), np.int64)

    def numbers(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Numbers of counted tokens of chosen examples: int32."""
        if isinstance(self.counts, Counts):
            return self.counts.of(np.asarray(positions, np.int64))
        return np.array([self.counts[int(i)] for i in positions], np.int32)

    def lengths(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Numbers of token ids of chosen examples, without added special tokens: int32."""
        if isinstance(self.tokens, Retokenized):
            return self.tokens.lengths.of(np.asarray(positions, np.int64))
        return np.array([len(self.tokens[int(i)]) for i in positions], np.int32)

    @property
    def window_count(self) -> int:
        """Number of windows, including those without chosen examples."""
        size = len(self.corpus) if self.order is None else len(self.order)
        return -(-size // WINDOW)

    def window(self, number: int) -> list[int]:
        """Positions of the chosen examples of a window."""
        start = number * WINDOW
        if self.order is not None:
            return list(self.order[start : start + WINDOW])
        stop = min(start + WINDOW, len(self.corpus))
        if isinstance(self.counts, Counts):
            first, last = np.searchsorted(self.counts.positions, [start, stop])
            return self.counts.positions[first:last].tolist()
        return [i for i in range(start, stop) if i in self.tokens]

    def batches(self, lm: LanguageModel, positions: Sequence[int]) -> Iterator[Batch]:
        """Batches of these examples."""
        return self.make_batches(lm, self.cut(lm, positions))

    def cut(self, lm: LanguageModel, positions: Sequence[int]) -> list[list[int]]:
        """The positions of each batch of these examples. No text is tokenised for it."""
        return list(_cut(lm, dict(zip(positions, self.lengths(positions).tolist(), strict=True))))

    def make_batches(self, lm: LanguageModel, parts: Sequence[list[int]]) -> Iterator[Batch]:
        """Make batches, given the positions of each (see `cut`). Only these are tokenised."""
        positions = [i for part in parts for i in part]
        if isinstance(self.tokens, Retokenized):
            tokens = self.tokens.several(positions)
        else:
            tokens = {i: self.tokens[i] for i in positions}
        return _batches(lm, parts, tokens, self.policy["count_bos"], self.prompts)

    def ahead(self, batches: Iterable[list[Batch]]) -> Iterator[list[Batch]]:
        """The same lists of this plan's batches. A large plan makes the next one meanwhile."""
        return ahead(batches) if isinstance(self.tokens, Retokenized) else iter(batches)


def plan_batches(
    lm: LanguageModel,
    tokens: Mapping[int, list[int]],
    *,
    count_bos: bool = False,
    prompts: Mapping[int, int] | None = None,
) -> Iterator[Batch]:
    """Sort examples by length and fill batches up to the device's budget of padded tokens.

    No example is split. `tokens` maps positions to token ids, `prompts` those of examples with a
    prompt to the number of its tokens. `count_bos`: count the tokens that the tokenizer puts before
    a text.
    """
    parts = _cut(lm, {i: len(row) for i, row in tokens.items()})
    return _batches(lm, parts, tokens, count_bos, prompts or {})


def _cut(lm: LanguageModel, lengths: Mapping[int, int]) -> Iterator[list[int]]:
    """The positions of each batch, given their numbers of token ids."""
    budget = BATCH_TOKENS if lm.device == "cpu" else GPU_BATCH_TOKENS
    extra = len(lm.prefix) + len(lm.suffix)
    rows: list[int] = []
    for position in sorted(lengths, key=lambda i: (lengths[i], i)):
        if rows and (len(rows) + 1) * (lengths[position] + extra) > budget:
            yield rows
            rows = []
        rows.append(position)
    if rows:
        yield rows


def _batches(
    lm: LanguageModel,
    parts: Iterable[list[int]],
    tokens: Mapping[int, list[int]],
    count_bos: bool,
    prompts: Mapping[int, int],
) -> Iterator[Batch]:
    for part in parts:
        rows, before = [tokens[i] for i in part], [prompts.get(i, 0) for i in part]
        yield make_batch(lm, part, rows, count_bos=count_bos, prompts=before)


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
    temperature: float | None = None,
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
        temperature: at least 1. It makes `max_tokens` the budget of the label with the most
            examples in the split, and the budgets of the others smaller (see
            `saefeat.corpora.mixing`). None: all labels have the same budget.

    Raises:
        UserError: a label has no usable text in the split, or there is a temperature and no budget.
    """
    check_mixing(temperature, max_tokens)
    policy = {"split": split, "seed": seed, "max_tokens": max_tokens, "token_limit": token_limit}
    policy |= {"special": "left out", "count_bos": count_bos}
    if temperature is not None:
        policy["temperature"] = float(temperature)

    def fill() -> Choice:
        by_hash = hashed_order(corpus, corpus.in_split(split, seed), seed)
        budget: int | list[int] | None = max_tokens
        if temperature is not None and max_tokens is not None:
            sizes = np.bincount(corpus.codes[by_hash], minlength=len(corpus.labels))
            budget = label_budgets(sizes.tolist(), max_tokens, temperature)
        return fill_budget(corpus, lm, by_hash, budget, token_limit, count_bos=count_bos)

    mark = lm.tokenizer_mark if isinstance(corpus.texts, Strings) else None
    if mark is None:
        tokens, counts, skipped, prompts = fill()
    else:  # processes that share a large corpus plan it once
        key = fingerprint([corpus.fingerprint, bool(corpus.prompts), policy, mark])
        place = cache_dir() / "corpora" / "plans" / key
        tokens, counts, skipped, prompts = kept_choice(
            place, fill, _tokenizer(corpus, lm, token_limit)
        )
    large = isinstance(counts, Counts)
    order = counts.order if large else np.fromiter(tokens, np.int64, len(tokens))
    filled = set(np.unique(corpus.codes[order]).tolist())
    for code, label in enumerate(corpus.labels):
        if code not in filled:
            raise UserError(
                f"the label {label} of {corpus.name} has no usable text in the {split} split",
                "labels",
            )
    plan = Plan(corpus, tokens, counts, policy, skipped, prompts=prompts)
    if mixed:
        plan.order = array("q", order.tobytes()) if large else list(tokens)
    elif isinstance(corpus.texts, Strings) and len(order) * _SPARSE < len(corpus):
        plan.order = array("q", plan.chosen.tobytes())
        policy["windows"] = "of chosen examples"
    return plan


def fill_budget(
    corpus: Corpus,
    lm: LanguageModel,
    positions: Sequence[int] | np.ndarray,
    budget: int | Sequence[int] | None,
    token_limit: int = TOKEN_LIMIT,
    *,
    count_bos: bool = False,
) -> Choice:
    """Take examples in this order until each label has `budget` counted tokens (None: no limit).

    The budget of each label, in the order of `corpus.labels`, may be given instead of one for all.

    No more texts are tokenised than needed, so that a small budget costs the same for a corpus of
    any size.

    Returns:
        position -> token ids of the examples that are taken; position -> number of counted tokens;
        reason -> number of examples that were left out or cut before their label was full;
        position -> number of tokens of the prompt, where there is one.
    """
    tokens: dict[int, list[int]] | None = {}
    taken, kept_tokens = array("q"), 0
    numbers, lengths, before = array("i"), array("i"), array("i")
    skipped: Counter[str] = Counter()
    order = np.asarray(positions, np.int64)
    used = [0] * (max(len(corpus.labels), int(corpus.codes.max(initial=0)) + 1))
    most = np.array(inf if budget is None else budget, float)
    budgets = np.pad(most, (0, len(used) - len(most))) if most.ndim else np.full(len(used), most)
    is_open, budgets = budgets > 0, budgets.tolist()
    special, extra = lm.special_ids, lm.counted_before(count_bos)
    for some, of in _open_slices(order, corpus.codes, is_open):
        rows = zip(*_tokenized(corpus, lm, some, token_limit), strict=True)
        for i, code, (row, prompt) in zip(some, of, rows, strict=True):
            if not is_open[code]:
                continue
            kept = row[:token_limit]
            count = len(without_special(kept[prompt:], special))
            skipped["cut at the token limit"] += len(row) > token_limit
            skipped["no tokens"] += not count
            if not count:
                continue
            if tokens is not None:
                tokens[i] = kept
                kept_tokens += len(kept)
                if kept_tokens > _KEPT_TOKENS:
                    tokens = None
            taken.append(i)
            numbers.append(count + (0 if prompt else extra))
            lengths.append(len(kept))
            before.append(prompt)
            used[code] += numbers[-1]
            is_open[code] = used[code] < budgets[code]
    reasons = {reason: n for reason, n in sorted(skipped.items()) if n}
    if tokens is not None:
        prompts = {i: prompt for i, prompt in zip(taken, before, strict=True) if prompt}
        return tokens, dict(zip(taken, numbers, strict=True)), reasons, prompts
    at, ends = np.frombuffer(taken, np.int64), np.frombuffer(before, np.int32)
    sizes = Counts(at, np.frombuffer(lengths, np.int32))
    counts = Counts(at, np.frombuffer(numbers, np.int32))
    prompts = Counts(at[ends > 0], ends[ends > 0])
    return Retokenized(sizes, _tokenizer(corpus, lm, token_limit)), counts, reasons, prompts


def _tokenized(
    corpus: Corpus, lm: LanguageModel, positions: Sequence[int], token_limit: int
) -> tuple[list[list[int]], list[int]]:
    """Token ids of prompts with texts, one more than the limit, and numbers of those of prompts."""
    prompts = [corpus.prompts[i] if corpus.prompts else "" for i in positions]
    return lm.tokenize_prompted(prompts, [corpus.texts[i] for i in positions], token_limit + 1)


def _tokenizer(
    corpus: Corpus, lm: LanguageModel, token_limit: int
) -> Callable[[Sequence[int]], list[list[int]]]:
    """A function from positions to the token ids of their prompts and texts."""
    return lambda positions: [
        row[:token_limit] for row in _tokenized(corpus, lm, positions, token_limit)[0]
    ]


def _open_slices(
    order: np.ndarray, codes: np.ndarray, is_open: np.ndarray
) -> Iterator[tuple[list[int], list[int]]]:
    """Slices of the positions whose labels are open when the slice is made, with their labels."""
    for start in range(0, len(order), _BLOCK):
        if not is_open.any():
            return
        block, at = order[start : start + _BLOCK], 0
        of = codes[block]
        while len(found := np.flatnonzero(is_open[of[at:]])[:_SLICE] + at):
            yield block[found].tolist(), of[found].tolist()
            at = int(found[-1]) + 1


def in_hashed_order(corpus: Corpus, positions: Iterable[int], seed: int) -> list[int]:
    """Sort positions by hashed id, the order in which budgets are filled."""
    return hashed_order(corpus, np.fromiter(positions, np.int64), seed).tolist()


def hashed_order(
    corpus: Corpus, positions: np.ndarray, seed: int, purpose: str = "budget"
) -> np.ndarray:
    """Sort positions, int64 [n], by the hashes of their ids, which differ with the purpose."""
    return positions[np.lexsort((positions, corpus.hashes(seed, purpose, at=positions)))]


def first_by_hash(
    corpus: Corpus, positions: Sequence[int] | np.ndarray, seed: int, n: int
) -> list[int]:
    """Choose at most n examples per label by hashed id; return them in the corpus's order."""
    order = hashed_order(corpus, np.asarray(positions, np.int64), seed)
    codes = corpus.codes[order]
    by_label = np.argsort(codes, kind="stable")
    firsts = np.searchsorted(codes[by_label], codes[by_label])  # of each example's label
    return np.sort(order[by_label[np.arange(len(order)) - firsts < n]]).tolist()
