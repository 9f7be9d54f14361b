"""Qwen-Scope: TopK SAEs of the residual stream, files `layerN.sae.pt` in a repository whose name tells the rest."""

from __future__ import annotations

import re
from pathlib import Path

from saefeat.dictionaries import SAE
from saefeat.io import UserError
from saefeat.sae.formats.tensors import active, canonical, read_weights

FILES = ("layer*.sae.pt",)
_LAYOUT = {"W_enc": "W_enc.T", "W_dec": "W_dec.T", "b_enc": "b_enc", "b_dec": "b_dec"}


def holds(path: Path) -> bool:
    """Whether a file is an SAE of this format."""
    return re.fullmatch(r"layer\d+\.sae\.pt", path.name) is not None and path.is_file()


def read(path: Path) -> SAE:
    """The SAE of a file; raises UserError for one that is damaged, or in folders that do not say what it is."""
    repo = re.search(r"SAE-Res-([^/]+)-W\d+K-L0_(\d+)", path.parent.as_posix())
    if not repo:
        raise UserError(f"{path} does not say what it is: keep the name of its repository, "
                        "such as SAE-Res-Qwen3-1.7B-Base-W32K-L0_50")  # fmt: skip
    found = canonical(read_weights(path), _LAYOUT, path)
    layer, k = re.findall(r"\d+", path.name)[0], int(repo[2])
    return SAE(
        id=f"{repo[0]}-layer{layer}",
        site=f"resid_post@{layer}",
        **found,
        k=active({"k": k}, found["W_enc"].shape[1], path),
        record={
            "model": {"name": f"Qwen/{repo[1]}", "revision": None},
            "module": f"model.layers.{layer}",
            "tokens": {"prepend_bos": True, "context_size": 1024},
        },
        centred=False,
    )
