"""Memory: the limits of the machine and its control groups, and which dictionaries fit together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saefeat.dictionaries import SAE, Identity
from saefeat.memory import _group_limits, group_to_fit, memory_limit, working_bytes

ROWS = torch.randn(64, 32)
WIDE = SAE("wide", "mlp_out@0", ROWS.t().contiguous(), torch.zeros(64), ROWS, torch.zeros(32), k=4)
DICTIONARIES = [WIDE, Identity("mlp_act@1", 48), Identity("mlp_out@0", 32)]
STATISTICS, EXAMPLES, ENCODER = 3 * 64 * 32, 64 * 5 * 12, 32 * 64 * 4  # bytes, of three labels


@pytest.mark.parametrize(
    ("groups", "files", "limits"),
    [
        (
            "0::/a/b\n",
            {"a/b/memory.max": "max", "a/memory.max": "500", "memory.max": "900"},
            {500, 900},
        ),
        (
            "9:cpu:/x\n4:memory:/a\n0::/\n",
            {"memory/a/memory.limit_in_bytes": "70", "x/memory.max": "3"},
            {70},
        ),
        ("4:cpuset,memory:/gone/away\n", {"memory/memory.limit_in_bytes": "80"}, {80}),
        ("0::/\n", {}, set()),
    ],
)
def test_limits_of_control_groups_are_those_of_the_process_and_around_it(
    tmp_path, groups, files, limits
):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert set(_group_limits(tmp_path)) == limits


def test_without_control_groups_the_limit_is_the_machine(tmp_path):
    assert list(_group_limits(tmp_path)) == []
    assert 0 < memory_limit() < 2**50


def test_groups_fill_the_memory_in_the_order_given():
    a, b, c = DICTIONARIES
    sizes = [working_bytes(d, "cpu", 3) for d in DICTIONARIES]
    assert sizes == [STATISTICS + EXAMPLES + ENCODER, 3 * 48 * 40, 3 * 32 * 40]
    found = [
        group_to_fit(DICTIONARIES, "cpu", 3, budget) for budget in (1, sum(sizes[1:]), sum(sizes))
    ]
    assert found == [[[a], [b], [c]], [[a], [b, c]], [[a, b, c]]]


def test_weights_count_on_a_gpu_and_where_the_encoder_reads_them_in_their_file():
    both = STATISTICS + EXAMPLES
    assert working_bytes(WIDE, "cpu", 3) == both + ENCODER
    assert working_bytes(WIDE, "cuda:0", 3) == both + ENCODER + (2 * 32 * 64 + 64 + 32) * 4
    # It encodes with the weights themselves, so every batch needs them in memory.
    in_place = replace(WIDE, activation="relu")
    assert in_place.encoder_bytes == 0
    assert working_bytes(in_place, "cpu", 3) == both + 32 * 64 * 4
    assert working_bytes(in_place, "cuda:0", 3) == both + (2 * 32 * 64 + 64 + 32) * 4
    half = replace(WIDE, W_enc=WIDE.W_enc.bfloat16(), W_dec=WIDE.W_dec.bfloat16())
    assert working_bytes(half, "cpu", 3) == both + ENCODER
    assert working_bytes(half, "cuda:0", 3) == both + ENCODER + 2 * 2 * 32 * 64 + 4 * (64 + 32)


def test_an_identity_takes_its_statistics_alone():
    assert working_bytes(Identity("mlp_act@1", 48), "cuda:0") == 0
    assert working_bytes(Identity("mlp_act@1", 48), "cuda:0", 3) == 3 * 48 * 40
