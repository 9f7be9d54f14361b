"""Neuron overlap: the units that make up most of a label's firing (arXiv 2404.11201)."""

from __future__ import annotations

from collections.abc import Sequence

from saefeat.methods import Method, Rate, is_hidden_neurons, records_parameters
from saefeat.ranking import Part, make_part
from saefeat.selection import Selection
from saefeat.statistics import Stats


@records_parameters("neuron-overlap")
def neuron_overlap(stats: Sequence[Stats], *, share: Rate = 0.95) -> Selection:
    """Choose, per label and dictionary, the fewest units that make up a share of all firing.

    Units are taken in falling order of the number of tokens on which they fire in the label, until
    these numbers sum up to at least `share` of the sum over all units. Units that never fire in the
    label are not taken. The sets of labels are compared by their overlap (`saefeat select`). A
    label without tokens has no units.

    Args:
        stats: one item per dictionary. It is read once, so it may load each item when asked.
        share: of the firing tokens of all units.

    Returns:
        The selection. The score is minus the firing probability.

    Raises:
        UserError: the statistics cannot be pooled.
    """
    return Selection.build([_part(each, share) for each in stats])


METHOD = Method(
    rank=neuron_overlap,
    pools=is_hidden_neurons,
    needs="neurons at the site mlp_act",
    shown=False,
    score="-p",
    in_run=False,
)


def _part(stats: Stats, share: float) -> Part:
    """The chosen rows of one dictionary."""
    fired, order = stats.fired.cpu().sort(dim=1, descending=True, stable=True)
    before = fired.cumsum(1) - fired  # what the units before each one sum up to
    taken = (fired > 0) & (before.double() < share * fired.sum(1, keepdim=True).double())
    label, place = taken.nonzero(as_tuple=True)
    unit = order[label, place]
    return make_part(stats, unit, label, -stats.probability().cpu()[label, unit].double())
