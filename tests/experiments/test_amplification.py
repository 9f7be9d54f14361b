"""What amplifying a label's units does to its own text and to that of others."""

from __future__ import annotations

import json
from statistics import fmean

import pytest
import torch
from helpers import Interrupt

from saefeat.config import AmplifyConfig
from saefeat.experiments.amplification import _Amplification, _summarize, amplify
from saefeat.experiments.units import UnitBench
from saefeat.run import open_run
from saefeat.run.steer import pick_test_texts
from saefeat.steering import apply

pytestmark = pytest.mark.usefixtures("one_core", "every_line")

SMALL = AmplifyConfig(labels=("de",), sentences=2, units=("features",), edits=("pmax", "max"))


def loss_by_hand(lm, text):
    """Mean NLL of the tokens of a text, in a pass of its own."""
    ids = lm.tokenizer(text)["input_ids"]
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    chances = logits.log_softmax(-1)
    return -fmean(float(chances[i - 1, ids[i]]) for i in range(1, len(ids)))


def test_figures_equal_plain_forward_passes(run_copy):
    opened = open_run(run_copy)
    config = AmplifyConfig(sentences=3, edits=("pmedian",), factors=(1.0, 4.0))
    result = amplify(opened, config)
    units = UnitBench(opened)
    sets = {each.name: each for each in units.find(config.units)}
    lm, labels = opened.lm, opened.corpus.labels
    texts = {label: pick_test_texts(opened, label, 3) for label in labels}
    before = {x: fmean(loss_by_hand(lm, t) for t in some) for x, some in texts.items()}
    seen = []
    for row in result["rows"]:
        changes = {}
        if row["units"] != "none":
            of, label = sets[row["units"]], row["amplified"]
            changes, count = units.build(row["edit"], of, label), of.count(label)
            assert row["count"] == count > 0
        with apply(lm, changes, row["factor"]):
            nll = fmean(loss_by_hand(lm, text) for text in texts[row["label"]])
        assert row["texts"] == 3 and row["nll"] == pytest.approx(nll, abs=1e-4)
        assert row["change"] == pytest.approx(nll - before[row["label"]], abs=1e-4)
        seen.append((row["units"], row["edit"], row["factor"], row["amplified"], row["label"]))
    wanted = [("none", "none", 0.0, "none", label) for label in labels]
    wanted += [
        (name, "pmedian", factor, amplified, label)
        for name, of in sets.items()
        for factor in (1.0, 4.0)
        for amplified in labels
        if of.count(amplified)
        for label in labels
    ]
    assert seen == wanted and len({name for name, *_ in seen}) == 5


def test_an_edit_that_changes_nothing_changes_no_loss(run_copy):
    config = AmplifyConfig(labels=("th",), edits=("times", "max"), factors=(0.0, 1.0))
    rows = amplify(open_run(run_copy), config)["rows"]
    idle = [row for row in rows if row["edit"] == "times" or row["factor"] == 0]
    assert len(idle) > 6 and all(row["change"] == 0 for row in idle)
    assert any(row["change"] for row in rows)


def test_the_summary_parts_own_from_other_text():
    def row(amplified, label, change, units="features"):
        setting = {"units": units, "edit": "pmax", "factor": 1.0}
        return setting | {"amplified": amplified, "label": label, "change": change}

    rows = [
        *(row("de", "de", -0.5), row("de", "en", 1.0), row("en", "en", 0.25), row("en", "de", 3.0)),
        *(row("de", "de", None, "random"), row("de", "en", None, "random")),
    ]
    one, two = _summarize(rows)
    assert one == {
        "units": "features",
        "edit": "pmax",
        "factor": 1.0,
        "labels": 2,
        "self": -0.125,
        "cross": 2.0,
        "helped": 1,
        "lost": 0,
    }
    assert (two["self"], two["cross"], two["helped"], two["lost"]) == (None, None, 0, 2)


def test_a_model_that_an_edit_breaks_gives_no_figures(run_copy):
    found = _Amplification(UnitBench(open_run(run_copy)), {"de": ["ja", "nein", ""]})
    found.before = {"de": [1.0, 2.0, None], "th": [None]}
    assert found._compare("de", [2.0, 4.0, None]) == {
        "label": "de",
        "texts": 2,
        "nll": 3.0,
        "change": 1.5,
    }
    broken = found._compare("de", [2.0, None, None])
    assert broken == {"label": "de", "texts": 2, "nll": None, "change": None}
    assert found._compare("th", [None]) is None


def test_a_killed_experiment_resumes_to_the_same_bytes(run_copy, tmp_path):
    amplify(open_run(run_copy), SMALL, tmp_path / "whole.json")
    with pytest.raises(KeyboardInterrupt):
        amplify(open_run(run_copy, Interrupt("features max")), SMALL, tmp_path / "killed.json")
    lines: list[str] = []
    amplify(open_run(run_copy, lines.append), SMALL, tmp_path / "killed.json")
    assert (tmp_path / "killed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_the_command_prints_the_summary_and_writes_the_result(saefeat, run_copy):
    options = ["--labels", "deu", "--sentences", 2, "--units", "features"]
    code, printed, _ = saefeat("steer", "amplify", "--run", run_copy, *options)
    assert code == 0 and "random features" in printed and "helped" in printed
    result = json.loads((run_copy / "experiments" / "amplification.json").read_text())
    assert result["settings"]["labels"] == ["de"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--edits", "push"], "there is no edit 'push'; the edits are add, scale"),
        (["--labels", "xx"], "no label 'xx' in this run; it has de, en, th (--labels)"),
        (["--sentences", "0"], "sentences"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(saefeat, run_copy, options, message):
    code, _, said = saefeat("steer", "amplify", "--run", run_copy, *options)
    assert code == 2 and message in " ".join(said.split()), said
    assert "Traceback" not in said and not (run_copy / "experiments").exists()
