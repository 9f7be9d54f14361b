"""Exported SAEs: sae-lens and sparsify open them and encode equally, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from saefeat.dictionaries import SAE
from saefeat.export import export_direction, export_saes, open_source
from saefeat.io import UserError, read_json, write_json
from saefeat.sae.store import load_saes, save_sae
from saefeat.sae.writers import WRITERS

D_IN, D_SAE = 640, 384
EXTRA = {"jumprelu": ("threshold",), "gated": ("b_gate", "r_mag")}
RECORD = {
    "model": {"name": "owner/model", "revision": "r1", "fingerprint": "f"},
    "module": "model.layers.3.mlp",
    "policy": {"split": "train", "token_limit": 128, "special": "left out", "count_bos": False},
    "fvu": 0.25,
    "l0": 15.5,
    "dead": 0.125,
}


@pytest.fixture
def make(weights):
    """make(activation, **changes): an SAE of random weights at mlp_out@3."""

    def build(activation="topk", record=RECORD, **changes):
        kept = weights("W_enc", "b_enc", "W_dec", "b_dec", *EXTRA.get(activation, ()))
        if activation == "gated":
            kept["gain"] = kept.pop("r_mag").exp()
        k = 16 if activation in ("topk", "groupmax") else 0
        options = {
            "id": "sae-mlp_out@3",
            "site": "mlp_out@3",
            "k": k,
            "record": record,
            "activation": activation,
        }
        return SAE(**kept, **{**options, **changes})

    return build


@pytest.fixture
def given(monkeypatch):
    """given(*saes): what every source is taken to hold."""
    return lambda *saes: monkeypatch.setattr(
        "saefeat.export.source.load_saes", lambda _: list(saes)
    )


pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu", "gated"])
def test_sae_lens_opens_every_architecture(
    tmp_path, make, given, same, x, activation, centred, normalize
):
    sae_lens = pytest.importorskip("sae_lens")
    ours = make(activation, centred=centred, normalize=normalize, max_norm=9000.0)
    given(ours)
    (folder,) = export_saes("any", "sae-lens", tmp_path / "out")
    theirs = sae_lens.SAE.load_from_disk(folder)
    acts = theirs.encode(x)
    same(ours, x, acts, theirs.decode(acts))
    meta = theirs.cfg.metadata
    assert (meta.model_name, meta.model_revision, meta.hook_name) == (
        "owner/model",
        "r1",
        "blocks.3.hook_mlp_out",
    )
    assert (meta.hf_hook_name, meta.context_size) == ("model.layers.3.mlp", 128)
    assert meta.exclude_special_tokens is True


@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu", "gated"])
def test_nothing_is_lost_in_the_layout_of_sae_lens(tmp_path, make, given, activation):
    ours = make(
        activation,
        max_norm=9000.0,
        dtype="bfloat16",
        centred=activation != "relu",
        normalize="layer_norm",
    )
    given(ours)
    export_saes("any", "sae-lens", tmp_path / "out")
    (back,) = load_saes(str(tmp_path / "out"))
    back.record.pop("path")
    assert (back.id, back.site, back.record) == (ours.id, ours.site, ours.record)
    for name, tensor in ours.tensors.items():
        # A gain is kept as its logarithm.
        torch.testing.assert_close(
            back.tensors[name], tensor, rtol=1e-6 if name == "gain" else 0, atol=0
        )
    if activation != "gated":
        assert back.identity["fingerprint"] == ours.identity["fingerprint"]


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_sparsify_opens_its_two_activations_and_nothing_is_lost(
    tmp_path, make, given, same, x, activation
):
    sparsify = pytest.importorskip("sparsify")
    ours = make(activation)
    given(ours)
    assert export_saes("any", "sparsify", tmp_path / "out") == [tmp_path / "out" / "layers.3.mlp"]
    theirs = sparsify.SparseCoder.load_many(str(tmp_path / "out"), local=True)["layers.3.mlp"]
    found = theirs.encode(x)
    acts = torch.zeros(len(x), D_SAE).scatter_(1, found.top_indices, found.top_acts)
    same(ours, x, acts, theirs(x).sae_out)
    (back,) = load_saes(str(tmp_path / "out"))
    assert back.identity["fingerprint"] == ours.identity["fingerprint"]
    assert (back.site, back.activation) == ("layers.3.mlp", activation)
    assert back.record["model"] == {"name": "owner/model", "revision": "r1"}
    assert back.record["tokens"] == {"context_size": 128}


def foreign(form, directory, weights):
    """A directory of a format that is read, the SAE of which is TopK where the format has that."""
    given = weights("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    config = None
    if form == "scope 1":
        directory = directory / "gemma-scope-2b-pt-res/layer_3/average_l0_7"
        directory.mkdir(parents=True)
        np.savez(
            directory / "params.npz", **{name: tensor.numpy() for name, tensor in given.items()}
        )
        return directory
    directory = directory / ("SAE-Res-Tiny-W1K-L0_16" if form == "qwen" else "layers.3.mlp")
    directory.mkdir()
    if form == "scope 2":
        state = {name.replace("W_", "w_"): tensor for name, tensor in given.items()}
        save_file(state, directory / "params.safetensors")
        config = {"hf_hook_point_in": "model.layers.3.output", "model_name": "gemma-3-270m"}
    elif form.startswith("dictionary"):
        names = {
            "encoder.weight": "W_enc",
            "encoder.bias": "b_enc",
            "decoder.weight": "W_dec",
            "b_dec": "b_dec",
        }
        state = {new: given[old].T if "weight" in new else given[old] for new, old in names.items()}
        torch.save(state, directory / "ae.pt")
        trainer = {
            "dict_class": "AutoEncoderTopK",
            "k": 16,
            "submodule_name": form.partition(" ")[2],
            "lm_name": "m",
        }
        config = {"trainer": trainer}
    elif form == "qwen":
        state = {name: tensor.T if tensor.dim() == 2 else tensor for name, tensor in given.items()}
        torch.save(state, directory / "layer3.sae.pt")
    else:
        sae = SAE(
            "a",
            "mlp_out@3",
            **{k: v for k, v in given.items() if k != "threshold"},
            k=16,
            record={"module": "blocks.3.hook_mlp_out"},
        )
        WRITERS[form].write(sae, directory)
        write_json(directory.parent / "config.json", {"model": "m"})  # of a run of sparsify
    if config:
        write_json(directory / "config.json", config)
    return directory


@pytest.mark.parametrize(
    ("form", "hookpoint", "reason"),
    [
        ("sae-lens", None, "name no module of a model"),
        ("sparsify", "layers.3.mlp", None),
        ("dictionary resid_post_layer_3", None, "name no module of a model"),
        ("dictionary mlp_layer_3", "layers.3.mlp", None),
        ("scope 1", None, "holds topk and groupmax SAEs"),
        ("scope 2", None, "holds topk and groupmax SAEs"),
        ("qwen", "layers.3", "does not subtract it"),
    ],
)
def test_every_format_that_is_read_is_exported_or_refused(
    tmp_path, weights, x, form, hookpoint, reason
):
    directory = foreign(form, tmp_path, weights)
    (ours,) = load_saes(str(directory))
    export_saes(str(directory), "sae-lens", tmp_path / "lens")
    (back,) = load_saes(str(tmp_path / "lens"))
    assert (back.id, back.site) == (ours.id, ours.site)
    assert {**back.record, "path": 0} == {**ours.record, "path": 0}
    assert torch.equal(back.encode(x).dense(), ours.encode(x).dense())
    text = (tmp_path / "lens" / "README.md").read_text()
    assert (f'get_submodule("{hookpoint}")' in text) if hookpoint else "get_submodule" not in text
    if reason:
        with pytest.raises(UserError, match=reason) as told:
            export_saes(str(directory), "sparsify", tmp_path / "out")
        assert "\n" not in str(told.value)
        return
    assert export_saes(str(directory), "sparsify", tmp_path / "out") == [
        tmp_path / "out" / str(hookpoint)
    ]
    (back,) = load_saes(str(tmp_path / "out"))
    assert back.site == hookpoint and torch.equal(back.encode(x).dense(), ours.encode(x).dense())


def test_an_exported_norm_of_the_decoder_is_that_of_its_rows(tmp_path, make):
    sae = make()
    WRITERS["sparsify"].write(sae, tmp_path)
    assert read_json(tmp_path / "cfg.json")["normalize_decoder"] is False
    unit = replace(sae, W_dec=sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True))
    WRITERS["sparsify"].write(unit, tmp_path)
    assert read_json(tmp_path / "cfg.json")["normalize_decoder"] is True


@pytest.mark.parametrize(
    ("module", "hookpoint"),
    [
        ("model.layers.3.mlp", "layers.3.mlp"),
        ("model.layers.3", "layers.3"),
        ("model.layers.3.post_feedforward_layernorm", "layers.3.post_feedforward_layernorm"),
        ("transformer.h.3.mlp", "h.3.mlp"),
        ("gpt_neox.layers.3", "layers.3"),
        ("model.decoder.layers.3.fc2", "decoder.layers.3.fc2"),
        ("model.language_model.layers.3", "language_model.layers.3"),
        ("layers.3.mlp", "layers.3.mlp"),
        ("decoder.layers.3", "decoder.layers.3"),
        ("embed_tokens", "embed_tokens"),
        ("resid_post@3", None),
        ("blocks.3.hook_mlp_out", None),
    ],
)
def test_hookpoints_are_relative_to_the_base_model(make, given, module, hookpoint):
    given(make(record={**RECORD, "module": module}))
    source = open_source("any")
    assert source.hookpoint(source.saes[0]) == hookpoint


def test_hookpoints_are_the_modules_that_sites_resolve_to(family_lm, make, given):
    base = family_lm.model.base_model
    for name in ("mlp_out@1", "resid_post@0", "mlp_act@1"):
        path = family_lm.site(name).path
        given(make(record={**RECORD, "module": path}))
        source = open_source("any")
        assert base.get_submodule(
            source.hookpoint(source.saes[0])
        ) is family_lm.model.get_submodule(path)


def test_the_names_of_transformer_lens_are_kept_and_make_no_hookpoint(tmp_path, make, given):
    given(make(record={**RECORD, "module": "blocks.4.hook_resid_pre"}, site="resid_post@3"))
    (folder,) = export_saes("any", "sae-lens", tmp_path / "out")
    meta = read_json(folder / "cfg.json")["metadata"]
    assert (meta["hook_name"], meta["hf_hook_name"]) == ("blocks.4.hook_resid_pre", None)
    assert "register_forward_hook" not in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(UserError, match="name no module of a model, which sparsify needs"):
        export_saes("any", "sparsify", tmp_path / "other")


def test_places_without_a_name_in_transformer_lens_go_by_their_module(tmp_path, make, given):
    given(make(record={**RECORD, "module": "model.layers.3.mlp.act_fn"}, site="mlp_act@3"))
    (folder,) = export_saes("any", "sae-lens", tmp_path / "out")
    assert read_json(folder / "cfg.json")["metadata"]["hook_name"] == "model.layers.3.mlp.act_fn"


def test_the_card_says_what_the_format_does_not(tmp_path, make, given):
    module = "model.layers.3.post_feedforward_layernorm"
    given(make(max_norm=12.5, dtype="bfloat16", record={**RECORD, "module": module}))
    export_saes("any", "sparsify", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: sparsify\nbase_model: owner/model\ntags:\n")
    assert (
        "the output of the norm after it (`layers.3.post_feedforward_layernorm`), not of `mlp`"
        in text
    )
    assert "those whose norm exceeds the max norm" in text and "products in bfloat16" in text
    path = "layers.3.post_feedforward_layernorm"
    row = f"| {path} | mlp_out@3 | {path} | blocks.3.hook_mlp_out | 384 | topk 16"
    assert f"{row} | 0.250 | 15.5 | 12.5% | 12.50 |" in text
    assert "`owner/model`, revision r1" in text and "texts are cut at 128 tokens" in text
    assert "## Languages" not in text


def test_a_card_of_an_sae_without_a_record_says_that_it_is_not_recorded(tmp_path, make, given):
    given(make(record={}))
    export_saes("any", "sae-lens", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "base_model" not in text and "- Tokens: not recorded" in text and "None" not in text
    assert (
        "| sae-mlp_out@3 | mlp_out@3 | – | blocks.3.hook_mlp_out | 384 | topk 16 | – | – | – | – |"
        in text
    )


@pytest.mark.parametrize(
    ("form", "activation", "changes", "message"),
    [
        (
            "sae-lens",
            "groupmax",
            {},
            "sae-lens has no groupmax SAEs, and sae-mlp_out@3 is one; choose another format",
        ),
        (
            "sparsify",
            "jumprelu",
            {},
            "topk and groupmax SAEs .* sae-mlp_out@3 is jumprelu; choose another format",
        ),
        ("sparsify", "relu", {}, "is relu"),
        ("sparsify", "gated", {}, "is gated"),
        ("sparsify", "topk", {"centred": False}, "does not subtract it"),
        ("sparsify", "topk", {"normalize": "layer_norm"}, r"normalises its input \(layer_norm\)"),
        ("onnx", "topk", {}, "unknown export format 'onnx'; choose from sae-lens, sparsify"),
    ],
)
def test_an_sae_that_a_format_cannot_hold_gives_one_sentence_of_error(
    tmp_path, make, given, form, activation, changes, message
):
    given(make(activation, **changes))
    with pytest.raises(UserError, match=message) as told:
        export_saes("any", form, tmp_path / "out")
    assert "\n" not in str(told.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["~nobody-here/x", "", " "])
def test_a_source_that_names_no_place_gives_one_sentence_of_error(tmp_path, monkeypatch, source):
    (tmp_path / "run.json").write_text("{}")  # of the directory one is in
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"there is no such user|a source of SAEs is empty"):
        export_saes(source, "sae-lens", tmp_path / "out")


def test_an_embedded_model_is_named_as_on_the_hub_and_still_fits(tmp_path, make_lm):
    lm = make_lm()
    lm.name = "embedded:gemma-3-270m"
    sae = SAE(
        "a",
        "mlp_out@1",
        torch.randn(32, 48),
        torch.ones(48),
        torch.randn(48, 32),
        torch.ones(32),
        k=4,
        record={
            "model": {"name": lm.name, "revision": None, "fingerprint": lm.fingerprint},
            "module": "model.layers.1.mlp",
        },
    )
    save_sae(sae, tmp_path / "a")
    for form in ("sae-lens", "sparsify"):
        (folder,) = export_saes(str(tmp_path / "a"), form, tmp_path / form)
        file = tmp_path / form / "config.json" if form == "sparsify" else folder / "cfg.json"
        found = read_json(file)
        assert (
            found["model"] if form == "sparsify" else found["metadata"]["model_name"]
        ) == "google/gemma-3-270m"
        card = (tmp_path / form / "README.md").read_text()
        assert "\nbase_model: google/gemma-3-270m\n" in card
        assert "# Sparse autoencoders of google/gemma-3-270m\n" in card
        assert "the weights being those of saefeat's `embedded:gemma-3-270m`, revision –" in card
        assert 'load_model("embedded:gemma-3-270m")' in card
        (back,) = load_saes(str(tmp_path / form), lm)
        assert torch.equal(back.W_dec, sae.W_dec)


def test_saes_of_one_hookpoint_or_of_several_models_are_refused(tmp_path, make, given):
    given(make(), make(id="b"))
    with pytest.raises(UserError, match=r"sae-mlp_out@3 and b both read layers\.3\.mlp"):
        export_saes("any", "sparsify", tmp_path / "out")
    given(make(), make(id="b", record={"model": {"name": "other"}}))
    with pytest.raises(UserError, match=r"several base models \(owner/model, other\)"):
        export_saes("any", "sae-lens", tmp_path / "out")


def test_an_export_is_written_over_and_nothing_else(tmp_path, make, given):
    out = tmp_path / "out"
    given(make(), make(id="b"))
    export_saes("any", "sae-lens", out)
    given(make())
    export_saes("any", "sparsify", out)
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "config.json",
        "export.json",
        "layers.3.mlp",
    ]
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    export_saes("any", "sparsify", out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    (out / ".git").mkdir()
    with pytest.raises(UserError, match=r"is no export \(it holds \.git\)"):
        export_saes("any", "sparsify", out)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="exists and is no export;"):
        export_saes("any", "sae-lens", tmp_path / "file")
    save_sae(make(), tmp_path / "saes" / "a")
    with pytest.raises(UserError, match="is no export \\(it holds a\\)"):
        export_saes("any", "sae-lens", tmp_path / "saes")


def test_a_failure_leaves_what_was_there(tmp_path, make, given, monkeypatch):
    given(make())
    export_saes("any", "sae-lens", tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("saefeat.sae.writers.sae_lens.write_json", full)
    with pytest.raises(OSError):
        export_saes("any", "sae-lens", tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_one_direction_for_other_tools(tmp_path, make, given):
    sae = make()
    given(sae)
    about = export_direction("any", "sae-mlp_out@3:7", tmp_path / "new" / "v.safetensors")
    export_direction("any", "sae-mlp_out@3:7", tmp_path / "v.npy")
    with safe_open(tmp_path / "new" / "v.safetensors", "pt") as file:
        vector, metadata = file.get_tensor("direction"), file.metadata()
    assert torch.equal(vector, sae.W_dec[7]) and vector.dtype == torch.float32
    assert list(metadata) == ["saefeat"] and json.loads(metadata["saefeat"]) == about
    assert (about["site"], about["unit"], about["model"]["name"]) == ("mlp_out@3", 7, "owner/model")
    assert about["norm"] == pytest.approx(float(vector.norm()))
    array = np.load(tmp_path / "v.npy")
    assert array.dtype == np.float32 and np.array_equal(array, vector.numpy())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "v.npy"]


@pytest.mark.parametrize(
    ("feature", "name", "message"),
    [
        ("sae-mlp_out@3", "v.npy", "should be SAE:UNIT, such as sae-mlp_out@3:0"),
        ("sae-mlp_out@3:-1", "v.npy", "should be SAE:UNIT"),
        ("mlp_out@9:1", "v.npy", "any has no SAE mlp_out@9; it has sae-mlp_out@3"),
        ("sae-mlp_out@3:384", "v.npy", "sae-mlp_out@3 has the units 0 to 383, and no 384"),
        ("sae-mlp_out@3:1", "v.txt", r"should end in \.safetensors or \.npy"),
        ("sae-mlp_out@3:1", "old.npy", "exists and is no exported direction"),
        ("sae-mlp_out@3:1", "old.safetensors", "exists and is no exported direction"),
    ],
)
def test_a_direction_that_cannot_be_written_gives_one_sentence_of_error(
    tmp_path, make, given, feature, name, message
):
    given(make())
    before = dict.fromkeys(("old.npy", "old.safetensors"), b"mine")
    for old, data in before.items():
        (tmp_path / old).write_bytes(data)
    with pytest.raises(UserError, match=message) as told:
        export_direction("any", feature, tmp_path / name)
    assert "\n" not in str(told.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == dict.fromkeys(
        ("old.npy", "old.safetensors"), b"mine"
    )


_KEEP = """
from safetensors.torch import save_file
save_file({"x": x.contiguous(), "activations": activations.contiguous()}, "found.safetensors")
"""


@pytest.mark.parametrize(("form", "library"), [("sae-lens", "sae_lens"), ("sparsify", "sparsify")])
def test_the_snippet_of_the_card_runs_and_finds_what_we_find(tmp_path, tiny_run, form, library):
    pytest.importorskip(library)
    export_saes(str(tiny_run), form, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0] + _KEEP
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "out" / "found.safetensors")
    x, activations = found["x"], found["activations"]
    (first, *_) = load_saes(str(tiny_run / "saes"))
    codes = replace(first, dtype="float32").encode(x).values.sum(1)
    assert len(x) > 3
    torch.testing.assert_close(activations.sum(1), codes, rtol=1e-5, atol=1e-5)
