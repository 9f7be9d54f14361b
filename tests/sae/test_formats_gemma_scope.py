"""SAEs of Gemma Scope fire as in sae-lens; folders and config.json name the site."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saefeat.io import UserError
from saefeat.sae.store import load_sae, load_saes

loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")

D_IN, D_SAE = 640, 384
FIRST = "gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_71"
SECOND = "gemma-scope-2-270m-pt/resid_post/layer_5_width_16k_l0_medium"
NAMES = ("W_enc", "W_dec", "b_dec", "b_enc", "threshold")


def save(directory, weights, config=None, **extra):
    """The first scope's layout; with a configuration (or False for none) the second's."""
    directory.mkdir(parents=True)
    given = weights(*NAMES)
    if config is None:
        np.savez(
            directory / "params.npz", **{name: tensor.numpy() for name, tensor in given.items()}
        )
    else:
        state = {name.replace("W_", "w_"): tensor for name, tensor in given.items()} | extra
        save_file(
            {name: tensor for name, tensor in state.items() if tensor is not None},
            directory / "params.safetensors",
        )
        if config:
            (directory / "config.json").write_text(
                json.dumps({"architecture": "jump_relu", **config})
            )
    return directory


def by_sae_lens(monkeypatch, loader, repo, folder, directory):
    """The SAE that a loader of sae-lens makes of the files of a directory."""
    from sae_lens import SAE

    def fetch(repo_id, filename, subfolder="", **_):
        return str(directory / filename.rpartition("/")[2])

    def shapes(_repo, _file):
        return {
            name: list(tensor.shape)
            for name, tensor in load_file(directory / "params.safetensors").items()
        }

    monkeypatch.setattr(loaders, "hf_hub_download", fetch)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)
    size = {"d_in": D_IN, "d_sae": D_SAE}
    cfg, state, _ = getattr(loaders, loader)(repo, folder, "cpu", False, size)
    sae = SAE.from_dict(loaders.handle_config_defaulting(cfg))
    sae.load_state_dict(state)
    return sae


pytestmark = pytest.mark.usefixtures("no_gradients")


def test_the_first_scope_fires_as_in_sae_lens(tmp_path, monkeypatch, weights, same, x):
    directory = save(tmp_path / FIRST, weights)
    repo, _, folder = FIRST.partition("/")
    peer = by_sae_lens(
        monkeypatch, "gemma_2_sae_huggingface_loader", f"google/{repo}", folder, directory
    )
    ours = load_sae(directory)
    same(ours, x, peer.encode(x), peer(x))
    assert (ours.id, ours.site) == ("res-layer_3-width_16k-average_l0_71", "resid_post@3")
    assert ours.record["model"]["name"] == "google/gemma-2-2b" and not ours.centred
    assert peer.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    assert ours.record["module"] is None and ours.record["l0"] == 71.0


def test_the_second_scope_fires_as_in_sae_lens(tmp_path, monkeypatch, weights, same, x):
    config = {
        "model_name": "gemma-v3-270m-pt",
        "hf_hook_point_in": "model.layers.5.output",
        "l0": 60,
    }
    directory = save(tmp_path / SECOND, weights, config)
    repo, _, folder = SECOND.partition("/")
    peer = by_sae_lens(
        monkeypatch, "gemma_3_sae_huggingface_loader", f"google/{repo}", folder, directory
    )
    ours = load_sae(directory)
    same(ours, x, peer.encode(x), peer(x))
    assert (ours.id, ours.site) == ("resid_post-layer_5_width_16k_l0_medium", "resid_post@5")
    assert ours.record["model"]["name"] == peer.cfg.metadata.model_name == "google/gemma-3-270m"
    assert peer.cfg.metadata.hook_name == "blocks.5.hook_resid_post"
    assert ours.record["module"] is None and ours.record["l0"] == 60.0


@pytest.mark.parametrize(
    ("path", "identity", "site", "model"),
    [
        (
            "gemma-scope-9b-it-res/layer_20/width_131k/average_l0_81",
            "res-layer_20-width_131k-average_l0_81",
            "resid_post@20",
            "google/gemma-2-9b-it",
        ),
        (
            "models--google--gemma-scope-2b-pt-mlp/snapshots/c0ffee/layer_5/width_16k/average_l0_9",
            "mlp-layer_5-width_16k-average_l0_9",
            "mlp_out@5",
            "google/gemma-2-2b",
        ),
    ],
)
def test_the_folders_of_the_first_scope_tell_what_it_is(
    tmp_path, weights, path, identity, site, model
):
    sae = load_sae(save(tmp_path / path, weights))
    assert (sae.id, sae.site, sae.record["model"]["name"]) == (identity, site, model)


@pytest.mark.parametrize(
    ("path", "config", "site", "model"),
    [
        (
            "gemma-scope-2-1b-pt/mlp_out_all/layer_4_width_16k_l0_big",
            False,
            "mlp_out@4",
            "google/gemma-3-1b-pt",
        ),
        (
            "gemma-scope-2-4b-it/resid_post/layer_4_width_16k_l0_big",
            False,
            "resid_post@4",
            "google/gemma-3-4b-it",
        ),
        (
            "mine",
            {
                "hf_hook_point_in": "model.language_model.layers.7."
                "post_feedforward_layernorm.output",
                "model_name": "google/gemma-3-4b-pt",
            },
            "mlp_out@7",
            "google/gemma-3-4b-pt",
        ),
    ],
)
def test_the_second_scope_is_told_by_its_configuration_or_its_folders(
    tmp_path, weights, path, config, site, model
):
    sae = load_sae(save(tmp_path / path, weights, config))
    assert (sae.site, sae.record["model"]["name"]) == (site, model)


def test_a_downloaded_scope_is_read_in_the_order_of_its_layers(tmp_path, weights):
    for layer in (10, 2):
        save(
            tmp_path / "gemma-scope-2b-pt-res" / f"layer_{layer}" / "width_16k" / "average_l0_71",
            weights,
        )
    assert [sae.site for sae in load_saes(str(tmp_path))] == ["resid_post@2", "resid_post@10"]


@pytest.mark.parametrize(
    ("path", "config", "extra", "message"),
    [
        ("layer_20/width_16k/average_l0_71", None, {}, "does not say what it is: keep the names"),
        ("gemma-scope-2b-pt-res/width_16k", None, {}, "does not say what it is: keep the names"),
        (
            "gemma-scope-2b-pt-att/layer_2/width_16k/average_l0_7",
            None,
            {},
            "only SAEs at resid_post and mlp_out",
        ),
        ("gemma-scope-2b-pt-transcoders/layer_2/width_16k/average_l0_7", None, {}, "not attention"),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", None, {}, "embeddings"),
        (
            "gemma-scope-2-1b-pt/attn_out/layer_4_width_16k_l0_big",
            False,
            {},
            "only SAEs at resid_post and mlp_out",
        ),
        (
            "gemma-scope-2-1b-pt/transcoder/layer_4_width_16k_l0_big",
            False,
            {},
            "only SAEs at resid_post and mlp_out",
        ),
        (
            "a",
            {
                "hf_hook_point_in": "model.layers.1.pre_feedforward_layernorm.output",
                "hf_hook_point_out": "model.layers.1.post_feedforward_layernorm.output",
            },
            {},
            "is of a transcoder",
        ),
        (
            "a",
            {"hf_hook_point_in": "model.layers.1.self_attn.o_proj.input"},
            {},
            "the site is in hf_hook_point_in",
        ),
        (
            "a",
            {"hf_hook_point_in": "model.layers.1.output", "architecture": "topk"},
            {},
            "architecture topk cannot",
        ),
        (
            "a",
            {"hf_hook_point_in": "model.layers.1.output"},
            {"affine_skip_connection": torch.ones(2, 2)},
            "holds a transcoder",
        ),
        (
            "a",
            {"hf_hook_point_in": "model.layers.1.output"},
            {"threshold": None},
            "threshold is missing",
        ),
        (
            "a",
            {"hf_hook_point_in": "model.layers.1.output"},
            {"b_dec": torch.full((D_IN,), torch.nan)},
            "not finite",
        ),
    ],
)
def test_an_sae_of_an_unsupported_form_gives_one_sentence_of_error(
    tmp_path, weights, path, config, extra, message
):
    directory = save(tmp_path / path, weights, config, **extra)
    with pytest.raises(UserError, match=message) as told:
        load_sae(directory)
    assert "\n" not in str(told.value) and str(tmp_path) in str(told.value)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "object", "array"])
def test_damaged_weights_give_one_sentence_of_error(tmp_path, weights, damage):
    path = save(tmp_path / FIRST, weights) / "params.npz"
    if damage == "object":
        np.savez(path, W_enc=np.array([{"a": 1}], dtype=object))
    elif damage == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes({"cut": path.read_bytes()[:-900], "empty": b"", "text": b"<html>"}[damage])
    message = ": W_enc is missing" if damage == "object" else " cannot be read"
    with pytest.raises(UserError, match=rf"params\.npz{message}") as told:
        load_sae(path.parent)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_what_else_is_in_an_archive_does_not_matter(tmp_path, weights, write):
    path = save(tmp_path / FIRST, weights) / "params.npz"
    before = load_sae(path.parent).identity
    arrays = {name: tensor.numpy() for name, tensor in weights(*NAMES).items()}
    write(path, **arrays, note=np.array(["pt"]), things=np.array([None], dtype=object))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "of layer 3")
    assert load_sae(path.parent).identity == before
