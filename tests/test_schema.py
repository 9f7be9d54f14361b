"""Strict types of JSON, JSONL and Parquet files."""

from __future__ import annotations

import json
from typing import Any, NotRequired

import pytest
from pydantic import with_config
from typing_extensions import TypedDict

from saefeat.io import UserError
from saefeat.schema import STRICT, checked, ensures, read, read_lines, write, write_lines


def check_span(span):
    if span["ends"][0] > span["ends"][1]:
        raise ValueError("the ends are not in order")


@ensures(check_span)
@with_config(STRICT)
class Span(TypedDict):
    name: str
    ends: tuple[float, float]


@with_config(STRICT)
class Content(TypedDict):
    n: int
    spans: list[Span]
    note: NotRequired[str | None]


GOOD = {"n": 3, "spans": [{"name": "ä\u2028", "ends": [1, 2.5]}], "note": None}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.json"


def test_content_that_fits_comes_back_typed(path):
    value = {"n": 3, "spans": [{"name": "ä\u2028", "ends": (1.0, 2.5)}]}
    write(Content, path, value)
    assert read(Content, path) == value
    assert checked(Content, GOOD, path) == {**value, "note": None}
    assert json.loads(path.read_text(encoding="utf-8"))["spans"][0]["ends"] == [1, 2.5]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"n": "3"}, "n: "),
        ({"n": 3.0}, "n: "),
        ({"n": True}, "n: "),
        ({"n": None}, "n: "),
        ({"more": 1}, "more: "),
        ({"spans": {}}, "spans: "),
        ({"spans": [{"name": "a", "ends": [1]}]}, r"spans\.0\.ends"),
        ({"spans": [{"name": "a", "ends": [1, float("nan")]}]}, r"spans\.0\.ends\.1"),
        ({"spans": [{"name": "a", "ends": [1, 10**400]}]}, r"spans\.0\.ends\.1"),
        ({"spans": [{"name": "a"}]}, r"spans\.0\.ends"),
        ({"spans": [{"name": "a", "ends": [2, 1]}]}, r"spans\.0: .*not in order"),
    ],
)
def test_content_that_does_not_fit_is_one_sentence_that_says_where(path, change, where):
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(
        UserError, match=rf"x\.json is not what .*\({where}.*; run it again"
    ) as caught:
        read(Content, path, help="run it again")
    assert "\n" not in str(caught.value)


def test_a_number_that_is_not_finite_is_found_where_any_value_may_stand(path):
    for text in ('{"a": [NaN]}', '{"a": 1e999}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"x\.json is not what .*a number is not finite"):
            read(dict[str, Any], path)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "3", "null"])
def test_json_of_another_kind_is_a_user_error(path, text):
    path.write_text(text)
    with pytest.raises(UserError, match=r"x\.json is not"):
        read(Content, path)


def test_a_missing_file_is_a_user_error(path):
    for call in (lambda: read(Content, path), lambda: read_lines(Content, path)):
        with pytest.raises(UserError, match=r"x\.json"):
            call()


def test_lone_surrogates_become_question_marks(path):
    path.write_text(json.dumps({"n": 1, "spans": [{"name": "a\ud800b", "ends": [0, 0]}]}))
    assert read(Content, path)["spans"][0]["name"] == "a?b"


@pytest.mark.parametrize("change", [{"n": "3"}, {"more": 1}, {"n": float("nan")}])
def test_writing_what_does_not_fit_is_a_bug_and_writes_nothing(path, change):
    for call in (
        lambda: write(Content, path, {**GOOD, **change}),
        lambda: write_lines(Content, path, [GOOD, {**GOOD, **change}]),
    ):
        with pytest.raises(ValueError):
            call()
    assert not path.exists()


def test_lines_come_back_and_blank_ones_are_skipped(path):
    write_lines(Content, path, [GOOD, GOOD])
    path.write_text(path.read_text(encoding="utf-8") + "\n  \n", encoding="utf-8")
    assert [line["n"] for line in read_lines(Content, path)] == [3, 3]


@pytest.mark.parametrize("line", [b"{", b"\xff", b"[]", b'{"n": 1}'])
def test_a_damaged_line_is_named_by_its_number(path, line):
    good = json.dumps(GOOD).encode()
    path.write_bytes(b"\n".join([good, b"", line, good]))
    with pytest.raises(UserError, match=r"x\.json is .*line 3") as caught:
        read_lines(Content, path)
    assert "\n" not in str(caught.value)
