"""Scores of texts by hand, judges of quality, and bad tables."""

from __future__ import annotations

import csv
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import refused

from saefeat.baselines.judge import LanguageJudge
from saefeat.config import ScoreConfig
from saefeat.corpora.tables import read_table
from saefeat.generation import distinct_trigrams, perplexities
from saefeat.scoring import (
    ask_command,
    distinct_words,
    measure_twins,
    quality_from_twins,
    read_ratings,
    score_file,
    score_texts,
    steering_score,
)

GERMAN = "Die Katze sitzt heute auf der Matte und schläft."
FRENCH = "Le chat est assis sur le tapis et il dort toute la journée."
ENGLISH = "The cat sits on the mat and sleeps the whole day."
TEXTS, LABELS = [GERMAN, ENGLISH, GERMAN, FRENCH, FRENCH], ["de", "de", "de", "fr", "fr"]
RATINGS = [2, 2, 1, 0, 0]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


@pytest.fixture
def table(tmp_path):
    rows = zip(TEXTS, LABELS, RATINGS, strict=True)
    return write(tmp_path / "t.jsonl", [{"text": t, "label": of, "stars": r} for t, of, r in rows])


# --------------------------------------------------------------------------- scores


def test_scores_are_harmonic_means_of_means_by_label_and_overall():
    quality = read_ratings(RATINGS, "t")
    german, french, whole = score_texts(TEXTS, LABELS, LanguageJudge(["de", "fr"]), quality=quality)
    # LFS 2/3, OR (1 + 1 + .5) / 3; French is forced, but of no use: 0.
    lfs, relevance = 2 / 3, 2.5 / 3
    assert (german["label"], german["texts"], german["forcing"]) == ("de", 3, lfs)
    assert german["score"] == pytest.approx(100 * 2 * lfs * relevance / (lfs + relevance))
    assert (french["forcing"], french["relevance"], french["score"]) == (1, 0, 0)
    assert (whole["label"], whole["forcing"], whole["relevance"]) == (None, 0.8, 0.5)
    assert whole["score"] == pytest.approx(100 * 2 * 0.8 * 0.5 / 1.3)
    assert (german["lpr"], french["lpr"], whole["lpr"], whole["wpr"]) == (lfs, 1, 0.8, 1)


def test_a_share_below_one_per_cent_stays_a_share():
    """The authors' script takes a rate of at most 1 per cent for a fraction."""
    assert steering_score(0.009, 1.0) == pytest.approx(100 * 2 * 0.009 / 1.009)
    assert steering_score(0.0, 1.0) == steering_score(1.0, 0.0) == 0


def test_texts_without_a_rating_count_for_forcing_alone():
    rows = score_texts(TEXTS, LABELS, LanguageJudge(LABELS), quality=[1.0, None, None, None, None])
    assert [row["rated"] for row in rows] == [1, 0, 1]
    assert rows[0]["relevance"] == 1 and rows[0]["forcing"] == 2 / 3
    assert rows[1]["relevance"] is None and rows[1]["score"] is None


def test_labels_of_any_code_system_are_judged():
    rows = score_texts([GERMAN, GERMAN], ["deu_Latn", "fra"], LanguageJudge(["deu_Latn", "fra"]))
    assert [row["forcing"] for row in rows] == [1, 0, 0.5]


def test_distinct_trigrams_of_words_by_hand():
    assert distinct_words("a b c a b c") == 3 / 4  # abc bca cab abc
    assert distinct_words("今天今天今") == 2 / 3
    assert distinct_words("a b") is None


# --------------------------------------------------------------------------- quality


def test_quality_from_twins_by_hand():
    def row(*values):
        return dict(
            zip(
                ("perplexity", "perplexity_twin", "distinct3", "distinct3_twin"),
                values,
                strict=True,
            )
        )

    rows = [
        row(20, 10, 0.4, 0.8),  # half as fluent, half as varied
        row(5, 10, 1.0, 0.5),  # better than the twin: 1
        row("20", "10", "0.8", "0.8"),  # cells of .csv
        row(None, 10, 0.5, 0.5),  # too short
        row(10, None, 0.5, 0.5),
        row(10, "", 0.5, 0.5),
    ]
    assert quality_from_twins(rows) == [0.25, 1, 0.5, 0, None, None]
    with refused("row 2: the column perplexity is -1"):
        quality_from_twins([rows[0], row(-1, 10, 0.5, 0.5)])
    with refused("row 1: the column distinct3 is 'x'"):
        quality_from_twins([row(10, 10, "x", 0.5)])


def test_a_model_measures_texts_and_twins_after_their_prompts(tiny_lm):
    prompts, texts = (
        ["the cat", "der Hund"],
        ["sat on the mat and the dog", "und die Katze sind da"],
    )
    rows = [
        {"prompt": prompt, "text": text, "twin": twin}
        for prompt, text, twin in zip(prompts, texts, reversed(texts), strict=True)
    ]
    found = measure_twins(tiny_lm, rows)
    ids = [tiny_lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    context = [
        [0, *tiny_lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]] for prompt in prompts
    ]
    for end, some in (("", ids), ("_twin", ids[::-1])):
        wanted = perplexities(tiny_lm, context, some)
        assert [row[f"perplexity{end}"] for row in found] == pytest.approx(wanted)
        assert [row[f"distinct3{end}"] for row in found] == [distinct_trigrams([x]) for x in some]


def test_ratings_are_0_1_or_2():
    assert read_ratings([0, "1", 2.0, None, " "], "t") == [0, 0.5, 1, None, None]
    for bad in (3, -1, 1.5, "good", float("nan")):
        with refused(r"t: rating 2 is .*; ratings are 0, 1 or 2"):
            read_ratings([1, bad], "t")


JUDGE = """
import json, sys
for line in sys.stdin:
    row = json.loads(line)
    print({"de": 2, "fr": ""}[row["label"]] if row["text"] else 0)
"""


def test_a_command_rates_texts(tmp_path):
    (tmp_path / "judge.py").write_text(JUDGE)
    command = f"{sys.executable} {tmp_path / 'judge.py'}"
    rows = [
        {"prompt": "p", "text": "ä\n\ud800", "label": "de"},
        {"prompt": None, "text": "x", "label": "fr"},
        {"prompt": None, "text": "", "label": "fr"},
    ]
    assert ask_command(command, rows) == [1, None, 0]
    with refused(r"the judge failed with exit code 1: KeyError: 'it'", "judge_command"):
        ask_command(command, [{"prompt": "p", "text": "x", "label": "it"}])
    with refused("the judge printed 1 lines for 2 texts", "judge_command"):
        ask_command("echo 1", rows[:2])
    with refused("the judge: rating 1 is '7'; ratings are 0, 1 or 2"):
        ask_command("echo 7", rows[:1])


# --------------------------------------------------------------------------- the command


def test_the_command_scores_a_table_with_ratings(table, saefeat):
    code, out, _ = saefeat("steer", "score", table, "--rating-column", "stars")
    assert code == 0
    head, german, french, whole = (line.split() for line in out.splitlines())
    assert " ".join(head) == ("label texts forcing lpr wpr lcpr distinct3 rated relevance score")
    assert (german[0], french[0], whole[0]) == ("de", "fr", "all")
    code, out, _ = saefeat("steer", "score", table, "--rating-column", "stars", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows == score_file(table, ScoreConfig(rating_column="stars"))
    assert german[-1] == f"{rows[0]['score']:.3f}"


def test_without_a_judge_of_quality_there_is_no_score_and_a_word_about_it(table, saefeat):
    code, out, _ = saefeat("steer", "score", table)
    assert code == 0 and "no text has a rating of its quality, so there is no score" in out
    assert out.splitlines()[1].split()[-3:] == ["0", "-", "-"]


def test_what_generate_writes_is_scored_as_it_is(tiny_run, tmp_path, saefeat):
    given = ("--run", tiny_run, "--label", "de", "--prompt", "the cat", "--prompt", "A dog is")
    code, out, _ = saefeat("steer", "generate", *given, "--json")
    assert code == 0
    path = tmp_path / "texts.jsonl"
    path.write_text(out)
    rows = [json.loads(line) for line in out.splitlines()]
    (german, whole) = score_file(path, ScoreConfig())
    assert german == {**whole, "label": "de"}
    assert german["forcing"] == sum(row["judged"] == "de" for row in rows) / 2
    assert german["rated"] == 2 and 0 < german["relevance"] <= 1
    assert german["distinct3"] == pytest.approx(sum(row["distinct3"] for row in rows) / 2)
    lines = [row["line_pass"] for row in rows if row["line_pass"] is not None]
    assert german["lpr"] == (sum(lines) / len(lines) if lines else None)


def test_a_model_on_the_command_line_gives_the_quality_that_generate_does(
    tiny_run, tiny_model_dir, tmp_path, saefeat
):
    rows = [{"prompt": "the cat", "text": "sat on the mat with it", "twin": "ran", "label": "de"}]
    rows.append({**rows[0], "twin": "and the dog ran after it to"})
    path = write(tmp_path / "t.jsonl", rows)
    options = ("--model", tiny_model_dir, "--dtype", "float32", "--json")
    code, out, _ = saefeat("steer", "score", path, *options)
    assert code == 0 and json.loads(out.splitlines()[-1])["rated"] >= 1


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_tables_of_other_formats_are_the_same(table, tmp_path, kind):
    rows = [{**row, "text": f"{row['text']}\nEs ist so."} for row in read_table(table, {})]
    first = write(tmp_path / "lines.jsonl", rows)
    other = tmp_path / f"lines.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), other)
    else:
        with other.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    config = ScoreConfig(rating_column="stars")
    assert score_file(other, config) == score_file(first, config)


BAD = {
    "a label that is no language": ([{"text": "x", "label": "robots"}], [], "cannot judge robots"),
    "no label column": ([{"text": "x"}], [], "no column label; there are text"),
    "no text column": ([{"label": "de"}], [], "no column text; there are label"),
    "a column that is missing later": (
        [{"text": "x", "label": "de"}, {"text": "y"}],
        [],
        "row 2: no column label",
    ),
    "a text that is a number": (
        [{"text": 5, "label": "de"}],
        [],
        "row 1 has no text in the column text",
    ),
    "no rating column": (
        [{"text": "x", "label": "de"}],
        ["--rating-column", "stars"],
        "no column stars",
    ),
    "a rating out of range": (
        [{"text": "x", "label": "de", "stars": 3}],
        ["--rating-column", "stars"],
        "rating 1 is 3; ratings are 0, 1 or 2",
    ),
    "two judges": (
        [{"text": "x", "label": "de", "stars": 1}],
        ["--rating-column", "stars", "--judge-command", "cat"],
        "quality has two judges; choose one",
    ),
    "a column and a model": (
        [{"text": "x", "label": "de", "stars": 1, "prompt": "a", "twin": "b"}],
        ["--rating-column", "stars", "--model", "no-such-model"],
        "quality has two judges; choose one (--rating-column, --model)",
    ),
    "a command and a model": (
        [{"text": "x", "label": "de", "prompt": "a", "twin": "b"}],
        ["--judge-command", "cat", "--model", "no-such-model"],
        "quality has two judges; choose one (--judge-command, --model)",
    ),
    "a command that is not there": (
        [{"text": "x", "label": "de"}],
        ["--judge-command", "no-such-command"],
        "the judge failed with exit code 127",
    ),
    "a model without twins": (
        [{"text": "x", "label": "de", "prompt": "p"}],
        ["--model", "embedded:gemma-3-270m"],
        "no column twin",
    ),
    "no rows": ([], [], "has no rows"),
    "a word list that is missing": (
        [{"text": "x", "label": "de"}],
        ["--words", "no-such-file"],
        "no-such-file",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_one_sentence(case, tmp_path, saefeat):
    rows, options, message = BAD[case]
    code, out, error = saefeat("steer", "score", write(tmp_path / "t.jsonl", rows), *options)
    assert (code, out) == (2, "") and message in error and error.count("\n") == 1, error


def test_files_that_are_no_tables_are_one_sentence(tmp_path, saefeat):
    cases = {
        "t.txt": ("x", "must end in .jsonl"),
        "t.jsonl": ("{", "line 1 is not JSON"),
        "u.jsonl": ("[1]\n", "line 1 is not a JSON object"),
        "t.csv": ("text,label\nx\n", "line 2 has 1 cells, the header 2"),
        "t.parquet": ("x", "is not a readable Parquet file"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_text(content)
        code, out, error = saefeat("steer", "score", tmp_path / name)
        assert (code, out) == (2, "") and message in error and error.count("\n") == 1, error
    assert "does not exist" in saefeat("steer", "score", tmp_path / "none.csv")[2]
