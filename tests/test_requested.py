"""A run that collects statistics on request: the same as `collect` does, resumed, and ranked."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from helpers import contents, refused

from saefeat.config import CollectConfig, RunConfig
from saefeat.corpora.random_tokens import random_plan
from saefeat.dictionaries import Identity
from saefeat.memory import working_bytes
from saefeat.run import collect, open_run, run
from saefeat.run.forecast import forecast_collect
from saefeat.run.request import mark_of
from saefeat.rundir import RunDir
from saefeat.selection import Selection
from saefeat.statistics import ACCUMULATORS, collected_kinds

NAMES = ("responses", "patterns", "importances", "distributions")
ASKED = {"with_": NAMES, "random_tokens": 8, "table_examples": 12, "neuron_site": "both"}
RULES = {
    "langfir": ["-p", "example_rate=0.1", "-p", "random_rate=0.9"],
    "average-precision": [],
    "sharing": [],
    "plnd": [],
    "dln": [],
}

pytestmark = pytest.mark.usefixtures("one_core")


@pytest.fixture
def asked(tmp_path, tiny_run, tiny_corpus, config):
    """The configuration of a run that collects everything, of texts whose ids meet by threes."""
    rows = [
        {"text": text, "label": label, "id": f"{i // 3}"}
        for i, (text, label) in enumerate(zip(tiny_corpus.texts, tiny_corpus.of, strict=True))
    ]
    path = tmp_path / "parallel.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    saes = (str(tiny_run / "saes"),)
    return replace(config, corpus=str(path), saes=saes, eval_texts=3, **ASKED)


def test_a_run_collects_what_is_asked_for_as_collect_does(tmp_path, asked, monkeypatch, saefeat):
    out, lines = tmp_path / "run", []

    def interrupt(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("saefeat.run.stages.random_plan", interrupt)
        run(asked, out)
    assert (out / "stats/responses").exists() and not (out / "stats/random-tokens").exists()
    run(asked, out, say=lines.append)
    assert f"{out / 'stats'} is complete already" in lines
    opened = open_run(out)
    options = {**ASKED, "neurons": True, "max_tokens": asked.max_tokens}
    collect(opened.lm, opened.corpus, opened.saes, out=tmp_path / "stats", **options)
    mine, theirs = contents(out / "stats"), contents(tmp_path / "stats")
    assert {name.split("/")[0] for name in mine if "/" in name} == {*NAMES, "random-tokens"}
    assert {"mlp_act@0.safetensors", "mlp_hidden@0.safetensors"} <= mine.keys()
    assert mine == {name: theirs[name] for name in mine}  # which has the neurons of all layers
    assert {"lape", "sae-lape"} <= set(RunDir(out).selected_methods())

    for name, words in RULES.items():
        target = tmp_path / f"{name}.parquet"
        made = ["rank", out / "stats", "--method", name, *words, "--no-lens", "--out", target]
        code, _, err = saefeat(*made)
        assert code == 0, err
        assert Selection.load(target).header["method"] == name


def test_the_forecast_of_a_run_has_what_is_asked_for(tmp_path, asked, config, saefeat):
    def dry(config):
        lines = []
        assert run(config, tmp_path / "run", say=lines.append, dry_run=True) is None
        disk = float(re.search(r"([\d,]+) MB on disk", "\n".join(lines))[1].replace(",", ""))
        return "\n".join(lines), disk

    text, disk = dry(asked)
    less = dry(replace(asked, with_=None, random_tokens=0))
    assert f", {', '.join(NAMES)}, and 8 sequences of random tokens (" in text
    assert "random" not in less[0] and disk > less[1]
    trained = {**ASKED, "table_examples": 1000}
    text, disk = dry(replace(config, **trained))
    assert "sequences of random tokens" in text
    assert disk > dry(config)[1]
    words = ["--with", "responses,distributions", "--random-tokens", 8, "--neuron-site", "both"]
    inputs = ["--model", config.model, "--corpus", config.corpus, "--d-sae", 64, "--k", 4]
    code, _, err = saefeat("run", *inputs, *words, "--out", tmp_path / "run", "--dry-run")
    assert code == 0
    assert ", responses, distributions, and 8 sequences of random tokens" in err
    assert not (tmp_path / "run").exists()


def test_an_unknown_statistic_of_a_run_is_refused_before_anything_is_loaded(tmp_path, config):
    wrong = replace(config, model="/nowhere", with_=("answers",))
    with refused("unknown statistic 'answers'", "with_"):
        run(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_later_arguments_change_the_mark_of_a_run_only_where_they_are_given():
    sizes = {"max_tokens": 2000, "train_tokens": 3000, "d_sae": 512, "k": 16, "eval_texts": 20}
    sizes |= {"neuron_layers": 3, "steer_prompts": 4, "matrix_texts": 3}
    older = RunConfig("embedded:smollm2-135m", "embedded:eld", labels=("en", "de", "fr"), **sizes)
    assert mark_of(older) == "af148ebcdf909023"  # as a version without these arguments wrote it
    changes = [{name: value} for name, value in ASKED.items()] + [{"prompt_column": "q"}, {"k": 8}]
    assert len({mark_of(replace(older, **change)) for change in ({}, *changes)}) == 7


def test_the_buffer_of_distributions_and_random_tokens_are_in_the_forecast(tiny_lm, tiny_plan):
    neurons, kinds = Identity("mlp_act@1", 48), [ACCUMULATORS["distributions"]]
    counts = 3 * 48 * 241 * 8
    assert working_bytes(neurons, "cpu", 3, kinds) == counts + 48 * 2048
    config = CollectConfig(neurons=True, random_tokens=20)
    line = forecast_collect(tiny_lm, [], tiny_plan, config)
    total = random_plan(tiny_lm, tiny_plan, 20).total
    assert line.endswith(f", and 20 sequences of random tokens ({total:,} tokens)")
    assert collected_kinds(config.requested) == collected_kinds()
