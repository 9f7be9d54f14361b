"""For any change of a file, an SAE is read or the error is one sentence."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from saefeat.io import UserError
from saefeat.sae.store import load_sae

D_IN, D_SAE = 4, 6
WEIGHTS = {
    "W_enc": torch.ones(D_IN, D_SAE),
    "W_dec": torch.ones(D_SAE, D_IN),
    "b_enc": torch.ones(D_SAE),
    "b_dec": torch.ones(D_IN),
    "threshold": torch.ones(D_SAE),
}
LENS = {
    "d_in": D_IN,
    "d_sae": D_SAE,
    "k": 2,
    "architecture": "topk",
    "normalize_activations": "none",
    "apply_b_dec_to_input": True,
    "reshape_activations": "none",
    "activation_fn": "relu",
    "rescale_acts_by_decoder_norm": False,
    "activation_fn_kwargs": {"k": 2},
    "metadata": {
        "hook_name": "blocks.1.hook_mlp_out",
        "model_name": "m",
        "saefeat": {},
        "model_from_pretrained_kwargs": {},
    },
}
SPARSE = {
    "d_in": D_IN,
    "num_latents": D_SAE,
    "k": 2,
    "expansion_factor": 2,
    "activation": "groupmax",
    "transcode": False,
    "skip_connection": False,
}
TRAINER = {
    "trainer": {
        "dict_class": "JumpReluAutoEncoder",
        "submodule_name": "resid_post_layer_1",
        "layer": 1,
        "lm_name": "m",
        "k": 2,
    },
    "buffer": {"ctx_len": 3},
}
SCOPE = {
    "architecture": "jump_relu",
    "model_name": "m",
    "hf_hook_point_in": "model.layers.1.output",
    "hf_hook_point_out": None,
}
CONFIGS = {
    "sae-lens": ("cfg.json", LENS),
    "sparsify": ("cfg.json", SPARSE),
    "dictionary_learning": ("config.json", TRAINER),
    "scope 2": ("config.json", SCOPE),
    "scope 1": ("config.json", {}),
}
FOLDERS = {"scope 1": "gemma-scope-2b-pt-res/layer_1", "sparsify": "layers.1"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module", params=CONFIGS)
def whole(request, tmp_path_factory):
    """Format, directory and configuration of an SAE."""
    form = request.param
    directory = tmp_path_factory.mktemp("whole") / FOLDERS.get(form, "a")
    directory.mkdir(parents=True)
    name, cfg = CONFIGS[form]
    (directory / name).write_text(json.dumps(cfg))
    if form == "sae-lens":
        save_file(WEIGHTS, directory / "sae_weights.safetensors")
    elif form == "sparsify":
        linear = {"encoder.weight": torch.ones(D_SAE, D_IN), "encoder.bias": torch.ones(D_SAE)}
        save_file(
            {**linear, "W_dec": WEIGHTS["W_dec"], "b_dec": WEIGHTS["b_dec"]},
            directory / "sae.safetensors",
        )
    elif form == "dictionary_learning":
        torch.save(WEIGHTS, directory / "ae.pt")
    elif form == "scope 1":
        np.savez(directory / "params.npz", **{key: value.numpy() for key, value in WEIGHTS.items()})
    else:
        save_file(
            {key.replace("W_", "w_"): value for key, value in WEIGHTS.items()},
            directory / "params.safetensors",
        )
    return form, directory, cfg


def read_or_say(directory):
    try:
        sae = load_sae(directory)
        assert sae.encode(torch.ones(2, D_IN)).width == D_SAE
    except UserError as error:
        assert "\n" not in str(error) and str(error)


def test_undamaged_files_are_read(whole):
    assert load_sae(whole[1]).width == D_SAE


@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_value_in_a_configuration_is_read_or_gives_one_sentence_of_error(whole, tmp_path, data):
    form, directory, cfg = whole
    here = tmp_path / FOLDERS.get(form, "a")
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(directory, here)
    changed = copy.deepcopy(cfg)
    parent = data.draw(
        st.sampled_from([changed, *(v for v in changed.values() if isinstance(v, dict))])
    )
    if parent:
        parent[data.draw(st.sampled_from(sorted(parent)))] = data.draw(JSON)
    (here / CONFIGS[form][0]).write_text(json.dumps(changed))
    read_or_say(here)


@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_byte_in_a_weights_file_is_read_or_gives_one_sentence_of_error(whole, tmp_path, data):
    form, directory, _ = whole
    here = tmp_path / FOLDERS.get(form, "a")
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(directory, here)
    path = max(here.iterdir(), key=lambda file: file.suffix != ".json")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))])
    read_or_say(here)
