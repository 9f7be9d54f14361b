"""Steering a run: the sweep, the matrix, `steer generate`, and their errors."""

from __future__ import annotations

import fcntl
import gc
import json
import math
import os
import re
import shutil
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from statistics import median

import pytest
import torch
from helpers import Interrupt

from saefeat import memory
from saefeat.cli.steer import print_steering
from saefeat.config import STEERING_METHODS, Decoding, GenerateConfig, MatrixConfig
from saefeat.encoders import GroupedEncoder
from saefeat.forcing import Reference, forces_fluently
from saefeat.hooks import intervene
from saefeat.io import UserError
from saefeat.methods.lape import lape
from saefeat.progress import quiet
from saefeat.resume import Checkpoint
from saefeat.run import open_run, rank, run
from saefeat.run.continuation import continue_prompts
from saefeat.run.grids import default_recipe, demo_grid, english_prompts, full_grid, steering_sites
from saefeat.run.matrix import matrix, most_affected, own_features
from saefeat.run.recipes import choose_recipe, load_recipe
from saefeat.run.steer import Bench, find_source
from saefeat.run.sweep import sweep
from saefeat.rundir import RunDir
from saefeat.schema import checked
from saefeat.statistics.files import CONTROL, stats_file
from saefeat.steering import CONSTANT, CannotSteer, NoUnits, Schedule, SteeringRecipe, changes_of
from saefeat.steering.changes import Collected

PROMPTS = ["The old man", "Water is", "Why do people", "She said that"]
SITE = "resid_post@0"
METHODS = {"none", "features", "neurons", "diffmean", "random"}  # others: test_makers.py


pytestmark = pytest.mark.usefixtures("one_core", "every_line")


@pytest.fixture
def out(run_copy):
    return run_copy


@pytest.fixture
def bench(out):
    return Bench(open_run(out), "en", Decoding(max_new_tokens=8))


def small_grid(bench):
    return [
        recipe
        for recipe in full_grid(bench.opened.lm, [[SITE]])
        if recipe.method in METHODS
        and recipe.strength in (1.0, 2.0)
        and recipe.parameters.get("top_rate", 0.05) == 0.05
    ]


# --------------------------------------------------------------------------- prompts and recipes


def test_each_half_of_the_64_prompts_has_all_eight_kinds():
    prompts = english_prompts()
    assert len(prompts) == 64 == len(set(prompts))
    kinds = json.loads(files("saefeat.run").joinpath("prompts.json").read_text())
    of = {prompt: kind for kind, group in kinds.items() for prompt in group}
    for half in (prompts[::2], prompts[1::2], prompts[::4]):
        assert {of[prompt] for prompt in half} == set(kinds)


def test_a_recipe_survives_json():
    recipe = SteeringRecipe("features", "add", (SITE,), Schedule(2, 0.1), 1.3, {"top": 30})
    path = Path("settings.json")
    assert checked(SteeringRecipe, json.loads(json.dumps(asdict(recipe))), path) == recipe
    with pytest.raises(UserError, match=r"settings.json is not what saefeat writes there \(edit"):
        checked(SteeringRecipe, {"method": "features"}, path)


def test_features_steer_in_the_residual_stream_by_default(out):
    assert steering_sites(open_run(out)) == [SITE]


def test_the_source_is_english_unless_named(out):
    setting = open_run(out)
    assert find_source(setting, None) == "en" and find_source(setting, "th") == "th"
    with pytest.raises(UserError, match="no label 'xx'"):
        find_source(setting, "xx")


def test_labels_may_be_named_in_any_code_system(out):
    setting = open_run(out)
    assert find_source(setting, "tha_Thai") == "th"
    setting.config = replace(setting.config, source="eng")
    assert find_source(setting, None) == "en"
    bench = Bench(setting, "en", Decoding(max_new_tokens=8))
    assert bench.find_target("deu_Latn") == "de"
    recipe = load_recipe(bench, "de")
    rows = [continue_prompts(bench, label, ["the cat"], recipe) for label in ("deu", "de")]
    assert rows[0] == rows[1] and rows[0][0]["label"] == "de"
    with pytest.raises(UserError, match="en is the source that is steered away from"):
        bench.find_target("eng")
    with pytest.raises(UserError, match="there is no label 'fra' in this run; it has de, en, th"):
        bench.find_target("fra")


def test_random_units_are_as_many_and_as_long_as_the_features(bench):
    features, random = (
        SteeringRecipe(method, "add", (SITE,), Schedule(), 1.0, {"top": 5})
        for method in ("features", "random")
    )
    vectors = []
    for recipe in (features, random):
        changes, count = bench.builder.build(recipe, "de")
        x = torch.zeros(1, 1, bench.opened.saes[0].d_in)
        vectors.append((changes[SITE][0](x, torch.ones(1, 1, 1)).flatten(), count))
    (one, n), (other, m) = vectors
    assert n == m > 0
    length = float(bench.builder.collected.difference(SITE, "de").norm())
    assert (
        float(one.norm())
        == pytest.approx(length, rel=1e-5)
        == pytest.approx(float(other.norm()), rel=1e-5)
    )
    assert abs(float(torch.cosine_similarity(one, other, dim=0))) < 0.95


def moved(changes, seed=0):
    """What changes make of random vectors, by site."""
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(seed))
    found = {}
    for site, here in changes.items():
        found[site] = x
        for change in here:
            found[site] = change(found[site], torch.full((1, 5, 1), 0.7))
    return found


def test_steer_and_the_recipes_of_a_run_build_the_same_changes(bench, out):
    recipe = SteeringRecipe("features", "add", (SITE,), Schedule(), 1.0, {"top": 5})
    selection = rank(
        out / "stats", "feature-diffmean", source="en", top=5, dictionaries=["sae-resid_post@0"]
    )
    ours, count = bench.builder.build(recipe, "de")
    lm = bench.opened.lm
    theirs = changes_of(lm, selection, "de", source="en")
    assert count == len(selection.for_label("de")) > 0
    assert ours.keys() == theirs.keys() == {SITE}
    assert torch.equal(moved(ours)[SITE], moved(theirs)[SITE])
    neurons = SteeringRecipe("neurons", "clamp", ("mlp_act@0",), CONSTANT, 1.0, {"top_rate": 0.5})
    selection = rank(out / "stats", "lape", top_rate=0.5, dictionaries=["mlp_act@0"])
    ours = bench.builder.build(neurons, "de")[0]["mlp_act@0"][0]
    theirs = changes_of(lm, selection, "de", edit="clamp")["mlp_act@0"][0]
    x = torch.randn(1, 5, 48, generator=torch.Generator().manual_seed(0))
    one = torch.ones(1, 5, 1)
    assert torch.equal(ours(x, one), theirs(x, one)) and not torch.equal(ours(x, one), x)


def test_the_whole_difference_of_means_is_every_coordinate_of_the_site(bench):
    recipe = SteeringRecipe("diffmean", "add", (SITE,), CONSTANT, 1.0, {})
    changes, count = bench.builder.build(recipe, "de")
    stats = bench.builder.collected.read(SITE)
    de, en = (stats.mean()[stats.labels.index(label)] for label in ("de", "en"))
    x = torch.zeros(1, 1, 32)
    assert count == 0
    assert torch.equal(changes[SITE][0](x, torch.ones(1, 1, 1))[0, 0], (de - en).float())


# --------------------------------------------------------------------------- the sweep


def test_a_sweep_writes_what_the_contract_says(bench, out):
    metrics = json.loads(
        sweep(bench, small_grid(bench), PROMPTS, out / "steering" / "metrics.json").read_text()
    )
    assert metrics["prompts"] == 4 and metrics["decoding"]["max_new_tokens"] == 8
    assert set(metrics["own"]) == {"de", "th"}
    assert set(metrics["own"]["de"]) == {
        "forcing",
        "perplexity",
        "distinct3",
        "perplexity_in_context",
    }
    names = {"method", "label", "edit", "sites", "schedule", "strength", "units", "half"}
    names |= {"forcing", "perplexity"}
    names |= {"distinct3", "score", "score_ci", "score_in_context", "score_in_context_ci"}
    assert all(names | {"lpr", "wpr", "lcpr"} <= set(row) for row in metrics["rows"])
    assert all("score_in_context_ci" in row for row in metrics["summary"])
    for label in ("de", "th"):
        for half in ("tune", "report"):
            rows = [row for row in metrics["rows"] if row["label"] == label and row["half"] == half]
            assert {row["method"] for row in rows} == METHODS
            if half == "report":
                assert len(rows) == 5  # one setting each
    assert metrics["summary"][0]["method"] == "none"
    settings = json.loads((out / "steering" / "settings.json").read_text())
    own = {label: Reference(**values) for label, values in metrics["own"].items()}
    best = {
        label: max(
            (
                r
                for r in metrics["rows"]
                if (r["label"], r["method"], r["half"]) == (label, "features", "tune")
            ),
            key=lambda r: (forces_fluently(r, own[label]), r["score"]),
        )
        for label in ("de", "th")
    }
    assert all(
        row["chosen"] == (row["half"] == "report" or row == best[row["label"]])
        for row in metrics["rows"]
        if row["method"] == "features"
    )
    assert all(0 <= row["reached"] <= row["labels"] == 2 for row in metrics["summary"])
    for label, row in best.items():
        assert settings["labels"][label]["strength"] == row["strength"]
        assert settings["labels"][label]["parameters"] == row["parameters"]
    samples = [
        json.loads(line) for line in (out / "steering" / "samples.jsonl").read_text().splitlines()
    ]
    assert {sample["prompt"] for sample in samples} == set(PROMPTS[1::2])
    assert len(samples) == 2 * 4 * 2  # labels, methods, prompts
    assert not list(out.rglob("*-partial"))


def test_a_sweep_of_an_earlier_version_is_readable_and_not_complete(bench, out, saefeat):
    target, grid = out / "steering" / "metrics.json", small_grid(bench)[:1]
    sweep(bench, grid, PROMPTS, target, labels=["de"])
    metrics = json.loads(target.read_text())
    for row in (*metrics["rows"], *metrics["summary"], *metrics["own"].values()):
        for name in [name for name in row if "in_context" in name or name.endswith("pr")]:
            del row[name]
    old = {**metrics, "request": "of another version"}
    target.write_text(json.dumps(old))
    found = RunDir(out).load_steering_metrics()
    assert found["rows"][0]["score"] == metrics["rows"][0]["score"]
    print_steering(found)
    assert saefeat("report", out)[0] == 0
    sweep(bench, grid, PROMPTS, target, labels=["de"])
    assert "score_in_context" in json.loads(target.read_text())["summary"][0]


def test_continuations_say_whether_their_lines_and_words_pass(bench):
    rows = continue_prompts(bench, "de", PROMPTS, load_recipe(bench, "de"))
    texts = [row["text"] for row in rows]
    lines, words = bench.passes(texts, "de")
    assert [row["line_pass"] for row in rows] == lines
    assert [row["word_pass"] for row in rows] == words
    assert all(0 < row[name] <= 1 for row in rows for name in ("distinct3", "distinct3_twin"))


def test_a_sweep_that_was_killed_resumes_to_the_same_bytes(bench, out):
    target = out / "steering" / "metrics.json"
    grid = small_grid(bench)
    sweep(bench, grid, PROMPTS, target)
    files = ("metrics.json", "settings.json", "samples.jsonl")
    whole = [(target.parent / name).read_bytes() for name in files]
    for name in files:
        (target.parent / name).unlink()
    again = Bench(open_run(out), "en", Decoding(max_new_tokens=8))

    again.opened.say = Interrupt("1 of 2")
    with pytest.raises(KeyboardInterrupt):
        sweep(again, grid, PROMPTS, target)
    assert not target.exists()
    lines = []
    again.opened.say = lines.append
    sweep(again, grid, PROMPTS, target)
    done = [line for line in lines if line.startswith("steering: ")]
    assert all("1 of 1 labels" in line and "th: " in line for line in done) and done  # no `de`
    assert [(target.parent / name).read_bytes() for name in files] == whole
    lines.clear()
    sweep(again, grid, PROMPTS, target)
    assert lines == [f"{target} is complete already"]


def test_a_sweep_is_done_again_where_statistics_are_collected_anew(bench, out):
    """Those of SAEs and of sites; of random tokens where langfir, which reads them, is tried."""
    said, target = [], out / "steering" / "metrics.json"
    bench.opened.say, grid = said.append, small_grid(bench)
    sae = next(sae.id for sae in bench.opened.saes if sae.site == SITE)
    sweep(bench, grid, PROMPTS, target, labels=["de"])
    for dictionary, change, again in (
        (sae, {}, False),
        (sae, {"tokens": 99}, True),
        (SITE, {"tokens": 99}, True),
        (SITE, {"tokens": 99}, False),
    ):
        resave(out, dictionary, change)
        sweep(bench, grid, PROMPTS, target, labels=["de"])
        assert (said[-1] == f"{target} is complete already") is not again
    parameters = STEERING_METHODS["langfir"].parameters
    langfir = SteeringRecipe("langfir", "add", (SITE,), CONSTANT, 1.0, parameters)
    requests = [bench.request(some) for some in (grid, [langfir])]
    RunDir(out).load_stats(sae).save(stats_file(out / "stats" / CONTROL, sae))
    assert bench.request(grid) == requests[0] and bench.request([langfir]) != requests[1]


def test_a_label_of_a_killed_sweep_is_kept_for_a_sweep_over_other_labels(bench, out):
    grid = demo_grid([SITE])
    whole = sweep(bench, grid, PROMPTS, out / "whole.json").read_bytes()
    bench.opened.say = Interrupt("1 of 2")
    with pytest.raises(KeyboardInterrupt):
        sweep(bench, grid, PROMPTS, out / "some.json", labels=["th", "de"])
    lines = []
    bench.opened.say = lines.append
    assert sweep(bench, grid, PROMPTS, out / "all.json").read_bytes() == whole
    assert lines and all("1 of 1 labels" in line and "de: " in line for line in lines)  # no `th`


def test_the_state_of_a_sweep_that_is_finished_goes_and_that_of_another_stays(bench, out):
    target, grid = out / "steering" / "metrics.json", small_grid(bench)
    sweep(bench, grid, PROMPTS, target)
    grid_mark = json.loads(target.read_text())["grid"]
    state = out / "steering" / "settings-partial" / "state.safetensors"
    for of, stays in ((grid_mark, False), ("another", True)):
        Checkpoint(state, of, "the sweep", 1).save({})
        sweep(bench, grid, PROMPTS, target)
        assert state.exists() == stays == state.parent.exists()


def test_two_sweeps_of_a_run_and_two_matrices_of_a_file_are_refused(bench, out):
    target = out / "steering" / "m.json"

    def sweep_now():
        sweep(bench, demo_grid([SITE]), PROMPTS, target)

    def matrix_now():
        matrix(bench.opened, target, MatrixConfig(sentences=2, top=5))

    for name, call in (("settings", sweep_now), ("m", matrix_now)):
        directory = out / "steering" / f"{name}-partial"
        directory.mkdir(parents=True)
        handle = os.open(directory, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)  # as another process would
        with pytest.raises(UserError, match=f"another process is writing in {directory}"):
            call()
        os.close(handle)
    assert not target.exists()


def test_the_demo_tunes_and_reports_on_the_same_prompts(bench, out):
    metrics = json.loads(
        sweep(
            bench, demo_grid([SITE]), PROMPTS, out / "steering/metrics.json", halves=False
        ).read_text()
    )
    assert {row["half"] for row in metrics["rows"]} == {"all"}
    assert {row["method"] for row in metrics["rows"]} == {"none", "features", "diffmean"}


def test_missing_statistics_of_neurons_are_collected_once(bench, out):
    shutil.rmtree(out / "steering", ignore_errors=True)
    (out / "stats" / "mlp_act@1.safetensors").unlink(missing_ok=True)
    recipe = SteeringRecipe(
        "neurons", "clamp", ("mlp_act@0", "mlp_act@1"), CONSTANT, 1.0, {"top_rate": 0.5}
    )
    bench.collect_missing([recipe])
    made = out / "steering" / "stats" / "mlp_act@1.safetensors"
    before = made.stat().st_mtime_ns
    bench.collect_missing([recipe])
    assert made.stat().st_mtime_ns == before
    assert bench.builder.collected.read("mlp_act@1").width == 48


def test_source_off_sets_the_sources_own_neurons_to_zero(bench):
    sites = ("mlp_act@0", "mlp_act@1")
    recipe = SteeringRecipe("neurons", "clamp, source off", sites, CONSTANT, 1.0, {"top_rate": 0.5})
    bench.collect_missing([recipe])
    changes, count = bench.builder.build(recipe, "de")
    ranked = lape([bench.builder.collected.read(site) for site in sites], top_rate=0.5)
    chosen = {site: ranked.units(site) for site in sites}
    x, one = torch.full((1, 1, 48), 7.0), torch.ones(1, 1, 1)
    total = 0
    for site in sites:
        target, source = chosen[site]["de"], set(chosen[site]["en"]) - set(chosen[site]["de"])
        after = changes[site][0](x, one)[0, 0] if site in changes else x[0, 0]
        means = (
            bench.builder.collected.read(site)
            .mean()[bench.builder.collected.read(site).labels.index("de")]
            .float()
        )
        for unit in range(48):
            expected = means[unit] if unit in target else 0.0 if unit in source else 7.0
            assert float(after[unit]) == pytest.approx(float(expected))
        total += len(target) + len(source)
    assert count == total > 0


def test_labels_that_cannot_be_measured_are_skipped_with_a_note(bench, out, monkeypatch):
    whole = Bench.measure_reference
    error = CannotSteer("th has no test text")

    def none_for_thai(self, label, n, prompts=None):
        if label == "th":
            raise error
        return whole(self, label, n, prompts)

    monkeypatch.setattr(Bench, "measure_reference", none_for_thai)
    lines = []
    bench.opened.say = lines.append
    target = out / "steering/metrics.json"
    metrics = json.loads(sweep(bench, demo_grid([SITE]), PROMPTS, target, halves=False).read_text())
    assert set(metrics["own"]) == {"de"} and "note: th is skipped: th has no test text" in lines
    monkeypatch.setattr(Bench, "measure_reference", lambda *_: none_for_thai(None, "th", 0))
    with pytest.raises(CannotSteer, match="none of th can be steered"):
        sweep(bench, demo_grid([SITE]), PROMPTS, out / "other.json", halves=False, labels=["th"])
    error = UserError("the run is damaged")  # not an error of the label
    with pytest.raises(UserError, match="the run is damaged"):
        sweep(bench, demo_grid([SITE]), PROMPTS, out / "other.json", halves=False, labels=["th"])


def test_labels_that_fasttext_cannot_judge_are_refused_if_they_are_asked_for(bench, out):
    corpus = bench.opened.corpus
    names = {"de": "de", "en": "en", "th": "egy"}
    bench.opened.corpus = replace(
        corpus, of=[names[label] for label in corpus.of], labels=tuple(names.values())
    )
    with pytest.raises(UserError, match="fastText cannot judge egy; choose") as no:
        sweep(bench, demo_grid([SITE]), PROMPTS, out / "other.json", labels=["de", "egy"])
    assert no.value.options == ("labels",) and not (out / "other.json").exists()


def test_labels_of_a_sweep_are_named_by_their_option(saefeat, out, tmp_path):
    ask = ["steer", "sweep", "--run", out, "--out", tmp_path / "m.json", "--labels"]
    for label, message in {"xx": r"no label 'xx'.* \(--labels\)", "en": r"\(--labels, --s"}.items():
        code, _, err = saefeat(*ask, label)
        assert code == 2 and re.search(message, err)


def test_a_label_without_test_text_or_tokens_cannot_be_steered(bench):
    corpus = bench.opened.corpus
    bench.opened.corpus = replace(
        corpus, of=["de" if label == "th" else label for label in corpus.of]
    )
    with pytest.raises(CannotSteer, match="th has no test text of 10 tokens"):
        bench.measure_reference("th", 2)
    stats = bench.builder.collected.read(SITE)
    stats.tokens[stats.labels.index("th")] = 0
    recipe = SteeringRecipe("diffmean", "add", (SITE,), CONSTANT, 1.0, {})
    assert bench.builder.build(recipe, "de")[0].keys() == {SITE}
    with pytest.raises(NoUnits, match="the label th has no tokens"):
        bench.builder.build(recipe, "th")


def test_a_method_without_units_for_a_label_is_skipped(bench, out):
    grid = demo_grid([SITE])
    neurons = ("mlp_act@0", "mlp_act@1")
    grid += [
        SteeringRecipe("neurons", "clamp", neurons, CONSTANT, 1.0, {"top_rate": 1e-9})
    ]  # rounds to none
    metrics = json.loads(
        sweep(bench, grid, PROMPTS, out / "steering/metrics.json", halves=False).read_text()
    )
    assert {row["method"] for row in metrics["rows"]} == {"none", "features", "diffmean"}


def test_a_second_run_does_not_overwrite_the_full_sweep(bench, out):
    target = sweep(bench, small_grid(bench), PROMPTS, out / "steering/metrics.json")
    before = target.read_bytes(), (out / "steering/settings.json").read_bytes()
    config = bench.opened.config
    index = json.loads((out / "run.json").read_text())
    index["arguments"]["steer_prompts"] = 2
    (out / "run.json").write_text(json.dumps(index))
    (out / "lid/metrics.json").unlink()  # it names the arguments
    run(replace(config, steer_prompts=2), out)
    assert (target.read_bytes(), (out / "steering/settings.json").read_bytes()) == before


def test_a_run_skips_what_cannot_be_steered_and_nothing_else(tiny_run, tmp_path, monkeypatch):
    saes = (str(tiny_run / "saes"),)
    config = replace(open_run(tiny_run).config, labels=("de", "th"), saes=saes, gate=False)
    config = replace(config, eval_texts=3, steer_prompts=2, matrix_texts=1)
    lines = []
    run(config, tmp_path / "run", say=lines.append)
    assert any(
        line.startswith("note: steering is skipped: the run has no English") for line in lines
    )
    assert not (tmp_path / "run/steering/metrics.json").exists()
    assert (tmp_path / "run/steering/matrix.json").exists()

    def fail(*_, **__):
        raise UserError("the statistics are damaged")

    (tmp_path / "run/steering/matrix.json").unlink()
    monkeypatch.setattr("saefeat.run.measure_matrix", fail)
    with pytest.raises(UserError, match="the statistics are damaged"):
        run(config, tmp_path / "run")


def test_a_sweep_over_one_more_label_keeps_the_settings_of_the_others(bench, out):
    for label in ("de", "th"):
        sweep(
            bench, demo_grid([SITE]), PROMPTS, out / f"{label}.json", halves=False, labels=[label]
        )
    assert set(json.loads((out / "steering/settings.json").read_text())["labels"]) == {"de", "th"}


def test_more_prompts_than_a_batch_holds(bench, monkeypatch):
    monkeypatch.setattr("saefeat.generation.BATCH", 3)
    monkeypatch.setattr("saefeat.run.steer.BATCH", 3)
    ids = [[0, 40 + i, 41] for i in range(7)]
    recipe = load_recipe(bench, "de")
    few, _ = bench.measure(recipe, "de", ids, [0.5, 1.0])
    monkeypatch.setattr("saefeat.generation.BATCH", 128)
    monkeypatch.setattr("saefeat.run.steer.BATCH", 128)
    many, _ = bench.measure(recipe, "de", ids, [0.5, 1.0])
    assert [one.texts for one in few] == [one.texts for one in many]


@pytest.mark.parametrize(
    "damage",
    [
        {"method": "magic"},
        {"schedule": {"first": "x", "rest": 0.3}},
        {"schedule": {"first": -1, "rest": 0.3}},
        {"parameters": {"top": "x"}},
        {"parameters": {"bogus": 1}},
        {"parameters": {"top": -3}},
        {"sites": [3]},
        {"strength": "nan"},
    ],
)
def test_damaged_settings_are_refused(bench, out, damage):
    sweep(bench, demo_grid([SITE]), PROMPTS, out / "steering/metrics.json", halves=False)
    path = out / "steering/settings.json"
    settings = json.loads(path.read_text())
    settings["labels"]["de"] |= damage
    path.write_text(json.dumps(settings))
    with pytest.raises(
        UserError, match=r"settings.json is not what saefeat .* \((labels|features).de"
    ):
        load_recipe(bench, "de")


def test_a_damaged_state_is_measured_again(bench, out):
    grid = demo_grid([SITE])
    whole = sweep(bench, grid, PROMPTS, out / "whole.json", halves=False).read_bytes()
    bench.opened.say = Interrupt("1 of 2")
    with pytest.raises(KeyboardInterrupt):
        sweep(bench, grid, PROMPTS, out / "again.json", halves=False)
    (kept,) = (out / "steering/settings-partial").iterdir()
    kept.write_bytes(kept.read_bytes()[:50])
    bench.opened.say = quiet
    assert sweep(bench, grid, PROMPTS, out / "again.json", halves=False).read_bytes() == whole


# --------------------------------------------------------------------------- the matrix


def test_labels_without_test_text_have_no_column_and_those_without_units_no_row(out, monkeypatch):
    from saefeat.run import matrix as room

    texts, features = room.pick_test_texts, room.own_features
    monkeypatch.setattr(
        room, "pick_test_texts", lambda s, label, n: [] if label == "th" else texts(s, label, n)
    )
    monkeypatch.setattr(room, "own_features", lambda *given: {**features(*given), "de": {}})
    result = matrix(
        open_run(out), out / "m.json", MatrixConfig(sentences=2, edits=("ablate",), top=5)
    )
    rows = result["interventions"][0]["rows"]
    assert set(rows) == {"en", "th"} and set(rows["en"]) == {"de", "en"} == set(result["baseline"])
    assert isinstance(most_affected(result, "ablate"), list)


def test_the_matrix_equals_a_plain_loop(out):
    setting = open_run(out)
    result = matrix(
        setting,
        out / "steering" / "matrix.json",
        MatrixConfig(sentences=3, edits=("ablate",), top=5),
    )
    assert json.loads((out / "steering" / "matrix.json").read_text()) == result
    lm, label, other = setting.lm, "de", "th"
    collected = Collected(RunDir(out).load_stats, None, "cpu")
    units = own_features(collected, setting.saes, 5)[label]
    edits = {}
    for sae in setting.saes:

        def silence(x, steps, sae=sae):
            z = sae.encode(x.flatten(0, 1)).dense()
            kept = z.clone()
            kept[:, units[sae.id]] = 0
            return x + ((kept - z) @ sae.W_dec).view_as(x)

        edits[lm.site(sae.site).path] = silence
    picked = [i for i in setting.corpus.positions("test", 0) if setting.corpus.of[i] == other]
    losses = {}
    for i in picked:
        ids = torch.tensor([lm.prefix + lm.tokenize([setting.corpus.texts[i]], 256)[0]])
        with intervene(lm.model, edits, lm.special_ids), torch.no_grad():
            p = lm.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        losses[i] = -float(p.gather(1, ids[0, 1:, None]).mean())
    from saefeat.corpora import first_by_hash

    found = [losses[i] for i in first_by_hash(setting.corpus, picked, 0, 3)]
    cell = result["interventions"][0]["rows"][label][other]
    assert cell["nll_median"] == pytest.approx(median(found), rel=1e-4)
    assert cell["nll_mean"] == pytest.approx(sum(found) / 3, rel=1e-4)
    assert cell["perplexity_mean"] == pytest.approx(sum(map(math.exp, found)) / 3, rel=1e-4)
    assert result["interventions"][1]["units"] == "random"
    assert result["interventions"][0]["counts"][label] == sum(map(len, units.values()))


def test_a_matrix_whose_encoders_do_not_fit_together_is_refused(out, tmp_path, monkeypatch):
    setting = open_run(out)
    needed = sum(memory.working_bytes(sae, "cpu", 0) for sae in setting.saes)
    monkeypatch.setattr("saefeat.memory.memory_limit", lambda device: 2 * needed - 2)
    with pytest.raises(UserError, match="edits all 2 dictionaries together, whose encoders take"):
        matrix(setting, tmp_path / "m.json", MatrixConfig(sentences=2, top=5))
    assert not list(tmp_path.glob("m*.json"))
    monkeypatch.setattr("saefeat.memory.memory_limit", lambda device: 2 * needed)
    before = count_encoders()
    matrix(setting, tmp_path / "m.json", MatrixConfig(sentences=2, edits=("ablate",), top=5))
    assert count_encoders() == before  # those of the matrix are gone


def count_encoders():
    gc.collect()
    return sum(type(thing) is GroupedEncoder for thing in gc.get_objects())


def test_a_matrix_that_was_killed_resumes_to_the_same_bytes(out, tmp_path):
    setting = open_run(out)
    matrix(setting, tmp_path / "whole.json", MatrixConfig(sentences=2, top=5))

    setting.say = Interrupt("2 of 3")
    with pytest.raises(KeyboardInterrupt):
        matrix(setting, tmp_path / "cut.json", MatrixConfig(sentences=2, top=5))
    lines = []
    setting.say = lines.append
    matrix(setting, tmp_path / "cut.json", MatrixConfig(sentences=2, top=5))
    assert lines and all("1 of 1 labels" in line and "th" in line for line in lines)
    assert (tmp_path / "cut.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.json", "run", "whole.json"]


def test_a_matrix_is_measured_again_where_statistics_are_collected_anew(out, tmp_path):
    said, path = [], tmp_path / "m.json"
    opened, asked = open_run(out, said.append), MatrixConfig(sentences=2, edits=("ablate",), top=5)
    matrix(opened, path, asked)
    for change, again in (({}, False), ({"tokens": 99}, True), ({"tokens": 99}, False)):
        resave(out, opened.saes[0].id, change)
        matrix(opened, path, asked)
        assert (said[-1] == f"{path} is complete already") is not again


def resave(out, dictionary, chosen):
    """Write statistics of the same numbers, with another choice of texts in the header."""
    stats, path = RunDir(out).load_stats(dictionary), RunDir(out).stats_file(dictionary)
    stats.header["chosen"] |= chosen
    stats.save(path)


def test_labels_whose_own_text_suffers_most_are_listed():
    def row(**values):
        return {label: {"nll_median": value} for label, value in values.items()}

    result = {
        "baseline": row(a=1.0, b=2.0),
        "interventions": [
            {
                "edit": "ablate",
                "units": "features",
                "rows": {"a": row(a=1.5, b=2.1), "b": row(a=2, b=3)},
            }
        ],
    }
    assert most_affected(result, "ablate") == ["a"]  # b: both rise by 1


# --------------------------------------------------------------------------- the command line


def test_generate_shows_each_continuation_beside_its_twin(saefeat, out):
    ask = ["steer", "generate", "--run", out, "--label", "de", "--prompt", "The old man"]
    code, text, _ = saefeat(*ask, "--json", "--prompt", "Water is", "--max-new-tokens", 8)
    rows = [json.loads(line) for line in text.splitlines()]
    assert code == 0 and [row["prompt"] for row in rows] == ["The old man", "Water is"]
    names = "prompt label strength text twin judged judged_twin perplexity perplexity_twin "
    names += "distinct3 distinct3_twin line_pass word_pass"
    assert set(rows[0]) == set(names.split())
    code, text, _ = saefeat(*ask)
    assert code == 0 and "unsteered" in text and "  de  " in text


def test_strength_0_gives_the_unsteered_twin(saefeat, out):
    ask = ["steer", "generate", "--run", out, "--label", "de", "--prompt", "The old man"]
    code, text, _ = saefeat(*ask, "--strength", 0, "--json")
    row = json.loads(text)
    assert code == 0 and row["text"] == row["twin"] and row["perplexity"] == row["perplexity_twin"]


def test_generate_takes_the_setting_of_the_last_sweep(saefeat, out, bench):
    sweep(bench, small_grid(bench), PROMPTS, out / "steering" / "metrics.json")
    recipe = load_recipe(bench, "th")
    code, text, _ = saefeat(
        "steer", "generate", "--run", out, "--label", "th", "--prompt", "The old man", "--json"
    )
    assert code == 0 and json.loads(text)["strength"] == recipe.strength
    for method in ("neurons", "random", "diffmean"):
        ask = ["steer", "generate", "--run", out, "--label", "th", "--prompt", "A"]
        assert saefeat(*ask, "--method", method)[0] == 0


def test_an_edit_and_sites_that_are_asked_for_replace_those_of_the_sweep(bench, out):
    def choose(method, **asked):
        return choose_recipe(bench, "th", GenerateConfig(label="th", method=method, **asked))

    sweep(bench, small_grid(bench), PROMPTS, out / "steering" / "metrics.json", labels=["th"])
    for method in ("features", "neurons"):
        swept = load_recipe(bench, "th", method)
        assert choose(method) == swept == choose(method, edit=swept.edit, sites=swept.sites)
        assert choose(method, strength=0.5) == replace(swept, strength=0.5)
    (other,) = {"clamp", "clamp, source off"} - {load_recipe(bench, "th", "neurons").edit}
    assert choose("neurons", edit=other).edit == other
    deep = choose("diffmean", sites=("resid_post@1",))
    assert (deep.sites, deep.strength) == (("resid_post@1",), 1.3)
    several = choose("diffmean", sites=("resid_post@1", SITE, SITE))
    assert (several.sites, several.strength) == (("resid_post@1", SITE), 0.7)
    bench.collect_missing([several])
    assert bench.builder.build(several, "th")[0].keys() == {"resid_post@1", SITE}


def test_without_a_sweep_the_setting_is_the_published_one(bench):
    def default(method):
        recipe = load_recipe(bench, "th", method)
        return recipe.edit, recipe.strength, dict(recipe.parameters)

    assert default("pca") == ("stretch", 1.0, {})
    assert default("overwrite") == ("clamp", 0.4, {"top": 3, "layer": 1})  # the last layer
    assert default("one-sided") == ("clamp, boundary", 1.0, {})
    assert default("recover") == ("step, absolute", 1.0, {"beta": 1})
    assert default("boost") == ("boost", 1.0, {"amount": 5})
    for method, known in STEERING_METHODS.items():
        for edit in known.edits if method != "none" else ():
            assert default_recipe(bench.opened, method, edit).edit == edit


def test_strengths_and_sites_of_a_sweep_reach_the_methods_that_can_take_them(bench):
    lm, sites = bench.opened.lm, ("resid_post@1",)
    grid = full_grid(lm, [sites], (0.25, 3.0), sites)
    of = {name: [one for one in grid if one.method == name] for name in STEERING_METHODS}
    for name in ("features", "random", "diffmean", "gated", "codes", "langfir", "output-score"):
        assert {one.strength for one in of[name]} == {0.25, 3.0}
    elsewhere = {one.method for one in grid if one.sites != sites}
    assert elsewhere == {"recover", "neurons", "boost", "boost-adaptive", "log-odds", "prompting"}
    usual = full_grid(lm, [[SITE]])
    assert {one.sites for one in usual if one.method in ("pca", "overwrite")} == {sites}
    for one in usual:
        if one.method in ("clamp", "pca", "boost"):
            assert replace(one, sites=sites if one.method != "boost" else one.sites) in grid


def test_sweep_and_matrix_from_the_command_line(saefeat, out, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The old man\n\nWater is\n")
    target = out / "steering" / "metrics.json"
    code, text, err = saefeat(
        "steer", "sweep", "--run", out, "--out", target, "--prompts", prompts, "--max-new-tokens", 7
    )
    assert code == 0 and "features" in text and "1 of 2 labels" in err and target.exists()
    code, text, _ = saefeat(
        "steer", "matrix", "--run", out, "--out", tmp_path / "m.json", "--sentences", 2, "--top", 5
    )
    assert code == 0 and "ablate: the median NLL of a label's own text rises most for" in text
    one = ["steer", "matrix", "--run", out, "--out", tmp_path / "one.json", "--sentences", 2]
    code, text, _ = saefeat(*one, "--edits", "amplify")
    assert code == 0 and text.startswith("amplify: ") and "ablate" not in text
    code, _, err = saefeat(*one, "--edits", "scale")
    assert code == 2
    assert "no edit scale for the matrix; there are ablate, amplify (--edits)" in err


REFUSED = {
    "an unknown label": (["--label", "xx", "--prompt", "A"], r"no label 'xx'.*\(--label\)"),
    "the source": (["--label", "en", "--prompt", "A"], "en is the source|no setting for en"),
    "a strength that is no number": (
        ["--label", "de", "--prompt", "A", "--strength", "nan"],
        "should be a finite number",
    ),
    "an infinite strength": (
        ["--label", "de", "--prompt", "A", "--strength", "inf"],
        "should be a finite number",
    ),
    "an empty prompt": (["--label", "de", "--prompt", " "], "prompt 1 is empty"),
    "no prompt": (["--label", "de"], "give --prompt"),
    "a prompt that is too long": (["--label", "de", "--prompt", "word " * 3000], "exceeds"),
    "an unknown source": (["--label", "de", "--prompt", "A", "--source", "xx"], "no label 'xx'"),
    "an unknown method": (
        ["--label", "de", "--prompt", "A", "--method", "magic"],
        "no settings? for magic",
    ),
    "an unknown edit": (
        ["--label", "de", "--prompt", "A", "--method", "pca", "--edit", "add"],
        r"pca has no edit 'add'; it has: stretch; stretch, source side; .* \(--edit\)",
    ),
    "a site without an SAE": (
        ["--label", "de", "--prompt", "A", "--sites", "resid_post@1"],
        r"no SAE at resid_post@1; .* \(--sites\)",
    ),
    "a layer that does not exist": (
        ["--label", "de", "--prompt", "A", "--sites", "resid_post@9", "--method", "pca"],
        r"has the layers 0 to 1 \(--sites\)",
    ),
    "sites of logits": (
        ["--label", "de", "--prompt", "A", "--sites", "resid_post@1", "--method", "boost"],
        r"boost edits no site of the model \(--sites\)",
    ),
    "a chat without a template": (["--label", "de", "--prompt", "A", "--chat"], "no chat template"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_bad_input_gets_one_sentence(saefeat, out, case):
    arguments, sentence = REFUSED[case]
    code, text, err = saefeat("steer", "generate", "--run", out, *arguments)
    assert code == 2 and not text
    assert re.search(sentence, err), err
    assert len([line for line in err.splitlines() if line.startswith("saefeat: ")]) == 1


def test_a_run_without_statistics_is_refused(saefeat, out):
    shutil.rmtree(out / "stats")
    code, _, err = saefeat("steer", "generate", "--run", out, "--label", "de", "--prompt", "A")
    assert code == 2 and "holds no statistics" in err


def test_a_run_of_another_model_is_refused(saefeat, out, save_lm):
    index = json.loads((out / "run.json").read_text())
    shutil.rmtree(index["arguments"]["model"] + "-other", ignore_errors=True)
    index["arguments"]["model"] = str(save_lm(out.parent / "other", seed=5))
    (out / "run.json").write_text(json.dumps(index))
    code, _, err = saefeat("steer", "generate", "--run", out, "--label", "de", "--prompt", "A")
    assert code == 2 and "has changed since the run" in err


def test_missing_runs_and_outputs_of_something_else_are_refused(saefeat, out, tmp_path):
    assert saefeat("steer", "generate", "--run", tmp_path, "--label", "de", "--prompt", "A")[0] == 2
    other = tmp_path / "other.json"
    other.write_text('{"mine": 1}')
    for command in ("sweep", "matrix"):
        code, _, err = saefeat("steer", command, "--run", out, "--out", other)
        assert code == 2 and "other.json exists and is no " in err
    assert other.read_text() == '{"mine": 1}'
    code, _, err = saefeat(
        "steer", "sweep", "--run", out, "--out", tmp_path / "m.json", "--sites", "resid_post@1"
    )
    assert code == 2 and "no SAE at resid_post@1" in err
