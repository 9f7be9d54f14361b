"""Set operations on selections, against sets of Python; labels that belong together; owners."""

from __future__ import annotations

import json

import pytest
from helpers import cell_tables, selection_of
from hypothesis import given, settings
from hypothesis import strategies as st

from saefeat.io import UserError
from saefeat.selection import Selection
from saefeat.sets import combine, shared


def cells_of(selection):
    columns = [selection.table[name].to_pylist() for name in ("dictionary", "unit", "label")]
    return list(zip(*columns, strict=True))


LEFT, RIGHT = ("da", "de", "zh"), ("dan", "deu", "cmn", "gsw")
PAIRS = (("da", "dan"), ("de", "deu"), ("de", "gsw"), ("zh", "cmn"))


@settings(max_examples=60, deadline=None)
@given(cell_tables(LEFT), cell_tables(RIGHT), cell_tables(RIGHT))
def test_operations_with_pairs_equal_those_of_python_sets(left, right, third):
    first, others = (
        selection_of(left, LEFT),
        [selection_of(right, RIGHT), selection_of(third, RIGHT)],
    )
    belongs = {label: {other for of, other in PAIRS if of == label} for label in LEFT}

    def inside(cell, table):
        dictionary, unit, label = cell
        return any((dictionary, unit, other) in table for other in belongs[label])

    found = {op: combine(op, first, *others, pairs=PAIRS) for op in ("intersection", "difference")}
    assert set(cells_of(found["intersection"])) == {
        cell for cell in left if inside(cell, right) and inside(cell, third)
    }
    assert set(cells_of(found["difference"])) == {
        cell for cell in left if not inside(cell, right) and not inside(cell, third)
    }
    renamed = {
        (dictionary, unit, label)
        for dictionary, unit, other in right + third
        for label in LEFT
        if other in belongs[label]
    }
    union = combine("union", first, *others, pairs=PAIRS)
    assert sorted(cells_of(union)) == sorted(set(left) | renamed)
    assert union.labels == LEFT
    for each in (*found.values(), union):  # ranks are 1, 2, ... in each label
        for label in each.labels:
            ranks = each.for_label(label).table["rank"].to_pylist()
            assert ranks == list(range(1, len(ranks) + 1))


@settings(max_examples=60, deadline=None)
@given(cell_tables(LEFT), cell_tables(RIGHT))
def test_operations_on_units_ignore_labels(left, right):
    first, other = selection_of(left, LEFT), selection_of(right, RIGHT)
    theirs, ours = ({(d, u) for d, u, _ in table} for table in (right, left))
    found = combine("intersection", first, other, match="units")
    assert set(cells_of(found)) == {cell for cell in left if cell[:2] in theirs}
    found = combine("difference", first, other, match="units")
    assert set(cells_of(found)) == {cell for cell in left if cell[:2] not in theirs}
    found = combine("union", first, other, match="units")
    new = {cell for cell in right if cell[:2] not in ours}
    assert sorted(cells_of(found)) == sorted(set(left) | new)
    assert found.labels == LEFT + RIGHT


@settings(max_examples=40, deadline=None)
@given(cell_tables(LEFT), st.integers(1, 3), st.booleans())
def test_shared_units_are_those_of_that_many_labels(cells, owners, at_least):
    count = {unit: len({c[2] for c in cells if c[:2] == unit}) for unit in {c[:2] for c in cells}}
    wanted = {c for c in cells if count[c[:2]] == owners or (at_least and count[c[:2]] > owners)}
    assert set(cells_of(shared(selection_of(cells, LEFT), owners, at_least=at_least))) == wanted


def test_a_number_of_owners_that_no_unit_can_have_is_refused():
    for owners in (0, 4):
        with pytest.raises(UserError, match="from 1 to 3") as caught:
            shared(selection_of([], LEFT), owners)
        assert caught.value.options == ("owners",)


CULTURE = selection_of([("a", 1, "da"), ("a", 2, "da"), ("a", 3, "da"), ("b", 1, "zh")], LEFT)
LANGUAGE = selection_of(
    [("a", 1, "dan_Latn"), ("a", 2, "cmn_Hans"), ("b", 1, "deu_Latn")],
    ("dan_Latn", "cmn_Hans", "deu_Latn"),
)


def test_pure_culture_units_are_without_the_own_language_or_without_any_language():
    own = combine("difference", CULTURE, LANGUAGE, match="languages")
    assert cells_of(own) == [("a", 2, "da"), ("a", 3, "da"), ("b", 1, "zh")]
    assert own.table["score"].to_pylist() == [1.0, 2.0, 3.0]
    any_language = combine("difference", CULTURE, LANGUAGE, match="units")
    assert cells_of(any_language) == [("a", 3, "da")]
    compound = combine("intersection", CULTURE, LANGUAGE, match="languages")
    assert cells_of(compound) == [("a", 1, "da")]


def test_a_union_ranks_the_rows_of_the_first_before_the_new_ones():
    union = combine("union", CULTURE, selection_of([("b", 0, "da"), ("a", 2, "da")], LEFT))
    assert cells_of(union)[:4] == [("a", 1, "da"), ("a", 2, "da"), ("a", 3, "da"), ("b", 0, "da")]


def test_a_union_takes_further_labels_and_dictionaries():
    one = selection_of([("a", 1, "de")], ("de",), dictionaries=("a",))
    other = selection_of([("b", 1, "bg"), ("a", 1, "de")], ("de", "bg"))
    third = selection_of([("b", 2, "bg")], ("bg", "de"))
    union = combine("union", one, other, third)
    assert cells_of(union) == [("a", 1, "de"), ("b", 1, "bg"), ("b", 2, "bg")]
    assert union.labels == ("de", "bg") and sorted(union.dictionaries) == ["a", "b"]


def test_the_header_has_what_was_combined(tmp_path):
    first = selection_of([], LEFT, method="cape")
    first.header["classes"] = {"specific": {"a": 3}}
    found = combine("difference", first, selection_of([], RIGHT, method="lape"), pairs=PAIRS)
    assert found.header["method"] == "difference"
    assert found.header["parameters"] == {
        "of": [{"method": "cape", "parameters": {}}, {"method": "lape", "parameters": {}}],
        "match": "labels",
        "pairs": {"da": ["dan"], "de": ["deu", "gsw"], "zh": ["cmn"]},
    }
    assert "classes" not in found.header  # they are of the rule's own units
    found.save(tmp_path / "x.parquet")
    assert Selection.load(tmp_path / "x.parquet").header == found.header
    plain = combine("union", first, selection_of([], LEFT)).header["parameters"]
    assert list(plain) == ["of"]


def test_classes_are_kept_in_the_file_and_checked(tmp_path):
    selection = selection_of([("a", 1, "da")], LEFT)
    selection.header["classes"] = {"general": {"a": 3, "b": 0}}
    path = tmp_path / "x.parquet"
    selection.save(path)
    assert Selection.load(path).header["classes"] == {"general": {"a": 3, "b": 0}}
    for wrong in ([1], {"general": 3}, {"general": {"a": "x"}}):
        selection.header["classes"] = json.loads(json.dumps(wrong))
        selection.save(path)
        with pytest.raises(UserError, match="not what saefeat writes there"):
            Selection.load(path)


@pytest.mark.parametrize("operation", ["union", "intersection", "difference"])
def test_what_cannot_be_combined_is_refused(operation):
    left, right = selection_of([], LEFT), selection_of([], RIGHT)
    with pytest.raises(UserError, match="same model"):
        combine(operation, left, selection_of([], LEFT, model={"name": "other"}))
    with pytest.raises(UserError, match="same dictionary a"):
        combine(operation, left, selection_of([], LEFT, width=6))
    with pytest.raises(UserError, match=r"label da has no counterpart .* dan, deu, cmn, gsw") as e:
        combine(operation, left, right)
    assert e.value.options == ("match", "pairs")
    with pytest.raises(UserError, match="no label xx to pair"):
        combine(operation, left, right, pairs=[("xx", "dan")])
    with pytest.raises(UserError, match="no label yy to pair"):
        combine(operation, left, right, pairs=[("da", "yy")])
    with pytest.raises(UserError, match="labels do not count"):
        combine(operation, left, right, match="units", pairs=PAIRS)


def test_a_union_does_not_mix_labels_that_only_share_a_name():
    with pytest.raises(UserError, match="label de of another selection belongs to no label"):
        combine(
            "union",
            selection_of([], ("de",)),
            selection_of([], ("deu", "de")),
            pairs=[("de", "deu")],
        )
