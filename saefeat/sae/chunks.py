"""Chunks of training activations, which are filled by forward passes and then used up.

The activations of a corpus do not fit in memory, and writing them to disk would cost more than
computing them again. So one chunk at a time is held, and its vectors are used in a random order
that depends on the seed, the number of the chunk and the pass alone. A checkpoint at the end of a
chunk is therefore enough to resume with the same bytes.
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
    """Examples whose activations are held in memory together."""

    positions: tuple[int, ...]  # in the corpus
    tokens: int  # counted
    steps: int  # of training on them


def plan_chunks(plan: Plan, config: TrainConfig) -> list[Chunk]:
    """Cut the examples of a plan into chunks of about `chunk_tokens`; no example is split.

    A last chunk of less than a quarter of that is merged into the one before it.
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


def _order(plan: Plan) -> Sequence[int]:
    return sorted(plan.tokens) if plan.order is None else plan.order


def fill(
    lm: LanguageModel,
    plan: Plan,
    sites: Sequence[Site],
    chunk: Chunk,
    advance: Callable[[int], object] = lambda n: None,
) -> dict[str, Tensor]:
    """Run the examples of a chunk: site -> activations bfloat16 [chunk.tokens, d_in].

    `advance` is called with the number of counted tokens of each batch.
    """
    buffers: dict[str, Tensor] = {}
    filled = 0
    # Batches are made window by window: sorting by length, which saves padding, stays local.
    windows = (chunk.positions[i : i + WINDOW] for i in range(0, len(chunk.positions), WINDOW))
    batches = (batch for window in windows for batch in plan.batches(lm, list(window)))
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
    """Choose the vectors that one step trains on: int64 [batch_size], taken from `usable`.

    The usable indices are repeated in passes, and every pass has a new random order. Each step
    takes the next `batch_size` of them; a step may begin in one pass and end in the next.

    Raises RunFailed when no vector is usable.
    """
    n, size = len(usable), config.batch_size
    if not n:
        raise RunFailed(
            f"chunk {chunk} has no usable token: each is an outlier to those of the first chunk"
        )
    parts, start, end = [], step * size, (step + 1) * size
    while start < end:
        turn, offset = divmod(start, n)
        seed = int(fingerprint([config.seed, chunk, turn]), 16) % 2**63
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        parts.append(order[offset : offset + end - start])
        start += len(parts[-1])
    return usable[torch.cat(parts).to(usable.device)]
