"""Configuration files of trainings: the keys of the command line, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import refused

from saefeat.config import RanksConfig, TrainConfig, TrainInputs
from saefeat.run.training import forecast_job, place_rank, read_job
from saefeat.sae.store import load_sae
from saefeat.world import World

LEAST = {"model": "m", "corpus": "c", "sites": ["mlp_out@0"], "out": "o"}
CONFIGS = sorted((Path(__file__).parents[1] / "train/configs").glob("*.toml"))


@pytest.fixture
def file(tmp_path):
    def write(text, name="job.toml"):
        path = tmp_path / name
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        return path

    return write


def test_keys_are_those_of_the_configurations(file):
    text = """
model = "m"
corpus = "c"
sites = ["mlp_out@0", "mlp_out@1"]
labels = ["de"]
out = "~/saes"
dtype = "bfloat16"
seed = 3
k = 8
lr = 1
layout = "sites"
"""
    job = read_job(file(text))
    assert job.inputs == TrainInputs(
        "m", "c", ("de",), None, 3, dtype="bfloat16", sites=("mlp_out@0", "mlp_out@1")
    )
    assert job.training == TrainConfig(8, lr=1.0, seed=3)  # dtype is that of the model
    assert job.ranks == RanksConfig("sites") and job.out == Path.home() / "saes"
    least = read_job(file(LEAST, "job.json"))
    assert (least.training, least.ranks) == (TrainConfig(), RanksConfig())


@pytest.mark.parametrize(
    ("change", "message", "options"),
    [
        ({"chunk_token": 3}, "unknown key 'chunk_token'; did you mean chunk_tokens", ()),
        ({"xyz": 3}, "unknown key 'xyz'; choose from out, ", ()),
        ({"model": ...}, "lacks model$", ()),
        ({"k": 0}, "the k should be greater than or equal to 1, not 0", ("k",)),
        ({"temperature": 0.5}, "the temperature should be greater than or equal", ("temperature",)),
        ({"k": "3"}, "the k should be a valid integer, not 3", ("k",)),
        ({"layout": "rows"}, "the layout should be 'data' or 'sites', not rows", ("layout",)),
        ({"out": 3}, "out should be a directory, not 3", ("out",)),
    ],
)
def test_what_does_not_fit_is_a_user_error(file, change, message, options):
    values = {key: value for key, value in (LEAST | change).items() if value is not ...}
    with refused(message, *options):
        read_job(file(values, "job.json"))


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("k = ", "job.toml", "is no TOML"),
        ("{", "job.json", "is no JSON"),
        ("[]", "job.json", "holds no table"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_a_user_error(file, text, name, message):
    with refused(message):
        read_job(file(text, name))
    with refused("cannot be read"):
        read_job(file(text, name).with_name("other.toml"))


def test_more_ranks_than_the_layout_has_parts_are_refused(file):
    job = read_job(file(LEAST | {"layout": "sites", "device": "cpu"}, "job.json"))
    assert place_rank(job, World(0, 1)) == (job, "cpu")
    with refused("2 processes cannot share out 1 sites", "layout"):
        place_rank(job, World(0, 2))


def test_a_forecast_has_a_line_for_each_rank(file, tiny_model_dir, tiny_jsonl):
    values = {"model": str(tiny_model_dir), "corpus": str(tiny_jsonl), "out": "o", "d_sae": 64}
    values |= {"sites": ["mlp_out@0", "mlp_act@0", "mlp_out@1"], "k": 4, "layout": "sites"}
    lines = []
    forecast_job(read_job(file(values, "job.json")), 2, lines.append)
    assert [line.partition(":")[0] for line in lines[-2:]] == ["rank 0", "rank 1"]
    assert all("GB of memory" in line and "on disk" in line for line in lines[-2:])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configurations_of_the_repository_can_be_read(path):
    job = read_job(path)
    assert job.out == Path("saes") / path.stem


def test_a_temperature_is_an_option_is_recorded_and_is_checked_on_resumption(
    tmp_path, saefeat, tiny_model_dir, tiny_jsonl
):
    of = ("--model", tiny_model_dir, "--corpus", tiny_jsonl, "--sites", "mlp_out@0")
    train = ("train", *of, "--out", tmp_path / "saes", "--d-sae", 64, "--k", 4, "--batch-size", 64)
    code, _, error = saefeat(*train, "--temperature", 3)
    assert code == 2 and "give the budget of the largest one (--max-tokens)" in error
    assert saefeat(*train, "--temperature", 3, "--max-tokens", 100)[0] == 0
    record = load_sae(tmp_path / "saes" / "sae-mlp_out@0").record
    assert record["policy"]["temperature"] == 3
    code, _, error = saefeat(*train, "--temperature", 2, "--max-tokens", 100)
    assert code == 2 and "an SAE of something else" in error
    assert saefeat(*train, "--temperature", 3, "--max-tokens", 100)[0] == 0
