"""The fit check passes an SAE at its own site and refuses it elsewhere: real model, real text."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from saefeat.config import TrainConfig
from saefeat.corpora import Corpus, load_corpus, make_plan
from saefeat.io import UserError
from saefeat.sae import fit_check
from saefeat.sae.fit_check import check_saes, describe, measure_fit
from saefeat.sae.formats.values import stated
from saefeat.sae.train import train_saes

SITE = "mlp_out@4"


@pytest.fixture(scope="module")
def lm(gemma):
    return gemma


@pytest.fixture(scope="module")
def text():
    return load_corpus("embedded:eld", labels=["de", "en", "th"])


@pytest.fixture(scope="module")
def sae(lm, text, tmp_path_factory):
    plan = make_plan(text, lm, max_tokens=1000, mixed=True)
    out = tmp_path_factory.mktemp("saes")
    return train_saes(lm, plan, [SITE], out, TrainConfig(k=32, d_sae=640, batch_size=128))[0]


@pytest.fixture(autouse=True)
def little_text(monkeypatch):
    monkeypatch.setattr(fit_check, "TOKENS", 300)
    monkeypatch.setattr(fit_check, "COMPARED_TOKENS", 150)
    monkeypatch.setattr(fit_check, "SCAN_TOKENS", 64)


def test_an_sae_passes_at_its_own_site_with_its_figures(lm, text, sae):
    (found,) = check_saes(lm, [sae], text)
    assert found["fvu"] < 0.3 and found["fvu"] < 1.5 * sae.record["held_out"]["fvu"]
    assert found["l0"] == pytest.approx(32, abs=0.5) and 250 < found["tokens"] <= 300
    assert found["stated"] == stated(sae.record) and set(found["stated"]) == {"fvu", "l0", "dead"}
    line = describe(found)
    assert (
        "\n" not in line
        and f"{sae.id} at {SITE}, FVU 0." in line
        and "(stated 32.0)" in line
        and "widely" not in line
    )
    assert check_saes(lm, [sae], text) == [found]  # the same text every time


@pytest.mark.parametrize(
    "site", ["resid_post@4", "mlp_out@3", "mlp_out@5", "mlp_out@9", "mlp_out@14", "resid_post@12"]
)
def test_an_sae_fed_from_elsewhere_is_refused_with_the_site_that_fits(lm, text, sae, site):
    with pytest.raises(UserError) as error:
        check_saes(lm, [dataclasses.replace(sae, site=site)], text)
    words = str(error.value)
    assert f"does not fit {site} of embedded:gemma-3-270m: FVU" in words and "\n" not in words
    assert f"it fits better at {SITE} 0." in words and error.value.options == ("gate",)


def test_an_sae_in_another_scale_is_refused(lm, text, sae):
    wrong = dataclasses.replace(sae, b_dec=sae.b_dec * 30, W_dec=sae.W_dec * 30)
    with pytest.raises(
        UserError, match="it fits at no layer, so check its base model and normalisation"
    ):
        check_saes(lm, [wrong], text)


def test_an_sae_whose_norm_limit_leaves_most_tokens_out_is_refused(lm, text, sae):
    with pytest.raises(
        UserError, match=r"leaves out (\d+) of \1 tokens, whose norms exceed its max_norm 0\.001"
    ):
        check_saes(lm, [dataclasses.replace(sae, max_norm=1e-3)], text)


def test_too_little_text_to_check_an_sae_is_refused(lm, sae):
    few = Corpus(["a word", "ein Wort"], ["en", "de"], ["0", "1"], ("de", "en"), "few")
    with pytest.raises(UserError, match=r"the corpus has \d tokens, too few to check the SAEs on"):
        check_saes(lm, [sae], few)


def test_another_name_of_the_same_module_is_the_same_site(lm, text, sae):
    path = lm.site(SITE).path
    (found,) = check_saes(lm, [dataclasses.replace(sae, site=path)], text)
    (own,) = check_saes(lm, [sae], text)
    assert found["site"] == path and found["fvu"] == own["fvu"] and SITE not in found["better"]


def test_an_l0_far_from_the_stated_one_is_reported(lm, text, sae):
    other = dataclasses.replace(
        sae, record={**sae.record, "held_out": {**sae.record["held_out"], "l0": 200.0}}
    )
    (found,) = check_saes(lm, [other], text)
    assert "(stated 200.0)" in describe(found) and "L0 differs widely from the stated" in describe(
        found
    )
    assert "stated" not in describe({**found, "stated": {}})


def test_another_revision_of_the_base_model_is_reported(lm, text, sae):
    other = dataclasses.replace(
        sae, record={**sae.record, "model": {**sae.record["model"], "revision": "a" * 40}}
    )
    assert check_saes(lm, [other], text)[0]["revisions"] == []  # the embedded model has none
    (found,) = check_saes(dataclasses.replace(lm, revision="b" * 40), [other], text)
    assert f"trained on revision {'a' * 40} of the base model, this is {'b' * 40}" in describe(
        found
    )


def test_a_known_defect_of_the_files_is_reported(lm, text, sae):
    other = dataclasses.replace(sae, record={**sae.record, "doubt": "its threshold may be wrong"})
    (found,) = check_saes(lm, [other], text)
    assert "; its threshold may be wrong" in describe(found)
    wrong = dataclasses.replace(other, b_dec=sae.b_dec * 30, W_dec=sae.W_dec * 30)
    with pytest.raises(UserError, match=r"it fits at no layer.*; its threshold may be wrong"):
        check_saes(lm, [wrong], text)


def test_the_fit_is_that_of_a_plain_loop(sae):
    torch.manual_seed(0)
    x = torch.randn(50, sae.d_in) + sae.b_dec
    z = sae.encode(x).dense()
    error = (x - (z @ sae.W_dec + sae.b_dec)).double()
    found = measure_fit(sae, x)
    assert found["fvu"] == pytest.approx(
        float(error.square().sum() / (x - x.mean(0)).double().square().sum()), rel=1e-5
    )
    assert found["l0"] == float((z > 0).sum(1).double().mean())
    assert found["silent"] == pytest.approx(float((~(z > 0).any(0)).double().mean()), abs=1e-6)


def test_what_stands_before_a_text_is_compared_with_the_training(lm, text, sae):
    assert lm.prefix
    for recorded, said in ((None, ""), (True, ""), (False, "without BOS")):
        other = dataclasses.replace(sae, record={**sae.record, "tokens": {"prepend_bos": recorded}})
        report = check_saes(lm, [other], text)[0]
        assert said in report["bos"] and bool(said) == bool(report["bos"])
        assert ("without BOS" in describe(report)) == bool(said)
    bare = dataclasses.replace(lm, prefix=[])
    other = dataclasses.replace(sae, record={**sae.record, "tokens": {"prepend_bos": True}})
    assert "which this tokenizer does not add" in fit_check._describe_bos(other, bare)
