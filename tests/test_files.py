"""Local files as users have them: quotes, compression, encodings, nested columns, saved data."""

from __future__ import annotations

import bz2
import csv
import gzip
import http.server
import json
import lzma
import os
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from helpers import pairs_of, refused

from saefeat.cli.common import input_lines
from saefeat.corpora import load_corpus
from saefeat.io import UserError

LINES = [
    "text\tlabel",
    '"Ja, sagte er.”\tde',
    "yes\ten",
    "no\ten",
    "oui\tfr",
    "sí\tes",
    'und damit war Schluss"\tde',
]


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


# --------------------------------------------------------------------------- .tsv


def test_an_open_quotation_mark_does_not_join_lines_of_a_tsv(tmp_path):
    (tmp_path / "c.tsv").write_text("\n".join(LINES) + "\n")
    corpus = load_corpus(tmp_path / "c.tsv")
    assert pairs_of(corpus) == [tuple(line.split("\t")) for line in LINES[1:]]
    assert corpus.skipped == {"a quotation mark kept as text": 1}


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_quotation_marks_of_a_csv_writer_are_removed_from_a_tsv(tmp_path, quoting):
    rows = [
        ('He said "no"', "en"),
        ('"', "en"),
        ("tab\there", "de"),
        ("plain, and ’quoted’", "de"),
        ('a "b" c', "x"),
    ]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(
        tmp_path / "c.tsv", sep="\t", index=False, quoting=quoting
    )
    corpus = load_corpus(tmp_path / "c.tsv")
    assert pairs_of(corpus) == rows
    assert corpus.skipped == ({"quoted in a .tsv": 4} if quoting == csv.QUOTE_MINIMAL else {})


@pytest.mark.parametrize("text", ['"Ja"', '"', '""', '"a" and "b"', 'a""b', '5" of snow'])
def test_quotation_marks_of_a_plain_tsv_are_kept(tmp_path, text):
    (tmp_path / "c.tsv").write_text(f"label\ttext\nx\t{text}\ny\tb\n")
    corpus = load_corpus(tmp_path / "c.tsv")
    assert pairs_of(corpus) == [(text, "x"), ("b", "y")]
    assert corpus.skipped == ({"a quotation mark kept as text": 1} if text.startswith('"') else {})


@pytest.mark.parametrize("text", ["first\nsecond", 'say "x"\nsecond', "first\n\nsecond"])
def test_a_quoted_cell_over_several_lines_of_a_tsv_is_an_error_with_the_line(tmp_path, text):
    rows = [("a", "x"), (text, "y"), ("b", "x")]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / "c.tsv", sep="\t", index=False)
    with pytest.raises(
        UserError, match=r"c\.tsv: line 3 begins a quoted cell that continues on the next line, but"
    ):
        load_corpus(tmp_path / "c.tsv")


def test_a_bad_quotation_in_a_fully_quoted_tsv_is_an_error_with_the_line(tmp_path):
    (tmp_path / "c.tsv").write_text('"text"\t"label"\n"a"\t"x"\n"say \\"b\\""\t"y"\n')
    with pytest.raises(
        UserError,
        match="line 3 has a quoted cell that is not closed, or contains quotation marks that are n",
    ):
        load_corpus(tmp_path / "c.tsv")


# --------------------------------------------------------------------------- .csv


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_csv_may_have_another_delimiter(tmp_path, delimiter):
    rows = [("eins, zwei", "de"), ('one; "two"\tthree|four', "en")]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(
        tmp_path / "c.csv", sep=delimiter, index=False
    )
    assert pairs_of(load_corpus(tmp_path / "c.csv")) == rows
    with refused("no column lang; there are text, label$", "label_column"):
        load_corpus(tmp_path / "c.csv", label_column="lang")


def test_the_comma_comes_first(tmp_path):
    (tmp_path / "c.csv").write_text("text,label,a;b\neins;zwei,de,1\none,en,2\n")
    assert pairs_of(load_corpus(tmp_path / "c.csv")) == [("eins;zwei", "de"), ("one", "en")]


# --------------------------------------------------------------------------- packed files

PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}
JSONL = b'{"text": "eins", "label": "de"}\n{"text": "one", "label": "en"}\n'
SAME = {
    "c.jsonl": JSONL,
    "c.csv": b"text,label\neins,de\none,en\n",
    "c.tsv": b"text\tlabel\neins\tde\none\ten\n",
}


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("name", SAME)
def test_a_packed_file_is_read_like_the_file(tmp_path, name, ending):
    (tmp_path / name).write_bytes(SAME[name])
    half = len(SAME[name]) // 2
    parts = (SAME[name][:half], SAME[name][half:])  # as `cat a.gz b.gz` makes it
    (tmp_path / (name + ending)).write_bytes(b"".join(map(PACK[ending], parts)))
    packed = load_corpus(tmp_path / (name + ending))
    assert pairs_of(packed) == [("eins", "de"), ("one", "en")]
    assert packed.fingerprint == load_corpus(tmp_path / name).fingerprint


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) - 5], lambda data: b"not packed at all"]
)
def test_a_packed_file_that_is_damaged_gives_one_sentence_of_error(tmp_path, ending, damage):
    path = tmp_path / f"c.jsonl{ending}"
    path.write_bytes(damage(PACK[ending](JSONL)))
    with pytest.raises(UserError, match="cannot be unpacked") as caught:
        load_corpus(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("c.jsonl.zip", "unzip"),
        ("c.tar.gz", "tar xf"),
        ("c.tgz", "tar xf"),
        ("c.csv.lz4", "lz4 -d"),
    ],
)
def test_the_error_of_an_unsupported_archive_names_the_command_that_unpacks_it(
    tmp_path, name, command
):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(UserError, match=rf"unpack it first: {command} .*{name}"):
        load_corpus(tmp_path / name)


def test_a_packed_parquet_file_is_read_too(tmp_path):
    pd.DataFrame({"text": ["eins", "one"], "label": ["de", "en"]}).to_parquet(
        tmp_path / "c.parquet"
    )
    (tmp_path / "c.parquet.gz").write_bytes(gzip.compress((tmp_path / "c.parquet").read_bytes()))
    assert pairs_of(load_corpus(tmp_path / "c.parquet.gz")) == [("eins", "de"), ("one", "en")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", SAME)
def test_a_byte_order_mark_decides_the_encoding(tmp_path, name, encoding):
    text = SAME[name].decode().replace("eins", "fünf\u2028€")
    (tmp_path / name).write_bytes(
        text.replace("\n", "\r\n").encode(encoding)
    )  # as Windows writes it
    assert pairs_of(load_corpus(tmp_path / name)) == [("fünf\u2028€", "de"), ("one", "en")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_input_lines_of_commands_are_decoded_in_the_same_way(tmp_path, encoding, ending):
    path = tmp_path / f"lines.txt{ending}"
    data = "Grüße\n\nzwei\n".encode(encoding)
    path.write_bytes(gzip.compress(data) if ending else data)
    assert input_lines(path) == ["Grüße", "", "zwei"]


def test_a_byte_order_mark_before_a_text_or_label_is_removed(tmp_path):
    rows = [("\ufeffeins", "\ufeffde"), ("\ufeff", "de"), ("zw\ufeffei", "de"), ("one", "en")]
    (tmp_path / "c.jsonl").write_text(
        "\n".join(json.dumps({"text": t, "label": of}) for t, of in rows)
    )
    corpus = load_corpus(tmp_path / "c.jsonl")
    assert pairs_of(corpus) == [("eins", "de"), ("zw\ufeffei", "de"), ("one", "en")]
    assert corpus.skipped == {"blank": 1, "mended: byte-order mark": 2}
    assert corpus.ids[0] == load_corpus([("eins", "de"), ("one", "en")]).ids[0]


# --------------------------------------------------------------------------- directories


def labelled(tmp_path):
    for name, text in {"deu.txt": "eins", "eng.txt": "one", "fra.txt": "un"}.items():
        (tmp_path / name).write_text(text + "\n")
    return tmp_path


def test_other_files_of_a_directory_are_not_labels(tmp_path):
    folder = labelled(tmp_path)
    (folder / "README.txt").write_text("About this corpus.\n")
    (folder / "LICENSE.txt").write_text("CC0\n")
    (folder / "._deu.txt").write_bytes(b"\0\5\x16\7Mac OS X\xff")
    corpus = load_corpus(folder)
    assert corpus.labels == ("deu", "eng", "fra")
    assert corpus.skipped == {"files that are no labels": 3}
    assert load_corpus(folder, labels=["README", "deu"]).labels == (
        "README",
        "deu",
    )  # whoever asks for it


def test_files_of_a_directory_may_be_packed_but_each_label_has_one_file(tmp_path):
    folder = labelled(tmp_path)
    (folder / "ita.txt.gz").write_bytes(gzip.compress(b"uno\ndue\n"))
    assert pairs_of(load_corpus(folder))[-2:] == [("uno", "ita"), ("due", "ita")]
    (folder / "ita.txt").write_text("uno\n")
    with pytest.raises(
        UserError, match=r"ita\.txt and .*ita\.txt\.gz have the same label; remove one"
    ):
        load_corpus(folder)


def test_the_error_of_a_directory_of_other_files_names_one_of_them(tmp_path):
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(JSONL))
    with pytest.raises(
        UserError,
        match=r"holds no LABEL.txt files; give one of its files, such as .*train.jsonl.gz",
    ):
        load_corpus(tmp_path)


FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["de", "en"])})
DATA = Dataset.from_dict({"text": ["eins", "one", "nobody's"], "label": [0, 1, -1]}, FEATURES)


def test_a_folder_of_save_to_disk_is_read(tmp_path):
    DATA.save_to_disk(str(tmp_path / "set"))
    corpus = load_corpus(tmp_path / "set")
    assert pairs_of(corpus) == [("eins", "de"), ("one", "en")]
    assert corpus.skipped == {"no label": 1}
    (tmp_path / "set/state.json").write_text("{")
    with pytest.raises(UserError, match="set is not a readable directory of save_to_disk"):
        load_corpus(tmp_path / "set")


def test_of_several_saved_splits_train_is_read_or_a_choice_is_asked_for(tmp_path):
    DatasetDict(test=DATA.select([0]), train=DATA).save_to_disk(str(tmp_path / "set"))
    assert len(load_corpus(tmp_path / "set")) == 2
    DatasetDict(dev=DATA, test=DATA.select([0])).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(
        UserError, match=r"other has the splits dev, test; name one, such as .*other/dev"
    ):
        load_corpus(tmp_path / "other")
    assert len(load_corpus(tmp_path / "other/dev")) == 2


# --------------------------------------------------------------------------- nested columns

ROWS = [
    {"body": {"text": "eins"}, "metadata": {"language": "de", "n": 1}, "a.b": "x"},
    {"body": {"text": "one"}, "metadata": {"language": "en", "n": 2}, "a.b": "y"},
    {"body": {"text": "two"}, "metadata": {"language": None, "n": 3}, "a.b": "y"},
    {"body": None, "metadata": {"language": "en", "n": 4}, "a.b": "y"},
]


def source_of(kind, tmp_path):
    table = Dataset.from_list(ROWS)
    if kind == "jsonl":
        table.to_json(tmp_path / "c.jsonl")
    elif kind == "parquet":
        table.to_parquet(tmp_path / "c.parquet")
    else:
        return {"dataset": table, "frame": pd.DataFrame(ROWS), "rows": ROWS}[kind]
    return tmp_path / f"c.{kind}"


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "dataset", "frame", "rows"])
def test_nested_columns_are_named_with_a_dot(tmp_path, kind):
    source = source_of(kind, tmp_path)
    corpus = load_corpus(
        source, text_column="body.text", label_column="metadata.language", id_column="metadata.n"
    )
    assert (pairs_of(corpus), corpus.ids) == ([("eins", "de"), ("one", "en")], ["1", "2"])
    assert corpus.skipped == {"no label": 1, "no text": 1}
    assert load_corpus(source, text_column="body.text", label_column="a.b").labels == ("x", "y")
    with pytest.raises(
        UserError, match=r"no column metadata.lang; there are .*metadata.language, metadata.n"
    ):
        load_corpus(source, text_column="body.text", label_column="metadata.lang")


def test_nested_class_labels_have_names(tmp_path):
    features = Features(
        {"text": Value("string"), "metadata": {"language": ClassLabel(names=["de", "en"])}}
    )
    rows = {"text": ["eins", "one"], "metadata": [{"language": 0}, {"language": 1}]}
    made = Dataset.from_dict(rows, features)
    made.to_parquet(tmp_path / "c.parquet")
    for source in (made, tmp_path / "c.parquet"):
        assert pairs_of(load_corpus(source, label_column="metadata.language")) == [
            ("eins", "de"),
            ("one", "en"),
        ]


# --------------------------------------------------------------------------- other code systems


def write_flores(tmp_path):
    rows = [
        ("eins", "deu_Latn"),
        ("one", "eng_Latn"),
        ("一", "zho_Hans"),
        ("壹", "zho_Hant"),
        ("uno", "ita_Latn"),
    ]
    (tmp_path / "c.csv").write_text(
        "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)
    )
    return tmp_path / "c.csv"


def test_labels_in_another_code_system_are_found_and_reported(tmp_path):
    told = []
    corpus = load_corpus(write_flores(tmp_path), labels=["en", "deu", "ita_Latn"], say=told.append)
    assert corpus.labels == ("en", "deu", "ita_Latn")
    assert pairs_of(corpus) == [("eins", "deu"), ("one", "en"), ("uno", "ita_Latn")]
    assert told == [f"labels of {tmp_path / 'c.csv'}: eng_Latn as en, deu_Latn as deu"]
    assert load_corpus(labelled(tmp_path), labels=["de", "en"]).labels == ("de", "en")


def test_an_ambiguous_label_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no label zh; there are .*zho_Hans, zho_Hant"):
        load_corpus(write_flores(tmp_path), labels=["zh", "en"])


def test_an_equal_label_comes_before_one_of_the_same_language():
    rows = [("eins", "de"), ("zwei", "deu"), ("one", "en")]
    assert pairs_of(load_corpus(rows, labels=["de", "en"])) == [("eins", "de"), ("one", "en")]


# --------------------------------------------------------------------------- hub:NAME


@pytest.mark.parametrize("name", ["glue", "own/er"])
def test_without_a_network_a_folder_named_like_a_data_set_is_not_read(tmp_path, name, monkeypatch):
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "train.jsonl").write_bytes(JSONL)
    nowhere = {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "h"),
        "SAEFEAT_CACHE": str(tmp_path / "c"),
    }
    for variable, value in nowhere.items():
        monkeypatch.setenv(variable, value)
    program = (
        "from saefeat.corpora import fetch; fetch.PAUSES = (0.01,) * 3\n"
        "from saefeat.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "corpus", "show", f"hub:{name}"]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (told.returncode, told.stdout) == (2, "")
    assert f"{name} is not in the cache and cannot be fetched" in told.stderr
    assert not list(Path(tmp_path / "c").rglob("*.parquet"))


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's interface that reading one file, `train.jsonl`, needs."""

    data = JSONL.replace(b"eins", b"vom Hub")

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.endswith("train.jsonl"):
            return self.answer(200, self.data)
        if "/tree/" in path:
            file = {"type": "file", "oid": "b" * 40, "size": len(self.data), "path": "train.jsonl"}
            return self.answer(200, json.dumps([] if path.endswith("/data") else [file]).encode())
        if path.startswith("/api/datasets/own/er"):
            return self.answer(
                200,
                json.dumps({"id": "own/er", "sha": "a" * 40, "siblings": [], "tags": []}).encode(),
            )
        return self.answer(404, b'{"error": "Entry not found"}', {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def answer(self, status, body, headers=None):
        self.send_response(status)
        own = {"Content-Length": len(body), "ETag": '"x"', "X-Repo-Commit": "a" * 40}
        for name, value in {**own, **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_the_hub_is_read_even_if_a_folder_has_that_name(tmp_path):
    (tmp_path / "own/er").mkdir(parents=True)
    (tmp_path / "own/er/train.jsonl").write_bytes(JSONL)
    kept = tmp_path / "c/corpora/own-er"  # as an earlier version cached the folder
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "h"),
        }
        there |= {"SAEFEAT_CACHE": str(tmp_path / "c"), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-m", "saefeat", "corpus", "show", "hub:own/er"]

        def show():
            env = {**os.environ, **there}
            return subprocess.run(
                command, capture_output=True, text=True, cwd=tmp_path, timeout=100, env=env
            )

        told = show()
        assert told.returncode == 0, told.stderr
        assert "vom Hub" in told.stdout and f"at revision {'a' * 40}" in told.stderr
        (path,) = kept.glob("*.parquet")
        pq.write_table(
            pa.table({"text": ["eins", "one"], "label": ["de", "en"], "id": ["1", "2"]}), path
        )
        assert "vom Hub" in show().stdout  # fetched again: the cached rows have no revision
        server.shutdown()


def test_parquet_with_text_that_is_not_utf8_gives_one_sentence_of_error(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "c.parquet"
    broken = pa.array([b"a text", b"\xff\xfe broken"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": broken, "label": ["a", "b"]}), path)
    with pytest.raises(UserError, match="is not a readable Parquet file"):
        load_corpus(path)
