"""SAE directories in sae-lens format (`cfg.json`, `sae_weights.safetensors`), read and written without sae-lens."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from saefeat.dictionaries import SAE
from saefeat.hooks import site_width
from saefeat.io import UserError, make_dir, read_json, write_json
from saefeat.models import LanguageModel, resolve_site

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_HOOKS = {"hook_mlp_out": "mlp_out", "hook_resid_post": "resid_post"}
_ALIASES = {"gpt2-small": "gpt2"}  # names of TransformerLens, which sae-lens writes
_SHAPES = {"W_enc": ("d_in", "d_sae"), "b_enc": ("d_sae",), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}


def save_sae(sae: SAE, directory: Path) -> None:
    """Write a directory that `sae_lens.SAE.load_from_disk` opens; the whole directory appears at once."""
    make_dir(directory.parent)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
    os.chmod(temporary, 0o755)
    try:
        weights = {name: getattr(sae, name).contiguous().cpu() for name in _SHAPES}
        save_file(weights, temporary / WEIGHTS)
        os.chmod(temporary / WEIGHTS, 0o644)  # safetensors lets nobody else read it
        write_json(temporary / CFG, _config(sae))
        shutil.rmtree(directory, ignore_errors=True)
        os.rename(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _config(sae: SAE) -> dict[str, Any]:
    record = {key: value for key, value in sae.record.items() if key != "path"}
    model = record.get("model", {})
    metadata = {
        "sae_lens_version": "6.0.0",  # of the format; without it sae-lens takes the file for an older one
        "model_name": model.get("name"),
        "model_revision": model.get("revision"),
        "hook_name": record.get("module"),
        "saefeat": {**record, "site": sae.site, "max_norm": sae.max_norm, "dtype": sae.dtype},
    }
    return {
        "architecture": "topk",
        "d_in": sae.d_in,
        "d_sae": sae.width,
        "k": sae.k,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": metadata,
    }


def load_sae(directory: Path, *, dtype: str | None = None) -> SAE:
    """Read a TopK SAE of sae-lens format; raises UserError for anything else, or when it is damaged.

    `dtype` of the products in `encode`: by default the one that the SAE was trained with.
    """
    cfg = read_json(directory / CFG)
    tensors = _weights(directory, cfg)
    metadata = cfg.get("metadata") or {}
    ours = metadata.get("saefeat") or {}
    if cfg.get("rescale_acts_by_decoder_norm"):
        # Selecting and scaling by the decoder's norms equals the same SAE with unit-norm decoder rows.
        norms = tensors["W_dec"].norm(dim=-1)
        tensors["W_enc"] = tensors["W_enc"] * norms
        tensors["b_enc"] = tensors["b_enc"] * norms
        tensors["W_dec"] = tensors["W_dec"] / norms.clamp(min=1e-12)[:, None]
    record = {key: value for key, value in ours.items() if key not in ("site", "max_norm", "dtype")}
    record.setdefault("model", {"name": metadata.get("model_name"), "revision": metadata.get("model_revision")})
    record["path"] = str(directory.resolve())
    site = ours.get("site") or _foreign_site(metadata.get("hook_name"), directory)
    chosen = dtype or ours.get("dtype") or "float32"
    if chosen not in ("float32", "bfloat16"):
        raise UserError(
            f"{directory / CFG}: an SAE cannot encode with the dtype {chosen}; only float32 and bfloat16 can"
        )
    return SAE(directory.name, site, **tensors, k=cfg["k"], max_norm=ours.get("max_norm"), dtype=chosen, record=record)


def _weights(directory: Path, cfg: Any) -> dict[str, torch.Tensor]:
    where = directory / CFG
    if not isinstance(cfg, dict) or cfg.get("architecture") != "topk":
        kind = cfg.get("architecture") if isinstance(cfg, dict) else None
        raise UserError(f"{where}: the SAE architecture {kind} cannot be read yet; only topk can")
    for key in ("d_in", "d_sae", "k"):
        if not isinstance(cfg.get(key), int) or cfg[key] < 1:
            raise UserError(f"{where}: {key} is missing or not a positive number")
    if cfg["k"] > cfg["d_sae"]:
        raise UserError(f"{where}: k {cfg['k']} is greater than d_sae {cfg['d_sae']}")
    wanted = {"apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none"}
    for key, value in wanted.items():
        if cfg.get(key, value) not in (value, None):
            raise UserError(f"{where}: an SAE with {key} = {cfg[key]} cannot be read yet; only {value} can")
    try:
        tensors = load_file(directory / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{directory / WEIGHTS} cannot be read ({str(error).splitlines()[0]})") from error
    for name, axes in _SHAPES.items():
        shape = tuple(cfg[axis] for axis in axes)
        if name not in tensors or tuple(tensors[name].shape) != shape:
            raise UserError(f"{directory / WEIGHTS}: {name} is missing or has not the shape {shape} of its {CFG}")
        if not torch.isfinite(tensors[name]).all():
            raise UserError(f"{directory / WEIGHTS}: {name} holds values that are not finite")
    return {name: tensors[name].float() for name in _SHAPES}


def _foreign_site(hook: Any, directory: Path) -> str:
    match = re.fullmatch(r"blocks\.(\d+)\.(\w+)", hook or "")
    if match and match[2] in _HOOKS:
        return f"{_HOOKS[match[2]]}@{match[1]}"
    if not hook:
        raise UserError(f"{directory / CFG} names no hook; an SAE must say where it reads")
    return hook


def load_saes(sources: list[str] | str, lm: LanguageModel | None = None) -> list[SAE]:
    """Load SAE directories, or folders of them, in natural order; check that they fit the model.

    Raises UserError for a source that holds none, two SAEs of one id, or an SAE of another width or base model.
    """
    saes: list[SAE] = []
    for source in [sources] if isinstance(sources, str) else sources:
        saes += [load_sae(directory) for directory in _directories(source)]
    for sae in saes:
        if sum(other.id == sae.id for other in saes) > 1:
            raise UserError(f"two SAEs are named {sae.id}; rename one of the directories")
        if lm is not None:
            check_fits(sae, lm)
    return saes


def _directories(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if (path / CFG).is_file():
        return [path]
    found = [p for p in path.iterdir() if (p / CFG).is_file() and not p.name.startswith(".")] if path.is_dir() else []
    if not found:
        kind = "holds no SAE (no cfg.json)" if path.is_dir() else "does not exist"
        raise UserError(f"{source} {kind}; give a directory in sae-lens format or a folder of them")
    return sorted(found, key=lambda p: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", p.name)])


def check_fits(sae: SAE, lm: LanguageModel) -> None:
    """Raises UserError when an SAE was made for another model, or for vectors of another width."""
    model = sae.record.get("model") or {}
    wrong = model.get("fingerprint") not in (None, lm.fingerprint)
    if model.get("name") and not model.get("fingerprint"):  # names are all there is to compare
        local = lm.name.startswith("embedded:") or os.path.exists(lm.name)
        wrong = not local and _base_name(str(model["name"])) != _base_name(lm.name)
    if wrong:
        raise UserError(f"the SAE {sae.id} was trained on {model.get('name')}, not on {lm.name}")
    width = site_width(lm, resolve_site(lm.model, sae.site))
    if width != sae.d_in:
        raise UserError(f"the SAE {sae.id} reads vectors of {sae.d_in}, but {sae.site} of {lm.name} has {width}")


def _base_name(model: str) -> str:
    name = model.strip().rstrip("/").rpartition("/")[2].lower()
    return _ALIASES.get(name, name)
