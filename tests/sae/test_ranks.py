"""Two processes train the SAEs that one trains, and end together when one of them fails."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from importlib import util
from pathlib import Path

import pytest
import torch
from helpers import trained_files, training_lines

from saefeat.io import load_tensors, read_header
from saefeat.world import ALONE

ROOT = Path(__file__).parents[2]
SCRIPT, WORKER = ROOT / "train/sae.py", Path(__file__).with_name("ranks.py")
LIMIT = 100  # seconds in which every process has to end
SITES = ["mlp_out@0", "resid_post@1", "mlp_act@1"]


@pytest.fixture(scope="module")
def start():
    """start(rank, size, *words): a process of this rank, with a port that all of a test share."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []

    def begin(rank, size, *words):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": ROOT}
        running.append(
            subprocess.Popen(
                [sys.executable, *map(str, words)],
                env=os.environ | {name: str(value) for name, value in place.items()},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return running[-1]

    yield begin
    for process in running:
        process.kill()


def ends(*processes):
    """Exit codes and outputs."""
    outputs = [process.communicate(timeout=LIMIT)[0] for process in processes]
    return [process.returncode for process in processes], outputs


@pytest.fixture(scope="module")
def values(tiny_model_dir, tiny_jsonl):
    return {
        **{"model": str(tiny_model_dir), "corpus": str(tiny_jsonl), "sites": SITES},
        **{"dtype": "float32", "d_sae": 64, "k": 4, "batch_size": 64, "chunk_tokens": 900},
        **{"dead_tokens": 1500, "passes": 8, "checkpoint_seconds": 0, "threads": 1},
        "eval_tokens": 3000,
    }


@pytest.fixture
def config(tmp_path, values):
    """config(name, **changes): a configuration file; its output is `tmp_path / name`."""

    def write(name, **changes):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**values, "out": str(tmp_path / name), **changes}))
        return path

    return write


@pytest.fixture(scope="module")
def alone(tmp_path_factory, values, start):
    """The directory of the SAEs that one process trains."""
    out = tmp_path_factory.mktemp("alone")
    path = out / "job.json"
    path.write_text(json.dumps({**values, "out": str(out / "saes")}))
    assert ends(start(0, 1, SCRIPT, path))[0] == [0]
    return out / "saes"


def test_two_ranks_that_share_batches_train_as_one(tmp_path, start):
    codes, outputs = ends(*(start(rank, 2, WORKER, tmp_path) for rank in range(2)))
    assert codes == [0, 0], outputs
    spec = util.spec_from_file_location("ranks", WORKER)
    ranks = util.module_from_spec(spec)
    spec.loader.exec_module(ranks)
    expected = ranks.results(ALONE)
    assert expected["dead"] > 0.1  # so that AuxK is compared too
    assert expected["parameter.encoder"].dtype == torch.float64
    for rank in range(2):
        found, _ = load_tensors(tmp_path / f"{rank}.safetensors")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            tolerance = 1e-6 if name.startswith("first.") else 1e-9
            torch.testing.assert_close(
                found[name], value, rtol=0, atol=tolerance, msg=f"{name} of rank {rank}"
            )


def test_in_the_layout_over_sites_two_ranks_of_torchrun_write_the_bytes_of_one(
    tmp_path, config, alone
):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT]
    path = config("sites", layout="sites")
    command = [sys.executable, *map(str, [*words, path])]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environment)
    assert done.returncode == 0, done.stderr
    assert "2 processes with 1 threads each, in the layout over sites" in done.stderr
    assert done.stdout.count("sae-") == len(SITES)
    assert trained_files(tmp_path / "sites") == trained_files(alone)
    lines = training_lines(tmp_path / "sites")
    assert lines == training_lines(alone)
    assert sum("evaluation" in line for line in lines) > 2


def numbers(value):
    """All numbers of a value of JSON, with their places in it."""
    if isinstance(value, dict):
        return {
            f"{key}/{place}": x for key, of in value.items() for place, x in numbers(of).items()
        }
    return {} if value is None or isinstance(value, str) else {"": value}


def test_in_the_layout_over_data_two_ranks_write_the_figures_of_one(tmp_path, config, start, alone):
    codes, outputs = ends(*(start(rank, 2, SCRIPT, config("data")) for rank in range(2)))
    assert codes == [0, 0], outputs
    found, expected = training_lines(tmp_path / "data"), training_lines(alone)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for one, other in zip(found, expected, strict=True):
        assert numbers(one).keys() == numbers(other).keys()
    # Sums in another order lead apart slowly: the first figures are equal, the last are alike.
    assert numbers(found[0]) == pytest.approx(numbers(expected[0]), rel=1e-4)
    last, wanted = found[-1]["evaluation"], expected[-1]["evaluation"]
    for site in SITES:
        for name in ("fvu", "l0"):
            assert last[site][name] == pytest.approx(wanted[site][name], rel=0.05)
        for name in ("clean", "zero"):
            assert last[site]["loss"][name] == wanted[site]["loss"][name]
        spliced = wanted[site]["loss"]["spliced"]
        assert last[site]["loss"]["spliced"] == pytest.approx(spliced, rel=0.01)


def steps_saved(out):
    """Steps of the last checkpoint; 0 without one."""
    path = out / "training.safetensors"
    return json.loads(read_header(path)["values"])["steps"] if path.exists() else 0


def wait_for(condition, *processes, pause=0.01):
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < LIMIT
        assert all(process.poll() is None for process in processes)
        time.sleep(pause)


def send(number, *processes):
    for process in processes:
        process.send_signal(number)


def stop_while_saving(out, *processes):
    """Stop ranks that have begun to write a checkpoint, and have not replaced the index yet."""

    def saving():
        folders = [int(path.name.partition("-")[2]) for path in out.glob("training-*")]
        return max(folders, default=0) > steps_saved(out) > 0

    while True:
        wait_for(saving, *processes, pause=0)
        send(signal.SIGSTOP, *processes)
        if saving():
            return
        send(signal.SIGCONT, *processes)


def test_a_rank_that_dies_or_is_told_to_stop_ends_both_and_the_training_goes_on(
    tmp_path, config, start, alone
):
    path, out = config("out", layout="sites"), tmp_path / "out"
    both = [start(rank, 2, SCRIPT, path) for rank in range(2)]
    stop_while_saving(out, *both)
    kept = steps_saved(out)
    both[1].kill()
    both[0].send_signal(signal.SIGCONT)
    begun = time.monotonic()
    codes, outputs = ends(*both)
    assert time.monotonic() - begun < 60
    assert codes == [1, -signal.SIGKILL]
    assert f"rank 1 on {socket.gethostname()} has ended; checkpoints are kept" in outputs[0]
    assert steps_saved(out) == kept  # the half-written checkpoint does not count
    both = [start(rank, 2, SCRIPT, path) for rank in range(2)]
    wait_for(lambda: steps_saved(out) > kept > 0, *both)
    both[1].send_signal(signal.SIGTERM)
    codes, outputs = ends(*both)
    assert codes == [130, 130], outputs
    assert "interrupted" in "".join(outputs) and "Traceback" not in "".join(outputs)
    state = out / f"training-{steps_saved(out)}" / f"sae-{SITES[0]}" / "state.safetensors"
    whole = state.read_bytes()
    state.write_bytes(whole[:-100])
    codes, outputs = ends(start(0, 1, SCRIPT, path))
    assert codes == [2] and "the checkpoint is damaged" in outputs[0]
    assert "Traceback" not in outputs[0]
    state.write_bytes(whole)
    codes, outputs = ends(start(0, 1, SCRIPT, path))  # one rank goes on with what two have done
    assert codes == [0], outputs
    assert trained_files(out) == trained_files(alone)
    assert training_lines(out) == training_lines(alone)


def test_ranks_that_share_batches_and_are_killed_in_a_step_go_on_to_the_same_bytes(
    tmp_path, config, start
):
    def both(name):
        path = config(name, layout="data", sites=SITES[:1])
        return [start(rank, 2, SCRIPT, path) for rank in range(2)]

    killed = both("killed")
    wait_for(lambda: steps_saved(tmp_path / "killed") > 0, *killed)
    time.sleep(0.1)  # the next chunk is read, and its steps take longer
    killed[0].kill()
    codes, outputs = ends(*killed)
    assert codes == [-signal.SIGKILL, 1]
    assert "the first rank or its machine has ended" in outputs[1]
    for name in ("killed", "whole"):
        codes, outputs = ends(*both(name))
        assert codes == [0, 0], outputs
    assert trained_files(tmp_path / "killed") == trained_files(tmp_path / "whole")


def test_a_training_that_diverges_on_one_rank_ends_both_and_keeps_the_state(
    tmp_path, config, start
):
    path = config("out", layout="sites", lr=1e20, sites=SITES[:2])
    codes, outputs = ends(*(start(rank, 2, SCRIPT, path) for rank in range(2)))
    assert codes == [1, 1], outputs
    assert "training diverged at" in "".join(outputs) and "before step" in "".join(outputs)
    assert "Traceback" not in "".join(outputs)
    assert not list((tmp_path / "out").glob("sae-*"))
