"""Sharing against loops over inputs and units, and a case worked by hand."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers import make_stats, make_table, refused, selection_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from saefeat.methods import parse_parameters
from saefeat.methods.sharing import sharing
from saefeat.selection import Selection

BARS = [0, 0.1, 0.2, 0.3, 0.4, 0.5]


def ranked(tables, label, ids, labels=3, **parameters):
    """The selection of {dictionary: (levels at the last token, greatest levels)}."""
    with tempfile.TemporaryDirectory() as place:
        stats, found = [], []
        for name, (last, greatest) in tables.items():
            cells = [[1] * len(last[0])] * labels
            stats.append(make_stats(name, fired=cells, tokens=[9] * labels, kind="identity"))
            fields = {"last": last, "any": greatest}
            found.append(make_table(Path(place), "patterns", stats[-1], label, ids, **fields))
        return sharing(stats, found, **parameters)


def oracle(tables, label, ids, level, where, share):
    """Classes and rows by loops."""
    present = sorted(set(label))
    rows = set(zip(label, ids, strict=True))
    inputs = [n for n in dict.fromkeys(ids) if all((k, n) in rows for k in present)]
    first = {}
    for row, key in enumerate(zip(label, ids, strict=True)):
        first.setdefault(key, row)
    names = ["all-shared", "partial-shared", "specific", "non-activated"]
    names += [f"specific: L{k}" for k in present]
    classes, rows = {name: {} for name in names}, []
    for dictionary, pair in tables.items():
        values = pair[0 if where == "last" else 1]
        totals, alone = dict.fromkeys(names, 0), {}
        for name in inputs:
            for unit in range(len(values[0])):
                active = [k for k in present if values[first[k, name]][unit] > level]
                if len(active) == len(present):
                    totals["all-shared"] += 1
                elif not active:
                    totals["non-activated"] += 1
                elif len(active) > 1:
                    totals["partial-shared"] += 1
                else:
                    totals["specific"] += 1
                    totals[f"specific: L{active[0]}"] += 1
                    alone[active[0], unit] = alone.get((active[0], unit), 0) + 1
        for name, total in totals.items():
            classes[name][dictionary] = total / len(inputs)
        for (k, unit), count in alone.items():
            if count / len(inputs) >= share:
                rows.append((-count / len(inputs), dictionary, unit, k))
    return classes, [(f"L{k}", d, u, s) for s, d, u, k in sorted(rows, key=lambda r: (r[3], r))]


def random_levels(seed, n, width):
    g = np.random.default_rng(seed)
    last = g.integers(0, 7, (n, width)) * (g.random((n, width)) < 0.4)
    return last.tolist(), np.maximum(last, g.integers(0, 3, (n, width))).tolist()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    bar=st.sampled_from(BARS),
    where=st.sampled_from(["last", "any"]),
    share=st.sampled_from([0.2, 0.5, 1.0]),
)
def test_classes_and_rows_are_those_of_the_loops(seed, bar, where, share):
    g = np.random.default_rng(seed)
    tables = {"b": random_levels(seed, 30, 4), "a": random_levels(seed + 1, 30, 5)}
    label = g.integers(0, 3, 30).tolist()
    ids = [f"i{n}" for n in g.integers(0, 6, 30)]  # some come twice in a label
    label[:3], ids[:3] = [0, 1, 2], ["i0"] * 3
    selection = ranked(tables, label, ids, threshold=bar, where=where, share=share)
    classes, rows = oracle(tables, label, ids, BARS.index(bar), where, share)
    assert selection.header["classes"].keys() == classes.keys()
    for name, counts in classes.items():
        assert selection.header["classes"][name] == pytest.approx(counts)
    found = selection_rows(selection)
    assert [(row[0], *row[2:4]) for row in found] == [row[:3] for row in rows]
    assert [row[4] for row in found] == pytest.approx([row[3] for row in rows])


def test_a_case_worked_by_hand(tmp_path):
    # Two inputs in three labels and four units; the text of L0 alone is on no input.
    label, ids = [0, 1, 2, 2, 1, 0, 0], ["x", "x", "x", "y", "y", "y", "z"]
    last = [
        [1, 2, 0, 0],  # x in L0
        [1, 0, 0, 0],  # x in L1
        [6, 1, 0, 0],  # x in L2
        [1, 0, 3, 0],  # y in L2
        [1, 0, 0, 0],  # y in L1
        [1, 1, 0, 0],  # y in L0
        [0, 0, 0, 1],  # z in L0
    ]
    selection = ranked({"a": (last, last)}, label, ids)
    assert selection.header["classes"] == {
        "all-shared": {"a": 1.0},  # unit 0, twice
        "partial-shared": {"a": 0.5},  # unit 1 on x
        "specific": {"a": 1.0},  # unit 1 on y, unit 2 on y
        "non-activated": {"a": 1.5},  # unit 3 twice, unit 2 on x
        "specific: L0": {"a": 0.5},
        "specific: L1": {"a": 0.0},
        "specific: L2": {"a": 0.5},
    }
    assert selection_rows(selection) == [("L0", 1, "a", 1, -0.5), ("L2", 1, "a", 2, -0.5)]
    assert len(ranked({"a": (last, last)}, label, ids, share=0.6)) == 0
    high = ranked({"a": (last, last)}, label, ids, threshold=0.5)
    assert selection_rows(high) == [("L2", 1, "a", 0, -0.5)]
    selection.save(tmp_path / "s.parquet")
    assert Selection.load(tmp_path / "s.parquet").header == selection.header
    assert selection.header["parameters"] == {"threshold": 0, "where": "last", "share": 0.5}


def test_a_label_without_examples_is_as_if_it_were_not_there():
    tables, ids = {"a": random_levels(4, 20, 5)}, [f"{i}" for i in range(10)] * 2
    two = ranked(tables, [0] * 10 + [1] * 10, ids, labels=2)
    gap = ranked(tables, [0] * 10 + [2] * 10, ids)
    renamed = [("L2" if row[0] == "L1" else row[0], *row[1:]) for row in selection_rows(two)]
    assert selection_rows(gap) == renamed
    assert list(gap.header["classes"].values()) == list(two.header["classes"].values())


def test_texts_that_are_not_parallel_are_refused():
    tables = {"a": random_levels(0, 5, 3)}
    message = "not parallel: of 3 ids none occurs in all 3 labels, at most in 2; give translations"
    with refused(message, "id_column"):
        ranked(tables, [0, 0, 1, 1, 2], ["x", "y", "x", "y", "z"])
    with refused("has examples of 1 labels"):
        ranked(tables, [0] * 5, ["x"] * 5)


@pytest.mark.parametrize("setting", ["threshold=0.6", "where=first", "share=0", "share=1.5"])
def test_parameters_out_of_range_are_refused(setting):
    name = setting.partition("=")[0]
    with refused(f"the parameter {name} of sharing is"):
        parse_parameters("sharing", [setting])
    assert parse_parameters("sharing", ["threshold=0.3"]) == {"threshold": 0.3}
    with refused("the threshold 0.15 was not collected; choose from 0, 0.1, 0.2, 0.3, 0.4, 0.5"):
        sharing([], [], threshold=0.15)
