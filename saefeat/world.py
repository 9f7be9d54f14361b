"""Processes that work together (ranks), by torch.distributed. Alone, nothing here costs anything.

Everything that ranks exchange goes through a `World`. torchrun or Slurm starts the processes and
tells each its rank (the variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from saefeat.io import RunFailed, UserError, first_line
from saefeat.progress import waiting

CONNECTING = timedelta(minutes=30)  # after which a rank that does not connect fails the others


class LostRank(RunFailed):
    """Another rank has ended or does not answer."""


@dataclass(frozen=True)
class World:
    """This process among those that work together.

    All ranks call the same methods in the same order. A call raises LostRank when another rank has
    ended or does not answer.

    Attributes:
        rank: number of this process.
        size: number of processes.
        local_rank: number of this process on its machine.
        local_size: number of processes on this machine.
        group: the processes, in torch.distributed; None: all that are connected.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    group: Any = field(default=None, compare=False)

    @property
    def leads(self) -> bool:
        """Whether this process does what is done once: it speaks, and writes what all share."""
        return self.rank == 0

    def add(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the ranks; it has one shape on all of them."""
        if self.size > 1:
            with self._answers():
                for tensor in tensors:
                    dist.all_reduce(tensor, group=self.group)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set on a rank."""
        if self.size == 1:
            return flags
        counts = torch.tensor(flags, dtype=torch.int32)
        self.add(counts)
        return tuple(bool(count) for count in counts)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.any(False)

    def concat(self, x: Tensor) -> Tensor:
        """Return the tensors [n] of all ranks, in the order of the ranks; each has its own n."""
        if self.size == 1:
            return x
        sizes = x.new_zeros(self.size).long()
        sizes[self.rank] = len(x)
        self.add(sizes)
        ends = sizes.cumsum(0).tolist()
        found = x.new_zeros(ends[-1])
        found[ends[self.rank] - len(x) : ends[self.rank]] = x
        self.add(found)
        return found

    def gather_json(self, value: Any) -> list[Any]:
        """Return a value of JSON of every rank, in the order of the ranks. For few figures only."""
        if self.size == 1:
            return [value]
        line = json.dumps(value).encode() + b"\n"
        found = self.concat(torch.frombuffer(bytearray(line), dtype=torch.uint8))
        return [json.loads(each) for each in bytes(found.tolist()).splitlines()]

    def share(self, value: Any) -> Any:
        """Return the JSON value of the first rank; those of the others are ignored."""
        return self.gather_json(value if self.leads else None)[0]

    def exchange(self, parts: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
        """Send `parts[r]` to rank r, and return what each rank has sent here.

        Args:
            parts: contiguous tensors of one dtype, one per rank.
            lengths: number of values that each rank sends here.

        Returns flat tensors, one per rank.
        """
        kind = parts[0].dtype
        sent = [part.reshape(-1).view(torch.uint8) for part in parts]  # every backend sends bytes
        sizes = [length * kind.itemsize for length in lengths]
        found = sent[0].new_empty(sum(sizes))
        given, lengths = torch.cat(sent), [len(part) for part in sent]
        with self._answers():
            dist.all_to_all_single(found, given, sizes, lengths, group=self.group)
        return [part.view(kind) for part in found.split(sizes)]

    def gather(self, x: Tensor) -> Tensor:
        """Return the tensors of all ranks [size, *shape]; all have one shape and dtype."""
        if self.size == 1:
            return x[None]
        sent = x.reshape(-1).view(torch.uint8)  # every backend sends bytes
        found = sent.new_empty(self.size, len(sent))
        with self._answers():
            dist.all_gather(list(found), sent, group=self.group)
        return found.view(-1).view(x.dtype).view(self.size, *x.shape)

    def collect(self, x: Tensor, to: int) -> Tensor | None:
        """Return on the rank `to` what `gather` does, and None on the others."""
        if self.size == 1:
            return x[None]
        wanted = self.rank == to
        parts = [x if rank == to else x[:0] for rank in range(self.size)]
        found = self.exchange(parts, [x.numel() if wanted else 0] * self.size)
        return torch.stack(found).view(self.size, *x.shape) if wanted else None

    def divide(self, size: int) -> tuple[World, World]:
        """Divide all connected ranks into groups of `size` that follow each other.

        Returns this rank's group, and the ranks that have its number in the other groups. With 6
        ranks and size 2, rank 3 is in (2, 3) and in (1, 3, 5).
        """
        groups = [list(range(start, start + size)) for start in range(0, self.size, size)]
        return self._one_of(groups), self._one_of(
            [list(each) for each in zip(*groups, strict=True)]
        )

    def _one_of(self, groups: list[list[int]]) -> World:
        """Make groups of ranks, and return that of this rank."""
        if len(groups) == 1:
            return self
        if len(groups[0]) == 1:
            return ALONE
        found = ALONE
        for ranks in groups:  # all ranks make all groups, in one order
            made = dist.new_group(ranks, timeout=_wait)
            if self.rank in ranks:
                place = (self.local_rank, self.local_size)
                found = World(ranks.index(self.rank), len(ranks), *place, made)
        return found

    @contextmanager
    def _answers(self) -> Any:
        try:
            with waiting():
                yield
        except (torch.OutOfMemoryError, NotImplementedError):
            raise
        except RuntimeError as error:  # of the backend
            raise LostRank("another rank has ended or does not answer") from error


ALONE = World()
_wait = timedelta(minutes=30)  # for a rank that does not answer; `join` sets it


def world_of_environment() -> World:
    """Return what torchrun or the job script says of this process; ALONE without them.

    Raises UserError when the variables do not fit together.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if given.get("WORLD_SIZE", "1") == "1":
        return ALONE
    try:
        size, rank = int(given["WORLD_SIZE"]), int(given["RANK"])
        local_rank = int(given.get("LOCAL_RANK", rank))
        local_size = int(given.get("LOCAL_WORLD_SIZE", size))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the environment has WORLD_SIZE {given['WORLD_SIZE']}, but RANK and LOCAL_RANK are "
            "missing or no numbers; start the processes by torchrun"
        ) from error
    if not (0 <= rank < size and 0 <= local_rank < local_size):
        raise UserError(f"rank {rank} is not among {size} processes; start them by torchrun")
    return World(rank, size, local_rank, local_size)


def own_device(device: str, world: World) -> str:
    """The device of this rank: each process of a machine has its own GPU.

    Args:
        device: that of one process: "auto", "cpu", "cuda", "cuda:1", ...

    Returns `device` if alone or on a CPU. Raises UserError if there are more processes than GPUs.
    """
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if world.size == 1 or not on_gpu:
        return device
    found = torch.cuda.device_count()
    if world.local_rank >= found:
        raise UserError(
            f"there are {world.local_size} processes and {found} GPUs on this machine; start as "
            "many processes as GPUs",
            "device",
        )
    torch.cuda.set_device(world.local_rank)
    return f"cuda:{world.local_rank}"


def join(
    world: World, device: str, timeout: float, met: Callable[[Any], object] = lambda store: None
) -> Any:
    """Connect the ranks: gloo between CPUs, NCCL between GPUs. Return their store; None if alone.

    Args:
        device: that of this rank.
        timeout: seconds after which a rank that does not answer fails the others. One that does not
            connect does so after half an hour at most.
        met: called with the store when all ranks have met there, before they connect.

    Raises LostRank when the ranks do not connect, and UserError when the environment does not say
    where they meet.
    """
    if world.size == 1:
        return None
    global _wait
    wait = _wait = timedelta(seconds=timeout)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    try:
        store: Any = next(rendezvous("env://", timeout=min(wait, CONNECTING)))[0]
        kept = PrefixStore("ranks", store.clone())  # with a connection of its own
        met(kept)
        dist.init_process_group(
            backend, store=store, rank=world.rank, world_size=world.size, timeout=wait
        )
    except ValueError as error:  # of a variable
        raise UserError(f"{first_line(error)}; start the processes by torchrun") from error
    except RuntimeError as error:
        raise LostRank(
            f"rank {world.rank} cannot connect with the others ({first_line(error)}); start all "
            "ranks again"
        ) from error
    return kept


def leave() -> None:
    """Close the connections between the ranks, after something that they left together.

    Their threads could abort a process that ends with open connections.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
