"""Writes SAEs as `sae_lens.SAE.load_from_disk` reads them. It is saefeat's own format too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from saefeat.dictionaries import SAE
from saefeat.io import UserError, tensors_fingerprint, write_json
from saefeat.sae.formats.sae_lens import CFG, WEIGHTS
from saefeat.sae.formats.tensors import write_weights
from saefeat.sae.names import hub_name
from saefeat.sae.writers import Writer

_ARCHITECTURES = {"topk": "topk", "relu": "standard", "jumprelu": "jumprelu", "gated": "gated"}


def check(sae: SAE) -> None:
    if sae.activation not in _ARCHITECTURES:
        wrong = f"sae-lens has no {sae.activation} SAEs, and {sae.id} is one"
        raise UserError(f"{wrong}; choose another format", "form")


def write(sae: SAE, directory: Path) -> None:
    tensors = dict(sae.tensors)
    if sae.gain is not None:
        tensors["b_mag"] = tensors.pop("b_enc")
        tensors["r_mag"] = tensors.pop("gain").clamp(min=torch.finfo(torch.float32).tiny).log()
    write_weights(directory / WEIGHTS, tensors)
    cfg = {
        "architecture": _ARCHITECTURES[sae.activation],
        "d_in": sae.d_in,
        "d_sae": sae.width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.centred,
        "normalize_activations": sae.normalize,
        "reshape_activations": "none",
        "metadata": _metadata(sae, tensors_fingerprint(tensors, torch.float32)),
    }
    if sae.activation == "topk":
        cfg |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    write_json(directory / CFG, cfg)


def _metadata(sae: SAE, fingerprint: str) -> dict[str, Any]:
    record = {key: value for key, value in sae.record.items() if key != "path"}
    model, module = record.get("model") or {}, record.get("module")
    policy: dict[str, Any] = record.get("policy") or {}
    tokens = {
        "context_size": policy.get("token_limit"),
        "exclude_special_tokens": not policy.get("count_bos"),
    }
    hook, name = transformer_lens_hook(sae), model.get("name")
    return {
        "sae_lens_version": "6.0.0",  # of the format; without it the file counts as an older one
        "model_name": name and hub_name(name),  # our own entry has the name as it is
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
            "fingerprint": fingerprint,
        },
    }


def transformer_lens_hook(sae: SAE) -> str | None:
    """TransformerLens's name of the place that an SAE reads; None if unknown."""
    module = str(sae.record.get("module"))
    if "hook_" in module:
        return module
    kind, _, layer = sae.site.partition("@")
    hooks = {"mlp_out": "hook_mlp_out", "resid_post": "hook_resid_post"}
    hooks["mlp_hidden"] = "mlp.hook_post"
    return f"blocks.{layer}.{hooks[kind]}" if kind in hooks else None


WRITER = Writer(
    check,
    write,
    library="saelens",
    loading="from sae_lens import SAE\n\nsae = SAE.load_from_disk({folder})",
    encoding="activations = sae.encode(x)  # [tokens, units]",
)
