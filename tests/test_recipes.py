"""Recipes read rows in the formats of their sources; the cache; failures of the network."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import pairs_of, refused, rows_of

from saefeat.corpora import PAPER_LABELS, extract, fetch, load_corpus
from saefeat.corpora.reading import hub_revision
from saefeat.corpora.recipes import RECIPES
from saefeat.corpora.sources import Recipe, Source
from saefeat.io import UserError, file_sha256
from saefeat.progress import PULSE


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEFEAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def lies_at(monkeypatch):
    """lies_at(name, place, ...): move the sources of a recipe to these places."""

    def move(name, *places, **changes):
        recipe = RECIPES[name]
        places = places if len(places) == len(recipe.sources) else places * len(recipe.sources)
        moved = [
            replace(s, at=str(at), **changes) for s, at in zip(recipe.sources, places, strict=True)
        ]
        monkeypatch.setitem(RECIPES, name, replace(recipe, sources=tuple(moved)))

    return move


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path/www.

    `fails`: path -> how often it still answers 503; `cut`: paths whose next answer is truncated;
    `asked`: the paths of all requests.
    """

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "www"))

        def do_GET(self):
            self.server.asked.append(self.path)
            if self.server.fails[self.path] > 0:
                self.server.fails[self.path] -= 1
                self.send_error(503)
            elif self.path in self.server.cut:
                self.server.cut.discard(self.path)
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                self.wfile.write(b"half a l")
            else:
                super().do_GET()

        def log_message(self, *args):
            pass

    (tmp_path / "www").mkdir()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.asked, httpd.fails, httpd.cut = [], Counter(), set()
    httpd.url = f"http://127.0.0.1:{httpd.server_port}"
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def parquet(file, **columns):
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


def test_every_recipe_is_pinned_and_its_labels_are_the_papers():
    for name, recipe in RECIPES.items():
        for source in recipe.sources:
            pinned = source.sha256 or re.search(
                r"@(v1\.1$|[0-9a-f]{40})|/[0-9a-f]{40}(/|$)", source.at
            )
            assert pinned, source.name
            assert source.labels and source.splits and recipe.licence and recipe.about
        if name not in ("xnli", "paws-x", "murel", "github-code"):
            assert set(recipe.labels) == set(PAPER_LABELS)
    assert set(RECIPES["xnli"].labels) > {
        "en",
        "de",
        "fr",
        "hi",
        "es",
        "th",
        "bg",
        "ru",
        "tr",
        "vi",
    }
    assert RECIPES["paws-x"].labels == ("en", "de", "fr", "es", "ja", "ko", "zh")
    assert len(RECIPES["github-code"].labels) == 12


# --------------------------------------------------------------------------- each recipe


def test_wili_is_read_from_its_zip_with_the_test_split_first(tmp_path, lies_at):
    path = tmp_path / "wili-2018.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_test.txt", 'Ein "Satz".\nA\u2028sentence.\nEine Zeile.\n')
        archive.writestr("y_test.txt", "deu\neng\ndeu\n")
        archive.writestr("x_train.txt", "Noch einer.\nUn altru.\n")
        archive.writestr("y_train.txt", "deu\ncos\n")
        archive.writestr("labels.csv", "Label;English\ndeu;German\n")
    lies_at("wili-2018", path, sha256=file_sha256(path))
    corpus = load_corpus("wili-2018", labels=["de", "en"])
    assert rows_of(corpus) == [
        ('Ein "Satz".', "de", "wili-2018/test/0"),
        ("A\u2028sentence.", "en", "wili-2018/test/1"),
        ("Eine Zeile.", "de", "wili-2018/test/2"),
    ]
    # A label that the recipe does not list is a code of the source.
    train = load_corpus("wili-2018:train", labels=["de", "cos"])
    assert rows_of(train)[1] == ("Un altru.", "cos", "wili-2018/train/1")


def test_an_archive_that_is_not_the_pinned_one_gives_one_sentence_of_error(tmp_path, lies_at):
    (tmp_path / "wili-2018.zip").write_bytes(b"a login page")
    lies_at("wili-2018", tmp_path / "wili-2018.zip")
    with pytest.raises(
        UserError, match=r"is not the file that wili-2018 is pinned to \(its SHA-256 differs\)"
    ):
        load_corpus("wili-2018")


def test_xnli_joins_premise_and_hypothesis_and_its_translations_share_an_id(tmp_path, lies_at):
    for code, words in {
        "de": ("Eins.", "Zwei.", "Drei."),
        "en": ("One.", "Two.", "Three."),
    }.items():
        parquet(
            tmp_path / code / "train-00000-of-00001.parquet",
            premise=words,
            hypothesis=words[::-1],
            label=[0, 1, 2],
        )
        parquet(
            tmp_path / code / "test-00000-of-00001.parquet",
            premise=words,
            hypothesis=words,
            label=[0, 1, 2],
        )
    lies_at("xnli", tmp_path)
    corpus = load_corpus("xnli#2", labels=["en", "de"])
    assert rows_of(corpus) == [
        ("One. Three.", "en", "xnli/train/0"),
        ("Two. Two.", "en", "xnli/train/1"),
        ("Eins. Drei.", "de", "xnli/train/0"),
        ("Zwei. Zwei.", "de", "xnli/train/1"),
    ]
    assert corpus.is_test(0, 0) == corpus.is_test(2, 0)
    prompt = "Take {premise} as true: {hypothesis}?"
    other = load_corpus("xnli:test", labels=["en", "de"], text_column=prompt)
    assert rows_of(other)[0] == ("Take One. as true: One.?", "en", "xnli/test/0")


def test_paws_x_takes_the_first_sentence_and_the_pairs_id(tmp_path, lies_at):
    for code in ("fr", "ko"):
        columns = {
            "sentence1": [f"a {code}", f"b {code}"],
            "sentence2": ["x", "y"],
            "label": [0, 1],
        }
        parquet(
            tmp_path / code / "train-00000-of-00001.parquet",
            id=pa.array([7, 9], pa.int32()),
            **columns,
        )
    lies_at("paws-x", tmp_path)
    assert rows_of(load_corpus("paws-x", labels=["ko", "fr"])) == [
        ("a ko", "ko", "paws-x/train/7"),
        ("b ko", "ko", "paws-x/train/9"),
        ("a fr", "fr", "paws-x/train/7"),
        ("b fr", "fr", "paws-x/train/9"),
    ]


def flores_row(number, code, text):
    iso, script = code.split("_")
    about = {
        "url": "u",
        "domain": "news",
        "topic": "t",
        "has_image": "no",
        "has_hyperlink": "no",
        "last_updated": "1",
    }
    return {
        "id": number,
        "iso_639_3": iso,
        "iso_15924": script,
        "glottocode": "x",
        "text": text,
        **about,
    }


def write_flores(folder, split="dev"):
    (folder / split).mkdir(parents=True)
    for code, text in {"cmn_Hans": "你好", "ita_Latn": "ciao", "swh_Latn": "jambo"}.items():
        lines = [json.dumps(flores_row(n, code, f"{text} {n}")) for n in (3, 4)]
        (folder / split / f"{code}.jsonl").write_text("\n".join(lines) + "\n")


def test_flores_plus_is_read_by_language_and_split(tmp_path, lies_at):
    write_flores(tmp_path)
    write_flores(tmp_path, "devtest")
    lies_at("flores+", tmp_path)
    corpus = load_corpus("flores+", labels=["zh", "it", "swh_Latn"])
    assert rows_of(corpus)[:3] == [
        ("你好 3", "zh", "flores+/dev/3"),
        ("你好 4", "zh", "flores+/dev/4"),
        ("ciao 3", "it", "flores+/dev/3"),
    ]
    assert Counter(corpus.of) == {"zh": 2, "it": 2, "swh_Latn": 2}
    assert load_corpus("flores+:devtest", labels=["zh", "it"]).ids[0] == "flores+/devtest/3"


def test_flores_200_is_read_from_its_tar(tmp_path, lies_at):
    path = tmp_path / "flores200_dataset.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for code, text in {"eng_Latn": "one\ntwo\n", "zho_Hans": "一\n二\n"}.items():
            for split in ("dev", "devtest"):
                member = tarfile.TarInfo(f"./flores200_dataset/{split}/{code}.{split}")
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
    lies_at("flores-200", path, sha256=file_sha256(path))
    assert rows_of(load_corpus("flores-200", labels=["zh", "en"])) == [
        ("一", "zh", "flores-200/dev/0"),
        ("二", "zh", "flores-200/dev/1"),
        ("one", "en", "flores-200/dev/0"),
        ("two", "en", "flores-200/dev/1"),
    ]


def test_sae_lape_joins_its_three_parts(tmp_path, lies_at):
    for code in ("en", "de"):
        parquet(
            tmp_path / code / "train-0-of-1.parquet",
            premise=[f"p {code}"],
            hypothesis=["h"],
            label=[0],
        )
        parquet(
            tmp_path / "p" / code / "train-00000-of-00001.parquet", id=[1], sentence1=[f"s {code}"]
        )
    (tmp_path / "f/dev").mkdir(parents=True)
    for code in ("eng_Latn", "deu_Latn"):
        (tmp_path / "f/dev" / f"{code}.jsonl").write_text(
            json.dumps(flores_row(0, code, code)) + "\n"
        )
    lies_at("sae-lape", tmp_path, tmp_path / "p", tmp_path / "f")
    corpus = load_corpus("sae-lape", labels=["de", "en"])
    german = [row for row in rows_of(corpus) if row[1] == "de"]
    assert german == [
        ("p de h", "de", "xnli/train/0"),
        ("s de", "de", "paws-x/train/1"),
        ("deu_Latn", "de", "flores+/dev/0"),
    ]
    assert Counter(corpus.of) == {"de": 3, "en": 3}


def test_murel_takes_lines_from_all_files_of_a_culture(tmp_path, lies_at):
    path = tmp_path / "murel.zip"
    novel = "".join(f"line {n}\n\n" for n in range(200))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Culture_Neurons-8563/data/en/A Novels/1887_Study.txt", novel)
        archive.writestr(
            "Culture_Neurons-8563/data/en/proverbs_en.txt",
            "".join(f"  proverb {n}\n" for n in range(200)),
        )
        archive.writestr("Culture_Neurons-8563/data/fa/MAPS_fa.txt", "ضرب المثل\n")
        archive.writestr("Culture_Neurons-8563/data/fa/old.txt", b"\xff\xfe")
        archive.writestr("Culture_Neurons-8563/README.md", "no example")
    lies_at("murel", path)
    corpus = load_corpus("murel#100", labels=["en", "fa"])
    assert Counter(corpus.of) == {"en": 100, "fa": 1}
    assert 30 < sum(text.startswith("proverb") for text in corpus.texts) < 70
    assert set(corpus.texts) < set(load_corpus("murel#300", labels=["en", "fa"]).texts)


def test_tatoeba_reads_one_file_per_language_and_english_from_the_german_one(tmp_path, lies_at):
    for end, text in {
        "deu-eng.deu": "eins\nzwei",
        "deu-eng.eng": "one\ntwo",
        "cmn-eng.cmn": "一",
        "nld-eng.nld": "een",
    }.items():
        (tmp_path / f"tatoeba.{end}").write_text(text + "\n")
    lies_at("tatoeba", tmp_path)
    assert rows_of(load_corpus("tatoeba", labels=["de", "en", "zh", "nld"])) == [
        ("eins", "de", "tatoeba/deu/0"),
        ("zwei", "de", "tatoeba/deu/1"),
        ("一", "zh", "tatoeba/cmn/0"),
        ("een", "nld", "tatoeba/nld/0"),
        ("one", "en", "tatoeba/deu/0"),
        ("two", "en", "tatoeba/deu/1"),
    ]


def write_code(folder, shard, paths):
    parquet(
        folder / "data" / f"train-{shard:05d}-of-01126.parquet",
        content=[f"code of {path}" for path in paths],
        repo_name=["o/r"] * len(paths),
        path=paths,
        license=["mit"] * len(paths),
        size=pa.array([1] * len(paths), pa.int32()),
    )


def test_github_code_labels_by_suffix_and_reads_no_more_shards_than_needed(tmp_path, lies_at):
    write_code(tmp_path, 0, ["a.py", "b.py", "x.C", "x.h", "Makefile", "c.py"])
    write_code(tmp_path, 1, ["d.py", "e.cc", "f.rs"])  # a third shard is not read
    parquet(
        tmp_path / "20231101.en/train-00000-of-00041.parquet",
        id=["12"],
        url=["u"],
        title=["t"],
        text=["An article."],
    )
    lies_at("github-code", tmp_path)
    corpus = load_corpus("github-code#2", labels=["python", "c++"])
    assert rows_of(corpus) == [
        ("code of a.py", "python", "github-code/o/r/a.py"),
        ("code of b.py", "python", "github-code/o/r/b.py"),
        ("code of x.C", "c++", "github-code/o/r/x.C"),
        ("code of e.cc", "c++", "github-code/o/r/e.cc"),
    ]
    mixed = load_corpus("github-code#1", labels=["c", "wiki"])
    assert rows_of(mixed)[1] == ("An article.", "wiki", "wikipedia/12")


def test_fineweb_2_reads_one_folder_per_label_and_english_from_fineweb(tmp_path, lies_at):
    for split in ("train", "test"):
        for code, texts in {
            "deu_Latn": ["eins", "zwei", "drei"],
            "cmn_Hani": ["一"],
            "yor_Latn": ["ọ̀kan"],
        }.items():
            ids = [f"<urn:{code}:{n}>" for n in range(len(texts))]
            parquet(
                tmp_path / "data" / code / split / "000_00000.parquet",
                text=texts,
                id=ids,
                language_score=[1.0] * len(ids),
            )
    parquet(
        tmp_path / "sample/10BT/000_00000.parquet", text=["one"], id=["<urn:en>"], token_count=[1]
    )
    lies_at("fineweb-2", tmp_path)
    corpus = load_corpus("fineweb-2#2", labels=["de", "en", "zh", "yor_Latn"])
    assert Counter(corpus.of) == {"de": 2, "en": 1, "zh": 1, "yor_Latn": 1}
    assert ("one", "en", "fineweb/<urn:en>") in rows_of(corpus)
    with pytest.raises(UserError, match="fineweb-2 has no en in the split test"):
        load_corpus("fineweb-2:test", labels=["de", "en"])
    assert load_corpus("fineweb-2:test", labels=["de", "zh"]).labels == ("de", "zh")


def test_commonlid_is_tab_separated_without_quotes(tmp_path, lies_at):
    lines = [
        "text\ttag\tlanguage\turl",
        '"Halb ein Zitat\tdeu\tGerman\tu',
        "NA\teng\tEnglish\tu",
        "123\tdeu\tGerman\tu",
    ]
    lines += ["一\tzho\tChinese\tu", "二\tcmn\tMandarin\tu"]
    with gzip.open(tmp_path / "commonlid_20251209.tsv.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    lies_at("commonlid", tmp_path)
    corpus = load_corpus("commonlid", labels=["de", "en", "zh"])
    assert pairs_of(corpus) == [
        ('"Halb ein Zitat', "de"),
        ("NA", "en"),
        ("123", "de"),
        ("一", "zh"),
        ("二", "zh"),
    ]


# --------------------------------------------------------------------------- the hub


def hub(at, **changes):
    """A recipe as `hub:` makes one, for a data set in a local directory."""
    changes = {"label": "label", "identity": "{id}", "splits": ("",), **changes}
    return Recipe("hub:x", "", "", (Source(name="x", at=str(at), read="hub", **changes),))


@pytest.fixture
def hub_at(monkeypatch):
    def place(at, **changes):
        monkeypatch.setitem(RECIPES, "here", hub(at, **changes))
        return "here"

    return place


def class_labels(path, labels, names):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(
        {"text": [f"t{n}" for n in range(len(labels))], "label": labels}, features
    ).to_parquet(path)


def test_a_class_label_gives_its_names(tmp_path, hub_at):
    class_labels(tmp_path / "set/train.parquet", [0, 1, 0], ["neg", "pos"])
    corpus = load_corpus(hub_at(tmp_path / "set"))
    assert pairs_of(corpus) == [("t0", "neg"), ("t1", "pos"), ("t2", "neg")]
    assert corpus.labels == ("neg", "pos")


def test_rows_of_a_data_set_keep_their_ids_and_blank_ones_are_counted(tmp_path, hub_at):
    rows = [("a", "x y", 5), ("", "z", 6), ("b", "z", None), (None, "z", 8)]
    columns = dict(zip(("text", "label", "id"), zip(*rows, strict=True), strict=True))
    parquet(tmp_path / "set/train.parquet", **columns)
    corpus = load_corpus(hub_at(tmp_path / "set"), labels=["x y", "z"])
    assert [(t, o) for t, o, _ in rows_of(corpus)] == [("a", "x y"), ("b", "z")]
    assert corpus.ids[0] == "5"
    assert corpus.skipped == {"blank": 2}


def test_configurations_splits_and_columns_of_a_data_set_are_chosen_by_name(tmp_path, hub_at):
    card = {
        "configs": [
            {"config_name": "one", "data_files": "a.jsonl"},
            {
                "config_name": "two",
                "data_files": [
                    {"split": "dev", "path": "b.jsonl"},
                    {"split": "x", "path": "a.jsonl"},
                ],
            },
        ]
    }
    (tmp_path / "set").mkdir()
    (tmp_path / "set/README.md").write_text(f"---\n{json.dumps(card)}\n---\n")  # JSON is YAML
    for name in "ab":
        rows = [{"q": f"{name}{n}", "r": "!", "lang": lang} for n, lang in enumerate(("de", "en"))]
        (tmp_path / f"set/{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {
        "files": "two",
        "splits": ("dev",),
        "text": "{q} {r}",
        "label": "lang",
        "identity": "{q}",
    }
    corpus = load_corpus(hub_at(tmp_path / "set", **options))
    assert rows_of(corpus) == [("b0 !", "de", "b0"), ("b1 !", "en", "b1")]
    with pytest.raises(UserError, match="x has the splits dev, x; name one, such as hub:x:two:dev"):
        load_corpus(hub_at(tmp_path / "set", **{**options, "splits": ("",)}))
    with pytest.raises(UserError, match=r"x cannot be read \(Config name is missing"):
        load_corpus(hub_at(tmp_path / "set"))


@pytest.mark.parametrize(
    ("changes", "message", "option"),
    [
        (
            {"label": "number"},
            "the label column number of x holds numbers without names; name a column of strings$",
            "label_column",
        ),
        ({"label": "lang"}, "x: no column lang; there are text, number, label$", "label_column"),
        ({"text": "{satz}"}, "x: no column satz; there are text, number, label$", "text_column"),
        ({"identity": "{key}"}, "x: no column key; there are text, number, label$", "id_column"),
    ],
)
def test_columns_that_cannot_be_used_give_one_sentence_of_error(
    tmp_path, hub_at, changes, message, option
):
    parquet(tmp_path / "set/train.parquet", text=["a", "b"], number=[0, 1], label=["x", "y"])
    with refused(message, option):
        load_corpus(hub_at(tmp_path / "set", **changes))


def test_a_data_set_with_a_script_gives_one_sentence_of_error(tmp_path, hub_at):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/set.py").write_text("import datasets\n")
    with pytest.raises(
        UserError, match="read by its own script, which is not run; name a data set of plain files"
    ):
        load_corpus(hub_at(tmp_path / "set"))


def test_a_very_large_data_set_needs_named_labels(tmp_path, hub_at, monkeypatch):
    monkeypatch.setattr(extract, "_MAX_ROWS", 3)
    parquet(tmp_path / "set/train.parquet", text=list("abcde"), label=list("xyxyx"))
    with refused("has more than 3 rows; name the labels$", "labels"):
        load_corpus(hub_at(tmp_path / "set"))
    assert len(load_corpus(hub_at(tmp_path / "set"), labels=["x", "y"])) == 5


# --------------------------------------------------------------------------- bad names


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("xnli:dev", "xnli has the splits train, validation, test; give xnli or xnli:train"),
        (
            "xnli#",
            "the part after # must be the greatest number of texts per label, such as xnli#500",
        ),
        ("xnli#0", "the part after # must be"),
        ("hub:", "is not a data set of the hub; write hub:OWNER/NAME"),
        ("hub:a/b/c", "is not a data set of the hub"),
        ("hub:a/b:c:d:e", "is not a data set of the hub"),
        ("wili", "the corpus wili does not exist; give a file, .* or one of wili-2018, xnli, "),
    ],
)
def test_a_bad_name_gives_one_sentence_of_error(source, message):
    with pytest.raises(UserError, match=message):
        load_corpus(source)


def test_a_label_that_the_source_does_not_have_gives_one_sentence_of_error(tmp_path, lies_at):
    parquet(tmp_path / "en/train-0.parquet", premise=["a"], hypothesis=["b"])
    lies_at("xnli", tmp_path)
    with refused("xnli has no file for xx at .*; check the labels", "labels"):
        load_corpus("xnli", labels=["en", "xx"])


def test_the_columns_of_a_recipe_are_fixed():
    with refused(
        "the recipe xnli has its own label and id columns; do not name them$",
        "label_column",
        "id_column",
    ):
        load_corpus("xnli", label_column="language")


# --------------------------------------------------------------------------- network and cache


def serve_tatoeba(folder, **texts):
    for code, text in texts.items():
        (folder / f"tatoeba.{code}-eng.{code}").write_text(text)


def test_a_server_that_fails_twice_is_asked_again_and_the_texts_are_kept(
    tmp_path, server, lies_at, own_cache, monkeypatch
):
    serve_tatoeba(tmp_path / "www", deu="eins\nzwei\n", fra="un\n")
    lies_at("tatoeba", server.url)
    server.fails["/tatoeba.deu-eng.deu"] = 2
    server.cut.add("/tatoeba.fra-eng.fra")
    told = []
    corpus = load_corpus("tatoeba", labels=["de", "fr"], say=told.append)
    assert corpus.texts == ["eins", "zwei", "un"]
    assert Counter(server.asked) == {"/tatoeba.deu-eng.deu": 3, "/tatoeba.fra-eng.fra": 2}
    assert told == ["fetching tatoeba (de)", "fetching tatoeba (fr)"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    server.asked.clear()
    assert (
        load_corpus("tatoeba", labels=["fr", "de"]).fingerprint != corpus.fingerprint
    )  # another order
    assert load_corpus("tatoeba", labels=["de", "fr"]).fingerprint == corpus.fingerprint
    assert server.asked == []
    assert not [path for path in own_cache.rglob("*") if path.name.startswith(".")]


def test_processes_that_want_the_same_texts_at_once_wait_for_the_first(
    tmp_path, server, lies_at, own_cache, monkeypatch
):
    serve_tatoeba(tmp_path / "www", deu="eins\n", fra="un\n")
    lies_at("tatoeba", server.url)
    server.fails["/tatoeba.deu-eng.deu"] = 1  # the first is still busy when the others come
    monkeypatch.setattr(fetch, "PAUSES", (0.5,))
    fork = multiprocessing.get_context("fork")
    found = fork.Queue()

    def load():
        told = []
        found.put((load_corpus("tatoeba", labels=["de", "fr"], say=told.append).texts, told))

    workers = [fork.Process(target=load) for _ in range(3)]
    for worker in workers:
        worker.start()
    texts, told = zip(*(found.get(timeout=60) for _ in workers), strict=True)
    for worker in workers:
        worker.join()
    assert texts == (["eins", "un"],) * 3
    lines = [line for said in told for line in said]
    assert sorted(lines) == ["fetching tatoeba (de)", "fetching tatoeba (fr)"]
    assert Counter(server.asked) == {"/tatoeba.deu-eng.deu": 2, "/tatoeba.fra-eng.fra": 1}
    assert {path.suffix for path in (own_cache / "corpora/tatoeba").iterdir()} == {".parquet"}


def test_rows_that_are_left_out_are_a_sign_of_life(tmp_path, lies_at):
    """Rows of a rare label may be hours apart, and a rank that does nothing is ended."""
    lines = ["text\ttag", *["hola\tspa"] * 1000, "eins\tdeu", "one\teng"]
    with gzip.open(tmp_path / "commonlid_20251209.tsv.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    lies_at("commonlid", tmp_path)
    before = PULSE.beats
    assert load_corpus("commonlid", labels=["de", "en"]).texts == ["eins", "one"]
    assert PULSE.beats - before > 1000


def test_progress_is_reported_while_files_are_fetched_and_read(
    tmp_path, server, lies_at, monkeypatch
):
    monkeypatch.setattr("saefeat.progress.LINE_SECONDS", 0.0)
    serve_tatoeba(tmp_path / "www", deu="eins\nzwei\n", fra="un\n")
    lies_at("tatoeba", server.url)
    lines = []
    load_corpus("tatoeba", labels=["de", "fr"], say=lines.append)
    for beginning in (
        "fetch tatoeba.deu-eng.deu: 10 of 10 bytes",
        "read tatoeba (de): 1 of 1,000 texts",
        "read tatoeba (de): 2 of 1,000 texts",
        "fetch tatoeba.fra-eng.fra: 3 of 3 bytes",
        "read tatoeba (fr): 1 of 1,000 texts",
    ):
        assert any(line.startswith(beginning) for line in lines), beginning


def test_an_interrupted_fetch_continues_with_the_next_label(tmp_path, server, lies_at, own_cache):
    serve_tatoeba(tmp_path / "www", deu="eins\n", fra="un\n")
    lies_at("tatoeba", server.url)
    server.fails["/tatoeba.fra-eng.fra"] = 99
    message = (
        r"tatoeba \(fr\) is not in the cache and cannot be fetched \(HTTP Error 503.*\); run again "
        "with a network; what has been fetched is kept"
    )
    with pytest.raises(UserError, match=message):
        load_corpus("tatoeba", labels=["de", "fr"])
    server.fails.clear()
    server.asked.clear()
    assert load_corpus("tatoeba", labels=["de", "fr"]).texts == ["eins", "un"]
    assert server.asked == ["/tatoeba.fra-eng.fra"]


def test_a_file_that_the_server_does_not_have_is_asked_for_once(tmp_path, server, lies_at):
    serve_tatoeba(tmp_path / "www", deu="eins\n")
    lies_at("tatoeba", server.url)
    with pytest.raises(UserError, match="tatoeba has no file for xx at http"):
        load_corpus("tatoeba", labels=["de", "xx"])
    assert server.asked.count("/tatoeba.xx-eng.xx") == 1


def test_offline_and_not_in_the_cache_gives_one_sentence_of_error(lies_at, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"xnli \(de\) is not in the cache and HF_HUB_OFFLINE is set; run once with"
    ):
        load_corpus("xnli", labels=["de", "en"])


def test_a_damaged_cache_is_fetched_again(tmp_path, hub_at, own_cache):
    parquet(tmp_path / "set/train.parquet", text=["a", "b"], label=["x", "y"])
    first = load_corpus(hub_at(tmp_path / "set"))
    (kept,) = own_cache.rglob("*.parquet")
    kept.write_bytes(kept.read_bytes()[:40])
    assert load_corpus(hub_at(tmp_path / "set")).fingerprint == first.fingerprint


def test_the_cache_knows_what_was_asked_for(tmp_path, hub_at):
    parquet(tmp_path / "set/train.parquet", text=["a", "b", "c"], label=["x", "y", "x"])
    name = hub_at(tmp_path / "set")
    assert len(load_corpus(name)) == 3
    assert len(load_corpus(f"{name}#1")) == 2
    assert load_corpus(name, text_column="{label}{text}").texts == ["xa", "yb", "xc"]
    assert load_corpus(hub_at(tmp_path / "set", text="{text}!")).texts == ["a!", "b!", "c!"]


def test_the_revision_of_a_data_set_is_reported_and_kept_in_the_cache(
    tmp_path, hub_at, own_cache, monkeypatch
):
    parquet(tmp_path / "set/train.parquet", text=["a", "b"], label=["x", "y"])
    read_at, told = [], []
    monkeypatch.setattr(fetch, "hub_revision", lambda source: "abc")
    monkeypatch.setattr(
        fetch,
        "read_part",
        lambda part, max_texts, say: (
            read_at.append(part.source.revision) or [("a", "x", "1"), ("b", "y", "2")]
        ),
    )
    first = load_corpus(hub_at(tmp_path / "set"), say=told.append)
    (kept,) = own_cache.rglob("*.parquet")
    assert pq.read_schema(kept).metadata == {b"revision": b"abc"}
    assert load_corpus("here", say=told.append).fingerprint == first.fingerprint
    assert read_at == ["abc"]
    assert told == ["fetching x", "hub:x at revision abc", "hub:x at revision abc"]


@pytest.mark.parametrize("at", ["a/b", "hf://datasets/a/b@v1"])
def test_the_revision_of_a_source_is_asked_of_the_hub_once(monkeypatch, at):
    import huggingface_hub

    asked = []

    def answer(self, repo, **options):
        asked.append((repo, options["revision"]))
        return huggingface_hub.hf_api.DatasetInfo(id=repo, sha="abc", tags=[])

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", answer)
    read = "parquet" if "://" in at else "hub"
    assert hub_revision(Source(name="b", at=at, read=read)) == "abc"
    assert asked == [("a/b", "v1" if read == "parquet" else None)]


def test_sources_outside_the_hub_have_no_revision(tmp_path):
    for source in (
        *RECIPES["wili-2018"].sources,
        *RECIPES["tatoeba"].sources,
        Source("x", str(tmp_path), "hub"),
    ):
        assert hub_revision(source) == ""


@pytest.mark.parametrize("source", ["hub:own/er", "hub:own/er@v1:config", "xnli"])
def test_without_a_network_the_attempts_end_soon_with_one_sentence(tmp_path, source):
    nowhere = {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
        "SAEFEAT_CACHE": str(tmp_path),
    }
    program = (
        "from saefeat.corpora import fetch; fetch.PAUSES = (0.01,) * 3\n"  # of 20 seconds together
        "from saefeat.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "corpus", "show", source]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **nowhere}, timeout=100
    )
    assert (result.returncode, result.stdout) == (2, "")
    fetching, told = result.stderr.splitlines()
    assert fetching.startswith("fetching ")
    assert (
        "is not in the cache and cannot be fetched (" in told
        and "run again with a network; " in told
    )
    assert told.endswith(
        "complete data sets are kept" if "hub:" in source else "what has been fetched is kept"
    )


@pytest.mark.parametrize(("answers", "attempts"), [(False, 3), (True, 4)])
def test_the_longest_pause_is_left_out_if_the_hub_never_answers(monkeypatch, answers, attempts):
    asked = []

    def revision(source):
        asked.append(source.name)
        if not answers:
            raise ConnectionError("no route")
        return "abc"

    def lost(*_):
        raise ConnectionError("lost on the way")

    monkeypatch.setattr(fetch, "hub_revision", revision)
    monkeypatch.setattr(extract, "read_rows", lost)
    with pytest.raises(
        UserError, match="; check the name, or run again with a network; complete data sets are k"
    ):
        load_corpus("hub:own/er", labels=["a", "b"])
    assert len(asked) == attempts


HUB_DOUBLE = """
import http.server, sys, threading
status, code = int(sys.argv[1]), sys.argv[2]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_HEAD = do_POST = do_GET
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
import os
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
from saefeat.cli import main
sys.argv = ["saefeat", "corpus", "show", *sys.argv[3:]]
main()
"""


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            ("403", "GatedRepo"),
            "saefeat: a/b is gated; accept its terms at https://huggingface.co/datasets/a/b and ",
        ),
        (
            ("401", "RepoNotFound"),
            "saefeat: a/b is not on the hub or is private; check the name or set HF_TOKEN",
        ),
    ],
)
def test_a_refusal_of_the_hub_is_one_sentence_without_a_traceback(tmp_path, answer, message):
    environment = {**os.environ, "HF_HOME": str(tmp_path), "SAEFEAT_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", HUB_DOUBLE, *answer, "hub:a/b"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 2  # and the line that it is fetched


def test_the_error_of_a_gated_recipe_names_an_alternative(tmp_path):
    from saefeat.corpora.failures import source_error

    class GatedRepoError(Exception):
        pass

    told = str(source_error(GatedRepoError("401"), RECIPES["flores+"].sources[0], "deu_Latn"))
    assert told.startswith(
        "flores+ is gated; accept its terms at https://huggingface.co/datasets/openlanguagedata/"
    )
    assert told.endswith("or use flores-200 instead")
