"""A run end to end on a tiny model: the files of its directory, resuming, refusals."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import contents, random_sae

from saefeat.config import CollectConfig, EvaluateConfig
from saefeat.corpora import load_corpus
from saefeat.evaluation import head_metrics
from saefeat.io import UserError
from saefeat.lid.head import Head
from saefeat.lid.heads import HEADS
from saefeat.models import load_model
from saefeat.resume import Checkpoint
from saefeat.run import (
    RunConfig,
    choose_head,
    default_sites,
    evaluate,
    fit_heads,
    forecast,
    load_heads,
    open_run,
    predict,
    run,
)
from saefeat.run.opened import other_corpus
from saefeat.run.request import with_absolute_paths
from saefeat.run.shown import pieces
from saefeat.run.stages import rank_into
from saefeat.rundir import RunDir
from saefeat.sae.store import load_saes
from saefeat.sae.train import sae_id
from saefeat.selection import Selection
from saefeat.statistics import Stats, collected_kinds

SITES = ["resid_post@0", "mlp_out@0"]  # by depth, of two layers
SAES = [sae_id(site) for site in SITES]
FITTED = ["token-naive-bayes", "char-naive-bayes"]
NAMES = [*HEADS, *FITTED, "fasttext"]


pytestmark = pytest.mark.usefixtures("one_core")


@pytest.fixture(scope="module")
def metrics(tiny_run):
    return json.loads((tiny_run / "lid/metrics.json").read_text())


@pytest.fixture(scope="module")
def opened(tiny_run):
    return open_run(tiny_run)


def without_timings(files):
    index = json.loads(files["run.json"])
    assert set(index.pop("timings")) == {
        "train",
        "collect",
        "rank",
        "lid fit",
        "lid evaluate",
        "report",
    }
    report = re.sub(
        rb"<dt>[\w ]+</dt><dd[^>]*>[\d.]+ s</dd>", b"", files["report.html"]
    )  # it shows the timings
    return {**files, "run.json": index, "report.html": report.replace(b"<div></div>", b"")}


# --------------------------------------------------------------------------- the run directory


def test_the_run_directory_holds_what_the_contract_names_and_nothing_else(tiny_run):
    expected = {
        "run.json",
        "report.html",
        "examples/shown.json",
        "lid/metrics.json",
        "lid/predictions.parquet",
    }
    expected |= {
        f"saes/{site}/{name}" for site in SAES for name in ("cfg.json", "sae_weights.safetensors")
    }
    expected |= {f"stats/{name}.safetensors" for name in [*SAES, *SITES, "mlp_act@0"]}
    expected |= {f"bags/{site}/window-00000.parquet" for site in SAES}
    expected |= {f"examples/{site}.parquet" for site in SAES}
    expected |= {f"histograms/{site}.safetensors" for site in SAES}
    expected |= {
        f"selections/{method}.parquet" for method in ("lape", "sae-lape", "feature-diffmean")
    }
    expected |= {f"lid/{name}.safetensors" for name in [*HEADS, *FITTED]}
    tables = ("lid", "errors", "features", "overlap", "labels", "rules", "layers", "typology")
    expected |= {f"tables/{name}.csv" for name in tables}
    assert set(contents(tiny_run)) == expected


def test_the_index_names_versions_arguments_seeds_fingerprints_and_timings(
    tiny_run, config, opened
):
    index = json.loads((tiny_run / "run.json").read_text())
    assert index["complete"] is True
    assert index["arguments"]["model"] == config.model
    assert index["arguments"]["d_sae"] == 64
    assert {"saefeat", "torch", "transformers", "python"} <= index["versions"].keys()
    assert index["seeds"] == {"seed": 0}
    assert index["model"]["fingerprint"] == opened.lm.fingerprint
    assert index["corpus"]["fingerprint"] == opened.corpus.fingerprint
    assert index["corpus"]["labels"] == ["de", "en", "th"]
    assert index["sites"] == SITES


def test_every_file_opens_with_its_own_reader_and_they_agree(tiny_run, opened):
    saes = load_saes(str(tiny_run / "saes"), opened.lm)
    assert sorted(sae.id for sae in saes) == sorted(SAES)
    for sae in saes:
        stats = Stats.load(tiny_run / f"stats/{sae.id}.safetensors")
        assert stats.labels == ("de", "en", "th")
        assert stats.header["dictionary"]["fingerprint"] == sae.identity["fingerprint"]
        bags = pq.read_table(tiny_run / f"bags/{sae.id}").to_pandas()
        assert bags.tokens.sum() == int(stats.fired.sum())
        examples = pq.read_table(tiny_run / f"examples/{sae.id}.parquet").to_pandas()
        best = examples[examples.place == 0].set_index("unit").value
        assert all(best[u] == pytest.approx(float(stats.max[:, u].max())) for u in best.index)
    assert Selection.load(tiny_run / "selections/lape.parquet").dictionaries.keys() == {"mlp_act@0"}
    selection = Selection.load(tiny_run / "selections/sae-lape.parquet")
    assert set(selection.dictionaries) == set(SAES)
    shown = json.loads((tiny_run / "examples/shown.json").read_text())
    assert [(row["dictionary"], row["unit"]) for row in shown if row["method"] == "sae-lape"] == [
        (row["dictionary"], row["unit"]) for row in selection.head(5).table.to_pylist()
    ]


def test_shown_units_have_promoted_tokens_and_a_passage_on_which_they_fire(tiny_run):
    rows = json.loads((tiny_run / "examples/shown.json").read_text())
    assert rows
    for row in rows:
        assert len(row["tokens"]) == 8
        first = row["passages"][0]
        assert "".join(first["pieces"]) == first["text"]
        assert len(first["activations"]) == len(first["pieces"])
        assert max(first["activations"]) == pytest.approx(first["value"], abs=1e-3)


def test_the_report_is_one_page_that_loads_nothing(tiny_run):
    loads = []

    class Page(HTMLParser):
        def handle_starttag(self, tag, attrs):
            here = ("#", "data:", "tables/")
            loads.extend(
                v for k, v in attrs if k in ("src", "href") and v and not v.startswith(here)
            )

    page = (tiny_run / "report.html").read_text(encoding="utf-8")
    Page().feed(page)
    assert loads == []
    for name in ("sae-count", *FITTED, "resid_post@0"):
        assert name in page


# --------------------------------------------------------------------------- metrics


def test_the_metrics_have_the_format_of_the_contract(metrics, tiny_jsonl):
    assert {"corpus", "split", "labels", "n", "heads", "by_length"} <= metrics.keys()
    assert (metrics["corpus"], metrics["split"], metrics["labels"]) == (
        str(tiny_jsonl),
        "test",
        ["de", "en", "th"],
    )
    assert list(metrics["by_length"]) == ["10", "20", "50", "all"]
    for part in metrics["by_length"].values():
        assert part["n"] == metrics["n"]
        assert sorted(part["heads"]) == sorted(NAMES)
        for head in part["heads"].values():
            assert head.keys() == {
                "accuracy",
                "accuracy_ci",
                "f1_macro",
                "f1_macro_ci",
                "per_label",
                "confusion_matrix",
            }
            assert head["accuracy_ci"][0] <= head["accuracy"] <= head["accuracy_ci"][1]
            assert [len(row) for row in head["confusion_matrix"]] == [4, 4, 4]
            assert np.sum(head["confusion_matrix"]) == metrics["n"]
    assert metrics["heads"] == metrics["by_length"]["all"]["heads"]


def test_a_head_that_says_nothing_fills_the_column_unknown(metrics, tiny_run):
    assert not len(
        Selection.load(tiny_run / "selections/lape.parquet")
    )  # 48 neurons have no hundredth
    matrix = np.array(metrics["heads"]["neuron-count"]["confusion_matrix"])
    assert matrix[:, 3].sum() == metrics["n"]


def test_the_heads_on_all_units_beat_chance_by_far(metrics):
    assert metrics["heads"]["linear"]["accuracy"] > 0.55
    assert metrics["heads"]["naive-bayes"]["accuracy"] > 0.55


def test_the_predictions_are_those_that_were_measured(tiny_run, metrics, opened):
    rows = pq.read_table(tiny_run / "lid/predictions.parquet").to_pandas()
    test = opened.corpus.positions("test", 0)
    assert len(rows) == len(test) * 4 * len(NAMES)
    for (length, head), part in rows.groupby(["length", "head"]):
        assert list(part.id) == [opened.corpus.ids[i] for i in test]
        assert list(part.text) == [
            opened.corpus.texts[i][: None if length == "all" else int(length)] for i in test
        ]
        predicted = [p if isinstance(p, str) else None for p in part.predicted]
        again = head_metrics(list(part.label), predicted, metrics["labels"])
        assert again == metrics["by_length"][length]["heads"][head]


def test_the_saved_heads_predict_what_was_measured(tiny_run, opened):
    rows = pq.read_table(tiny_run / "lid/predictions.parquet").to_pandas()
    texts = [opened.corpus.texts[i] for i in opened.corpus.positions("test", 0)]
    for name in HEADS:
        expected = rows[(rows["length"] == "all") & (rows["head"] == name)].predicted
        *found, silent = predict(opened, [*texts, "12"], choose_head(opened, name))
        assert silent == {"text": "12", "label": None, "score": 0.0, "units": []}
        assert [row["label"] for row in found] == [
            p if isinstance(p, str) else None for p in expected
        ]
        read = Head.load(tiny_run / f"lid/{name}.safetensors").units
        for row in found:
            says = row["label"] is not None
            assert (row["score"] > 0) == bool(row["units"]) == says
            assert all(unit["unit"] in read[unit["dictionary"]] for unit in row["units"])
            assert 0 <= row["score"] <= 1


def test_neurons_that_decide_are_named_by_their_own_numbers(tiny_run, opened, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    Head(
        "neuron-count",
        ("de", "en", "th"),
        {"mlp_act@0": np.array([5, 40])},
        {"mlp_act@0": np.eye(3)[:2]},
    ).save(out / "lid/neuron-count.safetensors")
    other = open_run(out, with_corpus=False)
    found = predict(
        other, ["the cat sat on the mat and the dog"], choose_head(other, "neuron-count")
    )[0]
    assert found["label"] in ("de", "en")
    assert {unit["unit"] for unit in found["units"]} == {5 if found["label"] == "de" else 40}


@pytest.mark.parametrize("head", HEADS)
def test_a_text_without_a_letter_gets_no_label(opened, head):
    silent = ["", " ", "\u200b", "12345 67890", "?!", "😀"]
    assert predict(opened, silent, choose_head(opened, head)) == [
        {"text": text, "label": None, "score": 0.0, "units": []} for text in silent
    ]


def test_a_text_without_a_letter_is_unknown_to_every_head_and_baseline_that_is_measured(
    tiny_run, tmp_path
):
    texts = [("the cat sat", "en"), ("12345", "en"), ("der Hund", "de")]
    rows = [{"text": text, "label": label} for text, label in texts]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = load_corpus(str(tmp_path / "few.jsonl"))
    made = evaluate(open_run(tiny_run), few, split="all", out=tmp_path / "few.json")
    for head in made["heads"].values():
        assert head["confusion_matrix"][1][3] >= 1
    found = pq.read_table(tmp_path / "few-predictions.parquet").to_pandas()
    assert found[found.text == "12345"].predicted.isna().all()
    assert sorted(set(found["head"])) == sorted(NAMES)


def test_a_corpus_with_a_label_that_is_written_without_letters(tmp_path, config):
    rows = [{"text": f"{i} + {i} = {2 * i}", "label": "sum"} for i in range(100)]
    rows += [
        {"text": f"the cat number {i} sat on the mat", "label": "unknown"} for i in range(100)
    ]  # any string
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = []
    run(replace(config, corpus=str(tmp_path / "sums.jsonl")), tmp_path / "run", say=lines.append)
    assert any("a label has texts without letters" in line for line in lines)
    made = json.loads((tmp_path / "run/lid/metrics.json").read_text())
    assert all(made["heads"][name]["accuracy"] > 0.9 for name in ("linear", "naive-bayes", *FITTED))
    opened = open_run(tmp_path / "run", with_corpus=False)
    found = predict(opened, ["7 + 7 = 14", " "], choose_head(opened, "linear"))
    assert [row["label"] for row in found] == ["sum", None]


def test_a_run_of_an_older_version_is_fitted_and_measured_again(tmp_path, tiny_run, config):
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    (out / "lid/char-naive-bayes.safetensors").unlink()
    other = open_run(out)
    with pytest.raises(UserError, match="has no char-naive-bayes; fit it first"):
        evaluate(other, None, split="test", out=tmp_path / "metrics.json")
    old = json.loads((out / "lid/metrics.json").read_text())
    old["request"]["heads"].remove("char-naive-bayes")
    (out / "lid/metrics.json").write_text(json.dumps(old))
    run(config, out)
    assert (out / "lid/metrics.json").read_bytes() == (tiny_run / "lid/metrics.json").read_bytes()


# --------------------------------------------------------------------------- again, otherwise,
# interrupted


def test_running_again_is_quick_and_changes_nothing_but_timings(tiny_run, config):
    before, start, lines = contents(tiny_run), time.process_time(), []
    stamps = {p: p.stat().st_mtime_ns for p in tiny_run.rglob("*.safetensors")}
    run(config, tiny_run, say=lines.append)
    assert time.process_time() - start < 10
    assert without_timings(contents(tiny_run)) == without_timings(before)
    assert stamps == {
        p: p.stat().st_mtime_ns for p in tiny_run.rglob("*.safetensors")
    }  # not written again either
    assert not any("FVU" in line or "window" in line for line in lines)


def test_a_run_interrupted_in_every_stage_ends_with_the_bytes_of_one_that_was_not(
    tmp_path, config, monkeypatch
):
    out = tmp_path / "run"
    run(config, out)
    whole = without_timings(contents(out))
    shutil.rmtree(out)
    places = ["saefeat.sae.train.save_sae", "saefeat.statistics.bags.Bags.save", "saefeat.run.rank"]
    places += [
        "saefeat.lid.heads.linear.linear_head",
        "saefeat.run.evaluate_heads.lid_metrics",
        "saefeat.run.add_activations",
    ]
    for place in places:

        def interrupt(*_args, **_options):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(place, interrupt)
            run(config, out)
        assert not json.loads((out / "run.json").read_text())["complete"]
        assert not list(out.rglob(".*"))
    run(config, out)
    assert without_timings(contents(out)) == whole


def test_a_kill_between_the_matrix_and_its_timing_is_repaired(tmp_path, config, tiny_run):
    out = tmp_path / "run"
    asked = replace(config, saes=(str(tiny_run / "saes"),), eval_texts=3, matrix_texts=2)
    run(asked, out)
    whole, path = contents(out), out / "run.json"
    index = json.loads(path.read_text())
    index["timings"].pop("matrix")
    path.write_text(json.dumps(index))
    result = json.loads((out / "steering" / "matrix.json").read_text())
    state = out / "steering" / "matrix-partial" / "state.safetensors"
    Checkpoint(state, result["request"], "the matrix", 1).save({})
    run(asked, out)
    assert contents(out).keys() == whole.keys()
    assert "matrix" in json.loads(path.read_text())["timings"]
    # That of a matrix with other options may go on.
    Checkpoint(state, "another", "the matrix", 1).save({})
    run(asked, out)
    assert state.exists()


def test_given_saes_are_used_and_none_are_trained(tmp_path, tiny_run, config, metrics):
    given = replace(config, saes=(str(tiny_run / "saes"),))
    run(given, tmp_path / "run")
    assert not (tmp_path / "run/saes").exists()
    for site in SAES:
        mine, theirs = (
            Stats.load(d / f"stats/{site}.safetensors") for d in (tmp_path / "run", tiny_run)
        )
        assert mine.equal(theirs)
    made = json.loads((tmp_path / "run/lid/metrics.json").read_text())
    assert made["heads"]["linear"] == metrics["heads"]["linear"]
    opened = open_run(tmp_path / "run", with_corpus=False)
    assert predict(opened, ["the cat"], choose_head(opened, "linear"))[0]["label"]


def test_a_run_without_neurons_has_no_head_of_them(tmp_path, tiny_run, config):
    saes = (str(tiny_run / "saes" / SAES[1]),)
    run(replace(config, saes=saes, neuron_layers=0, eval_texts=3), tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run/stats").iterdir()) == [
        f"{name}.safetensors" for name in (SITES[1], SAES[1])
    ]
    made = json.loads((tmp_path / "run/lid/metrics.json").read_text())
    assert made["n"] == 9
    assert "neuron-count" not in made["heads"]
    assert "neuron-count" not in load_heads(tmp_path / "run")


def test_other_arguments_are_refused(tiny_run, config):
    with pytest.raises(UserError, match="holds a run with other arguments"):
        run(replace(config, seed=1), tiny_run)


@pytest.fixture
def here(tmp_path, monkeypatch, save_lm, tiny_jsonl):
    """The working directory, with a model, a corpus and a link to it."""
    folder = tmp_path / "here"
    save_lm(folder / "model")
    shutil.copy(tiny_jsonl, folder / "c.jsonl")
    (folder / "link.jsonl").symlink_to("c.jsonl")
    monkeypatch.chdir(folder)
    return folder


def relative(config, **changes):
    return replace(config, **{"model": "model", "corpus": "c.jsonl", **changes})


def test_a_run_with_relative_paths_goes_on_from_another_directory(
    here, tmp_path, config, monkeypatch
):
    out = tmp_path / "run"
    run(relative(config, eval_texts=3), out)
    index = json.loads((out / "run.json").read_text())
    assert (index["arguments"]["model"], index["arguments"]["corpus"]) == (
        str(here / "model"),
        str(here / "c.jsonl"),
    )
    before = without_timings(contents(out))
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    opened = open_run(out)
    assert (opened.config.corpus, opened.corpus.name) == (str(here / "c.jsonl"), "c.jsonl")
    for corpus in ("../here/c.jsonl", str(here / "link.jsonl")):  # the same file
        run(relative(config, eval_texts=3, model="../here/model", corpus=corpus), out)
        assert without_timings(contents(out)) == before
    for name in ("lid/metrics.json", "report.html"):  # the corpus is called what it was called
        assert "c.jsonl" in (out / name).read_text()
    assert (
        json.loads((out / "lid/metrics.json").read_text())["corpus"]
        == index["corpus"]["name"]
        == "c.jsonl"
    )
    shutil.copy(here / "c.jsonl", "c.jsonl")
    with pytest.raises(UserError, match="holds a run with other arguments"):
        run(relative(config, eval_texts=3, model="../here/model"), out)


def test_a_run_whose_index_has_relative_paths_resumes_where_they_lead_to_its_files(
    here, config, monkeypatch
):
    asked = relative(config, eval_texts=3)
    with monkeypatch.context() as patch:
        patch.setattr(
            "saefeat.run.opened.with_absolute_paths", lambda config: config
        )  # as it was once
        run(asked, here / "run")
    before = without_timings(contents(here / "run"))
    assert before["run.json"]["arguments"]["corpus"] == "c.jsonl"
    for config in (asked, relative(asked, model=str(here / "model"), corpus=str(here / "c.jsonl"))):
        run(config, here / "run")
        assert (
            without_timings(contents(here / "run")) == before
        )  # its metrics too, which name their run
    assert open_run(here / "run").config == asked


@pytest.mark.parametrize(
    ("model", "corpus", "saes"),
    [
        ("embedded:gemma-3-270m", "embedded:eld", "gpt2-small-res-jb/blocks.1.hook_resid_pre"),
        (
            "taken",
            "xnli",
            "owner/repo@main/folder",
        ),  # of these there is a file and a directory here
        ("owner/name", "hub:owner/name:config", "/nowhere"),
        ("none.gguf", "none.jsonl", "../none"),
    ],
)
def test_hub_ids_names_and_missing_files_are_not_made_absolute(here, model, corpus, saes):
    (here / "taken").write_text("")
    (here / "xnli").mkdir()
    given = RunConfig(model, corpus, saes=(saes,))
    assert with_absolute_paths(given) == given


def test_absolute_paths_keep_the_names_of_links(here, monkeypatch):
    (here / "m.gguf").symlink_to("c.jsonl")
    (here / "mlp_out@1").symlink_to("model")
    monkeypatch.setenv("HOME", str(here))
    found = with_absolute_paths(
        RunConfig("~/m.gguf", "link.jsonl", saes=("mlp_out@1", "./model/../model"))
    )
    assert found.saes == (str(here / "mlp_out@1"), str(here / "model"))
    (here / "else/deep").mkdir(parents=True)
    (here / "else/c.jsonl").touch()
    (here / "away").symlink_to("else/deep")
    assert with_absolute_paths(RunConfig("m", "away/../c.jsonl")).corpus == str(
        (here / "else/c.jsonl").resolve()
    )
    assert (found.model, found.corpus) == (str(here / "m.gguf"), str(here / "link.jsonl"))


@pytest.mark.parametrize("changed", ["model", "corpus"])
def test_a_model_or_corpus_that_has_changed_since_is_refused(
    tmp_path, tiny_run, save_lm, tiny_jsonl, changed
):
    shutil.copytree(tiny_run, tmp_path / "run")
    index = json.loads((tmp_path / "run/run.json").read_text())
    if changed == "model":
        index["arguments"]["model"] = str(save_lm(tmp_path / "model", seed=5))
    else:
        index["arguments"]["corpus"] = str(tmp_path / "c.jsonl")
        (tmp_path / "c.jsonl").write_text(
            "\n".join(tiny_jsonl.read_text().splitlines()[:-3]) + "\n"
        )
    (tmp_path / "run/run.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"the {changed} .* has changed since the run"):
        open_run(tmp_path / "run")


def test_a_dry_run_prints_a_forecast_of_time_memory_and_disk_and_writes_nothing(tmp_path, config):
    lines = []
    assert run(config, tmp_path / "run", say=lines.append, dry_run=True) is None
    assert not (tmp_path / "run").exists()
    text = "\n".join(lines)
    assert "forecast: " in text
    assert " GB of memory, " in text
    assert " MB on disk" in text
    assert "SAEs at resid_post@0, mlp_out@0 (width 64, k 4)" in text


def test_the_forecast_of_a_collection_counts_encoders_statistics_and_mapped_weights(
    tiny_lm, tiny_plan, monkeypatch
):
    from saefeat import memory
    from saefeat.dictionaries import SAE
    from saefeat.run.forecast import forecast_collect

    rows = torch.randn(64, 32)
    saes = [
        SAE(name, "mlp_out@0", rows.T, torch.zeros(64), rows, torch.zeros(32), k=4) for name in "ab"
    ]
    assert memory.mapped_bytes(saes) == 2 * 4 * (2 * 64 * 32 + 64 + 32)
    each = (
        5 * 64 * 32 + 64 * 32 * 4 + 64 * 5 * 12
    )  # statistics of five labels, the encoder, the top examples
    assert memory.collecting_bytes(saes, "cpu", 5) == 2 * each + 2 * 4 * 512 * 64
    with_neurons = forecast_collect(tiny_lm, saes, tiny_plan, CollectConfig(neurons=True))
    assert with_neurons.endswith(", 1 group of dictionaries, one pass over the corpus each")
    monkeypatch.setattr(memory, "memory_limit", lambda device: 2)
    assert memory.collecting_bytes(saes, "cpu", 5) == each + 2 * 4 * 512 * 64
    line = forecast_collect(tiny_lm, saes, tiny_plan, CollectConfig())
    assert line.endswith(", 3 groups of dictionaries, one pass over the corpus each")
    monkeypatch.setattr(memory, "memory_limit", lambda device: 2**30)
    more = memory.collecting_bytes(saes, "cpu", 5, collected_kinds(["bags", "histograms"]))
    assert more == 2 * (each + 64 * 1412) + 2 * 4 * 512 * 64
    with pytest.raises(UserError, match="unknown statistic 'x'"):
        forecast_collect(tiny_lm, saes, tiny_plan, CollectConfig(with_=("x",)))


def test_the_forecast_of_a_collection_counts_the_rows_of_tables_on_disk(tiny_lm, tiny_plan):
    from saefeat.run.forecast import forecast_collect

    def disk(**options):
        config = CollectConfig(neurons=True, **options)
        line = forecast_collect(tiny_lm, wide, tiny_plan, config)
        return float(re.search(r"([\d,]+) MB of statistics", line)[1].replace(",", ""))

    wide = [random_sae("a", width=2**16)]
    rows = len(tiny_plan.tokens)
    added = disk(with_=("responses", "patterns")) - disk()
    assert added == pytest.approx(rows * (2**16 + 2 * 48 + 32) * (4 + 2 + 1 + 1) / 1e6, abs=1.5)
    few = disk(with_=("responses",), table_examples=5) - disk()
    assert few == pytest.approx(3 * 5 * (2**16 + 2 * 48 + 32) * 6 / 1e6, abs=1.5)


def test_the_forecast_reports_skipped_rows(opened):
    other = replace(opened, corpus=replace(opened.corpus, skipped={"blank": 2}))
    assert "rows skipped or repaired: blank 2" in forecast(other)


# --------------------------------------------------------------------------- another corpus


@pytest.fixture
def other():
    return load_corpus(
        [(f"ein Haus Nummer {i}", "de") for i in range(8)]
        + [(f"a house {i}", "en") for i in range(8)]
    )


def test_another_corpus_is_measured_without_touching_the_runs_own_results(
    tiny_run, opened, other, tmp_path
):
    before = contents(tiny_run)
    for place in (tmp_path / "other.json", tiny_run / "lid/other.json"):
        made = evaluate(opened, other, split="all", out=place)
        assert json.loads(place.read_text()) == made
        assert (made["corpus"], made["split"], made["n"], made["labels"]) == (
            "python",
            "all",
            16,
            ["de", "en", "th"],
        )
    after = contents(tiny_run)
    for name in [name for name in after if name not in before]:
        (tiny_run / name).unlink()
    assert {name: after[name] for name in before} == before


def test_labels_of_another_code_system_are_the_runs_own(opened, other, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(opened, "say", said.append)
    names = {"de": "deu_Latn", "en": "eng"}
    coded = replace(other, of=[names[label] for label in other.of], labels=("deu_Latn", "eng"))
    made, own = (
        evaluate(opened, corpus, split="all", out=tmp_path / f"{n}.json")
        for n, corpus in enumerate((coded, other))
    )
    assert made == own  # also the fingerprint of what was measured
    assert said[0] == "labels of python: deu_Latn as de, eng as en"
    assert set(pq.read_table(tmp_path / "0-predictions.parquet")["label"].to_pylist()) == {
        "de",
        "en",
    }
    split = replace(
        other, of=["de", "deu"] * 4 + ["en"] * 8, labels=("de", "deu", "en")
    )  # two names of one label
    assert evaluate(opened, split, split="all", out=tmp_path / "2.json")["heads"] == own["heads"]


def test_a_label_that_the_run_does_not_know_is_refused(opened, tmp_path):
    with pytest.raises(
        UserError, match="has the label fr, which the run does not know; choose labels"
    ):
        evaluate(
            opened, load_corpus([("a", "de"), ("b", "fr")]), split="all", out=tmp_path / "m.json"
        )


def test_metrics_of_another_run_and_other_files_are_not_overwritten(opened, tmp_path, tiny_run):
    target = tmp_path / "m.json"
    made = json.loads((tiny_run / "lid/metrics.json").read_text())
    for content in ({**made, "request": {**made["request"], "run": "another"}}, {"mine": 1}, [1]):
        target.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"m\.json holds metrics of something else"):
            evaluate(opened, None, split="test", out=target)
        assert json.loads(target.read_text()) == content


@pytest.mark.parametrize("name", ["lid/heads", "lid/metrics.json", "selection.parquet"])
def test_one_process_at_a_time_writes_heads_metrics_and_a_selection(tiny_run, tmp_path, name):
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    work = {
        "lid/heads": lambda: fit_heads(open_run(out), force=True),
        "lid/metrics.json": lambda: evaluate(
            open_run(out), None, split="test", out=out / name, max_texts=1
        ),
        "selection.parquet": lambda: rank_into(out / name, out / "stats", "sae-lape"),
    }[name]
    before = contents(out)
    directory = out / f"{name.partition('.')[0]}-partial"
    directory.mkdir()
    handle = os.open(directory, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as another process would
    with pytest.raises(UserError, match=f"another process is writing in {directory}"):
        work()
    assert contents(out) == before
    os.close(handle)
    work()
    assert not directory.exists()


# --------------------------------------------------------------------------- small parts


@pytest.mark.parametrize(
    ("layers", "sites"),
    [
        (18, ["resid_post@0", "mlp_out@5", "resid_post@5"]),
        (30, ["resid_post@0", "mlp_out@9", "resid_post@9"]),
        (1, ["resid_post@0", "mlp_out@0"]),
    ],
)
def test_default_sites_go_by_depth(layers, sites):
    assert default_sites(layers) == sites


@pytest.mark.parametrize("text", ["the cat", "น้ำ แมว", "😀 a", "naïve\u2028x"])
def test_the_pieces_of_a_text_join_to_it(tiny_lm, text):
    ids = tiny_lm.tokenize([text], 100)[0]
    made = pieces(tiny_lm, ids)
    assert len(made) == len(ids)
    assert "".join(made) == text


def test_the_model_of_a_run_is_the_one_given(opened, tiny_model_dir):
    assert opened.lm.fingerprint == load_model(str(tiny_model_dir), dtype="float32").fingerprint


def test_heads_refuse_saes_that_have_changed(tmp_path, tiny_run):
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    for name, other in (SAES, SAES[::-1]):
        shutil.rmtree(out / "saes" / name)
        shutil.copytree(tiny_run / "saes" / other, out / "saes" / name)
    opened = open_run(out, with_corpus=False)
    with pytest.raises(UserError, match="has changed since the head linear was fitted"):
        predict(opened, ["the cat"], choose_head(opened, "linear"))


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"schema": 1, "arguments": {}, "model": 1, "corpus": 1, "sites": []}', "{"],
)
def test_a_damaged_index_of_a_run_is_a_user_error(tmp_path, tiny_run, config, text):
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json"):
        open_run(out)
    with pytest.raises(UserError, match=r"run\.json"):
        run(config, out)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("corpus", None, []),
        ("model", None, []),
        ("arguments", None, None),
        ("sites", None, [1]),
        ("arguments", "saes", [5]),
        ("arguments", "saes", "saes"),
        ("arguments", "labels", ["en", 1]),
        ("arguments", "k", None),
        ("arguments", "seed", True),
        ("corpus", "labels", None),
        ("corpus", "labels", "ende"),
        ("timings", None, []),
        ("model", "fingerprint", None),
    ],
)
def test_an_index_with_values_of_other_types_is_a_user_error(
    tmp_path, tiny_run, config, section, name, value
):
    index = json.loads((tiny_run / "run.json").read_text())
    if name is None:
        index[section] = value
    else:
        index[section][name] = value
    (tmp_path / "run.json").write_text(json.dumps(index))
    for read in (lambda: open_run(tmp_path, with_corpus=False), lambda: run(config, tmp_path)):
        with pytest.raises(
            UserError, match=rf"run\.json is not what .* \({section}.*; start a new"
        ):
            read()


def test_arguments_that_an_older_version_did_not_record_take_the_defaults(tmp_path, tiny_run):
    index = json.loads((tiny_run / "run.json").read_text())
    for name in ("gate", "matrix_texts", "id_column"):
        del index["arguments"][name]
    (tmp_path / "run.json").write_text(json.dumps(index))
    read, whole = (RunDir(out).load_index()["arguments"] for out in (tmp_path, tiny_run))
    assert read == replace(whole, matrix_texts=10)


def test_arguments_of_a_newer_version_are_refused(tmp_path, tiny_run):
    index = json.loads((tiny_run / "run.json").read_text())
    index["arguments"]["colour"] = "blue"
    (tmp_path / "run.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"\(arguments\.colour: Unexpected .*\); start a new run"):
        RunDir(tmp_path).load_index()


def test_an_unknown_family_goes_the_whole_way_with_explicit_sites(
    tmp_path, make_lm, tiny_jsonl, config
):
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)  # a state-space model has no feed-forward part
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "vocab_size": 300,
        "state_size": 4,
        "pad_token_id": 2,
    }
    MambaForCausalLM(MambaConfig(**sizes)).save_pretrained(tmp_path / "mamba")
    make_lm().tokenizer.save_pretrained(tmp_path / "mamba")
    sites = ("backbone.layers.1.mixer",)
    changes = {
        "model": str(tmp_path / "mamba"),
        "corpus": str(tiny_jsonl),
        "sites": sites,
        "eval_texts": 3,
    }
    run(replace(config, **changes), tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run/stats").iterdir()) == [
        f"{name}.safetensors" for name in (sites[0], sae_id(sites[0]))
    ]
    assert (
        "neuron-count" not in json.loads((tmp_path / "run/lid/metrics.json").read_text())["heads"]
    )


def test_labels_without_another_corpus_are_refused(opened):
    with pytest.raises(UserError, match="labels are chosen of another corpus") as error:
        other_corpus(opened, EvaluateConfig(labels=("de",)))
    assert error.value.options == ("labels",)
