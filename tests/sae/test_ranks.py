"""Two processes train the SAEs that one trains, and end together when one of them fails."""

from __future__ import annotations

import json
import os
import re
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

from saefeat.config import TrainConfig
from saefeat.io import load_tensors, read_header
from saefeat.sae.layouts import Mesh
from saefeat.sae.store import load_saes
from saefeat.sae.train import sae_id
from saefeat.sae.trainer import Trainer
from saefeat.world import ALONE, World

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
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        place["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
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


@pytest.fixture(scope="module")
def ranks():
    """The module that the processes run, and what one process computes."""
    spec = util.spec_from_file_location("ranks", WORKER)
    ranks = util.module_from_spec(spec)
    spec.loader.exec_module(ranks)
    return ranks, ranks.results(Mesh()) | ranks.codes(ALONE)


@pytest.mark.parametrize(
    ("size", "layouts"),
    [(2, ["data:1", "features:1"]), (4, ["features:1", "features:2", "sites:2"])],
)
def test_ranks_train_as_one_in_every_layout(tmp_path, start, ranks, size, layouts):
    ranks, expected = ranks
    exits, outputs = ends(*(start(rank, size, WORKER, tmp_path, *layouts) for rank in range(size)))
    assert exits == [0] * size, outputs
    assert expected["one:dead"][12] > 0.2  # more than d_in / 2, so that AuxK is compared too
    assert expected["one:parameter.encoder"].dtype == torch.float64
    for layout in layouts:
        files = [load_tensors(tmp_path / f"{layout}-{rank}.safetensors") for rank in range(size)]
        together = set().union(*(found for found, _ in files))
        trained = ("one:", "two:") if layout.startswith("sites") else ("one:",)
        assert together >= {name for name in expected if name.startswith(trained)}
        same = [found["one:parameter.b_dec"] for found, _ in files if "one:curve" in found]
        assert all(torch.equal(each, same[0]) for each in same)
        for found, place in files:
            compare(found, expected, World(**place), f"{layout}, {place}")


def compare(found, expected, split, where):
    """Compare what a rank has computed with its part of what one process has."""
    trainer = Trainer(16, TrainConfig(k=4, d_sae=64), 1, "cpu", split=split)
    for name, value in found.items():
        kind = name.partition(":")[2] or name
        wanted, tolerance = expected[name], 1e-9
        if kind.startswith("first"):
            kind, tolerance = kind.replace("first", "parameter"), 1e-6
        elif kind == "curve":
            tolerance = 1e-3
        elif kind.startswith("codes"):
            tolerance = 0 if "64" not in kind else tolerance
        if kind.startswith("codes") or trainer.has_rows(kind):
            wanted = trainer.objective.own_rows(wanted)
        torch.testing.assert_close(
            value, wanted, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}, {where}: {m}"
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


@pytest.mark.parametrize("layout", ["data", "features"])
def test_two_ranks_that_share_batches_or_units_write_the_figures_of_one(
    tmp_path, config, start, alone, layout
):
    path = config("out", layout=layout)
    codes, outputs = ends(*(start(rank, 2, SCRIPT, path) for rank in range(2)))
    assert codes == [0, 0], outputs
    found, expected = training_lines(tmp_path / "out"), training_lines(alone)
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


def test_a_training_over_features_goes_on_at_another_size_and_in_another_layout(
    tmp_path, config, start, alone
):
    out = tmp_path / "out"

    def begin(size, **ranks):
        path = config("out", **ranks)
        return [start(rank, size, SCRIPT, path) for rank in range(size)]

    both = begin(2, layout="features")
    wait_for(lambda: steps_saved(out) > 0, *both)
    both[1].kill()
    codes, outputs = ends(*both)
    assert codes == [1, -signal.SIGKILL], outputs
    kept = steps_saved(out)
    rows = {path.name for path in out.glob(f"training-{kept}/*rows*")}
    assert rows == {f"{sae_id(SITES[i])}.rows-{1 - i % 2}.safetensors" for i in range(3)}
    with pytest.warns(UserWarning, match="its training is not finished"):
        saes = load_saes(f"{out}/training-{kept}")
    assert [sae.record["unfinished"]["steps"] for sae in saes] == [kept] * 3
    [one] = begin(1, layout="data")  # all rows of the pieces
    wait_for(lambda: steps_saved(out) > max(kept, 400), one)
    one.send_signal(signal.SIGTERM)
    assert ends(one)[0] == [130]
    codes, outputs = ends(*begin(4, layout="features", replicas=2))
    assert codes == [0] * 4, outputs
    assert "4 processes" in "".join(outputs) and "with 2 replicas" in "".join(outputs)
    assert trained_files(out).keys() == trained_files(alone).keys()
    before = load_saes(str(alone))
    for found, expected in zip(load_saes(str(out)), before, strict=True):
        for name in ("fvu", "l0"):
            assert found.record["held_out"][name] == pytest.approx(
                expected.record["held_out"][name], rel=0.02
            )


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


HANGING = """
import sys
from runpy import run_path
from saefeat.cli import ranks
from saefeat.run import training
script, dead, *sys.argv[1:] = sys.argv[1:]
training.make_plan = lambda *of, **how: open(dead)
ranks.PATIENCE = -8  # two seconds after timeout_seconds
run_path(script, run_name="__main__")
"""


def test_where_all_ranks_hang_at_once_they_end_and_one_is_named(tmp_path, config, start):
    """They read a dead disk. None waits for another, so no exchange runs out of time."""
    os.mkfifo(tmp_path / "dead")
    path = config("out", timeout_seconds=10)
    words = ("-c", HANGING, SCRIPT, tmp_path / "dead", path)
    codes, outputs = ends(*(start(rank, 2, *words) for rank in range(2)))
    assert codes == [1, 1], outputs
    message = rf"on {re.escape(socket.gethostname())} has done nothing for \d+ s"
    assert re.search(message, "".join(outputs))
