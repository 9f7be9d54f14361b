"""Check configurations of sae-lens of any version, and the entry that saefeat adds to them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from saefeat.dictionaries import NORMALIZATIONS
from saefeat.io import UserError
from saefeat.sae.formats.batchtopk import SCALED
from saefeat.sae.formats.values import active, check_known, figures, positive
from saefeat.schema import checked

_COMMON = {"W_enc": "W_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
# Architecture -> (activation, names of the tensors in the file).
LAYOUTS = {
    "standard": ("relu", {**_COMMON, "b_enc": "b_enc"}),
    "topk": ("topk", {**_COMMON, "b_enc": "b_enc"}),
    "jumprelu": ("jumprelu", {**_COMMON, "b_enc": "b_enc", "threshold": "threshold"}),
    "gated": ("gated", {**_COMMON, "b_enc": "b_mag", "b_gate": "b_gate", "gain": "r_mag"}),
}
_REFUSED = {
    "transcoder": "it writes at another place than it reads",
    "abstopk": "its units fire with negative values",
    "matching_pursuit": "it encodes by iteration",
    "temporal": "its codes depend on the tokens before",
    "batchtopk": "it is a checkpoint of a training, save it with save_inference_model",
}
_PLACES = {
    "hook_mlp_out": "mlp_out",
    "hook_resid_post": "resid_post",
    "hook_out": "resid_post",
    "mlp.hook_post": "mlp_hidden",  # gated, where the feed-forward part has a gate
}
# Names before version 6 -> names now.
_RENAMED = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
_STATED = ("fvu", "l0", "dead")
_KEPT = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


@with_config(_KEPT)
class _Training(TypedDict, total=False):
    tokens: int | None


@with_config(_KEPT)
class _Entry(TypedDict, total=False):
    """Our own entry. Its other keys are part of the SAE's record and are not checked."""

    site: str | None
    module: str | None
    fingerprint: str | None
    max_norm: Annotated[float, Field(gt=0, lt=1e38)] | None
    model: dict[str, str | None] | None
    corpus: dict[str, str | list[str]] | None
    policy: dict[str, Any] | None
    training: _Training | None
    tokens: dict[str, Any] | None
    held_out: dict[str, Any] | None
    training_average: dict[str, Any] | None


def own_entry(cfg: Mapping[str, Any], where: Path | str) -> dict[str, Any]:
    """The entry that saefeat wrote, without figures that are not numbers; {} if there is none.

    Raises UserError for an entry that saefeat would not write.
    """
    entry = cfg.get("saefeat")
    if entry is None:
        return {}
    known = isinstance(entry, dict)
    others = {key: entry[key] for key in entry if key not in _STATED} if known else entry
    checked(dict[str, _Entry], {"saefeat": others}, Path(where))
    kept = figures(*map(entry.get, _STATED))
    return {key: kept.get(key, entry[key]) for key in entry if key in kept or key in others}


def flatten(cfg: Mapping[str, Any], where: Path | str) -> dict[str, Any]:
    """Convert a configuration of any version to today's keys, with its metadata among them.

    Raises UserError for values that sae-lens does not write, or that cannot be read.
    """
    metadata = cfg.get("metadata")
    merged = {**(metadata if isinstance(metadata, dict) else {}), **cfg}
    flat = {_RENAMED.get(key) or key: value for key, value in merged.items()}
    if metadata is None:  # before version 6
        flat.setdefault("architecture", "standard")
        if flat.get("activation_fn") == "topk":
            options = flat.get("activation_fn_kwargs")
            flat["architecture"] = "topk"
            flat.setdefault("k", options.get("k") if isinstance(options, dict) else None)
    for key in ("model_from_pretrained_kwargs", "training_architecture_details"):
        flat[key] = flat[key] if isinstance(flat.get(key), dict) else {}
    _check_architecture(flat, where)
    for key in ("d_in", "d_sae"):
        positive(flat, key, where)
    if flat["architecture"] == "topk":
        active(flat, flat["d_sae"], where)
    return {**flat, **_transforms(flat, where)}


def _check_architecture(flat: Mapping[str, Any], where: Path | str) -> None:
    kind = str(flat.get("architecture"))
    if kind not in LAYOUTS:
        reasons = (why for name, why in _REFUSED.items() if name in kind)
        raise UserError(
            f"{where}: the SAE architecture {kind} cannot be read: "
            f"{next(reasons, 'it is not known here')}; {', '.join(LAYOUTS)} can"
        )
    if kind == "standard":
        check_known("activation", flat.get("activation_fn") or "relu", ("relu", "topk"), where)


def _transforms(flat: Mapping[str, Any], where: Path | str) -> dict[str, Any]:
    """The keys on transforms of input and activations, with defaults filled in."""
    if flat.get("reshape_activations") not in (None, "none"):
        raise UserError(
            f"{where}: an SAE with reshape_activations = {flat['reshape_activations']} cannot be "
            "read; only SAEs of whole vectors can"
        )
    given = flat.get("normalize_activations")
    if given is None or isinstance(given, bool):  # in early versions true or false
        given = SCALED if given else "none"
    if given not in (*NORMALIZATIONS, SCALED):
        raise UserError(
            f"{where}: an SAE with normalize_activations = {given} cannot be read; fold it into "
            "the weights"
        )
    found: dict[str, Any] = {"normalize_activations": given}
    for key, default in (("apply_b_dec_to_input", True), ("rescale_acts_by_decoder_norm", False)):
        value = default if flat.get(key) is None else flat[key]
        if not isinstance(value, bool):
            raise UserError(f"{where}: {key} should be true or false, and is {value!r}; correct it")
        found[key] = value
    return found


def hook_site(hook: Any, where: Path | str) -> str:
    """The site of a hook of TransformerLens, or a module path as it is.

    Raises UserError for a hook that is not at a site.
    """
    if not isinstance(hook, str) or not hook:
        raise UserError(f"{where} names no hook; an SAE must say in hook_name where it reads")
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    if match and match[2] in _PLACES:
        return f"{_PLACES[match[2]]}@{match[1]}"
    if match and match[2] in ("hook_resid_pre", "hook_in") and match[1] != "0":
        return f"resid_post@{int(match[1]) - 1}"
    if "hook_" in hook:
        raise UserError(
            f"{where}: there is no site for the hook {hook}; hook_mlp_out, hook_resid_post, "
            "hook_resid_pre of later blocks, mlp.hook_post and module paths can be read"
        )
    return hook
