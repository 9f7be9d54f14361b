"""Writes SAEs as `sparsify.SparseCoder.load_from_disk` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from saefeat.dictionaries import SAE
from saefeat.io import UserError, write_json
from saefeat.sae.formats.sparsify import CFG, RUN, WEIGHTS
from saefeat.sae.formats.tensors import write_weights
from saefeat.sae.names import hub_name
from saefeat.sae.writers import Writer


def check(sae: SAE) -> None:
    reasons = {
        f"is {sae.activation}": sae.activation not in ("topk", "groupmax"),
        "does not subtract it": not sae.centred,
        f"normalises its input ({sae.normalize})": sae.normalize != "none",
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason:
        raise UserError(
            "sparsify holds topk and groupmax SAEs that subtract b_dec and normalise nothing, but "
            f"{sae.id} {reason}; choose another format",
            "form",
        )


def write(sae: SAE, directory: Path) -> None:
    tensors = {"encoder.weight": sae.W_enc.T, "encoder.bias": sae.b_enc}
    write_weights(directory / WEIGHTS, {**tensors, "W_dec": sae.W_dec, "b_dec": sae.b_dec})
    norms = sae.W_dec.float().norm(dim=1)
    unit = torch.allclose(norms, torch.ones_like(norms), atol=1e-3)
    cfg = {
        "activation": sae.activation,
        "normalize_decoder": bool(unit),  # in further training
        "num_latents": sae.width,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.d_in,
    }
    write_json(directory / CFG, cfg)


def _summary(model: dict[str, Any], saes: Mapping[str, SAE]) -> dict[str, Any]:
    """The configuration of the whole training, as far as the SAEs record it."""
    record, name = next(iter(saes.values())).record, model.get("name")
    policy, tokens = record.get("policy") or {}, record.get("tokens") or {}
    return {
        "model": name and hub_name(name),
        "revision": model.get("revision"),
        "hookpoints": list(saes),
        "ctx_len": policy.get("token_limit") or tokens.get("context_size"),
    }


WRITER = Writer(
    check,
    write,
    library="sparsify",
    loading="from sparsify import SparseCoder\n\nsae = SparseCoder.load_from_disk({folder})",
    encoding="activations, units = sae.encode(x)[:2]  # [tokens, k] each",
    by_hookpoint=True,
    summary_file=RUN,
    summary=_summary,
)
