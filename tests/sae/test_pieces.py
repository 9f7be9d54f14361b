"""A state that ranks write in pieces is read by any number of ranks, each its own rows."""

from __future__ import annotations

import pytest
import torch
from helpers import refused

from saefeat.config import TrainConfig
from saefeat.resume import STATE
from saefeat.sae.layouts import make_mesh, planned_mesh
from saefeat.sae.pieces import read_pieces, write_piece
from saefeat.sae.trainer import Trainer
from saefeat.world import ALONE, World

CONFIG = TrainConfig(k=4, d_sae=192, batch_size=64)
HEADER = {"steps": 3}


@pytest.fixture(scope="module")
def state():
    """The state of a trainer that has all units, after three steps."""
    trainer = Trainer(12, CONFIG, 10, "cpu")
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    trainer.fit_scaler(x)
    for _ in range(3):
        trainer.step(x)
    return trainer.state()


def part(state, rank, size):
    """A trainer with the units of one of some ranks, and its part of the state."""
    trainer = Trainer(12, CONFIG, 10, "cpu", split=World(rank, size))
    own = trainer.objective.own_rows
    rows = {name: own(value) if trainer.has_rows(name) else value for name, value in state.items()}
    return trainer, rows


def test_initial_weights_are_the_rows_of_those_of_one_rank():
    whole = Trainer(12, CONFIG, 10, "cpu").parameters
    for rank in range(3):
        trainer, rows = part({f"parameter.{n}": value for n, value in whole.items()}, rank, 3)
        assert trainer.parameters["encoder"].shape == (64, 12)
        for name, value in trainer.parameters.items():
            assert torch.equal(value, rows[f"parameter.{name}"])


@pytest.mark.parametrize("written", [1, 2, 6])
def test_any_number_of_ranks_reads_what_another_number_has_written(tmp_path, state, written):
    for rank in range(written):
        trainer, rows = part(state, rank, written)
        trainer.restore(rows, 3)
        write_piece(tmp_path / "sae", trainer, HEADER, here=written - 1)
    assert [path.name for path in (tmp_path / "sae").iterdir()] == [STATE]
    for size in (1, 2, 3, 4):
        for rank in range(size):
            trainer, expected = part(state, rank, size)
            found = read_pieces(tmp_path / "sae", trainer, HEADER)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert torch.equal(found[name], value), (name, rank, size)


def test_a_piece_that_is_missing_or_of_another_checkpoint_is_a_user_error(tmp_path, state):
    for rank in range(2):
        trainer, rows = part(state, rank, 2)
        trainer.restore(rows, 3)
        write_piece(tmp_path / "sae", trainer, {"steps": 3 + rank}, here=0)
    with refused("rows-1.safetensors is of another checkpoint"):
        read_pieces(tmp_path / "sae", trainer, HEADER)
    (tmp_path / "sae.rows-1.safetensors").unlink()
    with refused("rows-1.safetensors does not exist"):
        read_pieces(tmp_path / "sae", trainer, HEADER)


def test_each_sae_is_written_by_the_rank_that_owns_it_with_the_pieces_of_its_copy():
    sites = [f"mlp_out@{i}" for i in range(7)]
    for layout, replicas in [("data", 1), ("sites", 1), ("sites", 2), ("features", 2)]:
        meshes = [planned_mesh(World(rank, 6), layout, replicas) for rank in range(6)]
        for number, site in enumerate(sites):
            writers = [m for m in meshes if m.writers(sites).get(site) == m.split.rank]
            assert [m.world.rank for m in writers] == [number % 6]
            assert site in writers[0].trained(sites)
            helping = [m for m in meshes if site in m.writers(sites)]
            assert [m.split.rank for m in helping] == list(range(writers[0].split.size))
            assert {m.copies.rank for m in helping} == {writers[0].copies.rank}
    alone = make_mesh(ALONE, "features")
    assert alone.trained(sites) == sites and alone.writers(sites) == dict.fromkeys(sites, 0)
    assert alone.step_bytes(12, 192, CONFIG) == 0
