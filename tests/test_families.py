"""Sites of more families: what is read is what a block adds, whatever its modules are called."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from helpers import IDS, close, read, watch
from torch import nn

from saefeat.hooks import capture, intervene, site_width
from saefeat.io import UserError
from saefeat.lens import neuron_directions, promoted_tokens
from saefeat.models import load_model, load_skeleton, resolve_site, wrap
from saefeat.models.sites import (
    KINDS,
    describe_sites,
    down_projection,
    feed_forward,
    find_layers,
    norm_after,
)

VOCABULARY, HIDDEN, FFN, LAYERS = 300, 32, 48, 2
_BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_GATED = {**_BASE, "intermediate_size": FFN, "num_key_value_heads": 1}
_HEADS = {**_GATED, "head_dim": 16}
_MOE = {**_GATED, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_experts": 4}
_OPT = {**_BASE, "ffn_dim": FFN, "word_embed_proj_dim": HIDDEN}
_FALCON = {**_BASE, "ffn_hidden_size": FFN}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_SEEING = {"text_config": _HEADS, "vision_config": _VISION}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("Gemma", _HEADS),
    "gemma3-seeing": ("Gemma3", {**_SEEING, "mm_tokens_per_image": 4}),
    "opt": ("OPT", _OPT),
    "opt-post-norm": ("OPT", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 24}),
    "bloom": ("Bloom", _BASE),
    "bloom-post-norm": ("Bloom", {**_BASE, "apply_residual_connection_post_layernorm": True}),
    "phi": ("Phi", {**_BASE, "intermediate_size": FFN}),
    "phi3": ("Phi3", _GATED),
    "falcon": ("Falcon", {**_FALCON, "parallel_attn": True}),
    "falcon-40b": ("Falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 1}),
    "falcon-rw": (
        "Falcon",
        {**_FALCON, "parallel_attn": False, "alibi": True, "multi_query": False},
    ),
    "olmo2": ("Olmo2", _GATED),
    "glm4": ("Glm4", _HEADS),
    "mixtral": ("Mixtral", {**_GATED, "num_experts_per_tok": 2, "num_local_experts": 4}),
    "qwen2-moe": ("Qwen2Moe", {**_MOE, "shared_expert_intermediate_size": 24}),
    "qwen3-moe": ("Qwen3Moe", {**_MOE, "head_dim": 16}),
}
MIXTURES = {"mixtral", "qwen2-moe", "qwen3-moe"}
GATED = {"gemma", "gemma3-seeing", "phi3", "olmo2", "glm4"}


def make_config(name: str) -> Any:
    family, options = MODELS[name]
    return getattr(transformers, f"{family}Config")(**options)


def make_model(name: str) -> Any:
    """A random float32 model. Every weight is moved off its initial value, norms and biases too."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(make_config(name)).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape), alpha=0.15)
    return model


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return make_model(name)


@pytest.fixture(scope="module")
def blocks(model):
    return model.get_submodule(find_layers(model))


pytestmark = pytest.mark.usefixtures("no_gradients")


def stream(name, model, block):
    """The residual stream after the feed-forward part was added."""
    if name == "opt-post-norm":  # the norm comes after the addition
        return watch(model, block.final_layer_norm)[0].view(*IDS.shape, HIDDEN)
    return watch(model, block)[1]


def mute(block):
    """Set the weights so that the feed-forward part adds nothing."""
    for name, weight in block.named_parameters():
        if "attn" not in name and any(
            part in name for part in ("down_proj", "dense_4h_to_h", "fc2")
        ):
            weight.zero_()


def test_mlp_out_is_exactly_what_the_feed_forward_part_adds(name, model, blocks):
    sites = [f"{kind}@{layer}" for layer in range(LAYERS) for kind in ("mlp_out", "resid_post")]
    added = read(model, *sites)[::2]
    for layer, block in enumerate(blocks):
        silent = copy.deepcopy(model)
        quiet = silent.get_submodule(find_layers(silent))[layer]
        mute(quiet)
        with_it, without = stream(name, model, block), stream(name, silent, quiet)
        close(
            added[layer], with_it - without, 5e-6
        )  # a difference of two float32 numbers of some 5
        assert added[layer].abs().mean() > 0.01


def test_mlp_act_is_what_the_last_projection_reads(name, model, blocks):
    if name in MIXTURES:
        return
    for layer, block in enumerate(blocks):
        act = read(model, f"mlp_act@{layer}")
        reads = watch(model, down_projection(block))[0]
        reads = reads.view(*IDS.shape, -1)
        if name not in GATED:
            assert torch.equal(act, reads)
            continue
        holder = feed_forward(block)
        if hasattr(holder, "gate_up_proj"):
            gate, up = watch(model, holder.gate_up_proj)[1].chunk(2, -1)
        else:
            gate, up = watch(model, holder.gate_proj)[1], watch(model, holder.up_proj)[1]
        function = getattr(holder, "act_fn", None) or holder.activation_fn
        close(act, function(gate))
        close(act * up, reads)


def test_mlp_hidden_is_what_the_last_projection_reads(name, model, blocks):
    if name in MIXTURES:
        return
    for layer, block in enumerate(blocks):
        hidden = read(model, f"mlp_hidden@{layer}")
        assert torch.equal(hidden, watch(model, down_projection(block))[0].view(*IDS.shape, -1))


@pytest.mark.parametrize("kind", ["mlp_act", "mlp_hidden"])
def test_setting_neurons_to_zero_equals_zeroing_their_columns(name, model, kind):
    if name in MIXTURES:
        return
    neurons = torch.tensor([3, 17, 40])
    lesioned = copy.deepcopy(model)
    down_projection(lesioned.get_submodule(find_layers(lesioned))[0]).weight[:, neurons] = 0
    path = resolve_site(model, f"{kind}@0").path
    with intervene(model, {path: lambda x, _steps: x.index_fill(-1, neurons, 0.0)}):
        logits = model(input_ids=IDS).logits
    close(logits, lesioned(input_ids=IDS).logits, 1e-5)
    assert (logits - model(input_ids=IDS).logits).abs().max() > 1e-4


def test_resid_post_is_the_input_of_the_next_block(model, blocks):
    assert torch.equal(read(model, "resid_post@0"), watch(model, blocks[1])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_generation_with_an_edit_is_the_same_with_and_without_a_cache(name, model, kind):
    if kind in ("mlp_act", "mlp_hidden") and name in MIXTURES:
        return
    path = resolve_site(model, f"{kind}@1").path
    width = next(row["width"] for row in describe_sites(model) if row["site"] == f"{kind}@1")
    vector = 0.5 * torch.randn(width, generator=torch.Generator().manual_seed(2))
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    found = []
    with intervene(model, {path: lambda x, _steps: x + vector}):
        for cached in (True, False):
            found.append(
                model.generate(
                    IDS, attention_mask=torch.ones_like(IDS), use_cache=cached, **options
                )
            )
        edited = model(input_ids=IDS).logits
    assert torch.equal(*found)
    assert (edited - model(input_ids=IDS).logits).abs().max() > 1e-3


def test_neurons_of_experts_are_a_user_error(name, model):
    if name not in MIXTURES:
        return
    with pytest.raises(
        UserError, match=r"mlp_act@1 does not exist: .*\.1\.mlp is a mixture of experts.*mlp_out@1"
    ):
        resolve_site(model, "mlp_act@1")
    refused = {row["site"] for row in describe_sites(model) if row["refused"]}
    assert refused == {f"{kind}@{layer}" for kind in ("mlp_act", "mlp_hidden") for layer in (0, 1)}


def test_a_dense_layer_among_mixtures_has_its_neurons():
    config = make_config("qwen2-moe")
    config.mlp_only_layers = [0]
    mixed = transformers.AutoModelForCausalLM.from_config(config)
    rows = {row["site"]: row for row in describe_sites(mixed)}
    assert (
        rows["mlp_act@0"]["width"] == FFN
        and rows["mlp_act@0"]["module"] == "model.layers.0.mlp.act_fn"
    )
    assert rows["mlp_act@1"]["refused"]


def test_the_blocks_of_the_text_are_found_not_those_of_the_eyes(name, model, blocks):
    assert len(blocks) == LAYERS
    if name == "gemma3-seeing":
        assert find_layers(model) == "model.language_model.layers"
        assert any(len(m) > LAYERS for m in model.modules() if isinstance(m, nn.ModuleList))


@pytest.mark.parametrize(
    ("wrapper", "text", "vision"),
    [("Mistral3", "mistral", "pixtral"), ("Llava", "llama", "clip_vision_model")],
)
def test_the_blocks_of_other_wrappers_are_those_of_the_text_too(wrapper, text, vision):
    parts = {
        "text_config": {**_HEADS, "model_type": text},
        "vision_config": {**_VISION, "model_type": vision},
    }
    config = getattr(transformers, f"{wrapper}Config")(**parts)
    with torch.device("meta"):
        seeing = getattr(transformers, f"{wrapper}ForConditionalGeneration")(config)
    assert find_layers(seeing) == "model.language_model.layers"


def test_a_saved_model_loads_and_its_last_stream_promotes_its_next_token(
    name, model, tokenizer, tmp_path
):
    copy.deepcopy(model).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = load_model(tmp_path, dtype="float32", device="cpu")
    assert torch.equal(lm.model(input_ids=IDS).logits, model(input_ids=IDS).logits)
    bias = getattr(
        model.get_output_embeddings(), "bias", None
    )  # of Phi: no direction of the stream
    best = (model(input_ids=IDS).logits[:, -1] - (0 if bias is None else bias)).argmax(-1)
    last = read(lm.model, f"resid_post@{LAYERS - 1}")[:, -1]
    assert promoted_tokens(lm, last, 1) == [[tokenizer.decode([token])] for token in best.tolist()]


def test_described_widths_are_those_seen_and_need_no_weights(name, model, tokenizer, tmp_path):
    lm = wrap(copy.deepcopy(model), tokenizer, name)
    make_config(name).save_pretrained(tmp_path)
    skeleton = load_skeleton(tmp_path)
    assert all(weight.is_meta for weight in skeleton.parameters())
    rows = describe_sites(skeleton)
    assert rows == describe_sites(model) and len(rows) == len(KINDS) * LAYERS
    for row in rows:
        if not row["refused"]:
            assert row["module"] == lm.site(row["site"]).path
            assert row["width"] == site_width(lm, lm.site(row["site"]))
            if row["kind"] == "mlp_hidden":  # sparsify reads outputs only
                assert row["sparsify"] is None
                assert resolve_site(model, row["module"]).path == row["module"]
            else:
                assert resolve_site(model, row["sparsify"]).path == row["module"]


def first_order_effects(model, layer, units, inputs=IDS):
    """What the block's output gains from each neuron, at real hidden states: [units, tokens, d].

    It is computed by forward-mode differentiation (jvp). Also returns what the norm after them
    gives, [tokens, d], or None. Special tokens, which are outliers, are left out.
    """
    block = model.get_submodule(find_layers(model))[layer]
    down, norm = down_projection(block), norm_after(block)
    text = inputs.flatten() > 2
    hidden, written = (x.flatten(0, -2)[text] for x in watch(model, down, inputs))
    beside, normed = 0.0, None
    if norm is not None:
        reads, normed = (x.flatten(0, -2)[text] for x in watch(model, norm, inputs))
        beside = reads - written  # the residual stream, where the norm comes after the addition
    effects = []
    for unit in units:
        tangent = torch.zeros_like(hidden)
        tangent[:, unit] = 1
        effects.append(
            torch.func.jvp(
                lambda x: (norm or nn.Identity())(down(x) + beside), (hidden,), (tangent,)
            )[1]
        )
    return torch.stack(effects), normed


def check_directions(lm, layer, units):
    """First-order effects are the directions, without what a norm removes along the token."""
    effects, normed = first_order_effects(lm.model, layer, units)
    found = neuron_directions(lm, f"mlp_act@{layer}", units)
    cosines = torch.cosine_similarity(effects, found[:, None], dim=-1)
    assert cosines.mean() > 0.9  # the vector of a token is one of 32 dimensions here
    if normed is None:
        assert cosines.min() > 1 - 1e-6
        return
    norm = norm_after(lm.model.get_submodule(find_layers(lm.model))[layer])
    layer_norm = isinstance(norm, nn.LayerNorm)
    along = normed - norm.bias if layer_norm else normed
    for direction, rows in zip(found, effects, strict=True):
        for effect, token in zip(rows, along, strict=True):
            basis = torch.stack(
                [direction, token, *([norm.weight] if layer_norm else [])], 1
            ).double()
            weights = torch.linalg.lstsq(basis, effect.double()[:, None]).solution
            close(basis @ weights, effect.double()[:, None], 1e-4)
            assert weights[0] > 0


def test_what_a_neuron_writes_is_its_first_order_effect(name, model, tokenizer):
    lm = wrap(copy.deepcopy(model), tokenizer, name)
    if name in MIXTURES:
        with pytest.raises(UserError, match="mixture of experts"):
            neuron_directions(lm, "mlp_act@0", [1])
        return
    plain = norm_after(lm.model.get_submodule(find_layers(lm.model))[0]) is None
    assert plain is (name not in ("gemma3-seeing", "olmo2", "glm4", "opt-post-norm"))
    for layer in range(LAYERS):
        check_directions(lm, layer, [1, 5, 40])


def test_what_a_neuron_writes_in_the_families_of_the_other_tests(family, family_lm):
    for layer in range(LAYERS):
        check_directions(family_lm, layer, [1, 5, 40])


def test_what_neurons_of_the_real_gemma_write_and_promote(gemma):
    lm = gemma
    ids = torch.tensor(
        [
            [
                *lm.prefix,
                *lm.tokenize(["Der alte Leuchtturmwärter sah auf das Meer, and slept."], 32)[0],
            ]
        ]
    )
    units = list(range(0, 2048, 256))
    for layer in (0, 9, 17):
        effects, _ = first_order_effects(lm.model, layer, units, ids)
        directions = neuron_directions(lm, f"mlp_act@{layer}", units)
        assert torch.cosine_similarity(effects, directions[:, None], dim=-1).mean() > 0.95
        columns = (
            down_projection(lm.model.get_submodule(find_layers(lm.model))[layer])
            .weight[:, units]
            .t()
        )
        wanted = [set(row) for row in promoted_tokens(lm, effects[:, 3])]
        shares = [
            sum(
                len(set(row) & want)
                for row, want in zip(promoted_tokens(lm, d), wanted, strict=True)
            )
            / 8
            / len(units)
            for d in (directions, columns)
        ]
        assert shares[0] > 0.7 and shares[0] > shares[1] + 0.3


def test_a_module_whose_output_is_not_a_tensor_is_a_user_error():
    class Pair(nn.Module):
        def forward(self, x):
            return {"x": x}

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.pair = nn.Embedding(VOCABULARY, 4), Pair()

        def forward(self, input_ids):
            return self.pair(self.embed(input_ids))

    odd = Odd()
    with (
        pytest.raises(UserError, match="the output of pair is dict, not a tensor"),
        capture(odd, ("pair",)) as captured,
    ):
        captured.run(odd, input_ids=IDS)
    with (
        pytest.raises(UserError, match="the output of pair is dict, not a tensor"),
        intervene(odd, {"pair": lambda x, _: x}),
    ):
        odd(input_ids=IDS)
