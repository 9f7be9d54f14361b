"""Fingerprints of weights, missing weights, ids without an embedding: models of all kinds."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from saefeat import progress
from saefeat.corpora import Corpus, make_plan
from saefeat.dictionaries import SAE
from saefeat.io import UserError
from saefeat.models import find_layers, load_model, wrap
from saefeat.models.weights import weights_fingerprint

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# --------------------------------------------------------------------------- the fingerprint


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_model_stored_in_float32_is_one_model_in_every_dtype(
    family, family_lm, save_lm, tmp_path, dtype
):
    directory = save_lm(tmp_path / "m", family)
    assert (
        load_model(str(directory), dtype=dtype, device="cpu").fingerprint == family_lm.fingerprint
    )


def test_values_that_one_rounding_moves_and_two_move_further_keep_the_fingerprint():
    # 1 + 2^-8 - 2^-20 is below the middle of two bfloat16 numbers; in float16 it is that middle.
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1 + 2**-8 - 2**-20, -1e-9, -1 - 2**-8 + 2**-20, 0.0]]))
    twice = copy.deepcopy(model).half().bfloat16()
    assert not torch.equal(twice.weight, copy.deepcopy(model).bfloat16().weight)
    assert {weights_fingerprint(copy.deepcopy(model).to(dtype)) for dtype in DTYPES} == {
        weights_fingerprint(twice)
    }


def test_a_little_training_changes_the_fingerprint(make_lm):
    lm = make_lm()
    model = copy.deepcopy(lm.model).requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    ids = torch.tensor([[0, 40, 41, 42, 43, 44]])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert weights_fingerprint(model) != lm.fingerprint


@pytest.mark.parametrize("change", ["sign", "name", "shape"])
def test_the_fingerprint_knows_every_weight(change):
    def make(width=3, name="b"):
        torch.manual_seed(0)
        model = nn.Module()
        model.a, layer = nn.Linear(2, 2), nn.Linear(2, width)
        model.add_module(name, layer)
        return model

    other = make(**{"sign": {}, "name": {"name": "c"}, "shape": {"width": 4}}[change])
    if change == "sign":
        with torch.no_grad():
            other.b.bias[1] *= -1
    assert weights_fingerprint(other) != weights_fingerprint(make())


def test_integers_count_by_their_values():
    def make(values):
        model = nn.Module()
        model.weight = nn.Parameter(torch.tensor(values, dtype=torch.uint8), requires_grad=False)
        return model

    assert weights_fingerprint(make([1, 2])) != weights_fingerprint(make([1, 3]))


class Int8(Tensor):
    """Weights in int8 with one scale per row, in a tensor class without `view`, as torchao's."""

    @staticmethod
    def __new__(cls, values, scale):
        return Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype)  # pyright: ignore

    def __init__(self, values, scale):
        self.values_, self.scale = values, scale

    def dequantize(self, *_):
        return self.values_.to(self.scale.dtype) * self.scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].values_, args[0].scale)
        raise NotImplementedError(f"{func} of Int8")


def test_weights_in_a_tensor_class_of_a_library_are_read_for_what_they_stand_for(make_lm):
    lm = make_lm()
    quantised = copy.deepcopy(lm.model)
    plain = copy.deepcopy(lm.model)
    with torch.no_grad():
        for block, other in zip(quantised.model.layers, plain.model.layers, strict=True):
            weight = block.mlp.up_proj.weight
            scale = weight.abs().amax(1, keepdim=True) / 127
            values = (weight / scale).round().to(torch.int8)
            block.mlp.up_proj.weight = nn.Parameter(Int8(values, scale), requires_grad=False)
            other.mlp.up_proj.weight.copy_(values * scale)
    assert (
        wrap(quantised, lm.tokenizer, "x").fingerprint == wrap(plain, lm.tokenizer, "x").fingerprint
    )


def test_weights_of_an_unknown_tensor_class_are_a_user_error():
    class Closed(Int8):
        dequantize = Tensor.dequantize

    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(
        Closed(torch.ones(2, 2, dtype=torch.int8), torch.ones(2, 1)), requires_grad=False
    )
    with pytest.raises(
        UserError, match=r"the weight weight of the model is held as Closed, which cannot be read"
    ):
        weights_fingerprint(layer)


def test_int8_weights_of_torchao_are_read(make_lm):
    quantization = pytest.importorskip("torchao.quantization")
    lm = make_lm()
    model = copy.deepcopy(lm.model)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert wrap(model, lm.tokenizer, "x").fingerprint not in ("", lm.fingerprint)


@pytest.mark.parametrize("first", ["cpu", "disk"])
def test_weights_that_are_offloaded_to_a_disk_are_read_there(
    family, family_lm, save_lm, tmp_path, first
):
    from transformers import AutoModelForCausalLM

    directory = save_lm(tmp_path / "m", family)
    parts = {name for name, _ in family_lm.model.base_model.named_children()}
    places = {f"{family_lm.model.base_model_prefix}.{name}": first for name in parts}
    places |= {
        name: first for name, _ in family_lm.model.named_children()
    }  # a tied head lies where its weights do
    places.pop(family_lm.model.base_model_prefix)
    blocks = find_layers(family_lm.model)
    places.pop(blocks)
    places |= {f"{blocks}.0": "cpu", f"{blocks}.1": "disk"}
    model = AutoModelForCausalLM.from_pretrained(
        directory, device_map=places, offload_folder=str(tmp_path / "off")
    )
    assert any(weight.is_meta for weight in model.parameters())
    lm = wrap(model, family_lm.tokenizer, "x")
    assert (lm.fingerprint, lm.device) == (family_lm.fingerprint, "cpu")
    assert any(weight.is_meta for weight in model.parameters())  # they are where they were


def test_a_model_without_its_weights_is_a_user_error(make_lm):
    lm = make_lm()
    with pytest.raises(UserError, match="is without data, which cannot be read"):
        wrap(lm.model.to("meta"), lm.tokenizer, "x")


# --------------------------------------------------------------------------- weights that are not
# there


@pytest.fixture(scope="module")
def gguf_of_llama(tmp_path_factory, make_lm):
    """write(folder, shards=1, lacking=None): the tiny Llama as llama.cpp has it."""
    import gguf

    def write(folder: Path, shards=1, lacking=None):
        folder.mkdir(exist_ok=True)
        lm = make_lm()
        weights = lm.model.state_dict()
        writer = gguf.GGUFWriter(
            folder / "tiny.gguf",
            "llama",
            split_max_tensors=-(-len(weights) // shards) * (shards > 1),
        )
        config, tokenizer = lm.model.config, json.loads(lm.tokenizer.backend_tokenizer.to_str())
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        writer.add_tokenizer_model("gpt2")
        vocabulary = sorted(lm.tokenizer.get_vocab().items(), key=lambda pair: pair[1])
        writer.add_token_list([token for token, _ in vocabulary])
        writer.add_token_types([3 if index < 3 else 1 for _, index in vocabulary])
        writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
        for name, weight in weights.items():
            if name == lacking:
                continue
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
            for part, n in heads.items():  # llama.cpp turns the halves of a head into pairs
                if part in name:
                    weight = (
                        weight.reshape(n, 2, -1, weight.shape[1])
                        .swapaxes(1, 2)
                        .reshape(weight.shape)
                    )
            key = names.get_name(name, try_suffixes=(".weight",))
            writer.add_tensor(key, weight.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return sorted(folder.iterdir())

    return write


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEFEAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def opened(path):
    return load_model(str(path), dtype="float32", device="cpu")


def test_shards_of_a_gguf_are_joined(gguf_of_llama, tmp_path, cache, make_lm):
    (whole,) = gguf_of_llama(tmp_path / "whole")
    shards = gguf_of_llama(tmp_path / "shards", 3)
    assert [p.name for p in shards] == [f"tiny-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    marks = {opened(path).fingerprint for path in (whole, shards[0], shards[2])}
    assert marks == {make_lm().fingerprint}
    assert sorted(p.name.rpartition("-")[0] for p in cache.iterdir()) == [
        "tiny",
        "tiny",
    ]  # and nothing else
    one, other = (load_file(p / "model.safetensors") for p in cache.iterdir())
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_conversion_shows_its_progress_and_reads_the_header_once(
    gguf_of_llama, tmp_path, cache, monkeypatch
):
    import gguf

    class Counted(gguf.GGUFReader):
        made = 0

        def __init__(self, *args, **options):
            Counted.made += 1
            super().__init__(*args, **options)

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    (path,) = gguf_of_llama(tmp_path / "whole")
    lines = []
    for _ in range(2):
        load_model(str(path), dtype="float32", device="cpu", say=lines.append)
    assert lines[0].startswith("converting tiny to safetensors")
    steps = [line.partition(" steps, ")[0] for line in lines[1:]]
    assert sorted(set(steps)) == [f"convert tiny: {n} of 4" for n in (1, 2, 3, 4)]
    assert sum(line.startswith("converting") for line in lines) == 1  # then it is there already
    assert Counted.made == 1 and gguf.GGUFReader is Counted


def test_a_gguf_without_all_of_its_shards_is_a_user_error(gguf_of_llama, tmp_path, cache):
    first, second = gguf_of_llama(tmp_path / "shards", 2)
    second.rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(
        UserError, match=r"is one of 2 shards, and tiny-00002-of-00002\.gguf is not beside it"
    ):
        opened(first)
    first.rename(tmp_path / "tiny.gguf")
    with pytest.raises(
        UserError, match=r"tiny\.gguf is one of 2 shards; give all of them the names that they had"
    ):
        opened(tmp_path / "tiny.gguf")
    shutil.copy(tmp_path / "tiny.gguf", tmp_path / "tiny-00001-of-00002.gguf")
    shutil.copy(tmp_path / "tiny.gguf", tmp_path / "tiny-00002-of-00002.gguf")
    with pytest.raises(UserError, match=r"cannot (read|load) .*tiny-00001-of-00002\.gguf"):
        opened(tmp_path / "tiny-00001-of-00002.gguf")
    assert not cache.exists() or not list(cache.iterdir())


def test_a_gguf_that_lacks_a_weight_is_refused_and_not_cached(gguf_of_llama, tmp_path, cache):
    name = "model.layers.1.mlp.down_proj.weight"
    (path,) = gguf_of_llama(tmp_path / "part", lacking=name)
    for _ in range(2):
        with pytest.raises(
            UserError, match=rf"tiny\.gguf as a GGUF model: its weights lack {name}; fetch"
        ):
            opened(path)
    assert list(cache.iterdir()) == []


def test_a_conversion_of_an_earlier_version_is_made_again(gguf_of_llama, tmp_path, cache):
    """Versions before this one cached random weights in the place of those that a file lacks."""
    from saefeat.io import file_sha256, read_json, write_json

    (path,) = gguf_of_llama(tmp_path / "whole")
    mark = opened(path).fingerprint
    (made,) = cache.iterdir()
    weights = load_file(made / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"].normal_()
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    record = read_json(made / "saefeat.json")
    record["files"]["model.safetensors"] = file_sha256(made / "model.safetensors")
    del record["complete"]
    write_json(made / "saefeat.json", record)
    assert opened(path).fingerprint == mark


def test_a_checkpoint_without_one_of_its_shards_is_a_user_error(make_lm, tmp_path):
    lm = make_lm()
    lm.model.save_pretrained(tmp_path / "m", max_shard_size="40KB")
    lm.tokenizer.save_pretrained(tmp_path / "m")
    shards = sorted((tmp_path / "m").glob("model-*.safetensors"))
    assert len(shards) > 1 and opened(tmp_path / "m").fingerprint == lm.fingerprint
    shards[-1].unlink()
    with pytest.raises(UserError, match="cannot load the model") as told:
        opened(tmp_path / "m")
    assert "\n" not in str(told.value)


# --------------------------------------------------------------------------- ids without an
# embedding


@pytest.fixture
def padded(make_lm):
    """A tokenizer with an added [PAD], and a model whose embeddings were never resized."""
    lm = make_lm()
    lm.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert lm.tokenizer.pad_token_id == 300 == lm.embedding_rows
    return wrap(lm.model, lm.tokenizer, "padded")


def test_a_pad_id_beyond_the_embeddings_is_not_given_to_the_model(padded, tiny_lm, tiny_corpus):
    assert (padded.pad_id, tiny_lm.pad_id) == (padded.tokenizer.eos_token_id, 2)
    plan, usual = (make_plan(tiny_corpus, lm, max_tokens=300) for lm in (padded, tiny_lm))
    seen = 0
    for batch, other in zip(
        plan.batches(padded, plan.window(0)), usual.batches(tiny_lm, usual.window(0)), strict=True
    ):
        assert int(batch.input_ids.max()) < padded.embedding_rows
        assert torch.equal(batch.counted, other.counted)
        logits, expected = (
            lm.model(input_ids=b.input_ids, attention_mask=b.attention_mask).logits[b.counted]
            for lm, b in ((padded, batch), (tiny_lm, other))
        )
        assert torch.equal(logits, expected)
        seen += int((batch.attention_mask == 0).sum())
    assert seen > 0


def test_a_text_that_holds_a_token_without_an_embedding_is_read_without_it(padded):
    assert padded.tokenize(["the[PAD] cat"], 16) == padded.tokenize(["the cat"], 16)
    corpus = Corpus(
        ["[PAD]", "der Hund", "the cat"], ["de", "de", "en"], ["0", "1", "2"], ("de", "en"), "few"
    )
    assert make_plan(corpus, padded, split="all").skipped == {"no tokens": 1}


def test_a_tokenizer_of_a_larger_model_is_a_user_error(make_lm, tokenizer):
    lm = make_lm()
    lm.model.resize_token_embeddings(60)
    with pytest.raises(
        UserError, match=r"gives the token 2?[0-9]+, but the model has embeddings of 60 tokens only"
    ):
        wrap(lm.model, tokenizer, "small").tokenize(["the mat"], 16)


def test_prompts_of_several_lengths_are_decoded_without_an_embedding_of_padding(padded, tiny_lm):
    from saefeat.generation import Decoding, generate, perplexities

    rows, greedy = [[0, 40, 41], [0, 50, 51, 52, 53]], Decoding(max_new_tokens=8, temperature=0)
    new = generate(padded, rows, greedy)
    assert new == generate(tiny_lm, rows, greedy)
    assert perplexities(padded, rows, new) == perplexities(tiny_lm, rows, new)


def test_bos_without_an_embedding_is_a_user_error(make_lm, tokenizer):
    lm = make_lm("llama")
    lm.model.resize_token_embeddings(200)
    bare = copy.deepcopy(tokenizer)
    bare.backend_tokenizer.post_processor = TemplateProcessing(
        single="<far> $A", special_tokens=[("<far>", 299)]
    )
    with pytest.raises(
        UserError, match="puts the token 299 around a text, but the model has embeddings of 200"
    ):
        wrap(lm.model, bare, "short")


def test_fingerprints_of_an_older_version_are_distinguished(make_lm, tmp_path):
    from saefeat.models.weights import is_outdated
    from saefeat.sae.store import load_saes, save_sae

    lm = make_lm()
    assert (
        not is_outdated(lm.fingerprint)
        and not is_outdated(None)
        and is_outdated("04b24b0674fd5446")
    )
    rows = torch.randn(8, 32)
    sae = SAE(
        "sae",
        "mlp_out@0",
        rows.t().contiguous(),
        torch.zeros(8),
        rows,
        torch.zeros(32),
        k=2,
        record={"model": {"name": lm.name, "fingerprint": "04b24b0674fd5446"}},
    )
    save_sae(sae, tmp_path / "sae")
    assert (
        load_saes(str(tmp_path / "sae"), lm)[0].width == 8
    )  # by its name, as an SAE without a fingerprint
