"""Prompts: the model reads them before the texts, and their tokens count nowhere."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from helpers import contents, random_sae, refused

from saefeat.collection import collect
from saefeat.config import EvaluateConfig
from saefeat.corpora import Corpus, load_corpus, make_plan
from saefeat.corpora.random_tokens import random_plan
from saefeat.dictionaries import Identity
from saefeat.hooks import capture
from saefeat.resume import STATE
from saefeat.run import open_run, run
from saefeat.run.opened import other_corpus
from saefeat.sae.chunks import fill, single_chunk
from saefeat.sae.held_out import held_out_plan
from saefeat.statistics import Stats
from saefeat.statistics.merging import merge

ROWS = [
    {"text": " the cat sat", "label": "en", "q": "What did it do?"},
    {"text": " der Hund", "label": "de", "q": "Wer war es?"},
    {"text": " on the mat", "label": "en", "q": None},
    {"text": " in dem Haus", "label": "de", "q": "Wo war er?"},
]
PROMPTS = ["What did it do?", "Wer war es?", "", "Wo war er?"]


def written(path, rows):
    """A file of rows in the format of its name."""
    table = [{**row, "q": row["q"] or ""} for row in rows]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["q", "label", "text"])
            writer.writeheader()
            writer.writerows(table)
    else:
        lines = ["text\tlabel\tq", *("\t".join(row.values()) for row in table)]
        path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.tsv", "c.parquet"])
def test_files_have_prompts_where_their_column_is_named(tmp_path, name):
    path = written(tmp_path / name, ROWS)
    plain, prompted = load_corpus(path), load_corpus(path, prompt_column="q")
    assert (plain.prompts, prompted.prompts) == ([], PROMPTS)
    assert (plain.texts, plain.ids, plain.of) == (prompted.texts, prompted.ids, prompted.of)
    assert plain.fingerprint != prompted.fingerprint
    # Without prompts it is what it was before there were any.
    rows = zip(plain.texts, plain.of, plain.ids, strict=True)
    digest = hashlib.sha256("".join(json.dumps(row) for row in rows).encode())
    assert plain.fingerprint == digest.hexdigest()[:16]


def test_python_objects_have_prompts_where_their_column_is_named():
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    for data in (ROWS, columns, pd.DataFrame(ROWS)):
        assert load_corpus(data, prompt_column="q").prompts == PROMPTS
        assert load_corpus(data).prompts == []
    nested = [{**row, "meta": {"q": row["q"]}} for row in ROWS]
    assert load_corpus(nested, prompt_column="meta.q").prompts == PROMPTS


def test_a_column_that_is_called_prompt_is_no_prompt_unless_it_is_named():
    rows = [{**row, "prompt": "x"} for row in ROWS]
    assert load_corpus(rows).fingerprint == load_corpus(ROWS).fingerprint
    assert load_corpus(rows, prompt_column="prompt").prompts == ["x"] * 4
    empty = [{**row, "q": ""} for row in ROWS]
    assert load_corpus(empty, prompt_column="q").fingerprint == load_corpus(ROWS).fingerprint


def test_what_has_no_prompts_is_refused(tmp_path):
    (tmp_path / "texts").mkdir()
    for label in ("de", "en"):
        (tmp_path / "texts" / f"{label}.txt").write_text("a text\n")
    for data in ("embedded:eld", str(tmp_path / "texts"), [("a", "de"), ("b", "en")], "xnli"):
        with refused("has no column of prompts", "prompt_column"):
            load_corpus(data, prompt_column="q")
    for data in (written(tmp_path / "c.csv", ROWS), ROWS, pd.DataFrame(ROWS)):
        with refused("no column question", "prompt_column"):
            load_corpus(data, prompt_column="question")
    with refused("a prompt is a value of type list", "prompt_column"):
        load_corpus([{**row, "q": ["What?"]} for row in ROWS], prompt_column="q")


# --------------------------------------------------------------------------- which tokens count


def test_a_token_with_characters_of_both_belongs_to_the_text(tiny_lm, smollm):
    for lm in (tiny_lm, smollm):
        prompts, texts = ["the ", "the", "the", "", "the cat"], ["cat", " cat", "", "the", "\n cat"]
        rows, lengths = lm.tokenize_prompted(prompts, texts, 100)
        pieces = [[lm.tokenizer.decode([token]) for token in row] for row in rows]
        assert pieces[0] == pieces[1] and pieces[0][-1] == " cat"
        assert lengths[:4] == [len(rows[0]) - 1, len(rows[1]) - 1, len(rows[2]), 0]
        assert "".join(pieces[4][: lengths[4]]) == "the cat"
        # Characters that are several tokens are not cut.
        rows, lengths = lm.tokenize_prompted(["ไทย"], ["ไทย"], 100)
        assert lm.tokenizer.decode(rows[0][: lengths[0]]) == "ไทย"
        assert lm.tokenize_prompted(["the cat"], ["the"], 1) == ([rows_of(lm, "the")], [1])


def rows_of(lm, text):
    return lm.tokenize([text], 100)[0]


def test_a_slow_tokenizer_is_refused_where_there_are_prompts(make_lm, monkeypatch):
    lm = make_lm()
    monkeypatch.setattr(type(lm.tokenizer), "is_fast", False)
    assert lm.tokenize_prompted([""], ["the"], 9) == ([rows_of(lm, "the")], [0])
    with refused("is not a fast one", "prompt_column"):
        lm.tokenize_prompted(["the"], [" cat"], 9)


@pytest.fixture
def prompted(tiny_corpus):
    """The tiny corpus with a prompt before three of four texts, which begin with a space."""
    prompts = [("" if i % 4 == 0 else f"{'the cat and ' * (i % 5)}the dog:") for i in range(240)]
    return replace(tiny_corpus, prompts=prompts, texts=[f" {text}" for text in tiny_corpus.texts])


def test_budgets_and_the_token_limit_count_the_tokens_that_count(prompted, tiny_lm):
    plan = make_plan(prompted, tiny_lm, max_tokens=150, token_limit=40)
    assert plan.prompts and plan.skipped["cut at the token limit"]
    for i, row in plan.tokens.items():
        before = rows_of(tiny_lm, prompted.prompts[i])
        assert row[: plan.prompts.get(i, 0)] == before
        assert plan.counts[i] == len(row) - len(before) > 0
    for label in prompted.labels:
        counts = [n for i, n in plan.counts.items() if prompted.of[i] == label]
        assert 150 <= sum(counts) < 150 + max(counts)
    short = make_plan(prompted, tiny_lm, split="all", token_limit=12)
    for i, prompt in enumerate(prompted.prompts):
        if len(rows_of(tiny_lm, prompt)) >= 12:
            assert i not in short.tokens
    assert short.skipped["no tokens"] == len(prompted) - len(short.tokens) > 0
    lengths = sorted(len(row) - plan.prompts.get(i, 0) for i, row in plan.tokens.items())
    random = random_plan(tiny_lm, plan, 3)
    assert {len(row) for row in random.tokens.values()} == {lengths[(len(lengths) - 1) // 2]}


def test_training_reads_the_tokens_that_count(prompted, tiny_lm):
    plan = make_plan(prompted, tiny_lm, mixed=True)
    assert [plan.prompts.get(i, 0) > 0 for i in plan.tokens] == [
        bool(prompted.prompts[i]) for i in plan.tokens
    ]
    site = tiny_lm.site("mlp_out@0")
    for each in (plan, held_out_plan(tiny_lm, plan)):
        chunk = single_chunk(each)
        assert each.prompts
        assert len(fill(tiny_lm, each, [site], chunk)[site.name]) == chunk.tokens == each.total


def counted_by_hand(lm, corpus, path):
    """Label -> the vectors of a module on the tokens of the texts, one example at a time."""
    found = {label: [] for label in corpus.labels}
    with capture(lm.model, (path,)) as captured, torch.no_grad():
        for text, label, prompt in zip(corpus.texts, corpus.of, corpus.prompts, strict=True):
            ids = [*lm.prefix, *rows_of(lm, prompt + text)]
            start = len(lm.prefix) + len(rows_of(lm, prompt))
            seen = captured.run(lm.model, input_ids=torch.tensor([ids]), use_cache=False)
            found[label].append(seen[path][0, start:])
    return {label: torch.cat(parts) for label, parts in found.items()}


@pytest.mark.parametrize("count_bos", [False, True])
def test_counts_are_those_of_prompt_and_text_minus_those_of_the_prompt(
    prompted, tiny_lm, tmp_path, count_bos
):
    some = [i for i, prompt in enumerate(prompted.prompts) if prompt]
    whole = [prompted.prompts[i] + prompted.texts[i] for i in some]
    of, ids = [prompted.of[i] for i in some], [prompted.ids[i] for i in some]
    marked = [prompted.prompts[i] for i in some]
    both = Corpus(whole, of, ids, prompted.labels, "whole")
    first = Corpus(marked, of, ids, prompted.labels, "prompts")
    texts = [prompted.texts[i] for i in some]
    rest = Corpus(texts, of, ids, prompted.labels, "texts", prompts=marked)
    dictionaries = [Identity("mlp_act@1", 48), random_sae()]
    made = {}
    for corpus in (both, first, rest):
        plan = make_plan(corpus, tiny_lm, split="all", count_bos=count_bos)
        collect(tiny_lm, plan, dictionaries, tmp_path / corpus.name)
        made[corpus.name] = [
            Stats.load(tmp_path / corpus.name / f"{d.id}.safetensors") for d in dictionaries
        ]
    for full, before, found in zip(made["whole"], made["prompts"], made["texts"], strict=True):
        assert torch.equal(found.tokens, full.tokens - before.tokens)
        assert torch.equal(found.fired, full.fired - before.fired)
        assert torch.allclose(
            found.mean() * found.tokens[:, None],
            full.mean() * full.tokens[:, None] - before.mean() * before.tokens[:, None],
            atol=1e-2,
        )
    if not count_bos:
        by_hand = counted_by_hand(tiny_lm, rest, tiny_lm.site("mlp_act@1").path)
        for k, label in enumerate(rest.labels):
            found = made["texts"][0]
            assert torch.equal(found.fired[k], (by_hand[label] > 0).sum(0))
            assert int(found.tokens[k]) == len(by_hand[label])


def test_counts_of_a_real_model_are_those_of_the_texts_after_their_prompts(smollm, tmp_path):
    eld = load_corpus("embedded:eld", labels=["de", "en"])
    chosen = [i for label in eld.labels for i in eld.positions("all", 0) if eld.of[i] == label]
    chosen = chosen[:12] + chosen[-12:]
    words = [eld.texts[i].split(" ") for i in chosen]
    rows = [
        {"q": " ".join(each[:4]), "text": " " + " ".join(each[4:12]), "label": eld.of[i]}
        for i, each in zip(chosen, words, strict=True)
        if len(each) > 5
    ]
    corpus = load_corpus(rows, prompt_column="q")
    names = ["mlp_act@0", "mlp_act@3"]
    collect(
        smollm,
        make_plan(corpus, smollm, split="all"),
        [Identity(name, 1536) for name in names],
        tmp_path / "stats",
    )
    for name in names:
        by_hand = counted_by_hand(smollm, corpus, smollm.site(name).path)
        found = Stats.load(tmp_path / f"stats/{name}.safetensors")
        for k, label in enumerate(corpus.labels):
            x = by_hand[label]
            assert int(found.tokens[k]) == len(x) > 50
            # Sums in another order may change the sign of a value that is nearly 0.
            near = (x.abs() < 1e-5).sum(0)
            assert ((found.fired[k] - (x > 0).sum(0)).abs() <= near).all()
            assert near.float().mean() < 0.02
            assert torch.allclose(found.mean()[k], x.double().mean(0), atol=1e-4)


def test_shards_and_a_resumed_collection_are_the_whole(
    prompted, tiny_lm, tmp_path, small_windows, monkeypatch
):
    plan = make_plan(prompted, tiny_lm)
    dictionaries = [Identity("mlp_act@1", 48), random_sae()]
    collect(tiny_lm, plan, dictionaries, tmp_path / "whole")
    shards = [tmp_path / f"{i}" for i in range(3)]
    for i, out in enumerate(shards):
        collect(tiny_lm, make_plan(prompted, tiny_lm), dictionaries, out, shard=(i, 3))
    merge(shards, tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    batches, calls = type(plan).batches, []

    def stop(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return batches(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(plan), "batches", stop)
        collect(tiny_lm, plan, dictionaries, tmp_path / "resumed", checkpoint_seconds=0)
    assert (tmp_path / "resumed/partial" / STATE).exists()
    collect(tiny_lm, plan, dictionaries, tmp_path / "resumed")
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")
    with refused("holds statistics of something else", "out"):
        without = make_plan(replace(prompted, prompts=[]), tiny_lm)
        collect(tiny_lm, without, dictionaries, tmp_path / "whole")


def test_a_run_reads_prompts_and_opens_again(prompted, tmp_path, config, one_core):
    rows = zip(prompted.texts, prompted.of, prompted.ids, prompted.prompts, strict=True)
    names = ("text", "label", "id", "q")
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    asked = replace(config, corpus=str(path), prompt_column="q", eval_texts=3)
    run(asked, tmp_path / "run")
    opened = open_run(tmp_path / "run")
    assert opened.corpus.prompts == prompted.prompts and opened.plan.prompts
    stats = opened.files.load_stats("mlp_act@0")
    assert int(stats.tokens.sum()) == opened.plan.total
    bags = pd.read_parquet(tmp_path / "run/bags/sae-mlp_out@0")
    fired = opened.files.load_stats("sae-mlp_out@0").fired
    assert bags.tokens.sum() == int(fired.sum()) <= opened.training.k * opened.plan.total
    again = EvaluateConfig(corpus=str(path), prompt_column="q")
    assert other_corpus(opened, again) is None  # the run's own
