"""`saefeat corpus list` and `saefeat corpus show`."""

from __future__ import annotations

import pytest

from saefeat.corpora.recipes import RECIPES


def test_the_list_has_every_recipe_with_its_labels_source_and_licence(saefeat):
    code, out, err = saefeat("corpus", "list")
    assert (code, err) == (0, "")
    for name, recipe in RECIPES.items():
        assert f"{name}: {recipe.about}" in out
        assert " ".join(recipe.labels) in out
        assert recipe.licence in out
        assert all(source.at in out for source in recipe.sources)
    assert "gated, see https://huggingface.co/datasets/openlanguagedata/flores_plus" in out


def test_a_corpus_is_shown_by_label_with_aligned_numbers_and_cut_examples(saefeat, tmp_path):
    (tmp_path / "en.txt").write_text(
        "\n".join(["one\ttwo " + "x" * 100, "three", "four \x1b[2J", ""])
    )
    (tmp_path / "long-label.txt").write_text("\n".join(f"text {n}" for n in range(1200)) + "\n")
    code, out, err = saefeat("corpus", "show", tmp_path)
    title, head, *rows = out.splitlines()
    assert (code, err) == (0, "")
    assert title == f"{tmp_path}: 2 labels"
    assert head.split() == ["label", "texts", "train", "test", "characters", "example"]
    assert [row.split()[0] for row in rows] == ["en", "long-label", "all"]
    assert rows[1].split()[1] == "1,200"
    train, test = (int(number.replace(",", "")) for number in rows[1].split()[2:4])
    assert train + test == 1200 and 150 < test < 350
    ends = {row.index("  ", head.index("characters") + 9) for row in (head, *rows[:2])}
    assert ends == {head.index("characters") + len("characters")}
    assert rows[0].endswith("x…") and "one two" in rows[0]
    assert not any("\x1b" in row or "\t" in row for row in rows)


def test_labels_and_columns_can_be_chosen_and_skipped_rows_are_counted(saefeat, tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("satz,sprache\nein Satz,de\na sentence,en\n ,de\nuna frase,it\n")
    columns = ["--text-column", "satz", "--label-column", "sprache"]
    code, out, _ = saefeat("corpus", "show", path, "--labels", "en,de", *columns)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["en", "de", "all"]
    assert out.splitlines()[-1] == "rows skipped or repaired: blank 1"


def test_one_label_can_be_shown(saefeat, tmp_path):
    (tmp_path / "c.csv").write_text("text,label\na,x\nb,y\n")
    (tmp_path / "one.csv").write_text("text,label\na,x\n")
    for words in (["c.csv", "--labels", "x"], ["one.csv"]):
        code, out, err = saefeat("corpus", "show", tmp_path / words[0], *words[1:])
        assert (code, err) == (0, "")
        assert out.startswith(f"{tmp_path / words[0]}: 1 label\n") and out.splitlines()[2].split()[
            :2
        ] == ["x", "1"]
    (tmp_path / "none.csv").write_text("text,label\n")
    code, _, err = saefeat("corpus", "show", tmp_path / "none.csv")
    assert code == 2 and "needs at least one label with text (found: none)" in err


def test_a_label_takes_one_line_of_the_table(saefeat, tmp_path):
    (tmp_path / "c.jsonl").write_text(
        '{"text": "a", "label": "two\\nlines"}\n{"text": "b", "label": "y"}\n'
    )
    _, out, _ = saefeat("corpus", "show", tmp_path / "c.jsonl")
    assert out.splitlines()[2].startswith("two lines") and len(out.splitlines()) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "the corpus nowhere does not exist; give a file"),
        (["xnli:dev"], "xnli:dev: xnli has the splits train, validation, test"),
        (["hub:a/b/c"], "hub:a/b/c is not a data set of the hub; write hub:OWNER/NAME"),
        ([""], "the corpus has an empty name; give a file"),
        (
            ["~no-such-user/c.csv"],
            'cannot expand "~" in ~no-such-user/c.csv: there is no such user',
        ),
        (["x" * 300], "xxx does not exist; give a file"),
        (["xnli#" + "9" * 5000], "the part after # must be the greatest number of texts per label"),
    ],
)
def test_a_corpus_that_cannot_be_shown_gives_one_sentence_of_error(saefeat, words, message):
    code, out, err = saefeat("corpus", "show", *words)
    assert (code, out) == (2, "")
    assert err.startswith("saefeat: ") and message in err and err.count("\n") == 1
