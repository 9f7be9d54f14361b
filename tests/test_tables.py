"""Tables by example: responses, patterns and importances, example by example."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers import Interrupt, codes_of, contents, random_sae, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from saefeat.collection import collect
from saefeat.corpora import load_corpus, make_plan
from saefeat.dictionaries import Identity
from saefeat.hooks import capture, intervene
from saefeat.io import UserError
from saefeat.memory import state_bytes
from saefeat.methods import METHODS, run_methods
from saefeat.models.sites import split_input
from saefeat.run.stages import neurons, rank
from saefeat.statistics import ACCUMULATORS, Observed, Stats, run_kinds
from saefeat.statistics.by_example import chunks
from saefeat.statistics.distributions import CENTRE, Distributions
from saefeat.statistics.files import collected_beside
from saefeat.statistics.merging import merge
from saefeat.statistics.patterns import Patterns, levels
from saefeat.statistics.responses import Responses

TABLES = ("responses", "patterns", "importances")
WIDTH = 5
KINDS = ("sparse", "flat", "dense", "signed")


def random_texts(seed):
    """Values [tokens, WIDTH] of each of seven examples; some have no tokens, many values are 0."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 5, (7,), generator=g).tolist()
    return [
        torch.randn(n, WIDTH, generator=g)
        * (torch.rand(n, WIDTH, generator=g) < 0.6)
        * 10 ** (3 * torch.rand(n, WIDTH, generator=g) - 1.5)
        for n in lengths
    ]


def batch_of(texts, kind, norms=None, kept=None):
    lengths = torch.tensor([len(text) for text in texts])
    return Observed(
        codes_of(torch.cat(texts), kind),
        lengths,
        torch.tensor([i % 2 for i in range(len(texts))]),
        torch.arange(len(texts)) + 10,
        dictionary=SimpleNamespace(norms=norms),
        kept=kept,
    )


def table_of(name, kind, texts, **options):
    made = ACCUMULATORS[name].zeros(("a", "b"), WIDTH, signed=kind == "signed")
    made.add(batch_of(texts, kind, **options))
    return made


# --------------------------------------------------------------------------- what they hold


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_each_row_is_that_of_its_example_worked_by_loops(kind, seed):
    texts, norms = random_texts(seed), torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0])
    made = {name: table_of(name, kind, texts, norms=norms) for name in TABLES}
    if kind != "signed":
        texts = [text.clamp(min=0) for text in texts]
    present = [(i, text.double()) for i, text in enumerate(texts) if len(text)]
    for table in made.values():
        assert table.position.tolist() == [i + 10 for i, _ in present]
        assert table.label.tolist() == [i % 2 for i, _ in present]
    responses, patterns = made["responses"], made["patterns"]
    assert responses.tokens.tolist() == [len(text) for _, text in present]
    for row, (_, text) in enumerate(present):
        for unit in range(WIDTH):
            values = text[:, unit].tolist()
            mean = sum(values) / len(values)
            assert float(responses.mean[row, unit]) == pytest.approx(mean, rel=1e-6, abs=1e-6)
            assert responses.fired[row, unit] == sum(v > 0 for v in values)
            bars = torch.tensor([0, 0.1, 0.2, 0.3, 0.4, 0.5]).tolist()  # in float32
            assert patterns.last[row, unit] == sum(values[-1] > bar for bar in bars)
            assert patterns.any[row, unit] == sum(max(values) > bar for bar in bars)
            expected = sum(v * v for v in values) ** 0.5 * float(norms[unit])
            found = float(made["importances"].importance[row, unit])
            assert found == pytest.approx(expected, rel=1e-5)


def test_levels_count_the_thresholds_that_a_value_exceeds():
    tenth = torch.tensor(0.1)
    values = torch.tensor([-1.0, 0.0, 1e-30, 0.1, 0.4, 0.45, 0.5, 0.51, torch.inf, -torch.inf])
    assert levels(values).tolist() == [0, 0, 1, 1, 4, 5, 5, 6, 6, 0]
    assert levels(torch.nextafter(tenth, tenth + 1)[None]).tolist() == [2]


@pytest.mark.parametrize("name", TABLES)
def test_examples_that_are_not_kept_have_no_rows(name):
    texts = [torch.ones(2, WIDTH)] * 7
    kept = torch.tensor([True, False, False, True, True, False, False])
    found = table_of(name, "signed", texts, norms=torch.ones(WIDTH), kept=kept)
    assert found.position.tolist() == [10, 13, 14]
    none = table_of(name, "signed", texts, norms=torch.ones(WIDTH), kept=~kept & False)
    assert len(none.position) == 0


# --------------------------------------------------------------------------- collected


@pytest.fixture(scope="module")
def dictionaries(tiny_lm):
    return [random_sae(), *neurons(tiny_lm, kind="mlp_hidden"), Identity("mlp_out@0", 32)]


@pytest.fixture(scope="module")
def plan(tiny_corpus, tiny_lm):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saefeat.corpora.WINDOW", 32)
        yield make_plan(tiny_corpus, tiny_lm)


@pytest.fixture(autouse=True)
def windows(small_windows):
    pass


def run(lm, plan, dictionaries, out, **options):
    names = (*TABLES, "distributions")
    places = {name: out / ACCUMULATORS[name].FOLDER for name in names}
    collect(lm, plan, dictionaries, out, places=places, **options)
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory, plan, tiny_lm, dictionaries):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saefeat.corpora.WINDOW", 32)
        return run(tiny_lm, plan, dictionaries, tmp_path_factory.mktemp("tables") / "whole")


def opened(out, name, dictionary):
    header = Stats.read_header(out / f"{dictionary}.safetensors")
    return collected_beside(out, name, [header])[0]


def test_tables_of_shards_are_those_of_the_whole(tmp_path, whole, plan, tiny_lm, dictionaries):
    shards = [run(tiny_lm, plan, dictionaries, tmp_path / f"{i}", shard=(i, 3)) for i in range(3)]
    merge(shards[::-1], tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(whole)


def test_killed_and_run_again_it_writes_the_same_tables(
    tmp_path, whole, plan, tiny_lm, dictionaries, monkeypatch
):
    monkeypatch.setattr("saefeat.progress.LINE_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        run(
            tiny_lm,
            plan,
            dictionaries,
            tmp_path / "o",
            say=Interrupt("window 4"),
            checkpoint_seconds=0,
        )
    assert (tmp_path / "o/responses/wide/window-00001.safetensors").exists()
    run(tiny_lm, plan, dictionaries, tmp_path / "o")
    assert contents(tmp_path / "o") == contents(whole)


def test_the_norms_of_dictionaries_decide_which_have_importances(whole, dictionaries):
    assert [d.norms is None for d in dictionaries] == [False, False, False, True]
    found = {path.name for path in (whole / "importances").iterdir()}
    assert found == {"wide", "mlp_hidden@0", "mlp_hidden@1"}
    assert {path.name for path in (whole / "responses").iterdir()} == {*found, "mlp_out@0"}


def test_mean_responses_weighted_by_tokens_are_the_means_of_the_statistics(whole):
    for dictionary in ("wide", "mlp_hidden@1", "mlp_out@0"):
        table = opened(whole, "responses", dictionary)
        stats = Stats.load(whole / f"{dictionary}.safetensors")
        tokens = table.read("tokens").double()
        for k in range(3):
            mine = table.label == k
            mean = (table.read("mean")[mine] * tokens[mine, None]).sum(0) / tokens[mine].sum()
            torch.testing.assert_close(mean, stats.mean()[k], rtol=1e-5, atol=1e-6)
            assert torch.equal(table.read("fired")[mine].long().sum(0), stats.fired[k])
            assert mine.sum() == stats.examples[k]
            active = opened(whole, "patterns", dictionary).read("any")[mine] > 0
            assert torch.equal(active.sum(0), stats.fired_examples[k])


def test_distributions_are_of_the_tokens_that_the_statistics_count(whole):
    for dictionary in ("wide", "mlp_hidden@1"):
        found = Distributions.load(whole / f"distributions/{dictionary}.safetensors")
        stats = Stats.load(whole / f"{dictionary}.safetensors")
        assert torch.equal(found.tokens, stats.tokens)
        above = found.counts[..., CENTRE + 1 :].sum(-1)
        assert (above <= stats.fired).all() and above.sum() > 0.8 * stats.fired.sum()
        torch.testing.assert_close(found.shares().sum(-1), torch.ones_like(above).double())


def test_rows_stand_in_the_order_of_the_corpus_with_their_ids(whole, plan):
    table = opened(whole, "patterns", "mlp_hidden@0")
    positions = sorted(plan.tokens)
    assert table.ids == [plan.corpus.ids[i] for i in positions]
    assert [table.labels[k] for k in table.label] == [plan.corpus.of[i] for i in positions]
    parts = [table.read("last", units.start, units.stop) for units in chunks(48, 100, 700)]
    assert len(parts) == 7 and torch.equal(torch.cat(parts, 1), table.read("last"))
    windows = list(table.windows("last"))
    assert torch.equal(torch.cat([values for _, values in windows]), table.read("last"))
    assert torch.equal(torch.cat([label for label, _ in windows]), table.label)


def test_a_limit_keeps_the_same_ids_of_every_label_in_every_partition(tmp_path, tiny_lm):
    texts = [(f"{word} {i}", word[:2], f"id {i}") for i in range(80) for word in ("der", "the")]
    limited = make_plan(load_corpus(texts), tiny_lm)
    some = [Identity("mlp_out@0", 32)]
    out = run(tiny_lm, limited, some, tmp_path / "whole", table_examples=10)
    table = opened(out, "patterns", "mlp_out@0")
    ids = [{n for n, k in zip(table.ids, table.label, strict=True) if k == own} for own in (0, 1)]
    assert len(table.ids) == 20 and ids[0] == ids[1]
    shards = [
        run(tiny_lm, limited, some, tmp_path / f"{i}", table_examples=10, shard=(i, 2))
        for i in range(2)
    ]
    merge(shards, tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(out)
    # Another limit: the tables are collected again, and the counts stay what they are.
    before = contents(out)
    run(tiny_lm, limited, some, out, table_examples=7)
    assert len(opened(out, "patterns", "mlp_out@0").ids) == 14
    run(tiny_lm, limited, some, out, table_examples=10)
    assert contents(out) == before


def test_the_forecast_counts_the_rows_of_a_window():
    dictionary = SimpleNamespace(signed=True, width=100, norms=None)
    kinds = [Responses, Patterns, ACCUMULATORS["importances"]]
    assert state_bytes(dictionary, 3, kinds) == 100 * 1024 * (4 + 2 + 1 + 1)
    assert state_bytes(dictionary, 3, [Responses], rows=7) == 100 * 7 * 6


def test_a_run_collects_no_tables_and_ranks_by_no_rule_that_needs_one(dictionaries):
    assert run_kinds().keys() == ACCUMULATORS._places.keys() - {*TABLES, "distributions", "halves"}
    ranked = run_methods([dictionary.identity for dictionary in dictionaries])
    assert not any(method.accumulators for method in ranked.values())
    assert {n for method in METHODS.values() for n in method.accumulators} == {
        *TABLES,
        "distributions",
    }


# --------------------------------------------------------------------------- importances


def deactivated(lm, layer, ids, units):
    """Norm of the change of the feed-forward output without each unit: [units], by intervention."""
    out, site = f"model.layers.{layer}.mlp", lm.site(f"mlp_hidden@{layer}").path
    counted = torch.tensor([token not in lm.special_ids for token in ids[0].tolist()])

    def output(edits):
        with intervene(lm.model, edits), capture(lm.model, (out,)) as captured:
            return captured.run(lm.model, input_ids=ids)[out][0, counted]

    with torch.inference_mode():
        plain = output({site: lambda x, _steps: x})
        return torch.stack(
            [
                (
                    output({site: lambda x, _steps, u=u: x.index_fill(-1, torch.tensor([u]), 0.0)})
                    - plain
                ).norm()
                for u in units
            ]
        )


@pytest.mark.filterwarnings("ignore:no forward pass")
def test_the_closed_form_is_the_change_by_true_deactivation_in_a_real_model(tmp_path, smollm):
    layer, texts = 7, ["Der Hund schläft im Garten.", "The dog sleeps in the garden, I think."]
    corpus = load_corpus([(texts[0], "de", "1"), (texts[1], "en", "1")])
    plan = make_plan(corpus, smollm, split="all")
    out = run(smollm, plan, neurons(smollm, [layer], "mlp_hidden"), tmp_path / "o")
    found = opened(out, "importances", f"mlp_hidden@{layer}").read("importance")
    for row, text in enumerate(texts):
        ids = torch.tensor([smollm.tokenizer(text)["input_ids"]])
        top = found[row].topk(5).indices.tolist()
        units = [*top, 0, 100, 1000]
        expected = deactivated(smollm, layer, ids, units)
        # The difference of two outputs of some 10 has errors of 1e-5.
        torch.testing.assert_close(found[row, units], expected, rtol=1e-3, atol=1e-4)
        assert expected[0] > 1e-2


def test_the_norms_of_an_sae_are_those_of_its_decoder_rows():
    sae = random_sae()
    assert torch.equal(sae.norms, sae.W_dec.norm(dim=1))
    assert random_sae(normalize="layer_norm").norms is None


def test_a_path_with_input_at_its_end_is_the_input_of_the_module(tiny_lm):
    site = tiny_lm.site("layers.1.mlp:input")
    assert (site.path, site.layer) == ("model.layers.1.mlp:input", 1)
    assert split_input(site.path) == ("model.layers.1.mlp", ":input")
    assert split_input("model.layers.1.mlp") == ("model.layers.1.mlp", "")
    with refused("unknown site layers.9.mlp:input"):
        tiny_lm.site("layers.9.mlp:input")


# --------------------------------------------------------------------------- bad input


def test_a_rule_without_its_table_names_the_command(saefeat, whole, tmp_path):
    (tmp_path / "stats").mkdir()
    for file in whole.glob("*.safetensors"):
        (tmp_path / "stats" / file.name).write_bytes(file.read_bytes())
    for method in ("average-precision", "sharing", "plnd"):
        name = METHODS[method].accumulators[0]
        code, out, error = saefeat(
            "rank",
            tmp_path / "stats",
            "--method",
            method,
            "--dictionaries",
            "wide",
            "--out",
            tmp_path / "s.parquet",
        )
        assert (code, out) == (2, "") and error.count("\n") == 1
        assert f"holds no {name} of wide" in error and f"saefeat collect --with {name}" in error
    assert not (tmp_path / "s.parquet").exists()


def test_importances_that_a_dictionary_cannot_have_are_refused(whole):
    with refused("holds no importances of mlp_out@0", "with_"):
        rank(whole, "plnd", dictionaries=["mlp_out@0"])


def test_tables_that_are_missing_damaged_or_of_something_else(tmp_path, whole, plan, tiny_lm):
    some = [Identity("mlp_out@0", 32)]
    out = run(tiny_lm, plan, some, tmp_path / "o")
    file = out / "patterns/mlp_out@0/window-00001.safetensors"
    good = file.read_bytes()
    for other, message in (
        (b"junk", "not a readable"),
        ((out / "responses/mlp_out@0" / file.name).read_bytes(), "another thresholds"),
        ((whole / "patterns/mlp_hidden@0" / file.name).read_bytes(), "is not of the collection"),
    ):
        file.write_bytes(other)
        with pytest.raises(UserError, match=message):
            rank(out, "sharing", dictionaries=["mlp_out@0"])
    file.unlink()
    with pytest.raises(UserError, match="is missing; collect it again"):
        rank(out, "sharing", dictionaries=["mlp_out@0"])
    file.write_bytes(good)
    assert load_file(file)["last"].dtype == torch.uint8


def test_neurons_are_collected_at_the_site_that_is_asked_for(
    saefeat, tmp_path, tiny_model_dir, tiny_jsonl
):
    arguments = ["--model", tiny_model_dir, "--corpus", tiny_jsonl, "--out", tmp_path / "o"]
    arguments += ["--neurons", "--neuron-site", "mlp_hidden", "--with", "importances,responses"]
    code, _, error = saefeat("collect", *arguments, "--dry-run", "--table-examples", 5)
    assert code == 0 and "MB of statistics on disk" in error
    code, out, error = saefeat("collect", *arguments, "--table-examples", 20)
    assert code == 0 and len(out.splitlines()) == 2
    rows = [tmp_path / "s.parquet", "--show", "1", "--no-lens"]
    for method, globs in (("plnd", []), ("average-precision", ["--dictionaries", "*"])):
        code, out, error = saefeat(
            "rank", tmp_path / "o", "--method", method, *globs, "--out", *rows
        )
        assert code == 0, error
    code, _, error = saefeat("collect", *arguments[:-2], "--neuron-site", "mlp_in")
    assert code == 2 and "neuron-site" in error
