"""Changes of the logits: rivals of steering that need no units.

A change at the site `LOGITS` gets the logits float32 [rows, places, vocabulary] in place of
vectors. A table of log-odds is added by `saefeat.steering.edits.add`.
"""

from __future__ import annotations

from torch import Tensor

from saefeat.steering.edits import Change


def boost(tokens: Tensor, amount: float, certain: float | None = None) -> Change:
    """Add strength * amount to the logits of some tokens (LATB, arXiv 2606.08994).

    Args:
        tokens: bool [vocabulary].
        certain: only where the most probable token has less than this probability; None: always.
    """

    def change(x: Tensor, strength: Tensor) -> Tensor:
        by = strength * amount
        if certain is not None:
            by = by * (x.softmax(-1).amax(-1, keepdim=True) < certain)
        return x + by * tokens

    return change
