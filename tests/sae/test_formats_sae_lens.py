"""SAEs of sae-lens fire as in sae-lens; an SAE that cannot be read gives one sentence."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from helpers import change_cfg
from safetensors.torch import load_file, save_file

from saefeat.io import UserError
from saefeat.sae.store import load_sae, save_sae

sae_lens = pytest.importorskip("sae_lens")

D_IN, D_SAE = 640, 384
HOOK = {"model_name": "gemma-3-270m", "hook_name": "blocks.3.hook_resid_post"}
NAMES = {
    "standard": ("W_enc", "W_dec", "b_dec", "b_enc"),
    "topk": ("W_enc", "W_dec", "b_dec", "b_enc"),
    "jumprelu": ("W_enc", "W_dec", "b_dec", "b_enc", "threshold"),
    "gated": ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"),
}


def fill(sae, tensors):
    with torch.no_grad():
        for name, tensor in tensors.items():
            getattr(sae, name).copy_(tensor)
    return sae


def make(kind, weights, **options):
    """One of sae-lens's own SAEs with random weights."""
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    theirs, config = get_sae_class(kind)
    if kind == "topk":
        options = {"k": 16, **options}
    metadata = SAEMetadata(**HOOK, prepend_bos=True, context_size=128)
    return fill(
        theirs(config(d_in=D_IN, d_sae=D_SAE, metadata=metadata, **options)), weights(*NAMES[kind])
    )


pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu", "gated"])
def test_every_architecture_fires_as_in_sae_lens(
    tmp_path, weights, same, x, kind, normalize, centred
):
    theirs = make(kind, weights, normalize_activations=normalize, apply_b_dec_to_input=centred)
    theirs.save_model(tmp_path / "a")
    ours = load_sae(tmp_path / "a")
    acts = theirs.encode(x)
    same(ours, x, acts, theirs.decode(acts))
    assert (ours.id, ours.site) == ("a", "resid_post@3")
    assert ours.record["model"] == {"name": "gemma-3-270m", "revision": None}
    assert ours.record["tokens"] == {"prepend_bos": True, "context_size": 128}
    assert ours.activation == {"standard": "relu"}.get(kind, kind)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("kind", ["TopK", "BatchTopK", "MatryoshkaBatchTopK", "JumpReLU"])
def test_what_a_training_saves_fires_as_in_sae_lens(tmp_path, weights, same, x, kind, rescale):
    from sae_lens import saes

    options = {} if kind == "JumpReLU" else {"k": 16, "rescale_acts_by_decoder_norm": rescale}
    if kind.startswith("Matryoshka"):
        options["matryoshka_widths"] = [64, D_SAE]
    config = getattr(saes, f"{kind}TrainingSAEConfig")(d_in=D_IN, d_sae=D_SAE, **options)
    config.metadata.model_name, config.metadata.hook_name = "m", "blocks.3.hook_resid_post"
    training = fill(
        getattr(saes, f"{kind}TrainingSAE")(config), weights("W_enc", "W_dec", "b_dec", "b_enc")
    )
    if "Batch" in kind:
        training.topk_threshold.fill_(7.0)
    training.save_inference_model(tmp_path / "a")
    theirs, ours = sae_lens.SAE.load_from_disk(tmp_path / "a"), load_sae(tmp_path / "a")
    acts = theirs.encode(x)
    same(ours, x, acts, theirs.decode(acts))
    assert ours.activation == ("topk" if kind == "TopK" else "jumprelu")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_half_precision_are_read_in_float32(tmp_path, weights, same, x, dtype):
    theirs = make("standard", weights, dtype=dtype)
    theirs.save_model(tmp_path / "a")
    acts = theirs.to(dtype=torch.float32).encode(x)
    same(load_sae(tmp_path / "a"), x, acts)


@pytest.mark.parametrize(
    ("kind", "old"),
    [
        (
            "standard",
            {
                "hook_point": HOOK["hook_name"],
                "hook_point_layer": 3,
                "normalize_activations": False,
            },
        ),
        (
            "standard",
            {
                "hook_name": HOOK["hook_name"],
                "architecture": "standard",
                "activation_fn_str": "relu",
            },
        ),
        (
            "topk",
            {
                "hook_name": HOOK["hook_name"],
                "architecture": "standard",
                "normalize_activations": "layer_norm",
                "activation_fn_str": "topk",
                "activation_fn_kwargs": {"k": 16},
                "sae_lens_version": "3.9.1",
            },
        ),
        (
            "gated",
            {
                "hook_name": HOOK["hook_name"],
                "architecture": "gated",
                "apply_b_dec_to_input": False,
            },
        ),
        (
            "jumprelu",
            {
                "hook_name": HOOK["hook_name"],
                "architecture": "jumprelu",
                "normalize_activations": None,
            },
        ),
    ],
)
def test_configurations_of_early_versions_are_read_as_sae_lens_reads_them(
    tmp_path, weights, same, x, kind, old
):
    make(kind, weights).save_model(tmp_path / "a")
    cfg = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "torch.float32",
        "device": "cpu",
        "model_name": "gpt2-small",
    }
    (tmp_path / "a" / "cfg.json").write_text(json.dumps(cfg | old))
    theirs, ours = sae_lens.SAE.load_from_disk(tmp_path / "a"), load_sae(tmp_path / "a")
    acts = theirs.encode(x)
    same(ours, x, acts, theirs.decode(acts))
    assert (ours.site, ours.record["model"]["name"]) == ("resid_post@3", "gpt2-small")


@pytest.mark.parametrize(
    ("kind", "rescale"),
    [("standard", False), ("topk", False), ("topk", True), ("jumprelu", False), ("gated", False)],
)
def test_the_scale_of_the_vectors_in_training_is_folded_in(
    tmp_path, weights, same, x, kind, rescale
):
    theirs = make(kind, weights, **({"rescale_acts_by_decoder_norm": True} if rescale else {}))
    theirs.save_model(tmp_path / "a")
    change_cfg(tmp_path / "a", normalize_activations="expected_average_only_in")
    with pytest.raises(
        UserError, match=r"but no activation_scaler\.json beside it holds the factor; copy"
    ):
        load_sae(tmp_path / "a")
    (tmp_path / "a" / "activation_scaler.json").write_text('{"scaling_factor": 0.3}')
    theirs.fold_activation_norm_scaling_factor(0.3)
    acts = theirs.encode(x)
    ours = load_sae(tmp_path / "a")
    same(ours, x, acts, theirs.decode(acts))
    assert ours.normalize == "none"


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu", "gated"])
def test_an_sae_of_a_model_with_centred_writing_reads_raw_vectors(
    tmp_path, weights, same, x, kind, centred
):
    theirs = make(kind, weights, apply_b_dec_to_input=centred)
    theirs.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": True}
    theirs.save_model(tmp_path / "a")
    acts = theirs.encode(x - x.mean(1, keepdim=True))
    same(load_sae(tmp_path / "a"), x + 3, acts, theirs.decode(acts))
    change_cfg(tmp_path / "a", normalize_activations="constant_norm_rescale")
    with pytest.raises(UserError, match="center_writing_weights cannot be read"):
        load_sae(tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "transcoder"},
            "architecture transcoder cannot be read: it writes at another place",
        ),
        ({"architecture": "jumprelu_skip_transcoder"}, "it writes at another place"),
        ({"architecture": "abstopk"}, "fire with negative values"),
        ({"architecture": "matching_pursuit"}, "by iteration"),
        ({"architecture": "temporal"}, "tokens before"),
        ({"architecture": "matryoshka_batchtopk"}, "checkpoint of a training"),
        ({"architecture": "crosscoder"}, "it is not known here"),
        ({"architecture": "topk"}, "k is missing"),
        ({"activation_fn": "tanh-relu"}, "activation tanh-relu cannot be read"),
        ({"activation_fn": "topk", "metadata": ...}, "k is missing"),
        ({"normalize_activations": "covariance_whitening"}, "covariance_whitening cannot be read"),
        ({"reshape_activations": "hook_z"}, "reshape_activations = hook_z cannot be read"),
        ({"d_sae": True}, "d_sae is missing or not a positive number"),
        ({"architecture": "jumprelu"}, "threshold is missing"),
    ],
)
def test_an_sae_of_an_unsupported_form_gives_one_sentence_of_error(
    tmp_path, weights, changes, message
):
    make("standard", weights).save_model(tmp_path / "a")
    change_cfg(tmp_path / "a", **changes)
    with pytest.raises(UserError, match=message) as told:
        load_sae(tmp_path / "a")
    assert "\n" not in str(told.value) and str(tmp_path / "a") in str(told.value)


def test_a_scaling_factor_of_fine_tuning_is_refused_unless_it_is_one(tmp_path, weights):
    make("standard", weights).save_model(tmp_path / "a")
    path = tmp_path / "a" / "sae_weights.safetensors"
    save_file(load_file(path) | {"scaling_factor": torch.ones(D_SAE)}, path)
    assert load_sae(tmp_path / "a").activation == "relu"
    save_file(load_file(path) | {"scaling_factor": torch.full((D_SAE,), 1.5)}, path)
    with pytest.raises(UserError, match="fine-tuned scaling_factor cannot be read"):
        load_sae(tmp_path / "a")


def save_batchtopk(directory, weights, kind="BatchTopK", version="6.54.8", **run):
    """A BatchTopK SAE that sae-lens 6.54.8 saved after training on scaled vectors; its run."""
    from sae_lens import saes

    options = {"k": 16.0, "normalize_activations": "expected_average_only_in"}
    options |= {"matryoshka_widths": [64, D_SAE]} if kind.startswith("Matryoshka") else {}
    config = getattr(saes, f"{kind}TrainingSAEConfig")(d_in=D_IN, d_sae=D_SAE, **options)
    config.metadata.model_name, config.metadata.hook_name = "m", "blocks.3.hook_resid_post"
    config.metadata.sae_lens_version = version
    training = fill(
        getattr(saes, f"{kind}TrainingSAE")(config), weights("W_enc", "W_dec", "b_dec", "b_enc")
    )
    training.topk_threshold.fill_(0.7)
    training.fold_activation_norm_scaling_factor(0.1)
    if version == "6.54.8":  # from 6.54.9 on the fold mends the threshold too
        training.topk_threshold.fill_(0.7)
    training.save_inference_model(directory)
    if run:
        (directory / "runner_cfg.json").write_text(json.dumps(run))


def doubt(directory):
    """What is said of an SAE when it is read, which its record keeps."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sae = load_sae(directory)
    told = [str(warning.message) for warning in caught if "BatchTopK" in str(warning.message)]
    assert told == (
        [f"the SAE in {directory}: {sae.record['doubt']}"] if "doubt" in sae.record else []
    )
    return sae.record.get("doubt")


@pytest.mark.parametrize("kind", ["BatchTopK", "MatryoshkaBatchTopK"])
def test_a_batchtopk_sae_whose_threshold_was_not_scaled_is_named(tmp_path, weights, x, kind):
    save_batchtopk(
        tmp_path / "old", weights, kind, sae={"normalize_activations": "expected_average_only_in"}
    )
    save_batchtopk(
        tmp_path / "new",
        weights,
        kind,
        "6.54.9",
        sae={"normalize_activations": "expected_average_only_in"},
    )
    assert "sae-lens 6.54.8 saved this BatchTopK SAE, which was trained on scaled" in doubt(
        tmp_path / "old"
    )
    assert doubt(tmp_path / "new") is None
    old, new = load_sae(tmp_path / "old"), load_sae(tmp_path / "new")
    torch.testing.assert_close(old.threshold / 0.1, new.threshold)  # as the advice says
    assert (old.encode(x).values > 0).sum() > (new.encode(x).values > 0).sum()
    assert old.record["l0"] == 16.0  # what BatchTopK aims at, for the gate


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({}, "which may have been trained (there is no runner_cfg.json) on scaled activations"),
        ({"sae": {"normalize_activations": "none"}}, None),
        (
            {"saes": {"a": {"normalize_activations": "expected_average_only_in"}}},
            "which was trained on scaled",
        ),
        ({"saes": {"a": {"normalize_activations": "none"}}}, None),
        ({"saes": "all", "sae": 3}, "may have been trained"),
    ],
)
def test_the_configuration_of_a_training_tells_whether_it_scaled(tmp_path, weights, run, said):
    save_batchtopk(tmp_path / "a", weights)
    (tmp_path / ("runner_cfg.json" if "saes" in run else "a/runner_cfg.json")).write_text(
        json.dumps(run)
    )
    found = doubt(tmp_path / "a")
    assert found is None if said is None else said in found


@pytest.mark.parametrize(
    ("changes", "doubted"),
    [
        ({}, True),
        ({"sae_lens_version": "6.54.9"}, False),
        ({"sae_lens_version": "6.55.0"}, False),
        ({"sae_lens_version": "6.9.1"}, True),
        ({"sae_lens_version": "6.0.0-rc.1"}, True),
        ({"sae_lens_version": None}, False),
        ({"training_architecture": "jumprelu"}, False),
        ({"training_architecture_details": {"rescale_acts_by_decoder_norm": False}}, False),
        (
            {"training_architecture": None, "training_architecture_details": None},
            True,
        ),  # an early version
    ],
)
def test_only_those_of_which_it_can_be_true_are_named(tmp_path, weights, changes, doubted):
    save_batchtopk(tmp_path / "a", weights)
    cfg = json.loads((tmp_path / "a" / "cfg.json").read_text())
    change_cfg(tmp_path / "a", metadata=cfg["metadata"] | changes)
    assert (doubt(tmp_path / "a") is not None) == doubted


def test_a_jumprelu_sae_with_thresholds_of_its_own_is_not_named(tmp_path, weights):
    make("jumprelu", weights).save_model(tmp_path / "a")
    cfg = json.loads((tmp_path / "a" / "cfg.json").read_text())
    change_cfg(tmp_path / "a", metadata=cfg["metadata"] | {"sae_lens_version": "6.20.0"})
    assert doubt(tmp_path / "a") is None


def test_a_known_defect_is_kept_when_the_sae_is_saved_again(tmp_path, weights):
    save_batchtopk(tmp_path / "a", weights)
    save_sae(load_sae(tmp_path / "a"), tmp_path / "b")
    assert doubt(tmp_path / "b") == doubt(tmp_path / "a")
