"""Code-mixing: words, rates, where words come from, and the firing of units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saefeat.config import MixConfig
from saefeat.experiments.mixing import mix, mix_words, words_of
from saefeat.experiments.units import UnitBench
from saefeat.run import open_run

pytestmark = pytest.mark.usefixtures("one_core")


@given(st.text(alphabet="ab é\n\u4e2d\u3042.", max_size=60))
def test_the_words_of_a_text_are_the_text(text):
    assert "".join(words_of(text)) == text.strip()


def test_a_text_without_blanks_is_split_into_pairs_of_characters():
    assert words_of("今天天气很好我们去公园散步吧今天天气很好") == [
        *("今天", "天气", "很好", "我们", "去公", "园散", "步吧", "今天", "天气", "很好")
    ]
    assert words_of("the  cat sat.") == ["the  ", "cat ", "sat."]


@given(st.lists(st.sampled_from(["a ", "bb  ", "c\n"]), min_size=1, max_size=20), st.data())
def test_greater_rates_replace_all_that_smaller_ones_do(words, data):
    order = np.array(data.draw(st.permutations(range(len(words)))))
    mixed = [mix_words(words, ["X"] * len(words), rate, order).split() for rate in (0, 25, 50, 100)]
    assert mixed[0] == "".join(words).split() and set(mixed[3]) == {"X"}
    for rate, less, more in zip((25, 50, 100), mixed, mixed[1:], strict=False):
        assert all(two == "X" for one, two in zip(less, more, strict=True) if one == "X")
        assert more.count("X") == round(len(words) * rate / 100)


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
    from saefeat.run.steer import pick_test_texts

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


def test_bad_mixes_are_refused(saefeat, run_copy, tmp_path):
    table = tmp_path / "words.csv"
    table.write_text("de,en\nder,the\n")
    run = ["mix", "--run", run_copy, "--texts", 2]
    for wrong, message in {
        ("--base", "xx"): "there is no label 'xx'",
        ("--base", "de", "--with", "de"): "a text is mixed with another label",
        ("--rates", "101"): "a rate is from 0 to 100 per cent, not 101",
        ("--dictionary", table): "no column th",
        ("--dictionary", tmp_path / "none.csv"): "does not exist",
    }.items():
        code, _, err = saefeat(*run, *wrong)
        assert code == 2 and message in err, err
    code, out, _ = saefeat(*run, "--base", "de", "--with", "en", "--units", "features")
    assert code == 0 and "no translations" in out
