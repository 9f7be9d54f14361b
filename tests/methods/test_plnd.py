"""PLND against loops over documents, and a case worked by hand."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers import make_stats, make_table, refused, selection_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from saefeat.methods import METHODS, parse_parameters
from saefeat.methods.plnd import plnd
from saefeat.selection import Selection


def ranked(tables, label, labels=3, **parameters):
    """The selection of {dictionary: importances by document and unit}."""
    with tempfile.TemporaryDirectory() as place:
        stats, found = [], []
        for name, rows in tables.items():
            cells = [[1] * len(rows[0])] * labels
            stats.append(make_stats(name, fired=cells, tokens=[9] * labels, kind="identity"))
            ids = [str(i) for i in range(len(rows))]
            made = make_table(Path(place), "importances", stats[-1], label, ids, importance=rows)
            found.append(made)
        return plnd(stats, found, **parameters)


def oracle(tables, label, number, sets):
    """Rows by loops."""
    rows = []
    for name, values in tables.items():
        owned = {}
        for k in sorted(set(label)):
            documents = [row for row, own in zip(values, label, strict=True) if own == k]
            kept = [
                set(
                    sorted(range(len(row)), key=lambda u, row=row: (-row[u], u))[: number(len(row))]
                )
                for row in documents
            ]
            owned[k] = set.intersection(*kept)
        shared = set.intersection(*owned.values())
        for k, units in owned.items():
            chosen = {"whole": units, "exclusive": units - shared, "shared": shared}[sets]
            documents = [row for row, own in zip(values, label, strict=True) if own == k]
            for u in chosen:
                rows.append((k, -sum(row[u] for row in documents) / len(documents), name, u))
    return [(f"L{k}", name, u, s) for k, s, name, u in sorted(rows)]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    top=st.sampled_from([0.01, 0.25, 0.5, 1, 3, 50]),
    sets=st.sampled_from(["exclusive", "whole", "shared"]),
)
def test_rows_are_those_of_the_loops(seed, top, sets):
    g = np.random.default_rng(seed)
    label = g.permutation([0] * 2 + [1] * 3 + [2] * 2).tolist()
    tables = {}
    for name, width in {"b": 6, "a": 8}.items():
        base = g.integers(0, 5, width)  # so that documents agree; many ties
        tables[name] = (base + g.integers(0, 2, (7, width))).astype(float).tolist()

    def number(width):
        return min(top, width) if isinstance(top, int) else max(1, int(top * width))

    found = selection_rows(ranked(tables, label, top=top, sets=sets))
    expected = oracle(tables, label, number, sets)
    assert [(row[0], *row[2:4]) for row in found] == [row[:3] for row in expected]
    assert [row[4] for row in found] == pytest.approx([row[3] for row in expected])


def test_a_case_worked_by_hand(tmp_path):
    # Two units are kept per document. L0 keeps {0, 1} and {0, 1}, L1 {0, 2} and {0, 3}, L2 {0, 1}.
    rows = [
        [9.0, 8, 1, 1],
        [7.0, 6, 1, 1],
        [9.0, 1, 8, 1],
        [9.0, 1, 1, 8],
        [5.0, 5, 5, 5],  # the first of equal ones are kept
        [5.0, 6, 0, 0],
    ]
    label = [0, 0, 1, 1, 2, 2]
    whole = ranked({"a": rows}, label, top=2, sets="whole")
    assert [(row[0], row[3], row[4]) for row in selection_rows(whole)] == [
        ("L0", 0, -8.0),
        ("L0", 1, -7.0),
        ("L1", 0, -9.0),
        ("L2", 1, -5.5),
        ("L2", 0, -5.0),
    ]
    exclusive = ranked({"a": rows}, label, top=2)
    assert [row[0::3] for row in selection_rows(exclusive)] == [("L0", 1), ("L2", 1)]
    shared = ranked({"a": rows}, label, top=2, sets="shared")
    assert [row[0::3] for row in selection_rows(shared)] == [("L0", 0), ("L1", 0), ("L2", 0)]
    classes = {"shared": {"a": 1}, "exclusive: L0": {"a": 1}, "exclusive: L1": {"a": 0}}
    assert exclusive.header["classes"] == classes | {"exclusive: L2": {"a": 1}}
    exclusive.save(tmp_path / "s.parquet")
    header = Selection.load(tmp_path / "s.parquet").header
    assert header == exclusive.header
    assert header["parameters"] == {"top": 2, "sets": "exclusive"}


def test_a_label_without_documents_is_as_if_it_were_not_there():
    g = np.random.default_rng(0)
    tables = {"a": g.random((6, 30)).tolist()}
    two = selection_rows(ranked(tables, [0] * 3 + [1] * 3, labels=2, top=0.5))
    gap = selection_rows(ranked(tables, [0] * 3 + [2] * 3, top=0.5))
    assert gap == [("L2" if row[0] == "L1" else row[0], *row[1:]) for row in two]
    assert two


def test_a_single_document_is_refused():
    with refused("the label L1 has 1 examples in the table of a, but the rule needs 2"):
        ranked({"a": [[1.0, 2.0]] * 4}, [0, 0, 0, 1])


@pytest.mark.parametrize("setting", ["top=0", "top=1.0", "top=-3", "top=none", "sets=all"])
def test_parameters_out_of_range_are_refused(setting):
    with refused(f"the parameter {setting.partition('=')[0]} of plnd is"):
        parse_parameters("plnd", [setting])
    assert parse_parameters("plnd", ["top=12000"]) == {"top": 12000}


def test_it_pools_the_neurons_that_the_down_projection_reads():
    pools = METHODS["plnd"].pools
    assert pools({"kind": "identity", "site": "mlp_hidden@3"})
    assert not pools({"kind": "identity", "site": "mlp_act@3"})
    assert not pools({"kind": "sae", "site": "mlp_hidden@3"})
