"""Mixing of labels by temperature: how many tokens of each label are read.

Corpora have much more text in some labels than in others. Arivazhagan et al. (arXiv 1907.05019)
give label l, of n_l sentences, a share proportional to n_l^(1/T): at T = 1 labels keep their
sizes, and as T grows their shares become equal. Conneau et al. (XLM-R, arXiv 1911.02116) write the
exponent as alpha = 1 / T, with alpha = 0.3. Both repeat text of small labels; here no text is
repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

from saefeat.io import UserError


def check_mixing(temperature: float | None, max_tokens: int | None) -> None:
    """Raise UserError for a temperature below 1, and for one without a budget to share out."""
    if temperature is None:
        return
    if not 1 <= temperature < float("inf"):
        raise UserError(f"the temperature should be at least 1, not {temperature}", "temperature")
    if max_tokens is None:
        raise UserError(
            "a temperature shares out the tokens of each label; give the budget of the largest one",
            "max_tokens",
        )


def label_budgets(sizes: Sequence[int], max_tokens: int, temperature: float) -> list[int]:
    """The budget of each label in counted tokens.

    The largest label gets `max_tokens`, and a label of n examples that times
    (n / largest)^(1 / temperature), rounded, but at least 1.

    Args:
        sizes: number of examples of each label.
    """
    largest = max(1, *sizes)
    return [max(1, round(max_tokens * (n / largest) ** (1 / temperature))) for n in sizes]
