"""Texts and labels as Python objects: lists and tables of any library, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from helpers import refused

from saefeat.corpora import load_corpus
from saefeat.corpora.given import given_examples, given_texts, listed
from saefeat.io import UserError

TEXTS, OF = ["eins", "one", "un"], ["de", "en", "fr"]
COLUMNS = {"text": TEXTS, "label": OF}
CLASSES = Features({"text": Value("string"), "label": ClassLabel(names=OF)})
TABLES = {
    "a dict of lists": COLUMNS,
    "a DataFrame": pd.DataFrame(COLUMNS),
    "a DataFrame of categories": pd.DataFrame(COLUMNS).astype("category"),
    "a Dataset": Dataset.from_dict(COLUMNS),
    "a Dataset with class labels": Dataset.from_dict({"text": TEXTS, "label": [0, 1, 2]}, CLASSES),
    "a selected Dataset": Dataset.from_dict({"text": TEXTS[::-1], "label": OF[::-1]}).select(
        [2, 1, 0]
    ),
    "a streamed Dataset": Dataset.from_dict(
        {"text": TEXTS, "label": [0, 1, 2]}, CLASSES
    ).to_iterable_dataset(),
    "an Arrow table": pa.table(COLUMNS),
    "rows by name": [
        {"text": text, "label": label, "n": 1} for text, label in zip(TEXTS, OF, strict=True)
    ],
}
PAIRS = {
    "pairs": list(zip(TEXTS, OF, strict=True)),
    "lists": [list(pair) for pair in zip(TEXTS, OF, strict=True)],
    "an array": np.array(list(zip(TEXTS, OF, strict=True))),
    "triples": [(text, label, "n") for text, label in zip(TEXTS, OF, strict=True)],
}
LISTS = {
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "array": np.array,
    "array of objects": lambda texts: np.array(texts, object),
    "Series": pd.Series,
    "Index": pd.Index,
    "column of a Dataset": lambda texts: Dataset.from_dict({"text": texts})["text"],
    "Arrow array": pa.array,
}


@pytest.mark.parametrize("name", [*TABLES, *PAIRS])
def test_labelled_text_of_every_kind_is_the_same_corpus(name):
    corpus = load_corpus((TABLES | PAIRS)[name])
    assert (corpus.texts, corpus.of, corpus.labels) == (TEXTS, OF, tuple(OF))
    assert given_examples((TABLES | PAIRS)[name]) == (TEXTS, OF)
    assert all(type(value) is str for value in (*corpus.texts, *corpus.of))


@pytest.mark.parametrize("name", TABLES)
def test_the_texts_of_a_table_are_its_column_text(name):
    assert given_texts(TABLES[name]) == TEXTS
    assert given_examples(TABLES[name], ["x", "y", "z"]) == (TEXTS, ["x", "y", "z"])


@pytest.mark.parametrize("name", LISTS)
def test_any_sequence_of_strings_is_a_list_of_texts(name):
    texts = given_texts(LISTS[name](TEXTS))
    assert texts == TEXTS
    assert all(type(text) is str for text in texts)
    assert listed(LISTS[name](OF), "labels") == OF


def test_the_third_of_a_triple_is_its_id():
    assert load_corpus([("a", "x", 7), ("b", "y", None), ("c", "y", "k")]).ids[::2] == ["7", "k"]


def test_columns_of_a_table_can_be_named():
    frame = pd.DataFrame({"satz": TEXTS, "sprache": OF, "nr": [1, 2, 3]})
    corpus = load_corpus(frame, text_column="satz", label_column="sprache", id_column="nr")
    assert (corpus.texts, corpus.of, corpus.ids) == (TEXTS, OF, ["1", "2", "3"])


def test_missing_values_of_a_data_frame_are_skipped_and_counted():
    frame = pd.DataFrame(
        {"text": [*TEXTS, None, "x", float("nan")], "label": [*OF, "de", None, "de"]}
    )
    corpus = load_corpus(frame)
    assert corpus.texts == TEXTS
    assert corpus.skipped == {"no label": 1, "no text": 2}


def test_texts_are_cleaned_like_those_of_files():
    assert given_texts(["\ufeffeins", "a\0b", "\ud800"]) == ["eins", "a b", " "]


@pytest.mark.parametrize("text", ["abc", "", b"abc", np.str_("abc")])
def test_one_string_is_refused_as_a_list(text):
    for take in (
        given_texts,
        lambda it: given_examples(it, OF),
        lambda it: given_examples(TEXTS, it),
    ):
        with pytest.raises(
            UserError, match=r"(texts|labels) should be a list of strings, not one string; write \["
        ):
            take(text)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (5, "texts should be a list of strings, not a value of type int"),
        (None, "not a value of type NoneType"),
        (np.array("abc"), "not a value of type ndarray"),
        ({"a", "b"}, "not a value of type set"),
        (["a", None], "the text at position 1 is missing, not a string"),
        (pd.Series(["a", None]), "the text at position 1 is missing, not a string"),
        (["a", 5], "the text at position 1 is a value of type int, not a string"),
        ([b"a"], "the text at position 0 is a value of type bytes"),
        ([["a", "b"]], "the text at position 0 is a value of type list"),
        (pd.DataFrame({"satz": ["a"]}), "no column text; there are satz; give the column itself"),
        ([{"satz": "a"}], "row 0: no column text; there are satz"),
        (
            DatasetDict(a=Dataset.from_dict(COLUMNS)),
            r"a DatasetDict has the splits a; give one, such as data\['a'\]",
        ),
    ],
)
def test_other_values_are_refused_as_texts_in_one_sentence(texts, message):
    with pytest.raises(UserError, match=message):
        given_texts(texts)


@pytest.mark.parametrize(
    "case",
    [
        (["ab", "cd"], r"row 0 is 'ab'; give \(text, label\) pairs or \(text, label, id\) triples"),
        ([("a", "x"), ("b",)], r"row 1 is \('b',\); give"),
        ([("a", "x"), ("b", "y", "1", "2")], r"row 1 is \('b', 'y', '1', '2'\); give"),
        ([("a", "x"), 5], "row 1 is 5; give"),
        ([("a", "x"), ("b", 5)], "holds numbers without names; give strings"),
        (5, "a value of type int is not labelled text"),
        (b"c.csv", "a value of type bytes is not labelled text"),
        ({("a", "x"), ("b", "y")}, "a value of type set is not labelled text"),
        (
            {"text": ["a", "b"], "label": ["x"]},
            "the columns of the table have different lengths: 2 texts, 1 labels",
        ),
        (
            {"text": "ab", "label": ["x", "y"]},
            "the column text of the table should be a list of strings, not one",
        ),
        ({"satz": ["a"], "label": ["x"]}, "no column text; there are satz, label$", "text_column"),
        (
            [{"text": "a", "lang": "x"}],
            "row 0: no column label; there are text, lang$",
            "label_column",
        ),
        (
            DatasetDict(a=Dataset.from_dict(COLUMNS), b=Dataset.from_dict(COLUMNS)),
            "has the splits a, b; give one",
        ),
    ],
)
def test_other_values_are_refused_as_labelled_text_in_one_sentence(case):
    data, message, *options = case
    with refused(message, *options):
        load_corpus(data)


def test_one_string_is_refused_as_labels_of_a_corpus():
    with pytest.raises(UserError, match="labels should be a list of strings, not one string"):
        load_corpus([("a", "d"), ("b", "e")], labels="de")


def test_different_numbers_of_labels_and_texts_are_refused():
    with pytest.raises(UserError, match="there are 3 texts but 2 labels; give one label per text"):
        given_examples(TEXTS, OF[:2])
    with pytest.raises(UserError, match="the table: no column label; there are text"):
        given_examples({"text": TEXTS})
