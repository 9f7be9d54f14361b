"""Configuration files of trainings: the keys of the command line, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from helpers import refused

from saefeat.config import FollowConfig, RanksConfig, TrainConfig, TrainInputs
from saefeat.run.training import forecast_job, place_rank, read_job
from saefeat.sae.store import load_sae
from saefeat.world import World

LEAST = {"model": "m", "corpus": "c", "sites": ["mlp_out@0"], "out": "o"}
ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "train/configs").glob("*.toml"))


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
eval_tokens = 50
log_to = ["wandb"]
"""
    job = read_job(file(text))
    assert job.inputs == TrainInputs(
        "m", "c", ("de",), None, 3, dtype="bfloat16", sites=("mlp_out@0", "mlp_out@1")
    )
    assert job.training == TrainConfig(8, lr=1.0, seed=3)  # dtype is that of the model
    assert job.ranks == RanksConfig("sites") and job.out == Path.home() / "saes"
    assert job.follow == FollowConfig(50, ("wandb",))
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
        (
            {"layout": "rows"},
            "the layout should be 'data', 'sites' or 'features', not rows",
            ("layout",),
        ),
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


@pytest.mark.parametrize(
    ("values", "size", "message", "options"),
    [
        ({"layout": "sites"}, 2, "2 processes cannot share out 1 sites", ("layout",)),
        (
            {"layout": "features", "d_sae": 160},
            4,
            "160 units.* multiple of 64",
            ("layout", "d_sae"),
        ),
        (
            {"layout": "sites", "replicas": 3},
            4,
            "4 processes cannot form 3 replicas",
            ("replicas",),
        ),
        ({"replicas": 2}, 4, "each of 4 processes is a replica, not 2", ("replicas", "layout")),
        ({"batch_size": 16}, 17, "17 processes cannot share out 16 tokens per step", ("layout",)),
    ],
)
def test_ranks_that_do_not_fit_the_layout_are_refused(file, values, size, message, options):
    job = read_job(file(LEAST | values | {"device": "cpu"}, "job.json"))
    assert place_rank(job, World(0, values.get("replicas", 1))) == job
    with refused(message, *options):
        place_rank(job, World(0, size))


def gigabytes(line):
    return float(re.search(r"([\d.]+) GB of memory", line)[1])


@pytest.mark.parametrize("layout", ["data", "sites", "features"])
def test_a_forecast_has_a_line_for_each_rank(file, tiny_model_dir, tiny_jsonl, layout):
    values = {"model": str(tiny_model_dir), "corpus": str(tiny_jsonl), "out": "o", "d_sae": 64}
    values |= {"sites": ["mlp_out@0", "mlp_act@0", "mlp_out@1"], "k": 4, "layout": layout}
    lines, apart = [], []
    forecast_job(read_job(file(values, "job.json")), 2, lines.append)
    *_, first, second, together = lines
    assert [line.partition(":")[0] for line in (first, second)] == ["rank 0", "rank 1"]
    assert all("GB of memory" in line and "on disk" in line for line in (first, second))
    assert all((" 0.0 MB sent" in line) == (layout == "sites") for line in (first, second))
    one, two, both = (gigabytes(line) for line in (first, second, together))
    assert together.startswith("2 processes on this machine: ") and "which has" in together
    assert both == pytest.approx(one + two, abs=0.16) and both > 1.3  # of libraries alone 1.4
    forecast_job(read_job(file(values, "job.json")), 2, apart.append, local_size=1)
    assert apart[-1].startswith("rank 1") and not any("on this machine" in line for line in apart)


def test_a_forecast_refuses_what_the_training_would(file, tiny_model_dir, tiny_jsonl):
    values = {"model": str(tiny_model_dir), "corpus": str(tiny_jsonl), "out": "o"}
    values |= {"sites": ["mlp_out@0"], "k": 4, "layout": "features"}
    with refused("9 processes cannot share out", "layout", "d_sae"):
        forecast_job(read_job(file(values, "job.json")), 9, lambda line: None)


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


# --------------------------------------------------------------------------- job scripts

# Starts the command once for each task, as srun does; the options before it are not needed.
SRUN = """#!/usr/bin/env bash
while [ "${1:0:2}" = -- ]; do shift; done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % SLURM_NTASKS_PER_NODE)) "$@" || exit
done
"""
SCONTROL = """#!/usr/bin/env bash
[ "$1 $2" = "show hostnames" ] && echo "node-of-$3" && echo other || echo "$@" >> "$SAID"
"""
PYTHON = """#!/usr/bin/env bash
place="$RANK/$WORLD_SIZE|$LOCAL_RANK/$LOCAL_WORLD_SIZE|$MASTER_ADDR:$MASTER_PORT"
(printf '%s|' "$place" "$@" && echo) >> "$SAID"
exit "$ENDS"
"""


@pytest.fixture
def job(tmp_path):
    """job(script, *words, ends=0, **variables): the exit code, and what the script has started."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": PYTHON}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(script, *words, ends=0, **variables):
        said = tmp_path / "said"
        said.unlink(missing_ok=True)
        slurm = {"JOB_ID": 40123, "JOB_NODELIST": "list", "NTASKS": 2, "NTASKS_PER_NODE": 1}
        values = {f"SLURM_{name}": value for name, value in slurm.items()} | variables
        values |= {"ENDS": ends, "SAID": said, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        environment = os.environ | {name: str(value) for name, value in values.items()}
        command = ["bash", str(ROOT / "train" / script), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.returncode, said.read_text().splitlines() if said.exists() else done.stderr

    return run


@pytest.mark.parametrize(
    ("script", "words", "started"),
    [
        ("slurm.sh", ["job.toml"], "train/sae.py|job.toml|"),
        ("collect.sh", ["o", "--saes", "a b"], "-m|saefeat|collect|--out|o|--saes|a b|"),
    ],
)
def test_a_job_starts_a_process_per_task_and_is_queued_again_after_a_signal(
    job, script, words, started
):
    ranks = [f"{rank}/2|0/1|node-of-list:20123|{started}" for rank in range(2)]
    assert job(script, *words) == (0, ranks)
    assert job(script, *words, ends=130) == (130, [ranks[0], "requeue 40123"])
    assert job(script, *words, ends=2) == (2, ranks[:1])
    code, error = job(script)
    assert code and "give a" in error


def test_a_job_of_an_array_collects_its_shard(job):
    variables = {"SLURM_ARRAY_TASK_ID": 3, "SLURM_NTASKS": 1, "SHARDS": 16}
    code, (line,) = job("collect.sh", "shards", "--model", "m", **variables)
    assert code == 0
    assert line.endswith("|collect|--out|shards/shard-3|--shard|3/16|--model|m|")
    del variables["SHARDS"]
    code, error = job("collect.sh", "shards", **variables)
    assert code and "set SHARDS to the number of shards" in error
