"""`saefeat reproduce`: the commands of papers exist, are listed, and run."""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pytest
import typer

from saefeat.cli import app
from saefeat.experiments.papers import CORPORA, PAPERS, inputs_of
from saefeat.experiments.published import choose_published, read_figures, same_model
from saefeat.ranking import FIELDS
from saefeat.rundir import RunDir
from saefeat.selection import Selection

CORPUS_OPTIONS = ("--corpus", "--texts", "--parallel")
STEPS = [(name, step) for name, paper in PAPERS.items() for step in paper.steps]


@pytest.mark.parametrize(("paper", "step"), STEPS, ids=lambda each: getattr(each, "name", each))
def test_every_command_exists_with_its_options(paper, step, tmp_path):
    inputs = ["--model", "MODEL", "--corpus", "CORPUS"]
    words = step.words(paper, tmp_path, dict.fromkeys(step.needs, "FILE"), inputs)
    command, parent = typer.main.get_command(app), None
    while hasattr(command, "commands"):
        parent = command.make_context(words[0], words[:], parent=parent, resilient_parsing=True)
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words)  # raises for an unknown option or value


def test_options_that_take_a_corpus_are_given_one():
    pairs = [p for _, step in STEPS for p in re.findall(r"(--[\w-]+) \{(\w+)\}", step.command)]
    given = [(option, name) for option, name in pairs if name not in ("run", "out")]
    assert {name for option, name in given if option in CORPUS_OPTIONS} == {*CORPORA}
    assert not {name for option, name in given if option not in CORPUS_OPTIONS} & {*CORPORA}


def test_names_of_steps_differ_and_results_do_not_collide(tmp_path):
    places = [step.result(paper, tmp_path) for paper, step in STEPS]
    assert len(set(places)) == len(places)


def test_papers_are_listed_with_their_commands(saefeat, run_copy):
    code, out, _ = saefeat("reproduce")
    assert code == 0 and all(name in out for name in PAPERS)
    code, out, _ = saefeat("reproduce", "culture")
    assert code == 0 and "culture-cultures.parquet --apart-from LANGUAGE" in out
    code, out, _ = saefeat("reproduce", "arithmetic", "--run", run_copy)
    assert f"saefeat steer fallback --run {run_copy}" in out
    arguments = json.loads((run_copy / "run.json").read_text())["arguments"]
    code, out, _ = saefeat("reproduce", "lape", "--run", run_copy)
    model, corpus = arguments["model"], arguments["corpus"]
    assert f"saefeat collect --model {model} --corpus {corpus}" in out
    assert f"--max-tokens {arguments['max_tokens']}" in out and "--neurons --out" in out
    out = saefeat("reproduce", "plnd")[1]
    assert "--positions 64 --max-new-tokens 64" in out and "cld3" in out
    for wrong, message in {
        ("nothing",): "there is no paper 'nothing'; choose from lape",
        ("lape", "--do"): "give the directory of a run",
        ("lape", "--run", run_copy / "stats"): "is not a run directory",
        ("culture", "--give", "language=none"): "write NAME=FILE with a file that exists",
    }.items():
        code, _, err = saefeat("reproduce", *wrong)
        assert code == 2 and message in err, err


def test_a_paper_is_run_and_its_results_are_kept(saefeat, run_copy):
    code, out, err = saefeat("reproduce", "ternary", "--run", run_copy, "--do")
    assert code == 0, err
    assert (run_copy / "selections" / "ternary-neurons.parquet").exists()
    found = json.loads((run_copy / "experiments" / "ternary-deactivation.json").read_text())
    assert found["experiment"] == "categories" and "3,219 neurons at 1 %" in out
    code, out, _ = saefeat("reproduce", "mexa", "--run", run_copy, "--do")
    assert code == 0 and "left out: give parallel=CORPUS" in out


def test_a_corpus_is_given_by_any_name_that_the_option_corpus_takes(saefeat, tmp_path):
    (tmp_path / "c.jsonl").write_text("")
    (tmp_path / "units.parquet").write_text("")
    for name in ("flores+", "xnli:test#50", "hub:a/b", "embedded:eld", tmp_path / "c.jsonl"):
        words = ["--give", f"texts={name}", "--give", f"language={tmp_path / 'units.parquet'}"]
        code, out, err = saefeat("reproduce", "culture", *words)
        assert code == 0 and f"--texts {name} " in out.replace("'", ""), err
        code, out, err = saefeat("reproduce", "mexa", "--give", f"parallel={name}")
        assert code == 0 and f"--parallel {name} " in out.replace("'", ""), err


@pytest.mark.parametrize(
    ("given", "message"),
    {
        "texts=flores": "texts=flores: the corpus flores does not exist; give a file",
        "texts=flores+:train": "flores+ has the splits dev, devtest; give flores+ or flores+:dev",
        "texts=hub:a/b/c": "is not a data set of the hub; write hub:OWNER/NAME",
        "texts=embedded:elf": "unknown embedded corpus embedded:elf; there is embedded:eld",
        "texts=xnli#0": "the part after # must be the greatest number of texts per label",
        "texts=": "the corpus has an empty name",
        "texts=PATH/notes.md": "must end in .jsonl, .csv, .tsv, .parquet",
        "language=flores+": "write NAME=FILE with a file that exists",
        "language=hub:a/b": "write NAME=FILE with a file that exists",
        "language=PATH": "write NAME=FILE with a file that exists",
        "texts": "write NAME=FILE with a file that exists",
        "text=flores+": "the experiments of this paper need language=FILE, texts=CORPUS",
        f"language={'a' * 5000}": "write NAME=FILE with a file that exists",
    }.items(),
)
def test_what_is_no_corpus_or_file_is_refused_before_any_work(
    saefeat, run_copy, tmp_path, given, message
):
    (tmp_path / "notes.md").write_text("a")
    given = given.replace("PATH", str(tmp_path))
    code, out, err = saefeat("reproduce", "culture", "--run", run_copy, "--do", "--give", given)
    assert (code, out) == (2, "") and message in err and len(err.strip().splitlines()) == 1
    assert not (run_copy / "papers").exists()


@pytest.mark.parametrize("paper", ["lape", "plnd"])
def test_neurons_of_layers_that_the_run_has_not_counted_are_ablated(
    saefeat, run_copy, tiny_lm, paper
):
    inputs = inputs_of(RunDir(run_copy).load_index()["arguments"])
    steps = {step.name: step for step in PAPERS[paper].steps}
    for name in ("statistics", "neurons", "ablation"):
        words = steps[name].words(paper, run_copy, {}, inputs)
        if (paper, name) == ("plnd", "neurons"):  # few neurons matter in every text
            words += ["-p", "top=40", "-p", "sets=whole"]
        code, _, err = saefeat(*words)
        assert code == 0, err
    selection = Selection.load(run_copy / "selections" / f"{paper}-neurons.parquet")
    kind = "mlp_act" if paper == "lape" else "mlp_hidden"
    every = {f"{kind}@{layer}" for layer in range(tiny_lm.n_layers)}
    assert set(selection.dictionaries) == every
    assert {path.stem for path in (run_copy / "stats").glob(f"{kind}@*")} < every
    rows = json.loads((run_copy / "experiments" / f"{paper}-ablation.json").read_text())["rows"]
    assert {row["units"] for row in rows} == {f"{paper}-neurons", f"random {paper}-neurons"}


def test_published_figures_add_up():
    assert sum(bool(step.figures) for _, step in STEPS) == 4
    for _, step in STEPS:
        for each in step.figures:
            shared = [x for name, x in each.figures.items() if name.startswith("units of")]
            assert not shared or sum(shared) == each.figures["units"]


def test_figures_of_a_selection_are_counted(tmp_path):
    owned = {"a": [0, 1], "b": [1, 2], "c": []}
    cells = [
        (unit, label, rank) for label, units in owned.items() for rank, unit in enumerate(units, 1)
    ]
    values = {
        "dictionary": ["d"] * 4,
        "site": ["resid_post@0"] * 4,
        "unit": [unit for unit, _, _ in cells],
        "label": [label for _, label, _ in cells],
        "rank": [rank for _, _, rank in cells],
    }
    rows = pa.table({name: values.get(name, [0] * 4) for name in FIELDS.names}).cast(FIELDS)
    header = {"method": "m", "labels": list(owned), "dictionaries": {"d": {"width": 3}}}
    Selection(rows, header).save(tmp_path / "s.parquet")
    assert read_figures(tmp_path / "s.parquet") == {
        "units": 3,
        "units of 1 label": 2,
        "units of 2 labels": 1,
        "units of 3 labels": 0,
        "a": 2,
        "b": 2,
        "c": 0,
    }


def test_figures_of_heads_and_of_summaries_are_read(tmp_path):
    (tmp_path / "lid.json").write_text(json.dumps({"heads": {"linear": {"accuracy": 0.5}}}))
    assert read_figures(tmp_path / "lid.json") == {"linear": 0.5}
    rows = [{"units": "neurons", "own": 2, "gap": None}, {"units": "random", "own": 0.5}]
    (tmp_path / "e.json").write_text(json.dumps({"summary": rows}))
    assert read_figures(tmp_path / "e.json") == {"neurons: own": 2, "random: own": 0.5}


def test_a_model_is_compared_with_its_own_figures(saefeat, run_copy):
    lape = PAPERS["lape"].steps[1]
    assert choose_published(lape.figures, "/models/bloom-7b1").figures["units"] == 4915
    assert choose_published(lape.figures, "another") is lape.figures[0]
    assert same_model("microsoft/phi-2", "microsoft/Phi-2") and not same_model("a/phi-2", "a/phi-3")
    lape.result("lape", run_copy).parent.mkdir(exist_ok=True)
    saefeat("rank", run_copy / "stats", "--method", "lape", "--out", lape.result("lape", run_copy))
    code, out, _ = saefeat("reproduce", "lape", "--run", run_copy)
    assert code == 0 and "units of 6 labels" in out and "another model" in out
    index = json.loads((run_copy / "run.json").read_text())
    index["model"]["name"] = "microsoft/phi-2"
    (run_copy / "run.json").write_text(json.dumps(index))
    code, out, _ = saefeat("reproduce", "lape", "--run", run_copy)
    assert "published of microsoft/phi-2" in out and "here is the same model" in out
