"""`saefeat select` and `saefeat overlap` on selections of a real run."""

from __future__ import annotations

import csv

import pytest
from helpers import selection_of

from saefeat.run import rank
from saefeat.selection import Selection


@pytest.fixture
def ranked(tiny_run, tmp_path):
    """Two selections of the same SAEs: units of any number of owners, and of one owner."""
    found = {}
    for name, owners in (("any", "any"), ("one", 1)):
        selection = rank(tiny_run / "stats", "sae-lape", owners=owners, example_rate=0.2)
        selection.save(tmp_path / f"{name}.parquet")
        found[name] = tmp_path / f"{name}.parquet"
    return found


def cells(path):
    table = Selection.load(path).table
    return {(r["dictionary"], r["unit"], r["label"]) for r in table.to_pylist()}


def test_operations_write_selections_and_print_counts(saefeat, ranked, tmp_path):
    every, one = cells(ranked["any"]), cells(ranked["one"])
    assert one < every and one
    wanted = {"union": every, "intersection": one, "difference": every - one}
    for op, rows in wanted.items():
        out = tmp_path / f"{op}.parquet"
        code, text, error = saefeat(
            "select", ranked["any"], ranked["one"], "--op", op, "--out", out
        )
        assert (code, error) == (0, "")
        assert cells(out) == rows
        selection = Selection.load(out)
        counts = ", ".join(f"{at} {len(selection.for_label(at))}" for at in selection.labels)
        assert text == f"{out}: {len(rows)} rows; {counts}\n"


def test_shared_units_are_those_that_one_label_does_not_own_alone(saefeat, ranked, tmp_path):
    def owned(owners):
        out = tmp_path / "owned.parquet"  # its own output it may replace
        assert saefeat("select", ranked["any"], "--owners", owners, "--out", out)[0] == 0
        return cells(out)

    every = cells(ranked["any"])
    assert owned("1") == cells(ranked["one"])
    assert owned("2+") == every - owned("1") == owned("2") | owned("3")


def test_the_result_may_be_csv_or_be_combined_again(saefeat, ranked, tmp_path):
    out = tmp_path / "x.csv"
    words = ("select", ranked["any"], ranked["one"], "--op", "difference", "--out")
    assert saefeat(*words, out)[0] == 0
    with out.open(newline="") as file:
        rows = {(r["dictionary"], int(r["unit"]), r["label"]) for r in csv.DictReader(file)}
    assert rows == cells(ranked["any"]) - cells(ranked["one"])
    part = tmp_path / "part.parquet"
    assert saefeat(*words, part)[0] == 0
    whole = tmp_path / "whole.parquet"
    assert saefeat("select", part, ranked["one"], "--op", "union", "--out", whole)[0] == 0
    assert cells(whole) == cells(ranked["any"])


@pytest.fixture
def cultures(tmp_path):
    """Units of the cultures da and zh, and of languages in another code system."""
    culture = [("a", 1, "da"), ("a", 2, "da"), ("a", 3, "da"), ("b", 1, "zh")]
    language = [("a", 1, "dan_Latn"), ("a", 2, "cmn_Hans"), ("b", 1, "nob_Latn")]
    selection_of(culture, ("da", "zh")).save(tmp_path / "culture.parquet")
    of = ("dan_Latn", "cmn_Hans", "nob_Latn")
    selection_of(language, of).save(tmp_path / "language.parquet")
    return tmp_path / "culture.parquet", tmp_path / "language.parquet"


@pytest.mark.parametrize(
    ("options", "units"),
    [
        (["--match", "languages"], {("a", 2), ("a", 3), ("b", 1)}),
        (["--map", "da=dan_Latn,zh=cmn_Hans"], {("a", 2), ("a", 3), ("b", 1)}),
        (["--map", "da=dan_Latn,zh=cmn_Hans", "--map", "zh=nob_Latn"], {("a", 2), ("a", 3)}),
        (["--match", "units"], {("a", 3)}),
    ],
)
def test_pure_culture_is_one_command_for_each_reading(saefeat, cultures, tmp_path, options, units):
    out = tmp_path / "pure.parquet"
    words = ["select", *cultures, "--op", "difference", *options, "--out", out]
    assert saefeat(*words)[0] == 0
    assert {cell[:2] for cell in cells(out)} == units


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--op", "difference"], "no counterpart in another selection"),
        (["--op", "difference"], "(--match, --map)"),
        (["--op", "minus"], "minus is none of union, intersection, difference (--op)"),
        (["--op", "union", "--match", "x"], "x is none of labels, languages, units (--match)"),
        (["--op", "union", "--map", "da"], "'da' is not of the form LABEL=OTHER (--map)"),
        (["--op", "union", "--map", "xx=dan_Latn"], "no label xx to pair"),
        (["--op", "union", "--match", "units", "--owners", "9"], "from 1 to 5"),
        (["--op", "union", "--owners", "many"], "many is not a number of labels such as 3 or 3+"),
        ([], "at least two selections"),
    ],
)
def test_bad_input_is_one_sentence(saefeat, cultures, tmp_path, options, words):
    out = tmp_path / "x.parquet"
    code, text, error = saefeat("select", *cultures, *options, "--out", out)
    assert (code, text) == (2, "") and words in error and len(error.splitlines()) == 1
    assert not out.exists()


def test_other_models_files_and_outputs_are_refused(saefeat, ranked, cultures, tmp_path):
    out = tmp_path / "x.parquet"
    words = {
        "needs the same model": ("select", ranked["any"], cultures[0], "--op", "union"),
        "does not exist": ("select", ranked["any"], tmp_path / "none", "--op", "union"),
        "there is nothing to do": ("select", ranked["any"]),
    }
    for message, command in words.items():
        code, _, error = saefeat(*command, "--out", out)
        assert code == 2 and message in error and len(error.splitlines()) == 1
    out.write_text("mine")
    code, _, error = saefeat("select", ranked["any"], "--owners", "1", "--out", out)
    assert code == 2 and "exists and is no selection; choose another output (--out)" in error
    assert out.read_text() == "mine"


def test_overlap_writes_tables_and_prints_the_typology(saefeat, ranked, tmp_path):
    out = tmp_path / "tables"
    code, text, error = saefeat("overlap", *ranked.values(), "--out", out)
    assert (code, error) == (0, "")
    names = ["labels.csv", "rules.csv", "layers.csv", "typology.csv"]
    assert text.splitlines()[0] == f"{out}: {', '.join(names)}"
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    with (out / "rules.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["de", "en", "th"]
    for row in rows:
        one = {cell for cell in cells(ranked["one"]) if cell[2] == row["label"]}
        assert (row["selection"], row["other"]) == ("any", "one")
        assert int(row["both"]) == int(row["other_size"]) == len(one)
    code, _, error = saefeat("overlap", ranked["any"], ranked["any"], "--out", out)
    assert code == 2 and "given twice" in error
    code, _, error = saefeat("overlap", ranked["any"], "--out", ranked["one"])
    assert code == 2 and "is no directory; choose another output (--out)" in error


def test_selections_of_one_name_are_told_apart_by_their_paths(saefeat, ranked, tmp_path):
    (tmp_path / "b").mkdir()
    twin = tmp_path / "b" / "any.parquet"
    twin.write_bytes(ranked["any"].read_bytes())
    assert saefeat("overlap", ranked["any"], twin, "--out", tmp_path / "tables")[0] == 0
    with (tmp_path / "tables" / "rules.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["other"] for row in rows} == {str(twin)}
    assert {float(row["iou"]) for row in rows if int(row["size"])} == {1.0}
