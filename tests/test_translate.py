"""Translation under steering: figures by sacrebleu and by hand, the prompt, the experiment."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
from helpers import refused

from saefeat.config import STEERING_METHODS, Decoding, TranslateConfig
from saefeat.experiments import translate as module
from saefeat.experiments.translate import (
    bleu_tokenizer,
    build_prompt,
    language_name,
    translate,
    translation_scores,
)
from saefeat.run import open_run
from saefeat.rundir import RunDir

pytestmark = pytest.mark.usefixtures("one_core", "every_line")
sacrebleu = pytest.importorskip("sacrebleu", reason="needs saefeat[translation]")

ROWS = [
    {"source": f"The cat number {i} sat on the mat.", "reference": text, "label": label}
    for label, text in (("de", "Die Katze saß auf der Matte."), ("th", "แมวนั่งบนเสื่อ"))
    for i in range(5)
]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    return path


def test_the_prompt_is_the_published_one():
    prompt = build_prompt("Hello.", language_name("en"), language_name("de"))
    assert prompt == "Translate an English sentence into German.\nEnglish: Hello.\nGerman: "
    assert build_prompt("x", "German", "French").startswith("Translate a German sentence into")
    assert (language_name("el"), language_name("sw")) == ("Modern Greek", "Swahili")


def test_figures_by_hand():
    """The first output equals its reference, the second is in another language."""
    reference = "Die Katze sitzt auf der Matte."
    outputs, good = [reference, "The cat sits on the mat.", "Die Katze"], [True, False, True]
    found = translation_scores(outputs, [reference] * 3, good, "de")
    third = sacrebleu.sentence_bleu("Die Katze", [reference], use_effective_order=True).score
    assert 0 < third < 100
    assert found["acc"] == 2 / 3
    assert found["bleu"] == pytest.approx((100 + third) / 2)
    assert found["acc_bleu"] == pytest.approx(2 / 3 * (100 + third) / 2)
    assert found["corpus_bleu"] == sacrebleu.corpus_bleu(outputs, [[reference] * 3]).score
    assert found["chrf"] == sacrebleu.corpus_chrf(outputs, [[reference] * 3]).score


def test_without_a_success_there_is_no_bleu_and_the_product_is_0():
    found = translation_scores(["x", ""], ["y", "z"], [False, False], "de")
    assert (found["acc"], found["bleu"], found["acc_bleu"]) == (0, None, 0)


def test_words_of_chinese_and_japanese_are_cut():
    assert (bleu_tokenizer("zho_Hans"), bleu_tokenizer("de")) == ("zh", "13a")
    mecab = find_spec("MeCab") and find_spec("ipadic")
    assert bleu_tokenizer("ja") == ("ja-mecab" if mecab else "char")
    for label, output, reference in (
        ("zh", "我有一只大狗。", "我有一只小狗。"),
        ("ja", "私は大きい犬を飼っています。", "私は小さい犬を飼っています。"),
    ):
        found = translation_scores([output], [reference], [True], label)["bleu"]
        wanted = sacrebleu.sentence_bleu(
            output, [reference], use_effective_order=True, tokenize=bleu_tokenizer(label)
        ).score
        assert found == wanted and wanted > 20


def test_each_label_is_translated_unsteered_steered_and_by_random_features(run_copy, table):
    config = TranslateConfig(table=str(table), sentences=3)
    result = translate(open_run(run_copy), config, Decoding(8, temperature=0))
    assert [(row["method"], row["label"]) for row in result["rows"]] == [
        (method, label) for label in ("de", "th") for method in ("none", "features", "random")
    ]
    assert all(row["sentences"] == 3 for row in result["rows"])
    assert [row["method"] for row in result["summary"]] == ["none", "features", "random"]
    counts = {row["method"]: row["units"] for row in result["rows"] if row["label"] == "de"}
    # Fewer random ones where fewer others fire.
    assert counts["none"] == 0 < counts["random"] <= counts["features"]
    path = run_copy / "experiments" / "translation.json"
    before = path.read_bytes()
    translate(open_run(run_copy), config, Decoding(8, temperature=0))
    assert path.read_bytes() == before  # complete already
    recorded = json.loads(before)["settings"]["statistics"]
    for sae in open_run(run_copy).saes:  # as if they were collected anew
        stats = RunDir(run_copy).load_stats(sae.id)
        stats.header["chosen"] |= {"tokens": 99}
        stats.save(RunDir(run_copy).stats_file(sae.id))
    translate(open_run(run_copy), config, Decoding(8, temperature=0))
    assert json.loads(path.read_bytes())["settings"]["statistics"] != recorded


def test_every_method_is_translated_by_its_random_twin(run_copy, table):
    for method in ("neurons", "diffmean", "boost"):
        config = TranslateConfig(table=str(table), sentences=2, labels=("th",), method=method)
        out = run_copy / f"{method}.json"
        result = translate(open_run(run_copy), config, Decoding(4, temperature=0), out)
        rows = result["rows"]
        assert [row["method"] for row in rows] == ["none", method, "random"]
        assert rows[1]["units"] == rows[2]["units"] and rows[1]["strength"] == rows[2]["strength"]
        (edit,) = STEERING_METHODS[method].edits[:1]
        recipes = result["settings"]["recipes"]
        assert recipes["random th"]["edit"] == f"{edit}, at random"


def generating(texts):
    """In place of `generate`: the tokens of these texts."""
    return lambda lm, *_, **__: lm.tokenizer(texts, add_special_tokens=False)["input_ids"]


@pytest.mark.filterwarnings("ignore:no forward pass of the model")
def test_outputs_end_at_the_first_newline(run_copy, table, monkeypatch):
    seen = {}

    def scores(outputs, references, good, label):
        seen[label] = outputs
        return dict.fromkeys(("acc", "bleu", "acc_bleu", "corpus_bleu", "chrf"), 0.0)

    texts = [" Die Katze.\nEnglish: more", "\nspät", "ohne Ende"]
    monkeypatch.setattr(module, "generate", generating(texts))
    monkeypatch.setattr(module, "translation_scores", scores)
    config = TranslateConfig(table=str(table), sentences=3, labels=("de",))
    translate(open_run(run_copy), config, Decoding(8, temperature=0))
    assert seen == {"de": ["Die Katze.", "", "ohne Ende"]}


@pytest.mark.filterwarnings("ignore:no forward pass of the model")
def test_an_output_has_to_be_in_the_language_for_sure(run_copy, table, monkeypatch):
    config = TranslateConfig(table=str(table), sentences=3, labels=("de",))
    german = "Die Katze sitzt heute auf der Matte und schläft."
    texts = [german, "The cat sits on the mat and sleeps.", german]
    monkeypatch.setattr(module, "generate", generating(texts))
    found = translate(open_run(run_copy), config, Decoding(8, temperature=0))["rows"]
    assert [row["acc"] for row in found] == [2 / 3] * 3
    monkeypatch.setattr(module, "SURE", 1.01)
    found = translate(
        open_run(run_copy), config, Decoding(8, temperature=0), run_copy / "other.json"
    )["rows"]
    assert [row["acc"] for row in found] == [0] * 3


BAD = {
    "a label of another run": ({"label": "fr"}, [], "no label 'fr' in this run"),
    "the source": ({"label": "en"}, [], "en is the source that is steered away from"),
    "a reference that is missing": (
        {"reference": None},
        [],
        "row 1 has no text in the column reference",
    ),
    "a column that is missing": ({}, ["--source-column", "english"], "no column english"),
    "no sentence of a label": ({"label": "de"}, ["--labels", "th"], "no sentence for th"),
    "an unknown method": ({}, ["--method", "magic"], "no setting for magic"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_one_sentence(case, tiny_run, tmp_path, saefeat):
    changes, options, message = BAD[case]
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({**ROWS[0], **changes}) + "\n")
    out = tmp_path / "out.json"
    code, _, error = saefeat(
        "steer", "translate", "--run", tiny_run, "--table", path, "--out", out, *options
    )
    assert code == 2 and message in error and error.count("\n") == 1, error
    assert not out.exists()


def test_without_sacrebleu_one_sentence_says_what_to_install(tiny_run, table, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with refused(r"need the library sacrebleu; install saefeat\[translation\]"):
        translate(open_run(tiny_run), TranslateConfig(table=str(table)), Decoding(8))
