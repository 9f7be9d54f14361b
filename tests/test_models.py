"""Sites in every family: what is read is what the block adds, and edits change it accordingly."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from helpers import IDS, close, read, watch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import gelu, silu

from saefeat.hooks import capture, intervene, site_width
from saefeat.io import UserError, file_sha256
from saefeat.models import conversion, load_model, resolve_site, wrap

HIDDEN, FFN, LAYERS = 32, 48, 2  # of the models in conftest.py


pytestmark = pytest.mark.usefixtures("no_gradients")


def edited(model, edits, inputs=IDS, special_ids=frozenset(), **more):
    by_path = {resolve_site(model, site).path: edit for site, edit in edits.items()}
    with intervene(model, by_path, special_ids):
        return model(input_ids=inputs, **more).logits


def blocks(model):
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList))


def norm_before_feed_forward(block):
    names = ("pre_feedforward_layernorm", "ln_2", "post_attention_layernorm")
    return next(getattr(block, name) for name in names if hasattr(block, name))


def silence_feed_forward(block):
    """Change weights so that the block's feed-forward part adds nothing."""
    if hasattr(block, "post_feedforward_layernorm"):
        block.post_feedforward_layernorm.weight.fill_(-1)  # Gemma multiplies by 1 + weight
        return
    last = last_projection(block)
    last.weight.zero_()
    if last.bias is not None:
        last.bias.zero_()


def last_projection(block):
    return next(
        getattr(block.mlp, n)
        for n in ("down_proj", "c_proj", "dense_4h_to_h")
        if hasattr(block.mlp, n)
    )


# --------------------------------------------------------------------------- reading


def test_mlp_out_is_exactly_what_the_block_adds_to_the_residual_stream(family, family_model):
    for layer, block in enumerate(blocks(family_model)):
        x_in, x_out = watch(family_model, block)
        if family == "neox-parallel":
            _, attention = watch(family_model, block.attention)
            before = x_in + attention
        else:
            before, _ = watch(family_model, norm_before_feed_forward(block))
        added = read(family_model, f"mlp_out@{layer}")
        close(added, x_out - before, 3e-6)  # a difference of two float32 numbers of some 5
        close(before + added, x_out, 1e-6)
        assert added.abs().mean() > 0.05


def test_in_gemma_the_feed_forward_module_alone_is_not_what_is_added(family, family_model):
    if not family.startswith("gemma"):
        return
    _, output = watch(family_model, blocks(family_model)[1].mlp)
    assert (read(family_model, "mlp_out@1") - output).abs().max() > 0.1


def test_mlp_act_is_the_activation_by_hand_and_gives_the_feed_forward_output(family, family_model):
    for layer, block in enumerate(blocks(family_model)):
        x, output = watch(family_model, block.mlp)
        act = read(family_model, f"mlp_act@{layer}")
        assert act.shape == (*IDS.shape, FFN)
        if hasattr(block.mlp, "gate_proj"):
            function = (
                (lambda z: gelu(z, approximate="tanh")) if family.startswith("gemma") else silu
            )
            close(act, function(block.mlp.gate_proj(x)))
            close(block.mlp.down_proj(act * block.mlp.up_proj(x)), output)
        elif family == "gpt2":
            close(act, gelu(block.mlp.c_fc(x), approximate="tanh"))
            close(block.mlp.c_proj(act), output)
        else:
            close(act, gelu(block.mlp.dense_h_to_4h(x)))
            close(block.mlp.dense_4h_to_h(act), output)


def test_resid_post_of_the_last_layer_through_norm_and_head_gives_the_logits(family, family_model):
    x = read(family_model, f"resid_post@{LAYERS - 1}")
    base = family_model.base_model
    norm = next(getattr(base, n) for n in ("norm", "ln_f", "final_layer_norm") if hasattr(base, n))
    logits = family_model.get_output_embeddings()(norm(x))
    if family == "gemma2":
        cap = family_model.config.final_logit_softcapping
        logits = torch.tanh(logits / cap) * cap
    close(logits, family_model(input_ids=IDS).logits, 1e-5)


def test_resid_post_of_a_layer_is_the_input_of_the_next(family_model):
    x, _ = watch(family_model, blocks(family_model)[1])
    assert torch.equal(read(family_model, "resid_post@0"), x)


def test_the_widths_of_the_sites_are_seen(family_lm):
    widths = [
        site_width(family_lm, family_lm.site(f"{kind}@1"))
        for kind in ("mlp_out", "mlp_act", "resid_post")
    ]
    assert widths == [HIDDEN, FFN, HIDDEN]
    assert family_lm.n_layers == LAYERS


def test_capture_stops_the_forward_pass_after_the_last_site(family_model):
    reached = []
    handles = [
        b.register_forward_hook(lambda *_args, i=i: reached.append(i))
        for i, b in enumerate(blocks(family_model))
    ]
    try:
        read(family_model, "mlp_act@0", "mlp_out@0")
    finally:
        for handle in handles:
            handle.remove()
    assert reached == []


# --------------------------------------------------------------------------- writing


def test_zeroing_mlp_out_removes_the_addition(family_model):
    silent = copy.deepcopy(family_model)
    silence_feed_forward(blocks(silent)[0])
    logits = edited(family_model, {"mlp_out@0": lambda x, _mask: x * 0})
    close(logits, silent(input_ids=IDS).logits, 1e-5)
    assert (logits - family_model(input_ids=IDS).logits).abs().max() > 0.01


def test_setting_neurons_to_zero_equals_zeroing_their_columns_of_the_projection(
    family, family_model
):
    neurons = [3, 17, 40]

    def ablate(x, _mask):
        return x.index_fill(-1, torch.tensor(neurons), 0.0)

    lesioned = copy.deepcopy(family_model)
    weight = last_projection(blocks(lesioned)[0]).weight
    (weight if family == "gpt2" else weight.t())[neurons] = 0
    logits = edited(family_model, {"mlp_act@0": ablate})
    close(logits, lesioned(input_ids=IDS).logits, 1e-5)
    assert (logits - family_model(input_ids=IDS).logits).abs().max() > 1e-3


def test_adding_to_resid_post_shifts_the_stream_by_that_vector(family_model):
    vector = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(1))
    before, _ = watch(family_model, blocks(family_model)[1])
    path = resolve_site(family_model, "resid_post@0").path
    with intervene(family_model, {path: lambda x, _mask: x + vector}):
        after, _ = watch(family_model, blocks(family_model)[1])
    close(after - before, vector.expand_as(before))


def test_an_edit_of_strength_zero_changes_no_bit(family_model):
    vector = torch.randn(HIDDEN)
    plain = family_model(input_ids=IDS).logits
    for site in ("mlp_out@0", "resid_post@1"):
        assert torch.equal(edited(family_model, {site: lambda x, _mask: x + 0.0 * vector}), plain)


def test_special_positions_and_padding_keep_their_value(tiny_lm):
    ids = torch.tensor([[2, 2, 0, 40, 41], [0, 42, 1, 43, 44]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    path = resolve_site(tiny_lm.model, "mlp_out@0").path
    masks = []

    def edit(x, steps):
        masks.append(steps >= 0)
        return torch.full_like(x, 7.0)

    with intervene(tiny_lm.model, {path: edit}, tiny_lm.special_ids):
        _, out = watch_masked(tiny_lm.model, path, ids, mask)
    expected = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 0, 1, 0]]).bool()
    assert torch.equal(masks[0], expected)
    assert torch.equal((out == 7).all(-1), expected)


def watch_masked(model, path, ids, mask):
    seen = []
    handle = model.get_submodule(path).register_forward_hook(
        lambda _m, a, out: seen.append((a[0], out))
    )
    try:
        model(input_ids=ids, attention_mask=mask)
    finally:
        handle.remove()
    return seen[0]


def test_every_decoded_step_is_edited_with_the_cache_on(family_model):
    path = resolve_site(family_model, "mlp_out@1").path
    vector = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(2))
    lengths, edits = [], []

    def edit(x, steps):
        lengths.append(x.shape[1])
        edits.append(bool((steps >= 0).all()))
        return x + 3 * vector

    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    with intervene(family_model, {path: edit}):
        cached = family_model.generate(IDS, attention_mask=torch.ones_like(IDS), **options)
        assert lengths == [7, 1, 1, 1, 1, 1] and all(edits)
        again = family_model.generate(
            IDS, attention_mask=torch.ones_like(IDS), use_cache=False, **options
        )
    assert torch.equal(cached, again)


def test_a_special_token_that_is_decoded_is_edited(tiny_lm):
    model = tiny_lm.model
    path = resolve_site(model, "mlp_out@0").path
    masks = []

    def edit(x, steps):
        masks.append((steps >= 0).tolist())
        return x

    past = model(input_ids=IDS[:1], use_cache=True).past_key_values
    with intervene(model, {path: edit}, tiny_lm.special_ids):
        model(input_ids=torch.tensor([[1]]), attention_mask=torch.ones(1, 8), past_key_values=past)
        model(
            input_ids=torch.tensor([[1]]), attention_mask=torch.ones(1, 1)
        )  # a prompt of one token is a prompt
    assert masks == [[[True]], [[False]]]


# --------------------------------------------------------------------------- hooks that go wrong


def hook_count(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_removed_after_exceptions(tiny_lm):
    before = hook_count(tiny_lm.model)
    path = resolve_site(tiny_lm.model, "mlp_out@0").path

    def broken(_x, _mask):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), intervene(tiny_lm.model, {path: broken}):
        tiny_lm.model(input_ids=IDS)
    with pytest.raises(AttributeError), intervene(tiny_lm.model, {path: broken, "no.such": broken}):
        pass
    with pytest.raises(KeyError), capture(tiny_lm.model, (path,)):
        raise KeyError
    with pytest.raises(AttributeError), capture(tiny_lm.model, (path, "no.such")):
        pass
    assert hook_count(tiny_lm.model) == before


def test_a_hook_that_never_fires_is_an_error_that_names_the_path(make_lm):
    lm = make_lm()
    lm.model.model.layers[0].unused = nn.Linear(2, 2)
    site = lm.site("model.layers.0.unused")
    with pytest.raises(UserError, match=r"model\.layers\.0\.unused"):
        site_width(lm, site)
    with pytest.raises(UserError, match=r"model\.layers\.0\.unused"):
        read(lm.model, "mlp_out@0", "layers.0.unused")


def test_a_second_pass_does_not_pass_off_the_first_ones_vectors(make_lm):
    lm = make_lm()
    path = resolve_site(lm.model, "mlp_out@1").path
    with capture(lm.model, (path,)) as captured:
        captured.run(lm.model, input_ids=IDS)
        lm.model.model.layers = nn.ModuleList([lm.model.model.layers[0]])
        lm.model.config.num_hidden_layers = 1
        with pytest.raises(UserError, match="did not fire"):
            captured.run(lm.model, input_ids=IDS)


def test_an_explicit_path_works_with_and_without_the_base_models_prefix(tiny_lm):
    full, short = tiny_lm.site("model.layers.1.mlp.up_proj"), tiny_lm.site("layers.1.mlp.up_proj")
    assert full.path == short.path == "model.layers.1.mlp.up_proj"
    assert full.layer == short.layer == 1
    assert (full.name, short.name) == ("model.layers.1.mlp.up_proj", "layers.1.mlp.up_proj")
    _, expected = watch(tiny_lm.model, tiny_lm.model.model.layers[1].mlp.up_proj)
    assert torch.equal(read(tiny_lm.model, short.name), expected)


@pytest.mark.parametrize(
    "name", ["layers.1.mlp", "h.1.mlp", "model.layers.1.mlp", "transformer.h.1.mlp"]
)
def test_a_block_is_found_by_another_models_path_of_it(make_lm, name):
    site = make_lm("gpt2").site(name)
    assert (site.name, site.path, site.layer) == (name, "transformer.h.1.mlp", 1)
    assert make_lm("gpt2").site("layers.0").path == "transformer.h.0"
    assert make_lm("neox-parallel").site(name).path == "gpt_neox.layers.1.mlp"


@pytest.mark.parametrize(
    "name", ["layers.1.mlp", "model.layers.1.mlp", "language_model.layers.1.mlp"]
)
def test_a_block_of_the_text_part_of_a_model_that_sees_is_found(name):
    text = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert resolve_site(model, name).path == "model.language_model.layers.1.mlp"
    with pytest.raises(UserError, match=r"unknown site layers\.4"):
        resolve_site(model, "layers.4")


@pytest.mark.parametrize(
    "name", ["mlp_out", "mlp_out@", "mlp_out@x", "mlp_in@0", "model.layers.7", "", "mlp_out@-1"]
)
def test_an_unknown_site_is_a_user_error_that_names_it(tiny_lm, name):
    with pytest.raises(UserError, match="unknown site " + name):
        tiny_lm.site(name)


@pytest.mark.parametrize("kind", ["mlp_out", "mlp_act", "resid_post"])
def test_a_layer_out_of_range_is_a_user_error_that_names_the_layers_there_are(family_model, kind):
    with pytest.raises(UserError, match=f"{kind}@2.*0 to 1"):
        resolve_site(family_model, f"{kind}@2")


def test_an_unknown_family_works_with_an_explicit_path_only():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(300, 8)
            self.stack = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

        def forward(self, input_ids):
            x = self.embed(input_ids)
            for layer in self.stack:
                x = x + layer(x)
            return x

    odd = Odd()
    assert torch.equal(read(odd, "stack.0"), odd.stack[0](odd.embed(IDS)))
    with pytest.raises(UserError, match="module path"):
        resolve_site(odd, "mlp_out@0")


# --------------------------------------------------------------------------- loading


def test_a_saved_model_loads_with_the_same_weights_and_tokens(family, save_lm, make_lm, tmp_path):
    original = make_lm(family, 3)
    lm = load_model(str(save_lm(tmp_path / "m", family, 3)), dtype="float32", device="cpu")
    assert (lm.prefix, lm.suffix, lm.dtype) == ([0], [], "float32")
    assert lm.fingerprint == original.fingerprint
    assert lm.special_ids >= {0, 1, 2}  # Qwen's tokenizer class adds one of its own
    assert torch.equal(lm.model(input_ids=IDS).logits, original.model(input_ids=IDS).logits)
    assert not lm.model.training and not any(p.requires_grad for p in lm.model.parameters())


def test_the_fingerprint_knows_the_weights_and_not_the_dtype(make_lm, tokenizer):
    lm = make_lm("llama", 0)
    half = wrap(copy.deepcopy(lm.model).to(torch.bfloat16).float(), tokenizer, "x")
    rounded = wrap(copy.deepcopy(half.model).to(torch.bfloat16), tokenizer, "x")
    assert half.fingerprint == rounded.fingerprint
    assert make_lm("llama", 1).fingerprint != lm.fingerprint


def test_tokens_are_cut_at_the_limit_and_no_special_token_is_added(tiny_lm):
    assert tiny_lm.tokenize([], 4) == []
    rows = tiny_lm.tokenize(["xyz", "q" * 1000], 4)
    assert [len(row) for row in rows] == [3, 4]
    assert tiny_lm.special_ids.isdisjoint(rows[0] + rows[1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{tmp}/nothing", "does not exist"),
        ("./nothing-here", "does not exist"),
        ("{tmp}", "holds no model"),
        ("{tmp}/none.gguf", "does not exist"),
        ("embedded:gemma-9", "unknown embedded model"),
        ("a/b/c", "neither a directory"),
        ("", "the model has an empty name"),
        ("~no-such-user/x", 'cannot expand "~" in ~no-such-user/x: there is no such user'),
        (f"{'x' * 300}.gguf", "does not exist"),
        (
            "someone/no-such-model",
            "someone/no-such-model is neither a directory here nor complete in the hub's cache",
        ),
    ],
)
def test_a_model_that_cannot_be_loaded_is_a_user_error(tmp_path, monkeypatch, name, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message):
        load_model(name.format(tmp=tmp_path), dtype="float32", device="cpu")


def test_without_a_network_the_hub_is_asked_once_and_the_message_says_what_to_do(tmp_path):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    program = (
        "import time; paused = []; time.sleep = paused.append\n"
        "from saefeat.cli import main\n"
        "try: main()\n"
        "finally: print(sum(paused))"
    )  # the client's own attempts pause for 23 seconds
    result = subprocess.run(
        [sys.executable, "-c", program, "sites", "own/nope"],
        capture_output=True,
        text=True,
        env={**os.environ, **nowhere},
    )
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert float(result.stdout) < 1
    assert re.search(
        r"the hub cannot be reached \(.*refused.*\); check the name and the network, or",
        result.stderr,
    )


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "removed"])
def test_a_damaged_model_directory_is_a_user_error(save_lm, tmp_path, name, damage):
    directory = save_lm(tmp_path / "m")
    file = directory / name
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if damage == "cut" else b"")
    with pytest.raises(UserError, match=r"cannot load the model|holds no model"):
        load_model(str(directory), dtype="float32", device="cpu")


def test_a_model_that_lacks_a_weight_is_a_user_error_not_a_random_weight(save_lm, tmp_path):
    directory = save_lm(tmp_path / "m")
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack model\.layers\.1\.mlp\.down_proj\.weight"):
        load_model(str(directory), dtype="float32", device="cpu")


@pytest.mark.parametrize(
    "data", [b"not a model at all" * 10, b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\1\0\0\0" * 3]
)
def test_a_gguf_file_that_is_none_or_is_cut_is_a_user_error(tmp_path, monkeypatch, data):
    monkeypatch.setenv("SAEFEAT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "junk.gguf"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"junk\.gguf"):
        load_model(str(path), dtype="float32", device="cpu")
    assert list((tmp_path / "cache" / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("dtype", "device"),
    [("float8", "cpu"), ("float32", "nonsense"), ("float32", "cuda:99"), ("auto", "meta")],
)
def test_an_unknown_dtype_or_device_is_a_user_error(tmp_path, dtype, device):
    with pytest.raises(UserError, match=f"the dtype {dtype} is unknown|the device {device} cannot"):
        load_model(str(tmp_path), dtype=dtype, device=device)


# --------------------------------------------------------------------------- the cache of converted
# models


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A GGUF stand-in and the number of its conversion."""
    calls = []

    def convert(files: list[Path], out: Path, done: Callable[[], object]) -> None:
        calls.append(files)
        (out / "config.json").write_text("{}")
        (out / "model.safetensors").write_bytes(b"weights of " + files[0].read_bytes())

    monkeypatch.setenv("SAEFEAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(conversion, "_convert", convert)
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"first")
    return gguf, calls


def test_a_gguf_file_is_converted_once_and_again_when_it_changes(converter):
    gguf, calls = converter
    first = conversion.convert(gguf, "m")
    assert conversion.convert(gguf, "m") == first and len(calls) == 1
    gguf.write_bytes(b"second")
    second = conversion.convert(gguf, "m")
    assert second != first and len(calls) == 2
    assert (second / "model.safetensors").read_bytes() == b"weights of second"


@pytest.mark.parametrize(
    "damage",
    [
        "cut",
        "changed",
        "removed",
        "no record",
        "bad record",
        "record of another kind",
        "record of an earlier version",
    ],
)
def test_a_damaged_converted_model_is_rebuilt(converter, damage):
    gguf, calls = converter
    target = conversion.convert(gguf, "m")
    weights, record = target / "model.safetensors", target / "saefeat.json"
    good = file_sha256(weights)
    {
        "cut": lambda: weights.write_bytes(weights.read_bytes()[:-1]),
        "changed": lambda: weights.write_bytes(b"Weights of first"),
        "removed": weights.unlink,
        "no record": record.unlink,
        "bad record": lambda: record.write_text('{"files": '),
        "record of another kind": lambda: record.write_text('{"files": []}'),
        "record of an earlier version": lambda: record.write_text(
            record.read_text().replace("complete", "x")
        ),
    }[damage]()
    assert conversion.convert(gguf, "m") == target
    assert len(calls) == 2 and file_sha256(weights) == good
    assert [p.name for p in target.parent.iterdir()] == [target.name]


def test_a_conversion_that_another_process_finished_first_is_taken(converter, monkeypatch):
    gguf, _ = converter
    convert, inodes = conversion._convert, []

    def while_another_does(source, out, done):
        monkeypatch.setattr(conversion, "_convert", convert)
        inodes.append(conversion.convert(source[0], "m").stat().st_ino)
        convert(source, out, done)

    monkeypatch.setattr(conversion, "_convert", while_another_does)
    target = conversion.convert(gguf, "m")
    assert [target.stat().st_ino] == inodes  # it stays where the other may be reading it
    assert [p.name for p in target.parent.iterdir()] == [target.name]


def test_an_interrupted_conversion_leaves_nothing_behind(converter, monkeypatch):
    gguf, _ = converter

    def interrupted(_files: list[Path], out: Path, _done: Callable[[], object]) -> None:
        (out / "half").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            conversion.convert(gguf, "m")
    assert list((conversion.cache_dir() / "models").iterdir()) == []
    assert (conversion.convert(gguf, "m") / "model.safetensors").exists()
