"""The report page: its parts, missing parts, escaping, no network, size, the same bytes again."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from saefeat.codes import STEP
from saefeat.evaluation import lid_metrics
from saefeat.io import UserError, write_json
from saefeat.report import write_report
from saefeat.selection import Selection, part
from saefeat.stats import Stats

EVIL = "<script>alert('x')</script> & </script><img src=x onerror=alert(1)>"
LABELS = ("de", "ar", "ja", EVIL)
VOID = {"meta", "img", "br", "input", "link", "hr"}


def make_selection(method: str, dictionaries: list[str], seed: int) -> Selection:
    """Two units of each dictionary for each label but the last; unit 0 is shared by the first two labels."""
    parts = []
    for place, name in enumerate(dictionaries):
        header = {"id": name, "site": name, "width": 16, "fingerprint": name, "kind": "sae"}
        stats = Stats.zeros(LABELS, 16, signed=False, dictionary=header, model={"name": "m"})
        generator = torch.Generator().manual_seed(seed + place)
        stats.tensors["tokens"] += 1000
        stats.tensors["fired"] += torch.randint(1, 900, stats.fired.shape, generator=generator)
        stats.tensors["sum"] += (stats.fired * 1.5 / STEP).long()
        stats.tensors["max"] = torch.full(stats.max.shape, 3.5)
        unit, label = torch.tensor([0, 1, 0, 2, 3, 4]), torch.tensor([0, 0, 1, 1, 2, 2])
        parts.append(part(stats, unit, label, torch.rand(6, generator=generator, dtype=torch.float64)))
    return Selection.build(method, {"top": None, "note": EVIL}, parts)


def make_shown(selection: Selection, method: str) -> list[dict[str, Any]]:
    texts = {"de": ["Grüße", " & ", "</script>", "<b>x</b>"], "ar": ["مرحبا", " بالعالم"], "ja": ["こんにちは", "世界"]}
    rows = []
    for row in selection.head(10).table.to_pylist():
        pieces = texts[row["label"]]
        passage = {"text": "".join(pieces), "label": row["label"], "value": 2.5}
        if row["rank"] > 1:  # the first one has no pieces
            passage |= {"pieces": pieces, "activations": [0.0, 2.5, 1.0, 0.0][: len(pieces)]}
        keys = ("dictionary", "unit", "label", "rank", "score", "probability")
        shown = {key: row[key] for key in keys} | {"tokens": [" Tag", "\n", EVIL], "passages": [passage]}
        rows.append({"method": method, **shown})
    return rows


def make_metrics() -> dict[str, Any]:
    truth = [label for label in LABELS for _ in range(10)]
    wrong = ["ar", None, *truth[2:]]
    predictions = {
        length: {"linear": truth if length == "all" else wrong, "fasttext": wrong, "a new head": [None] * len(truth)}
        for length in ("all", "10", "20", "50")
    }
    return lid_metrics(EVIL, "test", LABELS, truth, predictions, resamples=20)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    arguments = {"labels": list(LABELS), "seed": 7, "nested": {"a": {"b": 1.5}}, "none": None, "note": EVIL}
    record = {"model": {"name": "org/tiny"}, "arguments": arguments, "timings": {"train": 75.2}, "schema": 1}
    write_json(run / "run.json", record | {"versions": {"torch": "2.11"}, "seeds": [1, 2]})
    for layer in (12, 3):
        ours = {"site": f"mlp_out@{layer}", "fvu": 0.25, "l0": 31.7, "dead": 0.031, "training": {"tokens": 400_000}}
        cfg = {"architecture": "topk", "d_in": 640, "d_sae": 5120, "k": 32, "metadata": {"saefeat": ours}}
        write_json(run / "saes" / f"mlp_out@{layer}" / "cfg.json", cfg)
    sae_lape = make_selection("sae-lape", ["mlp_out@12", "mlp_out@3"], 0)
    sae_lape.save(run / "selections" / "sae-lape.parquet")
    make_selection("lape", ["mlp_act@3"], 5).save(run / "selections" / "lape.parquet")
    write_json(run / "lid" / "metrics.json", make_metrics())
    write_json(run / "examples" / "shown.json", make_shown(sae_lape, "sae-lape"))
    return run


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


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


def test_every_part_is_there(run: Path) -> None:
    text = re.sub(r"\s+", " ", Shape(page_of(run)).text)
    for words in ("tiny", "mlp_out@12", "31.7", "3.1 %", "400,000", "1 min 15 s", "nested · a · b", "2.11"):
        assert words in text, words
    for words in ("linear", "fasttext", "a new head", "first 10", "whole text", "1.000", "0.950"):
        assert words in text, words
    for words in ("#3", "also of ar", "promotes", "␣Tag", "↵", "fires with 2.50", "こんにちは", "مرحبا", "Mean firing"):
        assert words in text, words
    assert "lape chose no unit for this label" in text
    assert 'class="absent"' in page_of(run)  # of the label without units


def test_the_best_of_a_column_is_bold(run: Path) -> None:
    page = page_of(run)
    row = page[page.index('<tr><th scope="row">linear') :]
    row = row[: row.index("</tr>")]
    assert row.count('class="best"') == 5  # accuracy and four lengths: alike in three of them with fasttext
    row = page[page.index('<tr><th scope="row">a new head') :]
    assert 'class="best"' not in row[: row.index("</tr>")]


def test_charts_get_the_numbers_of_the_run(run: Path) -> None:
    data = data_of(page_of(run))
    assert data["labels"] == list(LABELS)
    assert data["confusion"]["lengths"] == ["10", "20", "50", "all"]
    cells = data["confusion"]["confusion"]["fasttext"]["all"]
    first = [(0, 0, 8), (0, 1, 1), (0, 4, 1), (1, 1, 10)]  # row, column, count
    assert cells == [number for cell in (*first, (2, 2, 10), (3, 3, 10)) for number in cell]
    features, neurons = data["features"]
    assert features["dictionaries"] == ["mlp_out@3", "mlp_out@12"]
    assert features["counts"] == [[2, 2], [2, 2], [2, 2], [0, 0]]
    assert neurons["dictionaries"] == ["mlp_act@3"]


def test_markup_in_the_corpus_stays_text(run: Path) -> None:
    page = page_of(run)
    assert EVIL not in page and "<b>x</b>" not in page
    assert page.count("</script>") == page.count("<script") == 3
    shape = Shape(page)
    assert "img" not in shape.elements and not shape.open
    assert EVIL in shape.text
    assert not [name for name, _ in shape.attributes if name.startswith("on")]
    assert html.escape(EVIL).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page


def test_pieces_are_shaded_and_the_peak_is_marked(run: Path) -> None:
    page = page_of(run)
    assert '<mark class="peak" style="--a:100%"> بالعالم</mark>' in page
    assert '<mark style="--a:40%">&lt;/script&gt;</mark>' in page
    assert '<p class="passage" dir="rtl">مرحبا<mark' in page


def test_combining_marks_stay_on_their_letter_and_direction_is_of_the_whole_text(run: Path) -> None:
    path = run / "examples" / "shown.json"
    shown = json.loads(path.read_text(encoding="utf-8"))
    shown[0]["passages"] = [{"text": "हिन्दी", "pieces": ["ह", "ि", "न्द", "ी है"], "activations": [0, 0, 1, 2]}]
    shown[1]["passages"] = [{"text": "OK مرحبا بالعالم", "label": "ar", "value": 1}]
    write_json(path, shown)
    page = page_of(run)
    assert '<p class="passage" dir="ltr">हि<mark style="--a:50%">न्दी</mark><mark class="peak"' in page
    assert '<p class="passage" dir="rtl">OK' in page


def test_a_long_passage_is_cut_around_its_peak(run: Path) -> None:
    shown = json.loads((run / "examples" / "shown.json").read_text())
    pieces = [f"p{at}." for at in range(1000)]
    activations = [float(at == 500) for at in range(1000)]
    shown[1]["passages"] = [{"text": "", "label": None, "value": None, "pieces": pieces, "activations": activations}]
    write_json(run / "examples" / "shown.json", shown)
    page = page_of(run)
    assert "… p460.p461." in page and ">p500.</mark>p501." in page and "p540. …" in page
    assert "p459." not in page and "p541." not in page


def test_lone_surrogates_do_not_stop_it(run: Path) -> None:
    path = run / "examples" / "shown.json"
    path.write_text(path.read_text(encoding="utf-8").replace("Grüße", "\\ud800Gr"), encoding="utf-8")
    assert "?Gr" in page_of(run)


def test_nothing_is_loaded_from_elsewhere(run: Path) -> None:
    page = page_of(run)
    for name, value in Shape(page).attributes:
        if name in ("src", "href", "srcset", "data", "action", "poster"):
            assert value.startswith("#"), (name, value)
    assert not re.search(r"https?://|@import|url\(|\bfetch\(|XMLHttpRequest|\bimport\b *[('\"]", page)
    assert "default-src 'none'" in page


def test_it_is_small_and_the_same_again(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert len(first) < 8e6
    assert write_report(run).read_bytes() == first
    assert [path.name for path in run.glob("*report*")] == ["report.html"]


MISSING = {
    "run.json": "no record of how it was made",
    "saes": "holds no autoencoders",
    "lid": "no metrics of label identification",
    "selections": "no selection of units",
    "examples": "no promoted tokens and passages",
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_part_is_said(run: Path, name: str) -> None:
    whole = re.sub(r"\s+", " ", page_of(run))
    path = run / name
    path.unlink() if path.is_file() else shutil.rmtree(path)
    page = page_of(run)
    words = MISSING[name].replace("no promoted", "keeps no promoted")
    assert words in re.sub(r"\s+", " ", page) and words not in whole
    assert not Shape(page).open


def test_without_passages_the_table_of_the_selection_stays(run: Path) -> None:
    shutil.rmtree(run / "examples")
    text = Shape(page_of(run)).text
    assert "mlp_out@12 #0" in text and "mlp_act@3 #4" in text


def test_a_run_with_only_a_record_is_a_page(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {})
    page = page_of(tmp_path)
    assert page.count('class="absent"') >= 6
    assert len(page) < 1e5  # no plotly without charts


def test_what_is_no_run_or_damaged_is_refused_in_a_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a directory"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not a run directory"):
        write_report(tmp_path / "empty")
    write_report(run)
    before = (run / "report.html").read_bytes()
    damaged = {"examples/shown.json": '[{"unit": 1}]', "lid/metrics.json": "{}", "run.json": "[1, 2]"}
    for name, content in damaged.items():
        kept = (run / name).read_text(encoding="utf-8")
        (run / name).write_text(content)
        with pytest.raises(UserError, match=re.escape(name)):
            write_report(run)
        (run / name).write_text(kept, encoding="utf-8")
    (run / "selections" / "lape.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=re.escape("lape.parquet")):
        write_report(run)
    assert (run / "report.html").read_bytes() == before


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_a_browser_draws_it_without_errors(run: Path, tmp_path: Path) -> None:
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=8000", "--dump-dom", write_report(run).as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    assert len(re.findall(r'<div class="plot[^>]*>\s*<div class="plot-container', done.stdout)) == 2
    visible = re.findall(r'<div data-method="(\d)" data-label="(\d)"(?! hidden)[^>]*>', done.stdout)
    assert visible == [("0", "0")]
