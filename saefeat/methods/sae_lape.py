"""SAE-LAPE: language-specific features of sparse autoencoders (Andrylie et al., arXiv 2507.11230)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from saefeat.methods.lape import entropy
from saefeat.selection import Part, Selection, part, places
from saefeat.statistics import Stats


def sae_lape(
    stats: Sequence[Stats],
    *,
    example_rate: float = 0.98,
    high_frequency_rate: float = 0.1,
    ratio: float = 0.5,
    owners: int | Literal["any"] | None = 1,
    top: int | None = None,
    by: Literal["entropy", "frequency"] = "entropy",
    per_layer: bool = False,
    entropy_threshold: float | None = None,
) -> Selection:
    """Units that fire in nearly every example of a label, often, and mostly for few labels; all given dictionaries.

    Args:
        stats: one item a dictionary; gone through once, so it may load each item when asked.
        example_rate: a unit passes if for some label it fires in at least int(example_rate *
            examples) examples,
        high_frequency_rate: and if for some label (the same or another) on more than
            int(high_frequency_rate * tokens) tokens. A label without tokens or examples lets
            nothing pass.
        ratio: a label owns the unit if its firing probability is at least `ratio` times the
            greatest one.
        owners: keep the units with exactly this many owners. 1 is the published `--lang-specific`,
            m is `--lang-shared --shared-count m`, "any" (or None) is neither flag: every unit, for
            each of its owners.
        top: at most this many units a label, None for all (`--top`).
        by: the order of ranks and of `top`: lowest entropy, or highest probability first
            (`--top-by-frequency`).
        per_layer: `top` holds in each dictionary and not overall (`--top-per-layer`).
        entropy_threshold: after `top`, keep units of at most this entropy (`--entropy-threshold`;
            here 0 counts too).

    Returns:
        The selection; score is the entropy (natural log) of the probabilities over labels.

    Raises:
        UserError: the statistics cannot be pooled.
    """
    owners = "any" if owners is None else owners
    parts = []
    for each in stats:
        unit, label, score, p = owned_units(each, example_rate, high_frequency_rate, ratio, owners)
        if top is not None and per_layer:
            frequency = [-p.numpy()] if by == "frequency" else []
            first = torch.from_numpy(
                places(label.numpy(), *frequency, score.numpy(), unit.numpy()) <= top
            )
            unit, label, score = unit[first], label[first], score[first]
        parts.append(part(each, unit, label, score))
    parameters = {
        "example_rate": example_rate,
        "high_frequency_rate": high_frequency_rate,
        "ratio": ratio,
        "owners": owners,
        "top": top,
        "by": by,
        "per_layer": per_layer,
        "entropy_threshold": entropy_threshold,
    }
    return _cut(parts, parameters, None if per_layer else top, by, entropy_threshold)


def owned_units(
    stats: Stats,
    example_rate: float,
    high_frequency_rate: float,
    ratio: float,
    owners: int | Literal["any"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cells (unit, owning label) that pass: unit[m], label[m] int64, entropy[m] float64, probability[m] float32."""
    unit = passing(stats, example_rate, high_frequency_rate).nonzero().flatten()
    p = stats.probability().cpu()[:, unit]
    owned = owned_labels(p, ratio)
    if owners != "any":
        owned &= owned.sum(0) == owners
    label, column = owned.nonzero(as_tuple=True)
    return unit[column], label, entropy(p)[column], p[label, column]


def passing(stats: Stats, example_rate: float, high_frequency_rate: float) -> Tensor:
    """Units that pass both filters, bool [width]."""
    examples, tokens = stats.examples.cpu(), stats.tokens.cpu()
    counted = ((examples > 0) & (tokens > 0))[
        :, None
    ]  # of nothing, 98 per cent is 0: all would pass
    in_examples = stats.fired_examples.cpu() >= truncated(example_rate, examples)[:, None]
    often = stats.fired.cpu() > truncated(high_frequency_rate, tokens)[:, None]
    return (in_examples & counted).any(0) & (often & counted).any(0)


def owned_labels(p: Tensor, ratio: float) -> Tensor:
    """Which labels own which units: p[K, n] float32 -> bool [K, n]. A unit that never fires has no owner."""
    return (p >= ratio * p.amax(0)) & (p > 0)


def truncated(rate: float, counts: Tensor) -> Tensor:
    """int(rate * count) of each count, exact for the rate as it is written in decimals. int64 -> int64.

    The published code multiplies an int64 tensor by the rate, in float32. That gives the same at
    the published rates for fewer than 267,501 examples (rate 0.98; there it gives 262,151, and this
    function 262,150) and fewer than 16,777,219 tokens (rate 0.1); beyond, it can be one more or
    less, or further off as the counts grow.
    """
    exact = Fraction(repr(float(rate)))
    return torch.tensor(
        [count * exact.numerator // exact.denominator for count in counts.tolist()],
        dtype=torch.int64,
    )


def _cut(
    parts: Sequence[Part],
    parameters: dict[str, object],
    top: int | None,
    by: str,
    entropy_threshold: float | None,
) -> Selection:
    """Rank the parts together and cut each label, first by rank, then by entropy, in the published order."""
    selection = Selection.build(
        "sae-lape", parameters, parts, by="probability" if by == "frequency" else "score"
    )
    if top is not None:
        selection = selection.head(top)
    if entropy_threshold is not None:
        selection = selection.filter(
            np.asarray(selection.table["score"].to_numpy() <= entropy_threshold)
        )
    return selection
