"""Labels that are no languages, and parallel texts: from a corpus file to a ranking or a report."""

import importlib
import json
from collections import Counter
from pathlib import Path

import pytest

from saefeat.corpora import load_corpus
from saefeat.rundir import RunDir
from saefeat.selection import Selection

ROOT = Path(__file__).parents[1]
SMALL = ("--dtype", "float32", "--neurons")


@pytest.fixture
def corpora(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("label_corpora")


@pytest.fixture
def done(saefeat):
    """done(*arguments): the command succeeds."""

    def call(*arguments):
        code, _, error = saefeat(*arguments)
        assert code == 0, error

    return call


def lines_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_programming_languages_from_source_files_to_a_report(
    corpora, done, tiny_model_dir, tmp_path, one_core
):
    twice, corpus, run = tmp_path / "copies", tmp_path / "code.jsonl", tmp_path / "run"
    twice.mkdir()
    for path in (ROOT / "saefeat/report").glob("*.js"):
        (twice / f"again-{path.name}").write_bytes(path.read_bytes())
    (twice / "small.js").write_text("let x = 1;" * 100)  # minified
    roots = [ROOT / "saefeat", twice]
    found = corpora.write_code(corpus, 30, roots, number=2)
    assert list(found["packages"]) == ["python", "javascript"]
    rows = lines_of(corpus)
    assert {row["label"] for row in rows} == {"python", "javascript"}
    assert len({row["text"] for row in rows}) == len(rows) and "small.js" not in str(rows)
    assert {row["id"] for row in rows} <= {
        str(path.relative_to(root)) for root in roots for path in root.rglob("*")
    }
    assert sum(row["label"] == "javascript" for row in rows) < 30  # all that there are
    pieces = Counter(row["id"] for row in rows)
    assert 1 < max(pieces.values()) <= corpora.PIECES_PER_FILE

    size = ("--d-sae", 32, "--k", 4, "--max-tokens", 2000, "--train-tokens", 2000)
    off = ("--steer-prompts", 0, "--matrix-texts", 0, "--dtype", "float32")
    done("run", "--model", tiny_model_dir, "--corpus", corpus, "--out", run, *size, *off)
    assert RunDir(run).report.is_file()
    loaded = load_corpus(str(corpus))
    files = [{loaded.ids[i] for i in loaded.positions(split, 0)} for split in ("train", "test")]
    assert all(files) and not files[0] & files[1]
    ranked = tmp_path / "lape.parquet"
    done("rank", run / "stats", "--out", ranked, "--method", "lape", "-p", "per_label=5")
    sizes = Counter(label for _, _, label in Selection.load(ranked).cells())
    assert set(sizes) == {"python", "javascript"} and max(sizes.values()) <= 5


def test_too_few_languages_or_packages_are_one_sentence(corpora, tmp_path, monkeypatch):
    with pytest.raises(corpora.Missing, match="of 0 languages were found, 6 are needed"):
        corpora.write_code(tmp_path / "code.jsonl", 10, [tmp_path])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(corpora.Missing, match=r"gnome-user-docs cannot be fetched.*apt-get update"):
        corpora.write_docs(tmp_path / "docs.jsonl", 10, tmp_path / "cache")


PAGES = {
    "C": ("Open the settings and choose a new language.", "Close the window before you go on."),
    "de": ("Öffnen Sie die Einstellungen und wählen Sie eine Sprache.",
           "Schließen Sie das Fenster, bevor Sie weitermachen."),
    "fr": ("Ouvrez les paramètres et choisissez une nouvelle langue.",
           "Fermez la fenêtre avant de continuer votre travail."),
    "es": ("Abra la configuración y elija un nuevo idioma.",
           "Cierre la ventana antes de continuar con su trabajo."),
    "it": ("Aprire le impostazioni e scegliere una nuova lingua.",
           "Close the window before you go on."),
}  # fmt: skip


def test_parallel_documentation_is_ranked_by_sharing(corpora, done, tiny_model_dir, tmp_path):
    for locale, paragraphs in PAGES.items():
        for topic in ("printer", "scanner"):
            file = tmp_path / "tree/usr/share/help" / locale / "gnome-help" / f"{topic}.page"
            file.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(f"<p>{p[:-1]} {topic}.</p>" for p in paragraphs)
            file.write_text(f'<page xmlns="http://projectmallard.org/1.0/">{text}</page>')
    corpus, stats, ranked = (tmp_path / name for name in ("docs.jsonl", "stats", "s.parquet"))
    assert corpora.write_parallel(corpus, 10, [tmp_path / "tree"]) == {"parallel paragraphs": 2}
    rows = lines_of(corpus)
    # The second paragraph is not translated into Italian.
    assert {row["id"] for row in rows} == {
        f"page:gnome-help/{topic}#0" for topic in ("printer", "scanner")
    }
    assert Counter(row["label"] for row in rows) == dict.fromkeys(("en", *list(PAGES)[1:]), 2)

    source = ("--model", tiny_model_dir, "--corpus", corpus, "--out", stats, "--split", "all")
    done("collect", *source, *SMALL, "--with", "patterns")
    done("rank", stats, "--out", ranked, "--method", "sharing")
    selection = Selection.load(ranked)
    classes = selection.header["classes"]
    total = sum(
        classes[of]["mlp_act@0"]
        for of in ("all-shared", "partial-shared", "specific", "non-activated")
    )
    assert total == selection.dictionaries["mlp_act@0"]["width"]
    assert classes["specific"]["mlp_act@0"] == pytest.approx(
        sum(classes[f"specific: {label}"]["mlp_act@0"] for label in selection.labels)
    )


SAYINGS = {
    "en": ("wisdom", "A stitch in time saves nine.\n\t\t-- Proverb\n%\nWaste not,\nwant not.\n%\n"),
    "zh": (
        "tang300",
        "\x1b[32m《渡汉江》\x1b[m\n\x1b[33m作者：李频\x1b[m\n岭外音书绝，经冬复立春。\n%\n",
    ),
}


def test_cultures_are_ranked_and_set_against_languages(corpora, done, tiny_model_dir, tmp_path):
    trees = {culture: tmp_path / culture for culture in SAYINGS}
    for culture, (name, text) in SAYINGS.items():
        for folder, texts in (("", text), ("off", "never read this one\n%\n")):
            file = trees[culture] / "usr/share/games/fortunes" / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(texts, "utf-8")
    corpus = tmp_path / "corpus"
    corpora.write_sayings(corpus, 10, trees)
    assert sorted((corpus / "en.txt").read_text().splitlines()) == [
        "A stitch in time saves nine.", "Waste not, want not."
    ]  # fmt: skip
    assert (corpus / "zh.txt").read_text("utf-8") == "岭外音书绝，经冬复立春。\n"

    languages = "embedded:eld", "--labels", "en,zh", "--max-tokens", 500
    for name, given in (("culture", [corpus]), ("language", languages)):
        source = ("--model", tiny_model_dir, "--corpus", *given, "--split", "all")
        done("collect", *source, *SMALL, "--out", tmp_path / f"{name}-stats")
        chosen = ("--method", "lape", "-p", "top_rate=0.2", "--out", tmp_path / f"{name}.parquet")
        done("rank", tmp_path / f"{name}-stats", *chosen)
    files = [tmp_path / f"{name}.parquet" for name in ("culture", "language")]
    cells = [set(Selection.load(file).cells()) for file in files]
    pure = tmp_path / "pure.parquet"
    done("select", *files, "--op", "difference", "--out", pure)
    assert set(Selection.load(pure).cells()) == cells[0] - cells[1]
    assert cells[0] - cells[1] and cells[0] & cells[1]
