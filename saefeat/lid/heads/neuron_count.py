"""`neuron-count` of SAE-LAPE (arXiv 2507.11230): tokens on which LAPE neurons of the label fire."""

from __future__ import annotations

from saefeat.lid.heads import HeadKind
from saefeat.lid.heads.sae_count import count_head
from saefeat.methods import is_hidden_neurons

HEAD = HeadKind(
    "which selected neurons fire, counted",
    lambda data: count_head("neuron-count", data.load_selection("lape")),
    reads=is_hidden_neurons,
)
