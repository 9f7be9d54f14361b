"""`sae-count` of SAE-LAPE (arXiv 2507.11230): tokens on which units of the label fire."""

from __future__ import annotations

import numpy as np

from saefeat.lid.head import Head
from saefeat.lid.heads import HeadKind
from saefeat.selection import Selection


def count_head(name: str, selection: Selection) -> Head:
    """A head whose weight is 1 for each selected (unit, label)."""
    head = Head(name, selection.labels, {}, {})
    for dictionary in selection.dictionaries:
        units, member = selected_units(selection, dictionary)
        if len(units):
            head.units[dictionary], head.counts[dictionary] = units, member
    return head


def selected_units(selection: Selection, dictionary: str) -> tuple[np.ndarray, np.ndarray]:
    """Selected units of a dictionary.

    Returns:
        The units, int64 [m], ascending; 1 where a unit is selected for a label, else 0, float64
        [m, K].
    """
    chosen = selection.units(dictionary)
    units = np.array(sorted({u for members in chosen.values() for u in members}), np.int64)
    member = np.zeros((len(units), len(selection.labels)))
    for k, label in enumerate(selection.labels):
        member[np.searchsorted(units, chosen[label]), k] = 1
    return units, member


HEAD = HeadKind(
    "which selected features fire, counted",
    lambda data: count_head("sae-count", data.load_selection("sae-lape")),
)
