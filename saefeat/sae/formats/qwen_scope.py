"""Qwen-Scope: TopK SAEs of the residual stream, one file `layerN.sae.pt` per layer.

`config.json` beside them has the model and k; without it, the repository's name has them.
"""

from __future__ import annotations

import re
from pathlib import Path

from saefeat.dictionaries import SAE
from saefeat.io import UserError, kept_json
from saefeat.sae.formats import Format
from saefeat.sae.formats.tensors import read_weights, sae_tensors
from saefeat.sae.formats.values import active, base_record, check_known

CFG = "config.json"
_FILES = "layer*.sae.pt"
_KIND, _PLACE = "topk_sae", "resid_post"
_LAYOUT = {"W_enc": "W_enc.T", "W_dec": "W_dec.T", "b_enc": "b_enc", "b_dec": "b_dec"}


def detect(path: Path) -> bool:
    return re.fullmatch(r"layer\d+\.sae\.pt", path.name) is not None and path.is_file()


def read(path: Path) -> SAE:
    name, model, k = _identify(path)
    found = sae_tensors(read_weights(path), _LAYOUT, path)
    layer = re.findall(r"\d+", path.name)[0]
    return SAE(
        id=f"{name}-layer{layer}",
        site=f"resid_post@{layer}",
        **found,
        k=active({"k": k}, found["W_enc"].shape[1], path),
        record=base_record(model, f"model.layers.{layer}", prepend_bos=True, context_size=1024),
        centred=False,
    )


def _identify(path: Path) -> tuple[str, object, object]:
    """Name, base model and k of an SAE, from the configuration or the repository's name."""
    where = path.parent / CFG
    cfg = kept_json(where)
    repo = re.search(r"SAE-Res-([^/]+)-W\d+K-L0_(\d+)", path.parent.as_posix())
    if cfg.get("model_type") == _KIND and "k" in cfg:
        check_known("hook_point", cfg.get("hook_point", _PLACE), [_PLACE], where)
        return repo[0] if repo else path.parent.name, cfg.get("base_model"), cfg["k"]
    if not repo:
        raise UserError(
            f"{path} does not say what it is: keep the {CFG} beside it, or the name of its "
            "repository, such as SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
        )
    return repo[0], f"Qwen/{repo[1]}", int(repo[2])


FORMAT = Format(detect, read, files=(_FILES, CFG), shared_files=_FILES, conversions=("qwen_scope",))
