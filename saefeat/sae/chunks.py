"""Chunks: training activations are held in memory a part at a time, and used in a random order.

A chunk is filled by forward passes and then used up, in an order that is given by (seed, chunk,
pass). The activations of a corpus do not fit in memory, and need not be on disk: a checkpoint at
the end of a chunk is enough to go on bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saefeat.activations import counted_vectors
from saefeat.config import TrainConfig
from saefeat.corpora import WINDOW, Plan
from saefeat.io import RunFailed, fingerprint
from saefeat.models import LanguageModel, Site


@dataclass(frozen=True)
class Chunk:
    """Examples whose activations are held together."""

    positions: tuple[int, ...]  # in the corpus
    tokens: int  # counted
    steps: int  # of training on them


def plan_chunks(plan: Plan, config: TrainConfig) -> list[Chunk]:
    """Cut the plan's order into chunks of about `chunk_tokens`, without splitting an example.

    The number of steps is known before any forward pass. A last chunk of less than a quarter joins
    the one before it.
    """
    groups: list[list[int]] = [[]]
    sizes = [0]
    for position in _order(plan):
        if sizes[-1] >= config.chunk_tokens:
            groups.append([])
            sizes.append(0)
        groups[-1].append(position)
        sizes[-1] += plan.counts[position]
    if len(groups) > 1 and sizes[-1] < config.chunk_tokens / 4:
        groups[-2:] = [groups[-2] + groups[-1]]
        sizes[-2:] = [sizes[-2] + sizes[-1]]
    steps = [max(1, round(size * config.passes / config.batch_size)) for size in sizes]
    return [Chunk(tuple(g), n, s) for g, n, s in zip(groups, sizes, steps, strict=True)]


def single_chunk(plan: Plan) -> Chunk:
    """The whole plan in one chunk of one step."""
    return Chunk(tuple(_order(plan)), plan.total, 1)


def _order(plan: Plan) -> list[int]:
    return sorted(plan.tokens) if plan.order is None else plan.order


def fill(
    lm: LanguageModel,
    plan: Plan,
    sites: Sequence[Site],
    chunk: Chunk,
    advance: Callable[[int], object] = lambda n: None,
) -> dict[str, Tensor]:
    """Run the examples of a chunk: site -> activations bfloat16 [chunk.tokens, d_in].

    advance: called with the counted tokens of each batch.
    """
    buffers: dict[str, Tensor] = {}
    filled = 0
    # Examples are sorted by length inside a window, to save padding, and mixed over all windows.
    order, starts = chunk.positions, range(0, len(chunk.positions), WINDOW)
    windows = (list(order[start : start + WINDOW]) for start in starts)
    batches = (batch for window in windows for batch in plan.batches(lm, window))
    for batch, vectors in counted_vectors(lm, batches, [site.path for site in sites]):
        count = int(batch.counted.sum())
        for site in sites:
            x = vectors[site.path]
            if site.name not in buffers:
                shape = (chunk.tokens, x.shape[-1])
                buffers[site.name] = torch.empty(shape, dtype=torch.bfloat16, device=x.device)
            buffers[site.name][filled : filled + count] = x
        filled += count
        advance(count)
    return buffers


def draw(usable: Tensor, config: TrainConfig, chunk: int, step: int) -> Tensor:
    """Which vectors of a chunk a step uses: int64 [batch_size] of the indices `usable`.

    Steps take the next `batch_size` indices of endless passes over the chunk, each pass in a random
    order of its own. Raises RunFailed when there is no usable vector.
    """
    n, size = len(usable), config.batch_size
    if not n:
        why = "each is an outlier to the tokens of the first chunk"
        raise RunFailed(f"chunk {chunk} has no usable token: {why}")
    parts, start, end = [], step * size, (step + 1) * size
    while start < end:
        turn, offset = divmod(start, n)
        seed = int(fingerprint([config.seed, chunk, turn]), 16) % 2**63
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        parts.append(order[offset : offset + end - start])
        start += len(parts[-1])
    return usable[torch.cat(parts).to(usable.device)]
