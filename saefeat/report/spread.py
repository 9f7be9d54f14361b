"""How units are spread over labels: probabilities, entropy, and units that labels share."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from saefeat.io import UserError
from saefeat.methods import is_hidden_neurons, is_sae
from saefeat.methods.lape import entropy
from saefeat.report.formats import pairs, rounded
from saefeat.rundir import RunDir
from saefeat.statistics import Stats
from saefeat.words import natural

BINS = 30  # of an entropy histogram, from 0 to the logarithm of the number of labels
_ALL = 40  # labels; beyond, only the greatest probabilities of a unit are kept
_GREATEST = 12


@dataclass(frozen=True)
class Ownership:
    """A method by which labels own units (see `Method.owners`), and its filters."""

    method: str
    owners: Callable[..., tuple[Tensor, Tensor]]
    filters: Mapping[str, Any]


@dataclass
class Spread:
    """What the page shows of the statistics.

    Attributes:
        labels: K labels.
        ownership: which labels own which units, for the overlap.
        entropy: per dictionary {dictionary, kind, bins, chosen, fired, silent}.
        overlap: int64 [K, K], units that two labels own in any SAE; None without SAEs.
        units: (dictionary, unit) -> (entropy, float64 [K] probabilities) of the chosen units.
    """

    labels: tuple[str, ...]
    ownership: Ownership | None
    entropy: list[dict[str, Any]] = field(default_factory=list)
    overlap: Tensor | None = None
    units: dict[tuple[str, int], tuple[float, list[float]]] = field(default_factory=dict)


def read_spread(
    run: RunDir, chosen: Mapping[str, Collection[int]], ownership: Ownership | None
) -> Spread | None:
    """Read the statistics of a run, one dictionary at a time; None if there are none.

    Args:
        chosen: dictionary -> units that methods chose.
        ownership: which labels own which units; None: there is no overlap to show.

    Raises:
        UserError: statistics are damaged, or do not fit each other or the chosen units.
    """
    spread: Spread | None = None
    for name in sorted(run.collected(), key=natural):
        path = run.stats_file(name)
        dictionary = Stats.read_header(path).get("dictionary", {})
        # Statistics of a site itself are collected for its means.
        if not (is_sae(dictionary) or is_hidden_neurons(dictionary)):
            continue
        stats = run.load_stats(name)
        spread = spread or Spread(stats.labels, ownership)
        units = sorted(chosen.get(name, ()))
        if not _fit(stats, name, units, spread.labels):
            raise UserError(f"{path} does not fit the other files of the run; collect it again")
        _add(spread, stats, units)
    if spread:
        spread.entropy.sort(key=lambda part: part["kind"] != "sae")
    return spread


def _fit(stats: Stats, name: str, units: list[int], labels: tuple[str, ...]) -> bool:
    """Whether statistics are of this dictionary and the run's labels, with possible counts."""
    named = stats.header["dictionary"].get("id") == name and stats.labels == labels
    if not named or (units and units[-1] >= stats.width):
        return False
    return bool(((stats.fired >= 0) & (stats.fired <= stats.tokens[:, None])).all())


def _add(spread: Spread, stats: Stats, units: list[int]) -> None:
    p = stats.probability()
    h = entropy(p)
    fires = p.amax(0) > 0
    chosen = torch.zeros_like(fires)
    chosen[units] = True
    spread.entropy.append(
        {
            "dictionary": stats.dictionary,
            "kind": stats.header["dictionary"]["kind"],
            "bins": _counts(h[fires], len(stats.labels)),
            "chosen": _counts(h[fires & chosen], len(stats.labels)),
            "fired": int(fires.sum()),
            "silent": int((~fires).sum()),
        }
    )
    for unit in units:
        spread.units[stats.dictionary, unit] = float(h[unit]), p[:, unit].tolist()
    if spread.ownership and is_sae(stats.header["dictionary"]):
        unit, label = spread.ownership.owners(stats, **spread.ownership.filters)
        owned = torch.zeros(len(stats.labels), stats.width)
        owned[label, unit] = 1
        both = (owned @ owned.t()).long()
        spread.overlap = both if spread.overlap is None else spread.overlap + both


def _counts(h: Tensor, labels: int) -> list[int]:
    top = math.log(max(labels, 2))
    return torch.histc(h.clamp(0, top), BINS, 0, top).long().tolist()


def entropy_view(spread: Spread) -> dict[str, Any]:
    """{labels: how many, parts: the histogram of each dictionary}."""
    return {"labels": len(spread.labels), "parts": spread.entropy}


def overlap_view(spread: Spread) -> dict[str, Any] | None:
    """What the page shows of the overlap.

    Returns:
        labels; both: [K][K], on the diagonal the number of units that a label owns; method and
        filters: how ownership was decided, the filters in words.
    """
    if spread.overlap is None or spread.ownership is None:
        return None
    return {
        "labels": list(spread.labels),
        "both": spread.overlap.tolist(),
        "method": spread.ownership.method,
        "filters": pairs(spread.ownership.filters),
    }


def overlap_rows(spread: Spread) -> list[dict[str, Any]] | None:
    """Rows of `overlap.csv`, one per pair of labels."""
    if spread.overlap is None:
        return None
    both, rows = spread.overlap.tolist(), []
    for i, j in combinations(range(len(both)), 2):
        owned, other, shared = both[i][i], both[j][j], both[i][j]
        either = owned + other - shared
        rows.append(
            {
                "label": spread.labels[i],
                "other": spread.labels[j],
                "owned": owned,
                "owned_by_other": other,
                "both": shared,
                "jaccard": round(shared / either, 6) if either else 0.0,
            }
        )
    return rows


def unit_spread(spread: Spread | None, dictionary: str, unit: int) -> dict[str, Any]:
    """{entropy, p: [[label, probability], ...], left_out}; empty if there are no statistics.

    p: all labels in order, or the greatest probabilities if there are very many labels.
    left_out: the greatest probability of the other labels, None if there are none.
    """
    if spread is None or (dictionary, unit) not in spread.units:
        return {}
    h, p = spread.units[dictionary, unit]
    order = sorted(range(len(p)), key=lambda k: (-p[k], k))
    kept = order[:_GREATEST] if len(p) > _ALL else sorted(order)
    left_out = order[len(kept)] if len(kept) < len(p) else None
    return {
        "entropy": rounded(h),
        "p": [[spread.labels[k], rounded(p[k], 3)] for k in kept],
        "left_out": None if left_out is None else rounded(p[left_out], 3),
    }
