"""Overlap of sets of units against Python sets; expectations against exact and drawn ones."""

from __future__ import annotations

import csv
from collections import Counter
from itertools import combinations, permutations
from math import comb

import numpy as np
import pytest
from helpers import DICTIONARIES, cell_tables, selection_of
from hypothesis import given, settings

from saefeat.io import UserError
from saefeat.overlap import (
    FIELDS,
    compare_sets,
    label_overlap,
    label_rows,
    rule_overlap,
    rule_rows,
    share_rows,
    typology,
    typology_rows,
    write_overlap,
)

LABELS = ("de", "fr", "ru", "bg")


def sets_of(cells, dictionaries=DICTIONARIES):
    return {
        label: {c[:2] for c in cells if c[2] == label and c[0] in dictionaries} for label in LABELS
    }


def ratio(part, whole):
    return part / whole if whole else 0.0


@settings(max_examples=60, deadline=None)
@given(cell_tables(LABELS))
def test_overlap_of_labels_equals_that_of_python_sets(cells):
    found, sets = label_overlap(selection_of(cells, LABELS)), sets_of(cells)
    for i, one in enumerate(LABELS):
        for j, other in enumerate(LABELS):
            a, b = sets[one], sets[other]
            assert (found["size"][i, j], found["other_size"][i, j]) == (len(a), len(b))
            assert (found["both"][i, j], found["either"][i, j]) == (len(a & b), len(a | b))
            assert found["overlap"][i, j] == ratio(len(a & b), min(len(a), len(b)))
            assert found["iou"][i, j] == ratio(len(a & b), len(a | b))
            by = [(Counter(c[0] for c in a)[d], Counter(c[0] for c in b)[d]) for d in "ab"]
            expected = sum(x * y / 5 for x, y in by)
            assert found["expected_both"][i, j] == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(cell_tables(LABELS), cell_tables(LABELS))
def test_overlap_of_rules_is_that_in_the_dictionaries_of_both(left, right):
    left = [cell for cell in left if cell[0] == "a"]
    one = selection_of(left, LABELS, dictionaries=("a",))
    other = selection_of(right, LABELS[::-1])
    found = rule_overlap(one, other)
    a, b = sets_of(left), sets_of(right, ("a",))
    assert found is not None
    assert found["both"].tolist() == [len(a[x] & b[x]) for x in LABELS]
    assert found["other_size"].tolist() == [len(b[x]) for x in LABELS]
    assert found["iou"].tolist() == [ratio(len(a[x] & b[x]), len(a[x] | b[x])) for x in LABELS]


def test_rules_without_common_dictionaries_or_labels_are_not_compared():
    one = selection_of([("a", 1, "de")], LABELS, dictionaries=("a",))
    other = selection_of([("b", 1, "de")], LABELS, dictionaries=("b",))
    assert rule_overlap(one, other) is None and rule_rows({"x": one, "y": other}) == []
    assert rule_overlap(one, selection_of([], ("it",))) is None


def both_counts(a, b, width):
    """Number of units in both -> probability, for random sets of a and b of the units."""
    return {
        k: comb(a, k) * comb(width - a, b - k) / comb(width, b)
        for k in range(max(0, a + b - width), min(a, b) + 1)
    }


@pytest.mark.parametrize(
    ("sizes", "others", "widths", "error"),
    [
        ([20], [30], [1000], 1e-6),
        ([1], [1], [1000], 1e-9),
        ([300], [300], [2560], 1e-5),
        ([12, 40], [25, 3], [200, 100], 1e-4),
        ([5, 0], [5, 9], [50, 60], 1e-4),
        ([3, 2], [4, 1], [5, 6], 1e-3),
    ],
)
def test_the_expectations_are_those_of_random_sets(sizes, others, widths, error):
    arrays = [np.array(x) for x in (sizes, others)]
    found = compare_sets(*arrays, np.array(0), np.array(widths))
    exact = {0: 1.0}  # units in both -> probability, over dictionaries
    for a, b, width in zip(sizes, others, widths, strict=True):
        new: Counter[int] = Counter()
        for before, p in exact.items():
            for k, q in both_counts(a, b, width).items():
                new[before + k] += p * q
        exact = dict(new)
    a, b = sum(sizes), sum(others)
    mean = sum(k * p for k, p in exact.items())
    iou = sum(p * k / (a + b - k) for k, p in exact.items())
    assert found["expected_both"] == pytest.approx(mean)
    assert found["expected_overlap"] == pytest.approx(mean / min(a, b))
    assert found["expected_iou"] == pytest.approx(iou, abs=error)


def test_full_and_empty_sets_have_exact_expectations():
    full = np.array([7])
    found = compare_sets(full, full, np.array(7), full)
    assert (found["expected_both"], found["expected_iou"], found["iou"]) == (7, 1, 1)
    none = np.array([0])
    found = compare_sets(none, none, np.array(0), full)
    assert {name: float(value) for name, value in found.items()} == dict.fromkeys(found, 0.0)


GROUPS = {"de": "west", "fr": "west", "ru": "east", "bg": "east", "it": "west", "uk": "east"}


def cells_by_group(private=1, common=3):
    """Labels of a group share `common` units; each has `private` units of its own."""
    cells = []
    for at, label in enumerate(GROUPS):
        start = 0 if GROUPS[label] == "west" else 10
        cells += [("a", start + unit, label) for unit in range(common)]
        cells += [("b", 3 * at + unit, label) for unit in range(private)]
    return cells


def test_the_mantel_test_equals_counting_all_permutations():
    selection = selection_of(cells_by_group(), list(GROUPS), width=20)
    overlaps = label_overlap(selection)
    found = typology(overlaps, selection.labels, GROUPS)
    iou, labels = overlaps["iou"], list(GROUPS)
    pairs = list(combinations(range(6), 2))
    same = [GROUPS[labels[i]] == GROUPS[labels[j]] for i, j in pairs]

    def within(order):
        values = [iou[order[i], order[j]] for (i, j), s in zip(pairs, same, strict=True) if s]
        return sum(values) / len(values)

    assert found is not None
    assert found["iou_within"] == pytest.approx(3 / 5) and found["iou_across"] == 0
    assert (found["pairs_within"], found["pairs_across"], found["groups"]) == (6, 9, 2)
    at_least = [within(order) >= within(range(6)) - 1e-12 for order in permutations(range(6))]
    assert found["p"] == pytest.approx(sum(at_least) / len(at_least), abs=0.01)  # .1
    assert typology(overlaps, selection.labels, GROUPS) == found


def test_labels_without_units_or_group_are_left_out_and_one_group_is_no_typology():
    cells = [cell for cell in cells_by_group() if cell[2] != "uk"]
    selection = selection_of(cells, list(GROUPS), width=20)
    overlaps = label_overlap(selection)
    found = typology(overlaps, selection.labels, {k: v for k, v in GROUPS.items() if k != "it"})
    assert found is not None and (found["labels"], found["pairs_within"]) == (4, 2)
    assert typology(overlaps, selection.labels, dict.fromkeys(GROUPS, "one")) is None
    assert typology(overlaps, selection.labels, {k: k for k in GROUPS}) is None
    assert typology(overlaps, selection.labels, {}) is None


def test_no_difference_between_groups_has_a_high_p():
    cells = [("a", unit, label) for label in GROUPS for unit in range(3)]
    selection = selection_of(cells, list(GROUPS), width=20)
    found = typology(label_overlap(selection), selection.labels, GROUPS)
    assert found is not None and found["p"] == 1


def test_labels_that_are_no_languages_have_no_typology():
    selection = selection_of([("a", 1, "python"), ("a", 1, "rust")], ("python", "rust"))
    assert typology_rows({"x": selection}) == []


def test_rows_name_the_selection_and_the_labels():
    selection = selection_of(cells_by_group(), list(GROUPS), width=20)
    rows = label_rows({"x": selection})
    assert len(rows) == 15 and all(list(row) == list(FIELDS["labels"]) for row in rows)
    first = rows[0]
    assert (first["selection"], first["label"], first["other"]) == ("x", "de", "fr")
    assert (first["size"], first["both"], first["iou"], first["overlap"]) == (4, 3, 0.6, 0.75)
    assert first["expected_both"] == pytest.approx(9 / 20 + 1 / 20)
    (script, *_) = typology_rows({"x": selection})
    assert (script["grouping"], script["groups"], script["iou_within"]) == ("script", 2, 0.6)


def test_shares_of_classes_and_labels_by_dictionary():
    selection = selection_of(cells_by_group(), list(GROUPS), width=20)
    rows = {
        (row["kind"], row["of"], row["dictionary"]): row for row in share_rows({"x": selection})
    }
    assert len(rows) == 2 * (3 + 6)
    label = rows["label", "de", "a"]
    assert (label["units"], label["share"], label["expected_share"]) == (3, 0.75, 0.5)
    assert (rows["class", "one label", "b"]["units"], rows["class", "one label", "a"]["units"]) == (
        6, 0,
    )  # fmt: skip
    assert rows["class", "several labels", "a"]["units"] == 6
    assert rows["class", "all labels", "a"]["share"] == 0


def test_tables_are_written_and_replaced_but_not_over_other_files(tmp_path):
    selections = {
        "x": selection_of(cells_by_group(), list(GROUPS), width=20),
        "y": selection_of(cells_by_group(private=2), list(GROUPS), width=20),
    }
    out = tmp_path / "out"
    for _ in range(2):
        compared = write_overlap(selections, out)
        assert {row["selection"] for row in compared} == {"x", "y"}
    for name, fields in FIELDS.items():
        with (out / f"{name}.csv").open(newline="") as file:
            reader = csv.DictReader(file)
            assert list(reader) and tuple(reader.fieldnames or ()) == fields
    (out / "rules.csv").write_text("mine\n1\n")
    with pytest.raises(UserError, match=r"rules\.csv exists and is another table"):
        write_overlap(selections, out)
    with pytest.raises(UserError, match="is no directory"):
        write_overlap(selections, out / "rules.csv")
    other = selection_of([], list(GROUPS), width=20, model={"name": "other"})
    with pytest.raises(UserError, match="the overlap of selections needs the same model"):
        write_overlap({**selections, "z": other}, tmp_path / "new")
    assert not (tmp_path / "new").exists()
