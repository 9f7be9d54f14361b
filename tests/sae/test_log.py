"""The figures of a training: its lines, its curves, evaluation at intervals, and trackers."""

from __future__ import annotations

import json
import shutil
import socket
from importlib.util import find_spec
from itertools import count
from xml.etree import ElementTree

import pytest
from helpers import contents, refused
from helpers import training_lines as lines

from saefeat.config import FollowConfig, TrainConfig
from saefeat.corpora import make_plan
from saefeat.sae.curves import draw_curves
from saefeat.sae.formats.sae_lens import WEIGHTS
from saefeat.sae.log import CURVES, LINES, read_lines
from saefeat.sae.store import load_sae, load_saes
from saefeat.sae.trackers import check_trackers
from saefeat.sae.train import sae_id, train_saes

SITES = ["mlp_out@0", "resid_post@1"]
CONFIG = TrainConfig(
    k=4, d_sae=64, batch_size=64, chunk_tokens=900, passes=2, dead_tokens=1500, dtype="float32"
)
EVERY = 20  # steps
FOLLOW = FollowConfig(EVERY * CONFIG.batch_size)


@pytest.fixture
def plan(tiny_corpus, tiny_lm, small_windows):
    return make_plan(tiny_corpus, tiny_lm, mixed=True)


@pytest.fixture
def train(tiny_lm, plan):
    """train(out, follow): train SAEs."""
    return lambda out, follow=FOLLOW, **more: train_saes(
        tiny_lm, plan, SITES, out, CONFIG, follow=follow, **more
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_corpus, tiny_lm):
    """The directory of a training that was not stopped."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saefeat.corpora.WINDOW", 32)
        plan = make_plan(tiny_corpus, tiny_lm, mixed=True)
        train_saes(tiny_lm, plan, SITES, out, CONFIG, follow=FOLLOW)
    return out


def weights(out):
    return [(out / sae_id(site) / WEIGHTS).read_bytes() for site in SITES]


def test_lines_have_the_figures_of_every_site_and_step(whole):
    found = [json.loads(line) for line in (whole / LINES).read_text().splitlines()]
    steps = [line["step"] for line in found]
    assert steps == sorted(steps) and steps[0] == 1 and len(found) > 8
    trained = [line for line in found if "sites" in line]
    assert len({line["step"] for line in trained}) == len(trained)
    for line in trained:
        assert line["tokens"] == 64 * line["step"] and line["tokens_per_second"] > 0
        assert list(line["sites"]) == SITES
        for figures in line["sites"].values():
            assert figures.keys() == {"fvu", "l0", "dead", "lr"} and figures["l0"] <= 4
    first, last = (line["sites"]["mlp_out@0"] for line in (trained[0], trained[-1]))
    assert last["fvu"] < first["fvu"] and last["lr"] < max(
        line["sites"]["mlp_out@0"]["lr"] for line in trained
    )
    assert trained[0]["seconds_left"] > 0 == trained[-1]["seconds_left"]
    record = load_sae(whole / sae_id("mlp_out@0")).record
    average = record["training_average"]
    assert (last["fvu"], last["l0"]) == (average["fvu"], average["l0"])


def test_evaluations_come_at_intervals_and_the_last_is_the_record_of_the_sae(whole):
    found = [line for line in lines(whole) if "evaluation" in line]
    *between, last = found
    total = lines(whole)[-1]["step"]
    assert [line["step"] for line in between] == list(range(EVERY, total, EVERY)) != []
    assert last["step"] == total
    for site in SITES:
        record = load_sae(whole / sae_id(site)).record
        figures = {**record["held_out"], "dead": record["dead"], **record["evaluation"]}
        assert last["evaluation"][site] == figures
        assert figures["labels"].keys() == {"de", "en", "th"}
        early = between[0]["evaluation"][site]
        assert early["fvu"] > figures["fvu"]
        assert early["loss"]["zero"] == figures["loss"]["zero"] != figures["loss"]["clean"]


def test_no_weight_depends_on_what_is_written(tmp_path, train, whole):
    for name, follow in {"none": None, "never": FollowConfig(0), "default": FollowConfig()}.items():
        train(tmp_path / name, follow)
        assert weights(tmp_path / name) == weights(whole)
        assert "evaluation" not in load_sae(tmp_path / name / sae_id(SITES[0])).record
    assert not (tmp_path / "none" / LINES).exists() and not (tmp_path / "none" / CURVES).exists()
    plain = [line for line in lines(whole) if "evaluation" not in line]
    assert lines(tmp_path / "never") == lines(tmp_path / "default") == plain
    assert [sae.site for sae in load_saes(str(whole))] == SITES  # the other files do not disturb


@pytest.mark.parametrize("after", [9, 16])
def test_the_lines_of_a_training_that_was_stopped_are_those_of_one_that_was_not(
    tmp_path, train, whole, after
):
    looks, pause = count(), 1000 if after == 9 else 0
    stop = lambda: next(looks) >= after  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop=stop, checkpoint_seconds=pause)
    kept = (tmp_path / LINES).read_text()
    assert 2 < len(kept.splitlines()) < len(lines(whole))
    # What a process that is killed later leaves: a line after the checkpoint, and a part of one.
    more = json.loads(kept.splitlines()[-1]) | {"step": 10_000}
    (tmp_path / LINES).write_text(f'{kept}{json.dumps(more)}\n{{"step": 3')
    train(tmp_path, checkpoint_seconds=pause)
    assert lines(tmp_path) == lines(whole)
    seconds = [line["seconds"] for line in read_lines(tmp_path / LINES)]
    assert seconds == sorted(seconds)


def test_the_curves_are_drawn_by_site(whole):
    text = (whole / CURVES).read_text()
    root = ElementTree.fromstring(text)
    words = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"FVU", "L0", "dead share", "loss recovered", *SITES} <= set(words)
    paths = root.iter("{http://www.w3.org/2000/svg}path")
    curves = [path for path in paths if path.get("class", "").startswith("curve")]
    last = lines(whole)[-1]["evaluation"].values()
    recovered = sum(of["loss"]["recovered"] is not None for of in last)
    assert len(curves) == (2 * 2 + 1) * len(SITES) + recovered  # FVU and L0 also on held-out text
    assert recovered > 0


def test_curves_that_a_killed_process_did_not_draw_are_drawn_by_the_same_command(
    tmp_path, train, whole
):
    shutil.copytree(whole, tmp_path / "o")
    (tmp_path / "o" / CURVES).unlink()
    train(tmp_path / "o", None)
    assert not (tmp_path / "o" / CURVES).exists()
    train(tmp_path / "o")
    assert contents(tmp_path / "o") == contents(whole)


def test_curves_of_nothing_and_of_equal_values_are_drawn():
    assert "FVU: not measured" in draw_curves([])
    line = {"step": 1, "tokens": 64, "sites": {"<a>": {"fvu": 0.0, "l0": 4.0, "dead": 0.0}}}
    many = [{**line, "tokens": 64 * (i + 1)} for i in range(5000)]
    for found in ([line], many):
        text = draw_curves(found)
        ElementTree.fromstring(text)
        assert "nan" not in text and "&lt;a&gt;" in text and len(text) < 40_000


# --------------------------------------------------------------------------- trackers


def test_an_unknown_and_a_missing_tracker_are_user_errors(monkeypatch):
    with refused("no tracker 'mlflow'; choose from tensorboard, trackio or wandb", "log_to"):
        check_trackers(["mlflow"])
    monkeypatch.setattr("saefeat.sae.trackers.find_spec", lambda _: None)
    with refused(r"wandb is not installed; run: pip install 'saefeat\[wandb\]'", "log_to"):
        check_trackers(["wandb"])


@pytest.fixture
def no_network(monkeypatch):
    """Only addresses of this machine can be reached."""
    plain = socket.socket.connect

    def connect(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"a connection to {address}")
        return plain(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


def needs(name):
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed")


@needs("tensorboard")
def test_tensorboard_files_hold_each_step_once(tmp_path, train, whole, no_network):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    follow, looks = FollowConfig(FOLLOW.eval_tokens, ("tensorboard",)), count()
    with pytest.raises(KeyboardInterrupt):  # the checkpoint is one chunk older than the last step
        train(tmp_path, follow, stop=lambda: next(looks) >= 16)
    train(tmp_path, follow)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for prefix, part in (("", "sites"), ("held-out ", "evaluation")):
        for site in SITES:
            events = found.Scalars(f"{prefix}fvu/{site}")
            wanted = [(e["step"], e[part][site]["fvu"]) for e in lines(whole) if part in e]
            assert [event.step for event in events] == [step for step, _ in wanted]
            assert [event.value for event in events] == pytest.approx([x for _, x in wanted])
    assert found.Scalars(f"held-out recovered/{SITES[0]}")


@needs("wandb")
def test_wandb_writes_an_offline_run(tmp_path, train, whole, no_network, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    train(tmp_path, FollowConfig(FOLLOW.eval_tokens, ("wandb",)))
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    data = path.read_bytes()
    for line in lines(whole):
        for site, figures in line.get("sites", line.get("evaluation")).items():
            assert f"fvu/{site}".encode() in data and repr(figures["fvu"]).encode() in data


@needs("trackio")
def test_trackio_writes_its_local_database(tmp_path, train, whole, no_network, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    from trackio.sqlite_storage import SQLiteStorage

    train(tmp_path / "out", FollowConfig(FOLLOW.eval_tokens, ("trackio",)))
    (name,) = SQLiteStorage.get_runs("saefeat")
    logs = SQLiteStorage.get_logs("saefeat", name)
    found = [log[f"fvu/{SITES[0]}"] for log in logs if f"fvu/{SITES[0]}" in log]
    assert found == [e["sites"][SITES[0]]["fvu"] for e in lines(whole) if "sites" in e]
