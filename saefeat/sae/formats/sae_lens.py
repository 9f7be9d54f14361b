"""Directories of sae-lens (`cfg.json`, `sae_weights.safetensors`), our own among them, read without sae-lens."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefeat.dictionaries import NORMALIZATIONS, SAE
from saefeat.io import UserError, kept_json, read_json, tensors_fingerprint
from saefeat.sae.formats import batchtopk
from saefeat.sae.formats.batchtopk import SCALED
from saefeat.sae.formats.tensors import canonical, read_weights, settled, unit_decoder
from saefeat.sae.formats.values import active, encoding_dtype, figures, json_object, positive, text

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_SCALER = "activation_scaler.json"  # beside the weights of a checkpoint of a training
FILES = (CFG, WEIGHTS, _SCALER, batchtopk.RUN)
_COMMON = {"W_enc": "W_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_LAYOUTS = {
    "standard": ("relu", {**_COMMON, "b_enc": "b_enc"}),
    "topk": ("topk", {**_COMMON, "b_enc": "b_enc"}),
    "jumprelu": ("jumprelu", {**_COMMON, "b_enc": "b_enc", "threshold": "threshold"}),
    "gated": ("gated", {**_COMMON, "b_enc": "b_mag", "b_gate": "b_gate", "gain": "r_mag"}),
}
_REFUSED = {
    "transcoder": "it writes at another place than it reads, so its units are no directions of one site",
    "abstopk": "its units fire with negative values",
    "matching_pursuit": "it encodes by iteration",
    "temporal": "its codes depend on the tokens before",
    "batchtopk": "it is a checkpoint of a training, save it with save_inference_model",
}
_PLACES = {
    "hook_mlp_out": "mlp_out",
    "hook_resid_post": "resid_post",
    "hook_out": "resid_post",
    "mlp.hook_post": "mlp_act",
}
_RENAMED = {
    "hook_point": "hook_name",
    "activation_fn_str": "activation_fn",
}  # by sae-lens, before version 6
_OWN = (
    "site",
    "max_norm",
    "dtype",
    "fingerprint",
)  # of our own entry, what is no part of the record
_STATED = ("fvu", "l0", "dead")
# In our own entry, where they are there; parents first.
_KINDS = {
    "site": str,
    "module": str,
    "fingerprint": str,
    "model": dict,
    "model.name": str,
    "model.revision": str,
    "model.fingerprint": str,
    "corpus": dict,
    "corpus.labels": list,
    "policy": dict,
    "training": dict,
    "training.tokens": int,
    "tokens": dict,
    "held_out": dict,
    "training_average": dict,
}
_TOKENS = ("prepend_bos", "exclude_special_tokens", "context_size", "seqpos_slice")


def holds(directory: Path) -> bool:
    """Whether a directory holds an SAE of this format."""
    return (directory / CFG).is_file()


def read(
    directory: Path, overrides: Mapping[str, Any] | None = None, scaling: float | None = None
) -> SAE:
    """The SAE of a directory; raises UserError for one that is damaged or of an architecture without a form here.

    Weights of any size are compared with the fingerprint in our own entry, where that is there. It
    covers all tensors
    of the file and nothing else: a configuration may be edited.

    Args:
        overrides: of its configuration, by a registry.
        scaling: factor of the vectors that it was trained on, where a registry knows it.
    """
    where = directory / CFG
    cfg = _settings(
        {**json_object(read_json(where), where), **(overrides or {})}, where
    )  # before reading gigabytes
    mark = _ours(cfg, where).get("fingerprint")
    if scaling is None:
        scaling = kept_json(directory / _SCALER).get("scaling_factor")
    weights = directory / WEIGHTS
    tensors = read_weights(weights)
    sae = convert(cfg, tensors, where, weights, scaling)
    if mark is not None and mark != tensors_fingerprint(tensors):
        raise UserError(
            f"{weights} is not what was saved with {CFG} (its fingerprint differs); fetch or save it again"
        )
    sae.id = directory.name
    doubt = sae.record.get("doubt") if _ours(cfg, where) else batchtopk.doubt(cfg, sae, directory)
    if doubt:
        sae.record["doubt"] = doubt
        warnings.warn(f"the SAE in {directory}: {doubt}", stacklevel=2)
    return sae


def _ours(cfg: Mapping[str, Any], where: Path | str) -> dict[str, Any]:
    """Our own entry, or {}; raises UserError for one with other things in it than we write.

    Figures that are no numbers are left out, as of other formats.
    """
    entry = cfg.get("saefeat")
    if entry is None:
        return {}
    wrong = _wrong(entry)
    if wrong:
        raise UserError(f"{where}: {wrong} of its saefeat entry is damaged; save the SAE again")
    told = figures(*map(entry.get, _STATED))
    return {
        key: told.get(key, value)
        for key, value in entry.items()
        if key not in _STATED or key in told
    }


def _wrong(entry: Any) -> str | None:
    """What in an entry is of another kind than what we write."""
    if not isinstance(entry, dict):
        return "all"
    for path, kind in _KINDS.items():
        value: Any = entry
        for key in path.split("."):
            value = None if value is None else value.get(key)
        if not isinstance(value, kind | None):
            return path
    norm = entry.get("max_norm")
    if norm is not None and not (type(norm) in (int, float) and 0 < norm < 1e38):
        return f"the max_norm {norm!r}"
    try:  # it is written again when the SAE is exported
        kept = {key: value for key, value in entry.items() if key not in _STATED}
        json.dumps(kept, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return "a value"
    return None


def convert(
    cfg: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    where: Path | str,
    weights: Path | str,
    scaling: float | None = None,
) -> SAE:
    """The SAE of a configuration and a state dict of sae-lens, without an id; raises UserError as `read` does."""
    cfg = _settings(cfg, where)
    activation, layout = _LAYOUTS[cfg["architecture"]]
    if (tensors.get("scaling_factor", torch.ones(1)) != 1).any():
        raise UserError(
            f"{weights}: an SAE with a fine-tuned scaling_factor cannot be read; fold it into W_dec"
        )
    found = canonical(tensors, layout, weights, (cfg["d_in"], cfg["d_sae"]))
    if activation == "gated":
        found["gain"] = found["gain"].exp()
    _fold(found, cfg, where, scaling)
    ours = _ours(cfg, where)
    return SAE(
        id="",
        site=ours.get("site") or hook_site(cfg.get("hook_name"), where),
        **found,
        k=cfg["k"] if activation == "topk" else 0,
        max_norm=ours.get("max_norm"),
        dtype=encoding_dtype(ours.get("dtype") or "float32", where),
        record=_record(cfg, ours),
        activation=activation,
        centred=cfg["apply_b_dec_to_input"],
        normalize=cfg["normalize_activations"],
    )


def _settings(cfg: Mapping[str, Any], where: Path | str) -> dict[str, Any]:
    """One flat configuration of any version, checked: metadata beside the rest, old keys by their new names."""
    metadata = cfg.get("metadata")
    flat: dict[str, Any] = {**(metadata if isinstance(metadata, dict) else {}), **cfg}
    told = {_RENAMED.get(key) or key: value for key, value in flat.items()}
    if metadata is None:  # before version 6
        told.setdefault("architecture", "standard")
        if told.get("activation_fn") == "topk":
            options = told.get("activation_fn_kwargs")
            told["architecture"] = "topk"
            told.setdefault("k", options.get("k") if isinstance(options, dict) else None)
    kind = str(told.get("architecture"))
    if kind not in _LAYOUTS:
        reason = next(
            (why for name, why in _REFUSED.items() if name in kind), "it is not known here"
        )
        raise UserError(
            f"{where}: the SAE architecture {kind} cannot be read: {reason}; "
            f"{', '.join(_LAYOUTS)} can"
        )
    if kind == "standard" and told.get("activation_fn") not in (None, "relu"):
        raise UserError(
            f"{where}: the activation {told['activation_fn']} cannot be read; only relu and topk can"
        )
    for key in ("d_in", "d_sae"):
        positive(told, key, where)
    if kind == "topk":
        active(told, told["d_sae"], where)
    _transforms(told, where)
    return told


def _transforms(told: dict[str, Any], where: Path | str) -> None:
    if told.get("reshape_activations") not in (None, "none"):
        raise UserError(
            f"{where}: an SAE with reshape_activations = {told['reshape_activations']} cannot be read; "
            "only SAEs of whole vectors can"
        )
    given = told.get("normalize_activations")
    if given is None or isinstance(given, bool):  # early versions said yes or no
        given = SCALED if given else "none"
    if given not in (*NORMALIZATIONS, SCALED):
        raise UserError(
            f"{where}: an SAE with normalize_activations = {given} cannot be read; "
            f"fold it into the weights"
        )
    told["normalize_activations"] = given
    for key, usual in (("apply_b_dec_to_input", True), ("rescale_acts_by_decoder_norm", False)):
        value = usual if told.get(key) is None else told[key]
        if not isinstance(value, bool):
            raise UserError(f"{where}: {key} should be true or false, and is {value!r}; correct it")
        told[key] = value


def _fold(
    found: dict[str, Tensor], cfg: dict[str, Any], where: Path | str, scaling: float | None
) -> None:
    """Bring the weights into the model's raw units, with decoder rows of length 1 where units compete by it."""
    if cfg["normalize_activations"] == SCALED:
        if not isinstance(scaling, int | float) or not 0 < scaling < float("inf"):
            raise UserError(
                f"{where}: normalize_activations is {SCALED}, but no {_SCALER} beside it holds the factor; "
                "copy that file from a checkpoint of the training, or write one with "
                '{"scaling_factor": F}, where F is sqrt(d_in) / mean norm of the vectors of the '
                "training"
            )
        cfg["normalize_activations"] = "none"
        found["W_enc"] = settled(found["W_enc"], lambda rows: rows * scaling)
        found["W_dec"] = settled(found["W_dec"], lambda rows: rows / scaling)
        found["b_dec"] = found["b_dec"] / scaling
    if cfg["rescale_acts_by_decoder_norm"]:
        # Selecting and scaling by the decoder's norms equals the same SAE with unit-norm decoder
        # rows.
        unit_decoder(found)
    if _loaded_with(cfg).get("center_writing_weights"):
        if cfg["normalize_activations"] == "constant_norm_rescale":
            raise UserError(
                f"{where}: constant_norm_rescale of a model with center_writing_weights cannot be read; "
                "choose an SAE of the unprocessed model"
            )
        _read_uncentred(found, cfg["apply_b_dec_to_input"])


def _loaded_with(cfg: Mapping[str, Any]) -> dict[str, Any]:
    options = cfg.get("model_from_pretrained_kwargs")
    return options if isinstance(options, dict) else {}


def _read_uncentred(found: dict[str, Tensor], centred: bool) -> None:
    """Let an SAE of a model that writes vectors of mean 0 (`center_writing_weights`) read those of the model itself.

    Subtracting a vector's mean is linear and goes into the encoder; that b_dec then loses its mean
    too is undone in the biases. Reconstructions stay those of the vectors of mean 0.
    """
    mean = found["W_enc"].mean(0, dtype=torch.float32)
    found["W_enc"] = settled(found["W_enc"], lambda rows: rows - mean)
    if centred:
        lost = -found["b_dec"].sum() * mean
        for name, gain in (("b_enc", found.get("gain", torch.ones(1))), ("b_gate", torch.ones(1))):
            if name in found:
                found[name] = found[name] + gain * lost


def hook_site(hook: Any, where: Path | str) -> str:
    """The site of a hook of TransformerLens; a module path stays one. Raises UserError for a hook without a site."""
    if not isinstance(hook, str) or not hook:
        raise UserError(f"{where} names no hook; an SAE must say in hook_name where it reads")
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    if match and match[2] in _PLACES:
        return f"{_PLACES[match[2]]}@{match[1]}"
    if match and match[2] in ("hook_resid_pre", "hook_in") and match[1] != "0":
        return f"resid_post@{int(match[1]) - 1}"
    if "hook_" in hook:
        raise UserError(
            f"{where}: there is no site for the hook {hook}; hook_mlp_out, hook_resid_post, hook_resid_pre "
            "of later blocks, mlp.hook_post and module paths can be read"
        )
    return hook


def _record(cfg: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    if ours:
        return {
            "model": {
                "name": text(cfg.get("model_name")),
                "revision": text(cfg.get("model_revision")),
            },
            **{key: value for key, value in ours.items() if key not in _OWN},
        }
    revision = cfg.get("model_revision") or _loaded_with(cfg).get("revision")
    return {
        "model": {"name": text(cfg.get("model_name")), "revision": text(revision)},
        "module": cfg.get("hook_name"),
        "tokens": {key: cfg[key] for key in _TOKENS if cfg.get(key) is not None},
        **figures(l0=batchtopk.stated_l0(cfg)),
    }
