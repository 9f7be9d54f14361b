"""Code-mixing: words, rates, where words come from, and the firing of units."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import refused
from hypothesis import given
from hypothesis import strategies as st

from saefeat.config import MixConfig
from saefeat.corpora import load_corpus
from saefeat.experiments.cases import translations
from saefeat.experiments.mixed import DICTIONARY, PARALLEL, UNRELATED, Pair, find_pairs
from saefeat.experiments.mixing import _plots, mix
from saefeat.experiments.units import UnitBench
from saefeat.experiments.words import by_place, mix_words, split_word, words_of
from saefeat.run import open_run
from saefeat.run.steer import pick_test_texts

pytestmark = pytest.mark.usefixtures("one_core")

ZH = "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002"  # "The weather is very nice today."
TODAY, WEATHER, NICE = ZH[:2], ZH[2:4], ZH[4:6]


def mixed(words, others, rate):
    pieces = mix_words(words, others, rate, np.arange(len(words)))
    return "".join(word for word, _ in pieces)


# --------------------------------------------------------------------------- words


@given(st.text(alphabet="ab \u00e9\n\u4e2d\u3042\u0e17\u0e35.1", max_size=60))
def test_the_words_of_a_text_are_the_text(text):
    words = words_of(text, {"\u4e2d\u3042"}, 2)
    assert "".join(words) == text.strip()
    assert all("".join(split_word(word)) == word for word in words)
    assert mixed(words, [""] * len(words), 100) == mixed(words, words, 0) == text.strip()


def test_a_text_without_blanks_is_split_into_pairs_of_signs():
    assert words_of(ZH) == [TODAY, WEATHER, NICE, ZH[-1]]
    assert words_of(f"{ZH[:3]} {ZH[3:]}") == [TODAY, f"{ZH[2]} ", ZH[3:5], ZH[5:]]
    assert words_of("the  cat sat.") == ["the  ", "cat ", "sat."]
    assert words_of("Donaudampfschifffahrt") == ["Donaudampfschifffahrt"]  # long, and one word
    thai = "\u0e17\u0e35\u0e48\u0e19\u0e35\u0e48"  # two letters with two marks each
    assert words_of(thai + thai[:3]) == [thai, thai[:3]]


def test_the_longest_known_words_of_a_text_without_blanks():
    assert words_of(ZH, {ZH[1:4], ZH[1], ZH[4]}, 3) == [ZH[0], ZH[1:4], ZH[4], ZH[5:]]


def test_a_word_is_bare_of_punctuation_and_keeps_its_marks():
    assert split_word('"Haus, ') == ('"', "Haus", ", ")
    assert split_word("-- ") == ("-- ", "", "")
    hindi = "\u0915\u0940"  # a letter with a vowel sign
    assert split_word(f"{hindi}\u0964") == ("", hindi, "\u0964")


def test_punctuation_and_blanks_stay_where_words_are_replaced():
    words = words_of('Das "Haus", ja.')
    assert mixed(words, ["the", "house", "yes"], 100) == 'the "house", yes.'


def test_blanks_stand_between_words_of_languages_that_have_them():
    english = ["today ", "weather", "nice", ""]
    assert mixed(words_of(ZH), english, 75) == f"today weather {NICE}\u3002"
    assert mixed(words_of(ZH), english, 100) == "today weather nice\u3002"
    words = words_of("today weather nice, now")
    chinese = [TODAY, WEATHER, NICE, TODAY]
    assert mixed(words, chinese, 50) == f"{TODAY}{WEATHER} nice, now"
    assert mixed(words, chinese, 100) == f"{TODAY}{WEATHER}{NICE}, {TODAY}"


@given(st.lists(st.sampled_from(["a ", "bb  ", "c\n"]), min_size=1, max_size=20), st.data())
def test_greater_rates_replace_all_that_smaller_ones_do(words, data):
    order = np.array(data.draw(st.permutations(range(len(words)))))
    others = data.draw(st.lists(st.sampled_from(["X", "X", ""]), min_size=len(words),
                                max_size=len(words)))  # fmt: skip
    found = {rate: mix_words(words, others, rate, order) for rate in (0, 25, 50, 100)}
    for rate, pieces in found.items():
        text = "".join(word for word, _ in pieces).split()
        assert [word == "X" for word in text] == [is_other for _, is_other in pieces]
        assert text.count("X") == min(round(len(words) * rate / 100), others.count("X"))
    flags = [[is_other for _, is_other in pieces] for pieces in found.values()]
    for less, more in pairwise(flags):
        assert all(two for one, two in zip(less, more, strict=True) if one)


# --------------------------------------------------------------------------- where words come from


def numbered(tmp_path, name, **labels):
    """A corpus of the texts of each label, given by id."""
    rows = [{"text": text, "label": label, "id": key}
            for label, some in labels.items() for key, text in some.items()]  # fmt: skip
    path = tmp_path / f"{name}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_words_at_the_same_place():
    assert by_place(["a ", "- ", "b ", "c"], "one, two three!") == (
        ["a ", "- ", "b ", "c"], ["one", "", "two", "three"]
    )  # fmt: skip
    assert by_place(["a ", "b ", "c"], "one")[1] == ["one"] * 3
    assert by_place(["a ", "b"], "...")[1] == ["", ""]
    # All of a text without blanks is there, and a base without blanks has no word twice.
    assert by_place(["a ", "b"], ZH)[1] == [TODAY, WEATHER + NICE]
    assert by_place(words_of(ZH), "one two") == ([TODAY + WEATHER, NICE + ZH[-1]], ["one", "two"])


def test_translations_are_found_pair_by_pair():
    rows = [*[(f"en {i}", "en", i) for i in range(6)], *[(f"de {i}", "de", i) for i in range(4)]]
    rows += [("en 0", "fr", 0), ("en 1", "fr", 1), ("fr 5", "fr", 5), ("th", "th", 99)]
    corpus = load_corpus([{"text": t, "label": x, "id": str(i)} for t, x, i in rows])
    found = translations(corpus, range(len(corpus)), "en", 3, 0)
    pairs = {x: {(corpus.texts[a], corpus.texts[b]) for a, b in some} for x, some in found.items()}
    assert len(pairs["de"]) == 3 and pairs["de"] < {(f"en {i}", f"de {i}") for i in range(4)}
    assert pairs["fr"] == {("en 5", "fr 5")} and pairs["th"] == set()


@pytest.fixture
def with_corpus(run_copy, tmp_path):
    """with_corpus(de={...}, ...): the tiny run on another corpus; all its texts are test texts."""

    def opened(**labels):
        found = open_run(run_copy)
        corpus = load_corpus(numbered(tmp_path, "own", **labels))
        every = np.arange(len(corpus))
        object.__setattr__(corpus, "in_split", lambda split, seed: every)
        found.__dict__["corpus"] = corpus
        return found

    return opened


def texts(name, n):
    return {f"{i}": f"{name} text {i}" for i in range(n)}


def unlike(name, n):
    return {f"{name}{i}": f"{name} text {i}" for i in range(n)}


def test_texts_that_occur_in_two_labels_are_no_translations(with_corpus):
    same = {f"same{i}": f"Yes {i}" for i in range(5)}
    opened = with_corpus(de={**unlike("de", 9), **same}, en={**unlike("en", 9), **same})
    pairs, notes = find_pairs(opened, MixConfig(texts=8))
    assert [(p.base, p.other, p.source, len(p.texts)) for p in pairs] == [
        ("de", "en", UNRELATED, 8), ("en", "de", UNRELATED, 8)
    ]  # fmt: skip
    assert "no translations" in notes[0] and len(notes) == 1


def test_a_label_without_translations_leaves_those_of_others(with_corpus):
    opened = with_corpus(de=texts("de", 9), en=texts("en", 7), th=unlike("th", 9))
    pairs, notes = find_pairs(opened, MixConfig(base=("de",), texts=8))
    assert [(p.other, p.source, len(p.texts)) for p in pairs] == [
        ("en", PARALLEL, 7), ("th", UNRELATED, 8)
    ]  # fmt: skip
    assert all(there == text.replace("de", "en") for _, text, there in pairs[0].texts)
    assert notes == [
        "Words that are mixed in for de with en come from the same place of the parallel text.",
        "Words that are mixed in for de with th come from other texts of the label, which are no "
        "translations.",
        "Fewer texts than 8: de with en 7.",
    ]


def test_labels_without_texts_are_met_before_the_first_part(with_corpus):
    opened = with_corpus(de=texts("de", 9), en=texts("en", 9), th=texts("th", 9))
    kept = np.flatnonzero([label != "th" for label in opened.corpus.of])
    object.__setattr__(opened.corpus, "in_split", lambda split, seed: kept)
    pairs, notes = find_pairs(opened, MixConfig(texts=8))
    assert [(p.base, p.other) for p in pairs] == [("de", "en"), ("en", "de")]
    assert notes[-1] == "Left out, because there are no texts to mix: th."
    with refused("the test split of the run has no text of th", "with_"):
        find_pairs(opened, MixConfig(base=("de",), with_=("th",)))
    with refused("the test split of the run has no text of th", "base"):
        find_pairs(opened, MixConfig(base=("th",)))


def test_parallel_texts_that_are_given(run_copy, tmp_path):
    opened = open_run(run_copy)
    given = numbered(tmp_path, "given", deu_Latn=texts("de", 9), eng_Latn=texts("en", 9),
                     fra_Latn=texts("fr", 9), tha_Thai=unlike("th", 9))  # fmt: skip
    pairs, notes = find_pairs(opened, MixConfig(base=("de",), parallel=given, texts=8))
    assert [(p.base, p.other, p.source, len(p.texts)) for p in pairs] == [("de", "en", PARALLEL, 8)]
    assert notes[-1] == "Left out, because there are no two translations: de with th."


# --------------------------------------------------------------------------- dictionaries


def test_words_are_drawn_among_those_of_the_dictionary():
    text = "der rote Hund und die alte Katze sind da"
    entries = {"hund": "dog", "katze": "cat"}
    pair = Pair("de", "en", DICTIONARY, [("1", text, "")], entries)
    found = {rate: ["".join(word for word, _ in pieces) for pieces in some]
             for rate, some in pair.mixed((0, 11, 22, 100), 0).items()}  # fmt: skip
    whole = text.replace("Hund", "dog").replace("Katze", "cat")
    assert found[0] == [text] and found[22] == found[100] == [whole]
    assert found[11][0] in (text.replace("Hund", "dog"), text.replace("Katze", "cat"))


def test_a_dictionary_of_a_language_without_blanks():
    pair = Pair("zh", "en", DICTIONARY, [("1", ZH, "")], {WEATHER: "weather", ZH[5]: "nice"})
    ((pieces,),) = pair.mixed((100,), 0).values()
    assert "".join(word for word, _ in pieces) == f"{TODAY} weather {ZH[4]} nice\u3002"


def test_blank_cells_of_a_dictionary_are_no_words(run_copy, tmp_path):
    opened, table = open_run(run_copy), tmp_path / "words.csv"
    table.write_text('de,en,th\nHaus,,X\n,house,X\n"...",dots,X\nHaus,house,\nHaus,home,\n')
    config = MixConfig(base=("de",), with_=("en",), dictionary=str(table))
    ((pair,), _) = find_pairs(opened, config)
    assert pair.entries == {"haus": "house"}
    with refused("has no row with words of both en and th", "dictionary"):
        table.write_text("en,th\nhouse,\n,X\n")
        find_pairs(opened, MixConfig(base=("en",), with_=("th",), dictionary=str(table)))


# --------------------------------------------------------------------------- the experiment


def test_firing_equals_a_plain_loop(run_copy, tmp_path):
    opened = open_run(run_copy)
    table = tmp_path / "words.csv"
    table.write_text("de,en,th\nder,the,X\ndie,the,X\nund,and,X\nist,is,X\n")
    config = MixConfig(
        base=("de",),
        with_=("en",),
        rates=(0, 100),
        dictionary=str(table),
        texts=5,
        units=("features",),
    )
    result = mix(opened, config)
    assert "Words that are mixed in come from the dictionary" in result["notes"][0]
    lm, units = opened.lm, UnitBench(opened)
    chosen = units.find(("features",))[0].chosen
    pairs = {"der": "the", "die": "the", "und": "and", "ist": "is"}
    for rate in (0, 100):
        texts = pick_test_texts(opened, "de", 5)
        if rate:
            texts = [
                " ".join(pairs.get(w.lower(), w) if w.isalpha() else w for w in t.split(" "))
                for t in texts
            ]
        for sae in opened.saes:
            fired, tokens = torch.zeros(sae.width), 0
            for text in texts:
                ids = torch.tensor([lm.prefix + lm.tokenize([text], 256)[0]])
                from saefeat.hooks import capture

                path = lm.site(sae.site).path
                with capture(lm.model, (path,)) as captured, torch.inference_mode():
                    x = captured.run(lm.model, input_ids=ids)[path][0, len(lm.prefix) :]
                keeps = sae.keeps(x)
                x = x if keeps is None else x[keeps]
                fired += (sae.encode(x).dense() > 0).sum(0)
                tokens += len(ids[0]) - len(lm.prefix)
            for kind, label in (("base", "de"), ("other", "en"), ("rest", "th")):
                some = chosen[label].get(sae.id)
                (row,) = [
                    r
                    for r in result["rows"]
                    if (r["units"], r["site"], r["rate"], r["of"])
                    == ("features", sae.site, rate, kind)
                ]
                if not some:
                    assert row["firing"] is None
                else:
                    assert row["firing"] == pytest.approx(float(fired[some].mean()) / tokens)


def test_shares_random_units_and_plots(run_copy, tmp_path):
    table = tmp_path / "words.csv"
    table.write_text("de,en,th\nder,the,X\ndie,the,X\nund,and,X\nist,is,X\n")
    config = MixConfig(base=("de",), dictionary=str(table), texts=9, rates=(0, 50, 100))
    opened = open_run(run_copy)
    result = mix(opened, config)
    texts = [text for _, text, _ in find_pairs(opened, config)[0][0].texts]
    words = [split_word(word)[1].lower() for text in texts for word in text.split()]
    known = [word for word in words if word in ("der", "die", "und", "ist")]
    assert known and {row["texts"] for row in result["rows"]} == {9}
    by_rate = {row["rate"]: row for row in result["rows"] if row["other"] == "en"}
    assert by_rate[0]["replaced"] == by_rate[0]["other_tokens"] == 0
    assert by_rate[100]["replaced"] == pytest.approx(len(known) / len(list(filter(None, words))))
    to = {"der": "the", "die": "the", "und": "and", "ist": "is"}
    own = sum(len(row) for row in opened.lm.tokenize([to[word] for word in known], 9))
    assert own and by_rate[50]["other_tokens"] <= by_rate[100]["other_tokens"]
    assert by_rate[100]["other_tokens"] == pytest.approx(own / (own + rest_tokens(opened, texts)))
    kinds = ["base", "other", "rest"]
    assert {row["of"] for row in result["rows"]} == {*kinds, *(f"random {x}" for x in kinds)}
    assert {row["units"] for row in result["rows"]} == {"neurons", "features"}
    assert [plot["x"] for plot in result["plots"]] == ["layer", "rate"]
    drawn = opened.files.experiment_file("mixing").with_suffix(".svg").read_text()
    assert "firing, features, 50 over layer" in drawn
    assert "firing, neurons, de, th over rate" in drawn


def rest_tokens(opened, texts):
    """Tokens of what is left between the words of the dictionary, each stretch alone."""
    found = 0
    for text in texts:
        stretch = []
        for word in [*text.split(), "und"]:
            if split_word(word)[1].lower() in ("der", "die", "und", "ist"):
                found += len(opened.lm.tokenize([" ".join(stretch)], 256)[0])
                stretch = []
            else:
                stretch.append(word)
    return found


def test_many_pairs_have_a_plot_too():
    assert [plot["x"] for plot in _plots(28)] == ["layer"]


def test_bad_mixes_are_refused(saefeat, run_copy, tmp_path):
    table = tmp_path / "words.csv"
    table.write_text("de,en\nder,the\n")
    given = numbered(tmp_path, "given", de=unlike("de", 9), en=unlike("en", 9))
    run = ["mix", "--run", run_copy, "--texts", 2]
    for wrong, message in {
        ("--base", "xx"): "there is no label 'xx'",
        ("--base", "de", "--with", "de"): "a text is mixed with another label",
        ("--rates", "101"): "a rate is from 0 to 100 per cent, not 101",
        ("--dictionary", table): "no column th",
        ("--dictionary", tmp_path / "none.csv"): "does not exist",
        ("--parallel", given): "given.jsonl are not parallel",
        ("--parallel", given, "--dictionary", table): "not both (--dictionary, --parallel)",
        ("--parallel", tmp_path / "none"): "none",
    }.items():
        code, _, err = saefeat(*run, *wrong)
        assert code == 2 and message in err, err
    code, out, _ = saefeat(*run, "--base", "de", "--with", "en", "--units", "features")
    assert code == 0 and "no translations" in out
