"""How an SAE is written for other libraries: the configuration and the weights of sae-lens and of sparsify."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from saefeat.dictionaries import SAE
from saefeat.io import UserError, tensors_fingerprint, write_json
from saefeat.sae.formats import sae_lens, sparsify
from saefeat.sae.names import on_hub

FORMATS = ("sae-lens", "sparsify")
_ARCHITECTURES = {"topk": "topk", "relu": "standard", "jumprelu": "jumprelu", "gated": "gated"}


def check_holds(form: str, sae: SAE) -> None:
    """Raises UserError for an unknown format, or one that cannot hold the SAE."""
    if form not in FORMATS:
        raise UserError(f"unknown format {form}; there are {', '.join(FORMATS)}")
    if form == "sae-lens":
        if sae.activation not in _ARCHITECTURES:
            raise UserError(
                f"sae-lens has no {sae.activation} SAEs, and {sae.id} is one; use --format sparsify"
            )
        return
    reasons = {
        f"is {sae.activation}": sae.activation not in ("topk", "groupmax"),
        "does not subtract it": not sae.centred,
        f"normalises its input ({sae.normalize})": sae.normalize != "none",
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason:
        raise UserError(
            "sparsify holds topk and groupmax SAEs that subtract b_dec and normalise nothing, but "
            f"{sae.id} {reason}; use --format sae-lens"
        )


def write_sae(form: str, sae: SAE, folder: Path) -> None:
    """Write an SAE into a folder that exists, so that the library of that format opens it and encodes equally."""
    if form == "sae-lens":
        _write_sae_lens(sae, folder)
    else:
        _write_sparsify(sae, folder)


def _write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file(
        {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}, path
    )
    path.chmod(0o644)  # safetensors lets nobody else read it


def _write_sae_lens(sae: SAE, folder: Path) -> None:
    tensors = dict(sae.tensors)
    if sae.gain is not None:
        tensors["b_mag"] = tensors.pop("b_enc")
        tensors["r_mag"] = tensors.pop("gain").clamp(min=torch.finfo(torch.float32).tiny).log()
    _write_weights(folder / sae_lens.WEIGHTS, tensors)
    cfg = {
        "architecture": _ARCHITECTURES[sae.activation],
        "d_in": sae.d_in,
        "d_sae": sae.width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.centred,
        "normalize_activations": sae.normalize,
        "reshape_activations": "none",
        "metadata": _sae_lens_metadata(sae, tensors_fingerprint(tensors, torch.float32)),
    }
    if sae.activation == "topk":
        cfg |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    write_json(folder / sae_lens.CFG, cfg)


def _sae_lens_metadata(sae: SAE, mark: str) -> dict[str, Any]:
    record = {key: value for key, value in sae.record.items() if key != "path"}
    model, module = record.get("model") or {}, record.get("module")
    policy: dict[str, Any] = record.get("policy") or {}
    tokens = {
        "context_size": policy.get("token_limit"),
        "exclude_special_tokens": not policy.get("count_bos"),
    }
    hook, name = transformer_lens_hook(sae), model.get("name")
    return {
        "sae_lens_version": "6.0.0",  # of the format; without it sae-lens takes the file for an older one
        "model_name": name and on_hub(name),  # for other libraries; our own entry has it as it is
        "model_revision": model.get("revision"),
        "hook_name": hook or module or sae.site,
        "hf_hook_name": module if module != hook else None,
        **(tokens if policy else {}),
        **(record.get("tokens") or {}),
        "saefeat": {
            **record,
            "site": sae.site,
            "max_norm": sae.max_norm,
            "dtype": sae.dtype,
            "fingerprint": mark,
        },
    }


def transformer_lens_hook(sae: SAE) -> str | None:
    """The name in TransformerLens of the place that an SAE reads; None where it has none, or the model decides it."""
    module = str(sae.record.get("module"))
    if "hook_" in module:
        return module
    kind, _, layer = sae.site.partition("@")
    return f"blocks.{layer}.hook_{kind}" if kind in ("mlp_out", "resid_post") else None


def _write_sparsify(sae: SAE, folder: Path) -> None:
    tensors = {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": sae.b_enc,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    }
    _write_weights(folder / sparsify.WEIGHTS, tensors)
    norms = sae.W_dec.float().norm(dim=1)
    cfg = {
        "activation": sae.activation,
        "normalize_decoder": bool(
            torch.allclose(norms, torch.ones_like(norms), atol=1e-3)
        ),  # in further training
        "num_latents": sae.width,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.d_in,
    }
    write_json(folder / sparsify.CFG, cfg)
