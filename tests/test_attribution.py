"""Attribution and classes of units against brute force; their commands and bad input."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace

import pyarrow as pa
import pytest
import torch
from helpers import Interrupt, make_stats, make_table, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from saefeat.attribution import Prompt, Scorer, integrated_gradients
from saefeat.config import AttributionConfig, CategoriesConfig
from saefeat.corpora import load_corpus
from saefeat.dictionaries import SAE
from saefeat.experiments.attribution import attribute
from saefeat.experiments.cases import answered, load_cases, parallel_keys
from saefeat.experiments.categories import _Categories, _summarize, categories
from saefeat.experiments.units import UnitBench
from saefeat.methods.sharing import SHARING, sharing, sharing_classes, sharing_units
from saefeat.methods.ternary import ternary, ternary_units
from saefeat.models.sites import has_post_norm
from saefeat.ranking import make_part
from saefeat.run import open_run
from saefeat.run.stages import neurons
from saefeat.selection import Selection

IDS, ANSWER = [0, *range(10, 30)], 50


@contextmanager
def replaced(module, change):
    """Replace the output of a module with a plain hook."""
    handle = module.register_forward_hook(lambda _m, _i, out: change(out))
    try:
        yield
    finally:
        handle.remove()


def at_last(change):
    """Change the vector of the last token only."""
    return lambda x: torch.cat([x[:, :-1], change(x[:, -1:])], dim=1)


def probability(model, ids=IDS, answer=ANSWER):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
    return float(logits[0, -1].double().softmax(-1)[answer])


def differences(p, values, steps, units, h=2e-2):
    """The published sum with central differences: p(values) -> probability.

    The norms of Llama round to float32 in a model of float64 too, so steps are not tiny.
    """
    found = []
    for unit in units:
        step = torch.zeros_like(values)
        step[unit] = h
        slopes = [
            (p(values * t / steps + step) - p(values * t / steps - step)) / (2 * h)
            for t in range(1, steps + 1)
        ]
        found.append(float(values[unit]) * sum(slopes) / steps)
    return torch.tensor(found)


def test_integrated_gradients_of_neurons_against_differences(make_lm):
    lm = make_lm("llama")
    (neuron, *_) = neurons(lm)
    units, steps = torch.tensor([3, 7, 20, 47]), 5
    whole = integrated_gradients(Prompt(lm, IDS), ANSWER, neuron, torch.arange(neuron.width), steps)
    double = make_lm("llama").model.double()
    act = double.model.layers[0].mlp.act_fn
    seen = []
    with replaced(act, lambda x: seen.append(x[0, -1].clone()) or x):
        before = probability(double)

    def p(values):
        with replaced(act, at_last(lambda x: values.view_as(x))):
            return probability(double)

    expected = differences(p, seen[0], steps, units.tolist())
    assert torch.allclose(
        whole.attribution[units].double(), expected.double(), rtol=2e-3, atol=1e-9
    )
    assert whole.probability == pytest.approx(before, rel=1e-5)
    assert whole.zeroed == pytest.approx(p(torch.zeros_like(seen[0])), rel=1e-5)


def tiny_sae(d=32, width=48, k=8):
    generator = torch.Generator().manual_seed(5)
    enc, dec = (torch.randn(a, b, generator=generator) for a, b in ((d, width), (width, d)))
    return SAE("sae", "resid_post@0", enc, torch.zeros(width), dec / 8, torch.zeros(d), k=k)


def test_integrated_gradients_of_features_keep_the_error(make_lm):
    lm, sae, steps = make_lm("llama"), tiny_sae(), 5
    scores = Scorer(lm, [sae], steps).score(Prompt(lm, IDS), ANSWER)["sae"]
    assert scores is not None
    double, seen = make_lm("llama").model.double(), []
    block = double.model.layers[0]
    with replaced(block, lambda x: seen.append(x[0, -1].clone()) or x):
        before = probability(double)
    z = sae.encode(seen[0][None].float()).dense()[0].double()
    assert torch.allclose(scores.values.double(), z, atol=1e-4)
    units = z.nonzero().flatten().tolist()

    def p(values):
        with replaced(block, at_last(lambda x: x + (values - z) @ sae.W_dec.double())):
            return probability(double)

    expected = differences(p, z, steps, units)
    found = scores.attribution[units].double()
    assert torch.allclose(found, expected.double(), rtol=5e-3, atol=1e-8)
    assert not scores.attribution[z == 0].any() and len(units) == 8
    assert (scores.probability, scores.zeroed) == pytest.approx((before, p(0 * z)), rel=1e-4)
    row = lm.unembedding()[ANSWER]
    assert torch.allclose(scores.effective, scores.values * (sae.W_dec @ row), atol=1e-5)
    assert torch.allclose(scores.contribution, scores.values * sae.W_dec.norm(dim=1), atol=1e-5)


def test_every_family_is_complete(family_lm):
    """With fine steps, the attributions of a layer add up to what zeroing it costs."""
    lm = family_lm
    (neuron,) = [d for d in neurons(lm) if d.site == "mlp_act@1"]
    scores = Scorer(lm, [neuron], 200).score(Prompt(lm, IDS), ANSWER)[neuron.id]
    assert scores is not None
    assert scores.probability == pytest.approx(probability(lm.model), rel=1e-4)
    path = lm.site(neuron.site).path
    with replaced(lm.model.get_submodule(path), at_last(torch.zeros_like)):
        zeroed = probability(lm.model)
    assert scores.zeroed == pytest.approx(zeroed, rel=1e-4)
    drop = scores.probability - scores.zeroed
    assert float(scores.attribution.sum()) == pytest.approx(drop, rel=2e-2)


def test_scores_of_neurons_add_up_to_what_the_layer_writes(family_lm):
    lm = family_lm
    seen = {}
    hidden, out = lm.site("mlp_hidden@1").path.removesuffix(":input"), lm.site("mlp_out@1").path
    down = lm.model.get_submodule(hidden)
    handle = down.register_forward_pre_hook(lambda _m, i: seen.update(m=i[0][0, -1]))
    with replaced(lm.model.get_submodule(out), lambda x: seen.update(out=x[0, -1]) or x):
        probability(lm.model)
    handle.remove()
    (neuron,) = [d for d in neurons(lm) if d.site == "mlp_act@1"]
    scores = Scorer(lm, [neuron], 1).score(Prompt(lm, IDS), ANSWER)[neuron.id]
    assert scores is not None
    bias = getattr(down, "bias", None)
    written = seen["out"] if bias is None else seen["out"] - bias
    expected = float(written @ lm.unembedding()[ANSWER])
    assert float(scores.effective.sum()) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    blocks = lm.model.get_submodule(path_of_blocks(lm))
    if not has_post_norm(blocks[1]):
        rows = down.weight.T if isinstance(down, nn.Linear) else down.weight
        expected = seen["m"].abs() * rows.norm(dim=1)
        assert torch.allclose(scores.contribution, expected, rtol=1e-3, atol=1e-6)


def path_of_blocks(lm):
    return lm.site("resid_post@1").path.rpartition(".")[0]


def test_a_prompt_of_one_token(tiny_lm):
    (neuron, *_) = neurons(tiny_lm)
    scores = Scorer(tiny_lm, [neuron]).score(Prompt(tiny_lm, [5]), ANSWER)[neuron.id]
    assert scores is not None
    assert scores.probability == pytest.approx(probability(tiny_lm.model, [5]), rel=1e-4)


# --------------------------------------------------------------------------- classes


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_classes_on_one_input(data):
    labels, width = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 9))
    rows = st.lists(st.booleans(), min_size=width, max_size=width)
    active = data.draw(st.lists(rows, min_size=labels, max_size=labels))
    for unit, found in enumerate(sharing_classes(torch.tensor(active)).tolist()):
        s = sum(row[unit] for row in active)
        wanted = {0: "non-activated", labels: "all-shared"}.get(s)
        assert SHARING[found] == (wanted or ("specific" if s == 1 else "partial-shared"))


def test_units_of_classes_over_inputs(tmp_path):
    """Two labels, three inputs; unit 0 is shared by most, unit 1 specific, unit 2 never active."""
    label, ids = [0, 1] * 3, ["a", "a", "b", "b", "c", "c"]
    last = [[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]]
    stats = make_stats("d", fired=[[1, 1, 1]] * 2, tokens=[9, 9], kind="identity")
    table = make_table(tmp_path, "patterns", stats, label, ids, last=last, any=last)
    found = sharing_units([stats], [table])
    assert found == {
        "all-shared": {"d": [0]},
        "partial-shared": {"d": []},
        "specific": {"d": [1]},
        "non-activated": {"d": [2]},
    }
    counts = sharing([stats], [table]).header["classes"]
    assert counts["all-shared"]["d"] == pytest.approx(2 / 3)


def test_units_of_ternary_classes():
    """Units above the bar for one, two and three labels of three, and their numbers by the rule."""
    fired = torch.randint(20, 40, (3, 600), generator=torch.Generator().manual_seed(3))
    fired[:, :12] = 90
    fired[:, 20:23] = torch.tensor([[95], [0], [0]])
    fired[:, 30:33] = torch.tensor([[93], [94], [0]])
    stats = [
        make_stats(name, fired=part.tolist(), tokens=[100] * 3, kind="identity")
        for name, part in zip("ab", fired.split(300, dim=1), strict=True)
    ]
    units, counts = ternary_units(stats), ternary(stats).header["classes"]
    bar = fired.flatten().sort().values[round(0.95 * fired.numel()) - 1]
    above = (fired > bar).sum(0)
    assert units["general"]["a"] == (above[:300] == 3).nonzero().flatten().tolist() != []
    assert above[units["specific"]["a"]].eq(1).all() and above[units["related"]["a"]].eq(2).all()
    assert units["specific"]["a"] and units["related"]["a"]
    counts["general"] = counts.pop("general-all")
    found = {of: {name: len(some) for name, some in here.items()} for of, here in units.items()}
    assert found == counts


def test_parallel_keys():
    assert parallel_keys([("a", "1"), ("b", "1"), ("a", "2")]) == ["1"]
    assert parallel_keys([("a", "1"), ("a", "2")]) == []


# --------------------------------------------------------------------------- experiments

ROWS = [
    {"prompt": "the cat sat", "answer": " on", "label": "en", "id": "1", "options": " on| the| x"},
    {"prompt": "die Katze sa", "answer": "ss", "label": "de", "id": "1", "options": "ss|t|x"},
    {"prompt": "the dog", "answer": " ran", "label": "en", "id": "2", "options": " ran| the| x"},
    {"prompt": "der Hund", "answer": " ist", "label": "de", "id": "2", "options": " ist| t| x"},
]


def write_table(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path / "table.jsonl", ROWS)


@pytest.mark.usefixtures("one_core")
def test_answers_against_log_probabilities(tiny_run, table):
    opened = open_run(tiny_run)
    lm, cases = opened.lm, load_cases(opened, table)

    def log_probability(prompt, answer):
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logs = lm.model(input_ids=ids).logits[0].log_softmax(-1)
        return sum(float(logs[len(prompt) - 1 + i, t]) for i, t in enumerate(answer))

    best = []
    for case in cases:
        own, *others = [log_probability(*o) for o in ((case.prompt, case.answer), *case.options)]
        best.append(own > max(others))
    assert answered(lm, cases) == best and len(cases[0].options) == 2
    greedy = int(lm.model(input_ids=torch.tensor([cases[0].prompt])).logits[0, -1].argmax())
    free = [
        type(cases[0])("en", "1", cases[0].prompt, answer) for answer in ((greedy,), (greedy + 1,))
    ]
    assert answered(lm, free) == [True, False]


def zeroing(mask):
    """Set neurons to zero at all tokens but BOS, which is special and not edited."""
    return lambda x: torch.cat([x[:, :1], x[:, 1:].masked_fill(mask, 0.0)], dim=1)


@pytest.mark.usefixtures("one_core")
def test_categories_by_input_against_plain_hooks(run_copy, tmp_path):
    """The units of a class are found on each input and zeroed for its texts alone."""
    opened = open_run(run_copy)
    words = ["cat", "dog", "mat", "house", "sun", "hat", "ran", "sat", "it", "and"]
    texts = [
        (f"{say} {word} {word}", label, word)
        for word in words
        for label, say in (("de", "der Hund"), ("en", "the cat"), ("th", "it is"))
    ]
    opened.corpus = load_corpus(texts)
    config = CategoriesConfig(pools=("neurons",), sentences=2, only=("all-shared",))
    found = categories(opened, config, tmp_path / "out.json")
    assert found["settings"]["classes"] == "inputs"
    lm, acts = opened.lm, [layer.mlp.act_fn for layer in opened.lm.model.model.layers]
    test = {
        key: {of: text for text, of, other in texts if other == key}
        for key in {opened.corpus.ids[i] for i in opened.corpus.positions("test", 0)}
    }
    losses, counts = {"de": [], "en": [], "th": []}, []
    for some in test.values():
        rows = {of: [*lm.prefix, *lm.tokenize([text], 99)[0]] for of, text in some.items()}
        active = [[], []]
        for ids in rows.values():
            for act, seen in zip(acts, active, strict=True):
                with replaced(act, lambda x, seen=seen: seen.append(x[0, -1] > 0) or x):
                    probability(lm.model, ids)
        shared = [torch.stack(seen).all(0) for seen in active]
        counts.append(sum(int(mask.sum()) for mask in shared))
        for of, ids in rows.items():
            x = torch.tensor([ids])

            first, second = map(zeroing, shared)
            with replaced(acts[0], first), replaced(acts[1], second), torch.no_grad():
                logs = lm.model(input_ids=x).logits[0].log_softmax(-1)
            losses[of].append(-float(logs[:-1].gather(1, x[0, 1:, None]).mean()))
    rows = [row for row in found["rows"] if row["class"] == "all-shared"]
    used = rows[0]["texts"]
    assert used == min(2, len(test)) > 0
    for row in rows:
        if used == len(test):
            assert row["nll"] == pytest.approx(sum(losses[row["label"]]) / used, rel=1e-4)
            assert row["count"] == pytest.approx(sum(counts) / used)
    twins = [row for row in found["rows"] if row["class"] == "random all-shared"]
    assert [row["count"] for row in twins] == [row["count"] for row in rows]
    assert used == len(test)


@pytest.mark.usefixtures("one_core")
def test_commands(saefeat, run_copy, table):
    run = ("--run", run_copy, "--table", table)
    code, out, err = saefeat("steer", "attribute", *run, "--prompts", 2, "--steps", 2)
    assert code == 0 and "attribution_share" in out, err
    rows = json.loads((run_copy / "experiments" / "attribution.json").read_text())["rows"]
    assert {row["class"] for row in rows} == set(SHARING)
    by_layer: dict = {}
    for row in rows:
        by_layer.setdefault((row["dictionary"], row["label"]), []).append(row)
    for here in by_layer.values():
        for column in ("share_of_units", "contribution", "attribution_share"):
            if here[0]["prompts"]:
                assert sum(row[column] for row in here) == pytest.approx(1)
    code, out, err = saefeat("steer", "categories", *run, "--sentences", 3, "--classes", "ternary")
    assert code == 0 and "change_random" in out, err
    rows = json.loads((run_copy / "experiments" / "categories.json").read_text())["rows"]
    assert {row["cases"] for row in rows if row["label"] == "en"} == {2}
    base = [row for row in rows if row["class"] == "none"]
    assert [row["change"] for row in base] == [0.0] * 3
    assert any(row["change"] for row in rows if not row["class"].startswith(("none", "random")))


def column_removed(name):
    return [{key: value for key, value in row.items() if key != name} for row in ROWS]


def changed(**values):
    return [*ROWS[:1], {**ROWS[1], **values}]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (column_removed("answer"), "row 1: no column answer; there are prompt, label"),
        (column_removed("prompt"), "row 1: no column prompt"),
        (column_removed("label"), "row 1: no column label"),
        (changed(answer="", options=""), "row 2: the answer '' has no tokens"),
        (changed(answer=3), "row 2 has no text in the column answer"),
        (changed(prompt=" "), "row 2: the prompt is empty"),
        (changed(answer="y"), "row 2: the answer 'y' is not among its options"),
        ([{**ROWS[0], "label": "fr"}], "has no row of a label of the run"),
        ([], "has no rows"),
    ],
)
def test_bad_tables(saefeat, tiny_run, tmp_path, rows, said):
    path = write_table(tmp_path / "bad.jsonl", rows)
    for command in ("attribute", "categories"):
        code, _, err = saefeat("steer", command, "--run", tiny_run, "--table", path)
        assert code == 2 and said in err and "Traceback" not in err, err


def test_bad_csv(saefeat, tiny_run, tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text("prompt,answer,label\na,b,en\na,b\n")
    code, _, err = saefeat("steer", "attribute", "--run", tiny_run, "--table", path)
    assert code == 2 and "line 3 has 2 cells, the header 3" in err
    code, _, err = saefeat("steer", "attribute", "--run", tiny_run, "--table", tmp_path / "no.csv")
    assert code == 2 and "does not exist" in err
    code, _, err = saefeat("steer", "attribute", "--run", tiny_run, "--table", tmp_path / "no.txt")
    assert code == 2 and "does not exist" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--classes", "nonsense"], "there are no classes 'nonsense'"),
        (["--classes", "inputs"], "are not parallel: no id occurs in every label"),
        (["--classes", "sharing"], "holds no patterns of"),
        (["--pools", "heads"], "there are no units 'heads'"),
    ],
)
def test_bad_classes(saefeat, tiny_run, options, said):
    for command in ("attribute", "categories"):
        code, _, err = saefeat("steer", command, "--run", tiny_run, *options)
        assert code == 2 and said in err and "Traceback" not in err, err
        if "sharing" in options:
            assert "collect --with patterns" in err


def test_classes_without_units(saefeat, run_copy, tmp_path):
    run = ("steer", "categories", "--run", run_copy)
    code, _, err = saefeat(*run, "--only", "shared")
    assert code == 2 and "there is no class 'shared' by ternary; there are specific" in err
    assert not (run_copy / "steering" / "stats").exists()  # refused before anything is collected
    whole = Selection.load(run_copy / "selections" / "lape.parquet")
    whole.filter([False] * len(whole.table)).save(tmp_path / "empty.parquet")
    code, _, err = saefeat(*run, "--classes", tmp_path / "empty.parquet")
    assert code == 2 and "no class has units" in err
    code, _, err = saefeat(*run, "--pools", "features", "--classes", "lape")
    assert code == 2 and "no class has units by lape" in err
    code, _, err = saefeat(*run, "--pools", "features", "--classes", "lape", "--only", "one label")
    assert code == 2 and "the class one label has no units by lape" in err
    code, _, err = saefeat(*run, "--sentences", 0)
    assert code == 2 and "there is nothing to measure" in err


@pytest.mark.usefixtures("one_core")
def test_prompts_of_parallel_texts_are_whole(run_copy, tmp_path):
    """Units of a class are active at the last token of as many whole versions as the class says."""
    opened = open_run(run_copy)
    words = ["cat", "dog", "mat", "house", "sun", "hat", "ran", "sat", "it", "and"]
    end = "in the house and on the mat and it sat on it and ran"
    opened.corpus = load_corpus(
        [
            (f"{say} {word} {end} {word}.", label, word)
            for word in words
            for label, say in (("de", "der Hund und die Katze"), ("en", "the cat"), ("th", "it is"))
        ]
    )
    config = AttributionConfig(pools=("neurons",), prompts=1, steps=1)
    found = attribute(opened, config, tmp_path / "whole.json")
    assert found["settings"]["classes"] == "inputs"
    lm, acts = opened.lm, [layer.mlp.act_fn for layer in opened.lm.model.model.layers]
    counts = []
    for key in {opened.corpus.ids[i] for i in opened.corpus.positions("test", 0)}:
        versions = [
            text for text, at in zip(opened.corpus.texts, opened.corpus.ids, strict=True)
            if at == key
        ]  # fmt: skip
        active = [[], []]
        for text in versions:
            ids = lm.tokenize([text.removesuffix(".")], 999)[0]
            assert len(ids) > 17
            for act, seen in zip(acts, active, strict=True):
                with replaced(act, lambda x, seen=seen: seen.append(x[0, -1] > 0) or x):
                    probability(lm.model, [*lm.prefix, *ids[:-1]])
        counts.append([int(torch.stack(seen).all(0).sum()) for seen in active])
    rows = [row for row in found["rows"] if (row["class"], row["label"]) == ("all-shared", "de")]
    assert [row["count"] for row in rows] in counts
    config = AttributionConfig(pools=("neurons",), prompts=1, steps=1, tokens=5)
    notes = attribute(opened, config, tmp_path / "cut.json")["notes"]
    assert "the first 5 tokens of each version" in notes[0]
    assert notes[1:] == found["notes"]


@pytest.mark.parametrize("command", ["attribute", "categories"])
def test_texts_that_are_not_parallel_are_said_to_have_other_classes(saefeat, run_copy, command):
    size = ["--prompts", 1, "--steps", 1] if command == "attribute" else ["--sentences", 1]
    asked = ["steer", command, "--run", run_copy, "--pools", "features", *size]
    code, out, err = saefeat(*asked)
    said = "The test texts of the run are not parallel"
    assert code == 0 and said in out and f"note: {said}" in err
    code, out, _ = saefeat(*asked, "--classes", "ternary", "--out", run_copy / "other.json")
    assert code == 0 and said not in out


def owned(path, opened, counts):
    """A selection of the first neurons of layer 0, as many for each label as `counts` says."""
    stats = UnitBench(opened).read("mlp_act@0")
    parts = [
        make_part(stats, torch.arange(n), torch.full((n,), row), torch.zeros(n, dtype=torch.double))
        for row, n in enumerate(counts)
    ]
    table = pa.concat_tables([part.table for part in parts])
    Selection.build([replace(parts[0], table=table)], method="own").save(path)
    return str(path)


@pytest.mark.usefixtures("one_core")
def test_a_class_that_leaves_fewer_units_has_no_random_ones(run_copy, tmp_path):
    """All labels own 24 of 48 neurons, one label 0; then 30 and the control would be the class."""
    opened, found = open_run(run_copy), []
    for number in (24, 25):
        path = owned(tmp_path / f"{number}.parquet", opened, [number] * 3)
        config = CategoriesConfig(pools=("neurons",), classes=path, sentences=1)
        found.append(categories(opened, config, tmp_path / f"{number}.json"))
    names = [{row["class"] for row in one["rows"]} for one in found]
    assert names == [{"none", "all labels", "random all labels"}, {"none", "all labels"}]
    assert found[0]["notes"] == []
    assert found[1]["notes"] == [
        "No random units beside all labels (neurons): fewer other units are left."
    ]
    assert found[0]["summary"][-1]["change_random"] is not None
    assert found[1]["summary"][-1]["change_random"] is None


@pytest.mark.usefixtures("one_core")
def test_other_units_of_the_same_name_are_measured_anew(run_copy, tmp_path):
    opened, path, found = open_run(run_copy), tmp_path / "own.parquet", []
    for counts in ([3, 3, 3], [9, 9, 9]):
        owned(path, opened, counts)
        config = CategoriesConfig(pools=("neurons",), classes=str(path), sentences=1)
        asked = AttributionConfig(pools=("neurons",), classes=str(path), prompts=1, steps=1)
        one = categories(opened, config, tmp_path / "categories.json")["rows"]
        two = attribute(opened, asked, tmp_path / "attribution.json")["rows"]
        found += [
            (one[-1]["count"], max(row["count"] for row in two if row["class"] != "no class"))
        ]
    assert found == [(3, 3), (9, 9)]


def test_a_class_whose_zeroing_breaks_the_model_has_no_figures(run_copy):
    opened = open_run(run_copy)
    found = _Categories(opened, UnitBench(opened), [], {}, [])
    nan = float("nan")
    found._unedited = {"nll": {"de": [1.0, 2.0], "en": [nan, 3.0]}, "accuracy": {}}
    broken = {"nll": {"de": [nan, 2.5], "en": [nan, 4.0]}, "accuracy": {}}
    german, english, thai = found._rows("neurons", "specific", 1.0, broken)
    assert (german["texts"], german["nll"], german["change"]) == (2, None, None)
    assert (english["texts"], english["nll"], english["change"]) == (1, 4.0, 1.0)
    assert (thai["texts"], thai["nll"], thai["change"]) == (0, None, None)
    (row,) = _summarize([german, english, thai])
    assert (row["change"], row["lost"], row["lost_random"]) == (1.0, 1, 0)


@pytest.mark.usefixtures("one_core", "every_line")
def test_killed_categories_resume_to_the_same_bytes(run_copy, tmp_path):
    config = CategoriesConfig(pools=("features",), classes="ternary", sentences=2)
    categories(open_run(run_copy), config, tmp_path / "whole.json")
    with pytest.raises(KeyboardInterrupt):
        categories(
            open_run(run_copy, Interrupt("categories: 3 of")), config, tmp_path / "killed.json"
        )
    assert not (tmp_path / "killed.json").exists()
    lines: list[str] = []
    categories(open_run(run_copy, lines.append), config, tmp_path / "killed.json")
    assert (tmp_path / "killed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not any("categories: 1 of" in line for line in lines)


def test_units_that_do_not_write_into_the_stream_are_refused_at_once(run_copy, tmp_path):
    """An SAE of the 48 hidden neurons; the output projection reads 32 numbers."""
    opened = open_run(run_copy)
    opened.saes = [replace(tiny_sae(d=48), site="mlp_hidden@0")]
    message = "units of mlp_hidden@0 write 48 numbers, but the output projection reads 32; give"
    with refused(message, "pools"):
        attribute(opened, AttributionConfig(pools=("neurons", "features")), tmp_path / "out.json")
    assert not (run_copy / "steering" / "stats").exists()  # before anything is collected
