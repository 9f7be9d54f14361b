"""Gemma Scope 1 (`params.npz`) and 2 (`params.safetensors`): JumpReLU SAEs that do not subtract b_dec."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from saefeat.dictionaries import SAE
from saefeat.io import UserError, kept_json
from saefeat.sae.formats.tensors import canonical, read_weights
from saefeat.sae.formats.values import figures

FIRST, SECOND, CFG = "params.npz", "params.safetensors", "config.json"
FILES = (FIRST, SECOND, CFG)
_BIASES = {"b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
_PLACES = {
    "res": "resid_post",
    "mlp": "mlp_out",
}  # in both scopes mlp_out is after the post-norm, as here
_MODULES = {"output": "resid_post", "post_feedforward_layernorm.output": "mlp_out"}
_NO_SITE = (
    "only SAEs at resid_post and mlp_out can be read, not attention, embeddings or transcoders"
)


def holds(directory: Path) -> bool:
    """Whether a directory holds an SAE of these formats."""
    return (directory / FIRST).is_file() or (directory / SECOND).is_file()


def read(directory: Path) -> SAE:
    """The SAE of a directory; raises UserError for one that is damaged, a transcoder, or at a place without a site."""
    first = (directory / FIRST).is_file()
    identity, site, model = (_first if first else _second)(directory)
    l0 = re.fullmatch(r"average_l0_(\d+)", directory.name)
    stated = int(l0[1]) if l0 else kept_json(directory / CFG).get("l0")
    case = "W_{}" if first else "w_{}"
    layout = {"W_enc": case.format("enc"), "W_dec": case.format("dec"), **_BIASES}
    path = directory / (FIRST if first else SECOND)
    tensors = read_weights(path)
    if "affine_skip_connection" in tensors:
        raise UserError(f"{path} holds a transcoder: {_NO_SITE}")
    return SAE(
        id=identity,
        site=site,
        **canonical(tensors, layout, path),
        record={
            "model": {"name": model, "revision": None},
            "module": None,  # its path depends on the model
            "tokens": {"prepend_bos": True, "context_size": 1024},
            **figures(l0=stated),
        },
        activation="jumprelu",
        centred=False,
    )


def _first(folder: Path) -> tuple[str, str, str]:
    """Id, site and model, which only the path tells: `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`."""
    repo = re.search(r"gemma-scope-(\d+b)-(pt|it)-(\w+)", str(folder))
    layer = next(
        (i for i, part in enumerate(folder.parts) if re.fullmatch(r"layer_\d+", part)), None
    )
    if not repo or (layer is None and "embedding" not in folder.parts):
        raise UserError(
            f"{folder} does not say what it is: keep the names of its repository and folders, "
            "such as gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
        )
    if layer is None or repo[3] not in _PLACES:
        raise UserError(f"{folder}: {_NO_SITE}")
    parts = folder.parts[layer:]
    model = f"google/gemma-2-{repo[1]}" + ("-it" if repo[2] == "it" else "")
    return (
        "-".join([repo[3], *parts]),
        f"{_PLACES[repo[3]]}@{parts[0].removeprefix('layer_')}",
        model,
    )


def _second(folder: Path) -> tuple[str, str, str | None]:
    """Id, site and model from `config.json`, and where that is silent from the folders' names."""
    cfg = kept_json(folder / CFG)
    if cfg.get("architecture", "jump_relu") != "jump_relu":
        raise UserError(
            f"{folder / CFG}: the architecture {cfg['architecture']} cannot be read; only jump_relu can"
        )
    if cfg.get("hf_hook_point_out") not in (None, cfg.get("hf_hook_point_in")):
        raise UserError(f"{folder / CFG} is of a transcoder: {_NO_SITE}")
    kind, layer = _hook(cfg) or _folder(folder)
    if kind is None:
        raise UserError(
            f"{folder}: {_NO_SITE}; the site is in hf_hook_point_in of {CFG}, or in folders such as "
            "resid_post/layer_17_width_16k_l0_medium"
        )
    return f"{folder.parent.name}-{folder.name}", f"{kind}@{layer}", _model(cfg, folder)


def _hook(cfg: dict[str, Any]) -> tuple[str | None, str] | None:
    hook = cfg.get("hf_hook_point_in")
    if hook is None:
        return None
    match = re.fullmatch(r"(?:\w+\.)*layers\.(\d+)\.(.+)", str(hook))
    return (_MODULES.get(match[2]), match[1]) if match else (None, "")


def _folder(folder: Path) -> tuple[str | None, str]:
    layer = re.match(r"layer_(\d+)_", folder.name)
    kind = re.match(r"(resid_post|mlp_out)", folder.parent.name)
    return (kind[1], layer[1]) if layer and kind else (None, "")


def _model(cfg: dict[str, Any], folder: Path) -> str | None:
    repo = re.search(r"gemma-scope-2-(\w+-(?:pt|it))", str(folder))
    name = cfg.get("model_name") or (f"gemma-3-{repo[1]}" if repo else None)
    if name is None:
        return None
    name = str(name).rpartition("/")[2].replace("gemma-v3", "gemma-3")
    return f"google/{name.removesuffix('-pt') if '270m' in name else name}"  # the hub has no gemma-3-270m-pt
