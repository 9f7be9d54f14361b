"""Corpora: all formats give the same examples, splits are stable, bad input is one sentence."""

from __future__ import annotations

import csv
import json
import random
import re
import time
from collections import Counter
from dataclasses import FrozenInstanceError
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import refused, rows_of

from saefeat.corpora import BATCH_TOKENS, TOKEN_LIMIT, Corpus, first_by_hash, load_corpus, make_plan
from saefeat.io import UserError

ROWS = [
    ("Guten Tag", "de", "1"),
    ('He said "no",\nand left', "en", "1"),
    ("zwei\u2028Zeilen\u0085hier", "de", "2"),
    ("tab\there", "en", "2"),
]


def write(path, rows=ROWS, columns=("text", "label", "id")):
    """Write rows in the format of the suffix."""
    if path.suffix == ".jsonl":
        lines = [
            json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(
            pa.table({name: [row[i] for row in rows] for i, name in enumerate(columns)}), path
        )
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([columns, *rows])
    return str(path)


def rows_for(suffix):
    """ROWS without line feeds for .tsv, where each line is a row."""
    return [(text.replace("\n", " "), *rest) for text, *rest in ROWS] if suffix == "tsv" else ROWS


# --------------------------------------------------------------------------- formats


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_every_format_reads_the_same_rows_with_quotes_newlines_tabs_and_odd_separators(
    tmp_path, suffix
):
    rows = rows_for(suffix)
    corpus = load_corpus(write(tmp_path / f"c.{suffix}", rows))
    assert rows_of(corpus) == rows
    assert corpus.labels == ("de", "en")
    assert corpus.skipped == ({"quoted in a .tsv": 2} if suffix == "tsv" else {})


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_columns_can_be_named(tmp_path, suffix):
    rows = rows_for(suffix)
    path = write(tmp_path / f"c.{suffix}", rows, columns=("sentence", "lang", "key"))
    assert (
        rows_of(load_corpus(path, text_column="sentence", label_column="lang", id_column="key"))
        == rows
    )


def test_a_directory_has_one_label_per_file_and_one_example_per_line(tmp_path):
    (tmp_path / "en.txt").write_bytes("one\r\ntwo\u2028and\u0085a half\n\nthree".encode())
    (tmp_path / "de.txt").write_bytes("\ufeffeins\n".encode())
    (tmp_path / "notes.md").write_text("no example")
    corpus = load_corpus(str(tmp_path))
    pairs = list(zip(corpus.texts, corpus.of, strict=True))
    assert pairs == [
        ("eins", "de"),
        ("one", "en"),
        ("two\u2028and\u0085a half", "en"),
        ("three", "en"),
    ]
    assert corpus.skipped == {"blank": 1}


def test_a_corpus_may_be_called_by_another_name(tmp_path):
    path = write(tmp_path / "c.jsonl")
    assert load_corpus(path).name == path
    assert load_corpus(path, name="mine").name == "mine"
    assert load_corpus([("a", "x"), ("b", "y")]).name == "python"
    with pytest.raises(UserError, match="the corpus mine has no label xx"):
        load_corpus(path, name="mine", labels=["de", "xx"])


def test_rows_of_a_large_file_are_counted_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("saefeat.progress.LINE_SECONDS", 0.0)
    path = write(tmp_path / "c.csv", [(f"text {i}", "xy"[i % 2], i) for i in range(2500)])
    lines = []
    load_corpus(path, say=lines.append)
    assert [line.partition(" rows")[0] for line in lines[:2]] == ["corpus: 256", "corpus: 512"]


def test_a_corpus_cannot_be_changed():
    corpus = load_corpus([("a", "x"), ("b", "y")])
    with pytest.raises(FrozenInstanceError):
        corpus.name = "other"


def test_only_the_files_of_the_labels_asked_for_are_read(tmp_path):
    for label in ("de", "en"):
        (tmp_path / f"{label}.txt").write_text("text\n")
    (tmp_path / "xx.txt").write_bytes(b"\xff\xfe")
    assert load_corpus(str(tmp_path), labels=["en", "de"]).labels == ("en", "de")


def test_the_embedded_corpus_has_sixty_labels_with_a_thousand_lines_each():
    corpus = load_corpus("embedded:eld")
    counts = Counter(corpus.of)
    assert len(counts) == 60
    assert set(counts.values()) == {1000}
    assert any("\u0085" in text for text in corpus.texts)  # `splitlines` would have cut it in two
    assert not any("\n" in text or "\t" in text for text in corpus.texts)


def test_only_the_named_labels_are_read_in_their_order(tmp_path):
    path = write(tmp_path / "c.jsonl", [*ROWS, ("ciao", "it", "9")])
    corpus = load_corpus(path, labels=["en", "de"])
    assert corpus.labels == ("en", "de")
    assert rows_of(corpus) == ROWS


def test_without_an_id_equal_texts_share_one(tmp_path):
    corpus = load_corpus(
        write(tmp_path / "c.csv", [("a", "x"), ("b", "x"), ("a", "y")], ("text", "label"))
    )
    assert corpus.ids[0] == corpus.ids[2] != corpus.ids[1]


def test_an_empty_id_counts_as_none(tmp_path):
    corpus = load_corpus(write(tmp_path / "c.csv", [("a", "x", ""), ("b", "y", "")]))
    assert corpus.ids[0] != corpus.ids[1]
    assert "" not in corpus.ids


# --------------------------------------------------------------------------- unusable rows


def test_unusable_rows_are_skipped_or_repaired_and_counted(tmp_path):
    path = tmp_path / "c.jsonl"
    rows = [
        {"text": "good", "label": "a"},
        {"text": " \u3000\t", "label": "a"},
        {"text": "", "label": "a"},
        {"text": None, "label": "a"},
        {"text": 7, "label": "b"},
        {"text": "N\0UL", "label": "b"},
        {"text": "lone \ud800 surrogate", "label": "b"},
        {"text": "\0\udfff", "label": "b"},
        {"text": "nobody's", "label": None},
        {"text": "nobody's", "label": " "},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    corpus = load_corpus(str(path))
    assert corpus.texts == ["good", "N UL", "lone   surrogate"]
    assert corpus.skipped == {
        "blank": 3,
        "mended: NUL or lone surrogate": 3,
        "no label": 2,
        "no text": 2,
    }


def test_skipped_rows_do_not_change_the_other_examples(tmp_path):
    seen = load_corpus(write(tmp_path / "c.jsonl", [ROWS[0], ("  ", "de", "7"), *ROWS[1:]]))
    assert rows_of(seen) == ROWS


def test_a_text_of_a_megabyte_is_cut_at_the_token_limit_and_counted(tiny_lm):
    corpus = load_corpus([("the cat " * 130_000, "a"), ("der Hund", "b")])
    start = time.thread_time()
    plan = make_plan(corpus, tiny_lm, split="all")
    assert time.thread_time() - start < 5
    assert len(plan.tokens[0]) == TOKEN_LIMIT
    assert len(plan.tokens[1]) < 10
    assert plan.skipped == {"cut at the token limit": 1}


def test_a_text_of_special_tokens_alone_is_left_out_and_counted(tiny_lm):
    corpus = load_corpus([("<s></s>", "a"), ("cat", "a"), ("Hund", "b")])
    plan = make_plan(corpus, tiny_lm, split="all")
    assert sorted(plan.tokens) == [1, 2]
    assert plan.skipped == {"no tokens": 1}


# --------------------------------------------------------------------------- splits


def parallel(n, labels=("a", "b", "c")):
    """n texts in each of the labels; translations share an id."""
    return Corpus(
        [f"{label} {i}" for i in range(n) for label in labels],
        [label for _ in range(n) for label in labels],
        [f"id-{i}" for i in range(n) for _ in labels],
        labels,
        "parallel",
    )


def test_translations_of_one_text_never_straddle_the_split():
    corpus = parallel(300)
    test = {corpus.ids[i] for i in corpus.positions("test", 0)}
    train = {corpus.ids[i] for i in corpus.positions("train", 0)}
    assert test
    assert train
    assert not test & train


def test_train_and_test_together_are_all_examples():
    corpus = parallel(100)
    both = corpus.positions("train", 3) + corpus.positions("test", 3)
    assert sorted(both) == corpus.positions("all", 3) == list(range(300))


def test_a_fifth_of_the_ids_is_in_the_test_split():
    corpus = parallel(5000, labels=("a",))
    assert len(corpus.positions("test", 0)) / 5000 == pytest.approx(0.2, abs=0.02)


def test_more_data_moves_no_example():
    small, large = parallel(50), parallel(400, labels=("z", "a", "b", "c"))
    where = {text: large.is_test(i, 0) for i, text in enumerate(large.texts)}
    assert [small.is_test(i, 0) for i in range(len(small))] == [where[text] for text in small.texts]


def test_another_seed_gives_another_split():
    corpus = parallel(300)
    assert corpus.positions("test", 0) != corpus.positions("test", 1)


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match="unknown split dev; use train, test or all"):
        parallel(3).positions("dev", 0)


# --------------------------------------------------------------------------- plans


def chosen_by_shard(plan, n):
    windows = range(plan.window_count)
    return [[i for w in windows if w % n == shard for i in plan.window(w)] for shard in range(n)]


@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_shards_are_disjoint_and_complete(tiny_plan, n):
    shards = chosen_by_shard(tiny_plan, n)
    assert sorted(i for shard in shards for i in shard) == sorted(tiny_plan.tokens)
    assert n < 20 or [] in shards  # more shards than windows: some have none


def test_a_window_holds_consecutive_examples_of_the_corpus(tiny_plan):
    assert tiny_plan.window_count == -(-240 // 32)
    for w in range(tiny_plan.window_count):
        assert all(32 * w <= i < 32 * (w + 1) for i in tiny_plan.window(w))


def test_batches_hold_every_example_once_and_do_not_split_it(tiny_plan, tiny_lm):
    seen = Counter()
    for w in range(tiny_plan.window_count):
        for batch in tiny_plan.batches(tiny_lm, tiny_plan.window(w)):
            for row, position in enumerate(batch.positions):
                seen[position] += 1
                kept = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
                assert kept == [0, *tiny_plan.tokens[position]]
                assert (
                    batch.input_ids[row][batch.counted[row]].tolist() == tiny_plan.tokens[position]
                )
    assert seen == Counter(tiny_plan.tokens.keys())


def test_no_batch_exceeds_the_budget_of_padded_tokens(tiny_lm):
    draw = random.Random(0)
    corpus = load_corpus([("x" * draw.randint(1, 200), draw.choice("ab")) for _ in range(300)])
    plan = make_plan(corpus, tiny_lm, split="all")
    batches = list(plan.batches(tiny_lm, plan.window(0)))
    assert len(batches) > 5
    assert all(batch.input_ids.numel() <= BATCH_TOKENS for batch in batches)


def test_special_tokens_inside_a_text_do_not_count(tiny_lm):
    plan = make_plan(load_corpus([("cat</s>dog", "a"), ("Hund", "b")]), tiny_lm, split="all")
    batch = next(iter(plan.batches(tiny_lm, [0])))
    assert 1 in batch.input_ids
    assert not batch.counted[batch.input_ids == 1].any()
    assert plan.counts[0] == int(batch.counted.sum()) == len(plan.tokens[0]) - 1


def chosen_rows(plan):
    return sorted((plan.corpus.ids[i], plan.corpus.of[i]) for i in plan.tokens)


def test_the_budget_takes_the_same_examples_whatever_the_order_of_the_rows(tiny_corpus, tiny_lm):
    order = torch.randperm(len(tiny_corpus), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = Corpus(
        *([getattr(tiny_corpus, name)[i] for i in order] for name in ("texts", "of", "ids")),
        tiny_corpus.labels,
        "shuffled",
    )
    plan = make_plan(tiny_corpus, tiny_lm, max_tokens=300)
    assert chosen_rows(plan) == chosen_rows(make_plan(shuffled, tiny_lm, max_tokens=300))
    assert len(plan.tokens) < 0.6 * len(make_plan(tiny_corpus, tiny_lm).tokens)


def test_the_budget_of_each_label_is_filled_and_exceeded_by_one_example_at_most(
    tiny_corpus, tiny_lm
):
    plan = make_plan(tiny_corpus, tiny_lm, max_tokens=300)
    for label in tiny_corpus.labels:
        counts = [n for i, n in plan.counts.items() if tiny_corpus.of[i] == label]
        assert 300 <= sum(counts) < 300 + max(counts)


def test_a_larger_budget_only_adds_examples(tiny_corpus, tiny_lm):
    small, large = (make_plan(tiny_corpus, tiny_lm, max_tokens=n) for n in (200, 400))
    assert small.tokens.keys() < large.tokens.keys()


def test_the_plan_of_a_split_takes_no_example_of_the_other(tiny_corpus, tiny_lm):
    for split in ("train", "test"):
        assert sorted(make_plan(tiny_corpus, tiny_lm, split=split).tokens) == tiny_corpus.positions(
            split, 0
        )


def test_a_mixed_plan_has_the_same_examples_in_another_order(tiny_corpus, tiny_lm, small_windows):
    plain = make_plan(tiny_corpus, tiny_lm)
    mixed = make_plan(tiny_corpus, tiny_lm, mixed=True)
    order = [i for w in range(mixed.window_count) for i in mixed.window(w)]
    assert sorted(order) == sorted(plain.tokens)
    assert order != sorted(order)
    assert len({tiny_corpus.of[i] for i in mixed.window(0)}) == 3


def test_first_by_hash_takes_at_most_n_texts_per_label(tiny_corpus):
    some = first_by_hash(tiny_corpus, tiny_corpus.positions("test", 0), 0, 5)
    assert Counter(tiny_corpus.of[i] for i in some) == {"de": 5, "en": 5, "th": 5}
    assert set(some) < set(first_by_hash(tiny_corpus, tiny_corpus.positions("test", 0), 0, 6))


def test_a_label_without_text_in_the_split_is_refused(tiny_lm):
    corpus = parallel(30, labels=("a", "b"))
    test = set(corpus.positions("test", 0))
    keep = [i for i in range(len(corpus)) if corpus.of[i] == "a" or i not in test]
    fewer = load_corpus([(corpus.texts[i], corpus.of[i], corpus.ids[i]) for i in keep])
    with refused("the label b of python has no usable text in the test split", "labels"):
        make_plan(fewer, tiny_lm, split="test")


# --------------------------------------------------------------------------- bad input

GOOD = b'{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n'
BAD_FILES = {
    "no text column": (
        "c.jsonl",
        b'{"txt": "a", "label": "x"}\n',
        "line 1: no column text; there are txt, label$",
        "text_column",
    ),
    "no label column": (
        "c.csv",
        b"text,lang\na,x\n",
        "no column label; there are text, lang$",
        "label_column",
    ),
    "column missing later": (
        "c.jsonl",
        GOOD + b'{"text": "c"}\n',
        "line 3: no column label",
        "label_column",
    ),
    "empty": ("c.jsonl", b"", "is empty"),
    "only a header": ("c.csv", b"text,label\n", "at least two labels"),
    "only blank lines": ("c.jsonl", b"\n\n", "at least two labels"),
    "truncated jsonl": ("c.jsonl", GOOD[:-9], "line 2 is not JSON"),
    "truncated csv": ("c.csv", b'text,label\na,x\n"open,y\n', "line 3 cannot be parsed"),
    "short csv row": ("c.csv", b"text,label\na,x\nb\n", "line 3 has another number of columns"),
    "short csv row of three": (
        "c.csv",
        b"text,label,id\na,x,1\nb,y\n",
        "line 3 has another number of columns",
    ),
    "long csv row": ("c.csv", b"text,label\na,x,z\nb,y\n", "line 2 has another number of columns"),
    "binary": ("c.jsonl", bytes(range(256)), "not UTF-8 text"),
    "half of UTF-16": (
        "c.csv",
        "text,label\nä,x\n".encode("utf-16")[:-1],
        "begins like UTF-16 text but is not",
    ),
    "UTF-16 without a mark": (
        "c.csv",
        "text,label\na,x\n".encode("utf-16-le"),
        "UTF-16 without a byte-order mark",
    ),
    "Latin-1": (
        "c.jsonl",
        GOOD + '{"text": "ä", "label": "x"}\n'.encode("latin-1"),
        r"not UTF-8 text \(line 3\)",
    ),
    "Latin-1 csv": ("c.csv", b"text,label\na,x\n\xe4,y\n", r"not UTF-8 text \(line 3\)"),
    "a list": ("c.jsonl", b'["a", "x"]\n', "line 1 is not a JSON object"),
    "nested too deeply": ("c.jsonl", b"[" * 100_000 + b"\n", "line 1 is not JSON"),
    "not parquet": ("c.parquet", b"PAR1 but not really", "not a readable Parquet file"),
    "unknown suffix": ("c.txt", GOOD, r"must end in \.jsonl, \.csv, \.tsv, \.parquet"),
    **{
        f"a label that is {value}": (
            "c.jsonl",
            GOOD + b'{"text": "c", "label": %s}\n' % value.encode(),
            "the label column label of .* holds numbers without names; name a column of strings$",
            "label_column",
        )
        for value in ("0", "1.5", "true")
    },
    **{
        f"labels of the type {kind}": (
            "c.jsonl",
            GOOD + b'{"text": "c", "label": %s}\n' % value.encode(),
            f"the label column label of .* holds values of type {kind}; name a column of strings$",
            "label_column",
        )
        for kind, value in {"list": '["en"]', "dict": "{}"}.items()
    },
    **{
        f"texts of the type {kind}": (
            "c.jsonl",
            GOOD + b'{"text": %s, "label": "z"}\n' % value.encode(),
            f"the label z of .* no usable text, but values of type {kind}; name a column of str",
            "text_column",
        )
        for kind, value in {"list": '["a"]', "dict": "{}", "int": "7"}.items()
    },
    "two label columns": (
        "c.csv",
        b"text,label,label\na,x,y\nb,y,x\n",
        "2 columns are called label; rename them",
    ),
    "two text columns": ("c.tsv", b"text\ttext\tlabel\na\tb\tx\n", "2 columns are called text"),
    "two id columns": ("c.csv", b"text,label,id,id\na,x,1,2\n", "2 columns are called id"),
    "one label": (
        "c.jsonl",
        b'{"text": "a", "label": "x"}\n',
        r"at least two labels with text \(found: x\)",
    ),
    "a label with blank text": (
        "c.jsonl",
        GOOD + b'{"text": " ", "label": "z"}\n',
        "the label z of .* no usable text",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_a_user_error_of_one_line(tmp_path, name):
    file, data, message, *options = BAD_FILES[name]
    path = tmp_path / file
    path.write_bytes(data)
    with refused(rf"(?=.*{re.escape(str(path))}).*{message}", *options):
        load_corpus(str(path))


@pytest.mark.parametrize("values", [[0, 1], [0.0, 1.0], [True, False], [None, 1]])
def test_numbers_as_labels_of_a_parquet_file_are_a_user_error(tmp_path, values):
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "label": values}), path)
    with pytest.raises(
        UserError, match=r"the label column label of .* holds numbers without names"
    ):
        load_corpus(str(path))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([b"x", b"y"], "bytes"),
        ([date(2020, 1, 1), date(2021, 1, 1)], "date"),
        ([["x"], []], "list"),
    ],
)
def test_labels_and_texts_of_a_parquet_file_have_to_be_strings(tmp_path, values, kind):
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "label": values}), path)
    with pytest.raises(
        UserError, match=rf"the label column label of .* holds values of type {kind}; name a col"
    ):
        load_corpus(path)
    pq.write_table(pa.table({"text": values, "label": ["x", "y"]}), path)
    with pytest.raises(
        UserError, match=rf"the label x of .* has no usable text, but values of type {kind}; name"
    ):
        load_corpus(path)


def test_two_columns_of_one_name_are_accepted_if_they_are_not_read(tmp_path):
    (tmp_path / "c.csv").write_text("text,label,note,note\na,x,1,2\nb,y,3,4\n")
    assert load_corpus(tmp_path / "c.csv").texts == ["a", "b"]


def test_a_parquet_file_of_datasets_has_the_names_of_its_class_labels(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    data = {"text": ["a", "b", "c", "d"], "label": [1, 0, None, -1]}
    Dataset.from_dict(data, features).to_parquet(tmp_path / "c.parquet")
    corpus = load_corpus(str(tmp_path / "c.parquet"))
    assert corpus.of == ["pos", "neg"]
    assert corpus.skipped == {"no label": 2}


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize(
    "values", ["01", ["0", " 1"], ["-1", ""], ["0.0", "1.0"], ["2019", "2020"]]
)
def test_labels_of_a_csv_that_are_all_numbers_are_refused(tmp_path, suffix, values):
    path = write(tmp_path / f"c.{suffix}", list(zip("ab", values, strict=True)), ("text", "label"))
    for labels in (None, ["0", "1"]):
        with pytest.raises(
            UserError,
            match=r"the label column label of .* holds numbers without names; name a column",
        ):
            load_corpus(path, labels=labels)


def test_a_number_among_names_in_a_csv_is_a_label(tmp_path):
    path = write(tmp_path / "c.csv", [("a", "0"), ("b", "1"), ("c", "none")], ("text", "label"))
    assert load_corpus(path).labels == ("0", "1", "none")
    assert load_corpus(path, labels=["0", "1"]).labels == ("0", "1")


@pytest.mark.parametrize("label", [0, 1.5, True, np.int64(2), float("nan")])
def test_numbers_as_labels_of_pairs_are_a_user_error(label):
    with pytest.raises(
        UserError, match=r"the second of each pair.* holds numbers without names; give strings"
    ):
        load_corpus([("a", "x"), ("b", "y"), ("c", label)])


def test_strings_of_digits_are_labels_in_formats_that_have_strings(tmp_path):
    rows = [("a", "0", "1"), ("b", "1", "2")]
    for source in (
        [row[:2] for row in rows],
        write(tmp_path / "c.jsonl", rows),
        write(tmp_path / "c.parquet", rows),
    ):
        assert load_corpus(source).labels == ("0", "1")


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9])
def test_a_truncated_parquet_file_is_a_user_error(tmp_path, cut):
    path = tmp_path / "c.parquet"
    write(path, ROWS * 50)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    with pytest.raises(UserError, match="not a readable Parquet file"):
        load_corpus(str(path))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_column": "txt"}, "no column txt; there are text, label, id$"),
        ({"label_column": "lang"}, "no column lang; there are text, label, id$"),
        ({"id_column": "key"}, "no column key; there are text, label, id$"),
        ({"labels": ["de", "xx"]}, "has no label xx; there are de, en"),
        ({"labels": ["de"]}, "at least two labels"),
        ({"labels": ["de", "en", "de"]}, "named twice"),
    ],
)
def test_a_missing_column_or_label_is_a_user_error(tmp_path, suffix, options, message):
    with refused(message, *options):
        load_corpus(write(tmp_path / f"c.{suffix}", rows_for(suffix)), **options)


@pytest.mark.parametrize("labels", [None, ["a", "b"]])
@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_text_file_without_text_is_a_user_error_that_names_its_label(tmp_path, labels, text):
    (tmp_path / "a.txt").write_text("good\n")
    (tmp_path / "c.txt").write_text("good\n")
    (tmp_path / "b.txt").write_text(text)
    with pytest.raises(UserError, match=r"the label b of .* has no usable text"):
        load_corpus(str(tmp_path), labels=labels)


def test_a_text_file_that_is_not_utf8_is_named_with_its_line(tmp_path):
    (tmp_path / "a.txt").write_text("good\n")
    (tmp_path / "b.txt").write_bytes(b"one\ntwo\n\xff\n")
    with pytest.raises(UserError, match=r"b\.txt is not UTF-8 text \(line 3\)"):
        load_corpus(str(tmp_path))


def test_a_directory_without_text_files_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"holds no LABEL\.txt files"):
        load_corpus(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hub:org/name", "org/name is not in the cache and HF_HUB_OFFLINE is set"),
        ("hub:org/name@refs/convert/parquet:config:test#5", "org/name is not in the cache"),
        ("embedded:wili", "unknown embedded corpus embedded:wili; there is embedded:eld"),
        ("nowhere.jsonl", "the corpus nowhere.jsonl does not exist"),
    ],
)
def test_a_corpus_that_is_not_available_is_a_user_error(source, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message):
        load_corpus(source)
