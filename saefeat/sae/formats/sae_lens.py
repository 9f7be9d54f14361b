"""SAEs of sae-lens (`cfg.json`, `sae_weights.safetensors`), which is saefeat's own format too.

They are read without sae-lens, which takes seconds to import.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefeat.dictionaries import SAE
from saefeat.io import UserError, kept_json, tensors_fingerprint
from saefeat.sae.formats import Format, batchtopk
from saefeat.sae.formats.batchtopk import SCALED
from saefeat.sae.formats.sae_lens_config import LAYOUTS, flatten, hook_site, own_entry
from saefeat.sae.formats.tensors import read_weights, sae_tensors, to_float32, with_unit_decoder
from saefeat.sae.formats.values import base_record, encoding_dtype, figures, read_object

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_SCALER = "activation_scaler.json"  # beside the weights of a checkpoint of a training
_NOT_IN_RECORD = ("site", "max_norm", "dtype", "fingerprint")  # of our own entry
_TOKENS = ("prepend_bos", "exclude_special_tokens", "context_size", "seqpos_slice")


def detect(directory: Path) -> bool:
    return (directory / CFG).is_file()


def read(
    directory: Path, overrides: Mapping[str, Any] | None = None, scaling: float | None = None
) -> SAE:
    """Read an SAE.

    If saefeat wrote it, the weights must have the recorded fingerprint. It covers the tensors
    only, so that the configuration may be edited.

    Args:
        overrides: values of a registry that replace those of the configuration.
        scaling: factor by which vectors were scaled in training, if a registry knows it.
    """
    where, weights = directory / CFG, directory / WEIGHTS
    # Checked before gigabytes are read.
    cfg = flatten({**read_object(where), **(overrides or {})}, where)
    ours = own_entry(cfg, where)
    if scaling is None:
        scaling = kept_json(directory / _SCALER).get("scaling_factor")
    tensors = read_weights(weights)
    sae = _build(directory.name, cfg, tensors, (where, weights), scaling)
    if ours.get("fingerprint") not in (None, tensors_fingerprint(tensors)):
        raise UserError(
            f"{weights} is not what was saved with {CFG} (its fingerprint differs); fetch or save "
            "it again"
        )
    doubt = sae.record.get("doubt") if ours else batchtopk.doubt(cfg, sae, directory)
    if not doubt:
        return sae
    warnings.warn(f"the SAE in {directory}: {doubt}", stacklevel=2)
    return replace(sae, record={**sae.record, "doubt": doubt})


def read_record(directory: Path) -> dict[str, Any]:
    """The record of an SAE, without its weights. Raises UserError if it cannot be read."""
    where = directory / CFG
    cfg = flatten(read_object(where), where)
    return _record(cfg, own_entry(cfg, where))


def convert(identity: str, cfg: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SAE:
    """The SAE of a configuration and a state dict of sae-lens. Raises UserError as `read` does."""
    return _build(identity, flatten(cfg, identity), tensors, (identity, identity), None)


def _build(
    identity: str,
    cfg: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    places: tuple[Path | str, Path | str],
    scaling: float | None,
) -> SAE:
    """The SAE of a flat configuration. `places` name configuration and weights in messages."""
    where, weights = places
    activation, layout = LAYOUTS[cfg["architecture"]]
    if (tensors.get("scaling_factor", torch.ones(1)) != 1).any():
        raise UserError(
            f"{weights}: an SAE with a fine-tuned scaling_factor cannot be read; fold it into W_dec"
        )
    found = sae_tensors(tensors, layout, weights, (cfg["d_in"], cfg["d_sae"]))
    normalize = cfg["normalize_activations"]
    if normalize == SCALED:
        found, normalize = _without_scaling(found, scaling, where), "none"
    if cfg["rescale_acts_by_decoder_norm"]:
        # Multiplying activations by the norms of the decoder rows equals rows of norm 1.
        found = with_unit_decoder(found)
    if cfg["model_from_pretrained_kwargs"].get("center_writing_weights"):
        if normalize == "constant_norm_rescale":
            raise UserError(
                f"{where}: constant_norm_rescale of a model with center_writing_weights cannot be "
                "read; choose an SAE of the unprocessed model"
            )
        found = _reading_uncentred(found, cfg["apply_b_dec_to_input"])
    ours = own_entry(cfg, where)
    return SAE(
        id=identity,
        site=ours.get("site") or hook_site(cfg.get("hook_name"), where),
        **found,
        k=cfg["k"] if activation == "topk" else 0,
        max_norm=ours.get("max_norm"),
        dtype=encoding_dtype(ours.get("dtype") or "float32", where),
        record=_record(cfg, ours),
        activation=activation,
        centred=cfg["apply_b_dec_to_input"],
        normalize=normalize,
    )


def _without_scaling(
    found: Mapping[str, Tensor], scaling: Any, where: Path | str
) -> dict[str, Tensor]:
    """Fold in the factor by which vectors were scaled in training."""
    if not isinstance(scaling, int | float) or not 0 < scaling < float("inf"):
        raise UserError(
            f"{where}: normalize_activations is {SCALED}, but no {_SCALER} beside it holds the "
            "factor; copy that file from a checkpoint of the training, or write one with "
            '{"scaling_factor": F}, where F is sqrt(d_in) / mean norm of the vectors of the '
            "training"
        )
    return {
        **found,
        "W_enc": to_float32(found["W_enc"], lambda rows: rows * scaling),
        "W_dec": to_float32(found["W_dec"], lambda rows: rows / scaling),
        "b_dec": found["b_dec"] / scaling,
    }


def _reading_uncentred(found: Mapping[str, Tensor], centred: bool) -> dict[str, Tensor]:
    """Fold the centring of vectors into the encoder.

    With `center_writing_weights`, TransformerLens changes a model so that it writes vectors of mean
    0. The SAE that is returned reads the vectors of the unchanged model. Subtracting the mean is
    linear, so the encoder can do it; it would also subtract the mean of b_dec, so the biases add
    that back. Reconstructions still have mean 0.
    """
    mean = found["W_enc"].mean(0, dtype=torch.float32)
    out = {**found, "W_enc": to_float32(found["W_enc"], lambda rows: rows - mean)}
    if centred:
        lost = -found["b_dec"].sum() * mean
        out["b_enc"] = found["b_enc"] + found.get("gain", torch.ones(1)) * lost
        if "b_gate" in found:
            out["b_gate"] = found["b_gate"] + lost
    return out


def _record(cfg: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    loading = cfg["model_from_pretrained_kwargs"]
    revision = cfg.get("model_revision") or loading.get("revision")
    tokens = {key: cfg.get(key) for key in _TOKENS}
    theirs = base_record(cfg.get("model_name"), cfg.get("hook_name"), revision, **tokens)
    if ours:
        kept = {key: value for key, value in ours.items() if key not in _NOT_IN_RECORD}
        return {"model": theirs["model"], **kept}
    return theirs | figures(l0=batchtopk.stated_l0(cfg))


FORMAT = Format(detect, read, files=(CFG, WEIGHTS, _SCALER, batchtopk.RUN), conversions=(None,))
