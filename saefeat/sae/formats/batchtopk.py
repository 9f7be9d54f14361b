"""Checks of SAEs that sae-lens trained with BatchTopK and saved as JumpReLU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefeat.dictionaries import SAE
from saefeat.io import kept_json

SCALED = "expected_average_only_in"  # in training, vectors were multiplied by one factor
# Configuration of the training: beside the SAE, or one level above if several were trained.
RUN = "runner_cfg.json"
_REPAIRED = (6, 54, 9)  # first version of sae-lens that saves correct thresholds
_ROWS = 64  # rows of a decoder that show whether all have norm 1


def doubt(cfg: Mapping[str, Any], sae: SAE, directory: Path) -> str | None:
    """Why the thresholds of an SAE are or may be wrong; None if nothing suggests it.

    Before 6.54.9, sae-lens saved wrong thresholds for BatchTopK SAEs that were trained on scaled
    vectors and compare activations times the norms of the decoder rows: the scale was folded into
    the rows, but not into the threshold (issue 763 of sae-lens). `cfg` is the flat configuration.
    """
    version = tuple(map(int, re.findall(r"\d+", str(cfg.get("sae_lens_version")))[:3]))
    if sae.threshold is None or not (6,) <= version < _REPAIRED:
        return None
    scaled = _is_trained_scaled(directory)
    if scaled is False or not _compares_by_norm(cfg, sae.threshold, sae.W_dec):
        return None
    how = "was trained" if scaled else f"may have been trained (there is no {RUN})"
    return (
        f"sae-lens {'.'.join(map(str, version))} saved this BatchTopK SAE, which {how} on scaled "
        "activations, without bringing its threshold into the scale of the model; save it again "
        "with sae-lens 6.54.9 or later, or divide its threshold by the scaling factor, "
        "sqrt(d_in) / mean norm of the vectors"
    )


def stated_l0(cfg: Mapping[str, Any]) -> Any:
    """The L0 at the end of the training if it is known, else the target of BatchTopK."""
    batchtopk = "batchtopk" in str(cfg.get("training_architecture"))
    return cfg.get("l0", cfg["training_architecture_details"].get("k") if batchtopk else None)


def _compares_by_norm(cfg: Mapping[str, Any], threshold: Tensor, decoder: Tensor) -> bool:
    """Whether an SAE was trained with BatchTopK and rescaled by the norms of its decoder rows."""
    trained = cfg.get("training_architecture")
    if trained is not None:
        details = cfg["training_architecture_details"]
        rescales = details.get("rescale_acts_by_decoder_norm") is not False
        return "batchtopk" in str(trained) and rescales
    # Early versions do not record it; the weights show it.
    norms = decoder[:_ROWS].float().norm(dim=1)
    unit = torch.allclose(norms, torch.ones_like(norms), atol=1e-3)
    return bool((threshold == threshold[0]).all()) and unit


def _is_trained_scaled(directory: Path) -> bool | None:
    """Whether an SAE was trained on scaled vectors; None if no configuration says."""
    for folder in (directory, directory.parent):
        run = kept_json(folder / RUN)
        several = run.get("saes")
        found = several.get(directory.name) if isinstance(several, dict) else run.get("sae")
        if isinstance(found, dict):
            return found.get("normalize_activations") == SCALED
    return None
