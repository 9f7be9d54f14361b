"""`saefeat reproduce`: the commands of papers exist, are listed, and run."""

from __future__ import annotations

import json

import pytest
import typer

from saefeat.cli import app
from saefeat.experiments.papers import PAPERS

STEPS = [(name, step) for name, paper in PAPERS.items() for step in paper.steps]


@pytest.mark.parametrize(("paper", "step"), STEPS, ids=lambda each: getattr(each, "name", each))
def test_every_command_exists_with_its_options(paper, step, tmp_path):
    words = step.words(paper, tmp_path, dict.fromkeys(step.needs, "FILE"))
    command, parent = typer.main.get_command(app), None
    while hasattr(command, "commands"):
        parent = command.make_context(words[0], words[:], parent=parent, resilient_parsing=True)
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words)  # raises for an unknown option or value


def test_names_of_steps_differ_and_results_do_not_collide(tmp_path):
    places = [step.result(paper, tmp_path) for paper, step in STEPS]
    assert len(set(places)) == len(places)


def test_papers_are_listed_with_their_commands(saefeat, run_copy):
    code, out, _ = saefeat("reproduce")
    assert code == 0 and all(name in out for name in PAPERS)
    code, out, _ = saefeat("reproduce", "culture")
    assert code == 0 and "--units CULTURE --apart-from LANGUAGE" in out
    code, out, _ = saefeat("reproduce", "arithmetic", "--run", run_copy)
    assert f"saefeat steer fallback --run {run_copy}" in out
    for wrong, message in {
        ("nothing",): "there is no paper 'nothing'; choose from lape",
        ("lape", "--do"): "give the directory of a run",
        ("lape", "--run", run_copy / "stats"): "is not a run directory",
        ("culture", "--give", "culture=none"): "write NAME=FILE with a file that exists",
    }.items():
        code, _, err = saefeat("reproduce", *wrong)
        assert code == 2 and message in err, err


def test_a_paper_is_run_and_its_results_are_kept(saefeat, run_copy):
    code, out, err = saefeat("reproduce", "ternary", "--run", run_copy, "--do")
    assert code == 0, err
    assert (run_copy / "selections" / "ternary-neurons.parquet").exists()
    found = json.loads((run_copy / "experiments" / "ternary-deactivation.json").read_text())
    assert found["experiment"] == "categories" and "3,219 neurons at 1 %" in out
    code, out, _ = saefeat("reproduce", "culture", "--run", run_copy, "--do")
    assert code == 0 and "left out: give culture=FILE" in out
