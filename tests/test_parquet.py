"""Parquet files: columns are checked, and what does not fit is one sentence."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saefeat.io import UserError
from saefeat.parquet import read_table

FIELDS = pa.schema([pa.field("text", pa.string(), nullable=False), pa.field("of", pa.string())])
BROKEN = pa.array([b"\xff"], pa.binary()).view(pa.string())


def test_a_table_comes_back_with_the_columns_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = {"n": [1, 2], "of": ["a", None], "text": ["x", "y"]}
    pq.write_table(pa.table(table), path)
    found = read_table(path, FIELDS, [("text", "in", ["y"])])
    assert found.to_pylist() == [{"text": "y", "of": None}]
    pq.write_table(pa.table({"text": ["x"], "of": pa.nulls(1)}), path)  # nothing but gaps
    assert read_table(path, FIELDS)["of"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"text": ["x"]}, "no column of"),
        ({"text": [1], "of": ["x"]}, "text is int64"),
        ({"text": ["x", None], "of": ["x", "y"]}, "text has gaps"),
        ({"text": pa.nulls(1), "of": ["x"]}, "text is null"),
        ({"text": BROKEN, "of": ["x"]}, "not a readable"),
    ],
)
def test_columns_that_do_not_fit_give_one_sentence_of_error(tmp_path, columns, words):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(UserError, match=rf"x\.parquet is .*{words}") as caught:
        read_table(path, FIELDS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 99, None])
def test_a_file_that_is_not_parquet_gives_one_sentence_of_error(tmp_path, data):
    path = tmp_path / "x.parquet"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.parquet") as caught:
        read_table(path, FIELDS)
    assert "\n" not in str(caught.value)
