"""`compare`: rules at equal numbers of units, and what their units do, against plain loops."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from statistics import median

import numpy as np
import pytest
import torch
from helpers import Interrupt, contents, refused, selection_of
from sklearn.naive_bayes import MultinomialNB

from saefeat.collection import collect
from saefeat.config import CompareConfig, Decoding, Schedule
from saefeat.corpora import hashed, make_plan
from saefeat.evaluation import head_metrics
from saefeat.forcing import Measured, Reference
from saefeat.lid.features import featurize
from saefeat.methods import METHODS
from saefeat.report import write_report
from saefeat.run import neurons, open_run, rank, run
from saefeat.run.chosen import chosen_units, every_unit, random_twins, random_unions
from saefeat.run.compare import compare_rules, compare_stats
from saefeat.run.contenders import Contender, find_contenders, overlaps
from saefeat.run.evaluate_heads import choose_positions
from saefeat.run.measuring import _at_best_strength
from saefeat.run.stages import counted_dictionaries
from saefeat.run.steer import Bench
from saefeat.run.summaries import summarize_ablation, summarize_steering
from saefeat.run.trials import Trials
from saefeat.rundir import RunDir
from saefeat.statistics.files import load_stats
from saefeat.steering import apply
from saefeat.steering.changes import Units, build_changes

pytestmark = pytest.mark.usefixtures("every_line", "one_core")
RULES = ("lape", "feature-diffmean", "monolinguality")
FEW = {"units": 5, "methods": RULES, "eval_texts": 4, "sentences": 2, "prompts": 2}


@pytest.fixture(scope="module")
def stats(tmp_path_factory, tiny_run):
    """Statistics of the run's dictionaries, with halves."""
    opened = open_run(tiny_run)
    dictionaries = counted_dictionaries(
        opened.lm, opened.saes, opened.plan, neurons(opened.lm, opened.layers)
    )
    out = tmp_path_factory.mktemp("compare") / "stats"
    collect(opened.lm, opened.plan, dictionaries, out, places={"halves": out / "halves"})
    return out


# --------------------------------------------------------------------------- what rules choose


def test_every_rule_chooses_its_first_units_in_each_pool(stats):
    found, left = find_contenders(stats, units=5)
    assert {(each.pool, each.method) for each in [*found, *left]} == {
        (pool, method) for pool in ("features", "neurons") for method in METHODS
    }
    assert {each.method for each in left} == {
        "langfir", "average-precision", "sharing", "plnd", "dln"
    }  # fmt: skip
    for each in found:
        ids = sorted(each.selection.dictionaries)
        assert all(name.startswith("mlp_act@") for name in ids) == (each.pool == "neurons")
        parameters = METHODS[each.method].sized(5)
        whole = rank(stats, each.method, dictionaries=ids, **parameters)
        assert each.selection.cells() == whole.head(5).cells()
        assert max(each.selection.counts().values()) <= 5
    full = {each.method for each in found if set(each.selection.counts().values()) == {5}}
    assert {"feature-diffmean", "diffmean", "neuron-overlap"} <= full


def test_stability_is_that_of_statistics_of_each_half_alone(tmp_path, stats, tiny_run):
    """The halves are collected apart, from plans of their texts only."""
    opened = open_run(tiny_run)
    every = [*opened.saes, *neurons(opened.lm, opened.layers)]
    for number in (0, 1):
        plan = make_plan(opened.corpus, opened.lm, seed=0, max_tokens=opened.config.max_tokens)
        ids = opened.corpus.ids
        for i in list(plan.tokens):
            if hashed(0, "half", ids[i]) % 2 != number:
                del plan.tokens[i]
        collect(opened.lm, plan, every, tmp_path / str(number))
    for each in find_contenders(stats, units=5, methods=("lape", "diffmean"))[0]:
        ids = sorted(each.selection.dictionaries)
        parameters = METHODS[each.method].sized(5)
        cells = [
            set(rank(tmp_path / n, each.method, dictionaries=ids, **parameters).head(5).cells())
            for n in "01"
        ]
        assert each.stability is not None
        for label, share in each.stability.items():
            one, other = ({cell for cell in some if cell[2] == label} for some in cells)
            if one | other:
                assert share == pytest.approx(len(one & other) / len(one | other), abs=0.11)
            else:
                assert math.isnan(share)
        assert any(share > 0.3 for share in each.stability.values())


def test_rules_without_halves_have_no_stability(tiny_run):
    found, _ = find_contenders(tiny_run / "stats", units=5, methods=("lape",))
    assert [each.stability for each in found] == [None, None]


def test_overlaps_are_means_over_labels_with_units():
    one = selection_of([("b", 0, "a"), ("b", 1, "a"), ("b", 2, "b")], labels=("a", "b", "c"))
    two = selection_of([("b", 1, "a"), ("b", 3, "b"), ("b", 2, "b")], labels=("a", "b", "c"))
    found = [Contender("p", name, each, None) for name, each in (("x", one), ("y", two))]
    (row,) = overlaps([*found, Contender("q", "x", one, None)])
    assert (row["pool"], row["method"], row["other"]) == ("p", "x", "y")
    assert row["iou"] == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_random_twins_have_as_many_firing_units_in_each_dictionary(stats):
    found, _ = find_contenders(stats, units=5, methods=RULES)
    rows = [chosen_units(each.selection) for each in found]
    twins = random_twins(rows, lambda name: load_stats(stats, name))
    assert twins == random_twins(rows, lambda name: load_stats(stats, name))
    for row, twin in zip(rows, twins, strict=True):
        for label, units in row.items():
            assert units.keys() == twin[label].keys()
            for name, some in units.items():
                other = twin[label][name]
                assert len(other) == len(set(other)) == len(some)
                assert not set(other) & set(some)
                assert bool((load_stats(stats, name).fired.sum(0)[other] > 0).all())


# --------------------------------------------------------------------------- what units do


@pytest.fixture(scope="module")
def trials(stats, tiny_run):
    opened = open_run(tiny_run)
    config = CompareConfig(**FEW)
    bench = Bench(opened, "en", Decoding(max_new_tokens=8))
    return Trials(opened, config, stats, opened.corpus.labels, bench)


@pytest.fixture(scope="module")
def row(stats):
    """The units of a rule on neurons and features together."""
    selection = rank(stats, "feature-diffmean", dictionaries=["mlp_act@*", "sae-*"], top=4)
    return chosen_units(selection)


def test_identification_is_naive_bayes_on_the_chosen_columns(trials, row, stats):
    """Against scikit-learn, fitted on one row of counts per label."""
    opened, used = trials.opened, every_unit([row])
    every = {d.id: d for d in [*opened.saes, *neurons(opened.lm, opened.layers)]}
    where = choose_positions(opened.corpus, "test", 0, trials.config.eval_texts)
    (found,) = trials.identify([row])
    labels = opened.corpus.labels
    table = np.hstack([load_stats(stats, name).fired[:, units] for name, units in used.items()])
    prior = np.full(len(labels), 1 / len(labels))
    model = MultinomialNB(class_prior=prior).fit(table, labels)
    for name, end in (("all", None), ("20", 20)):
        texts = [opened.corpus.texts[i][:end] for i in where]
        truth = [opened.corpus.of[i] for i in where]
        bags = featurize(opened.lm, [every[x] for x in used], texts, letters=False)
        x = np.hstack([bags.counts[d].toarray()[:, units] for d, units in used.items()])
        guess = [
            label if row.any() else None for label, row in zip(model.predict(x), x, strict=True)
        ]
        expected = head_metrics(truth, guess, labels, seed=0)
        assert found[name]["f1_macro"] == pytest.approx(expected["f1_macro"])
    assert found["all"]["f1_macro"] > 0.5


def test_ablated_neurons_are_zero_on_every_token_but_bos(trials, row):
    """Against a hook on the activation function, one text at a time."""
    name = next(name for name in row["de"] if name.startswith("mlp_act@"))
    units, layer, lm = row["de"][name], int(name.split("@")[1]), trials.opened.lm
    found, before = trials.losses({name: units}), trials.losses()

    def zero(_module, _inputs, output):
        output = output.clone()
        output[:, 1:, units] = 0
        return output

    handle = lm.model.model.layers[layer].mlp.act_fn.register_forward_hook(zero)
    try:
        for label, texts in trials.texts.items():
            for text, loss in zip(texts, found[label], strict=True):
                ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
                with torch.no_grad():
                    expected = float(lm.model(input_ids=ids, labels=ids).loss)
                assert loss == pytest.approx(expected, abs=1e-5)
    finally:
        handle.remove()
    assert any(found[label] != before[label] for label in found)


def test_steering_adds_the_difference_along_the_units_at_each_strength(trials, row, stats):
    opened = trials.opened
    units = {name: some for name, some in row["de"].items() if name.startswith("sae-")}
    other, found = trials.steer([("th", row["th"]), ("de", units)])
    assert [one.texts for one in other] != [one.texts for one in found]
    saes = {sae.id: sae for sae in opened.saes}
    chosen: dict[str, list[Units]] = {}
    for name, some in units.items():
        chosen.setdefault(saes[name].site, []).append(Units(saes[name], some))
    changes = build_changes("add", chosen, "de", trials.collected)
    from saefeat.generation import generate, texts_of

    for strength, measured in zip(trials.config.strengths, found, strict=True):
        with apply(opened.lm, changes, strength, Schedule()):
            rows = generate(opened.lm, trials.prompts, trials.bench.decoding)
        assert measured.texts == texts_of(opened.lm, rows)


def test_a_summary_of_ablation_worked_by_hand():
    before = {"a": [1.0, 2.0, 3.0], "b": [1.0, None, 2.0], "c": [4.0, 4.0]}
    after = {
        "a": {"a": [3.0, 4.0, 5.0], "b": [1.5, None, 2.5], "c": [4.0, 4.0]},  # own 2, others .5
        "b": {"a": [1.0, 2.0, 3.0], "b": [1.0, None, 2.0], "c": [5.0, 5.0]},  # own 0, others 1
    }
    found = summarize_ablation(before, after, {"a": before, "b": before})
    assert found is not None
    assert found["labels"]["a"] == {"own": 2, "others": 0.5, "random_own": 0, "random_others": 0}
    assert found["labels"]["b"]["others"] == 1
    assert found["selectivity"] == pytest.approx((1.5 - 1) / 2)
    assert found["most_affected"] == 1 and found["random_most_affected"] == 0
    low, high = found["selectivity_ci"]
    assert low <= found["selectivity"] <= high
    assert found["random_ci"] == [0, 0]
    assert summarize_ablation(before, {}, {}) is None


def test_the_interval_of_selectivity_is_that_of_a_plain_bootstrap():
    generator = np.random.default_rng(5)
    before = {x: generator.normal(3, 1, 9).tolist() for x in "ab"}
    after = {x: {y: generator.normal(3.5, 1, 9).tolist() for y in "ab"} for x in "ab"}
    found = summarize_ablation(before, after, after)
    assert found is not None
    draws = []
    for _ in range(4000):
        pick = {x: generator.integers(0, 9, 9) for x in "ab"}
        rise = {
            (x, y): median(np.array(after[x][y])[pick[y]]) - median(np.array(before[y])[pick[y]])
            for x in "ab"
            for y in "ab"
        }
        draws.append(((rise["a", "a"] - rise["a", "b"]) + (rise["b", "b"] - rise["b", "a"])) / 2)
    moved = np.array(draws) - np.mean(draws) + found["selectivity"]
    assert found["selectivity_ci"] == pytest.approx(np.quantile(moved, (0.025, 0.975)), abs=0.1)


def test_a_summary_of_steering_has_the_mean_over_labels_with_units():
    good = Measured(["x"] * 4, ["a"] * 4, [10.0] * 4, [1.0] * 4)
    half = Measured(["x"] * 4, ["b", "b", "c", "c"], [10.0] * 4, [1.0] * 4)
    none = Measured(["x"] * 4, ["c"] * 4, [10.0] * 4, [1.0] * 4)
    references = dict.fromkeys("abz", Reference(1.0, 10.0, 1.0))
    found = summarize_steering({"a": good, "b": half}, {"a": none, "b": none}, references, 0.7, 2.0)
    assert found is not None and (found["strength"], found["sites"]) == (0.7, 2.0)
    assert found["labels"].keys() == {"a", "b"}
    assert found["score"] == pytest.approx((1 + 2 * 0.5 / 1.5) / 2)
    assert (found["random"], found["ahead"]) == (0, found["score"])
    assert summarize_steering({}, {}, references, 0.7, 1) is None


def test_one_strength_serves_all_rules_of_a_pool():
    rules = [[{"score": 0.2}, {"score": 0.9}], [{"score": 0.6}, {"score": 0.1}], [None, None]]
    assert _at_best_strength(rules) == [{"score": 0.9}, {"score": 0.1}, None]


# --------------------------------------------------------------------------- the stage


@pytest.fixture
def out(run_copy, stats):
    """A copy of the run, with statistics of halves."""
    shutil.rmtree(run_copy / "stats")
    shutil.copytree(stats, run_copy / "stats")
    return run_copy


def test_a_comparison_has_all_measures_of_every_rule(out):
    result = compare_rules(open_run(out), CompareConfig(**FEW))
    assert [(row["pool"], row["method"]) for row in result["rows"]] == [
        (pool, method) for pool in ("features", "neurons") for method in RULES
    ]
    for row in result["rows"]:
        assert row["stability"] and set(row["stability"]["labels"]) == {"de", "en", "th"}
        assert row["identification"] and row["identification"].keys() == {"all", "20"}
        assert row["ablation"] and row["steering"]
        assert set(row["steering"]["labels"]) <= {"de", "th"}  # not the source
        assert sum(row["units"].values()) <= 15
    saved = json.loads((out / "compare/metrics.json").read_text())
    assert saved == json.loads(json.dumps(result))
    names = sorted(path.name for path in (out / "compare/selections/neurons").iterdir())
    assert names == [f"{name}.parquet" for name in sorted(RULES)]
    page = write_report(out).read_text()
    assert "monolinguality" in page.split('id="rules"')[1]
    assert (out / "tables/compare.csv").read_text().count("\n") == 7
    assert (out / "tables/compare_overlap.csv").read_text().count("\n") == 7


@pytest.mark.parametrize("at", ["compare: ablation: 2 of", "compare: steering: 2 of"])
def test_a_comparison_that_was_killed_resumes_to_the_same_bytes(out, at):
    opened, config = open_run(out), CompareConfig(**FEW)
    compare_rules(opened, config)
    whole = contents(out / "compare")
    shutil.rmtree(out / "compare")
    opened.say = Interrupt(at)
    with pytest.raises(KeyboardInterrupt):
        compare_rules(opened, config)
    assert not (out / "compare/metrics.json").exists()
    lines: list[str] = []
    opened.say = lines.append
    compare_rules(opened, config)
    assert contents(out / "compare") == whole
    assert not any(line.startswith("lid: ") for line in lines)  # identification was kept
    lines.clear()
    compare_rules(opened, config)
    assert lines[-1] == f"{out}/compare/metrics.json is complete already"


def test_a_run_compares_in_small_and_leaves_a_full_comparison_alone(tmp_path, config):
    small = replace(config, compare_labels=1, with_=("halves",), neuron_layers=1)
    files = RunDir(run(small, tmp_path / "run").parent)
    result = files.comparison.load_metrics()
    assert {row["pool"] for row in result["rows"]} == {"features", "neurons"}
    assert all(row["stability"] for row in result["rows"] if any(row["units"].values()))
    steered = [row["steering"]["labels"] for row in result["rows"] if row["steering"]]
    assert {label for labels in steered for label in labels} == {"de"}  # en is the source
    assert files.load_index()["timings"]["compare"] > 0
    assert 'id="rules"' in files.report.read_text()
    compare_rules(open_run(files.root), CompareConfig(**FEW))
    full = contents(files.comparison.root)
    run(small, files.root)
    assert contents(files.comparison.root) == full


def test_statistics_alone_give_what_is_chosen(tmp_path, stats):
    out = tmp_path / "compared"
    result = compare_stats(stats, out, CompareConfig(units=5, methods=RULES))
    assert len(result["rows"]) == 6 and len(result["overlap"]) == 6
    for row in result["rows"]:
        assert row["stability"]
        assert (row["identification"], row["ablation"], row["steering"]) == (None, None, None)
    assert "measured" not in result
    before = contents(out)
    compare_stats(stats, out, CompareConfig(units=5, methods=RULES))
    assert contents(out) == before


def test_what_cannot_be_measured_is_left_out_with_a_note(out, monkeypatch):
    monkeypatch.setattr("saefeat.run.chosen.encoders_fit", lambda *_: False)
    lines: list[str] = []
    opened = open_run(out, lines.append)
    config = CompareConfig(units=5, methods=("lape",), eval_texts=0, sentences=1, prompts=0)
    result = compare_rules(opened, config)
    assert any("without ablation" in line for line in lines)
    for row in result["rows"]:
        assert (row["identification"], row["ablation"], row["steering"]) == (None, None, None)


@pytest.fixture
def relabelled(tmp_path, tiny_run):
    """Statistics of the run's SAEs on the same texts, with the labels in another order."""
    opened = open_run(tiny_run)
    corpus = replace(opened.corpus, labels=tuple(reversed(opened.corpus.labels)))
    plan = make_plan(corpus, opened.lm, seed=0, max_tokens=500)
    collect(opened.lm, plan, opened.saes, tmp_path / "relabelled")
    return tmp_path / "relabelled"


def test_statistics_of_other_labels_models_or_saes_are_refused(out, relabelled, make_lm, tmp_path):
    opened = open_run(out)
    message = "another model, SAE or list of labels"
    with refused(message, "stats"):
        compare_rules(opened, CompareConfig(**FEW), source=relabelled, out=tmp_path / "o")
    other = make_lm(seed=1)
    plan = make_plan(opened.corpus, other, max_tokens=500)
    collect(other, plan, opened.saes, tmp_path / "other")
    with refused(message, "stats"):
        compare_rules(opened, CompareConfig(**FEW), source=tmp_path / "other", out=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_rule_that_is_named_twice_counts_once_and_one_without_statistics_is_refused(out):
    opened = open_run(out)
    few = CompareConfig(units=5, methods=("lape", "lape"), eval_texts=0, sentences=0, prompts=0)
    assert [row["method"] for row in compare_rules(opened, few)["rows"]] == ["lape", "lape"]
    with refused("plnd cannot be compared: the directory holds no importances"):
        compare_rules(opened, replace(few, methods=("lape", "plnd")))


def test_one_label_is_not_ablated_and_the_note_says_why(out):
    lines: list[str] = []
    config = CompareConfig(**{**FEW, "prompts": 0}, labels=("de",))
    result = compare_rules(open_run(out, lines.append), config)
    assert all(row["ablation"] is None and row["identification"] for row in result["rows"])
    assert any("two labels with test texts" in line for line in lines)


def test_halves_that_are_collected_later_are_taken(out):
    opened, config = open_run(out), CompareConfig(**{**FEW, "prompts": 0, "sentences": 0})
    (out / "stats/halves").rename(out / "halves-away")
    assert all(row["stability"] is None for row in compare_rules(opened, config)["rows"])
    (out / "halves-away").rename(out / "stats/halves")
    assert all(row["stability"] for row in compare_rules(opened, config)["rows"])


def test_statistics_that_are_collected_anew_are_noticed(run_copy):
    """The units are the same, but the means from which edits are made need not be."""
    said: list[str] = []
    opened = open_run(run_copy, said.append)
    config = CompareConfig(**{**FEW, "prompts": 0, "sentences": 0})
    compare_rules(opened, config)
    stats, done = opened.files.load_stats("mlp_act@0"), "compare/metrics.json is complete already"
    for change, again in (({}, False), ({"tokens": 99}, True), ({"tokens": 99}, False)):
        stats.header["chosen"] |= change
        stats.save(opened.files.stats_file("mlp_act@0"))
        compare_rules(opened, config)
        assert said[-1].endswith(done) is not again


def test_another_comparison_leaves_no_selections_of_the_first(out, tmp_path, stats):
    opened = open_run(out)
    nothing = {"units": 5, "eval_texts": 0, "sentences": 0, "prompts": 0}
    lines: list[str] = []
    opened.say = lines.append
    compare_rules(opened, CompareConfig(methods=("diffmean",), **nothing))
    compare_rules(opened, CompareConfig(methods=("lape",), **nothing))
    assert any("will be replaced" in line for line in lines)
    found = sorted(path.name for path in (out / "compare/selections").rglob("*.parquet"))
    assert found == ["lape.parquet"] * 2
    with refused("holds a comparison on a run", "out"):
        compare_stats(stats, out / "compare", CompareConfig())


def test_random_units_of_a_head_are_as_many_as_all_labels_have_together(stats):
    found, _ = find_contenders(stats, units=5, methods=RULES)
    rows = [chosen_units(each.selection) for each in found]
    for row, union in zip(rows, random_unions(rows, lambda n: load_stats(stats, n)), strict=True):
        used, other = every_unit([row]), every_unit([union])
        assert {name: len(units) for name, units in used.items()} == {
            name: len(units) for name, units in other.items()
        }
        assert not any(set(used[name]) & set(other[name]) for name in used)


def test_bad_input_is_refused(out, tmp_path, stats):
    opened = open_run(out)
    with refused("unknown method 'lap'", "methods"):
        compare_rules(opened, CompareConfig(methods=("lap",)))
    with refused("no label 'xx'", "labels"):
        compare_rules(opened, CompareConfig(labels=("xx",)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("x")
    with refused("is no comparison", "out"):
        compare_rules(opened, CompareConfig(), out=tmp_path / "mine")
    with refused("is no comparison", "out"):
        compare_stats(stats, tmp_path / "mine/notes.txt", CompareConfig())
    (tmp_path / "empty").mkdir()
    with refused("holds no statistics"):
        compare_stats(tmp_path / "empty", tmp_path / "o", CompareConfig())
    assert not (tmp_path / "o").exists()


def test_compare_from_the_command_line(saefeat, out, tmp_path, stats):
    options = ("--units", 5, "--methods", "lape,diffmean", "--eval-texts", 4)
    few = ("--sentences", 1, "--prompts", 0, "--labels", "de,th")
    code, printed, _ = saefeat("compare", out, *options, *few)
    assert code == 0
    rows = [line.split() for line in printed.splitlines()]
    assert [row[:2] for row in rows[1:5]] == [
        [pool, method] for pool in ("features", "neurons") for method in ("lape", "diffmean")
    ]
    assert f"{out}/compare: metrics.json" in printed
    code, printed, _ = saefeat("compare", "--stats", stats, "--out", tmp_path / "c", *options[:4])
    assert code == 0 and "diffmean" in printed
    code, _, error = saefeat("compare")
    assert code == 2 and "--stats and --out" in error
