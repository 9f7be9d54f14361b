"""A stage resumed with another number of threads starts again, or reports what may differ."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import Interrupt

from saefeat.collection import collect
from saefeat.config import Decoding, MatrixConfig, TrainConfig
from saefeat.corpora import make_plan
from saefeat.dictionaries import Identity
from saefeat.run import open_run
from saefeat.run.grids import demo_grid
from saefeat.run.matrix import matrix
from saefeat.run.steer import Bench
from saefeat.run.sweep import sweep
from saefeat.sae.train import train_saes

PROMPTS = ["The old man", "Water is", "Why do people", "She said that"]
SITE = "resid_post@0"
pytestmark = pytest.mark.usefixtures("every_line")


@pytest.fixture
def setting(run_copy):
    return open_run(run_copy)


def interrupted(setting, words, call):
    setting.say = Interrupt(words)
    with pytest.raises(KeyboardInterrupt):
        call()
    lines = []
    setting.say = lines.append
    return lines


def test_a_sweep_starts_again_with_other_threads(setting):
    out = setting.out / "steering" / "m.json"
    bench = Bench(setting, "en", Decoding(max_new_tokens=8))

    def call():
        return sweep(bench, demo_grid([SITE]), PROMPTS, out)

    lines = interrupted(setting, "1 of 2", call)
    torch.set_num_threads(2)
    call()
    assert lines[0].startswith("note: the sweep starts again, because it was begun with 1 threads")
    assert any("1 of 2" in line for line in lines) and json.loads(out.read_text())["threads"] == 2
    resumed = out.read_bytes()
    out.unlink()
    call()
    assert out.read_bytes() == resumed
    torch.set_num_threads(1)
    call()
    assert (
        out.read_bytes() == resumed and "is complete already" in lines[-1]
    )  # a whole file is of one kind


def test_a_matrix_starts_again_with_other_threads(setting):
    out = setting.out / "m.json"

    def call():
        return matrix(setting, out, MatrixConfig(sentences=2, edits=("ablate",), top=5))

    lines = interrupted(setting, "2 of 3", call)
    torch.set_num_threads(2)
    assert call()["threads"] == 2
    assert lines[0].startswith("note: the matrix starts again, because it was begun with 1 threads")
    assert lines[1].startswith("matrix: 1 of 3 labels")
    resumed = out.read_bytes()
    out.unlink()
    call()
    assert out.read_bytes() == resumed


def test_a_training_says_that_it_goes_on_with_other_threads(tmp_path, tiny_corpus, tiny_lm):
    plan = make_plan(tiny_corpus, tiny_lm, mixed=True)
    config = TrainConfig(d_sae=64, k=4, batch_size=64, chunk_tokens=500)

    def train(say):
        train_saes(tiny_lm, plan, ["mlp_out@0"], tmp_path / "saes", config, say=say)

    def stop(line):
        if (tmp_path / "saes" / "training.safetensors").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stop)
    note = first_note(train)
    assert note.startswith("note: the training goes on with 2 threads after 1")


def test_a_collection_says_that_it_goes_on_with_other_threads(
    tmp_path, tiny_corpus, tiny_lm, small_windows
):
    plan = make_plan(tiny_corpus, tiny_lm)
    neurons = [Identity("mlp_act@0", 48)]

    def count(say):
        collect(tiny_lm, plan, neurons, tmp_path / "stats", say=say, checkpoint_seconds=0)

    with pytest.raises(KeyboardInterrupt):
        count(Interrupt("window 3"))
    note = first_note(count)
    assert note.startswith("note: the collection goes on with 2 threads after 1")


def first_note(call):
    """The only note of a stage that goes on with two threads, which is its first line."""
    torch.set_num_threads(2)
    lines = []
    call(lines.append)
    torch.set_num_threads(1)
    assert [line for line in lines if line.startswith("note")] == lines[:1]
    return lines[0]
