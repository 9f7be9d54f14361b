"""Monolinguality: units of higher mean in one label than in the others (arXiv 2505.05111)."""

from __future__ import annotations

from collections.abc import Sequence

from saefeat.methods import Count, Method, is_sae, records_parameters
from saefeat.methods.feature_diffmean import difference_part
from saefeat.selection import Selection
from saefeat.statistics import Stats


@records_parameters("monolinguality")
def monolinguality(stats: Sequence[Stats], *, top: Count = 2) -> Selection:
    """Choose the units of greatest monolinguality, for each label and dictionary.

    The monolinguality of a unit for a label is its mean over all tokens of the label, minus the
    mean over the other labels of their means, each label with equal weight. A unit that is not
    higher in the label than in the others is not chosen. A label without tokens is skipped.

    Args:
        stats: one item per dictionary. It is read once, so it may load each item when asked.
        top: units per label and dictionary. The paper uses the first two of each layer.

    Returns:
        The selection. The score is minus the monolinguality, in the units of the dictionary.

    Raises:
        UserError: the statistics cannot be pooled, or fewer than two labels have tokens.
    """
    return Selection.build([difference_part(each, top=top, lower=False) for each in stats])


METHOD = Method(
    rank=monolinguality, pools=is_sae, needs="SAEs", in_run=False, sized=lambda n: {"top": n}
)
