"""Experiments on a run: the frame, sets of units, arithmetics, fallback and ablation."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from helpers import Interrupt, make_stats

from saefeat.config import CONSTANT, AblateConfig, ArithmeticConfig, Decoding, FallbackConfig
from saefeat.experiments.ablation import ablate_sets
from saefeat.experiments.arithmetic import arithmetic
from saefeat.experiments.fallback import fallback
from saefeat.experiments.units import UnitBench
from saefeat.generation import generate, texts_of
from saefeat.hooks import intervene
from saefeat.io import UserError
from saefeat.run import open_run, rank
from saefeat.run.chosen import growing, random_growing
from saefeat.run.steer import Bench

pytestmark = pytest.mark.usefixtures("one_core", "every_line")
SHORT = Decoding(max_new_tokens=8)
SWAP = ArithmeticConfig(("en",), ("de", "th"), prompts=3)


@pytest.fixture
def many(run_copy, tmp_path):
    """A file of a selection of neurons in which every label has units."""
    path = tmp_path / "many.parquet"
    rank(run_copy / "stats", "lape", top_rate=0.5).save(path)
    return str(path)


def cells(result, **wanted):
    """The rows whose columns have these values."""
    return [
        row for row in result["rows"] if all(row[name] == value for name, value in wanted.items())
    ]


# --------------------------------------------------------------------------- sets of units


def test_twins_have_as_many_other_units_of_every_label_and_dictionary(run_copy):
    units = UnitBench(open_run(run_copy))
    sets = units.find(("neurons", "features", "sae-lape"))
    assert [each.name for each in sets[::2]] == ["neurons", "features", "sae-lape"]
    for own, twin in zip(sets[::2], sets[1::2], strict=True):
        assert twin.control == own.name and own.control is None
        for label, some in own.chosen.items():
            other = twin.chosen[label]
            assert {k: len(v) for k, v in some.items()} == {k: len(v) for k, v in other.items()}
            assert not any({*some[name]} & {*other[name]} for name in some)
    assert {name.split("@")[0] for of in sets[0].chosen.values() for name in of} == {"mlp_act"}


def test_sets_of_another_model_label_or_name_are_refused(run_copy, tmp_path):
    units = UnitBench(open_run(run_copy))
    with pytest.raises(UserError, match="there are no units 'nothing'; give features, neurons"):
        units.find(("nothing",))
    path = tmp_path / "own.parquet"
    selection = rank(run_copy / "stats", "lape")
    selection.save(path)
    assert units.find((str(path),))[0].name == "own"
    with pytest.raises(UserError, match="two sets of units have the same name"):
        units.find((str(path), str(path)))
    name = next(iter(selection.dictionaries))
    selection.header["dictionaries"][name]["fingerprint"] = "other"
    selection.save(path)
    with pytest.raises(UserError, match=f"is of another {name} than that of the run"):
        units.find((str(path),))


# --------------------------------------------------------------------------- the frame


def test_an_experiment_resumes_and_is_measured_once(run_copy, tmp_path, many):
    opened = open_run(run_copy)
    asked = replace(SWAP, units=(many, "features"))
    whole = arithmetic(opened, asked, SHORT, tmp_path / "whole.json")
    said = []
    opened.say = said.append
    cut = tmp_path / "cut.json"
    opened.say = Interrupt("arithmetic: 2 of")
    with pytest.raises(KeyboardInterrupt):
        arithmetic(opened, asked, SHORT, cut)
    assert not cut.exists()
    opened.say = said.append
    assert arithmetic(opened, asked, SHORT, cut) == whole
    assert cut.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not any("1 of" in line for line in said)  # the first part was kept
    arithmetic(opened, asked, SHORT, cut)
    assert said[-1] == f"{cut} is complete already"
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(UserError, match=r"other.json exists and is no result of arithmetic"):
        arithmetic(opened, asked, SHORT, other)


def test_files_of_others_beside_a_result_are_kept(run_copy, tmp_path, many):
    opened = open_run(run_copy)
    asked = replace(SWAP, from_=("en",), to=("de",), units=(many,), prompts=1)
    table = tmp_path / "facts.csv"
    table.write_text("mine")
    with pytest.raises(UserError, match=r"facts.csv exists, and would be replaced by what is"):
        arithmetic(opened, asked, SHORT, tmp_path / "facts.json")
    assert table.read_text() == "mine" and not (tmp_path / "facts.json").exists()
    with pytest.raises(UserError, match=r"does not end in \.svg"):
        arithmetic(opened, asked, SHORT, tmp_path / "new.svg")
    out = tmp_path / "own.json"
    arithmetic(opened, asked, SHORT, out)
    assert out.with_suffix(".csv").exists() and out.with_suffix(".svg").exists()
    arithmetic(opened, replace(asked, prompts=2), SHORT, out)  # its own files are replaced


# --------------------------------------------------------------------------- arithmetics


@pytest.mark.parametrize("activate", ["additive", "replacement", "diffmean", "none"])
def test_a_swap_equals_a_plain_edit(run_copy, many, activate):
    """The neurons of the source are set to a constant first, then those of the target change."""
    opened = open_run(run_copy)
    config = replace(SWAP, to=("de",), units=(many,), activate=activate, deactivate=-0.5)
    config = replace(config, alpha=1.5)
    result = arithmetic(opened, config, SHORT)
    units, lm = UnitBench(opened), opened.lm
    chosen = units.find((many,))[0].chosen
    edits = {}
    for name in {**chosen["en"], **chosen["de"]}:
        mean = units.read(name).mean()
        row = units.read(name).row("de")
        others = torch.cat([mean[:row], mean[row + 1 :]]).mean(0)
        off, on = chosen["en"].get(name, []), chosen["de"].get(name, [])

        def edit(x, _, mean=mean[row], others=others, off=off, on=on):
            x = x.double().clone()
            x[..., off] = -0.5
            if activate == "additive":
                x[..., on] += 1.5 * mean[on]
            elif activate == "replacement":
                x[..., on] = 1.5 * mean[on]
            elif activate == "diffmean":
                x[..., on] += 1.5 * (mean - others)[on]
            return x

        edits[lm.site(name).path] = edit
    bench = Bench(opened, "de", SHORT)
    prompts = bench.beginnings("en", 3)
    with intervene(lm.model, edits, lm.special_ids):
        rows = generate(lm, prompts, SHORT)
    (found,) = cells(result, units="many")
    judged = bench.judge(texts_of(lm, rows))
    assert found["success"] == sum(label == "de" for label in judged) / 3
    assert found["stays"] == sum(label == "en" for label in judged) / 3
    measured = bench.measure_changes([{}], prompts, [0.0], CONSTANT)[0][0]
    assert cells(result, units="none")[0]["perplexity"] == measured.summary("de")["perplexity"]
    changed = sum(a != b for a, b in zip(texts_of(lm, rows), measured.texts, strict=True))
    assert changed, "the edit does nothing"


def test_pairs_without_units_have_no_row(run_copy, many, monkeypatch):
    opened = open_run(run_copy)
    find = UnitBench.find

    def without_thai(self, names):
        return [replace(each, chosen={**each.chosen, "th": {}}) for each in find(self, names)]

    monkeypatch.setattr(UnitBench, "find", without_thai)
    result = arithmetic(opened, replace(SWAP, to=None, units=(many,)), SHORT)
    assert {row["target"] for row in cells(result, units="many")} == {"de", "en"}
    assert {row["target"] for row in cells(result, units="none")} == {"de", "en", "th"}
    with pytest.raises(UserError, match="th has no units by many; choose other units"):
        arithmetic(opened, replace(SWAP, to=("th",), units=(many,)), SHORT)


def test_bad_swaps_are_refused_in_a_sentence(saefeat, run_copy):
    run = ["steer", "arithmetic", "--run", run_copy]
    for wrong, message in {
        ("--from", "xx"): "there is no label 'xx' in this run; it has de, en, th (--from)",
        ("--from", "de", "--to", "de"): "de is both source and target; name two labels (--from, --",
        ("--activate", "none", "--keep-source"): "nothing would be edited",
        ("--activate", "twice"): "activate",
        ("--units", "nothing"): "there are no units 'nothing'",
    }.items():
        code, _, err = saefeat(*run, *wrong)
        assert code == 2 and message in err and "Traceback" not in err


def test_arithmetic_prints_a_table_and_writes_the_file(saefeat, run_copy, many):
    units = f"{many},features"
    options = [
        "--units",
        units,
        "--from",
        "eng",
        "--to",
        "de",
        "--prompts",
        2,
        "--max-new-tokens",
        6,
    ]
    code, out, _ = saefeat(
        "steer", "arithmetic", "--run", run_copy, *options, "--max-new-tokens", 6
    )
    assert code == 0 and "random many" in out and "success" in out
    found = json.loads((run_copy / "experiments" / "arithmetic.json").read_text())
    assert found["settings"]["from_"] == ["en"] and len(found["rows"]) == 5


# --------------------------------------------------------------------------- fallback


def test_fallback_switches_off_more_and_more_units(run_copy):
    opened = open_run(run_copy)
    config = FallbackConfig(prompts=3, units=("neurons",))
    result = fallback(opened, config, SHORT)
    assert result["settings"]["order"] == ["en", "de", "th"]  # the published order, then others
    chosen = UnitBench(opened).find(("neurons",))[0].chosen
    union = [
        {(name, unit) for label in done for name, some in chosen[label].items() for unit in some}
        for done in (["en"], ["en", "de"], ["en", "de", "th"])
    ]
    counts = {row["step"]: row["count"] for row in cells(result, units="neurons")}
    assert counts == {0: 0, **{i: len(some) for i, some in enumerate(union, 1)}}
    for step in range(4):
        shares = [row["share"] for row in cells(result, units="neurons", step=step)]
        assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True)
    lm, bench = opened.lm, Bench(opened, "de", SHORT)
    edits = {}
    for name in {name for name, _ in union[1]}:
        off = [unit for site, unit in union[1] if site == name]

        def edit(x, _, off=off):
            x = x.clone()
            x[..., off] = -1.5
            return x

        edits[lm.site(name).path] = edit
    from saefeat.generation import encode_prompts
    from saefeat.run.grids import english_prompts

    prompts = encode_prompts(lm, english_prompts()[:3], 8)
    with intervene(lm.model, edits, lm.special_ids):
        judged = bench.judge(texts_of(lm, generate(lm, prompts, SHORT)))
    shares = {row["judged"]: row["share"] for row in cells(result, units="neurons", step=2)}
    names = [label or "unknown" for label in judged]
    assert shares == {name: names.count(name) / 3 for name in names}


def test_random_units_of_fallback_grow_as_the_units_that_they_control(run_copy, tmp_path):
    """Labels share units, so the union is smaller than the sum; the twin has none of the units."""
    opened, many = open_run(run_copy), str(tmp_path / "many.parquet")
    rank(run_copy / "stats", "monolinguality", top=9).save(many)
    result = fallback(opened, FallbackConfig(prompts=1, units=(many,)), SHORT)
    counts = [
        list({row["step"]: row["count"] for row in cells(result, units=name)}.values())
        for name in ("many", "random many")
    ]
    single = UnitBench(opened).named((many,))[0]
    assert counts[0][3] < sum(map(single.count, ("en", "de", "th"))), "the labels share no unit"
    assert counts[0] == counts[1]


def test_random_units_of_growing_sets_by_hand():
    stats = make_stats("d", fired=[[1] * 9 + [0]] * 2, tokens=[9, 9], kind="identity")
    steps = growing({"x": {"d": [4, 1]}, "y": {"d": [4, 7]}, "z": {}}, ("y", "z", "x"))
    assert steps == {"y": {"d": [4, 7]}, "z": {"d": [4, 7]}, "x": {"d": [1, 4, 7]}}
    (twin,) = random_growing([steps], lambda _: stats)
    assert [len(of["d"]) for of in twin.values()] == [2, 2, 3]
    assert {*twin["y"]["d"]} == {*twin["z"]["d"]} < {*twin["x"]["d"]} <= {0, 2, 3, 5, 6, 8}


# --------------------------------------------------------------------------- ablation


def test_other_texts_of_the_same_number_are_measured_anew(run_copy, tmp_path):
    opened, second = open_run(run_copy), tmp_path / "second.csv"
    asked = AblateConfig(units=("features",), sentences=2, texts=str(second))
    found = []
    for text in ("the cat sat on the mat", "a dog ran after it and barked"):
        second.write_text(f"text,label\n{text},en\n")
        result = ablate_sets(opened, asked, tmp_path / "out.json")
        found.append({row["nll_before"] for row in cells(result, texts=str(second))})
    assert found[0] != found[1]


def test_without_activation_all_targets_have_the_same_text(run_copy, many, monkeypatch):
    opened, calls = open_run(run_copy), []
    measure = Bench.measure_changes
    monkeypatch.setattr(
        Bench,
        "measure_changes",
        lambda self, several, *rest: calls.append(len(several)) or measure(self, several, *rest),
    )
    result = arithmetic(opened, replace(SWAP, units=(many,), activate="none"), SHORT)
    assert calls == [1, 1, 1]  # unedited, the units, random ones
    assert {row["target"] for row in cells(result, units="many")} == {"de", "th"}
    assert len({row["perplexity"] for row in cells(result, units="many")}) == 1


def test_the_loss_without_units_equals_a_plain_loop(run_copy):
    opened = open_run(run_copy)
    result = ablate_sets(opened, AblateConfig(units=("neurons",), sentences=3))
    lm, units = opened.lm, UnitBench(opened)
    chosen = units.find(("neurons",))[0].chosen["de"]

    def silence(off):
        def edit(x, _):
            x = x.clone()
            x[..., off] = 0
            return x

        return edit

    edits = {lm.site(name).path: silence(off) for name, off in chosen.items()}
    from saefeat.run.steer import pick_test_texts

    losses = []
    for text in pick_test_texts(opened, "th", 3):
        ids = torch.tensor([lm.prefix + lm.tokenize([text], 256)[0]])
        with intervene(lm.model, edits, lm.special_ids), torch.no_grad():
            p = lm.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        losses.append(-float(p.gather(1, ids[0, 1:, None]).mean()))
    (row,) = cells(result, units="neurons", edited="de", evaluated="th")
    assert row["nll"] == pytest.approx(sum(losses) / 3, rel=1e-4)
    assert row["change"] == row["nll"] - row["nll_before"]


def test_pure_and_compound_units_stand_beside_both_selections(saefeat, run_copy, tmp_path):
    culture, language = tmp_path / "culture.parquet", tmp_path / "language.parquet"
    rank(run_copy / "stats", "lape", top_rate=0.3).save(culture)
    rank(run_copy / "stats", "lape", top_rate=0.1).save(language)
    few = tmp_path / "few.csv"
    few.write_text("text,label\nEin kleiner Satz,de\nA short one,en\n")
    options = ["--units", culture, "--apart-from", language, "--texts", few, "--sentences", 2]
    code, out, _ = saefeat("steer", "ablate", "--run", run_copy, *options)
    assert code == 0 and "pure culture" in out and "compound culture" in out
    found = json.loads((run_copy / "experiments" / "ablate.json").read_text())
    counts = {name: sum(of["units"].values()) for name, of in found["settings"]["sets"].items()}
    assert counts["compound culture"] == counts["language"]  # the language units are a part
    assert counts["pure culture"] == counts["culture"] - counts["language"]
    assert {row["texts"] for row in found["rows"]} == {"own", str(few)}
    code, _, err = saefeat(
        "steer", "ablate", "--run", run_copy, "--units", "neurons", "--apart-from", language
    )
    assert code == 2 and "units are taken apart from others where they are files" in err


# --------------------------------------------------------------------------- plots


def test_plots_show_every_value_and_escape_names():
    import xml.etree.ElementTree as ElementTree

    from saefeat.report.plots import draw_plots

    rows = [
        {"layer": x, "label": y, "share": x + 0.5 * i, "set": s}
        for x in range(3)
        for i, y in enumerate(("a<b", "c&d"))
        for s in ("one", "two")
    ]
    rows.append({"layer": 3, "label": "c&d", "share": None, "set": "two"})
    lines = {"kind": "lines", "x": "layer", "y": "label", "value": "share", "panels": ["set"]}
    heat = {"kind": "heat", "x": "layer", "y": "label", "value": "share", "panels": ["set"]}
    root = ElementTree.fromstring(draw_plots("title", rows, [lines, heat]))
    svg = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f".//{svg}circle")) == 12  # lines have a dot for each value
    texts = [each.text for each in root.iter(f"{svg}text")]
    assert {"a<b", "c&d", "share, one over layer", "share, two: label by layer"} <= {*texts}
    cells = [e for e in root.iter(f"{svg}text") if e.get("class") == "cell"]
    assert sorted(float(e.text) for e in cells) == sorted(r["share"] for r in rows[:-1])
    assert draw_plots("title", rows, []) is None
