"""SAEs of dictionary_learning: `config.json` of the trainer and `ae.pt`, a state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefeat.dictionaries import SAE
from saefeat.io import UserError, kept_json
from saefeat.sae.formats import Format
from saefeat.sae.formats.tensors import read_weights, sae_tensors, with_unit_decoder
from saefeat.sae.formats.values import (
    active,
    base_record,
    check_known,
    complement,
    figures,
    json_object,
    read_object,
)

CFG, WEIGHTS, EVALUATION = "config.json", "ae.pt", "eval_results.json"
_MATRICES = {"W_enc": "encoder.weight.T", "W_dec": "decoder.weight.T"}
_LINEAR = {**_MATRICES, "b_enc": "encoder.bias"}
_PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
# Class -> (activation, whether b_dec is subtracted from the input, names in the file). BatchTopK
# encodes with its threshold, as its own class does by default.
_CLASSES: dict[str, tuple[str, bool, dict[str, str]]] = {
    "AutoEncoder": ("relu", True, {**_LINEAR, "b_dec": "bias"}),
    "AutoEncoderNew": ("relu", False, {**_LINEAR, "b_dec": "decoder.bias"}),
    "GatedAutoEncoder": (
        "gated",
        True,
        {
            **_MATRICES,
            "b_dec": "decoder_bias",
            "b_enc": "mag_bias",
            "b_gate": "gate_bias",
            "gain": "r_mag",
        },
    ),
    "AutoEncoderTopK": ("topk", True, {**_LINEAR, "b_dec": "b_dec"}),
    "BatchTopKSAE": ("jumprelu", True, {**_LINEAR, "b_dec": "b_dec", "threshold": "threshold"}),
    "MatryoshkaBatchTopKSAE": ("jumprelu", True, _PLAIN),
    "JumpReluAutoEncoder": ("jumprelu", False, _PLAIN),
}


def detect(directory: Path) -> bool:
    trainer = kept_json(directory / CFG).get("trainer")
    named = isinstance(trainer, dict) and "dict_class" in trainer
    return named or (directory / WEIGHTS).is_file()


def read(directory: Path) -> SAE:
    """Read an SAE that encodes as `from_pretrained` of its class does.

    Activations of an `AutoEncoder` are in units of the decoder's norms.
    """
    where = directory / CFG
    cfg = read_object(where)
    trainer = json_object(cfg.get("trainer"), where)
    kind = str(trainer.get("dict_class"))
    check_known("dict_class", kind, _CLASSES, where)
    activation, centred, layout = _CLASSES[kind]
    tensors = read_weights(directory / WEIGHTS)
    found = sae_tensors(tensors, layout, directory / WEIGHTS)
    if kind == "AutoEncoder":
        found = with_unit_decoder(found)
    k = 0
    if activation == "topk":
        settings = {**trainer, **_saved_k(tensors, directory / WEIGHTS)}
        k = active(settings, found["W_enc"].shape[1], where)
    site, buffer = _site(trainer, directory, where), cfg.get("buffer")
    length = buffer.get("ctx_len") if isinstance(buffer, dict) else None
    module = None if "@" in site else site
    record = base_record(trainer.get("lm_name"), module, context_size=length)
    rated = kept_json(directory / EVALUATION)
    explained, alive = rated.get("frac_variance_explained"), rated.get("frac_alive")
    record |= figures(fvu=complement(explained), l0=rated.get("l0"), dead=complement(alive))
    numbered = re.fullmatch(r"trainer_\d+", directory.name)
    return SAE(
        id=f"{directory.parent.name}-{directory.name}" if numbered else directory.name,
        site=site,
        **found,
        k=k,
        record=record,
        activation=activation,
        centred=centred,
    )


def _saved_k(tensors: Mapping[str, Tensor], weights: Path) -> dict[str, int]:
    """The k of the state dict, with which the SAE was trained, if there is one."""
    k = tensors.get("k")
    if k is None or k.numel() != 1:
        return {}
    if k.is_floating_point() or k.is_complex() or k.dtype == torch.bool:
        raise UserError(
            f"{weights}: its k is {k.item()}, which is not a whole number; fetch or save it again"
        )
    return {"k": int(k)}


def _site(trainer: dict[str, Any], folder: Path, where: Path) -> str:
    """The site, from the name of the submodule or a folder; `layer` alone is not enough."""
    named = trainer.get("submodule_name")
    for name in [named] if named else [folder.name, folder.parent.name]:
        match = re.fullmatch(r"(resid_post|mlp_out|mlp)_layer_?(\d+)", str(name))
        if match:
            # Its mlp_out is the module's output, before the norm that follows it in some models.
            resid = match[1] == "resid_post"
            return f"resid_post@{match[2]}" if resid else f"layers.{match[2]}.mlp"
    if named and re.fullmatch(r"\w+(\.\w+)+", str(named)):
        return str(named)
    raise UserError(
        f"{where}: the submodule_name {named} of layer {trainer.get('layer')} names no site; "
        "write resid_post_layer_N or a module path there"
    )


FORMAT = Format(
    detect, read, files=(CFG, WEIGHTS, EVALUATION), conversions=("dictionary_learning_1",)
)
