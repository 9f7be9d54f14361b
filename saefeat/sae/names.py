"""Names of base models: which spellings mean the same model.

sae-lens writes the names of TransformerLens. That library has a table of them but takes seconds to
import, so the names that no rule covers are listed here.
"""

from __future__ import annotations

import re

from saefeat.models.loading import EMBEDDED

# What a model was tuned for; a date may follow.
_VARIANT = re.compile(r"(-(pt|it|instruct|base|chat|hf))+(?=(-\d{4}|-v\d+\.\d+)?$)")
# How the weights of a model are stored. Several may follow each other.
_STORED = re.compile(
    r"([-.](unsloth|dynamic|bnb|gptq|awq|hqq|gguf|qat|quantized|torchao|quanto|marlin|mlx"
    r"|autoround|unquantized|(nv|mx)?(fp|nf|int|uint)[48]|[248]-?bit|w\d+a\d+|g\d+|\d+g|q\d([-.][\dkms])*))+$"
)
_VERSION = re.compile(r"-v(\d+\.\d+)$")
# The sizes of Pythia before and after the parameters were counted again.
_SIZES = {
    "19m": "70m", "125m": "160m", "350m": "410m", "800m": "1b",
    "1.3b": "1.4b", "2.7b": "2.8b", "6.7b": "6.9b", "13b": "12b",
}  # fmt: skip
_PYTHIA = re.compile(rf"(?<=^pythia-)({'|'.join(map(re.escape, _SIZES))})(?=-|$)")
_OTHERS = {
    "gpt2": "gpt2-small",
    "distilgpt2": "distillgpt2 distill-gpt2 distil-gpt2 gpt2-xs",
    "gpt-j-6b": "gpt-j gptj",
    "gpt-neo-125m": "gpt-neo-small neo-small neo",
    "gpt-neo-1.3b": "gpt-neo-medium neo-medium",
    "gpt-neo-2.7b": "gpt-neo-large neo-large",
    "gpt-neox-20b": "gpt-neox neox",
    "opt-125m": "opt-small opt",
    "opt-1.3b": "opt-medium",
    "opt-2.7b": "opt-large",
    "opt-6.7b": "opt-xl",
    "opt-13b": "opt-xxl",
    "opt-30b": "opt-xxxl",
    "opt-66b": "opt-xxxxl",
    "pythia-70m": "pythia",
    "pythia-70m-v0": "pythia-v0",
    "codellama-7b": "codellamallama-2-7b",
    "mixtral-8x7b": "mixtral",
    "phi-3-mini-4k": "phi-3",
    "gpt-oss-20b": "gpt-oss",
    "qwen-1-8b": "qwen-1.8b",  # spelled Qwen-1_8B
    "qwq-32b-preview": "qwen-32b-preview",
    "olmo-2-0425-1b": "olmo-2-1b",
    "olmo-2-1124-7b": "olmo-2-7b",
    "olmoe-1b-7b-0924": "olmoe",
    "apertus-8b-2509": "apertus-8b apertus",
    "stablelm-base-alpha-3b": "stablelm-base-3b",
    "stablelm-base-alpha-7b": "stablelm-base-7b",
    "stablelm-tuned-alpha-3b": "stablelm-tuned-3b",
    "stablelm-tuned-alpha-7b": "stablelm-tuned-7b",
    "tinystories-1layer-21m": "tinystories-1l-21m",
    "tinystories-2layers-33m": "tinystories-2l-33m",
    "tinystories-instuct-1layer-21m": "tinystories-instruct-1l-21m",  # so it is spelled
    "tinystories-instruct-2layers-33m": "tinystories-instruct-2l-33m",
    "alias-gpt2-small-x21": "stanford-gpt2-small-a gpt2-mistral-small-a gpt2-stanford-small-a",
    "battlestar-gpt2-small-x49": "stanford-gpt2-small-b gpt2-mistral-small-b",
    "caprica-gpt2-small-x81": "stanford-gpt2-small-c gpt2-mistral-small-c gpt2-stanford-small-c",
    "darkmatter-gpt2-small-x343": "stanford-gpt2-small-d gpt2-mistral-small-d",
    "expanse-gpt2-small-x777": "stanford-gpt2-small-e gpt2-mistral-small-e",
    "arwen-gpt2-medium-x21": "stanford-gpt2-medium-a gpt2-medium-small-a gpt2-stanford-medium-a",
    "beren-gpt2-medium-x49": "stanford-gpt2-medium-b gpt2-medium-small-b gpt2-stanford-medium-b",
    "celebrimbor-gpt2-medium-x81": "stanford-gpt2-medium-c gpt2-medium-small-c",
    "durin-gpt2-medium-x343": "stanford-gpt2-medium-d gpt2-medium-small-d gpt2-stanford-medium-d",
    "eowyn-gpt2-medium-x777": "stanford-gpt2-medium-e gpt2-medium-small-e gpt2-stanford-medium-e",
}
_ALIASES = {alias: name for name, aliases in _OTHERS.items() for alias in aliases.split()}


def hub_name(model: str) -> str:
    """The name on the hub of an embedded model; other names are returned unchanged."""
    return EMBEDDED[model].hub if model in EMBEDDED else model


def is_quantised(model: str) -> bool:
    """Whether a name marks weights in fewer bits (`-bnb-4bit`, `-AWQ`, `-FP8`)."""
    return bool(_STORED.search(_spelled(model)))


def may_be_same(one: str, other: str) -> bool:
    """Whether two names may mean the same base model; a path may be any model."""
    return not _parts(one)[0] or not _parts(other)[0] or are_same(one, other)


def are_same(one: str, other: str) -> bool:
    """Whether two names mean the same base model, or models tuned from it.

    Versions (v0.1) are compared if both names have one. A path is not a known model.
    """
    (name, version), (other_name, other_version) = _parts(one), _parts(other)
    versions_agree = version == other_version or not version or not other_version
    return bool(name) and name == other_name and versions_agree


def _spelled(model: str) -> str:
    return model.strip().rstrip("/").lower().rpartition("/")[2].replace("_", "-")


def _parts(model: str) -> tuple[str, str]:
    """Base name and version. Both are empty for a path."""
    name = hub_name(model.strip()).rstrip("/").lower()
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return "", ""
    name = _VARIANT.sub("", _STORED.sub("", _spelled(name))).removeprefix("meta-")
    found = _VERSION.search(name)
    name = _VERSION.sub("", name).replace("tiny-stories", "tinystories")
    name = _PYTHIA.sub(lambda found: _SIZES[found[0]], name)
    return _ALIASES.get(name, name), found[1] if found else ""
