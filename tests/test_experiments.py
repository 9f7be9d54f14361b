"""Experiments on a run: the frame, sets of units, arithmetics, fallback and ablation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median

import pyarrow as pa
import pytest
import torch
from helpers import Interrupt, make_stats, refused

from saefeat.config import CONSTANT, AblateConfig, ArithmeticConfig, Decoding, FallbackConfig
from saefeat.corpora import load_corpus
from saefeat.experiments.ablation import _summarize, ablate_sets
from saefeat.experiments.arithmetic import arithmetic
from saefeat.experiments.fallback import fallback
from saefeat.experiments.frame import Forecast
from saefeat.experiments.units import UnitBench, own_labels
from saefeat.forcing import measure
from saefeat.generation import (
    distinct_trigrams,
    encode_prompts,
    generate,
    losses_by_label,
    perplexities,
    predictable,
    texts_of,
)
from saefeat.hooks import intervene
from saefeat.io import UserError
from saefeat.report.matrix import _rises_most
from saefeat.run import open_run, rank, steer
from saefeat.run.chosen import growing, random_growing
from saefeat.run.matrix import lost_cells, measure_texts, most_affected
from saefeat.run.steer import Bench, pick_texts
from saefeat.selection import Selection
from saefeat.sets import with_labels
from saefeat.steering import CannotSteer, NoUnits, apply

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


def test_the_forecast_is_said_after_the_first_part_and_corrected():
    # Two parts of the unedited model, and then edited ones that need ten times as long.
    forecast = Forecast()
    assert forecast.update(60, 9) == 9
    assert forecast.update(60, 8) is None
    assert forecast.update(600, 7) == pytest.approx(7 * 5.5)  # the mean of the last two
    assert forecast.update(600, 6) == pytest.approx(6 * 10)
    assert all(forecast.update(600, left) is None for left in range(5, -1, -1))
    two = Forecast()
    assert two.update(120, 1) == 2 and two.update(900, 0) is None
    quick = Forecast()  # a change of seconds is not worth a line
    assert quick.update(0.1, 20) is not None and quick.update(1, 19) is None


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
    note = "Without units by many: th. Its means are over the other pairs of labels, 1."
    assert result["notes"] == [note]
    silent = replace(SWAP, from_=None, to=("th",), units=(many,), activate="none")
    assert arithmetic(opened, silent, SHORT)["notes"] == [note.replace("1.", "2.")]
    with pytest.raises(UserError, match="th has no units by many; choose other units"):
        arithmetic(opened, replace(SWAP, to=("th",), units=(many,)), SHORT)


def test_without_any_units_nothing_is_measured(run_copy, monkeypatch):
    find = UnitBench.find

    def of_german(self, names):
        return [replace(each, chosen={"de": each.chosen["de"]}) for each in find(self, names)]

    monkeypatch.setattr(UnitBench, "find", of_german)
    opened = open_run(run_copy)
    with pytest.raises(NoUnits, match=r"^no two labels have units to swap by neurons; choose o"):
        arithmetic(opened, ArithmeticConfig(prompts=2, units=("neurons",)), SHORT)
    assert not (run_copy / "experiments").exists()


def test_sources_without_a_text_are_left_out_unless_they_are_asked_for(run_copy, many, monkeypatch):
    pick = steer.pick_test_texts
    monkeypatch.setattr(
        steer, "pick_test_texts", lambda run, x, n: [] if x == "th" else pick(run, x, n)
    )
    opened, said = open_run(run_copy), []
    opened.say = said.append
    asked = ArithmeticConfig(None, ("de",), prompts=2, units=(many,))
    result = arithmetic(opened, asked, SHORT)
    assert {row["source"] for row in result["rows"]} == {"de", "en"}
    assert "note: th have no test text of 10 tokens; they are no sources" in said
    with pytest.raises(CannotSteer, match=r"^th has no test text of 10 tokens") as refused:
        arithmetic(opened, replace(asked, from_=("en", "th")), SHORT)
    assert refused.value.options == ("from_",)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_prompts_of_a_file_are_continued_with_the_published_decoding(run_copy, tmp_path, suffix):
    texts, path = ["Q: the cat?A: ", "the dog"], tmp_path / f"prompts{suffix}"
    rows = [("eng", texts[0]), ("de", "der Hund"), ("en", texts[1]), ("en", "left over")]
    if suffix == ".txt":
        lines = [text for label, text in rows if label != "de"]
    elif suffix == ".csv":
        lines = ["label,prompt", *(f"{label},{text}" for label, text in rows)]
    else:
        lines = [json.dumps({"label": label, "prompt": text}) for label, text in rows]
    path.write_text("\n".join(lines))
    opened, greedy = open_run(run_copy), Decoding(max_new_tokens=12, temperature=0)
    file = {"prompt_file": str(path), "prompts": 2, "units": ("features",)}
    found = []
    for penalty in (1.0, 3.0):
        asked = ArithmeticConfig(("en",), ("de",), repetition_penalty=penalty, **file)
        result = arithmetic(opened, asked, greedy)
        prompts = encode_prompts(opened.lm, texts, 12)
        rows = generate(opened.lm, prompts, greedy, repetition_penalty=penalty)
        figures = measure(opened.lm, prompts, rows, Bench(opened, "de", greedy).judge)
        (none,) = cells(result, units="none")
        assert none["distinct3"] == figures.summary("de")["distinct3"]
        found.append(none["perplexity"])
        assert none["perplexity"] == figures.summary("de")["perplexity"]
    assert found[0] != found[1]
    if suffix == ".txt":
        asked = FallbackConfig(("en",), repetition_penalty=3.0, **file)
        step = cells(fallback(opened, asked, greedy), units="features", step=0)[0]
        assert step["perplexity"] == found[1]
        with pytest.raises(UserError, match="not both"):
            fallback(opened, replace(asked, source="en"), greedy)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", "one\n", [], "does not say which label its prompts have"),
        ("a.txt", "\n \n", ["--from", "en"], "holds no prompt; write one per line"),
        ("a.csv", "text\none\n", [], "prompt"),
        ("a.csv", "prompt,label\none,en\n", ["--from", "th"], "th has no prompt in "),
        ("missing.txt", None, ["--from", "en"], "cannot read"),
    ],
)
def test_bad_files_of_prompts_are_refused(
    saefeat, run_copy, tmp_path, name, content, options, message
):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    ask = ["steer", "arithmetic", "--run", run_copy, "--prompt-file", path, *options]
    code, _, err = saefeat(*ask)
    assert code == 2 and message in err and "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("saefeat: ")]) == 1


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
    from saefeat.run.grids import english_prompts

    prompts = encode_prompts(lm, english_prompts()[:3], 8)
    with intervene(lm.model, edits, lm.special_ids):
        judged = bench.judge(texts_of(lm, generate(lm, prompts, SHORT)))
    shares = {row["judged"]: row["share"] for row in cells(result, units="neurons", step=2)}
    names = [label or "unknown" for label in judged]
    assert shares == {name: names.count(name) / 3 for name in names}


def test_texts_of_fallback_end_before_a_stop(run_copy, tmp_path, monkeypatch):
    path, greedy = tmp_path / "prompts.txt", Decoding(max_new_tokens=24, temperature=0)
    questions = ["Q: Where is the cat?A: ", "Q: Wer ist das?A: ", "Q: What does the dog eat?A: "]
    path.write_text("\n".join(questions))
    opened = open_run(run_copy)
    prompts = encode_prompts(opened.lm, questions, 24)
    rows = generate(opened.lm, prompts, greedy)
    texts = texts_of(opened.lm, rows)
    stops = ("in", "KK", "\nQ:")
    wanted = [text[: min((text.find(x) for x in stops if x in text), default=99)] for text in texts]
    ends = (texts[0].index("ind"), len(texts[1]), 0)  # before a part of a token; nowhere; at once
    assert wanted == [text[:end] for text, end in zip(texts, ends, strict=True)]
    asked = FallbackConfig(units=("features",), prompt_file=str(path), prompts=3)
    stopping = replace(asked, stops=(*stops[:2], r"\nQ:"))
    found = fallback(opened, stopping, greedy, tmp_path / "stopped.json")
    assert found["settings"]["stops"] == stops
    step = cells(found, units="features", step=0)
    names = [name or "unknown" for name in Bench(opened, "de", greedy).judge(wanted)]
    assert names[2] == "unknown" and len({*names}) > 1
    assert {row["judged"]: row["share"] for row in step} == {x: names.count(x) / 3 for x in names}
    kept = [rows[0][:9], rows[1], []]
    assert texts_of(opened.lm, kept) == wanted
    known = [one for one in perplexities(opened.lm, prompts, kept) if one is not None]
    assert step[0]["perplexity"] == pytest.approx(median(known), rel=1e-5)
    assert step[0]["distinct3"] == pytest.approx(distinct_trigrams(kept))
    whole = fallback(opened, asked, greedy, tmp_path / "whole.json")
    assert found["rows"] != whole["rows"]
    # The same figures where everything is generated.
    asked_of = []

    def generate_on(*args, stops, **options):
        asked_of.append(stops)
        return generate(*args, **options)

    monkeypatch.setattr("saefeat.run.steer.generate", generate_on)
    again = fallback(opened, stopping, greedy, tmp_path / "again.json")
    assert again["rows"] == found["rows"] and {*asked_of} == {stops}


def test_stops_of_fallback_are_given_one_by_one_and_not_empty(saefeat, run_copy):
    ask = ["steer", "fallback", "--run", run_copy, "--units", "features", "--prompts", 1]
    given = ["--max-new-tokens", 2, "--stops", r"\nQ:", "--stops", "\nA:, B"]
    assert saefeat(*ask, *given)[0] == 0
    result = json.loads((run_copy / "experiments" / "fallback.json").read_text())
    assert result["settings"]["stops"] == ["\nQ:", "\nA:, B"]
    code, _, err = saefeat(*ask, "--stops", "")
    assert code == 2 and "a stop is empty, and would end every text; give it some text (--st" in err


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
    asked = AblateConfig(units=("features",), sentences=2, texts=str(second), texts_split="all")
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


def test_statistics_that_are_collected_anew_are_noticed(run_copy, tmp_path, many):
    """The units of the file stay the same, but the means from which edits are made do not."""
    said = []
    opened = open_run(run_copy, said.append)
    asked = AblateConfig(units=(many,), sentences=1)
    ablate_sets(opened, asked, tmp_path / "out.json")
    (name,) = UnitBench(opened).named((many,))[0].dictionaries
    stats, path = opened.files.load_stats(name), opened.files.stats_file(name)
    stats.header["chosen"] |= {"tokens": 99}
    for again in (False, True):
        ablate_sets(opened, asked, tmp_path / "out.json")
        assert (said[-1] == f"{tmp_path / 'out.json'} is complete already") is not again
        stats.save(path)


def test_killed_ablation_resumes_to_the_same_bytes(run_copy, tmp_path, many):
    asked = AblateConfig(units=(many, "features"), sentences=1)
    ablate_sets(open_run(run_copy), asked, tmp_path / "whole.json")
    with pytest.raises(KeyboardInterrupt):
        ablate_sets(open_run(run_copy, Interrupt("ablate: 3 of")), asked, tmp_path / "killed.json")
    assert not (tmp_path / "killed.json").exists()
    lines: list[str] = []
    ablate_sets(open_run(run_copy, lines.append), asked, tmp_path / "killed.json")
    assert (tmp_path / "killed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not any("ablate: 1 of" in line for line in lines)


def test_texts_whose_loss_an_edit_breaks_are_lost(run_copy):
    """A change that breaks some texts of a label; without them its mean would be better."""
    opened = open_run(run_copy)
    lm, labels = opened.lm, opened.corpus.labels
    texts = {x: predictable(lm, [*pick_texts(opened.corpus, x, 6, 0), ""]) for x in labels}
    assert all(len(some) == 6 for some in texts.values())
    plain = measure_texts(opened, texts)
    rows = lm.tokenize(texts["de"], 99)
    one = next(token for token in rows[0] if any(token not in row for row in rows))
    vector = lm.model.get_input_embeddings().weight[one]

    def breaks(x, _):
        return torch.where((x - vector).norm(dim=-1, keepdim=True) < 1e-4, torch.inf, x)

    with apply(lm, {"model.embed_tokens": [breaks]}, 1.0):
        losses, found = losses_by_label(lm, texts), measure_texts(opened, texts)
    lost = {label for label, some in losses.items() if None in some}
    assert "de" in lost and {None} < {*losses["de"]}
    assert plain.keys() == {*labels} and found.keys() == {*labels} - lost


def test_the_summary_of_an_ablation_counts_lost_losses():
    row = {"units": "u", "texts": "own", "edited": "de", "count": 2}
    rows = [
        {**row, "evaluated": "de", "nll_before": 1.0, "nll": 3.0, "change": 2.0},
        {**row, "evaluated": "en", "nll_before": 1.0, "nll": None, "change": None},
        {**row, "evaluated": "th", "nll_before": None, "nll": None, "change": None},
    ]
    (found,) = _summarize(rows)
    assert (found["own"], found["others"], found["gap"], found["lost"]) == (2.0, None, None, 1)


def test_a_lost_loss_of_the_matrix_has_risen_most():
    def of(**medians):
        return {label: {"nll_median": value} for label, value in medians.items()}

    rows = {"a": of(a=3.0, b=2.0), "b": of(a=1.0, b=9.0, c=1.0), "c": of(a=1.0, b=1.0)}
    result = {
        "baseline": of(a=1.0, b=1.0, c=1.0),
        "interventions": [{"edit": "ablate", "units": "features", "rows": rows}],
    }
    assert most_affected(result, "ablate") == ["b", "c"] and lost_cells(result, "ablate") == 2
    changes = [[2.0, 1.0, None], [0.0, 8.0, 0.0], [0.0, 0.0, None]]
    assert [_rises_most(row, i, [0, 1, 2]) for i, row in enumerate(changes)] == [False, True, True]
    assert _rises_most(changes[0], 0, [0, 1]) and not _rises_most(changes[2], 2, [0, 1])


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
    options += ["--texts-split", "all"]
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


def test_labels_of_other_runs_are_read_as_the_labels_of_the_run():
    pairs = [("danish", "da"), ("german", "deu")]
    assert own_labels(["dan_Latn", "da", "xx"], ["da", "en"]) == {"dan_Latn": "da", "da": "da"}
    assert own_labels(["danish", "german"], ["da", "de"], pairs) == {"danish": "da", "german": "de"}
    assert own_labels(["da", "de"], ["danish", "de"], pairs) == {"da": "danish", "de": "de"}
    assert own_labels(["danish", "da"], ["danish", "da"], pairs) == {"danish": "danish", "da": "da"}


def relabelled(path, selection, names):
    """Save a selection with other labels; one of `names` that it lacks has no units."""
    given = dict(zip(selection.labels, names, strict=False))
    at = selection.table.schema.get_field_index("label")
    column = pa.array([given[x] for x in selection.table["label"].to_pylist()], pa.string())
    table = selection.table.set_column(at, selection.table.schema.field(at), column)
    Selection(table, {**selection.header, "labels": list(names)}).save(path)
    return str(path)


def write_texts(path, opened, names):
    """All texts of a run as another corpus, with the labels `names`."""
    corpus, given = opened.corpus, dict(zip(opened.corpus.labels, names, strict=True))
    rows = zip(corpus.texts, corpus.of, corpus.ids, strict=True)
    lines = [json.dumps({"text": t, "label": given[x], "id": f"x{i}"}) for t, x, i in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_second_corpus_may_have_other_codes(run_copy, tmp_path):
    opened, found = open_run(run_copy), []
    for names in (("de", "en", "th"), ("deu_Latn", "eng_Latn", "tha_Thai")):
        texts = write_texts(tmp_path / f"{names[0]}.jsonl", opened, names)
        asked = AblateConfig(units=("features",), sentences=2, texts=texts)
        result = ablate_sets(opened, asked, tmp_path / f"{names[0]}-out.json")
        found.append([{**row, "texts": row["texts"] == "own"} for row in result["summary"]])
    assert found[0] == found[1] and all(row["gap"] is not None for row in found[0])


def test_the_texts_of_a_second_corpus_are_those_of_its_test_split(run_copy, tmp_path):
    """Its train texts have chosen the units of a run of this corpus."""
    opened = open_run(run_copy)
    texts = write_texts(tmp_path / "second.jsonl", opened, ("de", "en", "th"))
    asked = AblateConfig(units=("features",), sentences=1000, texts=texts)
    other, seen = load_corpus(texts), []
    for split in ("test", "all"):
        rows = ablate_sets(opened, replace(asked, texts_split=split))["rows"]
        picked = pick_texts(other, "de", 1000, 0, split)
        assert {row["n"] for row in rows if row["texts"] == texts and row["evaluated"] == "de"} == {
            len(picked)
        }
        seen.append(len(picked))
    assert 0 < seen[0] < seen[1] == 80
    train = {other.ids[i] for i in other.positions("train", 0)}
    few = tmp_path / "few.jsonl"
    lines = Path(texts).read_text().splitlines()
    few.write_text("\n".join(line for line in lines if json.loads(line)["id"] in train))
    with refused("few.jsonl has no text in its test split; measure all texts", "texts_split"):
        ablate_sets(opened, replace(asked, texts=str(few)))


def test_cultures_that_are_no_codes_are_paired_with_languages(saefeat, run_copy, tmp_path):
    """The same units, texts and figures as with the labels of the run; others are left out."""
    opened, cultures = open_run(run_copy), ("deutsche", "english", "thai")
    wide = rank(run_copy / "stats", "monolinguality", top=9)
    language = str(tmp_path / "language.parquet")
    rank(run_copy / "stats", "monolinguality", top=4).save(language)
    found, options = [], ["--apart-from", language, "--sentences", 2]
    for names in (opened.corpus.labels, cultures):
        path = tmp_path / names[0] / "culture.parquet"
        path.parent.mkdir()
        units = relabelled(path, wide, [*names, "klingon"])
        texts = write_texts(tmp_path / names[0] / "texts.jsonl", opened, names)
        out = tmp_path / f"{names[0]}.json"
        pairs = ["--map", "deutsche=de,english=en,thai=th"] if names == cultures else []
        code, _, err = saefeat(
            *("steer", "ablate", "--run", run_copy, "--units", units, "--texts", texts),
            *("--out", out, *options, *pairs),
        )
        assert code == 0 and "the run has no label klingon" in err, err
        result = json.loads(out.read_text())
        rows = [{**row, "texts": row["texts"] == "own"} for row in result["rows"]]
        found.append((rows, result["settings"]["sets"]))
    assert found[0] == found[1]
    assert set(found[0][1]) >= {"pure culture", "compound culture", "random pure culture"}
    every = [units.count("de") for units in UnitBench(opened).named((language,))]
    assert found[0][1]["compound culture"]["units"]["de"] == every[0] > 0
    for wrong, message in {
        (): "culture.parquet has none of the labels of the run (--map)",
        ("--map", "deutsche"): "'deutsche' is not of the form LABEL=OTHER (--map)",
        ("--map", "danish=dansk"): "the run has neither danish nor dansk; its labels are de, en",
    }.items():
        code, _, err = saefeat("steer", "ablate", "--run", run_copy, "--units", units, *wrong)
        assert code == 2 and message in err, err


def test_a_label_that_the_other_selection_lacks_is_refused(saefeat, run_copy, tmp_path, many):
    language = tmp_path / "language.parquet"
    with_labels(Selection.load(many), ["de", "en"]).save(language)
    options = ["steer", "ablate", "--run", run_copy, "--units", many, "--apart-from", language]
    code, _, err = saefeat(*options)
    assert code == 2 and "the label th has no counterpart" in err and "(--match, --map)" in err
    code, _, err = saefeat(*options, "--match", "units", "--sentences", 1)
    assert code == 0, err
    sets = json.loads((run_copy / "experiments" / "ablate.json").read_text())["settings"]["sets"]
    assert sets["pure many"]["units"]["de"] == 0 < sets["pure many"]["units"]["th"]


def test_erasing_directions_equals_a_plain_edit(run_copy):
    """x - (x d) d / |d|^2 for the direction of each feature, of the vector as it is."""
    opened = open_run(run_copy)
    result = ablate_sets(opened, AblateConfig(units=("monolinguality",), edit="erase", sentences=2))
    lm, units = opened.lm, UnitBench(opened)
    chosen = units.named(("monolinguality",))[0].chosen["de"]
    edits = {}
    for name, some in chosen.items():
        sae = units.dictionaries.read(name)

        def edit(x, _, rows=sae.W_dec[some]):
            parts = [(x @ row)[..., None] * row / (row @ row) for row in rows]
            return x - sum(parts)

        edits[lm.site(sae.site).path] = edit
    losses = []
    for text in pick_texts(opened.corpus, "th", 2, 0):
        ids = torch.tensor([lm.prefix + lm.tokenize([text], 256)[0]])
        with intervene(lm.model, edits, lm.special_ids), torch.no_grad():
            p = lm.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        losses.append(-float(p.gather(1, ids[0, 1:, None]).mean()))
    (row,) = cells(result, units="monolinguality", edited="de", evaluated="th")
    assert row["nll"] == pytest.approx(sum(losses) / 2, rel=1e-4) and abs(row["change"]) > 1e-3


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
    drawn = {"title": "title", "rows": rows, "plots": [lines, heat]}
    root = ElementTree.fromstring(draw_plots(drawn))
    svg = "{http://www.w3.org/2000/svg}"
    dots = [e.get("d") for e in root.iter(f"{svg}path") if e.get("class") == "dots"]
    assert sum(path.count("M") for path in dots) == 12  # lines have a dot for each value
    texts = [each.text for each in root.iter(f"{svg}text")]
    assert {"a<b", "c&d", "share, one over layer", "share, two: label by layer"} <= {*texts}
    cells = [e for e in root.iter(f"{svg}text") if e.get("class") == "cell"]
    assert sorted(float(e.text) for e in cells) == sorted(r["share"] for r in rows[:-1])
    assert draw_plots({**drawn, "plots": []}) is None


def test_the_page_shows_the_first_plots_that_fit():
    from saefeat.report.experiments import experiment_views

    labels = [f"language {i}" for i in range(15)]
    rows = [
        {"layer": x, "text": text, "decoded": name, "share": (x * i % 7) / 7, "norm": norm}
        for norm in ("with", "without")
        for text in labels
        for i, name in enumerate(labels)
        for x in range(19)
    ]
    means = [{"layer": x, "figure": "own", "mean": x / 3} for x in range(19)]
    first = {"kind": "lines", "x": "layer", "y": "figure", "value": "mean", "panels": []}
    first["of"] = "means"
    second = {"kind": "lines", "x": "layer", "y": "decoded", "value": "share"}
    second["panels"] = ["norm", "text"]
    result = {"title": "t", "rows": rows, "means": means, "summary": [], "notes": []}

    def view(*plots):
        (found,) = experiment_views({"lens": {**result, "plots": list(plots)}})
        return found["image"], found["more"]

    alone, more = view(first)
    assert alone is not None and not more
    image, more = view(first, second)
    assert len(image) > 10 * len(alone) and not more  # panels of 15 labels fit
    rows += [{**row, "layer": row["layer"] + 19} for row in rows]
    assert view(first, second) == (alone, True)
    assert view(second) == (None, True)


def test_a_line_goes_through_the_mean_of_rows_at_one_point():
    from saefeat.report.plots import draw_plots

    values = {0: [1.0, 3.0], 1: [0.0, None, 4.0], 2: [5.0]}
    rows = [{"x": x, "of": "a", "v": v} for x, some in values.items() for v in some]
    means = [{"x": x, "of": "a", "v": v} for x, v in ((0, 2.0), (1, 2.0), (2, 5.0))]
    plot = {"kind": "lines", "x": "x", "y": "of", "value": "v", "panels": []}
    drawn = {"title": "title", "plots": [plot], "summary": [], "notes": []}
    assert draw_plots({**drawn, "rows": rows}) == draw_plots({**drawn, "rows": means})
