"""The loss recovered: against forward passes of one text at a time with a hook of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import log_softmax

from saefeat.config import TrainConfig
from saefeat.corpora import load_corpus, make_plan
from saefeat.sae.held_out import held_out_plan, read_held_out
from saefeat.sae.losses import choose_texts, clean_losses, describe_losses, spliced_losses
from saefeat.sae.train import train_saes
from saefeat.world import ALONE

SITES = ["mlp_out@0", "resid_post@1"]
CONFIG = TrainConfig(k=4, d_sae=64, batch_size=64, passes=4, dtype="float32")


@pytest.fixture(scope="module")
def saes(tmp_path_factory, tiny_corpus, tiny_lm):
    plan = make_plan(tiny_corpus, tiny_lm, mixed=True)
    trained = train_saes(tiny_lm, plan, SITES, tmp_path_factory.mktemp("saes"), CONFIG)
    # A limit that some ordinary tokens exceed: they keep their vectors.
    held = read(tiny_lm, tiny_corpus)
    limits = [float(held.buffers[site].float().norm(dim=1).quantile(0.9)) for site in SITES]
    return [replace(sae, max_norm=limit) for sae, limit in zip(trained, limits, strict=True)]


def read(lm, corpus):
    held = held_out_plan(lm, make_plan(corpus, lm, mixed=True))
    assert held is not None
    return read_held_out(lm, held, [lm.site(site) for site in SITES], ALONE)


def brute_losses(lm, ids, sae, change):
    """Losses of the tokens after BOS, with a change of the vectors at the site of an SAE."""

    def hook(_module, _inputs, output):
        x = (output if isinstance(output, torch.Tensor) else output[0]).clone()
        for place, token in enumerate(ids):
            if token not in lm.special_ids and float(x[0, place].norm()) <= sae.max_norm:
                x[0, place] = change(x[0, place : place + 1])[0]
        return x if isinstance(output, torch.Tensor) else (x, *output[1:])

    module = lm.model.get_submodule(lm.site(sae.site).path)
    handle = module.register_forward_hook(hook) if change else None
    with torch.no_grad():
        found = log_softmax(lm.model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
    if handle:
        handle.remove()
    return [-float(found[place - 1, ids[place]]) for place in range(1, len(ids))]


@pytest.mark.parametrize("number", range(len(SITES)))
def test_losses_are_those_of_single_forward_passes(tiny_lm, tiny_corpus, saes, number):
    sae, held = saes[number], read(tiny_lm, tiny_corpus)
    found = held.evaluate(sae)
    changes = {
        "clean": None,
        "spliced": lambda x: sae.decode(sae.encode(x)),
        "zero": torch.zeros_like,
    }
    of = held.texts.labels
    for label in (None, *tiny_corpus.labels):
        rows = [row for row, its in zip(held.texts.rows, of, strict=True) if label in (None, its)]
        losses = {
            name: [loss for ids in rows for loss in brute_losses(tiny_lm, ids, sae, change)]
            for name, change in changes.items()
        }
        mean = {name: sum(values) / len(values) for name, values in losses.items()}
        loss = found["loss"] if label is None else found["labels"][label]["loss"]
        assert loss["tokens"] == len(losses["clean"]) > 100
        for name, value in mean.items():
            assert loss[name] == pytest.approx(value, abs=1e-5), (label, name)
        damage = mean["zero"] - mean["clean"]
        if abs(damage) > 1e-3:
            recovered = (mean["zero"] - mean["spliced"]) / damage if damage > 0 else None
            assert loss["recovered"] == pytest.approx(recovered, abs=1e-2), label
    assert len({found["loss"][name] for name in changes}) == 3


def test_fits_by_label_are_those_of_the_labels_own_texts(tiny_lm, tiny_corpus, saes):
    sae, held = saes[0], read(tiny_lm, tiny_corpus)
    found, whole = held.evaluate(sae)["labels"], held.fit(sae)
    assert sum(of["tokens"] for of in found.values()) == pytest.approx(whole["tokens"], abs=20)
    for label in tiny_corpus.labels:
        plan = held_out_plan(tiny_lm, make_plan(tiny_corpus, tiny_lm, mixed=True))
        plan.tokens = {i: ids for i, ids in plan.tokens.items() if tiny_corpus.of[i] == label}
        plan.counts = {i: plan.counts[i] for i in plan.tokens}
        own = read_held_out(tiny_lm, plan, [tiny_lm.site(site) for site in SITES], ALONE).fit(sae)
        for name in ("fvu", "l0", "silent", "tokens"):
            assert found[label][name] == pytest.approx(own[name], rel=1e-2), (label, name)


def test_an_sae_that_changes_nothing_recovers_everything(tiny_lm, tiny_corpus, saes, monkeypatch):
    held, sae = read(tiny_lm, tiny_corpus), saes[0]
    monkeypatch.setattr(type(sae), "reconstruct", lambda _self, x: x)
    assert held.evaluate(sae)["loss"]["recovered"] == 1.0


def test_where_zeros_do_no_harm_nothing_is_recovered(tiny_lm, tiny_corpus):
    texts = choose_texts(tiny_lm, held_out_plan(tiny_lm, make_plan(tiny_corpus, tiny_lm)))
    clean = clean_losses(tiny_lm, texts)
    found = describe_losses(texts, {"clean": clean, "spliced": clean, "zero": clean})
    assert found["recovered"] is None and found["clean"] == found["zero"] > 0
    nothing = describe_losses(texts, {"clean": clean, "spliced": clean, "zero": clean}, "xx")
    assert nothing.pop("tokens") == 0 and set(nothing.values()) == {None}


def test_texts_are_taken_equally_by_label_and_prompts_are_not_predicted(tiny_lm, saes):
    rows = [(f"der Hund {i} lief", "de", f"d{i}", "Frage ") for i in range(60)]
    rows += [(f"the dog {i} ran", "en", f"e{i}", "") for i in range(60)]
    frame = [dict(zip(("text", "label", "id", "prompt"), row, strict=True)) for row in rows]
    corpus = load_corpus(frame, prompt_column="prompt")
    plan = make_plan(corpus, tiny_lm)
    texts = choose_texts(tiny_lm, plan, budget=100)
    (frage,) = tiny_lm.tokenize(["Frage"], 9)  # the space belongs to the token after it
    for label in corpus.labels:
        chosen = [i for i, of in enumerate(texts.labels) if of == label]
        counted = [texts.counts[i] for i in chosen]
        assert 50 <= sum(counted) < 50 + max(counted)
        prompted = [len(texts.rows[i]) - texts.counts[i] for i in chosen]
        assert set(prompted) == {1 + (len(frage) if label == "de" else 0)}
    assert len(spliced_losses(tiny_lm, texts, saes[0])) == len(texts.rows)
