"""The report: its parts, missing parts, escaping, no network, size, equal bytes, tables."""

from __future__ import annotations

import base64
import csv
import gzip
import html
import json
import random
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saefeat.config import STEERING_METHODS
from saefeat.io import UserError, write_json
from saefeat.overlap import overlap_tables
from saefeat.ranking import COLUMNS
from saefeat.report import write_report
from saefeat.report.page import render
from saefeat.report.parts import read_parts
from saefeat.report.sets import sets_view
from saefeat.report.spread import Spread
from saefeat.report.units import method_views
from saefeat.report.view import drawn_data, page_view
from saefeat.rundir import RunDir
from saefeat.selection import Selection

VOID = {"meta", "img", "br", "input", "link", "hr"}
TABLES = {"lid", "errors", "features", "overlap", "labels", "layers", "steering", "matrix"}
TABLES |= {"compare", "compare_overlap"}


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/gzip" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def units_of(page: str, method: int = 0) -> Iterator[dict[str, Any]]:
    for units in data_of(page)["methods"][method]["units"]:
        yield from units


def spans_of(page: str) -> list[list[Any]]:
    return [p["spans"] for unit in units_of(page) for p in unit.get("passages", [])]


def table(run: Path, name: str) -> list[dict[str, str]]:
    with (run / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Shape(HTMLParser):
    """Text outside script and style, elements by name, attributes, and whether elements nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


# --------------------------------------------------------------------------- the page


def test_what_was_run_and_identification_are_there(run: Path) -> None:
    page = page_of(run)
    text = re.sub(r"\s+", " ", Shape(page).text)
    for words in (
        "tiny",
        "1,234 texts",
        "mlp_out@12",
        "31.7",
        "3.1 %",
        "400,000",
        "1 min 15 s",
        "skipped · blank",
    ):
        assert words in text, words
    for words in (
        "2.11",
        "0.100 – 0.200",
        "40 sentences per label",
        "linear",
        "fasttext",
        "a new head",
        "first 10",
    ):
        assert words in text, words
    for words in ("whole text", "1.000", "temperature 0.7"):
        assert words in text, words
    assert 'class="absent">' not in page.split("<noscript>")[0]


def test_rules_stand_side_by_side(run: Path, evil: str) -> None:
    section = re.sub(r"\s+", " ", page_of(run).split('<section id="rules">')[1])
    text = html.unescape(re.sub("<[^>]+>", " ", section.split("</section>")[0]))
    for words in ("0.625", "0.750", "0.250", "1 / 1", "strength 1.3", "0.38", evil, "4 labels"):
        assert words in text, words
    first, *_ = table(run, "compare")
    assert (first["units"], first["stability_mean"], first["f1_20_random"]) == (
        "6",
        "0.625",
        "0.125",
    )
    assert (first["ablation_selectivity_low"], first["steering_ahead_high"]) == ("0.15", "0.5")
    assert table(run, "compare_overlap")[0]["iou"] == "0.375"


def test_the_best_of_a_column_is_bold(run: Path) -> None:
    page = page_of(run)
    row = page[page.index('<tr><th scope="row">linear') :]
    row = row[: row.index("</tr>")]
    assert row.count('class="best"') == 5  # accuracy and four lengths
    row = page[page.index('<tr><th scope="row">a new head') :]
    assert 'class="best"' not in row[: row.index("</tr>")]


def test_charts_get_the_numbers_of_the_run(run: Path) -> None:
    data = data_of(page_of(run))
    assert data["labels"][:3] == ["de", "ar", "ja"]
    assert data["confusion"]["lengths"] == ["10", "20", "50", "all"]
    cells = data["confusion"]["confusion"]["linear"]["10"]
    first = [(0, 0, 8), (0, 1, 1), (0, 4, 1), (1, 1, 10)]  # row, column, count
    assert cells == [number for cell in (*first, (2, 2, 10), (3, 3, 10)) for number in cell]
    features, neurons = data["methods"]
    assert features["dictionaries"] == ["mlp_out@3", "mlp_out@12"]
    assert features["counts"] == [[2, 2], [2, 2], [2, 2], [0, 0]]
    assert neurons["dictionaries"] == ["mlp_act@3"]


def test_a_unit_has_its_probability_by_label_entropy_histogram_tokens_and_passages(
    run: Path,
) -> None:
    unit = next(unit for unit in units_of(page_of(run)) if unit["unit"] == 0)
    p = dict(unit["p"])
    assert (p["de"], p["ar"]) == (0.6, 0.6)
    assert p["ja"] < 0.06 and unit["left_out"] is None
    assert 0.69 < unit["entropy"] < 1.1  # two labels, and a little of the others
    assert unit["others"] in (["ar"], ["de"])
    assert unit["histogram"] == {"tokens": 500, "fired": 30, "max": 3.5, "counts": [0, 5, 15, 10]}
    assert unit["tokens"][:2] == ["␣Tag", "↵"]
    assert unit["passages"][0]["value"] == 2.5


def test_the_bins_of_a_histogram_may_have_edges_of_their_own(run: Path) -> None:
    shown = json.loads((run / "examples" / "shown.json").read_text(encoding="utf-8"))
    shown[0]["histogram"]["edges"] = [0.001, 0.01, 0.123456, 1, 10]
    write_json(run / "examples" / "shown.json", shown)
    histograms = [unit["histogram"] for unit in units_of(page_of(run))]
    assert [one["edges"] for one in histograms if "edges" in one] == [[0.001, 0.01, 0.1235, 1, 10]]
    shown[0]["histogram"]["edges"].pop()
    write_json(run / "examples" / "shown.json", shown)
    refused(run, r"shown\.json .*edges and counts do not agree")


def test_the_entropy_of_every_unit_that_fires_is_counted_and_the_chosen_ones_are_marked(
    run: Path,
) -> None:
    parts = data_of(page_of(run))["entropy"]["parts"]
    assert [part["dictionary"] for part in parts] == [
        "mlp_out@3",
        "mlp_out@12",
        "mlp_act@3",
    ]  # SAEs first
    for part in parts:
        assert (sum(part["bins"]), sum(part["chosen"]), part["fired"], part["silent"]) == (
            15,
            5,
            15,
            1,
        )


def test_overlap_counts_the_units_that_two_labels_own(run: Path) -> None:
    page = page_of(run)
    assert "the units that sae-lape assigns to it" in page
    overlap = data_of(page)["overlap"]
    assert (overlap["method"], overlap["filters"][0]) == ("sae-lape", "example_rate 0.98")
    assert overlap["both"] == [
        [4, 2, 0, 0],
        [2, 4, 0, 0],
        [0, 0, 4, 0],
        [0, 0, 0, 0],
    ]  # of two SAEs; no neurons


def test_overlap_of_the_units_that_a_method_chose(run: Path) -> None:
    features, neurons = data_of(page_of(run))["sets"]
    assert (features["name"], neurons["name"]) == ("sae-lape", "lape")
    assert features["both"] == [[4, 2, 0, 0], [2, 4, 0, 0], [0, 0, 4, 0], [0, 0, 0, 0]]
    # three of the six pairs are of 4 and 4 of 32 units, and the others have an empty set
    assert features["chance"] == pytest.approx(0.0756 / 2, abs=1e-3)
    rows = {(r["selection"], r["label"], r["other"]): r for r in table(run, "labels")}
    assert len(rows) == 2 * 6
    row = rows["sae-lape", "de", "ar"]
    assert (float(row["iou"]), float(row["overlap"])) == (0.333333, 0.5)
    assert float(row["expected_both"]) == 2 * (2 * 2 / 16)


def words_of(page: str) -> str:
    """The text of the page, with one blank between the texts of elements."""
    return re.sub(r"\s+", " ", Shape(page.replace("<", " <")).text)


def renamed(selection: Selection, labels: list[str], method: str) -> Selection:
    """The selection with other names of its labels, as if of another method."""
    names = dict(zip(selection.labels, labels, strict=True))
    column = pa.array([names[label] for label in selection.table["label"].to_pylist()])
    at = COLUMNS.index("label")
    kept = selection.table.set_column(at, selection.table.schema.field(at), column)
    return Selection(kept, {**selection.header, "labels": labels, "method": method})


def test_methods_of_one_dictionary_and_groups_of_languages_are_compared(run: Path) -> None:
    place, labels = RunDir(run), ["de", "en", "ja", "ko"]  # the first two have one script
    shutil.rmtree(run / "examples")
    shutil.rmtree(run / "stats")
    features = place.load_selection("sae-lape")
    (run / "selections" / "lape.parquet").unlink()
    place.save_selection("sae-lape", renamed(features, labels, "sae-lape"))
    few = renamed(features.head(1), labels, "feature-diffmean")
    place.save_selection("feature-diffmean", few)
    page = words_of(page_of(run))
    assert "Between methods rules.csv Label sae-lape, feature-diffmean" in page
    assert "1 in both of 4 and 1; expected" in page
    rules = table(run, "rules")
    assert [row["label"] for row in rows_with_units(rules)] == labels[:3]
    assert {float(row["iou"]) for row in rows_with_units(rules)} == {0.25}
    script = next(row for row in table(run, "typology") if row["grouping"] == "script")
    assert (script["selection"], script["labels"], script["pairs_within"]) == ("sae-lape", "3", "1")
    assert (float(script["iou_within"]), float(script["iou_across"])) == (0.333333, 0)
    assert "Within and across groups of languages typology.csv" in page


def rows_with_units(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [row for row in rows if row["size"] != "0"]


def test_classes_of_units_are_shown_by_layer_with_the_stage_of_four_layers(run: Path) -> None:
    page = words_of(page_of(run))
    assert "Dictionary Layer one label several labels all labels Units" in page
    assert "mlp_out@3 3 4 1 0 5 of 16" in page
    assert "Units Stage" not in page  # two layers of SAEs and one of neurons
    place = RunDir(run)
    neurons = place.load_selection("lape")
    kinds = neurons.dictionaries["mlp_act@3"]
    for layer in (4, 5, 6):
        name = f"mlp_act@{layer}"
        neurons.dictionaries[name] = {**kinds, "id": name, "site": name}
    names = [f"mlp_act@{layer}" for layer in (3, 4, 5, 6)]
    counts = {"general": [0, 1, 1, 9], "related": [5, 0, 0, 7], "specific": [5, 0, 0, 2]}
    neurons.header["classes"] = {
        name: dict(zip(names, numbers, strict=True)) for name, numbers in counts.items()
    }
    place.save_selection("lape", neurons)
    page = words_of(page_of(run))
    assert "Dictionary Layer general related specific Units Stage" in page
    for row in ("mlp_act@3 3 0 5 5 5 of 16 1", "mlp_act@6 6 9 7 2 0 of 16 3"):
        assert row in page
    layers = [row for row in table(run, "layers") if row["selection"] == "lape"]
    assert {(row["dictionary"], row["stage"]) for row in layers} == {
        ("mlp_act@3", "1"), ("mlp_act@4", "2"), ("mlp_act@5", "2"), ("mlp_act@6", "3"),
    }  # fmt: skip


def test_errors_are_grouped_by_who_was_right(run: Path) -> None:
    errors = data_of(page_of(run))["errors"]
    short, whole = (
        [(e["kind"], e["ours"], e["theirs"]) for e in errors if e["length"] == at]
        for at in ("10", "all")
    )
    assert short == [("theirs", "ar", "de"), ("ours", "de", "ja"), ("neither", None, None)]
    assert whole == [("ours", "de", None), ("ours", "de", "ja")]


def test_steering_shows_what_was_tuned_as_the_other_half_measured_it(run: Path) -> None:
    steering = data_of(page_of(run))["steering"]
    assert steering["methods"] == ["none", "random", "diffmean", "neurons", "features"]
    cell = steering["chosen"]["features"]["de"]
    assert (cell["half"], cell["forcing"], cell["perplexity"]) == ("report", 1, 40)
    assert "strength 3 " in cell["setting"] and len(cell["ci"]["score"]) == 2
    assert cell["score_in_context"] == pytest.approx(cell["score"] + 0.05)
    assert steering["own"]["de"]["perplexity_in_context"] == 14
    assert steering["mean"]["features"]["perplexity"] == 40
    means = {row["method"]: row["features_ahead_by"] for row in steering["summary"]}
    assert list(means) == steering["methods"]
    assert (means["random"], means["features"]) == (0.123, None)
    places = {line["method"]: line["place"] for line in steering["lines"]}
    assert places == {method: [*STEERING_METHODS].index(method) for method in places}
    line = next(line for line in steering["lines"] if line["method"] == "random")
    assert [point[0] for point in line["points"][""]] == [1, 2, 3]
    assert [point[1] for point in line["points"]["de"]] == [
        2,
        None,
        4,
    ]  # relative to own; one was not measured
    assert steering["settings"]["ar"].startswith("features: add · resid_post@3 · strength 1.5")


def test_the_matrix_has_changes_and_counts_the_rows_whose_diagonal_is_greatest(run: Path) -> None:
    features, others = data_of(page_of(run))["matrix"]["interventions"]
    assert features["changes"]["nll_median"] == [
        [0.5, 0, 0, 0],
        [0, 0.5, 0, 0],
        [0, 0, 0.5, 0],
        [0, 0, 0, 0],
    ]
    assert features["changes"]["perplexity_mean"][0] == [0.6487, 0, 0, 0]
    assert set(features["diagonal"].values()) == {3}
    assert set(others["diagonal"].values()) == {0}


def test_the_page_opens_on_a_method_that_chose_something(run: Path) -> None:
    path = run / "selections" / "sae-lape.parquet"
    Selection.load(path).head(0).save(path)
    page = page_of(run)
    assert '<input type="radio" name="method" value="1" checked>' in page
    assert "chose 0 units" in page


# --------------------------------------------------------------------------- text


def test_markup_in_the_corpus_stays_text(run: Path, evil: str) -> None:
    page = page_of(run)
    assert evil not in page and "<b>x</b>" not in page
    assert page.count("</script>") == page.count("<script") == 2
    shape = Shape(page)
    images = [value for name, value in shape.attributes if name == "src"]
    assert len(images) == shape.elements.count("img") == 1 and not shape.open
    assert images[0].startswith("data:image/svg+xml;base64,")  # scripts do not run there
    assert evil in shape.text
    assert not [name for name, _ in shape.attributes if name.startswith("on")]
    assert html.escape(evil).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page


def test_the_script_never_reads_text_as_markup(run: Path) -> None:
    script = page_of(run).rsplit("<script>", 1)[1]
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|DOMParser", script
    )


def test_pieces_are_shaded_and_the_peak_is_marked(run: Path) -> None:
    spans = [span for passage in spans_of(page_of(run)) for span in passage]
    assert [" بالعالم", 100, True] in spans
    assert ["</script>", 40, False] in spans


def test_combining_marks_stay_on_their_letter_and_direction_is_of_the_whole_text(run: Path) -> None:
    path = run / "examples" / "shown.json"
    shown = json.loads(path.read_text(encoding="utf-8"))
    pieces = {"pieces": ["ह", "ि", "न्द", "ी है"], "activations": [0, 0, 1, 2]}
    shown[0]["passages"] = [{"text": "हिन्दी", "label": "hi", "value": 2, **pieces}]
    shown[1]["passages"] = [{"text": "OK مرحبا بالعالم", "label": "ar", "value": 1}]
    write_json(path, shown)
    first, second = [unit["passages"][0] for unit in units_of(page_of(run)) if unit["rank"] < 3][:2]
    assert first["spans"] == [["हि", 0, False], ["न्दी", 50, False], [" है", 100, True]]
    assert (first["direction"], second["direction"]) == ("ltr", "rtl")


def test_a_long_passage_is_cut_around_its_peak(run: Path) -> None:
    shown = json.loads((run / "examples" / "shown.json").read_text())
    pieces = [f"p{at}." for at in range(1000)]
    activations = [float(at == 500) for at in range(1000)]
    passage = {
        "text": "",
        "label": "de",
        "value": 1.0,
        "pieces": pieces,
        "activations": activations,
    }
    shown[1]["passages"] = [passage, passage]
    write_json(run / "examples" / "shown.json", shown)
    long = [spans for spans in spans_of(page_of(run)) if any("p500." in text for text, *_ in spans)]
    for spans, start, end in zip(
        long, (460, 482), (540, 518), strict=True
    ):  # of the second one less
        text = "".join(text for text, *_ in spans)
        assert text.startswith(f"… p{start}.") and text.endswith(f"p{end}. …")


def test_lone_surrogates_do_not_stop_it(run: Path) -> None:
    path = run / "examples" / "shown.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace("Grüße", "\\ud800Gr"), encoding="utf-8"
    )
    assert any("?Gr" in text for spans in spans_of(page_of(run)) for text, *_ in spans)


# --------------------------------------------------------------------------- the file


def test_nothing_is_loaded_from_elsewhere(run: Path) -> None:
    page = page_of(run)
    for name, value in Shape(page).attributes:
        if name in ("src", "href", "srcset", "data", "action", "poster"):
            assert value.startswith(
                ("#", "tables/", "experiments/", "data:,", "data:image/svg+xml;base64,")
            ), (name, value)
    page = page.replace('"http://www.w3.org/2000/svg"', "")  # a name, not an address
    assert not re.search(
        r"https?://|@import|url\(|\bfetch\(|XMLHttpRequest|\bimport\b *[('\"]", page
    )
    assert "default-src 'none'" in page


def test_a_second_report_has_the_same_bytes_and_leaves_no_other_files(run: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {
            str(path): path.read_bytes()
            for path in [run / "report.html", *(run / "tables").iterdir()]
        }

    write_report(run)
    first = contents()
    write_report(run)
    assert contents() == first
    assert {path.name for path in run.glob("*report*")} == {"report.html"}


def test_hundreds_of_labels_with_text_that_cannot_be_packed_stay_under_8_mb(run: Path) -> None:
    place = RunDir(run)
    parts = read_parts(place)
    view = page_view(parts, "run")
    rng = random.Random(0)
    labels = [f"label-{at}" for at in range(480)]
    row = parts.selections["sae-lape"].table.to_pylist()[0]
    counts = {"tokens": 9, "fired": 9, "max": 1.0}

    def unit(at: int) -> dict[str, Any]:
        passage = {
            "text": "",
            "label": "x",
            "value": 1.0,
            "pieces": [
                "".join(chr(rng.randrange(0x4E00, 0x9FA0)) for _ in "abc") for _ in range(128)
            ],
            "activations": [rng.random() for _ in range(128)],
        }
        histogram = {**counts, "counts": [rng.randrange(99) for _ in range(24)]}
        shown = {"tokens": ["x" * 12] * 8, "passages": [passage] * 3, "histogram": histogram}
        cell = {"dictionary": "d", "unit": at, "label": labels[at // 5]}
        return {**row, **cell, "rank": 1 + at % 5, "method": "m", **shown}

    rows = [unit(at) for at in range(2400)]
    table = pa.Table.from_pylist(
        [{name: row[name] for name in COLUMNS} for row in rows],
        parts.selections["sae-lape"].table.schema,
    )
    header = parts.selections["sae-lape"].header
    selection = Selection(
        table, {**header, "labels": labels, "dictionaries": {"d": {"width": 2400}}}
    )
    p = [rng.random() for _ in labels]
    spread = Spread(tuple(labels), None, units={("d", at): (1.2, p) for at in range(2400)})
    both = [[rng.randrange(100) for _ in labels] for _ in labels]
    view["methods"] = method_views({"m": selection}, rows, spread)
    view["overlap"] |= {"labels": labels, "both": both}
    view["sets"] = sets_view({"m": selection}, overlap_tables({"m": selection}))
    data = drawn_data(view)
    assert sum(map(len, data["methods"][0]["units"])) == 2400
    assert len(render({**view, "tables": []}, data).encode()) < 8e6


# --------------------------------------------------------------------------- missing and damaged
# parts

MISSING = {
    "saes": "holds no autoencoders",
    "lid": "no metrics of label identification",
    "lid/predictions.parquet": "keeps no predictions",
    "selections": "no selection of units",
    "stats": "no statistics of units",
    "examples": "keeps no promoted tokens and passages",
    "steering": "no sweep of steering",
    "steering/samples.jsonl": "keeps no samples of steered text",
    "steering/matrix.json": "no perplexity matrix",
}


@pytest.mark.parametrize("name", MISSING)
def test_the_page_names_a_missing_part(run: Path, name: str) -> None:
    whole = re.sub(r"\s+", " ", page_of(run))
    path = run / name
    path.unlink() if path.is_file() else shutil.rmtree(path)
    page = page_of(run)
    words = MISSING[name]
    assert words in re.sub(r"\s+", " ", page) and words not in whole
    assert not Shape(page).open


def test_a_run_with_only_a_record_is_a_page_without_tables(run: Path) -> None:
    page_of(run)
    assert {path.stem for path in (run / "tables").iterdir()} == TABLES
    for path in run.iterdir():
        if path.is_dir() and path.name != "tables":
            shutil.rmtree(path)
    page = page_of(run)
    assert page.count('class="absent"') >= 10
    assert 'class="csv"' not in page
    assert not list((run / "tables").iterdir())  # those of the earlier page are gone


def refused(run: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        write_report(run)
    assert "\n" not in str(caught.value)


def test_the_command_line_prints_one_sentence_and_exits_with_2(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from saefeat import cli

    (run / "lid" / "metrics.json").write_text("{")
    monkeypatch.setattr("sys.argv", ["saefeat", "report", str(run)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert end.value.code == 2 and not out
    assert len(err.strip().splitlines()) == 1 and "metrics.json" in err


def test_a_directory_that_is_not_a_run_gives_one_sentence_of_error(
    run: Path, tmp_path: Path
) -> None:
    refused(tmp_path / "nowhere", "is not a directory")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is not a run directory: it has no run.json")
    assert not list((tmp_path / "empty").iterdir())


def test_an_unfinished_run_is_refused_in_a_sentence(run: Path) -> None:
    index = json.loads((run / "run.json").read_text(encoding="utf-8"))
    write_json(run / "run.json", {**index, "complete": False})
    refused(run, "is unfinished; run its command again")
    assert not (run / "report.html").exists() and not (run / "tables").exists()


DAMAGE = {
    "examples/shown.json": '[{"unit": 1}]',
    "lid/metrics.json": "{}",
    "lid/predictions.parquet": "PAR1",
    "run.json": "[1, 2]",
    "selections/lape.parquet": "PAR1",
    "stats/mlp_act@3.safetensors": "xx",
    "steering/metrics.json": '{"rows": [{"method": "features"}], "own": {}}',
    "steering/settings.json": '{"labels": {"de": 1}}',
    "steering/samples.jsonl": '{"label": "de"}\n',
    "steering/matrix.json": '{"labels": ["de"], "baseline": {}, "interventions": [{}]}',
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_part_is_refused_in_a_sentence_and_the_page_before_stays(
    run: Path, name: str
) -> None:
    write_report(run)
    before = (run / "report.html").read_bytes()
    (run / name).write_text(DAMAGE[name])
    refused(run, re.escape(name))
    assert (run / "report.html").read_bytes() == before


def test_a_damaged_line_of_samples_is_named_by_its_number(run: Path) -> None:
    path = run / "steering" / "samples.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:2], "{", *lines[3:]]), encoding="utf-8")
    refused(run, r"samples\.jsonl .*line 3")


# --------------------------------------------------------------------------- tables


def test_the_tables_beside_the_page_are_linked_and_hold_its_numbers(run: Path, evil: str) -> None:
    page = page_of(run)
    assert set(re.findall(r'href="tables/(\w+)\.csv"', page)) == TABLES
    assert {path.name for path in (run / "tables").iterdir()} == {f"{name}.csv" for name in TABLES}
    heads = {(row["head"], row["length"]): row for row in table(run, "lid")}
    assert len(heads) == 12 and float(heads["linear", "10"]["accuracy"]) == 0.95
    assert (
        len(table(run, "features"))
        == pq.read_table(run / "selections" / "sae-lape.parquet").num_rows + 6
    )
    overlap = {(row["label"], row["other"]): row for row in table(run, "overlap")}
    assert len(overlap) == 6
    assert (overlap["de", "ar"]["both"], float(overlap["de", "ar"]["jaccard"])) == ("2", 0.333333)
    steering = table(run, "steering")
    assert len(steering) == 4 * (2 + 4 * 4)
    assert {row["sites"] for row in steering} == {"resid_post@3"}
    assert {row["schedule"] for row in steering} == {'{"first": 4, "rest": 0.3}'}
    matrix = table(run, "matrix")
    assert (
        len(matrix) == 2 * 16
        and matrix[0]["nll_median"] == "2.5"
        and matrix[0]["baseline_nll_median"] == "2.0"
    )
    errors = table(run, "errors")
    assert {row["kind"] for row in errors} == {"theirs", "ours", "neither"}
    assert all(row["text"].startswith(evil) for row in errors)
