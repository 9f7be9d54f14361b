"""Layouts: what the ranks of a training share out.

A training has one copy of the SAEs or several. The copies train on parts of each batch and sum
their gradients (data parallelism). The ranks of a copy share out the sites, or the units of every
SAE. Ranks of a copy follow each other, so that they are on one machine where it has enough of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saefeat.config import TrainConfig
from saefeat.io import UserError
from saefeat.sae.objectives import OBJECTIVES
from saefeat.words import in_words
from saefeat.world import ALONE, World

LAYOUTS = ("data", "sites", "features")


@dataclass(frozen=True)
class Mesh:
    """The ranks of a training as a table: a row for each copy of the SAEs.

    Attributes:
        world: all ranks.
        layout: what the ranks of a copy share out, "sites" or "features"; with "data" each rank is
            a copy of its own.
        shares: the ranks of this rank's copy.
        copies: the ranks that train in the other copies what this one trains here.
    """

    world: World = ALONE
    layout: str = "data"
    shares: World = ALONE
    copies: World = ALONE

    @property
    def split(self) -> World:
        """The ranks among which the units of every SAE are split."""
        return self.shares if self.layout == "features" else ALONE

    def trained(self, sites: Sequence[str]) -> list[str]:
        """The sites whose SAEs this rank trains, alone or with others."""
        return owned(sites, self.shares) if self.layout == "sites" else list(sites)

    def turns(self, sites: Sequence[str]) -> list[list[str]]:
        """In which order a copy exchanges activations: for each turn, the site of each rank."""
        size = self.shares.size
        if self.layout == "features":
            return [[site] * size for site in sites]
        return [list(sites[start : start + size]) for start in range(0, len(sites), size)]

    def step_bytes(self, d_in: int, width: int, config: TrainConfig) -> float:
        """Bytes that this rank sends for one step of an SAE, without the revival of dead units.

        A sum over n ranks sends each value 2 (n - 1) / n times, a gathering n - 1 times.
        """
        copies, split = self.copies.size, self.split.size
        tokens, own = config.batch_size / copies, width / split
        gradients = 2 * (copies - 1) / copies * (2 * own * d_in + own + d_in)
        rebuilt = 2 * (split - 1) / split * (tokens + 1) * d_in
        gathered = (split - 1) * (tokens * min(config.k, own) + own)
        return 4 * (gradients + rebuilt + gathered)

    def writers(self, sites: Sequence[str]) -> dict[str, int]:
        """The SAEs that this rank helps to write -> the number in `split` of the rank that does.

        Each is the SAE of a site that one of the ranks in `split` owns.
        """
        first, size = self.world.rank - self.split.rank, self.split.size
        ranks = {site: number % self.world.size - first for number, site in enumerate(sites)}
        return {site: rank for site, rank in ranks.items() if 0 <= rank < size}


def make_mesh(world: World, layout: str = "data", replicas: int = 1) -> Mesh:
    """Connect the ranks of each copy, and those that train the same. All ranks call it."""
    shares, copies = world.divide(_share_count(world, layout, replicas))
    return Mesh(world, layout, shares, copies)


def planned_mesh(world: World, layout: str = "data", replicas: int = 1) -> Mesh:
    """The same for a rank that is not connected, for forecasts."""
    size = _share_count(world, layout, replicas)
    shares = World(world.rank % size, size)
    return Mesh(world, layout, shares, World(world.rank // size, world.size // size))


def by_site(world: World) -> Mesh:
    """The mesh in which each rank gets the sites that it owns."""
    return Mesh(world, "sites", world)


def owned(sites: Sequence[str], world: World) -> list[str]:
    """The sites that are this rank's in a world that shares them out."""
    return list(sites[world.rank :: world.size])


def _share_count(world: World, layout: str, replicas: int) -> int:
    return 1 if layout == "data" else world.size // replicas


def check_layout(
    layout: str, world: World, config: TrainConfig, widths: Sequence[int], replicas: int = 1
) -> None:
    """Raise UserError if so many ranks cannot train SAEs of these widths in this layout."""
    if layout not in LAYOUTS:
        raise UserError(f"there is no layout {layout!r}; choose from {in_words(LAYOUTS)}", "layout")
    if layout == "data":
        if replicas not in (1, world.size):
            raise UserError(
                f"in the layout over data each of {world.size} processes is a replica, not "
                f"{replicas} of them; leave replicas out, or choose another layout",
                *("replicas", "layout"),
            )
        replicas = world.size
    if world.size % replicas:
        raise UserError(
            f"{world.size} processes cannot form {replicas} replicas of one size; start a multiple "
            f"of {replicas}, or change it",
            "replicas",
        )
    shares = _share_count(world, layout, replicas)
    if layout == "sites":
        _check_parts(shares, len(widths), "sites", layout)
    if layout == "features":
        multiple = OBJECTIVES[config.architecture].TABLE * shares
        for width in widths:
            if width % multiple:
                raise UserError(
                    f"{shares} processes cannot share out {width} units in the layout over "
                    f"features; d_sae has to be a multiple of {multiple}, or choose another layout",
                    *("layout", "d_sae"),
                )
    _check_parts(replicas, config.batch_size, "tokens per step", "data")


def _check_parts(ranks: int, parts: int, what: str, layout: str) -> None:
    if ranks > parts:
        raise UserError(
            f"{ranks} processes cannot share out {parts} {what} in the layout over {layout}; "
            "start fewer, or choose another layout",
            "layout",
        )
