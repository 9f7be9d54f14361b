"""`saefeat lens`: each kind on a tiny run, against brute force, and what it refuses."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import refused
from pytest import approx
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import StandardScaler
from test_lens import hidden
from tokenizers import Tokenizer, models, trainers
from transformers import PreTrainedTokenizerFast

from saefeat.baselines.fasttext import FastText
from saefeat.baselines.tokens import TokenNaiveBayes
from saefeat.config import Decoding, LensConfig
from saefeat.corpora import load_corpus
from saefeat.experiments.lenses import lens
from saefeat.experiments.lenses.alignment import find_pairs
from saefeat.experiments.lenses.bench import LensBench, NotApplicable, by_stage
from saefeat.experiments.lenses.clozes import first_tokens, noun_clozes, read_clozes
from saefeat.experiments.lenses.figures import FIGURES, text_figures
from saefeat.experiments.lenses.tokens import keywords
from saefeat.experiments.lenses.words import word_probabilities
from saefeat.labels.scripts import script_of
from saefeat.lens.keywords import PROGRAMMING
from saefeat.models import wrap
from saefeat.run import open_run

NORMS = ("with final norm", "without norm")
DECODING = Decoding(max_new_tokens=5)


@pytest.fixture
def opened(tiny_run):
    return open_run(tiny_run)


def write_csv(path, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def own_logits(lm, states, norm):
    """Logits of vectors of the stream by the modules of a Llama."""
    return lm.model.lm_head(lm.model.model.norm(states) if norm else states)


# --------------------------------------------------------------------------- decoded tokens


def decoded(opened, config, attribute):
    """Counts and probabilities of classes by text label, norm and layer, one text after another."""
    lm = opened.lm
    examples = LensBench(opened, config, DECODING).examples("test", config.texts)
    found, mass, totals = Counter(), Counter(), Counter()
    for row, label in zip(examples.tokens, examples.of, strict=True):
        places = [i + 1 for i, token in enumerate(row) if token not in lm.special_ids]
        n = min(config.positions, len(places))
        at = [places[(i + 1) * len(places) // n - 1] for i in range(n)]
        for layer, x in hidden(lm, row)[0].items():
            for name in NORMS:
                key = (label, name, layer)
                found_logits = own_logits(lm, x[at], name == NORMS[0])
                chances = found_logits.softmax(-1)
                for place, tokens in enumerate(found_logits.topk(config.top).indices.tolist()):
                    for token in tokens:
                        totals[key] += 1
                        mass[*key, "every"] += float(chances[place, token])
                        if token not in lm.special_ids:
                            for each in attribute(lm.tokenizer.decode([token])):
                                found[*key, each] += 1
                                mass[*key, each] += float(chances[place, token])
    return found, mass, totals


@pytest.mark.parametrize("kind", ["languages", "scripts", "keywords"])
def test_shares_of_decoded_tokens_by_brute_force(opened, tmp_path, kind):
    table = {"vowel": {"a", "e", "o"}, "article": {"the", "a"}}
    words = [(name, word) for name, some in table.items() for word in some]
    file = write_csv(tmp_path / "keywords.csv", ("label", "keyword"), *words)
    config = LensConfig(kinds=(kind,), texts=2, positions=3, top=4, reliable=0.3, keywords=file)
    judge = FastText(labels=list(opened.corpus.labels)).fit().judge

    def language(text):
        (best,) = judge([text])
        return [best[0]] if best and best[1] >= 0.3 and best[0] in opened.corpus.labels else []

    attribute = {
        "languages": language,
        "scripts": lambda text: [
            x if x in ("Latn", "Thai") else "other" for x in [script_of(text)] if x
        ],
        "keywords": lambda text: [
            name
            for name, some in table.items()
            if text.split() and 2 * sum(w in some for w in text.split()) >= len(text.split())
        ],
    }[kind]
    expected, mass, totals = decoded(opened, config, attribute)
    assert expected  # the comparison is of something
    (result,) = lens(opened, config, DECODING, tmp_path / "out.json")
    assert result["experiment"] == f"lens-{kind}"
    several, seen = kind == "keywords", Counter()
    for row in result["rows"]:
        key = (row["text"], row["norm"], row["layer"])
        assert row["count"] == expected[*key, row["decoded"]]
        seen[key] += row["count"]
    assert seen.keys() == totals.keys()
    part = Counter(
        each
        for i in range(len(opened.lm.tokenizer))
        if i not in opened.lm.special_ids
        for each in attribute(opened.lm.tokenizer.decode([i]))
    )
    for row in result["rows"]:
        key = (row["text"], row["norm"], row["layer"])
        places = totals[key] / 4
        assert row["mass"] == approx(mass[*key, row["decoded"]] / places, abs=1e-6)
        chance = part[row["decoded"]] / len(opened.lm.tokenizer)
        assert row["by_chance"] == approx(mass[*key, "every"] / places * chance, abs=1e-6)
        attributed = row["attributed"] * totals[key]
        if not several:
            assert attributed == approx(seen[key])
        if attributed:
            assert row["share"] == approx(row["count"] / attributed)
        else:
            assert row["share"] is None


def test_the_vocabulary_of_a_small_model_is_its_own_control(opened, tmp_path):
    config = LensConfig(kinds=("scripts",), texts=1, positions=1, top=1, norm="with")
    (result,) = lens(opened, config, DECODING, tmp_path / "out.json")
    ids = range(len(opened.lm.tokenizer))
    read = [script_of(opened.lm.tokenizer.decode([i])) for i in ids if i > 2]
    known = Counter(x if x in ("Latn", "Thai") else "other" for x in read if x)
    for row in result["rows"]:
        assert row["vocabulary"] == approx(known[row["decoded"]] / known.total())


def figures(shares, classes=None, pivot="en"):
    """Mean figures of texts, given the shares of classes in each: text -> class -> share."""
    vocabulary = {"en": 0.8, "de": 0.1, "th": 0.1}
    rows = [
        {"norm": "n", "layer": 0, "text": text, "decoded": name, "share": share, "attributed": 0.5}
        | {"vocabulary": vocabulary[name]}
        | {"mass": None if share is None else share / 4, "by_chance": vocabulary[name] / 4}
        for text, of in shares.items()
        for name, share in of.items()
    ]
    found = text_figures(lambda label: frozenset({(classes or {}).get(label, label)}), pivot, rows)
    for share, mass in zip(FIGURES[:4], FIGURES[5:], strict=True):  # the rule is the same
        fourth = [None if row[share] is None else row[share] / 4 for row in found]
        assert [row[mass] for row in found] == [x if x is None else approx(x) for x in fourth]
    return [
        [None if row[name] is None else round(row[name], 9) for row in found]
        for name in ("own", "own_in_others", "pivot", "pivot_vocabulary")
    ]


def test_a_lens_that_says_the_same_of_all_texts_is_no_better_than_its_controls():
    always = {text: {"en": 0.8, "de": 0.1, "th": 0.1} for text in ("en", "de", "th")}
    own, others, pivot, vocabulary = figures(always)
    assert own == others == [0.8, 0.1, 0.1]
    assert pivot == vocabulary == [None, 0.8, 0.8]


def test_controls_of_decoded_tokens_by_hand():
    own, others, pivot, vocabulary = figures(
        {
            "en": {"en": 0.9, "de": 0.1, "th": 0.0},
            "de": {"en": 0.3, "de": 0.7, "th": 0.0},
            "th": {"en": None, "de": None, "th": None},  # no token has a class
        }
    )
    assert own == [0.9, 0.7, None] and others == [0.3, 0.1, None]
    assert pivot == [None, 0.3, None] and vocabulary == [None, 0.8, None]
    # en and de have one script: neither is an other text of the other, nor its pivot.
    own, others, pivot, _ = figures(
        {"en": {"en": 0.9, "th": 0.1}, "de": {"en": 1, "th": 0}, "th": {"en": 0.4, "th": 0.6}},
        {"de": "en"},
    )
    assert own == [0.9, 1, 0.6] and others == [0.4, 0.4, 0.05]
    assert pivot == [None, None, 0.4]


def test_the_first_plot_shows_means_over_labels(opened, tmp_path):
    config = LensConfig(kinds=("scripts",), texts=2, positions=2, top=3)
    (result,) = lens(opened, config, DECODING, tmp_path / "out.json")
    assert result["plots"][0]["of"] == "means"
    for row in result["means"]:
        if row["figure"] == "pivot":  # Latin in Thai text, the only one without Latin
            (one,) = [r for r in result["rows"] if (r["text"], r["decoded"]) == ("th", "Latn")
                      and all(r[name] == row[name] for name in ("norm", "layer"))]  # fmt: skip
            assert row["mean"] == one["share"]
    drawn = (tmp_path / "out.svg").read_text()
    assert "mean, with final norm over layer" in drawn and "own_in_others" in drawn


def test_keywords_of_the_labels_that_are_programming_languages():
    def names(labels, **options):
        run = SimpleNamespace(corpus=SimpleNamespace(labels=labels))
        return list(keywords(LensBench(run, LensConfig(**options), DECODING)).classes)

    assert names(("de", "Python", "C++")) == ["Python", "C++"]
    assert names(("de", "en"), kinds=("keywords",)) == list(PROGRAMMING)
    assert names(("de", "en"), programming=("scala",)) == ["scala"]
    with refused("none of the labels of the run is a programming language", "kinds"):
        names(("de", "en"))


def test_places_of_generated_text(opened, tmp_path):
    config = LensConfig(kinds=("scripts",), texts=3, positions=4, top=2, generated=True)
    (result,) = lens(opened, config, Decoding(max_new_tokens=4), tmp_path / "out.json")
    # No text ends before its fourth new token, so each label has 3 x 4 x 2 decoded tokens.
    row = next(r for r in result["rows"] if r["decoded"] == "Latn")
    assert row["count"] <= 24
    assert row["attributed"] * 24 == approx(round(row["attributed"] * 24))
    assert result["settings"]["decoding"]["max_new_tokens"] == 4


# --------------------------------------------------------------------------- words


def test_word_probabilities_by_brute_force(opened, tmp_path):
    lm = opened.lm
    rows = [("the cat sat", "dog|mat", "Hund"), ("der Hund und", "cat", "Katze"), ("the", "x", "y")]
    file = write_csv(tmp_path / "words.csv", ("prompt", "en", "de"), *rows)
    config = LensConfig(kinds=("words",), words=file)
    (result,) = lens(opened, config, DECODING, tmp_path / "out.json")

    def first(cell):
        ids = [lm.tokenizer(s + w, add_special_tokens=False)["input_ids"][0]
               for w in cell.split("|") for s in ("", " ")]  # fmt: skip
        return sorted({i for i in ids if lm.tokenizer.decode([i]).strip()})

    chances = {}  # (norm, layer, prompt) -> probabilities of all tokens
    for number, (prompt, *_) in enumerate(rows):
        states, own = hidden(lm, lm.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        for layer, x in states.items():
            for norm in NORMS:
                found = own_logits(lm, x[-1], norm == NORMS[0]).double().softmax(-1)
                chances[norm, layer, number] = found
        last = chances[NORMS[0], max(states), number]
        assert torch.allclose(last, own[-1].double().softmax(-1), atol=1e-6)
    assert {row["target"] for row in result["rows"]} == {"all"}
    for row in result["rows"]:
        k = {"en": 1, "de": 2}[row["language"]]
        each = [chances[row["norm"], row["layer"], i] for i in range(3)]
        sets = [first(cells[k]) for cells in rows]
        expected = np.mean([float(p[ids].sum()) for p, ids in zip(each, sets, strict=True)])
        assert row["probability"] == approx(expected, abs=1e-6)
        after = [[2], [2], [0, 1]]  # `cat` stands in the first prompt, `Hund` in the second
        others = [next(sets[j] for j in some if not set(sets[j]) & set(sets[i]))
                  for i, some in enumerate(after)]  # fmt: skip
        expected = np.mean([float(p[ids].sum()) for p, ids in zip(each, others, strict=True)])
        assert row["control"] == approx(expected, abs=1e-6)
        assert row["role"] == {"en": "pivot", "de": "other"}[row["language"]]


def test_control_words_stand_in_no_example_of_the_prompt(opened, tmp_path):
    lm, config = opened.lm, LensConfig(kinds=("words",), norm="with", layers=(1,))
    (result,) = lens(opened, config, DECODING, tmp_path / "out.json")
    clozes = [one for one in noun_clozes(opened.corpus.labels) if one.target == "de"]
    expected = {language: [] for language in opened.corpus.labels}
    for i, one in enumerate(clozes):
        ids = lm.tokenizer(one.prompt, add_special_tokens=False)["input_ids"]
        chances = own_logits(lm, hidden(lm, ids)[0][1][-1], True).double().softmax(-1)
        for language, some in expected.items():
            firsts = [set().union(*(first_tokens(lm, word) for word in other.words[language]))
                      for other in clozes]  # fmt: skip
            shown = [(i + step) % 20 for step in range(5)]  # its own noun, and four examples
            allowed = [
                j
                for j in [(i + step) % 20 for step in range(20)]
                if j not in shown
                and not any(w in one.prompt for of in clozes[j].words.values() for w in of)
                and not firsts[j] & firsts[i]
            ]
            some += [float(chances[sorted(firsts[j])].sum()) for j in allowed[:1]]
    for row in result["rows"]:
        if row["target"] == "de":
            some = expected[row["language"]]
            assert len(some) == (0 if row["language"] == "th" else 20)  # Thai begins with one byte
            assert row["control"] == (approx(np.mean(some), abs=1e-6) if some else None)


def test_the_language_whose_words_stand_in_the_prompts_is_the_source(opened, tmp_path):
    rows = [("Hund -", "dog", "Hund", "x", "en"), ("ein Ohr -", "ear", "Ohr", "y", "en"),
            ("dog -", "dog", "Hund", "x", "de"), ("ear -", "ear", "Ohr", "y", "de")]  # fmt: skip
    file = write_csv(tmp_path / "words.csv", ("prompt", "en", "de", "th", "target"), *rows)
    config = LensConfig(kinds=("words",), words=file, layers=(0,), norm="with")
    (result,) = lens(opened, config, DECODING, tmp_path / "out.json")
    roles = {(row["target"], row["language"]): row["role"] for row in result["rows"]}
    assert roles == {
        ("en", "en"): "target",
        ("en", "de"): "source",
        ("en", "th"): "other",
        ("de", "en"): "source",  # though it is the pivot: a copy says nothing of thinking
        ("de", "de"): "target",
        ("de", "th"): "other",
    }
    assert {row["role"] for row in result["summary"]} == {"target", "source", "other"}


def test_a_pivot_without_words_leaves_other_kinds_alone():
    run = SimpleNamespace(corpus=SimpleNamespace(labels=("de", "en", "fr", "sw")))
    with pytest.raises(NotApplicable, match="there are no words in sw"):
        word_probabilities(LensBench(run, LensConfig(pivot="sw"), DECODING))


def test_first_tokens_and_all_beginnings_of_a_word(tiny_lm):
    ids = tiny_lm.tokenizer.get_vocab()
    assert first_tokens(tiny_lm, "the") == {ids["the"], ids["Ġthe"]}
    beginnings = {ids[x] for x in ("t", "th", "the", "Ġt", "Ġthe") if x in ids}
    assert beginnings <= first_tokens(tiny_lm, "thex", prefixes=True)
    for token in first_tokens(tiny_lm, "thex", prefixes=True):
        assert "thex".startswith(tiny_lm.tokenizer.decode([token]).strip())


def test_a_word_without_tokens_is_refused(make_lm):
    bare = Tokenizer(models.BPE())
    bare.train_from_iterator(["abc abd"], trainers.BpeTrainer(vocab_size=20, show_progress=False))
    lm = wrap(make_lm().model, PreTrainedTokenizerFast(tokenizer_object=bare), "bare")
    assert first_tokens(lm, "abc")
    with refused("the word '水' has no tokens", "words"):
        first_tokens(lm, "水")


def test_the_table_of_nouns_asks_for_translations_into_each_label():
    clozes = noun_clozes(["deu_Latn", "en", "fr", "zh"])
    assert Counter(one.target for one in clozes) == {"deu_Latn": 20, "fr": 20, "zh": 20}
    one = next(one for one in clozes if one.target == "zh")
    assert one.words == {"deu_Latn": ["Buch"], "en": ["book"], "fr": ["livre"], "zh": ["书"]}
    lines = one.prompt.split("\n")
    assert lines[0] == 'Français: "eau" - 中文: "水"' and lines[-1] == 'Français: "livre" - 中文: "'
    assert len(lines) == 5
    french = next(one for one in clozes if one.target == "fr")
    assert french.prompt.endswith('Deutsch: "Buch" - Français: "')
    with refused("fewer than three of the labels", "words"):
        noun_clozes(["python", "en", "de"])


# --------------------------------------------------------------------------- MEXA


@pytest.fixture
def parallel(tmp_path, tiny_corpus):
    """Texts of de and en that share ids in pairs; th has an id of its own for each text."""
    texts = {x: [t for t, of in zip(tiny_corpus.texts, tiny_corpus.of, strict=True) if of == x]
             for x in tiny_corpus.labels}  # fmt: skip
    rows = [{"text": texts[x][i], "label": x, "id": f"{i}{'th' * (x == 'th')}"}
            for x in texts for i in range(8)]  # fmt: skip
    path = tmp_path / "parallel.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_mexa_by_a_plain_loop(opened, tmp_path, parallel):
    config = LensConfig(kinds=("alignment",), parallel=parallel, pairs=6)
    (result,) = lens(opened, config, DECODING, tmp_path / "out.json")
    lm, corpus = opened.lm, load_corpus(parallel)
    pairs = find_pairs(corpus, "en", 6, opened.config.seed)
    assert list(pairs) == ["de"] and len(pairs["de"]) == 6
    id_of = dict(zip(corpus.texts, corpus.ids, strict=True))
    assert all(id_of[a] == id_of[b] for a, b in pairs["de"])

    def embed(text, layer, pooling):
        ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        x = hidden(lm, ids)[0][layer]
        x = (lm.model.model.norm(x) if layer == 1 else x).double().detach().numpy()
        t = np.arange(1, len(x) + 1)
        return x[-1] if pooling == "last token" else (t[:, None] * x).sum(0) / t.sum()

    scores = set()
    for row in result["rows"]:
        own, other = ([embed(pair[side], row["layer"], row["pooling"]) for pair in pairs["de"]]
                      for side in (0, 1))  # fmt: skip
        c = cosine_similarity(own, other)
        for name, step in (("mexa", 0), ("control", 1)):
            hits = []
            for i in range(6):
                k = (i + step) % 6
                rest = [j for j in range(6) if j not in (i, k)]
                hits.append(all(c[i, k] > c[i, j] and c[i, k] > c[j, k] for j in rest))
            assert row[name] == approx(sum(hits) / 6)
            scores.add(row[name])
    assert len(scores) > 1
    assert {row["pairs"] for row in [*result["rows"], *result["summary"]]} == {6}
    assert any("Fewer than 20 pairs: de (6)" in note for note in result["notes"])


def test_labels_with_different_numbers_of_pairs_are_noted(opened, tmp_path):
    texts = opened.corpus.texts
    rows = [(f"{texts[i]} {label}", label, i) for label, n in (("en", 30), ("de", 25), ("fr", 4))
            for i in range(n)]  # fmt: skip
    file = write_csv(tmp_path / "some.csv", ("text", "label", "id"), *rows)
    config = LensConfig(kinds=("alignment",), parallel=file, layers=(0,))
    (result,) = lens(opened, config, DECODING, tmp_path / "out.json")
    assert {row["label"]: row["pairs"] for row in result["summary"]} == {"de": 25, "fr": 4}
    notes = " ".join(result["notes"])
    assert "Fewer than 20 pairs: fr (4)." in notes and "have 4 to 25 pairs" in notes


def test_a_label_aligned_with_a_copy_of_itself(opened, tmp_path):
    texts = opened.corpus.texts[:12]
    rows = [
        (text + " " * (label == "fr"), label, i)
        for label in ("en", "fr")
        for i, text in enumerate(texts)
    ]
    file = write_csv(tmp_path / "copy.csv", ("text", "label", "id"), *rows)
    config = LensConfig(kinds=("alignment",), parallel=file, layers=(-1, 1))
    (result,) = lens(opened, config, DECODING, tmp_path / "out.json")
    mean = [row for row in result["rows"] if row["pooling"] == "weighted mean"]
    assert all(row["mexa"] > 0.9 and row["control"] < 0.2 for row in mean)


def test_equal_texts_are_no_translations():
    rows = [("OK", "en"), ("OK", "de"), ("Yes", "en"), ("Yes", "de"), ("Hallo du", "de")]
    with refused("the texts of python are not parallel", "parallel"):
        find_pairs(load_corpus(rows), "en", 100, 0)


# --------------------------------------------------------------------------- the probe


def test_the_probe_and_its_baselines_by_plain_scikit_learn(opened, tmp_path):
    config = LensConfig(kinds=("probe",), train_texts=20, test_texts=12)
    (result,) = lens(opened, config, DECODING, tmp_path / "out.json")
    lm, bench = opened.lm, LensBench(opened, config, DECODING)
    train, test = bench.examples("train", 20), bench.examples("test", 12)
    assert not set(train.texts) & set(test.texts)
    assert Counter(train.of) == dict.fromkeys(opened.corpus.labels, 20)
    found = {(row["layer"], row["classifier"]): row for row in result["rows"]}
    for layer in bench.sites:
        x, y = (
            np.stack([hidden(lm, row)[0][layer][1:].mean(0).numpy() for row in some.tokens])
            for some in (train, test)
        )
        scale = StandardScaler().fit(x)
        model = LogisticRegression(max_iter=500).fit(scale.transform(x), train.of)
        row = found[layer, "probe"]
        assert row["accuracy"] == approx(model.score(scale.transform(y), test.of), abs=0.03)
        assert (row["train"], row["test"]) == (len(train.of), len(test.of))
        assert row["low"] <= row["accuracy"] <= row["high"]
        # Thai is written in bytes of its own, so an honest probe is far above chance.
        assert row["accuracy"] > 0.6
        assert found[layer, "shuffled labels"]["accuracy"] < 0.6
        bayes = TokenNaiveBayes.for_run(lm).fit(train.texts, train.of)
        assert found[layer, "token-naive-bayes"]["accuracy"] == bayes.score(test.texts, test.of)


# --------------------------------------------------------------------------- the command


def test_the_command_writes_every_kind_that_the_run_allows(saefeat, run_copy):
    small = ["--texts", 1, "--positions", 2, "--top", 2, "--train-texts", 5, "--test-texts", 3]
    code, out, err = saefeat("lens", "--run", run_copy, "--layers", "-1,1", *small)
    assert code == 0, err
    files = sorted(path.stem for path in (run_copy / "experiments").glob("*.json"))
    assert files == ["lens-languages", "lens-probe", "lens-scripts", "lens-words"]
    assert "no lens for keywords: none of the labels of the run is a programming language" in err
    assert "no lens for alignment: the texts of" in err
    assert "Linear probe for the label by layer" in out and "embeddings" in out
    for path in (run_copy / "experiments").glob("*.json"):
        rows = json.loads(path.read_text())["rows"]
        assert {row["layer"] for row in rows} == {-1, 1}
    code, _, err = saefeat("lens", "--run", run_copy, "--layers", "-1,1", *small)
    assert code == 0 and err.count("is complete already") == 4


REFUSED = {
    "colours": (["--kinds", "colours"], "there is no lens colours; there are languages"),
    "layer": (["--layers", "0,2"], "the layer 2 does not exist: the model has the layers 0 to 1"),
    "two outputs": (["--kinds", "probe,scripts", "--out", "x.json"], "an output is for one kind"),
    "not parallel": (["--kinds", "alignment"], "are not parallel"),
    "parallel": (["--parallel", "TEXTS"], "are not parallel"),
    "pivot": (["--pivot", "sv", "--kinds", "scripts"], "there is no label 'sv'"),
    "no words": (["--pivot", "th", "--kinds", "words", "--words", "WORDS"], "no words in th"),
    "no table": (["--words", "missing.csv"], "missing.csv does not exist"),
    "programming": (["--programming", "klingon"], "does not know the programming language klingon"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_sentence(saefeat, tiny_run, tmp_path, name):
    options, message = REFUSED[name]
    words = write_csv(tmp_path / "words.csv", ("prompt", "en"), ("hello", "x"))
    texts = write_csv(tmp_path / "texts.csv", ("text", "label"), ("hello", "en"), ("hallo", "de"))
    options = [{"WORDS": words, "TEXTS": texts}.get(option, option) for option in options]
    code, out, err = saefeat("lens", "--run", tiny_run, *options)
    assert (code, out) == (2, "") and message in err
    assert len(err.strip().splitlines()) == 1


def test_a_probability_above_1_is_refused(saefeat, tiny_run):
    code, out, err = saefeat("lens", "--run", tiny_run, "--reliable", 2)
    assert (code, out) == (2, "") and "less than or equal to 1" in err


TABLES = {
    "empty": ("words", "", "has no rows"),
    "no rows": ("words", "prompt,en\n", "has no rows"),
    "no language": ("words", "prompt\nhello\n", "has no column of a language"),
    "no word": ("words", "prompt,en,de\nhello,x,y\nhello,, \n", "row 2 has no word in en"),
    "no synonym": ("words", "prompt,en\nhello,x|\n", "row 1 has no word in en"),
    "no prompt": ("words", "prompt,en\n ,x\n", "row 1 has no prompt"),
    "target": ("words", "prompt,en,target\nhello,x,de\n", "row 1 has the target de"),
    "short row": ("words", "prompt,en\nhello\n", "line 2 has 1 cells, the header 2"),
    "twice": ("words", "prompt,en,en\nhello,x,y\n", "names a column twice"),
    "quote": ("words", 'prompt,en\n"hello,x\n', "cannot be parsed"),
    "keyword": ("keywords", "label,keyword\npython,if else\n", "row 1 needs a label and a keyword"),
    "keyword column": ("keywords", "label,word\npython,if\n", "no column keyword"),
}


@pytest.mark.parametrize("name", TABLES)
def test_bad_tables_are_one_sentence(saefeat, tiny_run, tmp_path, name):
    kind, text, message = TABLES[name]
    path = tmp_path / "table.csv"
    path.write_text(text)
    code, out, err = saefeat("lens", "--run", tiny_run, f"--{kind}", path)
    assert (code, out) == (2, "") and message in err
    assert len(err.strip().splitlines()) == 1


def test_a_table_of_tabs_keeps_quotation_marks(tmp_path):
    path = Path(tmp_path / "words.tsv")
    path.write_text('prompt\ten\ntarget\nDeutsch: "\tx\ty\n'.replace("\ntarget", "\ttarget"))
    with refused("has the target y"):
        read_clozes(path)
    path.write_text('prompt\ten\tde\tzh\nDeutsch: "\tx\ty|z\tw\n')
    (one,) = read_clozes(path)
    assert one.prompt == 'Deutsch: "' and one.words == {"en": ["x"], "de": ["y", "z"], "zh": ["w"]}


def test_stages_are_the_embeddings_and_thirds():
    assert by_stage([-1, *range(6)]) == {
        "embeddings": [-1],
        "layers 0 to 1": [0, 1],
        "layers 2 to 3": [2, 3],
        "layers 4 to 5": [4, 5],
    }
    assert by_stage([3]) == {"layer 3": [3]}
