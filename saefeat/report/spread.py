"""How units are spread over labels, read from the statistics: probabilities, entropy, and units that labels share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from saefeat.methods.lape import entropy
from saefeat.methods.sae_lape import owned_units
from saefeat.report.reading import natural, real, understood
from saefeat.statistics import Stats

BINS = 30  # of an entropy histogram, from 0 to the logarithm of the number of labels
_ALL = 40  # labels; beyond, only the greatest probabilities of a unit are kept
_GREATEST = 12
_FILTERS = {"example_rate": 0.98, "high_frequency_rate": 0.1, "ratio": 0.5}  # as published

Unit = tuple[str, int]


def read_spread(
    run: Path, wanted: Iterable[Unit], filters: Mapping[str, Any]
) -> dict[str, Any] | None:
    """One pass over `stats/*.safetensors`, a dictionary at a time; None when there are none.

    Args:
        wanted: units (dictionary, unit) that methods chose: they are marked in the histograms.
        filters: parameters of SAE-LAPE as the run used them, for the overlap.

    Returns:
        labels; entropy: [{dictionary, kind, bins, chosen, fired, silent}], SAEs first; overlap:
        int64 [K, K], units that two labels own in any SAE, or None without SAEs; filters: those
        used; tables: by dictionary what `unit_spread` reads.
    """
    paths = [
        path
        for path in sorted((run / "stats").glob("[!.]*.safetensors"), key=natural)
        if understood(path, lambda path=path: _has_units(path))
    ]
    if not paths:
        return None
    chosen: dict[str, set[int]] = {}
    for dictionary, unit in wanted:
        chosen.setdefault(dictionary, set()).add(unit)
    filters = {name: filters.get(name) or default for name, default in _FILTERS.items()}
    spread: dict[str, Any] = {"entropy": [], "overlap": None, "tables": {}, "filters": filters}
    for path in paths:
        stats = Stats.load(path)
        understood(
            path, lambda stats=stats: _add(spread, stats, sorted(chosen.get(stats.dictionary, ())))
        )
    spread["entropy"].sort(key=lambda part: part["kind"] != "sae")
    return spread


def _has_units(path: Path) -> bool:
    """Whether statistics are of SAEs or hidden neurons; those of whole sites are there for their means alone."""
    dictionary = Stats.read_header(path)["dictionary"]
    return dictionary.get("kind") == "sae" or dictionary["site"].startswith("mlp_act@")


def _add(spread: dict[str, Any], stats: Stats, units: list[int]) -> None:
    p = stats.probability()
    h = entropy(p)
    spread.setdefault("labels", list(stats.labels))
    kind = stats.header["dictionary"].get("kind")
    counts = _histogram(h, p.amax(0) > 0, units, len(stats.labels))
    spread["entropy"].append({"dictionary": stats.dictionary, "kind": kind, **counts})
    spread["tables"][stats.dictionary] = {
        "units": {unit: at for at, unit in enumerate(units)},
        "p": p[:, units],
        "entropy": h[units].tolist(),
    }
    if kind == "sae" and list(stats.labels) == spread["labels"]:
        owned = _owned(stats, spread["filters"])
        both = owned.float() @ owned.float().t()
        before = spread["overlap"]
        spread["overlap"] = both.long() if before is None else before + both.long()


def _histogram(
    h: torch.Tensor, fires: torch.Tensor, units: list[int], labels: int
) -> dict[str, Any]:
    top = math.log(max(labels, 2))
    known = torch.zeros_like(fires)
    known[units] = True
    bins = [
        torch.histc(h[part].clamp(0, top), BINS, 0, top).long().tolist()
        for part in (fires, fires & known)
    ]
    return {
        "bins": bins[0],
        "chosen": bins[1],
        "fired": int(fires.sum()),
        "silent": int((~fires).sum()),
    }


def _owned(stats: Stats, filters: Mapping[str, Any]) -> torch.Tensor:
    """Which labels own which units that pass SAE-LAPE's filters, however many own them: bool [K, width]."""
    unit, label, *_ = owned_units(stats, **filters, owners="any")
    owned = torch.zeros(len(stats.labels), stats.width, dtype=torch.bool)
    owned[label, unit] = True
    return owned


def overlap_view(spread: dict[str, Any]) -> dict[str, Any] | None:
    """{labels, both[K][K], filters}: units that two labels both own; on the diagonal those that a label owns."""
    if spread["overlap"] is None:
        return None
    return {
        "labels": spread["labels"],
        "both": spread["overlap"].tolist(),
        "filters": spread["filters"],
    }


def unit_spread(spread: dict[str, Any] | None, dictionary: str, unit: int) -> dict[str, Any]:
    """{entropy, p: [[label, probability], ...], rest}: all labels in order, or where there are very many the greatest.

    rest: the greatest probability among the labels that are left out, None when all are there.
    Empty where the run has no statistics of the unit.
    """
    table = spread["tables"].get(dictionary) if spread else None
    if spread is None or table is None or unit not in table["units"]:
        return {}
    at = table["units"][unit]
    values = table["p"][:, at].tolist()
    order = range(len(values))
    kept = (
        list(order)
        if len(values) <= _ALL
        else sorted(order, key=lambda k: (-values[k], k))[:_GREATEST]
    )
    rest = max((values[k] for k in set(order) - set(kept)), default=None)
    pairs = [[spread["labels"][k], real(values[k], 3)] for k in kept]
    return {"entropy": real(table["entropy"][at]), "p": pairs, "rest": real(rest, 3)}
