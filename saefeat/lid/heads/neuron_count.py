"""`neuron-count` of SAE-LAPE (arXiv 2507.11230): tokens on which LAPE neurons of the label fire."""

from __future__ import annotations

from saefeat.lid.head import Head
from saefeat.lid.heads import FitData, HeadKind
from saefeat.lid.heads.sae_count import count_head
from saefeat.methods import is_hidden_neurons


def fit(data: FitData) -> Head:
    """Fit on the neurons that LAPE chooses."""
    return count_head("neuron-count", data.load_selection("lape"))


HEAD = HeadKind("which selected neurons fire, counted", fit, reads=is_hidden_neurons)
