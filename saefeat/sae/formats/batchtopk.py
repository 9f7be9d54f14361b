"""What sae-lens's files say, and do not say, of SAEs that were trained with BatchTopK: they are saved as JumpReLU."""

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
RUN = "runner_cfg.json"  # the configuration of the training, beside the SAE or, where several were trained, above it
_MENDED = (6, 54, 9)  # version of sae-lens from which the thresholds are saved right
_FEW = 64  # rows of a decoder that tell whether all have the length 1


def doubt(cfg: Mapping[str, Any], sae: SAE, directory: Path) -> str | None:
    """Why the thresholds of an SAE are wrong or may be; None where nothing speaks for it.

    Before 6.54.9 sae-lens saved those of BatchTopK SAEs wrong that were trained on scaled vectors
    and compare
    activations in lengths of their decoder rows: folding the scale in made the rows longer, and the
    threshold stayed as it was (issue 763 of sae-lens).

    Args:
        cfg: the configuration, with its metadata beside the rest.
    """
    version = tuple(map(int, re.findall(r"\d+", str(cfg.get("sae_lens_version")))[:3]))
    if sae.threshold is None or not (6,) <= version < _MENDED or not _compares_by_length(cfg, sae):
        return None
    scaled = _trained_scaled(directory)
    if scaled is False:
        return None
    how = "was trained" if scaled else f"may have been trained (no {RUN} tells)"
    return (
        f"sae-lens {'.'.join(map(str, version))} saved this BatchTopK SAE, which {how} on scaled activations, "
        "without bringing its threshold into the scale of the model; save it again with sae-lens 6.54.9 or later, "
        "or divide its threshold by the scaling factor, sqrt(d_in) / mean norm of the vectors"
    )


def stated_l0(cfg: Mapping[str, Any]) -> Any:
    """The L0 at the end of the training, where it is known, else the one that BatchTopK aimed at."""
    aim = _details(cfg).get("k") if "batchtopk" in str(cfg.get("training_architecture")) else None
    return cfg.get("l0", aim)


def _details(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    details = cfg.get("training_architecture_details")
    return details if isinstance(details, dict) else {}


def _compares_by_length(cfg: Mapping[str, Any], sae: SAE) -> bool:
    """Whether an SAE is of BatchTopK and rescaled by its decoder's norms; of early versions the weights tell."""
    trained = cfg.get("training_architecture")
    if trained is not None:
        return (
            "batchtopk" in str(trained)
            and _details(cfg).get("rescale_acts_by_decoder_norm") is not False
        )
    threshold = sae.threshold
    return (
        threshold is not None
        and bool((threshold == threshold[0]).all())
        and _have_length_1(sae.W_dec[:_FEW])
    )


def _have_length_1(rows: Tensor) -> bool:
    norms = rows.float().norm(dim=1)
    return torch.allclose(norms, torch.ones_like(norms), atol=1e-3)


def _trained_scaled(directory: Path) -> bool | None:
    """Whether an SAE was trained on scaled vectors, by the configuration of its training; None where that is gone."""
    for folder in (directory, directory.parent):
        run = kept_json(folder / RUN)
        several = run.get("saes")
        found = several.get(directory.name) if isinstance(several, dict) else run.get("sae")
        if isinstance(found, dict):
            return found.get("normalize_activations") == SCALED
    return None
