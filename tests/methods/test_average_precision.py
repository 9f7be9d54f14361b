"""Average precision against scikit-learn, a loop over thresholds and a case worked by hand."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_stats, make_table, refused, selection_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from saefeat.methods.average_precision import average_precision, precision
from saefeat.selection import Selection


def stats_of(name, width, labels=3):
    cells = [[1] * width for _ in range(labels)]
    return make_stats(name, fired=cells, tokens=[10] * labels, kind="identity")


def ranked(tables, label, **parameters):
    """The selection of {dictionary: rows of responses}, one row per entry of `label`."""
    with tempfile.TemporaryDirectory() as place:
        stats, found = [], []
        for name, rows in tables.items():
            stats.append(stats_of(name, len(rows[0]), max(*label, 2) + 1))
            fields = {"mean": rows, "fired": [[0] * len(rows[0])] * len(rows)}
            fields["tokens"] = [3] * len(rows)
            ids = [f"id {i}" for i in range(len(rows))]
            found.append(make_table(Path(place), "responses", stats[-1], label, ids, **fields))
        return average_precision(stats, found, **parameters)


def oracle(values, positive):
    """The published sum over the distinct values in falling order."""
    total, before = 0.0, 0.0
    for bar in sorted(set(values), reverse=True):
        entered = [own for value, own in zip(values, positive, strict=True) if value >= bar]
        recall = sum(entered) / sum(positive)
        total += (recall - before) * sum(entered) / len(entered)
        before = recall
    return total


def few_values(seed, n, width, distinct):
    return np.random.default_rng(seed).integers(-distinct, distinct + 1, (n, width)) / 4


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), distinct=st.sampled_from([0, 1, 3, 1000]))
def test_it_is_that_of_scikit_learn_and_of_the_loop(seed, distinct):
    values = few_values(seed, 30, 4, distinct).astype(np.float32)
    label = np.random.default_rng(seed + 1).permutation([0] * 3 + [1] * 10 + [2] * 17)
    rows = [torch.from_numpy(np.flatnonzero(label == k)) for k in range(3)]
    found = precision(torch.from_numpy(values.T.copy()), rows)
    for k in range(3):
        for unit in range(4):
            expected = average_precision_score(label == k, values[:, unit])
            assert float(found[k, unit]) == pytest.approx(expected, abs=1e-12)
            by_hand = oracle(values[:, unit].tolist(), (label == k).tolist())
            assert float(found[k, unit]) == pytest.approx(by_hand, abs=1e-12)


def test_figures_of_the_paper():
    # 500 texts of a label among 3,000: a constant unit scores 1/6; the least value is 0.088.
    own = torch.arange(500)
    constant, worst = torch.zeros(3000), torch.ones(3000)
    worst[:500] = -torch.arange(1, 501).float()
    found = precision(torch.stack([constant, worst, -worst]), [own])[0].tolist()
    assert found[0] == 1 / 6 and 0.088 < found[1] < 0.089 and found[2] == 1.0


def test_a_case_worked_by_hand():
    # Three texts of each of two labels, in falling order: unit 0 is A A B A B B.
    label = [0, 0, 0, 1, 1, 1]
    values = torch.tensor([[6.0, 5, 3, 4, 2, 1], [1, 1, 1, 1, 1, 1]])
    found = precision(values, [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])])
    expected = [(1 / 1 + 2 / 2 + 3 / 4) / 3, (1 / 3 + 2 / 5 + 3 / 6) / 3]
    assert found[:, 0].tolist() == pytest.approx(expected) and len(label) == 6
    assert found[:, 1].tolist() == [0.5, 0.5]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), top=st.integers(1, 12), distinct=st.sampled_from([1, 4]))
def test_the_halves_are_those_of_the_sorted_units_of_all_dictionaries(seed, top, distinct):
    widths = {"b": 3, "a": 4}  # given in another order than that of ties
    label = [0] * 10 + [1] * 11 + [2] * 10
    tables = {name: few_values(seed + w, 31, w, distinct).tolist() for name, w in widths.items()}
    expected = []
    for k in range(3):
        units = [
            (oracle([row[u] for row in tables[name]], [own == k for own in label]), name, u)
            for name, width in widths.items()
            for u in range(width)
        ]
        high = sorted(units, key=lambda each: (-round(each[0], 12), *each[1:]))[: top - top // 2]
        rest = [each for each in units if each not in high]
        low = sorted(rest, key=lambda each: (round(each[0], 12), *each[1:]))[: top // 2]
        chosen = [(-ap, name, u) for ap, name, u in high] + low
        expected += [(f"L{k}", n, name, u, ap) for n, (ap, name, u) in enumerate(chosen, 1)]
    for half in ("both", "high", "low"):
        found = selection_rows(ranked(tables, label, top=top, half=half))
        sign = {"high": -1, "low": 1}.get(half)
        wanted = [row for row in expected if sign is None or row[-1] * sign > 0]
        assert [row[0] for row in found] == [row[0] for row in wanted]
        assert [row[2:4] for row in found] == [row[2:4] for row in wanted]
        assert [row[4] for row in found] == pytest.approx([row[4] for row in wanted], abs=1e-12)


def test_a_label_without_examples_is_as_if_it_were_not_there():
    rows = few_values(3, 20, 6, 100).tolist()
    two = selection_rows(ranked({"a": rows}, [0] * 10 + [1] * 10, top=4))
    gap = selection_rows(ranked({"a": rows}, [0] * 10 + [2] * 10, top=4))
    assert gap == [("L2" if row[0] == "L1" else row[0], *row[1:]) for row in two]


def test_parameters_are_recorded_and_the_selection_is_read_again(tmp_path):
    selection = ranked({"a": few_values(1, 20, 6, 9).tolist()}, [0] * 10 + [1] * 10, half="low")
    selection.save(tmp_path / "s.parquet")
    header = Selection.load(tmp_path / "s.parquet").header
    assert header["method"] == "average-precision"
    assert header["parameters"] == {"top": 2000, "half": "low"}


def test_too_few_examples_or_labels_are_refused():
    rows = few_values(1, 19, 2, 9).tolist()
    with refused("the label L1 has 9 examples in the table of a, but the rule needs 10; collect"):
        ranked({"a": rows}, [0] * 10 + [1] * 9)
    with refused("has examples of 1 labels, but the rule needs two"):
        ranked({"a": rows}, [0] * 19)
