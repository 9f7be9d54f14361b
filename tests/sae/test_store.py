"""SAE directories: what is written is read again; what is damaged or does not fit is a sentence."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from helpers import change_cfg
from safetensors.torch import load_file, save_file

from saefeat.dictionaries import SAE
from saefeat.hooks import capture
from saefeat.io import UserError
from saefeat.sae.formats import FORMATS
from saefeat.sae.formats.directories import sae_name
from saefeat.sae.store import load_sae, load_saes, save_sae
from saefeat.sae.writers import WRITERS
from saefeat.sae.writers.sae_lens import transformer_lens_hook


def make_sae(identity="a", d_in=32, width=48, site="mlp_out@1", **record):
    g = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (d_in, width), "b_enc": (width,), "W_dec": (width, d_in), "b_dec": (d_in,)}
    weights = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    record = {
        "model": {"name": "hub/Tiny-Llama-0", "revision": "r"},
        "module": "model.layers.1.mlp",
        **record,
    }
    return SAE(identity, site, **weights, k=4, max_norm=9.5, record=record)


@pytest.fixture
def directory(tmp_path):
    save_sae(make_sae(), tmp_path / "a")
    return tmp_path / "a"


def change_weights(directory, **changes):
    path = directory / "sae_weights.safetensors"
    tensors = load_file(path) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def test_what_is_saved_is_loaded(directory):
    sae, made = load_sae(directory), make_sae()
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(sae, name), getattr(made, name))
    assert (sae.id, sae.site, sae.k, sae.max_norm, sae.dtype) == (
        "a",
        "mlp_out@1",
        4,
        9.5,
        "float32",
    )
    assert sae.record == {**made.record, "path": str(directory)}
    assert sorted(p.name for p in directory.iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_saving_again_replaces_the_directory_and_leaves_nothing_beside_it(directory):
    save_sae(make_sae(module="other"), directory)
    assert load_sae(directory).record["module"] == "other"
    assert [p.name for p in directory.parent.iterdir()] == ["a"]


def test_the_same_sae_is_saved_as_the_same_bytes(tmp_path, directory):
    save_sae(load_sae(directory), tmp_path / "b")
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (directory / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_configuration_names_the_model_its_revision_and_the_module(directory):
    metadata = json.loads((directory / "cfg.json").read_text())["metadata"]
    assert (metadata["model_name"], metadata["model_revision"]) == ("hub/Tiny-Llama-0", "r")
    assert (
        metadata["hook_name"] == "blocks.1.hook_mlp_out"
        and metadata["hf_hook_name"] == "model.layers.1.mlp"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "tree"}, "architecture tree cannot be read: it is not known"),
        ({"architecture": ...}, "architecture None"),
        ({"d_in": ...}, "d_in is missing"),
        ({"k": 0}, "k is missing or not a positive"),
        ({"k": "4"}, "k is missing or not a positive"),
        ({"k": 49}, "k 49 is greater than d_sae 48"),
        ({"d_sae": 64}, "has not the shape"),
        (
            {"normalize_activations": "covariance_whitening"},
            "normalize_activations = covariance_whitening",
        ),
        ({"reshape_activations": "hook_z"}, "reshape_activations = hook_z"),
        ({"metadata": {}}, "names no hook"),
        ({"metadata": {"saefeat": {"site": "mlp_out@1", "dtype": "float7"}}}, "dtype float7"),
        (
            {"apply_b_dec_to_input": "no"},
            "apply_b_dec_to_input should be true or false, and is 'no'",
        ),
        (
            {"rescale_acts_by_decoder_norm": "no"},
            "rescale_acts_by_decoder_norm should be true or false",
        ),
    ],
)
def test_a_configuration_that_we_cannot_follow_is_a_user_error(directory, changes, message):
    change_cfg(directory, **changes)
    with pytest.raises(UserError, match=message):
        load_saes(str(directory))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\udcff"])
def test_a_configuration_that_is_no_json_object_is_a_user_error(directory, text):
    (directory / "cfg.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"cfg\.json"):
        load_sae(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_enc": None}, "W_enc is missing"),
        ({"b_dec": torch.zeros(31)}, "b_dec is missing or has not the shape"),
        ({"W_dec": torch.zeros(32, 48)}, "W_dec is missing or has not the shape"),
        ({"b_enc": torch.full((48,), torch.nan)}, "b_enc holds values that are not finite"),
        ({"W_enc": torch.full((32, 48), torch.inf)}, "W_enc holds values that are not finite"),
    ],
)
def test_weights_that_are_missing_misshapen_or_not_finite_are_a_user_error(
    directory, changes, message
):
    change_weights(directory, **changes)
    with pytest.raises(UserError, match=message):
        load_sae(directory)


@pytest.mark.parametrize("damage", ["removed", "cut", "empty"])
def test_a_damaged_weights_file_is_a_user_error(directory, damage):
    path = directory / "sae_weights.safetensors"
    data = path.read_bytes()
    path.unlink() if damage == "removed" else path.write_bytes(
        data[: len(data) // 2] if damage == "cut" else b""
    )
    with pytest.raises(UserError, match=r"sae_weights\.safetensors cannot be read"):
        load_sae(directory)


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.3.hook_mlp_out", "mlp_out@3"),
        ("blocks.12.hook_resid_post", "resid_post@12"),
        ("blocks.12.hook_out", "resid_post@12"),
        ("blocks.12.hook_resid_pre", "resid_post@11"),
        ("blocks.3.mlp.hook_post", "mlp_hidden@3"),
        ("model.layers.3.mlp", "model.layers.3.mlp"),
        ("layers.1.mlp", "layers.1.mlp"),
    ],
)
def test_the_site_of_a_foreign_sae_is_read_from_its_hook(directory, hook, site):
    change_cfg(directory, metadata={"hook_name": hook, "model_name": "m"})
    sae = load_sae(directory)
    assert sae.site == site and sae.record["model"]["name"] == "m" and sae.max_norm is None


@pytest.mark.parametrize(
    "hook",
    ["blocks.0.hook_resid_pre", "blocks.3.hook_resid_mid", "hook_embed", "blocks.1.attn.hook_z"],
)
def test_a_hook_without_a_site_is_a_user_error(directory, hook):
    change_cfg(directory, metadata={"hook_name": hook, "model_name": "m"})
    with pytest.raises(UserError, match=f"no site for the hook {re.escape(hook)}"):
        load_sae(directory)


def transformer_lens_neurons(mlp, x):
    """What TransformerLens has at `mlp.hook_post`, with the weights of a feed-forward module."""
    from transformer_lens.components import MLP, GatedMLP
    from transformer_lens.config import HookedTransformerConfig

    gated = hasattr(mlp, "gate_proj")
    config = HookedTransformerConfig(
        n_layers=1, n_ctx=8, d_model=32, d_head=8, d_mlp=48, device="cpu", gated_mlp=gated,
        act_fn="silu" if gated else "gelu_new",
    )  # fmt: skip
    if gated:
        theirs, (up, down) = GatedMLP(config), (mlp.up_proj, mlp.down_proj)
        weights = {"W_gate": mlp.gate_proj.weight.t(), "W_in": up.weight.t()}
        weights |= {"W_out": down.weight.t(), "b_in": torch.zeros(48), "b_out": torch.zeros(32)}
    else:  # GPT-2, whose weights are [in, out]
        theirs, (up, down) = MLP(config), (mlp.c_fc, mlp.c_proj)
        weights = {"W_in": up.weight, "W_out": down.weight, "b_in": up.bias, "b_out": down.bias}
    theirs.load_state_dict(weights)
    found = []
    theirs.hook_post.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    assert torch.allclose(theirs(x), mlp(x), atol=1e-6)
    return found[0]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_neurons_of_transformer_lens_are_what_the_down_projection_reads(directory, make_lm, family):
    change_cfg(directory, metadata={"hook_name": "blocks.1.mlp.hook_post"})
    change_cfg(directory, d_in=48)
    change_weights(
        directory, W_enc=torch.ones(48, 48), W_dec=torch.ones(48, 48), b_dec=torch.ones(48)
    )
    lm = make_lm(family)
    (sae,) = load_saes(str(directory), lm)
    site = lm.site(sae.site).path
    mlp = site.removesuffix(":input").rpartition(".")[0]
    with torch.no_grad(), capture(lm.model, (f"{mlp}:input", site)) as captured:
        captured.run(lm.model, input_ids=torch.tensor([[5, 6, 7, 8]]))
        x, ours = (captured.tensors[path] for path in (f"{mlp}:input", site))
    theirs = transformer_lens_neurons(lm.model.get_submodule(mlp), x)
    assert torch.allclose(ours, theirs, atol=1e-6) and ours.abs().max() > 1e-3
    assert transformer_lens_hook(replace(sae, record={})) == "blocks.1.mlp.hook_post"


def test_the_dtype_of_the_products_may_be_asked_for(directory):
    assert load_sae(directory, dtype="bfloat16").dtype == "bfloat16"
    with pytest.raises(UserError, match="cannot encode with the dtype float16"):
        load_sae(directory, dtype="float16")


def test_one_sae_is_loaded_from_a_folder_of_one(tmp_path):
    save_sae(make_sae(), tmp_path / "a")
    assert load_sae(tmp_path).id == "a"
    save_sae(make_sae(), tmp_path / "b")
    with pytest.raises(UserError, match="holds 2 SAEs; name one of them: a, b"):
        load_sae(tmp_path)


def test_a_folder_of_saes_is_read_in_natural_order(tmp_path, tiny_lm):
    for name in ("s10", "s9", "s1"):
        save_sae(make_sae(), tmp_path / name)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes").mkdir()
    assert [sae.id for sae in load_saes(str(tmp_path), tiny_lm)] == ["s1", "s9", "s10"]
    assert [sae.id for sae in load_saes([str(tmp_path / "s9"), str(tmp_path / "s1")])] == [
        "s9",
        "s1",
    ]


def test_two_saes_of_one_id_are_a_user_error(tmp_path):
    for folder in ("x", "y"):
        save_sae(make_sae(), tmp_path / folder / "a")
    with pytest.raises(UserError, match="two SAEs are named a"):
        load_saes([str(tmp_path / "x"), str(tmp_path / "y")])


@pytest.mark.parametrize("second", ["a", "", "link/a"])
def test_a_source_given_twice_is_reported(tmp_path, second):
    save_sae(make_sae(), tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match=f"the SAE a of {tmp_path}/a is given twice"):
        load_saes([str(tmp_path / "a"), f"{tmp_path}/{second}"])


def test_saes_in_linked_folders_are_read_by_the_names_of_their_links(tmp_path, tiny_lm):
    for name in ("step-9000", "step-100"):
        save_sae(make_sae(), tmp_path / "elsewhere" / name)
    (tmp_path / "saes").mkdir()
    save_sae(make_sae(), tmp_path / "saes" / "own")
    (tmp_path / "saes" / "layer-1").symlink_to(tmp_path / "elsewhere" / "step-9000")
    (tmp_path / "saes" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "saes" / "latest").symlink_to("own")  # it is found under its own name
    (tmp_path / "saes" / "round").symlink_to(tmp_path / "saes")
    with pytest.raises(
        UserError,
        match=r"the SAE layer-1 of .*/layer-1 is given twice, as layer-1 and as step-9000",
    ):
        load_saes(str(tmp_path / "saes"), tiny_lm)
    (tmp_path / "saes" / "layer-1").unlink()
    saes = load_saes(str(tmp_path / "saes"), tiny_lm)
    assert [sae.id for sae in saes] == ["step-100", "step-9000", "own"]
    for sae in saes:
        assert load_sae(sae.record["path"]).id == sae.id  # as an artefact names it


def test_a_link_is_read_again_by_its_own_name(tmp_path):
    """sparsify's site is the folder's name, which what a link leads to need not have."""
    (tmp_path / "blob").mkdir()
    WRITERS["sparsify"].write(make_sae(), tmp_path / "blob")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "layers.1.mlp").symlink_to(tmp_path / "blob")
    sae = load_sae(tmp_path / "run")
    assert sae.site == "layers.1.mlp"
    assert load_sae(sae.record["path"]).site == "layers.1.mlp"


@pytest.mark.parametrize("place", ["lost", "a/sae_weights.safetensors", "deep/er/lost"])
def test_a_folder_with_a_link_that_leads_nowhere_is_not_read_without_it(tmp_path, place):
    save_sae(make_sae(), tmp_path / "a")
    link = tmp_path / place
    link.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=f"the link {link} is broken; repair or remove it"):
        load_saes(str(tmp_path))
    if place == "lost":
        assert load_sae(tmp_path / "a").id == "a"


@pytest.mark.parametrize("source", ["", " "])
def test_an_empty_source_is_not_the_directory_one_is_in(tmp_path, monkeypatch, source):
    save_sae(make_sae(), tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="a source of SAEs is empty"):
        load_saes([source])
    assert len(load_saes(["."])) == 1


@pytest.mark.parametrize("source", ["lost", "lost/a", "loop"])
def test_a_broken_link_is_reported(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lost").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    name = source.partition("/")[0]
    for given, link in ((source, name), (str(tmp_path / source), str(tmp_path / name))):
        with pytest.raises(UserError, match=f"{given} cannot be read: the link {link} is broken"):
            load_saes(given)


def test_the_home_of_nobody_is_a_user_error():
    with pytest.raises(
        UserError, match='cannot expand "~" in ~nobody-here/saes: there is no such user'
    ):
        load_saes("~nobody-here/saes")


@pytest.mark.parametrize(
    ("name", "identity"), [(".hid", "hid"), ("..", "sae"), (".mlp_out@1", "sae-mlp_out@1")]
)
def test_no_id_is_the_name_of_a_hidden_file(tmp_path, name, identity):
    assert sae_name(name, "mlp_out@1") == identity
    if name != "..":
        save_sae(make_sae(), tmp_path / name)
        assert load_sae(tmp_path / name).id == identity


def test_a_source_without_saes_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="holds no SAE"):
        load_saes(str(tmp_path))
    with pytest.raises(UserError, match="does not exist") as told:
        load_saes(str(tmp_path / "none"))
    assert all(name in str(told.value) for name in FORMATS)
    with pytest.raises(UserError, match="does not exist: a path component exceeds 255 bytes"):
        load_saes("a" * 256)


def test_an_sae_that_does_not_fit_the_model_is_a_user_error(tmp_path, tiny_lm, make_lm):
    def fits(lm, **options):
        save_sae(make_sae(**options), tmp_path / "a")
        return load_saes(str(tmp_path / "a"), lm)

    mine = {"name": tiny_lm.name, "revision": None, "fingerprint": tiny_lm.fingerprint}
    assert len(fits(tiny_lm, model=mine)) == 1
    with pytest.raises(UserError, match="trained on tiny-llama-0, not on tiny-llama-1"):
        fits(make_lm("llama", 1), model=mine)
    with pytest.raises(UserError, match="trained on another model, not on tiny-llama-1"):
        fits(make_lm("llama", 1), model={**mine, "name": None})
    assert len(load_saes(str(tmp_path / "a"), make_lm("llama", 1), same_model=False)) == 1
    with pytest.raises(
        UserError, match="reads vectors of 31, but mlp_out@1 of tiny-llama-0 has 32"
    ):
        fits(tiny_lm, d_in=31)
    with pytest.raises(
        UserError, match="reads vectors of 32, but mlp_act@1 of tiny-llama-0 has 48"
    ):
        fits(tiny_lm, site="mlp_act@1")
    with pytest.raises(UserError, match="mlp_out@7"):
        fits(tiny_lm, site="mlp_out@7")
    with pytest.raises(UserError, match=r"unknown site blocks\.1\.ln"):
        fits(tiny_lm, site="blocks.1.ln")


@pytest.mark.parametrize(
    ("trained_on", "name", "fits"),
    [
        ("gemma-3-270m", "google/gemma-3-270m", True),
        ("google/Gemma-3-270m ", "gemma-3-270m", True),
        ("gpt2-small", "openai-community/gpt2", True),
        (None, "google/gemma-3-270m", True),
        ("gemma-3-1b", "google/gemma-3-270m", False),
        ("gpt2-medium", "openai-community/gpt2", False),
        ("gemma-3-1b", "embedded:gemma-3-270m", False),
        ("meta-llama/Llama-3.2-1B", "embedded:gemma-3-270m", False),
        ("meta-llama/Llama-3.2-1B", "embedded:smollm2-135m", False),
        ("google/gemma-3-270m-pt", "embedded:gemma-3-270m", True),
        ("embedded:gemma-3-270m", "google/gemma-3-270m", True),
        ("HuggingFaceTB/SmolLM2-135M", "embedded:smollm2-135m", True),
        ("gemma-2-2b", "google/gemma-2-2b-it", True),
        ("gemma-2-2b", "google/gemma-2-9b-it", False),
        ("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3", True),
        ("meta-llama/Llama-2-7b", "meta-llama/Llama-2-7b-chat-hf", True),
        ("llama-3-8b-instruct", "meta-llama/Meta-Llama-3-8B-Instruct", True),
        ("Qwen/Qwen3-1.7B-Base", "qwen3-1.7b", True),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped", True),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m", False),
        ("meta-llama/Llama-3.2-1B", "unsloth/Llama-3.2-1B-bnb-4bit", True),
        ("meta-llama/Llama-3.1-8B-Instruct", "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8", True),
        ("qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B-Instruct-AWQ", True),
        ("qwen2.5-7b-instruct", "Qwen/Qwen2.5-1.5B-Instruct-AWQ", False),
        ("/data/models/mine", "google/gemma-3-270m", True),
        ("gemma-3-1b", "{here}", True),
    ],
)
def test_a_foreign_sae_must_name_the_model(directory, make_lm, trained_on, name, fits):
    change_cfg(directory, metadata={"hook_name": "blocks.1.hook_mlp_out", "model_name": trained_on})
    lm = make_lm()
    lm.name = name.format(here=directory)
    if fits:
        assert len(load_saes(str(directory), lm)) == 1
    else:
        with pytest.raises(UserError, match=f"was trained on {trained_on}, not on {name}"):
            load_saes(str(directory), lm)


@pytest.mark.parametrize(
    "name", ["tiny", "/data/tiny", "google/gemma-3-270m", "embedded:gemma-3-270m"]
)
def test_other_weights_of_the_model_are_distinguished_from_another_model(directory, make_lm, name):
    lm = make_lm()
    lm.name = "google/gemma-3-270m" if "gemma" in name else name
    save_sae(make_sae(model={"name": name, "fingerprint": "2:other"}), directory)
    with pytest.raises(
        UserError, match=f"trained on other weights of {lm.name} \\(another revision, quantisation"
    ):
        load_saes(str(directory), lm)
    assert len(load_saes(str(directory), lm, same_model=False)) == 1
    save_sae(make_sae(model={"name": "/data/mine", "fingerprint": "2:other"}), directory)
    with pytest.raises(UserError, match=f"trained on /data/mine, not on {lm.name}"):
        load_saes(str(directory), lm)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("owner/tiny-bnb-4bit", None),
        ("owner/tiny-AWQ", None),
        ("owner/tiny-FP8", None),
        ("owner/tiny", "torchao"),
    ],
)
def test_quantised_weights_of_the_model_are_left_to_the_fit_check(directory, make_lm, name, config):
    lm = make_lm()
    lm.name = name
    if config:
        lm.model.config.quantization_config = {"quant_method": config}
    save_sae(
        make_sae(model={"name": "owner/tiny", "fingerprint": "2:of its float weights"}), directory
    )
    assert len(load_saes(str(directory), lm)) == 1
    save_sae(make_sae(model={"name": "owner/large", "fingerprint": "2:other"}), directory)
    with pytest.raises(UserError, match=f"trained on owner/large, not on {name}"):
        load_saes(str(directory), lm)


@pytest.mark.parametrize(
    ("said", "fits"), [("google/gemma-3-1b-pt", True), ("openai-community/gpt2", False)]
)
def test_a_directory_may_tell_where_its_model_is_from(directory, make_lm, said, fits):
    change_cfg(
        directory, metadata={"hook_name": "blocks.1.hook_mlp_out", "model_name": "gemma-3-1b"}
    )
    lm = make_lm()
    lm.name, lm.model.config._name_or_path = str(directory), said
    if fits:
        assert len(load_saes(str(directory), lm)) == 1
    else:
        with pytest.raises(UserError, match=f"was trained on gemma-3-1b, not on {directory}"):
            load_saes(str(directory), lm)


def test_a_flipped_byte_in_weights_of_ours_gives_one_sentence_of_error(directory):
    path = directory / "sae_weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=r"sae_weights\.safetensors is not what was saved with cfg\.json"
    ) as told:
        load_sae(directory)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "name", ["mlp_out@1", "resid_post@0", "layers.1.mlp", "model.layers.1", "embed_tokens"]
)
def test_the_id_of_an_sae_is_never_that_of_a_place(tmp_path, name):
    save_sae(make_sae(site=name), tmp_path / name)
    assert load_sae(tmp_path / name).id == f"sae-{name}"
    save_sae(make_sae(site=name), tmp_path / f"sae-{name}")
    assert load_sae(tmp_path / f"sae-{name}").id == f"sae-{name}"


def test_an_sae_in_a_directory_named_like_its_site_is_collected(tmp_path, tiny_lm, tiny_corpus):
    from saefeat.run import collect

    sae = make_sae(site="mlp_out@0", module="model.layers.0.mlp")
    save_sae(sae, tmp_path / "mlp_out@0")
    (tmp_path / "run" / "layers.1.mlp").mkdir(parents=True)
    WRITERS["sparsify"].write(sae, tmp_path / "run" / "layers.1.mlp")
    saes = load_saes([str(tmp_path / "mlp_out@0"), str(tmp_path / "run")], tiny_lm)
    collect(tiny_lm, tiny_corpus, saes, out=tmp_path / "stats")
    assert sorted(p.stem for p in (tmp_path / "stats").glob("*.safetensors")) == [
        "layers.1.mlp",
        "mlp_out@0",
        "sae-layers.1.mlp",
        "sae-mlp_out@0",
    ]


@pytest.mark.parametrize(
    "norm", ["NaN", "0", "-1", "true", "Infinity", "-Infinity", '"9"', "[9]", "1" + "0" * 400]
)
def test_a_max_norm_that_leaves_out_everything_or_nothing_is_a_user_error(directory, norm):
    path = directory / "cfg.json"
    path.write_text(path.read_text().replace('"max_norm": 9.5', f'"max_norm": {norm}'))
    with pytest.raises(
        UserError, match=r"cfg\.json is not what saefeat writes there \(saefeat\.max_norm"
    ) as told:
        load_sae(directory)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "gemma"),
        ("model", ["gemma"]),
        ("model", {"name": ["gemma"]}),
        ("model", {"fingerprint": 3}),
        ("policy", "train"),
        ("tokens", 7),
        ("module", 7),
        ("corpus", {"labels": 7}),
        ("training", {"tokens": "many"}),
        ("training", {"tokens": 7, "lr": float("nan")}),
        ("site", 7),
        ("dtype", ["float32"]),
        ("fingerprint", 7),
    ],
)
def test_an_entry_of_ours_that_we_did_not_write_is_a_user_error(directory, key, value):
    path = directory / "cfg.json"
    cfg = json.loads(path.read_text())
    cfg["metadata"]["saefeat"][key] = value
    path.write_text(json.dumps(cfg))
    with pytest.raises(
        UserError, match=r"cfg\.json(:| is not what saefeat writes there \().*(saefeat|whole|dtype)"
    ) as told:
        load_sae(directory)
    assert "\n" not in str(told.value)


def test_an_entry_of_ours_that_is_no_object_is_a_user_error(directory):
    change_cfg(directory, metadata={"hook_name": "blocks.1.hook_mlp_out", "saefeat": "all"})
    with pytest.raises(UserError, match=r"is not what saefeat writes there \(saefeat: "):
        load_sae(directory)


@pytest.mark.parametrize("value", [float("nan"), True, "0.1", -1.0, None])
def test_figures_of_our_own_that_are_no_numbers_are_left_out(directory, value):
    save_sae(make_sae(fvu=0.25, l0=15.5), directory)
    assert load_sae(directory).record["fvu"] == 0.25
    path = directory / "cfg.json"
    path.write_text(path.read_text().replace('"fvu": 0.25', f'"fvu": {json.dumps(value)}'))
    record = load_sae(directory).record
    assert "fvu" not in record and record["l0"] == 15.5


@pytest.mark.parametrize("value", [3, ["gemma"], {"a": 1}, float("nan")])
def test_a_model_whose_name_is_no_text_is_not_known(directory, value):
    change_cfg(
        directory,
        metadata={
            "hook_name": "blocks.1.hook_mlp_out",
            "model_name": value,
            "model_revision": value,
        },
    )
    assert load_sae(directory).record["model"] == {"name": None, "revision": None}


def test_zero_decoder_rows_stay_zero_where_norms_are_folded_in(directory):
    before = load_sae(directory)
    rows = before.W_dec.clone()
    rows[3] = 0
    save_sae(replace(before, W_dec=rows), directory)
    change_cfg(directory, rescale_acts_by_decoder_norm=True)
    sae = load_sae(directory)
    norms = rows.norm(dim=1)
    torch.testing.assert_close(sae.W_dec * norms[:, None], rows)
    assert (sae.W_dec[3] == 0).all() and (sae.W_enc[:, 3] == 0).all()
    torch.testing.assert_close(sae.W_enc, before.W_enc * norms)
