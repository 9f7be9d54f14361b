"""Qwen-Scope: TopK SAEs of the residual stream, files `layerN.sae.pt`; `config.json` tells the rest, or the name."""

from __future__ import annotations

import re
from pathlib import Path

from saefeat.dictionaries import SAE
from saefeat.io import UserError, kept_json
from saefeat.sae.formats.tensors import canonical, read_weights
from saefeat.sae.formats.values import active, text

CFG = "config.json"
FILES = ("layer*.sae.pt", CFG)
_KIND, _PLACE = "topk_sae", "resid_post"
_LAYOUT = {"W_enc": "W_enc.T", "W_dec": "W_dec.T", "b_enc": "b_enc", "b_dec": "b_dec"}


def holds(path: Path) -> bool:
    """Whether a file is an SAE of this format."""
    return re.fullmatch(r"layer\d+\.sae\.pt", path.name) is not None and path.is_file()


def read(path: Path) -> SAE:
    """The SAE of a file; raises UserError for one that is damaged, or in folders that do not say what it is."""
    name, model, k = _told(path)
    found = canonical(read_weights(path), _LAYOUT, path)
    layer = re.findall(r"\d+", path.name)[0]
    return SAE(
        id=f"{name}-layer{layer}",
        site=f"resid_post@{layer}",
        **found,
        k=active({"k": k}, found["W_enc"].shape[1], path),
        record={
            "model": {"name": model, "revision": None},
            "module": f"model.layers.{layer}",
            "tokens": {"prepend_bos": True, "context_size": 1024},
        },
        centred=False,
    )


def _told(path: Path) -> tuple[str, str | None, object]:
    """Name, base model and k of the SAEs in a folder, by its configuration, else by the repository's name."""
    where = path.parent / CFG
    cfg = kept_json(where)
    repo = re.search(r"SAE-Res-([^/]+)-W\d+K-L0_(\d+)", path.parent.as_posix())
    if cfg.get("model_type") == _KIND and "k" in cfg:
        if cfg.get("hook_point", _PLACE) != _PLACE:
            raise UserError(
                f"{where}: SAEs of the hook_point {cfg['hook_point']} cannot be read; "
                f"only those of {_PLACE} can"
            )
        return repo[0] if repo else path.parent.name, text(cfg.get("base_model")), cfg["k"]
    if not repo:
        raise UserError(
            f"{path} does not say what it is: keep the {CFG} beside it, or the name of its repository, "
            "such as SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
        )
    return repo[0], f"Qwen/{repo[1]}", int(repo[2])
