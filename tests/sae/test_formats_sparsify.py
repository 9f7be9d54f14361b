"""SAEs of sparsify fire as in sparsify, at the module that their hookpoint names."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import change_cfg
from safetensors.torch import load_file, save_file

from saefeat.io import UserError
from saefeat.sae.store import load_sae, load_saes

sparsify = pytest.importorskip("sparsify")

D_IN, D_SAE = 640, 384


def save(directory, weights, seed=0, **options):
    """A sparse coder of sparsify with random weights, saved by it."""
    cfg = sparsify.SparseCoderConfig(**{"num_latents": D_SAE, "k": 16, **options})
    theirs, given = (
        sparsify.SparseCoder(D_IN, cfg),
        weights("W_enc", "b_enc", "W_dec", "b_dec", seed=seed),
    )
    with torch.no_grad():
        theirs.encoder.weight.copy_(given["W_enc"].T)
        theirs.encoder.bias.copy_(given["b_enc"])
        theirs.W_dec.copy_(given["W_dec"])
        theirs.b_dec.copy_(given["b_dec"])
    theirs.save_to_disk(directory)
    return theirs


def dense(theirs, x):
    found = theirs.encode(x)
    return torch.zeros(len(x), theirs.num_latents).scatter_(1, found.top_indices, found.top_acts)


pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("normalize_decoder", [True, False])
@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_sparse_coders_fire_as_in_sparsify(
    tmp_path, weights, same, x, activation, normalize_decoder
):
    save(
        tmp_path / "layers.3.mlp",
        weights,
        activation=activation,
        normalize_decoder=normalize_decoder,
    )
    theirs = sparsify.SparseCoder.load_from_disk(tmp_path / "layers.3.mlp")
    ours = load_sae(tmp_path / "layers.3.mlp")
    same(ours, x, dense(theirs, x), theirs(x).sae_out)
    assert (ours.id, ours.site, ours.activation, ours.centred) == (
        "sae-layers.3.mlp",
        "layers.3.mlp",
        activation,
        True,
    )


def test_early_configurations_name_the_width_by_its_factor(tmp_path, same, x):
    theirs = sparsify.SparseCoder(D_IN, sparsify.SparseCoderConfig(expansion_factor=2, k=16))
    theirs.save_to_disk(tmp_path / "layers.3")
    early = {
        "expansion_factor": 2,
        "normalize_decoder": True,
        "k": 16,
        "d_in": D_IN,
        "signed": False,
    }
    (tmp_path / "layers.3" / "cfg.json").write_text(json.dumps(early))
    ours = load_sae(tmp_path / "layers.3")
    same(ours, x, dense(theirs, x), theirs(x).sae_out)
    assert ours.width == 2 * D_IN


def test_a_run_is_read_in_the_order_of_its_layers_with_its_model(tmp_path, weights, make_lm):
    for name in ("layers.10.mlp", "layers.2", "layers.2.mlp"):
        save(tmp_path / name, weights)
    run = {
        "model": "unsloth/Llama-3.2-1B",
        "revision": "r1",
        "ctx_len": 2048,
        "exclude_tokens": [0],
    }
    (tmp_path / "config.json").write_text(json.dumps(run))
    (tmp_path / "optimizer_0.pt").write_bytes(b"not read")
    saes = load_saes(str(tmp_path))
    assert [(sae.id, sae.site) for sae in saes] == [
        ("sae-layers.2", "resid_post@2"),
        ("sae-layers.2.mlp", "layers.2.mlp"),
        ("sae-layers.10.mlp", "layers.10.mlp"),
    ]
    assert saes[0].record["model"] == {"name": "unsloth/Llama-3.2-1B", "revision": "r1"}
    assert saes[0].record["tokens"] == {"context_size": 2048, "exclude_token_ids": [0]}
    lm = make_lm()
    lm.name = "meta-llama/Llama-3.1-8B"
    with pytest.raises(
        UserError, match=r"was trained on unsloth/Llama-3\.2-1B, not on meta-llama/Llama-3\.1-8B"
    ):
        load_saes(str(tmp_path), lm)


def test_several_seeds_at_a_hookpoint_have_their_own_ids(tmp_path, weights):
    for seed in (0, 1):
        save(tmp_path / "layers.2.mlp" / f"seed{seed}", weights, seed=seed)
    (tmp_path / "config.json").write_text('{"model": "m"}')
    saes = load_saes(str(tmp_path))
    assert [(sae.id, sae.site) for sae in saes] == [
        ("layers.2.mlp-seed0", "layers.2.mlp"),
        ("layers.2.mlp-seed1", "layers.2.mlp"),
    ]
    assert [sae.record["model"]["name"] for sae in saes] == ["m", "m"]
    assert saes[0].identity["fingerprint"] != saes[1].identity["fingerprint"]


def test_a_hookpoint_is_the_feed_forward_module_itself_also_before_a_post_norm(
    tmp_path, weights, make_lm
):
    save(tmp_path / "layers.1.mlp", weights)
    site = load_sae(tmp_path / "layers.1.mlp").site
    assert make_lm("gemma2").site(site).path == "model.layers.1.mlp"
    assert make_lm("gemma2").site("mlp_out@1").path == "model.layers.1.post_feedforward_layernorm"
    assert make_lm("neox-parallel").site(site).path == "gpt_neox.layers.1.mlp"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transcode": True}, "with transcode cannot be read"),
        ({"skip_connection": True}, "with skip_connection cannot be read"),
        ({"signed": True}, "with signed cannot be read"),
        ({"activation": "jump"}, "activation jump cannot be read; only topk and groupmax"),
        ({"k": ...}, "k is missing"),
        ({"k": D_SAE + 1}, "is greater than d_sae"),
        ({"activation": "groupmax", "k": 17}, "groupmax needs k 17 to divide"),
        ({"num_latents": 0, "expansion_factor": ...}, "expansion_factor is missing"),
        ({"num_latents": "many"}, "num_latents is missing or not a positive"),
        ({"d_in": 32}, "has not the shape"),
    ],
)
def test_an_sae_of_an_unsupported_form_gives_one_sentence_of_error(
    tmp_path, weights, changes, message
):
    save(tmp_path / "layers.3", weights)
    change_cfg(tmp_path / "layers.3", **changes)
    with pytest.raises(UserError, match=message) as told:
        load_sae(tmp_path / "layers.3")
    assert "\n" not in str(told.value) and str(tmp_path) in str(told.value)


@pytest.mark.parametrize("damage", ["removed", "cut", "nan", "no decoder"])
def test_damaged_weights_give_one_sentence_of_error(tmp_path, weights, damage):
    save(tmp_path / "layers.3", weights)
    path = tmp_path / "layers.3" / "sae.safetensors"
    data = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[:-9])
    else:
        tensors = load_file(path)
        bad = {"b_dec": tensors["b_dec"] * torch.nan} if damage == "nan" else {}
        save_file(
            {k: v for k, v in (tensors | bad).items() if damage == "nan" or k != "W_dec"}, path
        )
    message = {"nan": "b_dec holds values", "no decoder": "W_dec is missing"}.get(
        damage, "cannot be read"
    )
    with pytest.raises(UserError, match=rf"sae\.safetensors.*{message}") as told:
        load_sae(tmp_path / "layers.3")
    assert "\n" not in str(told.value)
