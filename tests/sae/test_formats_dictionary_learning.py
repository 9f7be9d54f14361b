"""Directories of dictionary_learning: every class fires here as it does there."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pickle
import sys
import types

import pytest
import torch
from torch import relu

from saefeat.io import UserError
from saefeat.sae.store import load_sae, load_saes

D_IN, D_SAE = 640, 384
TRAINER = {
    "layer": 3,
    "lm_name": "google/gemma-3-270m",
    "submodule_name": "resid_post_layer_3",
    "k": 16,
}
LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
# Class -> the names of its weights in `ae.pt`, those of linear layers being transposed.
CLASSES = {
    "AutoEncoder": {**LINEAR, "b_dec": "bias"},
    "AutoEncoderNew": {**LINEAR, "b_dec": "decoder.bias"},
    "GatedAutoEncoder": {
        "W_enc": "encoder.weight",
        "W_dec": "decoder.weight",
        "b_dec": "decoder_bias",
        "r_mag": "r_mag",
        "b_mag": "mag_bias",
        "b_gate": "gate_bias",
    },
    "AutoEncoderTopK": {**LINEAR, "b_dec": "b_dec"},
    "BatchTopKSAE": {**LINEAR, "b_dec": "b_dec"},
    "MatryoshkaBatchTopKSAE": PLAIN,
    "JumpReluAutoEncoder": {**PLAIN, "threshold": "threshold"},
}


def save(directory, kind, weights, trainer=(), **extra):
    """The layout of `ae.pt` and `config.json`, with random weights."""
    given = weights(*CLASSES[kind])
    state = {
        new: given[old].T if new.endswith(".weight") else given[old]
        for old, new in CLASSES[kind].items()
    }
    if "TopK" in kind:
        state |= {"k": torch.tensor(16, dtype=torch.int), "threshold": torch.tensor(7.0)}
    if kind.startswith("Matryoshka"):
        state["group_sizes"] = torch.tensor([64, D_SAE - 64])
    directory.mkdir(parents=True, exist_ok=True)
    torch.save(state | extra, directory / "ae.pt")
    config = {
        "trainer": {"dict_class": kind, **TRAINER, **dict(trainer)},
        "buffer": {"ctx_len": 128},
    }
    (directory / "config.json").write_text(json.dumps(config))
    return given


def by_hand(kind, w, x):
    """Activations of each class, written from its definition."""
    inside = x if kind in ("AutoEncoderNew", "JumpReluAutoEncoder") else x - w["b_dec"]
    h = inside @ w["W_enc"]
    if kind == "GatedAutoEncoder":
        return relu(h * w["r_mag"].exp() + w["b_mag"]) * (h + w["b_gate"] > 0)
    acts = relu(h + w["b_enc"])
    if kind == "AutoEncoder":  # its loader makes the decoder's rows of length 1
        return acts * w["W_dec"].norm(dim=1)
    if kind == "AutoEncoderTopK":
        return acts * (acts >= acts.topk(16).values[:, -1:])
    return acts * (acts > w.get("threshold", 7.0)) if kind != "AutoEncoderNew" else acts


@pytest.fixture(scope="module")
def theirs():
    """The library's loader of each class; only the classes are imported, not the whole package."""
    spec = importlib.util.find_spec("dictionary_learning")
    if spec is None:
        pytest.skip("dictionary_learning is not installed")
    package = types.ModuleType("dictionary_learning")
    package.__path__ = list(spec.submodule_search_locations)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "dictionary_learning", package)
        names = (
            "dictionary",
            "trainers.top_k",
            "trainers.batch_top_k",
            "trainers.matryoshka_batch_top_k",
        )
        places = [importlib.import_module(f"dictionary_learning.{name}") for name in names]

        def load(kind, path):
            return next(
                getattr(place, kind) for place in places if hasattr(place, kind)
            ).from_pretrained(path)

        yield load


pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_fires_by_its_definition(tmp_path, weights, same, x, kind):
    given = save(tmp_path / "a", kind, weights)
    same(load_sae(tmp_path / "a"), x, by_hand(kind, given, x))


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_fires_as_in_the_library(tmp_path, weights, same, x, kind, theirs):
    save(tmp_path / "a", kind, weights)
    peer = theirs(kind, tmp_path / "a" / "ae.pt")
    same(load_sae(tmp_path / "a"), x, peer.encode(x), peer(x))


def test_a_batchtopk_sae_whose_threshold_was_never_set_fires_wherever_it_is_positive(
    tmp_path, weights, same, x
):
    given = save(tmp_path / "a", "BatchTopKSAE", weights, threshold=torch.tensor(-1.0))
    same(load_sae(tmp_path / "a"), x, relu((x - given["b_dec"]) @ given["W_enc"] + given["b_enc"]))


def test_its_evaluation_says_how_good_it_is(tmp_path, weights):
    save(tmp_path / "a", "AutoEncoderTopK", weights)
    found = {"l0": 15.5, "frac_variance_explained": 0.75, "frac_alive": 0.875, "cossim": 0.9}
    (tmp_path / "a" / "eval_results.json").write_text(json.dumps(found))
    record = load_sae(tmp_path / "a").record
    assert (record["fvu"], record["l0"], record["dead"]) == (0.25, 15.5, 0.125)
    for odd in ("NaN", '"all"', "null", "true", "-3", "1" + "0" * 400, "[1]"):
        text = f'{{"l0": {odd}, "frac_variance_explained": "x", "frac_alive": 1e999}}'
        (tmp_path / "a" / "eval_results.json").write_text(text)
        assert not {"fvu", "l0", "dead"} & set(load_sae(tmp_path / "a").record)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("resid_post_layer_3", None),
        ("mlp_layer_3", "layers.3.mlp"),
        ("model.layers.3.mlp.act_fn", "model.layers.3.mlp.act_fn"),
    ],
)
def test_the_module_is_a_path_or_none(tmp_path, weights, name, module):
    save(tmp_path / "a", "AutoEncoderTopK", weights, {"submodule_name": name})
    assert load_sae(tmp_path / "a").record["module"] == module


def test_ids_sites_and_the_model_come_from_the_folders_and_the_trainer(tmp_path, weights):
    for layer in (3, 12):
        for i in range(2):
            trainer = {"submodule_name": None, "layer": layer}
            save(
                tmp_path / f"resid_post_layer_{layer}" / f"trainer_{i}",
                "AutoEncoderTopK",
                weights,
                trainer,
            )
    saes = load_saes(str(tmp_path))
    assert [sae.id for sae in saes] == [
        f"resid_post_layer_{n}-trainer_{i}" for n in (3, 12) for i in (0, 1)
    ]
    assert [sae.site for sae in saes] == ["resid_post@3"] * 2 + ["resid_post@12"] * 2
    assert saes[0].record["model"]["name"] == "google/gemma-3-270m" and saes[0].k == 16
    assert saes[0].record["tokens"] == {"context_size": 128}


@pytest.mark.parametrize(
    ("submodule", "site"),
    [
        ("resid_post_layer_8", "resid_post@8"),
        ("mlp_out_layer_8", "layers.8.mlp"),
        ("model.layers.8.mlp", "model.layers.8.mlp"),
    ],
)
def test_the_site_is_that_of_the_submodule(tmp_path, weights, submodule, site):
    save(tmp_path / "a", "AutoEncoder", weights, {"submodule_name": submodule})
    assert load_sae(tmp_path / "a").site == site


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"dict_class": "IdentityDict"}, "dict_class IdentityDict cannot be read"),
        ({"dict_class": None}, "dict_class None cannot be read"),
        ({"submodule_name": None}, "submodule_name None of layer 3 names no site"),
        ({"submodule_name": "attn_out_layer_3"}, "submodule_name attn_out_layer_3"),
        ({"dict_class": "GatedAutoEncoder"}, r"ae\.pt: decoder_bias is missing"),
    ],
)
def test_an_sae_of_an_unsupported_form_gives_one_sentence_of_error(
    tmp_path, weights, trainer, message
):
    save(tmp_path / "a", "AutoEncoder", weights, trainer)
    with pytest.raises(UserError, match=message) as told:
        load_sae(tmp_path / "a")
    assert "\n" not in str(told.value) and str(tmp_path / "a") in str(told.value)


def test_a_topk_sae_without_k_gives_one_sentence_of_error(tmp_path, weights):
    save(tmp_path / "a", "AutoEncoderTopK", weights, {"k": None}, k=torch.tensor([]))
    with pytest.raises(UserError, match="k is missing"):
        load_sae(tmp_path / "a")


@pytest.mark.parametrize("k", [float("nan"), 3.7, 4.0, 1j, True])
def test_a_kept_k_that_is_no_whole_number_gives_one_sentence_of_error(tmp_path, weights, k):
    save(tmp_path / "a", "AutoEncoderTopK", weights, k=torch.tensor(k))
    said = r"ae\.pt: its k is .*, which is not a whole number"
    with pytest.raises(UserError, match=said) as told:
        load_sae(tmp_path / "a")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", CLASSES)
def test_parameters_are_read_as_their_values(tmp_path, weights, x, kind):
    save(tmp_path / "a", kind, weights)
    save(tmp_path / "b", kind, weights)
    path = tmp_path / "b" / "ae.pt"
    state = {
        name: torch.nn.Parameter(t) if t.is_floating_point() else t
        for name, t in torch.load(path).items()
    }
    torch.save(state, path)
    with torch.enable_grad():
        before, after = load_sae(tmp_path / "a"), load_sae(tmp_path / "b")
        assert torch.equal(after.encode(x).values, before.encode(x).values)
        assert after.identity["fingerprint"] == before.identity["fingerprint"]
    assert not any(tensor.requires_grad for tensor in after.tensors.values())


class Thing:
    """An object that a pickle may hold."""


@pytest.mark.parametrize(
    "damage", ["removed", "cut", "empty", "text", "object", "pickle", "list", "nan", "number"]
)
def test_damaged_weights_give_one_sentence_of_error(tmp_path, weights, damage):
    save(tmp_path / "a", "AutoEncoder", weights)
    path = tmp_path / "a" / "ae.pt"
    data, state = path.read_bytes(), torch.load(path)
    if damage == "removed":
        path.unlink()
    elif damage in ("object", "list", "nan", "number"):
        made = {"object": Thing(), "list": [torch.ones(2)], "number": state | {"k": 3}}
        torch.save(made.get(damage, state | {"bias": state["bias"] * torch.nan}), path)
    else:
        made = {"cut": data[:-900], "empty": b"", "text": b"<html>", "pickle": pickle.dumps(Thing)}
        path.write_bytes(made[damage])
    message = "bias holds values that are not finite" if damage == "nan" else "cannot be read"
    with pytest.raises(UserError, match=rf"ae\.pt.*{message}") as told:
        load_sae(tmp_path / "a")
    assert "\n" not in str(told.value)
