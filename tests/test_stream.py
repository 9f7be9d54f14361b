"""Corpora that stay in a file give the same examples, splits, plans and bytes as lists do."""

from __future__ import annotations

import gzip
import hashlib
import json
import multiprocessing
import os
import string
from collections import Counter
from dataclasses import replace

import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, load_dataset
from helpers import refused, rows_of, trained_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saefeat import corpora
from saefeat.collection import collect
from saefeat.corpora import (
    chosen,
    corpus,
    extract,
    fetch,
    first_by_hash,
    in_hashed_order,
    load_corpus,
    make_batch,
    make_plan,
    reading,
    store,
)
from saefeat.corpora.chosen import Counts, Retokenized
from saefeat.corpora.columns import Columns
from saefeat.corpora.corpus import hashed
from saefeat.corpora.failures import StreamBroken
from saefeat.corpora.recipes import RECIPES
from saefeat.corpora.request import find_recipe
from saefeat.corpora.sources import Recipe
from saefeat.corpora.store import Strings
from saefeat.dictionaries import Identity
from saefeat.io import load_tensors, save_tensors
from saefeat.sae import chunks
from saefeat.statistics.merging import merge
from saefeat.world import World

GENEROUS = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEFEAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setattr(reading, "PAUSES", (0.01, 0.01))
    return tmp_path / "cache"


@pytest.fixture
def large(monkeypatch):
    """large(True): from now on every corpus is large, and every plan."""

    def switch(on):
        monkeypatch.setattr(store, "MANY", 2 if on else 10**9)
        monkeypatch.setattr(store, "_BATCH", 3)
        monkeypatch.setattr(corpus, "_CHECKED_ROWS", 2 if on else 256)
        monkeypatch.setattr(corpora, "_KEPT_TOKENS", 0 if on else 10**9)
        monkeypatch.setattr(corpora, "_SPARSE", 10**9)  # windows of positions

    return switch


def written(folder, rows, name="c.jsonl"):
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name).write_text(text)
    return folder / name


def both(large, data, **options):
    """A corpus in lists, and the same in a file."""
    large(False)
    small = load_corpus(data, **options)
    large(True)
    return small, load_corpus(data, **options)


def fingerprint_of(rows):
    return hashlib.sha256("".join(map(json.dumps, rows)).encode()).hexdigest()[:16]


def same_corpus(ours, theirs):
    assert rows_of(ours) == rows_of(theirs)
    assert ours.prompts == list(theirs.prompts)
    prompts = [ours.prompts] if any(ours.prompts) else []
    rows = zip(ours.texts, ours.of, ours.ids, *prompts, strict=True)
    assert ours.fingerprint == fingerprint_of(rows)
    for name in ("labels", "name", "skipped", "fingerprint"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.codes.tolist() == theirs.codes.tolist()
    for split in ("train", "test", "all"):
        assert ours.positions(split, 3) == theirs.positions(split, 3)


def same_plan(ours, theirs):
    for name in ("total", "policy", "skipped", "window_count"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert list(ours.counts.items()) == list(theirs.counts.items())
    assert list(ours.tokens.items()) == list(theirs.tokens.items())
    assert list(ours.prompts.items()) == list(theirs.prompts.items())
    assert ours.chosen.tolist() == theirs.chosen.tolist() == sorted(ours.tokens)
    assert ours.order is theirs.order is None or list(ours.order) == list(theirs.order)
    for number in range(ours.window_count):
        positions = ours.window(number)
        assert positions == theirs.window(number)
        numbers = [ours.counts[i] for i in positions]
        assert ours.numbers(positions).tolist() == theirs.numbers(positions).tolist() == numbers
    assert 10**6 not in theirs.tokens and 10**6 not in theirs.counts


TEXTS = st.sampled_from(["a cat", "Haus " * 9, " ", "", "\ufeffx", "nul\0l", "der Hund", None, 7])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.one_of(TEXTS, st.text(string.ascii_letters + " äß\u2028", max_size=12)),
            "label": st.sampled_from(["de", "en", "th ", "", None]),
            "id": st.one_of(st.none(), st.integers(0, 9)),
            "q": st.sampled_from([None, "", "the cat ", "der", "\ufeffwer?", "nul\0l", "mat " * 6]),
        }
    ),
    max_size=40,
)
PROMPT_COLUMNS = st.sampled_from([None, "q"])
FIRST = [  # one label has a prompt always, the others have those of further rows
    {"text": f"{label} {n}", "label": label, "id": None, "q": "wer" if label == "th" else None}
    for label in ["de", "en", "th"]
    for n in range(4)
]


# --------------------------------------------------------------------------- the same as lists


@GENEROUS
@given(ROWS, st.sampled_from([None, ["th", "de"], ["en", "deu"]]), PROMPT_COLUMNS)
def test_a_corpus_in_a_file_is_the_corpus_in_lists(tmp_path, large, rows, labels, prompts):
    path = written(tmp_path, FIRST + rows)
    options = {"labels": labels, "prompt_column": prompts}
    small, stored = both(large, path, **options)
    assert isinstance(small.texts, list) and isinstance(stored.texts, Strings)
    same_corpus(small, stored)
    same_corpus(small, load_corpus(path, **options))  # kept in the cache by now
    some = any(small.prompts)
    assert bool(small.prompts) is some and (some or not prompts or labels == ["en", "deu"])
    n = len(small)
    for column in ("texts", "of", "ids", *["prompts"] * some):
        ours, theirs = getattr(small, column), getattr(stored, column)
        assert ours == [theirs[i] for i in range(n)] == list(theirs)
        assert ours[2:-1] == theirs[2:-1] and ours[-1] == theirs[-1]
        with pytest.raises(IndexError):
            theirs[n]
    assert all(small.of.index(label) == stored.of.index(label) for label in small.labels)
    with pytest.raises(ValueError, match="xx"):
        stored.of.index("xx")


@GENEROUS
@given(
    ROWS,
    PROMPT_COLUMNS,
    st.one_of(st.none(), st.integers(1, 40)),
    st.booleans(),
    st.booleans(),
    st.integers(1, 7),
)
def test_a_plan_of_a_large_corpus_is_that_of_lists(
    tmp_path, large, tiny_lm, monkeypatch, rows, prompts, budget, mixed, count_bos, size
):
    monkeypatch.setattr(corpora, "WINDOW", 5)
    small, stored = both(large, written(tmp_path, FIRST + rows), prompt_column=prompts)
    options = {"split": "all", "max_tokens": budget, "mixed": mixed, "count_bos": count_bos}
    large(False)
    ours = make_plan(small, tiny_lm, token_limit=8, **options)
    large(True)
    monkeypatch.setattr(corpora, "_SLICE", size)
    monkeypatch.setattr(corpora, "_BLOCK", 2 * size)
    theirs = make_plan(stored, tiny_lm, token_limit=8, **options)
    assert isinstance(theirs.tokens, Retokenized) and isinstance(ours.tokens, dict)
    same_plan(ours, theirs)
    same_plan(ours, make_plan(stored, tiny_lm, token_limit=8, **options))  # kept by now
    assert isinstance(theirs.prompts, Counts) and bool(theirs.prompts) is (prompts is not None)
    pairs = [[*plan.batches(tiny_lm, plan.window(0))] for plan in (ours, theirs)]
    for one, other in zip(*pairs, strict=True):
        assert one.positions == other.positions
        assert one.input_ids.equal(other.input_ids) and one.counted.equal(other.counted)


@GENEROUS
@given(ROWS, st.integers(0, 5), st.integers(0, 3))
def test_orders_by_hash_are_those_of_sorting_one_by_one(tmp_path, large, rows, seed, n):
    small, stored = both(large, written(tmp_path, FIRST + rows))
    order = sorted(range(len(small)), key=lambda i: (hashed(seed, "budget", small.ids[i]), i))
    taken, first = Counter(), []
    for i in order:
        taken[small.of[i]] += 1
        first += [i] * (taken[small.of[i]] <= n)
    for one in (small, stored):
        assert in_hashed_order(one, range(len(one)), seed) == order
        assert first_by_hash(one, list(range(len(one))), seed, n) == sorted(first)
        test = [i for i in order if one.is_test(i, seed)]
        assert one.positions("test", seed) == sorted(test)
        assert in_hashed_order(one, order[:1], seed) == order[:1]


def test_labels_that_stand_for_one_another_are_renamed_in_a_file_too(tmp_path, large):
    rows = [{"text": f"{n}", "label": of} for n in range(9) for of in ("deu_Latn", "eng", "fra")]
    small, stored = both(large, written(tmp_path, rows), labels=["en", "de"])
    same_corpus(small, stored)
    assert set(stored.of) == {"en", "de"} and len(stored) == 18
    renamed = replace(stored, of=["x"] * 18, labels=("x",))
    assert renamed.fingerprint == replace(small, of=["x"] * 18, labels=("x",)).fingerprint
    assert renamed.fingerprint != stored.fingerprint


def test_pairs_and_tables_may_be_large_too(large, own_cache):
    pairs = [(f"text {n}", "ab"[n % 2]) for n in range(20)]
    for data in (pairs, pd.DataFrame(pairs, columns=["text", "label"])):
        small, stored = both(large, data)
        same_corpus(small, stored)
        assert len(list(own_cache.rglob("rows.arrow"))) == 1
        del stored
    assert not list(own_cache.rglob("rows.arrow"))  # it lasts as long as the corpus


# --------------------------------------------------------------------------- collections


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "WINDOW", 8)
    words = ["cat", "dog", "Haus", "Katze", "sat", "ran", "mat", "the", "der", "die"]
    rows = [
        {
            "text": " ".join(words[(n * k) % 10] for k in range(1, 3 + n % 7)),
            "label": "ab"[n % 2],
            "q": " ".join(words[n % 10 :][: n % 5]),
        }
        for n in range(90)
    ]
    return written(tmp_path, rows)


def neurons():
    return [Identity("mlp_act@0", 48), Identity("mlp_out@1", 32)]


def files(out):
    return {name: data for name, data in trained_files(out).items() if not name.startswith(".")}


def shards_merged(tmp_path, gather):
    """Files of three shards, each made by gather(NAME, shard=(i, 3)), that were merged."""
    for i in range(3):
        gather(f"shard{i}", shard=(i, 3))
    merge([tmp_path / f"shard{i}" for i in (2, 0, 1)], tmp_path / "merged")
    return files(tmp_path / "merged")


@pytest.mark.parametrize("prompts", [None, "q"])
def test_shards_of_a_sparse_plan_merge_to_the_whole(
    tmp_path, large, tiny_lm, texts, monkeypatch, prompts
):
    def gather(name, **options):
        places = {kind: tmp_path / name / kind for kind in ("bags", "halves", "responses")}
        collect(tiny_lm, plan, neurons(), tmp_path / name, places=places, **options)
        return files(tmp_path / name)

    large(True)
    monkeypatch.setattr(corpora, "_SPARSE", 1.5)
    plan = make_plan(load_corpus(texts, prompt_column=prompts), tiny_lm, max_tokens=180)
    assert "windows" in plan.policy and plan.window_count > 3
    whole = gather("whole")
    assert shards_merged(tmp_path, gather) == {
        name: data for name, data in whole.items() if name != "run.json"
    }


@pytest.mark.parametrize(("budget", "prompts"), [(None, None), (60, None), (None, "q"), (60, "q")])
def test_whole_and_sharded_collections_of_a_large_corpus_write_the_bytes_of_lists(
    tmp_path, large, tiny_lm, texts, budget, prompts
):
    def gather(name, on, say=lambda line: None, **options):
        large(on)
        corpus = load_corpus(texts, prompt_column=prompts)
        plan = make_plan(corpus, tiny_lm, max_tokens=budget)
        assert isinstance(plan.tokens, Retokenized) is on
        assert bool(plan.prompts) is (prompts is not None)
        out = tmp_path / name
        places = {kind: out / kind for kind in ("bags", "halves", "responses")}
        collect(tiny_lm, plan, neurons(), out, places=places, say=say, **options)
        return files(out)

    small = gather("small", False)
    assert len(small) > 4
    assert gather("large", True) == small
    merged = shards_merged(tmp_path, lambda name, **options: gather(name, True, **options))
    assert {name: merged[name] for name in small if name in merged} == {
        name: small[name] for name in small if name in merged
    }
    assert {"mlp_act@0.safetensors", "mlp_out@1.safetensors"} <= merged.keys()


def sparse_plan(monkeypatch, texts, lm):
    """A plan of few examples of a large corpus; `large` is on."""
    monkeypatch.setattr(corpora, "_SPARSE", 1.5)
    return make_plan(load_corpus(texts), lm, max_tokens=180)


def test_windows_of_a_sparse_plan_are_cut_from_the_chosen_examples(
    large, tiny_lm, texts, monkeypatch
):
    large(True)
    plan = sparse_plan(monkeypatch, texts, tiny_lm)
    chosen = plan.chosen.tolist()
    assert 32 < len(chosen) < 60 and plan.window_count == -(-len(chosen) // 8)
    windows = [plan.window(number) for number in range(plan.window_count)]
    assert windows == [chosen[i : i + 8] for i in range(0, len(chosen), 8)]
    kept = sparse_plan(monkeypatch, texts, tiny_lm)  # from the cache
    assert isinstance(kept.counts, Counts) and list(kept.order) == chosen
    assert kept.policy == plan.policy and plan.policy["windows"] == "of chosen examples"
    dense = make_plan(plan.corpus, tiny_lm)
    assert dense.order is None and "windows" not in dense.policy
    assert list(make_plan(plan.corpus, tiny_lm, max_tokens=180, mixed=True).order) != chosen
    large(False)
    monkeypatch.setattr(corpora, "_SPARSE", 1.5)
    small = make_plan(
        load_corpus(texts.rename(texts.with_name("d.jsonl"))), tiny_lm, max_tokens=180
    )
    assert small.order is None and small.chosen.tolist() == chosen and small.window_count == 12


def test_statistics_of_windows_of_both_kinds_are_not_merged(
    tmp_path, large, tiny_lm, texts, monkeypatch
):
    large(True)
    collect(
        tiny_lm, sparse_plan(monkeypatch, texts, tiny_lm), neurons(), tmp_path / "a", shard=(0, 2)
    )
    monkeypatch.setattr(corpora, "_SPARSE", 10**9)
    plan = make_plan(load_corpus(texts), tiny_lm, max_tokens=180)
    collect(tiny_lm, plan, neurons(), tmp_path / "b", shard=(1, 2))
    with refused("cannot merge, its policy differs"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    with refused("statistics of something else", "out"):
        collect(tiny_lm, plan, neurons(), tmp_path / "a", shard=(0, 2))


@pytest.mark.parametrize("sparse", [False, True])
def test_a_large_collection_that_was_stopped_resumes_to_the_same_bytes(
    tmp_path, large, tiny_lm, texts, every_line, monkeypatch, sparse
):
    class Stop(Exception):
        pass

    def say(line):
        if "window 4" in line:
            raise Stop

    def make():
        if sparse:
            return sparse_plan(monkeypatch, texts, tiny_lm)
        return make_plan(load_corpus(texts), tiny_lm)

    large(True)
    plan = make()
    assert ("windows" in plan.policy) is sparse and plan.window_count > 4
    collect(tiny_lm, plan, neurons(), tmp_path / "whole")
    with pytest.raises(Stop):
        collect(tiny_lm, plan, neurons(), tmp_path / "o", say=say, checkpoint_seconds=0)
    assert not list((tmp_path / "o").glob("*.safetensors"))
    again = make()
    lines = []
    collect(tiny_lm, again, neurons(), tmp_path / "o", say=lines.append, checkpoint_seconds=0)
    assert not any("window 2" in line for line in lines)
    assert files(tmp_path / "o") == files(tmp_path / "whole")


# --------------------------------------------------------------------------- ranks


def batches_of_tokens(lm, plan, positions):
    """The batches of a chunk, made from the token ids of all its texts."""
    for start in range(0, len(positions), 8):
        rows = sorted((len(plan.tokens[i]), i, plan.tokens[i]) for i in positions[start:][:8])
        while rows:
            n = 1
            while n < len(rows) and (n + 1) * (rows[n][0] + len(lm.prefix + lm.suffix)) <= 24:
                n += 1
            (_, batch, tokens), rows = zip(*rows[:n], strict=True), rows[n:]
            prompts = [plan.prompts.get(i, 0) for i in batch]
            yield make_batch(lm, [*batch], [*tokens], prompts=prompts)


@pytest.mark.parametrize("prompts", [None, "q"])
@pytest.mark.parametrize("on", [False, True])
def test_a_rank_tokenises_the_texts_of_its_own_batches_alone(
    large, tiny_lm, texts, monkeypatch, on, prompts
):
    monkeypatch.setattr(chunks, "WINDOW", 8)
    monkeypatch.setattr(corpora, "BATCH_TOKENS", 24)
    monkeypatch.setattr(chosen, "_TEXTS", 7)
    large(on)
    corpus = load_corpus(texts, prompt_column=prompts)
    plan = make_plan(corpus, tiny_lm, mixed=True, token_limit=6)
    chunk, site = chunks.single_chunk(plan), tiny_lm.site("mlp_out@0")
    expected = list(batches_of_tokens(tiny_lm, plan, list(chunk.positions)))
    whole = chunks.fill(tiny_lm, plan, [site], chunk)[site.name]
    assert isinstance(plan.tokens, Retokenized) is on
    assert len(expected) > 20 and len(whole) == plan.total == chunk.tokens
    read = []
    if on:
        real = plan.tokens.tokenize
        plan.tokens.tokenize = lambda positions: read.extend(positions) or real(positions)
    for world in (World(rank, size) for size in (1, 2, 3) for rank in range(size)):
        read.clear()
        (own,) = chunks.batches_by_chunk(tiny_lm, plan, [chunk], world)
        mine = expected[world.rank :: world.size]
        assert read == [i for batch in mine for i in batch.positions] * on
        for one, other in zip(own, mine, strict=True):
            assert one.positions == other.positions
            for name in ("input_ids", "attention_mask", "counted"):
                assert getattr(one, name).equal(getattr(other, name))
        part = chunks.read_chunk(tiny_lm, plan, [site], chunk, world, batches=own)
        places = part.places[world.rank] if part.places else slice(None)
        assert part.buffers[site.name].equal(whole[places])
    read.clear()
    labels = chunks.vector_labels(tiny_lm, plan, chunk)
    rows = [(i, n) for b in expected for i, n in zip(b.positions, b.counted.sum(1), strict=True)]
    assert labels.tolist() == [corpus.codes[i] for i, n in rows for _ in range(n)] and not read


def test_a_kept_plan_without_row_lengths_is_made_again(
    large, tiny_lm, texts, own_cache, monkeypatch
):
    large(True)
    plan = make_plan(load_corpus(texts), tiny_lm)
    (path,) = own_cache.rglob("choice.safetensors")
    whole = path.read_bytes()
    kept, header = load_tensors(path)
    del kept["row_lengths"]  # as older versions kept it
    save_tensors(path, kept, header)
    assert path.read_bytes() != whole
    same_plan(plan, make_plan(load_corpus(texts), tiny_lm))
    assert path.read_bytes() == whole


def test_a_plan_of_a_large_corpus_is_made_once(tmp_path, large, tiny_lm, texts, monkeypatch):
    large(True)
    stored = load_corpus(texts)
    options = [{"max_tokens": 60}, {"mixed": True}, {"split": "test"}, {"count_bos": True}]
    made = [make_plan(stored, tiny_lm, **some) for some in options]
    large(False)  # small enough to keep its tokens, but kept in the cache all the same
    made.append(make_plan(stored, tiny_lm, seed=5))
    for plan, some in zip(made, [*options, {"seed": 5}], strict=True):
        with monkeypatch.context() as patch:
            patch.setattr(corpora, "fill_budget", None)
            same_plan(plan, make_plan(load_corpus(texts), tiny_lm, **some))
    other = replace(tiny_lm, suffix=[1])  # puts other tokens around a text
    assert make_plan(stored, other, seed=5).total == made[-1].total
    for kept in (tmp_path / "cache").rglob("choice.safetensors"):
        kept.write_bytes(kept.read_bytes()[:40])
    same_plan(made[0], make_plan(stored, tiny_lm, **options[0]))


def test_plans_of_texts_with_and_without_prompts_are_kept_apart(
    tmp_path, large, tiny_lm, texts, monkeypatch
):
    large(True)
    named = ({}, {"prompt_column": "q"})
    made = [make_plan(load_corpus(texts, **some), tiny_lm) for some in named]
    assert len(list((tmp_path / "cache").rglob("choice.safetensors"))) == 2
    assert not made[0].prompts and made[1].prompts
    assert all(made[1].corpus.prompts[i] for i in made[1].prompts)
    monkeypatch.setattr(corpora, "fill_budget", None)
    for plan, some in zip(made, named, strict=True):
        same_plan(plan, make_plan(load_corpus(texts, **some), tiny_lm))


# --------------------------------------------------------------------------- files


ROWS_OF_FILES = [(f"text {n} äß", "ab"[n % 2], f"i{n}") for n in range(40)]


def write_shard(path, rows):
    table = pd.DataFrame(rows, columns=["text", "label", "id"])
    if path.name.endswith(".parquet"):
        table.to_parquet(path)
    elif path.name.endswith(".csv"):
        table.to_csv(path, index=False)
    else:
        data = table.to_json(orient="records", lines=True).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize(
    "name", ["train-{:05d}-of-00004.parquet", "{}.jsonl", "part_{}.jsonl.gz", "{}.csv"]
)
def test_shards_in_a_folder_are_one_corpus(tmp_path, large, name, on):
    large(on)
    folder = tmp_path / "set"
    folder.mkdir()
    for n in range(4):
        write_shard(folder / name.format(n), ROWS_OF_FILES[10 * n : 10 * n + 10])
    (folder / "README.md").write_text("no data")
    assert rows_of(load_corpus(folder)) == ROWS_OF_FILES


def test_files_of_several_names_in_a_folder_are_no_shards(tmp_path):
    for name in ("train-0.jsonl", "test-0.jsonl"):
        write_shard(tmp_path / name, ROWS_OF_FILES)
    with refused("holds no LABEL.txt files; give one of its files, such as .*test-0.jsonl"):
        load_corpus(tmp_path)


def test_a_bad_line_of_a_later_shard_is_an_error_with_its_number(tmp_path, large, own_cache):
    large(True)
    for n in range(2):
        write_shard(tmp_path / f"{n}.jsonl", ROWS_OF_FILES)
    with (tmp_path / "1.jsonl").open("a") as file:
        file.write("{\n")
    with refused(r"1\.jsonl: line 41 is not JSON"):
        load_corpus(tmp_path)
    assert not [p for p in own_cache.rglob("*") if p.is_file()]


def test_prompts_that_are_no_strings_or_missing_are_refused_at_any_size(tmp_path, large, own_cache):
    large(True)
    path = written(tmp_path, [*FIRST, {"text": "x", "label": "de", "q": 5}])
    with refused("a prompt is a value of type int", "prompt_column"):
        load_corpus(path, prompt_column="q")
    with refused("no column p", "prompt_column"):
        load_corpus(path, prompt_column="p")
    with refused("has no column of prompts", "prompt_column"):
        load_corpus([(f"text {n}", "ab"[n % 2]) for n in range(20)], prompt_column="q")
    assert not [p for p in own_cache.rglob("*") if p.is_file()]


def test_a_large_corpus_is_read_once_until_its_files_change(tmp_path, large, monkeypatch):
    large(True)
    path = written(tmp_path, FIRST)
    first = load_corpus(path)
    read = []
    monkeypatch.setattr(
        corpus, "_read", lambda *given, real=corpus._read: read.append(1) or real(*given)
    )
    assert load_corpus(path).fingerprint == first.fingerprint and not read
    assert rows_of(load_corpus(path, labels=["de", "en"])) == rows_of(first)[:8]
    read.clear()
    written(tmp_path, FIRST[::-1])
    os.utime(path, ns=(1, 1))
    assert rows_of(load_corpus(path)) == rows_of(first)[::-1] and read == [1]


@pytest.mark.parametrize("name", ["rows.arrow", "notes.json"])
def test_a_damaged_file_of_the_cache_is_made_again(tmp_path, large, own_cache, name):
    large(True)
    path = written(tmp_path, FIRST)
    first = rows_of(load_corpus(path))
    (kept,) = own_cache.rglob(name)
    kept.write_bytes(kept.read_bytes()[:20])
    assert rows_of(load_corpus(path)) == first


def test_processes_that_convert_one_corpus_at_once_wait_for_the_first(tmp_path, large, own_cache):
    large(True)
    path = written(tmp_path, FIRST * 50)
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    workers = [
        fork.Process(target=lambda: results.put(load_corpus(path).fingerprint)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert found == [load_corpus(path).fingerprint] * 4
    assert len(list(own_cache.rglob("rows.arrow"))) == 1


def test_a_line_over_several_blocks_and_a_character_over_two_are_read(tmp_path, monkeypatch):
    from saefeat.corpora import text

    monkeypatch.setattr(text, "_BLOCK", 7)
    rows = [{"text": "äöü€" * 30, "label": "a"}, {"text": "x", "label": "b"}]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows))
    assert load_corpus(path).texts == ["äöü€" * 30, "x"]
    path.write_bytes(path.read_bytes() + b'{"text": "\xff"}\n')
    with refused(r"c.jsonl is not UTF-8 text \(line 3\); convert it to UTF-8"):
        load_corpus(path)
    path.write_bytes(path.read_bytes()[:-2] + "€".encode()[:2])
    with refused(r"is not UTF-8 text \(line 3\)"):
        load_corpus(path)


# --------------------------------------------------------------------------- streams that break


def breaking(stream, at, times):
    """The stream, in which reading a row raises an error of the network, so many times."""
    left = dict.fromkeys(at, times)

    def look(row):
        if left.get(row["n"], 0):
            left[row["n"]] -= 1
            raise ConnectionError("the connection was lost")
        return row

    return stream.map(look)


@pytest.fixture
def stream(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    for shard in range(3):
        numbers = range(50 * shard, 50 * shard + 50)
        Dataset.from_dict({"n": numbers, "text": [str(n) for n in numbers]}).to_parquet(
            folder / f"train-{shard}.parquet"
        )
    return load_dataset(str(folder), split="train", streaming=True)


@pytest.mark.parametrize("noted", [1, 7, 1000])
def test_a_stream_that_breaks_goes_on_at_its_position(stream, monkeypatch, noted):
    monkeypatch.setattr(reading, "_STATE_ROWS", noted)
    broken = breaking(stream, [1, 49, 50, 77, 149], 2)
    assert [row["n"] for row in reading._resuming(broken)] == list(range(150))


def test_a_stream_that_stays_broken_ends_after_some_attempts(stream):
    rows = reading._resuming(breaking(stream, [77], 3))
    with pytest.raises(StreamBroken):
        list(rows)
    with pytest.raises(ConnectionError):  # nothing was read: the caller starts anew
        list(reading._resuming(breaking(stream, [0], 1)))
    with pytest.raises(pa.ArrowInvalid):  # no error of the network
        list(reading._resuming(stream.map(lambda row: pa.array(["x"]).cast(pa.int32()))))


@pytest.mark.parametrize("named", [None, ["a", "b"]])
def test_a_data_set_of_the_hub_that_breaks_is_read_whole_at_any_size(
    tmp_path, large, monkeypatch, own_cache, named
):
    for n in range(3):
        shard = tmp_path / f"set/train-{n:05d}-of-00003.parquet"
        shard.parent.mkdir(exist_ok=True)
        write_shard(shard, ROWS_OF_FILES[14 * n : 14 * n + 14])
    (tmp_path / "set/README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    source = replace(
        find_recipe("hub:a/b", Columns()).recipe.sources[0], at=str(tmp_path / "set"), max_texts=9
    )
    monkeypatch.setitem(RECIPES, "here", Recipe("here", "", "", (source,)))
    monkeypatch.setattr(extract, "_MAX_ROWS", 30)
    monkeypatch.setattr(fetch, "_BATCH", 4)
    real, failures = reading._resuming, []

    def resuming(stream):
        def look(row):
            if row["id"] in ("i5", "i20", "i33") and row["id"] not in failures:
                failures.append(row["id"])
                raise ConnectionError("the connection was lost")
            return row

        return real(stream.map(look))

    monkeypatch.setattr(reading, "_resuming", resuming)
    large(True)
    assert rows_of(load_corpus("here#20", labels=named)) == ROWS_OF_FILES
    assert failures == ["i5", "i20", "i33"]
    large(False)
    assert rows_of(load_corpus("here#20", labels=named)) == ROWS_OF_FILES
    if named is None:  # a limit that nobody has chosen may take very long
        with refused("has more than 30 rows; name the labels", "labels"):
            load_corpus("here")


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A corpus `remote` of shards, whose stream breaks at the rows in `remote` as often as it says.

    The rows are read by `datasets` as those of the hub are.
    """
    words, left = ["the cat sat", "der Hund", "Katze ran", "on the mat"], {}
    for shard in range(3):
        numbers = range(50 * shard, 50 * shard + 50)
        texts = [" ".join(words[(n * k) % 4] for k in range(1, 6 + n % 9)) for n in numbers]
        rows = [(text, "ab"[n % 2], f"i{n}") for n, text in zip(numbers, texts, strict=True)]
        (tmp_path / "remote").mkdir(exist_ok=True)
        write_shard(tmp_path / f"remote/train-{shard:05d}-of-00003.parquet", rows)
    source = find_recipe("hub:a/b", Columns()).recipe.sources[0]
    source = replace(source, at=str(tmp_path / "remote"), labels={"a": "a", "b": "b"})
    monkeypatch.setitem(RECIPES, "remote", Recipe("remote", "", "", (source,)))
    real = reading._resuming

    def look(row):
        if left.get(row["id"], 0):
            left[row["id"]] -= 1
            raise ConnectionError("the connection was lost")
        return row

    monkeypatch.setattr(reading, "_resuming", lambda stream: real(stream.map(look)))
    return left


def test_training_and_collection_from_a_stream_that_breaks_write_the_same_files(
    tmp_path, monkeypatch, large, remote, saefeat, tiny_model_dir
):
    def run(name):
        monkeypatch.setenv("SAEFEAT_CACHE", str(tmp_path / f"cache-{name}"))
        of = ("--model", tiny_model_dir, "--corpus", "remote", "--out", tmp_path / name)
        sizes = ("--d-sae", 64, "--k", 4, "--batch-size", 64, "--chunk-tokens", 512)
        return saefeat("train", *of, "--sites", "mlp_out@0", *sizes), saefeat(
            "collect", *of[:-1], tmp_path / f"{name}-stats", "--neurons"
        )

    large(True)
    for name, breaks in {"whole": {}, "broken": {"i7": 1, "i60": 2, "i149": 2}}.items():
        remote.update(breaks)
        assert [code for code, *_ in run(name)] == [0, 0]
        assert not any(remote.values())
    for kind in ("", "-stats"):
        assert files(tmp_path / f"whole{kind}") == files(tmp_path / f"broken{kind}")
    remote["i60"] = 10**6
    for code, _, error in run("never"):
        assert code == 2 and "(the connection was lost); check the name, or run again" in error
    assert not list(tmp_path.glob("never*"))
    del remote["i60"]
    assert [code for code, *_ in run("never")] == [0, 0]
    assert files(tmp_path / "whole-stats") == files(tmp_path / "never-stats")
