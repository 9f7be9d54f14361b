"""Alone, a world changes nothing; the environment says which rank a process is."""

from __future__ import annotations

import socket

import pytest
import torch
from helpers import refused

from saefeat.world import ALONE, LostRank, World, join, world_of_environment


@pytest.fixture
def environment(monkeypatch):
    def put(**values):
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def test_alone_nothing_is_exchanged():
    x = torch.arange(3.0)
    ALONE.add(x)
    ALONE.barrier()
    assert ALONE.leads and x.tolist() == [0, 1, 2] and ALONE.concat(x) is x
    assert ALONE.any(True, False) == (True, False)


def test_the_environment_names_the_rank(environment):
    environment()
    assert world_of_environment() is ALONE
    environment(RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")
    assert world_of_environment() == World(3, 4, 1, 2)
    environment(RANK="1", WORLD_SIZE="2")
    assert world_of_environment() == World(1, 2, 1, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK and LOCAL_RANK are missing or no numbers"),
        ({"WORLD_SIZE": "2", "RANK": "a"}, "missing or no numbers"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "rank 2 is not among 2 processes"),
    ],
)
def test_an_environment_that_does_not_fit_is_a_user_error(environment, values, message):
    environment(**values)
    with refused(message):
        world_of_environment()


def test_a_rank_that_finds_no_other_says_so(environment, monkeypatch):
    monkeypatch.setattr("saefeat.world._wait", None)
    with socket.socket() as free:  # nobody listens here
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    environment(RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    with pytest.raises(LostRank, match=r"rank 1 cannot connect with the others \(.*\); start all"):
        join(World(1, 2), "cpu", 1)
    monkeypatch.delenv("MASTER_ADDR")
    with refused("MASTER_ADDR expected, but not set; start the processes by torchrun"):
        join(World(1, 2), "cpu", 1)
