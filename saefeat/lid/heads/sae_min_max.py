"""`sae-min-max` of SAE-LAPE (arXiv 2507.11230): scaled values of units of the label."""

from __future__ import annotations

from collections.abc import Callable

from saefeat.codes import STEP, to_steps
from saefeat.lid.head import Head
from saefeat.lid.heads import HeadKind
from saefeat.lid.heads.sae_count import selected_units
from saefeat.selection import Selection
from saefeat.statistics import Stats


def min_max_head(selection: Selection, load_stats: Callable[[str], Stats]) -> Head:
    """A head on selected units.

    Each value is scaled by the least and the greatest value that the unit has over all labels:
    (value - least) / (greatest - least + 1e-6), unclamped. `least` is rounded to the steps in which
    sums are kept, as the values in the sums are. Otherwise a unit whose values are all equal, which
    scores 0, would have the rounding of its sum divided by 1e-6.

    Args:
        load_stats: gives the statistics of a dictionary of the selection.
    """
    head = Head("sae-min-max", selection.labels, {}, {})
    for dictionary in selection.dictionaries:
        units, member = selected_units(selection, dictionary)
        if not len(units):
            continue
        each = load_stats(dictionary)
        low, high = each.min[:, units].amin(0), each.max[:, units].amax(0)
        scale = 1 / ((high.double() - low.double()).numpy() + 1e-6)
        least = to_steps(low).double().numpy() * STEP
        head.units[dictionary] = units
        head.counts[dictionary] = member * (-least * scale)[:, None]
        head.sums[dictionary] = member * scale[:, None]
    return head


HEAD = HeadKind(
    "selected features, scaled firing values",
    lambda data: min_max_head(data.load_selection("sae-lape"), data.load_stats),
)
