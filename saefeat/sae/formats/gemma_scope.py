"""SAEs of Gemma Scope 1 (`params.npz`) and 2 (`params.safetensors`).

They are JumpReLU SAEs that do not subtract b_dec.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from saefeat.dictionaries import SAE
from saefeat.io import UserError, kept_json
from saefeat.sae.formats import Format
from saefeat.sae.formats.tensors import read_weights, sae_tensors
from saefeat.sae.formats.values import base_record, check_known, figures

FIRST, SECOND, CFG = "params.npz", "params.safetensors", "config.json"
_BIASES = {"b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
# Both read the output of the feed-forward part after the post-norm, as at mlp_out.
_PLACES = {"res": "resid_post", "mlp": "mlp_out"}
_MODULES = {"output": "resid_post", "post_feedforward_layernorm.output": "mlp_out"}
_NO_SITE = (
    "only SAEs at resid_post and mlp_out can be read, not attention, embeddings or transcoders"
)


def detect(directory: Path) -> bool:
    return (directory / FIRST).is_file() or (directory / SECOND).is_file()


def read(directory: Path) -> SAE:
    first = (directory / FIRST).is_file()
    identity, site, model = (_identify_first if first else _identify_second)(directory)
    l0 = re.fullmatch(r"average_l0_(\d+)", directory.name)
    stated = int(l0[1]) if l0 else kept_json(directory / CFG).get("l0")
    case, path = ("W", directory / FIRST) if first else ("w", directory / SECOND)
    layout = {"W_enc": f"{case}_enc", "W_dec": f"{case}_dec", **_BIASES}
    tensors = read_weights(path)
    if "affine_skip_connection" in tensors:
        raise UserError(f"{path} holds a transcoder: {_NO_SITE}")
    return SAE(
        id=identity,
        site=site,
        **sae_tensors(tensors, layout, path),
        # The path of the module depends on the model.
        record=base_record(model, None, prepend_bos=True, context_size=1024) | figures(l0=stated),
        activation="jumprelu",
        centred=False,
    )


def _identify_first(folder: Path) -> tuple[str, str, str]:
    """Id, site and model of an SAE of Gemma Scope 1.

    Only the path has them: `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`.
    """
    repo = re.search(r"gemma-scope-(\d+b)-(pt|it)-(\w+)", str(folder))
    layer = re.search(r"(?<=/)layer_(\d+)(/.*)?$", folder.as_posix())
    if not repo or (layer is None and "embedding" not in folder.parts):
        raise UserError(
            f"{folder} does not say what it is: keep the names of its repository and folders, "
            "such as gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
        )
    if layer is None or repo[3] not in _PLACES:
        raise UserError(f"{folder}: {_NO_SITE}")
    model = f"google/gemma-2-{repo[1]}" + ("-it" if repo[2] == "it" else "")
    identity = f"{repo[3]}/{layer[0]}".replace("/", "-")
    return identity, f"{_PLACES[repo[3]]}@{layer[1]}", model


def _identify_second(folder: Path) -> tuple[str, str, str | None]:
    """Id, site and model of an SAE of Gemma Scope 2, from `config.json`, else from the path."""
    cfg = kept_json(folder / CFG)
    kind = cfg.get("architecture", "jump_relu")
    check_known("architecture", kind, ["jump_relu"], folder / CFG)
    if cfg.get("hf_hook_point_out") not in (None, cfg.get("hf_hook_point_in")):
        raise UserError(f"{folder / CFG} is of a transcoder: {_NO_SITE}")
    place, layer = _find_place(cfg, folder)
    if place is None:
        raise UserError(
            f"{folder}: {_NO_SITE}; the site is in hf_hook_point_in of {CFG}, or in folders such "
            "as resid_post/layer_17_width_16k_l0_medium"
        )
    return f"{folder.parent.name}-{folder.name}", f"{place}@{layer}", _model(cfg, folder)


def _find_place(cfg: dict[str, Any], folder: Path) -> tuple[str | None, str]:
    """Kind of site, or None, and layer, from the hook in the configuration, else the folders."""
    if (hook := cfg.get("hf_hook_point_in")) is not None:
        match = re.fullmatch(r"(?:\w+\.)*layers\.(\d+)\.(.+)", str(hook))
        return (_MODULES.get(match[2]), match[1]) if match else (None, "")
    layer = re.match(r"layer_(\d+)_", folder.name)
    kind = re.match(r"(resid_post|mlp_out)", folder.parent.name)
    return (kind[1], layer[1]) if layer and kind else (None, "")


def _model(cfg: dict[str, Any], folder: Path) -> str | None:
    repo = re.search(r"gemma-scope-2-(\w+-(?:pt|it))", str(folder))
    name = cfg.get("model_name") or (f"gemma-3-{repo[1]}" if repo else None)
    if name is None:
        return None
    name = str(name).rpartition("/")[2].replace("gemma-v3", "gemma-3")
    # The base model of 270m is named without "-pt" on the hub.
    return f"google/{name.removesuffix('-pt') if '270m' in name else name}"


FORMAT = Format(detect, read, files=(FIRST, SECOND, CFG), conversions=("gemma_2", "gemma_3"))
