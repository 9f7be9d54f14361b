"""Language Steering Shift: facts, scores, ties, resuming, bad input."""

from __future__ import annotations

import csv
import json
import math
import unicodedata
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import Interrupt, refused

from saefeat.collection import collect
from saefeat.config import FactColumns, LSSConfig
from saefeat.corpora import PAPER_LABELS
from saefeat.experiments.facts import Fact, embedded_facts, read_facts
from saefeat.experiments.lss import _LSS, _Difference, _encode, _Encoded, _summarize, lss
from saefeat.experiments.units import UnitBench
from saefeat.io import UserError
from saefeat.run import open_run
from saefeat.steering import add, apply

pytestmark = pytest.mark.usefixtures("one_core", "every_line")

SMALL = LSSConfig(units=("features",), edits=("pmax", "max"), factors=(2.0,), max_facts=3)
FACTS = [
    Fact("The cat is", "en", "de", "black", "schwarz und weiß"),
    Fact('A "dog", and', "en", "th", "a cat", "แมว"),
    Fact("Der Hund ist", "de", "en", "groß", "big"),
]


@pytest.fixture
def opened(run_copy):
    return open_run(run_copy)


# --------------------------------------------------------------------------- facts


SCRIPTS = {"hi": "DEVANAGARI", "th": "THAI", "ko": "HANGUL", "ru": "CYRILLIC", "bg": "CYRILLIC"}


def test_embedded_facts_are_of_all_pairs_of_15_languages():
    labels = list(PAPER_LABELS)
    facts = embedded_facts(labels)
    pairs = {(fact.base, fact.target) for fact in facts}
    assert pairs == {(x, y) for x in labels for y in labels if x != y}
    assert all(fact.base_object != fact.target_object for fact in facts)
    for fact in facts:
        assert fact == Fact(*(unicodedata.normalize("NFC", part) for part in fact))
        assert fact.prompt == fact.prompt.strip() and "{" not in fact.prompt
        script = SCRIPTS.get(fact.target, "")
        assert all(script in unicodedata.name(x) for x in fact.target_object if x.isalpha())
    assert Fact("The capital of Austria is", "en", "de", "Vienna", "Wien") in facts
    assert Fact("Die Hauptstadt von Italien ist", "de", "ja", "Rom", "ローマ") in facts
    assert len([f for f in facts if (f.base, f.target) == ("en", "ru")]) == 12


def test_embedded_facts_have_the_labels_of_any_code_system():
    facts = embedded_facts(["deu_Latn", "python", "eng"])
    assert {(fact.base, fact.target) for fact in facts} == {
        ("deu_Latn", "eng"),
        ("eng", "deu_Latn"),
    }
    assert not embedded_facts(["python", "rust"])


def write_table(path, facts, names=Fact._fields):
    rows = [dict(zip(names, fact, strict=True)) for fact in facts]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, dialect="excel")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_of_facts_is_read_from_every_format(tmp_path, suffix):
    path = write_table(tmp_path / f"facts.{suffix}", FACTS)
    assert read_facts(path, FactColumns()) == FACTS
    names = ("p", "b", "t", "in_base", "in_target")
    renamed = write_table(tmp_path / f"renamed.{suffix}", FACTS, names)
    columns = FactColumns(
        prompt_column="p",
        base_column="b",
        target_column="t",
        base_object_column="in_base",
        target_object_column="in_target",
    )
    assert read_facts(renamed, columns) == FACTS
    with refused(
        r"row 1: no column prompt; there are p, b, t, in_base, in_target", "prompt_column"
    ):
        read_facts(renamed, FactColumns())


def test_a_table_of_facts_that_cannot_be_used_is_refused(tmp_path):
    columns = FactColumns()
    with refused("gone.csv does not exist", "facts"):
        read_facts(tmp_path / "gone.csv", columns)
    for cell in ("", "  "):
        blank = write_table(tmp_path / "blank.csv", [*FACTS, FACTS[0]._replace(base_object=cell)])
        with refused("blank.csv: row 4 has no text in the column base_object", "facts"):
            read_facts(blank, columns)
    number = [f._replace(target_object=3) for f in FACTS]
    with refused("row 1 has no text in the column target_object", "facts"):
        read_facts(write_table(tmp_path / "number.jsonl", number), columns)
    with refused("empty.csv has no rows", "facts"):
        read_facts(write_table(tmp_path / "empty.csv", []), columns)
    (tmp_path / "some.txt").write_text("x")
    with refused("some.txt must end in", "facts"):
        read_facts(tmp_path / "some.txt", columns)


# --------------------------------------------------------------------------- scores


def difference_by_hand(lm, fact):
    """d of a fact in a plain forward pass of each object: summed, and per token."""
    sums, means = [], []
    start = lm.tokenizer(fact.prompt)["input_ids"]  # <s> is put before
    for each in (fact.target_object, fact.base_object):
        ids = lm.tokenizer(f"{fact.prompt} {each}")["input_ids"]
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        chances = logits.double().log_softmax(-1)
        of = [float(chances[i - 1, ids[i]]) for i in range(len(start), len(ids))]
        sums.append(sum(of))
        means.append(fmean(of))
    return sums[0] - sums[1], means[0] - means[1]


def test_scores_equal_plain_forward_passes(opened, tmp_path):
    table = write_table(
        tmp_path / "facts.jsonl", [*FACTS, FACTS[0]._replace(base_object="red", base="th")]
    )
    config = LSSConfig(units=("features",), edits=("pmax", "pass-max"), factors=(1.0, 3.0))
    result = lss(opened, config, table)
    units = UnitBench(opened)
    sets = {each.name: each for each in units.find(("features",))}
    assert set(sets) == {"features", "random features"}
    facts = read_facts(table, config)
    lm, seen = opened.lm, 0
    for row in result["rows"]:
        some = [f for f in facts if (f.base, f.target) == (row["base"], row["target"])]
        before = [difference_by_hand(lm, fact) for fact in some]
        changes = {}
        if row["units"] != "none":
            changes = units.build(row["edit"], sets[row["units"]], row["target"])
            assert row["count"] == sets[row["units"]].count(row["target"]) > 0
        with apply(lm, changes, row["factor"]):
            now = [difference_by_hand(lm, fact) for fact in some]
        moved = [
            [x - y for x, y in zip(*pair, strict=True)] for pair in zip(now, before, strict=True)
        ]
        assert row["facts"] == len(some)
        assert row["difference"] == pytest.approx(fmean(d for d, _ in now), abs=1e-4)
        assert row["shift"] == pytest.approx(fmean(d for d, _ in moved), abs=1e-4)
        assert row["shift_per_token"] == pytest.approx(fmean(d for _, d in moved), abs=1e-4)
        if row["units"] != "none" and all(abs(d) > 1e-3 for pair in moved for d in pair):
            assert row["lss"] == fmean(d > 0 for d, _ in moved)
            assert row["lss_per_token"] == fmean(d > 0 for _, d in moved)
            seen += 1
    assert seen > 8
    means = {(r["units"], r["edit"], r["factor"]): r for r in result["summary"]}
    assert len(means) == 1 + 2 * 2 * 2
    for key, row in means.items():
        here = [r for r in result["rows"] if (r["units"], r["edit"], r["factor"]) == key]
        assert row["pairs"] == len(here) and row["lss"] == fmean(r["lss"] for r in here)


def test_an_edit_that_changes_nothing_has_the_score_0(opened):
    config = LSSConfig(edits=("times", "pass-max"), factors=(1.0, 0.0), max_facts=4)
    rows = lss(opened, config)["rows"]
    idle = [r for r in rows if r["factor"] == 0 or r["edit"] == "times"]
    assert {r["units"] for r in idle} >= {"none", "neurons", "features", "random features"}
    for row in idle:
        assert (row["lss"], row["lss_per_token"], row["shift"]) == (0, 0, 0)
    assert any(row["shift"] for row in rows if row not in idle)


def test_only_a_strict_increase_counts_as_a_shift(opened):
    facts = [_Encoded("en", ([], []), (1, 1)) for _ in range(4)] + [
        _Encoded("th", ([], []), (1, 1))
    ]
    scored = _LSS(UnitBench(opened), {"de": facts})
    scored.clean = {"de": [_Difference(-3.0, 0.5)] * 5}
    found = [(-2.0, 0.25), (-3.0, 0.5), (-4.0, 0.75), (5.0, 0.5), (-3.0, 0.75)]
    one, two = scored._compare("de", [_Difference(*pair) for pair in found])
    assert one == {
        "base": "en",
        "target": "de",
        "facts": 4,
        "lost": 0,
        "lss": 0.5,
        "lss_per_token": 0.25,
        "difference": -1.0,
        "shift": 2.0,
        "shift_per_token": 0.0,
    }
    assert (two["base"], two["lss"], two["lss_per_token"]) == ("th", 0, 1)


def test_facts_that_an_edit_breaks_are_lost_and_counted(opened, tmp_path, monkeypatch):
    """An edit that makes the vectors of one token infinite: a fact with that token is lost."""
    facts = [FACTS[0]._replace(prompt=f"The {x} is") for x in ("cat", "mat", "Haus", "Katze")]
    config = replace(SMALL, edits=("pmax",), from_=("en",), to=("de",), max_facts=None)
    (token,) = opened.lm.tokenizer(" mat", add_special_tokens=False)["input_ids"]
    vector = opened.lm.model.get_input_embeddings().weight[token]

    def breaks(x, _):
        return torch.where((x - vector).norm(dim=-1, keepdim=True) < 1e-4, torch.inf, x)

    def measure(name, facts, **first):
        changes = {**first, "resid_post@1": [add(torch.linspace(-3, 3, len(vector)))]}
        monkeypatch.setattr(UnitBench, "build", lambda *_: changes)
        table = write_table(tmp_path / f"{name}-facts.csv", facts)
        return lss(opened, config, table, tmp_path / f"{name}.json")

    broken = measure("broken", facts, **{"model.embed_tokens": [breaks]})
    sound = measure("sound", [fact for fact in facts if " mat" not in fact.prompt])
    figures = ("lss", "lss_per_token", "difference", "shift", "shift_per_token")
    for row, other in list(zip(broken["rows"], sound["rows"], strict=True))[1:]:
        assert (row["facts"], row["lost"], other["facts"], other["lost"]) == (4, 1, 3, 0)
        assert [row[x] for x in figures] == pytest.approx([other[x] for x in figures], abs=1e-4)
        assert row["lss"] > 0
    assert [(row["units"], row["lost"]) for row in broken["summary"]] == [
        *(("none", 0), ("features", 1), ("random features", 1))
    ]


def test_there_are_no_figures_where_all_facts_are_lost(opened):
    facts = [_Encoded("en", ([], []), (1, 1))] * 3 + [_Encoded("th", ([], []), (1, 1))] * 2
    scored = _LSS(UnitBench(opened), {"de": facts})
    scored.clean = {"de": [*[_Difference(-3.0, -3.0)] * 4, _Difference(math.inf, 1.0)]}
    nan, inf = math.nan, math.inf
    found = [(nan, 1.0), (1.0, -inf), (inf, inf), (-2.0, -4.0), (2.0, 2.0)]
    lost, half = scored._compare("de", [_Difference(*pair) for pair in found])
    figures = ("lss", "lss_per_token", "difference", "shift", "shift_per_token")
    assert (lost["facts"], lost["lost"]) == (3, 3) and {lost[x] for x in figures} == {None}
    assert (half["facts"], half["lost"]) == (2, 1)
    assert [half[x] for x in figures] == [1, 0, -2.0, 1.0, -1.0]
    setting = {"units": "u", "edit": "max", "factor": 1.0}
    (summary,) = _summarize([setting | lost, setting | half])
    assert summary == setting | {"pairs": 2, **{x: half[x] for x in figures}, "lost": 4}


def test_objects_are_the_tokens_beyond_those_of_the_prompt(tiny_lm):
    (found,) = _encode(tiny_lm, FACTS[:1])
    objects = ("schwarz und weiß", "black")
    for row, count, each in zip(found.rows, found.counts, objects, strict=True):
        assert row[0] == 0 and tiny_lm.tokenizer.decode(row[-count:]) == f" {each}"


def test_an_object_that_merges_into_its_prompt_is_refused(tiny_lm):
    merging = SimpleNamespace(
        tokenizer=lambda text, **_: {"input_ids": text.split()[:3]}, prefix=[0], model=tiny_lm.model
    )
    with refused("the object of 'The cat is schwarz und weiß' adds no token to its prompt"):
        _encode(merging, FACTS[:1])


# --------------------------------------------------------------------------- the experiment


def test_facts_of_the_labels_in_the_run_are_chosen(opened):
    rows = lss(opened, SMALL)["rows"]
    assert {(row["base"], row["facts"]) for row in rows} == {("en", 3)}  # English by default
    every = replace(SMALL, from_=("deu_Latn", "th"), to=("th",))
    rows = lss(opened, every, None, Path(opened.out / "other.json"))["rows"]
    assert {(row["base"], row["target"]) for row in rows} == {("de", "th")}


def test_a_killed_experiment_resumes_to_the_same_bytes(run_copy, tmp_path):
    lss(open_run(run_copy), SMALL, None, tmp_path / "whole.json")
    stop = Interrupt("features max")
    with pytest.raises(KeyboardInterrupt):
        lss(open_run(run_copy, stop), SMALL, None, tmp_path / "killed.json")
    lines: list[str] = []
    lss(open_run(run_copy, lines.append), SMALL, None, tmp_path / "killed.json")
    assert (tmp_path / "killed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not any("5 of 5" in line and "features pmax" in line for line in lines)
    lss(open_run(run_copy, lines.append), SMALL, None, tmp_path / "killed.json")
    assert "is complete already" in lines[-1]


def test_patched_values_of_a_run_are_those_of_its_collected_responses(run_copy, tmp_path):
    opened = open_run(run_copy)
    sae = opened.saes[0]
    units = UnitBench(opened)
    units.find(("features",))
    computed = units._patch(sae, "de")
    places = {"responses": opened.files.responses}
    collect(opened.lm, opened.plan, [sae], tmp_path / "stats", places=places)
    again = UnitBench(opened)
    read = again._patch(sae, "de")
    assert not again._found and computed.keys() == read.keys()
    for name, values in computed.items():
        torch.testing.assert_close(read[name], values, rtol=0, atol=1e-6)


def test_the_command_prints_the_summary_and_writes_the_result(saefeat, run_copy, tmp_path):
    table = write_table(tmp_path / "facts.csv", FACTS)
    options = ["--edits", "pmedian", "--factors", "1,2", "--units", "features"]
    code, printed, said = saefeat("steer", "lss", "--run", run_copy, "--facts", table, *options)
    assert code == 0 and "random features" in printed and "lss_per_token" in printed
    assert "parts" in said
    result = json.loads((run_copy / "experiments" / "lss.json").read_text())
    assert result["settings"]["facts"] == {"table": "facts.csv", "count": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--edits", "push"], "there is no edit 'push'; the edits are add, scale"),
        (["--edits", "quantile:2"], "the quantile of the edit 'quantile:2' is not a number from 0"),
        (["--factors", "nan"], "each of the factors should be a finite number, not nan"),
        (["--to", "xx"], "no label 'xx' in this run; it has de, en, th (--to)"),
        (["--to", "en"], "have no fact with an object in en and such a base (--to, --facts)"),
        (["--from", "xx"], "embedded facts have no prompt in xx; they have"),
        (["--from", "th", "--facts", "FACTS"], "have no prompt in th; they have en, de (--from)"),
        (["--units", "nothing"], "there are no units 'nothing'"),
        (["--facts", "FACTS", "--target-column", "goal"], "no column goal; there are prompt"),
        (["--facts", "gone.csv"], "the table gone.csv does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(saefeat, run_copy, tmp_path, options, message):
    table = write_table(tmp_path / "facts.csv", FACTS)
    options = [table if option == "FACTS" else option for option in options]
    code, _, said = saefeat("steer", "lss", "--run", run_copy, *options)
    assert code == 2 and message in " ".join(said.split()), said
    assert "Traceback" not in said and not (run_copy / "experiments").exists()


def test_a_label_without_units_is_refused_if_it_is_asked_for(opened, monkeypatch):
    plain = UnitBench.find

    def without_german(self, *args, **options):
        found = plain(self, *args, **options)
        for each in found:
            each.chosen["de"] = {}
        return found

    monkeypatch.setattr(UnitBench, "find", without_german)
    config = replace(SMALL, to=("de",))
    with pytest.raises(UserError, match="de has no units by features; choose other units"):
        lss(opened, config)
    rows = lss(opened, SMALL)["rows"]
    assert {row["target"] for row in rows} == {"th"}
