import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import make_stats
from hypothesis import given, settings
from hypothesis import strategies as st

from saefeat.io import UserError
from saefeat.ranking import COLUMNS, Part, make_part, rank_within_labels
from saefeat.selection import Selection

LABELS = ("de", "fr", "th")
MODEL = {"name": "m"}


def stats_of(name="sae-a", *, labels=LABELS, width=6, model=MODEL):
    """Three labels of 10 tokens. Unit u of label k fires u + k times with value 2.

    -1 is added to each total.
    """
    k, u = torch.meshgrid(torch.arange(len(labels)), torch.arange(width), indexing="ij")
    options = {"site": "mlp_out@3", "labels": labels, "signed": True, "header": {"model": model}}
    fields = {"fired": k + u, "sum": 2 * (k + u), "total": 2 * (k + u) - 1}
    stats = make_stats(name, **options, tokens=10, examples=5, **fields)
    stats.tensors["max"] = torch.where(k + u > 0, 2.5, -torch.inf)
    return stats


def cells(*rows, name="sae-a", **options):
    """A part with rows (unit, label, score)."""
    unit, label, score = zip(*rows, strict=True) if rows else ((), (), ())
    tensors = (
        torch.tensor(unit).long(),
        torch.tensor(label).long(),
        torch.tensor(score, dtype=torch.float64),
    )
    return make_part(stats_of(name, **options), *tensors)


def build(*parts: Part, **options):
    return Selection.build(parts, method="test", parameters={"x": 1}, **options)


def keys(selection):
    columns = [
        selection.table[name].to_pylist() for name in ("label", "rank", "dictionary", "unit")
    ]
    return list(zip(*columns, strict=True))


@pytest.fixture
def selection():
    return build(
        cells((5, 1, 0.3), (2, 0, 0.1), (4, 1, 0.3), (2, 1, 0.1), name="sae-b"),
        cells((4, 1, 0.3), (1, 0, 0.2)),
    )


def test_rows_are_ranked_within_labels_with_ties_by_dictionary_and_unit(selection):
    assert selection.table.column_names == list(COLUMNS)
    assert keys(selection) == [
        ("de", 1, "sae-b", 2),
        ("de", 2, "sae-a", 1),
        ("fr", 1, "sae-b", 2),
        ("fr", 2, "sae-a", 4),
        ("fr", 3, "sae-b", 4),
        ("fr", 4, "sae-b", 5),
    ]


def test_numbers_come_from_the_statistics_of_the_label():
    row = build(cells((4, 1, 0.25), (3, 0, 0.5))).for_label("fr").table.to_pylist()[0]
    assert (row["site"], row["score"], row["max"]) == ("mlp_out@3", 0.25, 2.5)
    assert row["probability"] == np.float32(5) / np.float32(10)
    assert (row["mean_firing"], row["mean"]) == (2.0, 0.9)


def test_header_tells_where_the_rows_come_from(selection):
    assert selection.labels == LABELS
    assert {k: selection.header[k] for k in ("method", "parameters", "model")} == {
        "method": "test",
        "parameters": {"x": 1},
        "model": MODEL,
    }
    assert selection.dictionaries["sae-b"] == {
        "id": "sae-b",
        "site": "mlp_out@3",
        "width": 6,
        "fingerprint": "sae-b",
        "kind": "sae",
    }


def test_by_probability_the_most_frequent_comes_first():
    selection = build(cells((1, 0, 0.1), (5, 0, 0.9), (3, 0, 0.5)), by="probability")
    assert selection.units("sae-a")["de"] == [5, 3, 1]


def test_the_order_of_parts_does_not_matter(tmp_path):
    parts = [cells((4, 1, 0.3), (1, 0, 0.2), name=name) for name in ("c", "a", "b")]
    build(*parts).save(tmp_path / "one")
    build(*reversed(parts)).save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_parts_that_do_not_belong_together_are_refused():
    for parts in [(), (cells(), cells()), (cells(), cells(name="b", labels=("de",)))]:
        with pytest.raises(UserError):
            build(*parts)
    with pytest.raises(UserError, match="model"):
        build(cells(), cells(name="b", model={"name": "other"}))


def test_places():
    assert rank_within_labels(
        np.array([1, 0, 1, 1]), np.array([2.0, 5, 1, 2]), np.array([1, 0, 0, 0])
    ).tolist() == [3, 1, 1, 2]
    assert rank_within_labels(np.array([], dtype=np.int64)).tolist() == []


@pytest.mark.parametrize("empty", [False, True])
def test_save_and_load_give_the_same_bytes(tmp_path, selection, empty):
    one, two = tmp_path / "label=x" / "one.parquet", tmp_path / "two.parquet"
    selection = build(cells()) if empty else selection
    selection.save(one)
    loaded = Selection.load(one)
    assert loaded == selection and loaded.table.schema.equals(selection.table.schema)
    loaded.save(two)
    assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["label=x", "two.parquet"]
    header = json.loads(pq.read_schema(two).metadata[b"saefeat"])
    assert header["schema"] == 1 and header["labels"] == list(LABELS)


VALUES = st.floats(-1e9, 1e9)
ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 2), VALUES), unique_by=lambda row: row[:2]
)


@settings(max_examples=60, deadline=None)
@given(ROWS, ROWS, st.permutations(["de", "ไทย", "a, b"]), st.booleans())
def test_a_saved_selection_is_loaded_as_it_was(tmp_path_factory, one, two, labels, by_probability):
    path = tmp_path_factory.mktemp("s") / "s.parquet"
    of = (("sae b", one), ("sae-a", two))
    parts = [cells(*rows, name=name, labels=tuple(labels)) for name, rows in of]
    selection = build(*parts, by="probability" if by_probability else "score")
    selection.save(path)
    loaded = Selection.load(path)
    assert loaded == selection and loaded.labels == tuple(labels)
    assert loaded.counts() == {
        label: sum(labels[k] == label for _, k, _ in one + two) for label in labels
    }
    for name, rows in of:
        units = loaded.units(name)
        assert {label: sorted(own) for label, own in units.items()} == {
            label: sorted(unit for unit, k, _ in rows if labels[k] == label) for label in labels
        }
        assert units == {
            label: [u for d, u, of in loaded.cells() if (d, of) == (name, label)]
            for label in labels
        }


@pytest.mark.parametrize(
    ("column", "value"),
    [("unit", -1), ("unit", 6), ("rank", 0), ("label", "xx"), ("dictionary", "xx")],
)
def test_a_row_that_does_not_fit_the_header_is_refused(tmp_path, selection, column, value):
    path, at = tmp_path / "x.parquet", COLUMNS.index(column)
    kind = selection.table.schema.field(at)
    values = pa.array([*selection.table[column].to_pylist()[:-1], value], kind.type)
    Selection(selection.table.set_column(at, kind, values), selection.header).save(path)
    with pytest.raises(UserError, match=r"x\.parquet is damaged; rank again"):
        Selection.load(path)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_with_nulls_is_refused(tmp_path, selection, column):
    at = COLUMNS.index(column)
    kind = selection.table.schema.field(at)
    holes = pa.array([None, *selection.table[column].to_pylist()[1:]], kind.type)
    Selection(selection.table.set_column(at, kind, holes), selection.header).save(
        tmp_path / "x.parquet"
    )
    with pytest.raises(UserError, match=r"x\.parquet is damaged; rank again"):
        Selection.load(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    "change",
    [
        {"labels": None},
        {"labels": ["de"]},
        {"labels": ["de", "de", "fr"]},
        {"labels": [1]},
        {"dictionaries": []},
        {"dictionaries": {}},
        {"dictionaries": {"sae-a": 1, "sae-b": 1}},
        {"dictionaries": {"sae-a": {}, "sae-b": {}}},
        {"dictionaries": {"sae-a": {"width": 4}, "sae-b": {"width": 4}}},
        {"parameters": 3},
        {"method": 1},
        {"stats": 1},
    ],
)
def test_a_header_that_does_not_fit_the_rows_is_refused(tmp_path, selection, change):
    Selection(selection.table, {**selection.header, **change}).save(tmp_path / "x.parquet")
    with pytest.raises(
        UserError, match=r"x\.parquet is (damaged; rank again|not what saefeat writes there)"
    ):
        Selection.load(tmp_path / "x.parquet")


def test_a_file_that_is_no_selection_is_refused(tmp_path, selection):
    whole, path = tmp_path / "whole", tmp_path / "x.parquet"
    selection.save(whole)
    with pytest.raises(UserError, match="does not exist"):
        Selection.load(path)
    with pytest.raises(UserError):
        Selection.load(tmp_path)
    for data in (b"", b"hello", whole.read_bytes()[:-50], whole.read_bytes()[100:]):
        path.write_bytes(data)
        with pytest.raises(UserError, match="readable"):
            Selection.load(path)
    foreign = selection.table
    for metadata in ({}, {b"saefeat": b"[]"}, {b"saefeat": b"{}"}):
        pq.write_table(foreign.replace_schema_metadata(metadata), path)
        with pytest.raises(UserError, match="not a selection"):
            Selection.load(path)
    pq.write_table(foreign.replace_schema_metadata({b"saefeat": b"{"}), path)
    with pytest.raises(UserError):
        Selection.load(path)
    pq.write_table(
        pa.table({"a": [1]}).replace_schema_metadata({b"saefeat": b'{"method": "x"}'}), path
    )
    with pytest.raises(UserError, match="not a selection"):
        Selection.load(path)
    pq.write_table(
        foreign.replace_schema_metadata({b"saefeat": b'{"schema": 99, "method": "x"}'}), path
    )
    with pytest.raises(UserError, match="schema 99"):
        Selection.load(path)


def test_csv_and_pandas(tmp_path, selection):
    selection.to_csv(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    frame = selection.to_pandas()
    assert list(rows[0]) == list(COLUMNS) == list(frame.columns)
    assert [(r["label"], int(r["rank"]), r["dictionary"], int(r["unit"])) for r in rows] == keys(
        selection
    )
    assert [np.float32(r["probability"]) for r in rows] == selection.table[
        "probability"
    ].to_pylist()
    assert frame["score"].tolist() == selection.table["score"].to_pylist()


def test_label_units_head(selection):
    assert keys(selection.for_label("de")) == [("de", 1, "sae-b", 2), ("de", 2, "sae-a", 1)]
    assert len(selection.for_label("th")) == 0
    with pytest.raises(UserError, match="de, fr, th"):
        selection.for_label("xx")
    assert selection.units("sae-b") == {"de": [2], "fr": [2, 4, 5], "th": []}
    with pytest.raises(UserError, match="sae-a, sae-b"):
        selection.units("xx")
    assert keys(selection.head(1)) == [("de", 1, "sae-b", 2), ("fr", 1, "sae-b", 2)]
    assert selection.head(99) == selection
