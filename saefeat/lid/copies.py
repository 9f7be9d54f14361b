"""Copies of training texts: beginnings and capitals, from which the linear head learns too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saefeat.corpora.examples import says_something

SHORT = 20  # characters of a beginning
CAPITALS = 0.2  # weight of a copy in capitals, which are rare


def make_copies(
    texts: Sequence[str], of: Sequence[str], *, letters: bool = True
) -> tuple[list[str], list[str], np.ndarray]:
    """Copy the beginnings of n texts, and the texts and beginnings in capitals.

    Copies that say nothing are left out, and so are copies in capitals that equal their text.

    Args:
        of: the label of each text.
        letters: whether a text needs a letter to say something (see `says_something`).

    Returns:
        The copies; their labels; the weights of the n whole texts (1) followed by those of the
        copies, float64.
    """
    short = [text[:SHORT] for text in texts]
    capitals = [
        (text.upper(), label, CAPITALS)
        for kind in (texts, short)
        for text, label in zip(kind, of, strict=True)
        if text.upper() != text
    ]
    rows = [(text, label, 1.0) for text, label in zip(short, of, strict=True)] + capitals
    rows = [row for row in rows if says_something(row[0], letters=letters)]
    weights = np.array([1.0] * len(texts) + [weight for _, _, weight in rows])
    return [text for text, _, _ in rows], [label for _, label, _ in rows], weights
