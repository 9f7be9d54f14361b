"""Collection end to end: whole, in shards, or killed and resumed, the same right bytes."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
from itertools import chain
from typing import ClassVar

import pyarrow.parquet as pq
import pytest
import torch
from helpers import contents, random_sae

from saefeat import memory
from saefeat.codes import STEP
from saefeat.collection import collect, observe
from saefeat.corpora import hashed, load_corpus, make_plan
from saefeat.dictionaries import Identity
from saefeat.io import RunFailed, UserError, load_tensors, save_tensors
from saefeat.statistics import ACCUMULATORS, Accumulator, Field, Stats
from saefeat.statistics.halves import Halves
from saefeat.statistics.histograms import Histograms
from saefeat.statistics.merging import merge

EPS = 1e-4  # float noise between one example alone and in a batch stays well below it
WIDTH, K = 64, 4


DICTIONARIES = [random_sae(), Identity("mlp_act@1", 48), Identity("mlp_out@0", 32)]


class Interrupted:
    """Takes lines of progress and raises Ctrl-C in the n-th window, when the others are kept."""

    def __init__(self, at):
        self.at, self.lines = at, []

    def __call__(self, line):
        self.lines.append(line)
        if len(windows_in(self.lines)) == self.at:
            self.at = 0
            raise KeyboardInterrupt


def windows_in(lines):
    """The windows that lines of progress go through, in turn."""
    found = [match[1] for line in lines if (match := re.search(r", window (\d+)$", line))]
    return [int(window) for window, _ in itertools.groupby(found)]


@pytest.fixture(scope="module")
def plan(tiny_corpus, tiny_lm):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saefeat.corpora.WINDOW", 32)
        yield make_plan(tiny_corpus, tiny_lm)


pytestmark = pytest.mark.usefixtures("small_windows", "every_line")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, plan, tiny_lm):
    out = tmp_path_factory.mktemp("collect") / "whole"
    collect(tiny_lm, plan, DICTIONARIES, out, places={"bags": out / "bags"})
    return out


@pytest.fixture(scope="module")
def vectors(plan, tiny_lm):
    """{site: {position: counted vectors}}, each example run alone, read by hooks of this test."""
    layers = tiny_lm.model.model.layers
    modules = {"mlp_out@0": layers[0].mlp, "mlp_act@1": layers[1].mlp.act_fn}
    seen, made = {}, {site: {} for site in modules}
    handles = [
        m.register_forward_hook(lambda _m, _i, out, s=s: seen.update({s: out[0]}))
        for s, m in modules.items()
    ]
    with torch.no_grad():
        for position in plan.tokens:
            ids = tiny_lm.tokenizer(plan.corpus.texts[position])["input_ids"]
            tiny_lm.model(input_ids=torch.tensor([ids]))
            counted = torch.tensor([t not in (0, 1, 2) for t in ids])
            for site in modules:
                made[site][position] = seen[site][counted]
    for handle in handles:
        handle.remove()
    return made


def same(out, other):
    mine, theirs = contents(out), contents(other)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []


def run_shards(lm, plan, n, where):
    made = []
    for i in range(n):
        out = where / f"shard-{i}"
        collect(lm, plan, DICTIONARIES, out, shard=(i, n), places={"bags": out / "bags"})
        made.append(out)
    return made


# --------------------------------------------------------------------------- the same bytes


def test_it_writes_the_files_of_the_design(whole, plan):
    assert plan.window_count == 8
    bags = [f"bags/wide/window-{w:05d}.parquet" for w in range(8)]
    stats = ["mlp_act@1.safetensors", "mlp_out@0.safetensors", "wide.safetensors"]
    assert sorted(contents(whole)) == sorted([*bags, "examples/wide.parquet", *stats])


@pytest.mark.parametrize("n", [2, 3])
def test_shards_merged_in_any_order_are_the_whole(tmp_path, whole, plan, tiny_lm, n):
    shards = run_shards(tiny_lm, plan, n, tmp_path)
    assert merge(shards, tmp_path / "a") == []
    assert merge(shards[::-1], tmp_path / "b") == []
    same(tmp_path / "a", whole)
    same(tmp_path / "b", whole)


def test_shards_whose_saes_lay_elsewhere_merge_to_the_same_bytes_in_any_order(
    tmp_path, plan, tiny_lm
):
    shards = [tmp_path / str(i) for i in range(10)]  # two of them without windows
    for i, out in enumerate(shards):
        collect(
            tiny_lm,
            plan,
            [random_sae(record={"path": f"/{9 - i}/wide"})],
            out,
            shard=(i, 10),
            places={"bags": out / "bags"},
        )
    merge(shards, tmp_path / "a")
    merge(shards[::-1], tmp_path / "b")
    same(tmp_path / "a", tmp_path / "b")
    collect(
        tiny_lm,
        plan,
        [random_sae(record={"path": "/9/wide"})],
        tmp_path / "whole",
        places={"bags": tmp_path / "whole/bags"},
    )
    same(tmp_path / "a", tmp_path / "whole")


def test_shards_merge_by_and_by(tmp_path, whole, plan, tiny_lm):
    a, b, c = run_shards(tiny_lm, plan, 3, tmp_path)
    assert len(merge([c, a], tmp_path / "ca")) == 1
    assert merge([b, tmp_path / "ca"], tmp_path / "all") == []
    same(tmp_path / "all", whole)


@pytest.mark.parametrize("at", [1, 2, 5, 8])
def test_killed_and_run_again_it_writes_the_same_files(tmp_path, whole, plan, tiny_lm, at):
    options = {"places": {"bags": tmp_path / "o/bags"}, "checkpoint_seconds": 0}
    with pytest.raises(KeyboardInterrupt):
        collect(tiny_lm, plan, DICTIONARIES, tmp_path / "o", say=Interrupted(at), **options)
    assert not list((tmp_path / "o").glob("*.safetensors"))
    lines = []
    collect(tiny_lm, plan, DICTIONARIES, tmp_path / "o", say=lines.append, **options)
    assert windows_in(lines) == list(range(at, 9))
    same(tmp_path / "o", whole)


def test_killed_again_and_again_it_still_ends_with_the_same_files(tmp_path, whole, plan, tiny_lm):
    kills = 0
    while True:
        try:
            stop = Interrupted(3)
            collect(
                tiny_lm,
                plan,
                DICTIONARIES,
                tmp_path / "o",
                places={"bags": tmp_path / "o/bags"},
                say=stop,
                checkpoint_seconds=0,
            )
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills == 3
    same(tmp_path / "o", whole)


def test_dictionaries_that_do_not_fit_together_take_several_passes_to_the_same_files(
    tmp_path, whole, plan, tiny_lm, monkeypatch
):
    monkeypatch.setattr(memory, "memory_limit", lambda device: 1)
    lines = []
    for at in (2, 9, 12):  # killed in the first pass, in the second, and not at all
        stop = Interrupted(at)
        with contextlib.suppress(KeyboardInterrupt):
            collect(
                tiny_lm,
                plan,
                DICTIONARIES,
                tmp_path / "out",
                places={"bags": tmp_path / "out/bags"},
                say=stop,
                checkpoint_seconds=0,
            )
        lines += stop.lines
    monkeypatch.setattr(memory, "memory_limit", lambda device: 2**40)  # on another machine
    collect(
        tiny_lm,
        plan,
        DICTIONARIES,
        tmp_path / "out",
        places={"bags": tmp_path / "out/bags"},
        checkpoint_seconds=0,
    )
    assert "collect: group 1 of 3, wide" in lines
    same(tmp_path / "out", whole)


def test_a_kill_before_the_last_clearing_up_leaves_nothing_unfinished(
    tmp_path, whole, plan, tiny_lm
):
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / "partial").mkdir()
    collect(tiny_lm, plan, DICTIONARIES, tmp_path / "out", places={"bags": tmp_path / "out/bags"})
    assert not (tmp_path / "out" / "partial").exists()
    same(tmp_path / "out", whole)


def test_a_killed_shard_resumes(tmp_path, whole, plan, tiny_lm):
    first, second = tmp_path / "0", tmp_path / "1"
    with pytest.raises(KeyboardInterrupt):
        collect(
            tiny_lm,
            plan,
            DICTIONARIES,
            first,
            shard=(0, 2),
            say=Interrupted(3),
            checkpoint_seconds=0,
        )
    with pytest.raises(UserError, match="the state of the collection of something else"):
        collect(tiny_lm, plan, DICTIONARIES, first, shard=(1, 2))
    collect(tiny_lm, plan, DICTIONARIES, first, shard=(0, 2))
    collect(tiny_lm, plan, DICTIONARIES, second, shard=(1, 2))
    merge([first, second], tmp_path / "m")
    for name in ("wide", "mlp_act@1"):
        assert (tmp_path / f"m/{name}.safetensors").read_bytes() == (
            whole / f"{name}.safetensors"
        ).read_bytes()


def test_a_finished_collection_is_not_done_again(tmp_path, whole, plan, tiny_lm):
    shutil.copytree(whole, tmp_path / "o")
    lines = []
    collect(
        tiny_lm,
        plan,
        DICTIONARIES,
        tmp_path / "o",
        places={"bags": tmp_path / "o/bags"},
        say=lines.append,
    )
    assert lines == [f"{tmp_path / 'o'} is complete already"]


def test_bags_asked_for_later_are_written(tmp_path, whole, plan, tiny_lm):
    collect(tiny_lm, plan, DICTIONARIES, tmp_path / "o")
    collect(tiny_lm, plan, DICTIONARIES, tmp_path / "o", places={"bags": tmp_path / "o/bags"})
    same(tmp_path / "o", whole)
    with pytest.raises(KeyboardInterrupt):
        collect(
            tiny_lm, plan, DICTIONARIES, tmp_path / "p", say=Interrupted(4), checkpoint_seconds=0
        )
    collect(tiny_lm, plan, DICTIONARIES, tmp_path / "p", places={"bags": tmp_path / "p/bags"})
    same(tmp_path / "p", whole)


def test_a_shard_without_windows_writes_zeros_with_all_labels(tmp_path, plan, tiny_lm):
    (path,) = collect(tiny_lm, plan, DICTIONARIES[:1], tmp_path, shard=(9, 10))
    stats = Stats.load(path)
    assert stats.labels == ("de", "en", "th") and stats.header["windows"] == []
    assert stats.equal(Stats.zeros(stats.labels, WIDTH, signed=False))


# --------------------------------------------------------------------------- the right numbers


@pytest.mark.parametrize("name", ["mlp_act@1", "mlp_out@0"])
def test_neurons_statistics_are_those_counted_one_example_at_a_time(whole, vectors, plan, name):
    stats = Stats.load(whole / f"{name}.safetensors")
    for row, label in enumerate(stats.labels):
        examples = [x for position, x in vectors[name].items() if plan.corpus.of[position] == label]
        x = torch.cat(examples).double()
        assert stats.tokens[row] == len(x) and stats.examples[row] == len(examples)
        assert ((x > EPS).sum(0) <= stats.fired[row]).all() and (
            stats.fired[row] <= (x > -EPS).sum(0)
        ).all()
        at_least = sum((e > EPS).any(0).long() for e in examples)
        at_most = sum((e > -EPS).any(0).long() for e in examples)
        assert (
            (at_least <= stats.fired_examples[row]) & (stats.fired_examples[row] <= at_most)
        ).all()
        torch.testing.assert_close(
            stats.sum[row].double() * STEP, x.clamp(min=0).sum(0), rtol=1e-5, atol=1e-3
        )
        torch.testing.assert_close(stats.total[row].double() * STEP, x.sum(0), rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(
            stats.max[row].double().clamp(min=0), x.amax(0).clamp(min=0), rtol=1e-4, atol=EPS
        )
        assert (stats.min[row] > 0).all()


def sae_codes(sae, x):
    """(dense codes, those that surely fire, those that may), by a full sort in float64."""
    pre = (x.double() - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
    falling = pre.sort(1, descending=True).values
    kth, next_one = falling[:, K - 1 : K], falling[:, K : K + 1]
    codes = torch.where((pre >= kth) & (pre > 0), pre, 0.0)
    return codes, (pre > EPS) & (pre > next_one + EPS), (pre > -EPS) & (pre > kth - EPS)


def check_sae(stats, sae, vectors, corpus):
    for row, label in enumerate(stats.labels):
        examples = [x for position, x in vectors.items() if corpus.of[position] == label]
        codes, surely, maybe = sae_codes(sae, torch.cat(examples))
        assert stats.tokens[row] == len(codes) and stats.examples[row] == len(examples)
        assert ((surely.sum(0) <= stats.fired[row]) & (stats.fired[row] <= maybe.sum(0))).all()
        clear = (surely == maybe).all(0)  # units of which no token is in doubt
        assert clear.sum() > WIDTH // 2
        torch.testing.assert_close(
            (stats.sum[row].double() * STEP)[clear], codes.sum(0)[clear], rtol=1e-5, atol=1e-3
        )
        peak = stats.max[row].clamp(min=0)[clear].double()
        torch.testing.assert_close(peak, codes.amax(0)[clear], rtol=1e-4, atol=EPS)
        lowest = torch.where(codes > 0, codes, torch.inf).amin(0)[clear]
        torch.testing.assert_close(stats.min[row][clear].double(), lowest, rtol=1e-4, atol=EPS)


def test_sae_statistics_are_those_counted_one_example_at_a_time(whole, vectors, plan):
    stats = Stats.load(whole / "wide.safetensors")
    check_sae(stats, DICTIONARIES[0], vectors["mlp_out@0"], plan.corpus)
    assert "total" not in stats.tensors and torch.equal(stats.total, stats.sum)


def test_tokens_of_outlier_norm_are_left_out_of_an_sae_only(tmp_path, vectors, plan, tiny_lm):
    norms = torch.cat(list(vectors["mlp_out@0"].values())).norm(dim=1).sort().values
    at = len(norms) * 3 // 4 + int((norms.diff()[len(norms) * 3 // 4 :]).argmax())
    limit = float((norms[at] + norms[at + 1]) / 2)  # in the widest gap of the upper quarter
    sae = random_sae(max_norm=limit)
    collect(tiny_lm, plan, [sae, Identity("mlp_out@0", 32)], tmp_path)
    stats, neurons = (
        Stats.load(tmp_path / "wide.safetensors"),
        Stats.load(tmp_path / "mlp_out@0.safetensors"),
    )
    kept = {position: x[x.norm(dim=1) <= limit] for position, x in vectors["mlp_out@0"].items()}
    assert 0 < stats.tokens.sum() == at + 1 < len(norms)
    assert neurons.tokens.sum() == len(norms)
    check_sae(stats, sae, kept, plan.corpus)


def test_an_sae_that_leaves_every_token_out_counts_nothing(tmp_path, plan, tiny_lm):
    collect(
        tiny_lm, plan, [random_sae(max_norm=1e-6)], tmp_path, places={"bags": tmp_path / "bags"}
    )
    stats = Stats.load(tmp_path / "wide.safetensors")
    assert stats.tokens.sum() == 0 and stats.fired.sum() == 0
    assert stats.examples.sum() == len(plan.tokens)


def test_padding_and_special_tokens_are_never_counted(tmp_path, tiny_lm):
    texts = ["abc", "a", "zzzzzzzzzzzz q", "x</s>y<pad>z<s>"]
    corpus = load_corpus([(text, label) for label in ("a", "b") for text in texts])
    plan = make_plan(corpus, tiny_lm, split="all")
    stats = Stats.load(collect(tiny_lm, plan, [Identity("mlp_out@0", 32)], tmp_path)[0])
    visible = (
        sum(len(tiny_lm.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts[:3]) + 3
    )
    assert stats.tokens.tolist() == [visible, visible]
    assert stats.tokens.sum() == plan.total


def test_the_tokens_counted_are_those_that_were_planned(whole, plan):
    stats = Stats.load(whole / "wide.safetensors")
    planned = [
        sum(n for i, n in plan.counts.items() if plan.corpus.of[i] == label)
        for label in stats.labels
    ]
    assert stats.tokens.tolist() == planned
    assert stats.header["chosen"]["tokens"] == plan.total


def test_bags_summed_by_label_are_the_statistics(whole, plan):
    stats, table = Stats.load(whole / "wide.safetensors"), pq.read_table(whole / "bags/wide")
    rows = table.to_pydict()
    assert table.column_names == ["example", "label", "unit", "tokens", "sum", "min", "max"]
    found = Stats.zeros(stats.labels, WIDTH, signed=False)
    for example, label, unit, tokens, total, low, high in zip(*rows.values(), strict=True):
        assert plan.corpus.of[example] == label and example in plan.tokens
        cell = stats.labels.index(label), unit
        found.fired[cell] += tokens
        found.fired_examples[cell] += 1
        found.sum[cell] += round(total / STEP)
        found.min[cell] = min(found.min[cell], low)
        found.max[cell] = max(found.max[cell], high)
    for name in ("fired", "fired_examples", "sum", "min", "max"):
        assert torch.equal(getattr(found, name), getattr(stats, name)), name
    assert len({(e, u) for e, u in zip(rows["example"], rows["unit"], strict=True)}) == len(table)


def test_bags_of_a_window_without_examples_have_the_columns_of_the_others(
    tmp_path, tiny_corpus, tiny_lm
):
    plan = make_plan(tiny_corpus, tiny_lm, max_tokens=20)
    empty = [w for w in range(plan.window_count) if not plan.window(w)]
    assert empty
    collect(tiny_lm, plan, DICTIONARIES[:1], tmp_path, places={"bags": tmp_path / "bags"})
    schemas = {
        str(pq.read_schema(path).remove_metadata()) for path in (tmp_path / "bags/wide").iterdir()
    }
    assert len(schemas) == 1
    assert len(pq.read_table(tmp_path / f"bags/wide/window-{empty[0]:05d}.parquet")) == 0


@pytest.mark.parametrize("file", ["bags/wide/window-00000.parquet", "examples/wide.parquet"])
def test_tables_say_what_they_are_of(whole, plan, file):
    manifest = json.loads(pq.read_schema(whole / file).metadata[b"saefeat"])
    assert manifest == {"schema": 1, "dictionary": "wide", "labels": list(plan.corpus.labels)}


def test_progress_counts_the_tokens_of_the_windows_that_are_missing(tmp_path, plan, tiny_lm):
    lines = []
    stop = Interrupted(3)
    with pytest.raises(KeyboardInterrupt):
        collect(tiny_lm, plan, DICTIONARIES[:1], tmp_path, say=stop, checkpoint_seconds=0)
    collect(tiny_lm, plan, DICTIONARIES[:1], tmp_path, say=lines.append)
    assert windows_in(lines) == [3, 4, 5, 6, 7, 8]
    left = sum(plan.counts[i] for w in range(2, 8) for i in plan.window(w))
    counts = [line.split(": ")[1].split(" tokens")[0].split(" of ") for line in lines]
    assert {total for _, total in counts} == {f"{left:,}"}
    done = [int(n.replace(",", "")) for n, _ in counts]
    assert done == sorted(done) and done[-1] == left
    assert lines[-1].endswith(" 00:00 left, window 8")


def test_the_highest_activating_examples_are_those_of_the_bags(whole, plan):
    bags = pq.read_table(whole / "bags/wide").to_pydict()
    best = {}
    for example, unit, high in zip(bags["example"], bags["unit"], bags["max"], strict=True):
        best.setdefault(unit, []).append((-high, example))
    rows = pq.read_table(whole / "examples/wide.parquet").to_pylist()
    found = {}
    for row in rows:
        found.setdefault(row["unit"], []).append((-row["value"], row["position"]))
        assert row["place"] == len(found[row["unit"]]) - 1
        corpus, at = plan.corpus, row["position"]
        assert (row["id"], row["label"], row["text"]) == (
            corpus.ids[at],
            corpus.of[at],
            corpus.texts[at],
        )
    assert found == {unit: sorted(pairs)[:5] for unit, pairs in best.items()}


def test_histograms_are_of_the_tokens_that_the_statistics_count(tmp_path, whole, plan, tiny_lm):
    places = {"histograms": tmp_path / "apart"}
    with pytest.raises(KeyboardInterrupt):
        collect(
            tiny_lm,
            plan,
            DICTIONARIES,
            tmp_path / "o",
            places=places,
            say=Interrupted(4),
            checkpoint_seconds=0,
        )
    collect(tiny_lm, plan, DICTIONARIES, tmp_path / "o", places=places)
    assert [path.name for path in (tmp_path / "apart").iterdir()] == ["wide.safetensors"]
    found = Histograms.load(tmp_path / "apart/wide.safetensors")
    stats = Stats.load(whole / "wide.safetensors")
    assert found.header == stats.header
    assert found.tokens == stats.tokens.sum()
    assert torch.equal(found.counts.sum(1), stats.fired.sum(0))
    assert torch.equal(found.max, stats.max.amax(0))


def test_shards_of_histograms_merge_to_the_whole(tmp_path, plan, tiny_lm):
    outs = {name: tmp_path / name for name in ("whole", "0", "1")}
    for name, out in outs.items():
        shard = (0, 1) if name == "whole" else (int(name), 2)
        places = {"histograms": out / "histograms"}
        collect(tiny_lm, plan, DICTIONARIES, out, shard=shard, places=places)
    merge([outs["1"], outs["0"]], tmp_path / "merged")
    same(tmp_path / "merged", outs["whole"])


@pytest.fixture(scope="module")
def halves(tmp_path_factory, plan, tiny_lm):
    out = tmp_path_factory.mktemp("halves") / "whole"
    collect(tiny_lm, plan, DICTIONARIES, out, places={"halves": out / "halves"})
    return out


@pytest.mark.parametrize("d", DICTIONARIES, ids=lambda d: d.id)
def test_halves_are_the_statistics_of_the_examples_of_each_half(tmp_path, halves, plan, tiny_lm, d):
    """By the bags of single examples, in no order."""
    whole, half = Stats.load(halves / f"{d.id}.safetensors"), halves / f"halves/{d.id}.safetensors"
    parts = Halves.load(half).split(whole)
    wanted = [Stats.zeros(whole.labels, whole.width, signed=d.signed) for _ in range(2)]
    row = {label: k for k, label in enumerate(plan.corpus.labels)}
    windows = map(plan.window, range(plan.window_count))
    batches = chain.from_iterable(plan.batches(tiny_lm, window) for window in windows)
    for batch, observed in observe(tiny_lm, [d], batches, plan.corpus):
        bag = observed[d.id].bag
        for place, i in enumerate(batch.positions):
            alone = torch.arange(len(batch.positions)) == place
            length = observed[d.id].lengths[alone]
            half = hashed(0, "half", plan.corpus.ids[i]) % 2
            wanted[half].add_bag(bag.of(alone), torch.tensor([row[plan.corpus.of[i]]]), length)
    for found, expected in zip(parts, wanted, strict=True):
        assert min(expected.examples) > 5
        for name in whole.tensors.keys() - {"min", "max"}:
            assert torch.equal(found.tensors[name], expected.tensors[name])
    assert torch.equal(parts[0].max, wanted[0].max)


def test_halves_resume_and_merge_to_the_same_bytes(tmp_path, halves, plan, tiny_lm):
    out = tmp_path / "resumed"
    places = {"halves": out / "halves"}
    with pytest.raises(KeyboardInterrupt):
        killed = Interrupted(3)
        collect(tiny_lm, plan, DICTIONARIES, out, places=places, say=killed, checkpoint_seconds=0)
    collect(tiny_lm, plan, DICTIONARIES, out, places=places)
    same(out, halves)
    for i in range(2):
        part = tmp_path / str(i)
        collect(tiny_lm, plan, DICTIONARIES, part, shard=(i, 2), places={"halves": part / "halves"})
    merge([tmp_path / "1", tmp_path / "0"], tmp_path / "merged")
    same(tmp_path / "merged", halves)


class Odd(Accumulator):
    """A statistic as a contributor writes it: per label and unit, firing in every other example."""

    FIELDS: ClassVar = {
        "tokens": Field(("label", "unit"), "sum"),
        "last": Field(("label",), "max", torch.float32),
    }
    FOLDER = "odd"

    @classmethod
    def applies(cls, dictionary):
        return not dictionary.signed

    def add(self, observed):
        bag, labels = observed.bag, observed.labels
        odd = (observed.positions % 2).to(bag.tokens.device)
        bag.reduce_into(self.tensors["tokens"], bag.tokens * odd[bag.example], labels, "sum")
        last = observed.positions.to(labels.device).float()
        self.tensors["last"].scatter_reduce_(0, labels, last, "amax")


def test_a_new_statistic_is_one_class_and_one_line(tmp_path, whole, plan, tiny_lm, monkeypatch):
    monkeypatch.setitem(ACCUMULATORS._places, "odd", f"{__name__}:Odd")
    with pytest.raises(KeyboardInterrupt):
        collect(
            tiny_lm,
            plan,
            DICTIONARIES,
            tmp_path / "o",
            places={"bags": tmp_path / "o/bags"},
            say=Interrupted(4),
            checkpoint_seconds=0,
        )
    collect(tiny_lm, plan, DICTIONARIES, tmp_path / "o", places={"bags": tmp_path / "o/bags"})
    found = Odd.load(tmp_path / "o/odd/wide.safetensors")
    expected = torch.zeros(3, WIDTH, dtype=torch.int64)
    table = pq.read_table(whole / "bags/wide").to_pydict()
    columns = (table[name] for name in ("example", "label", "unit", "tokens"))
    for example, label, unit, tokens in zip(*columns, strict=True):
        expected[found.labels.index(label), unit] += tokens * (example % 2)
    assert torch.equal(found.tensors["tokens"], expected)
    of = plan.corpus.of
    last = [max(i for i in plan.tokens if of[i] == label) for label in found.labels]
    assert found.tensors["last"].tolist() == last
    merge(run_shards(tiny_lm, plan, 2, tmp_path), tmp_path / "m")
    same(tmp_path / "m", tmp_path / "o")


def test_an_unknown_statistic_is_a_user_error(tmp_path, plan, tiny_lm):
    with pytest.raises(UserError, match="unknown statistic 'x'; choose from counts, examples"):
        collect(tiny_lm, plan, DICTIONARIES, tmp_path / "o", places={"x": tmp_path})
    assert not (tmp_path / "o").exists()


# --------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    "dictionary", [random_sae(), random_sae(max_norm=5.0), Identity("mlp_out@0", 32)]
)
def test_activations_that_are_not_finite_fail_the_run(tmp_path, plan, make_lm, dictionary):
    lm = make_lm()
    with torch.no_grad():
        lm.model.model.layers[0].mlp.down_proj.weight[3] = torch.nan
    with pytest.raises(RunFailed, match="not a number"):
        collect(lm, plan, [dictionary], tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_two_dictionaries_of_one_id_are_a_user_error(tmp_path, plan, tiny_lm):
    with pytest.raises(UserError, match="two dictionaries are named mlp_out@0"):
        collect(tiny_lm, plan, [random_sae("mlp_out@0"), Identity("mlp_out@0", 32)], tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_out_with_statistics_of_something_else_is_a_user_error(
    tmp_path, whole, tiny_corpus, tiny_lm, make_lm, plan
):
    with pytest.raises(UserError, match="statistics of something else"):
        collect(make_lm("llama", 1), plan, DICTIONARIES, whole)
    with pytest.raises(UserError, match="statistics of something else"):
        collect(tiny_lm, plan, [random_sae(seed=1)], whole)
    with pytest.raises(UserError, match="statistics of something else"):
        collect(tiny_lm, make_plan(tiny_corpus, tiny_lm, seed=1), DICTIONARIES, whole)
    with pytest.raises(UserError, match="statistics of something else"):
        collect(tiny_lm, plan, DICTIONARIES, whole, shard=(0, 2))
    (tmp_path / "wide.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="not a readable"):
        collect(tiny_lm, plan, DICTIONARIES[:1], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        collect(tiny_lm, plan, DICTIONARIES[:1], tmp_path / "file")


def test_an_unfinished_collection_of_something_else_is_a_user_error(tmp_path, plan, tiny_lm):
    with pytest.raises(KeyboardInterrupt):
        collect(tiny_lm, plan, DICTIONARIES, tmp_path, say=Interrupted(2), checkpoint_seconds=0)
    with pytest.raises(UserError, match="the state of the collection of something else"):
        collect(tiny_lm, plan, DICTIONARIES[:2], tmp_path)


def test_a_gap_is_a_warning(tmp_path, plan, tiny_lm):
    shards = run_shards(tiny_lm, plan, 3, tmp_path)
    (warning,) = merge([shards[0], shards[2]], tmp_path / "m")
    assert warning == "3 of 8 windows are in no shard, the first is 1"
    assert Stats.load(tmp_path / "m/wide.safetensors").header["windows"] == [0, 2, 3, 5, 6]


def change_header(directory, name, **changes):
    tensors, header = load_tensors(directory / name)
    save_tensors(directory / name, tensors, {**header, **changes})


def test_what_cannot_be_merged_is_a_user_error(tmp_path, plan, tiny_lm):
    a, b = run_shards(tiny_lm, plan, 2, tmp_path)
    out = tmp_path / "m"

    def refused(message, *sources):
        with pytest.raises(UserError, match=message):
            merge(sources, out)
        assert not out.exists()

    refused("name at least one")
    refused("window 0 is counted in both", a, a)
    refused("holds no statistics", a, tmp_path)
    refused("holds no statistics", a, tmp_path / "none")
    (b / "partial").mkdir()
    refused("unfinished", a, b)
    (b / "partial").rmdir()
    change_header(b, "wide.safetensors", model={"name": "other"})
    refused("its model differs", a, b)
    (b / "wide.safetensors").unlink()
    refused("different dictionaries", a, b)
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is no empty directory"):
        merge([a], out)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("part", ["bags", "examples/wide.parquet"])
def test_shards_that_differ_in_what_they_hold_are_not_merged(tmp_path, plan, tiny_lm, part):
    shards = run_shards(tiny_lm, plan, 2, tmp_path)
    lost = shards[1] / part
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    with pytest.raises(UserError, match=f"{shards[1]} has no {part}, but {shards[0]} has"):
        merge(shards, tmp_path / "m")
    assert sorted(tmp_path.iterdir()) == shards
    lost = shards[0] / part
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    merge(shards, tmp_path / "m")
    assert not (tmp_path / "m" / part).exists()


@pytest.mark.parametrize(
    "place", ["saefeat.statistics.examples.TopExamples.save", "shutil.copytree", "os.rename"]
)
def test_a_merge_that_was_interrupted_leaves_nothing_and_can_be_run_again(
    tmp_path, whole, plan, tiny_lm, monkeypatch, place
):
    shards = run_shards(tiny_lm, plan, 2, tmp_path)

    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    (tmp_path / "m").mkdir()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, interrupt)
        merge(shards, tmp_path / "m")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "m", *shards] and not list(
        (tmp_path / "m").iterdir()
    )
    merge(shards, tmp_path / "m")
    same(tmp_path / "m", whole)
