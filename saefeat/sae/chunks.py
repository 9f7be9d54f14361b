"""Chunks of training activations, which are filled by forward passes and then used up.

The activations of a corpus do not fit in memory, and writing them to disk would cost more than
computing them again. So one chunk at a time is held, and its vectors are used in a random order
that depends on the seed, the number of the chunk and the pass alone. A checkpoint at the end of a
chunk is therefore enough to resume with the same bytes.

Several ranks share the forward passes of a chunk: each takes every n-th batch, and tokenises only
the texts of its own. The order of its vectors stays that of the batches, so that every rank draws
the same batches for the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from saefeat.activations import counted_vectors
from saefeat.config import TrainConfig
from saefeat.corpora import WINDOW, Batch, Plan
from saefeat.hooks import site_width
from saefeat.io import RunFailed, UserError, fingerprint
from saefeat.models import LanguageModel, Site
from saefeat.sae.layouts import Mesh
from saefeat.world import ALONE, World


@dataclass(frozen=True)
class Chunk:
    """Examples whose activations are held in memory together."""

    positions: Sequence[int]  # in the corpus
    tokens: int  # counted
    steps: int  # of training on them


def plan_chunks(plan: Plan, config: TrainConfig) -> list[Chunk]:
    """Cut the examples of a plan into chunks of about `chunk_tokens`; no example is split.

    A last chunk of less than a quarter of that is merged into the one before it. Raises UserError
    if all tokens together are too few for a step.
    """
    if plan.total * config.passes < config.batch_size:
        raise UserError(
            f"{plan.total} counted tokens, used {config.passes} times, are fewer than the "
            f"{config.batch_size} of a step; give more text or a smaller batch_size",
            *("max_tokens", "batch_size"),
        )
    order = _order(plan)
    sums = np.cumsum(plan.numbers(order), dtype=np.int64)
    ends, done = [], 0
    while done < sums[-1]:
        ends.append(min(int(np.searchsorted(sums, done + config.chunk_tokens)) + 1, len(sums)))
        done = int(sums[ends[-1] - 1])
    sizes = np.diff(sums[np.array(ends) - 1], prepend=0).tolist()
    if len(ends) > 1 and sizes[-1] < config.chunk_tokens / 4:
        ends[-2:], sizes[-2:] = ends[-1:], [sum(sizes[-2:])]
    steps = [max(1, round(size * config.passes / config.batch_size)) for size in sizes]
    parts = [order[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    return [Chunk(*each) for each in zip(parts, sizes, steps, strict=True)]


def single_chunk(plan: Plan) -> Chunk:
    """The whole plan in one chunk of one step."""
    return Chunk(_order(plan), plan.total, 1)


def _order(plan: Plan) -> Sequence[int]:
    return sorted(plan.tokens) if plan.order is None else plan.order


@dataclass(frozen=True)
class Activations:
    """Vectors of a chunk that this rank holds.

    Attributes:
        buffers: site -> vectors bfloat16 [rows, d_in].
        places: for each rank of `world`, the places of its rows in the chunk, int64, increasing.
        world: the ranks that share the chunk. Alone, the rows are the whole chunk in its order.
    """

    buffers: dict[str, Tensor]
    places: Sequence[Tensor] = ()
    world: World = ALONE

    def places_of(self, rows: Tensor) -> Tensor:
        """Places in the chunk of these rows and those that the other ranks give, int64 [m]."""
        if self.world.size == 1:
            return rows
        return self.world.concat(self.places[self.world.rank][rows]).sort().values

    def take(self, site: str, drawn: Tensor) -> tuple[Tensor, Tensor | None]:
        """This rank's part of a batch, given the places of its vectors in the chunk.

        Returns vectors [n, d_in], and their places in the batch; None: it is the whole batch.
        """
        if self.world.size == 1:
            return self.buffers[site][drawn], None
        rows = self._rows[drawn]
        places = (rows >= 0).nonzero().squeeze(-1)
        return self.buffers[site][rows[places]], places

    @cached_property
    def _rows(self) -> Tensor:
        """Place in the chunk -> row, -1 for a vector of another rank."""
        own = self.places[self.world.rank]
        rows = own.new_full((sum(map(len, self.places)),), -1)
        rows[own] = torch.arange(len(own), device=own.device)
        return rows


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
    return read_chunk(lm, plan, sites, chunk, ALONE, advance).buffers


def read_chunk(
    lm: LanguageModel,
    plan: Plan,
    sites: Sequence[Site],
    chunk: Chunk,
    world: World,
    advance: Callable[[int], object] = lambda n: None,
    batches: list[Batch] | None = None,
) -> Activations:
    """Run this rank's part of the examples of a chunk.

    `advance` is called with the number of counted tokens of each round of batches, one per rank.
    All ranks call it equally often. `batches`: this rank's, if they are made already.
    """
    mine = _own_batches(lm, plan, chunk, world) if batches is None else batches
    counts = [int(plan.numbers(part).sum()) for part in _cut(lm, plan, chunk)]
    rounds = [sum(counts[i : i + world.size]) for i in range(0, len(counts), world.size)]
    own = sum(counts[world.rank :: world.size])
    buffers: dict[str, Tensor] = {}
    filled = 0
    vectors = counted_vectors(lm, mine, [site.path for site in sites])
    for (batch, found), tokens in zip(vectors, rounds, strict=False):
        count = int(batch.counted.sum())
        for site in sites:
            x = found[site.path]
            if site.name not in buffers:
                buffers[site.name] = _buffer(own, x.shape[-1], x.device)
            buffers[site.name][filled : filled + count] = x
        filled += count
        advance(tokens)
    for tokens in rounds[len(mine) :]:  # the last round may have no batch for this rank
        advance(tokens)
    if world.size == 1:
        return Activations(buffers)
    for site in sites:
        if site.name not in buffers:
            buffers[site.name] = _buffer(0, site_width(lm, site), lm.device)
    places = [place.to(lm.device) for place in _places(counts, world.size)]
    return Activations(buffers, places, world)


def _buffer(rows: int, d_in: int, device: torch.device | str) -> Tensor:
    return torch.empty((rows, d_in), dtype=torch.bfloat16, device=device)


def _places(counts: Sequence[int], size: int) -> list[Tensor]:
    """Places in the chunk of the vectors of each rank, given the number of those of each batch."""
    total = sum(counts)
    ranks = torch.arange(len(counts)) % size
    rank = ranks.repeat_interleave(torch.tensor(counts), output_size=total)
    return [(rank == each).nonzero().squeeze(-1) for each in range(size)]


def gather_sites(part: Activations, sites: Sequence[str], mesh: Mesh) -> Activations:
    """Send the vectors of each site to the ranks that train on it.

    Every rank gives its part of a chunk, whose buffers are used up, and gets its copy's part of the
    sites that it trains. In the layout over data this is what it has.
    """
    shares, copies = mesh.shares, mesh.copies
    if shares.size == 1:
        return part
    starts = range(0, len(part.places), shares.size)
    places = [torch.cat([*part.places[i : i + shares.size]]).sort().values for i in starts]
    given = part.places[copies.rank * shares.size :][: shares.size]
    rows = [torch.searchsorted(places[copies.rank], each) for each in given]
    whole: dict[str, Tensor] = {}
    for turn in mesh.turns(sites):  # one site for each rank
        sent = [part.buffers[name] for name in turn]
        for name in set(turn):
            del part.buffers[name]
        nothing = [sent[0][:0]] * (shares.size - len(turn))
        own = shares.rank < len(turn)
        d_in = sent[shares.rank].shape[1] if own else 0
        found = shares.exchange(sent + nothing, [len(each) * d_in for each in rows])
        if own:
            x = _buffer(sum(map(len, rows)), d_in, sent[0].device)
            for each, values in zip(rows, found, strict=True):
                x[each] = values.view(-1, d_in)
            whole[turn[shares.rank]] = x
    return Activations(whole, places, copies)


def batches_by_chunk(
    lm: LanguageModel, plan: Plan, chunks: list[Chunk], world: World
) -> Iterator[list[Batch]]:
    """This rank's batches of each chunk, for `read_chunk`."""
    return plan.ahead(_own_batches(lm, plan, chunk, world) for chunk in chunks)


def _own_batches(lm: LanguageModel, plan: Plan, chunk: Chunk, world: World) -> list[Batch]:
    return list(plan.make_batches(lm, _cut(lm, plan, chunk)[world.rank :: world.size]))


def _cut(lm: LanguageModel, plan: Plan, chunk: Chunk) -> list[list[int]]:
    """The positions of each batch of a chunk."""
    # Batches are cut window by window: sorting by length, which saves padding, stays local.
    windows = (chunk.positions[i : i + WINDOW] for i in range(0, len(chunk.positions), WINDOW))
    return [part for window in windows for part in plan.cut(lm, window)]


def vector_labels(lm: LanguageModel, plan: Plan, chunk: Chunk) -> Tensor:
    """By vector of a chunk, the number of its label in the corpus: int64 [chunk.tokens]."""
    positions = [i for part in _cut(lm, plan, chunk) for i in part]
    codes, numbers = plan.corpus.codes[positions].astype(np.int64), plan.numbers(positions)
    return torch.from_numpy(codes.repeat(numbers)).to(lm.device)


class Draws:
    """Choice of the vectors that each step on a chunk trains on.

    The usable vectors are repeated in passes, and every pass has a new random order. Each step
    takes the next `batch_size` of them; a step may begin in one pass and end in the next.

    Args:
        usable: their places in the chunk, int64 [n].
        chunk: number of the chunk.

    Raises RunFailed when no vector is usable.
    """

    def __init__(self, usable: Tensor, config: TrainConfig, chunk: int) -> None:
        if not len(usable):
            raise RunFailed(
                f"chunk {chunk} has no usable token: each is an outlier to those of the first chunk"
            )
        self.usable, self.config, self.chunk = usable, config, chunk
        self._pass, self._order = -1, usable

    def draw(self, step: int) -> Tensor:
        """The places in the chunk of the vectors of a step: int64 [batch_size]."""
        n, size = len(self.usable), self.config.batch_size
        parts, start, end = [], step * size, (step + 1) * size
        while start < end:
            turn, offset = divmod(start, n)
            parts.append(self._ordered(turn)[offset : offset + end - start])
            start += len(parts[-1])
        return torch.cat(parts)

    def _ordered(self, turn: int) -> Tensor:
        """The usable places in the order of a pass; the last one is kept for the next steps."""
        if turn != self._pass:
            seed = int(fingerprint([self.config.seed, self.chunk, turn]), 16) % 2**63
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(len(self.usable), generator=generator)
            self._pass, self._order = turn, self.usable[order.to(self.usable.device)]
        return self._order
