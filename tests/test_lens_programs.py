"""The lens on translations of programs: against brute force, and what it refuses."""

from __future__ import annotations

import csv
from collections import Counter
from itertools import permutations

import pytest
from helpers import refused
from test_lens import hidden
from test_lenses import DECODING, NORMS, own_logits, write_csv

from saefeat.baselines.fasttext import FastText
from saefeat.config import LensConfig
from saefeat.experiments.lenses import lens
from saefeat.experiments.lenses.bench import LensBench
from saefeat.experiments.lenses.programs import (
    program_keywords,
    read_programs,
    translation_prompts,
    with_controls,
)
from saefeat.lens.keywords import languages_of, pygments_keywords
from saefeat.run import open_run

PROGRAMS = [
    ("python", "javascript", "c"),
    ("x = 5", "let x = 5;", "int x = 5;"),
    ("def add(a, b):\n    return a + b", "function add(a, b) { return a + b; }",
     "int add(int a, int b) { return a + b; }"),
    ("while n > 0:\n    n -= 2", "while (n > 0) { n -= 2; }", "while (n > 0) n -= 2;"),
    ("if x is None:\n    print(x)", 'if (x === null) { console.log(x, "none"); }',
     'if (x == NULL) { printf("none, %d", x); }'),
    ("for i in range(3):\n    f(i)", "for (let i = 0; i < 3; i++) f(i);",
     "for (int i = 0; i < 3; i++) f(i);"),
    ("for c in word:\n    if c == 'a':\n        break",
     "for (const c of word) { if (c === 'a') break; }",
     "for (char *c = word; *c; c++) if (*c == 'a') break;"),
]  # fmt: skip
# The tokens of the tiny model are letters and pieces of prose.
KEYWORDS = {
    "python": {"a", "e", "in", "the"},
    "javascript": {"e", "o", "s"},
    "c": {"n", "t", "th"},
    "ruby": {"h", "i", "l", "r", "d", "u", "x", "("},
}


@pytest.fixture
def table(tmp_path):
    return write_csv(tmp_path / "programs.csv", *PROGRAMS)


@pytest.fixture
def words(tmp_path):
    rows = [(name, word) for name, some in KEYWORDS.items() for word in sorted(some)]
    return write_csv(tmp_path / "keywords.csv", ("label", "keyword"), *rows)


def test_prompts_are_the_published_ones(tmp_path, table):
    programs = read_programs(tmp_path / "programs.csv")
    assert list(programs) == ["python", "javascript", "c"] and len(programs["c"]) == 6
    found = list(translation_prompts(programs, "c", "python", 2))
    assert len(found) == 2
    prompt, translation = found[1]
    assert translation == " def add(a, b):\n    return a + b"
    assert prompt.startswith("c: while (n > 0) n -= 2; - python: while n > 0:\n    n -= 2\nc: if (")
    assert prompt.endswith("\nc: int add(int a, int b) { return a + b; } - python:")
    assert prompt.count("c: ") == prompt.count(" - python:") == 5
    two = {name: some[:2] for name, some in programs.items()}
    ((prompt, translation), _) = translation_prompts(two, "python", "c", 9)
    assert (prompt + translation).count("python: ") == 2 and translation == " int x = 5;"


def brute_force(opened, config, programs):
    """Counts of classes by pair, norm and layer, one prompt and one layer after the other."""
    lm, judge = opened.lm, FastText(labels=["en"]).fit().judge

    def classes(token):
        text = lm.tokenizer.decode([token])
        parts = text.split()
        own = [
            x
            for x, some in KEYWORDS.items()
            if parts and sum(p in some for p in parts) * 2 >= len(parts)
        ]
        (best,) = judge([text])
        english = not own and best and best[0] == "en" and best[1] >= config.reliable
        return [] if token in lm.special_ids else [*own, *["English"] * bool(english)]

    found, totals = Counter(), Counter()
    for source, target in permutations(programs, 2):
        pairs = list(zip(programs[source], programs[target], strict=True))
        for i, (program, translation) in enumerate(pairs[: config.texts]):
            shots = [*pairs[i + 1 :], *pairs[:i]][:4]
            head = "".join(f"{source}: {a} - {target}: {b}\n" for a, b in shots)
            head += f"{source}: {program} - {target}:"
            encoded = lm.tokenizer(
                f"{head} {translation}", add_special_tokens=False, return_offsets_mapping=True
            )
            row, spans = encoded["input_ids"], encoded["offset_mapping"]
            # With BOS before it, a token stands one place later; the place before it foretells it.
            at = [n for n, (_, end) in enumerate(spans) if end > len(head)]
            n = min(config.positions, len(at))
            at = [at[(k + 1) * len(at) // n - 1] for k in range(n)]
            for layer, x in hidden(lm, row)[0].items():
                for norm in NORMS:
                    top = own_logits(lm, x[at], norm == NORMS[0]).topk(config.top).indices
                    for token in top.flatten().tolist():
                        totals[source, target, norm, layer] += 1
                        found.update((source, target, norm, layer, x) for x in classes(token))
    return found, totals


@pytest.mark.usefixtures("no_gradients")
def test_keywords_where_programs_are_translated_by_brute_force(tiny_run, tmp_path, table, words):
    opened = open_run(tiny_run)
    config = LensConfig(
        kinds=("keywords",), programs=table, keywords=words, texts=2, positions=3, top=6,
        reliable=0.2,
    )  # fmt: skip
    (result,) = lens(opened, config, DECODING, tmp_path / "out.json")
    assert result["experiment"] == "lens-programs" and result["settings"]["positions"] == 3
    expected, totals = brute_force(opened, config, read_programs(tmp_path / "programs.csv"))
    assert {key[-1] for key in expected} == {*KEYWORDS, "English"}  # all of them are compared
    rows = result["rows"]
    assert len(rows) == len(totals) * 5 == 6 * 2 * 3 * 5
    for row in rows:
        key = (row["source"], row["target"], row["norm"], row["layer"])
        assert row["count"] == expected[*key, row["decoded"]]
        attributed = row["attributed"] * totals[key]
        assert row["share"] == (pytest.approx(row["count"] / attributed) if attributed else None)
        role = {row["source"]: "source", row["target"]: "target", "English": "English"}
        assert row["role"] == role.get(row["decoded"], "other")
    stages = {(row["norm"], row["role"], row["stage"]) for row in result["summary"]}
    assert len(stages) == 2 * 4 * 3 and {"share", "control"} <= result["summary"][0].keys()
    figures = {row["figure"] for row in result["means"]}
    assert figures >= {"source, share", "target, control", "English, share", "other, share"}
    again = []
    opened.say = again.append
    assert lens(opened, config, DECODING, tmp_path / "out.json") == [result]
    assert again[-1] == f"{tmp_path / 'out.json'} is complete already"


def test_the_control_of_a_language_is_its_share_in_prompts_between_others():
    head = {"norm": "n", "layer": 0, "vocabulary": 0.1}
    shares = {("a", "b"): 0.6, ("b", "a"): 0.8, ("b", "c"): 0.2, ("c", "b"): None}
    rows = [
        {**head, "source": x, "target": y, "decoded": "a", "share": share}
        | {"role": {x: "source", y: "target"}.get("a", "other")}
        for (x, y), share in shares.items()
    ]
    assert [row["control"] for row in with_controls(rows)] == [0.2, 0.2, 0.1, 0.1]
    assert [row["control"] for row in with_controls(rows[:2])] == [None, None]
    assert with_controls([{**rows[0], "role": "English"}])[0]["control"] == 0.1


def test_languages_of_the_table_come_first_and_others_beside(tiny_run, table, words, tmp_path):
    opened = open_run(tiny_run)

    def names(**options):
        bench = LensBench(opened, LensConfig(**{"programs": table, **options}), DECODING)
        return program_keywords(bench).question.settings["names"]

    found = names()
    assert found[:3] == ["python", "javascript", "c"] and "ruby" in found
    assert len(found) == len({*found}) == 10
    assert names(programming=("Ruby", "C")) == ["python", "javascript", "c", "Ruby"]
    assert names(keywords=words) == list(KEYWORDS)
    aliases = write_csv(tmp_path / "aliases.csv", (" py", "js ", "cpp"), *PROGRAMS[1:])
    found = names(programs=aliases)
    assert found[:3] == ["py", "js", "cpp"] and not {"python", "javascript", "c++"} & {*found}
    known = pygments_keywords(["python", "javascript", "c"])
    assert languages_of("while", known) == ("python", "javascript", "c")


REFUSED = {
    "one language": ("python\nx = 1\ny = 2\n", [], "has 1 languages (columns) and 2 programs"),
    "one program": ("python,c\nx = 1,x = 1;\n", [], "has 2 languages (columns) and 1 programs"),
    "empty": ("python,c\nx = 1,x = 1;\ny = 2, \n", [], "row 2 has no program in c"),
    "unknown": ("python,klingon\nx,y\nz,w\n", [], "does not know the programming language klingon"),
    "no keywords": ("python,perl\nx,y\nz,w\n", ["--keywords", "WORDS"], "has no keywords of perl"),
    "two names": (
        "js,javascript\nx,y\nz,w\n",
        [],
        "js and javascript are one programming language",
    ),
    "other names": (
        "python,c\nx,y\nz,w\n",
        ["--programming", "go,golang"],
        "go and golang are one programming language",
    ),
    "English": (
        "python,c\nx,y\nz,w\n",
        ["--keywords", "ENGLISH"],
        "English is the class of words that are no keywords",
    ),
    "generated": ("python,c\nx,y\nz,w\n", ["--generated"], "leave one of the two out"),
    "long": (f"python,c\nx,{'y ' * 9000}\nz,w\n", [], "give shorter programs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_tables_of_programs_are_one_sentence(saefeat, run_copy, tmp_path, words, name):
    text, options, message = REFUSED[name]
    (tmp_path / "programs.csv").write_text(text)
    rows = [("label", "keyword"), ("python", "if"), ("c", "do"), ("English", "the")]
    files = {"WORDS": words, "ENGLISH": write_csv(tmp_path / "english.csv", *rows)}
    options = [files.get(option, option) for option in options]
    command = ["--kinds", "keywords,probe", "--programs", tmp_path / "programs.csv", *options]
    code, out, err = saefeat("lens", "--run", run_copy, *command)
    assert (code, out) == (2, "") and message in err
    assert len(err.strip().splitlines()) == 1
    assert not (run_copy / "experiments").exists()


def test_a_missing_table_is_refused(tmp_path):
    with refused("programs.csv does not exist", "programs"):
        read_programs(tmp_path / "programs.csv")


def test_the_experiment_of_the_paper_runs_on_a_table(saefeat, run_copy, tmp_path):
    with (tmp_path / "programs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([row[::2] for row in PROGRAMS[:3]])
    code, out, err = saefeat("reproduce", "code", "--run", run_copy)
    assert code == 0 and "--kinds keywords --programs PROGRAMS --texts 100" in out, err
    words = ["--run", run_copy, "--kinds", "keywords", "--programs", tmp_path / "programs.csv"]
    code, out, err = saefeat("lens", *words, "--norm", "with", "--positions", 2, "--layers", "-1,1")
    assert code == 0 and "where programs are translated" in out, err
    assert (run_copy / "experiments" / "lens-programs.json").exists()
    assert saefeat("report", run_copy)[0] == 0
    assert "where programs are translated" in (run_copy / "report.html").read_text()
