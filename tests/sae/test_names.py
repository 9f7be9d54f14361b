"""Names of base models: each in sae-lens's registry is that of its model on the hub alone."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from saefeat.sae.names import is_quantised, may_be_same
from saefeat.sae.releases import _releases

# Of these TransformerLens has its own weights; transformers cannot load them, or they write no
# text.
NOT_OURS = (
    "NeelNanda/",
    "ArthurConmy/",
    "Baidicoot/",
    "facebook/wav2vec2",
    "facebook/hubert",
    "google-bert/",
    "google-t5/",
)


def tables():
    """The official names and their aliases, read from the source: an import takes seconds."""
    found = importlib.util.find_spec("transformer_lens")
    source = Path(found.submodule_search_locations[0]) / "supported_models.py"
    values = {}
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.AnnAssign) and node.target.id in (
            "OFFICIAL_MODEL_NAMES",
            "MODEL_ALIASES",
        ):
            values[node.target.id] = ast.literal_eval(node.value)
    names = [name for name in values["OFFICIAL_MODEL_NAMES"] if not name.startswith(NOT_OURS)]
    return names, {name: values["MODEL_ALIASES"].get(name, []) for name in names}


OFFICIAL, ALIASES = tables()
BY_ALIAS = {alias.lower(): name for name, aliases in ALIASES.items() for alias in [name, *aliases]}
REGISTRY = sorted({release["model"] for release in _releases().values()})
# Of the registry, those that TransformerLens does not know are official names themselves.
HUB = {model: BY_ALIAS.get(model.lower(), model) for model in REGISTRY}


def untuned(name):
    return re.sub(r"-(it|pt|instruct|chat|base|hf)(?=-|$)", "", name.lower())


def test_the_tables_are_those_that_we_think_they_are():
    assert len(REGISTRY) > 30 and len(OFFICIAL) > 150
    assert (HUB["gpt2-small"], HUB["qwen3-0.6b"]) == ("gpt2", "Qwen/Qwen3-0.6B")
    assert all("/" in hub or hub == "gpt2" for hub in HUB.values())


@pytest.mark.parametrize(("model", "hub"), HUB.items())
def test_a_name_of_the_registry_is_of_its_model_and_of_no_other(model, hub):
    assert may_be_same(model, hub) and may_be_same(hub, model)
    taken = [name for name in OFFICIAL if may_be_same(model, name)]
    assert {untuned(name) for name in taken} <= {untuned(hub)}


@pytest.mark.parametrize("official", OFFICIAL)
def test_an_alias_is_of_its_model_and_two_models_of_one_name_differ_in_tuning_alone(official):
    assert all(may_be_same(alias, official) for alias in ALIASES[official])
    taken = [name for name in OFFICIAL if may_be_same(name, official)]
    assert {untuned(name) for name in taken} == {untuned(official)}


@pytest.mark.parametrize(
    ("model", "other"),
    [
        ("gpt2-small", "openai-community/gpt2-medium"),
        ("gpt2-small", "distilbert/distilgpt2"),
        ("pythia-70m", "EleutherAI/pythia-160m"),
        ("pythia-70m", "EleutherAI/pythia-70m-deduped"),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped-v0"),
        ("pythia-2.7b", "EleutherAI/gpt-neo-2.7B"),
        ("gemma-2b", "google/gemma-2-2b"),
        ("gemma-2-2b", "google/gemma-2-9b"),
        ("gemma-2-2b", "google/gemma-3-1b-pt"),
        ("google/gemma-3-1b-pt", "google/gemma-3-4b-pt"),
        ("llama-3-8b", "meta-llama/Llama-3.1-8B"),
        ("meta-llama/Llama-3.1-8B", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
        ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.3"),
        ("mistral-7b", "mistralai/Mixtral-8x7B-v0.1"),
        ("qwen3-1.7b", "Qwen/Qwen3-0.6B"),
        ("Qwen/Qwen3.5-2B-Base", "Qwen/Qwen3-2B-Base"),
        ("tiny-stories-1M", "roneneldan/TinyStories-Instruct-1M"),
    ],
)
def test_another_model_is_another(model, other):
    assert not may_be_same(model, other) and not may_be_same(other, model)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("Qwen/Qwen3-0.6B", False),
        ("openai/gpt-oss-20b", False),
        ("Qwen/Qwen3-0.6B-FP8", True),
        ("x/y-bnb-4bit", True),
    ],
)
def test_a_name_says_whether_weights_are_quantised(name, stored):
    assert is_quantised(name) == stored


@pytest.mark.parametrize(
    ("model", "hub"),
    [
        ("gpt2-small", "openai-community/gpt2"),
        ("pythia-19m", "EleutherAI/pythia-70m"),
        ("llama-3-8b", "meta-llama/Meta-Llama-3-8B-Instruct"),
        ("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.2"),
        ("mistralai/Mistral-7B-v0.2", "mistralai/Mistral-7B-Instruct-v0.2"),
        ("tiny-stories-1L-21M", "roneneldan/TinyStories-1Layer-21M"),
        ("swiss-ai/Apertus-8B-2509", "swiss-ai/Apertus-8B-Instruct-2509"),
        ("/somewhere/model", "gpt2"),
        ("meta-llama/Llama-3.2-3B", "unsloth/Llama-3.2-3B-Instruct-unsloth-bnb-4bit"),
        ("mistralai/Mistral-7B-v0.1", "TheBloke/Mistral-7B-v0.1-AWQ"),
        ("llama-3-8b-instruct", "neuralmagic/Meta-Llama-3-8B-Instruct-FP8-dynamic"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B-FP8"),
        ("google/gemma-3-1b-it", "google/gemma-3-1b-it-qat-q4_0-gguf"),
        ("meta-llama/Llama-3.1-8B-Instruct", "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16"),
        ("Qwen/Qwen3-4B-Instruct-2507", "mlx-community/Qwen3-4B-Instruct-2507-4bit"),
        ("gpt2", ""),
    ],
)
def test_other_spellings_and_what_was_tuned_from_a_model_are_taken(model, hub):
    assert may_be_same(model, hub) and may_be_same(hub, model)
