"""Logit lens (nostalgebraist 2020): what vectors of the residual stream say as tokens.

`logits` decodes vectors, `stream` reads them at all layers, `directions` those of units.
"""

from saefeat.lens.directions import NoDirection, neuron_directions, promoted_tokens

__all__ = ["NoDirection", "neuron_directions", "promoted_tokens"]
