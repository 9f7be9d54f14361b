"""Vectors of counted tokens, limits on their norm, and what a tokenizer puts around a text."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import random_sae

from saefeat import steer
from saefeat.activations import counted_vectors, norm_limits
from saefeat.collection import collect
from saefeat.config import TrainConfig
from saefeat.corpora import load_corpus, make_plan, plan_batches
from saefeat.dictionaries import Identity
from saefeat.io import UserError
from saefeat.methods.feature_diffmean import mean_difference
from saefeat.models import wrap
from saefeat.run.stages import collect as collect_stage
from saefeat.run.stages import means, rank
from saefeat.sae.store import load_sae, save_sae
from saefeat.sae.train import train_saes
from saefeat.statistics import Stats
from saefeat.statistics.merging import merge
from saefeat.steering import add, apply
from saefeat.steering.changes import limit_of
from saefeat.tokens import OUTLIER_FACTOR

SITE = "resid_post@0"


def vectors_by_label(lm, plan, site):
    """Label -> all counted vectors [n, d], one text at a time."""
    found = {label: [] for label in plan.corpus.labels}
    for i in sorted(plan.tokens):
        for _, vectors in counted_vectors(lm, plan.batches(lm, [i]), [site]):
            found[plan.corpus.of[i]].append(vectors[site])
    return {label: torch.cat(parts) for label, parts in found.items()}


def test_vectors_are_those_of_the_counted_tokens_row_by_row(tiny_lm):
    rows = {0: [40, 41, 42], 1: [50], 2: [60, 0, 61]}
    (batch,) = plan_batches(tiny_lm, rows)
    names = ("mlp_out@1", SITE, "model.layers.0")  # the last two are one module
    ((same, vectors),) = counted_vectors(tiny_lm, [batch], names)
    assert same is batch and tuple(vectors) == names
    assert {len(x) for x in vectors.values()} == {int(batch.counted.sum())} == {6}
    assert torch.equal(vectors[SITE], vectors["model.layers.0"])
    alone = []
    for position in batch.positions:
        ids = [0, *rows[position]]
        out = tiny_lm.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        alone += [x for token, x in zip(ids, out.hidden_states[1][0], strict=True) if token]
    torch.testing.assert_close(vectors[SITE], torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_an_unknown_site_is_a_user_error_before_any_forward_pass(tiny_lm):
    with pytest.raises(UserError, match="the site mlp_out@9 does not exist"):
        next(counted_vectors(tiny_lm, iter([None]), ["mlp_out@9"]))


def test_without_an_sae_the_limit_is_8_medians(tiny_lm, tiny_corpus):
    plan = make_plan(tiny_corpus, tiny_lm)
    every = torch.cat(list(vectors_by_label(tiny_lm, plan, SITE).values())).norm(dim=1)
    assert norm_limits(tiny_lm, plan, [SITE])[SITE] == pytest.approx(
        OUTLIER_FACTOR * float(every.median()), rel=0.02
    )
    assert norm_limits(tiny_lm, plan, []) == {}


def test_means_leave_out_what_the_saes_of_the_site_leave_out(tiny_lm, tiny_corpus, tmp_path):
    plan = make_plan(tiny_corpus, tiny_lm)
    every = vectors_by_label(tiny_lm, plan, SITE)
    limit = float(torch.cat(list(every.values())).norm(dim=1).quantile(0.7))
    save_sae(random_sae("sae", SITE, max_norm=limit), tmp_path / "sae")
    saes = [load_sae(tmp_path / "sae")]
    collect_stage(tiny_lm, tiny_corpus, saes, out=tmp_path / "stats", neurons=True)
    at_site, at_sae = (
        Stats.load(tmp_path / "stats" / f"{name}.safetensors") for name in (SITE, "sae")
    )
    assert at_site.tokens.tolist() == at_sae.tokens.tolist()
    for k, label in enumerate(at_site.labels):
        counted = every[label][every[label].norm(dim=1) <= limit]
        assert int(at_site.tokens[k]) == len(counted) < len(every[label])
        torch.testing.assert_close(at_site.mean()[k].float(), counted.mean(0), rtol=1e-4, atol=1e-5)
    neurons = Stats.load(tmp_path / "stats" / "mlp_act@0.safetensors")
    assert neurons.tokens.tolist() == [
        len(every[label]) for label in neurons.labels
    ]  # LAPE counts all


def test_an_edit_moves_the_tokens_that_its_vector_was_made_from(tiny_lm, tiny_corpus, tmp_path):
    plan = make_plan(tiny_corpus, tiny_lm)
    every = torch.cat(list(vectors_by_label(tiny_lm, plan, SITE).values())).norm(dim=1)
    limit = float(every.quantile(0.6))
    identity = Identity(SITE, 32, max_norm=limit)
    collect(tiny_lm, plan, [identity], tmp_path / "stats")
    stats = Stats.load(tmp_path / "stats" / f"{SITE}.safetensors")
    assert (
        limit_of(stats, [])
        == limit_of(stats, [random_sae("sae", SITE, max_norm=2 * limit)])
        == pytest.approx(limit)
    )
    path, ids = tiny_lm.site(SITE).path, torch.tensor([[0, *range(40, 60)]])

    def seen():
        found = []
        handle = tiny_lm.model.get_submodule(path).register_forward_hook(
            lambda _m, _i, out: found.append(out)
        )
        try:
            tiny_lm.model(input_ids=ids)
        finally:
            handle.remove()
        return found[0][0]

    before = seen()
    selection = rank(
        tmp_path / "stats", "feature-diffmean", source="en", entropy_ratio=1.0, dictionaries=[SITE]
    )
    outliers = before.norm(dim=1) > limit
    outliers[0] = True  # BOS
    assert 1 < outliers.sum() < len(before)
    for edit in ("add", "replace", "clamp", "scale", "ablate", "raise"):
        with steer(tiny_lm, selection, "de", source="en", edit=edit, strength=0.5):
            moved = (seen() - before).abs().sum(1) > 0
        assert not (moved & outliers).any(), edit
        assert moved[~outliers].all() or edit == "raise", edit


def test_a_site_whose_saes_have_no_limit_gets_that_of_8_medians(tiny_lm, tiny_corpus):
    plan = make_plan(tiny_corpus, tiny_lm)
    (own,) = means(tiny_lm, [random_sae("sae", SITE, max_norm=7.5)], plan)
    assert own.max_norm == 7.5
    (measured,) = means(tiny_lm, [random_sae("sae", SITE, max_norm=None)], plan)
    assert measured.max_norm == norm_limits(tiny_lm, plan, [SITE])[SITE]
    assert measured.identity["fingerprint"] != Identity(SITE, 32).identity["fingerprint"]


def test_first_tokens_without_bos_are_left_out_of_the_means(smollm, tmp_path):
    """SmolLM2 adds no BOS: at resid_post@15 first tokens are a hundred times as long as others."""
    site = "resid_post@15"
    corpus = load_corpus("embedded:eld", labels=["de", "en"])
    plan = make_plan(corpus, smollm, max_tokens=300)
    every = vectors_by_label(smollm, plan, site)
    norms = torch.cat(list(every.values())).norm(dim=1)
    assert norms.max() > 50 * norms.median()
    saes = train_saes(
        smollm, plan, [site], tmp_path / "saes", TrainConfig(d_sae=128, batch_size=128)
    )
    collect(smollm, plan, means(smollm, saes, plan), tmp_path / "stats")
    force = mean_difference(
        Stats.load(tmp_path / "stats" / f"{site}.safetensors"), "de", "en"
    ).float()
    clean, dirty = (
        {label: x[x.norm(dim=1) <= limit].mean(0) for label, x in every.items()}
        for limit in (saes[0].max_norm, torch.inf)
    )
    torch.testing.assert_close(force, clean["de"] - clean["en"], rtol=1e-3, atol=1e-3)
    assert (dirty["de"] - dirty["en"]).norm() > 2 * force.norm()


# --------------------------------------------------------------------------- what stands before a
# text


def no_bos(lm, name):
    """The same model with a tokenizer that adds nothing."""
    tokenizer = type(lm.tokenizer)(
        tokenizer_object=lm.tokenizer.backend_tokenizer, eos_token="</s>", pad_token="<pad>"
    )
    tokenizer = tokenizer.__class__.from_pretrained(_saved(tokenizer, name))
    return wrap(lm.model, tokenizer, lm.name)


def _saved(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["post_processor"] = None
    path.write_text(json.dumps(content))
    return folder


def test_shards_with_and_without_bos_do_not_merge(make_lm, tiny_corpus, tmp_path, small_windows):
    lm = make_lm("llama")
    bare = no_bos(lm, tmp_path / "tokenizer")
    assert lm.prefix == [0] and bare.prefix == []
    for number, one in enumerate((lm, bare)):
        plan = make_plan(tiny_corpus, one)
        collect(one, plan, [Identity("mlp_act@0", 48)], tmp_path / str(number), shard=(number, 2))
    with pytest.raises(UserError, match="its policy differs"):
        merge([tmp_path / "0", tmp_path / "1"], tmp_path / "whole")


@pytest.mark.parametrize("suffix", [True, False])
def test_bos_is_found_for_a_vocabulary_without_the_letter_a(suffix):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from saefeat.models.language_model import _added_tokens

    words = {"<s>": 0, "</s>": 1, "C": 2, "G": 3, "T": 4}
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    template = "<s> $A </s>" if suffix else "<s> $A"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    assert fast("a", add_special_tokens=False)["input_ids"] == []
    assert _added_tokens(fast) == ([0], [1] if suffix else [])


def test_apply_without_a_limit_moves_every_token(tiny_lm):
    ids = torch.tensor([[40, 41, 42]])
    plain = tiny_lm.model(input_ids=ids).logits
    with apply(tiny_lm, {SITE: [add(torch.ones(32), max_norm=0.0)]}, 1.0):
        assert torch.equal(tiny_lm.model(input_ids=ids).logits, plain)
    with apply(tiny_lm, {SITE: [add(torch.ones(32))]}, 1.0):
        assert not torch.equal(tiny_lm.model(input_ids=ids).logits, plain)
