"""SAEs of EleutherAI's sparsify: `HOOKPOINT/{cfg.json, sae.safetensors}`.

The hookpoint is a module path. `config.json` beside the hookpoints describes the training.
"""

from __future__ import annotations

import re
from pathlib import Path

from saefeat.dictionaries import SAE
from saefeat.io import UserError, kept_json
from saefeat.sae.formats import Format
from saefeat.sae.formats.tensors import read_weights, sae_tensors
from saefeat.sae.formats.values import active, base_record, check_known, positive, read_object

CFG, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"
_LAYOUT = {"W_enc": "encoder.weight.T", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
_REFUSED = {
    "transcode": "writes at another place than it reads",
    "skip_connection": "adds a linear map of its input, which belongs to none of its units",
    "signed": "fires with negative values",
}


def detect(directory: Path) -> bool:
    if (directory / WEIGHTS).is_file():
        return (directory / CFG).is_file()
    cfg = kept_json(directory / CFG)
    return "num_latents" in cfg or ("expansion_factor" in cfg and "d_sae" not in cfg)


def read(directory: Path) -> SAE:
    where = directory / CFG
    cfg = read_object(where)
    for key, reason in _REFUSED.items():
        if cfg.get(key):
            raise UserError(
                f"{where}: a sparse coder with {key} cannot be read, because it {reason}; choose "
                "another"
            )
    activation = cfg.get("activation") or "topk"
    check_known("activation", activation, ("topk", "groupmax"), where)
    d_in = positive(cfg, "d_in", where)
    d_sae = cfg.get("num_latents") or d_in * positive(cfg, "expansion_factor", where)
    k = active(cfg, positive({"num_latents": d_sae}, "num_latents", where), where)
    if activation == "groupmax" and d_sae % k:
        raise UserError(f"{where}: groupmax needs k {k} to divide the {d_sae} latents; correct it")
    weights = directory / WEIGHTS
    found = sae_tensors(read_weights(weights), _LAYOUT, weights, (d_in, d_sae))
    seed = re.fullmatch(r"seed\d+", directory.name)  # several SAEs at one hookpoint
    hookpoint = directory.parent if seed else directory
    run = kept_json(hookpoint.parent / RUN)
    excluded = run.get("exclude_tokens") or None
    tokens = {"context_size": run.get("ctx_len"), "exclude_token_ids": excluded}
    return SAE(
        id=f"{hookpoint.name}-{directory.name}" if seed else directory.name,
        site=re.sub(r"^(?:layers|h)\.(\d+)$", r"resid_post@\1", hookpoint.name),
        **found,
        k=k,
        record=base_record(run.get("model"), hookpoint.name, run.get("revision"), **tokens),
        activation=activation,
    )


def _hookpoints(directory: Path) -> list[str]:
    named = kept_json(directory / RUN).get("hookpoints")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


FORMAT = Format(
    detect,
    read,
    files=(CFG, WEIGHTS, RUN),
    parent_file=RUN,
    listed=_hookpoints,
    conversions=("sparsify",),
)
