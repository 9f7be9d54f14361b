"""SAE-LAPE: language-specific features of SAEs (Andrylie et al., arXiv 2507.11230)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from saefeat.methods import Count, Method, Rate, is_sae, records_parameters
from saefeat.methods.lape import entropy
from saefeat.ranking import make_part, rank_within_labels
from saefeat.selection import Selection
from saefeat.statistics import Stats


@records_parameters("sae-lape")
def sae_lape(
    stats: Sequence[Stats],
    *,
    example_rate: Rate = 0.98,
    high_frequency_rate: Rate = 0.1,
    ratio: Rate = 0.5,
    owners: Count | Literal["any"] | None = 1,
    top: Count | None = None,
    by: Literal["entropy", "frequency"] = "entropy",
    per_layer: bool = False,
    entropy_threshold: float | None = None,
) -> Selection:
    """Choose units that fire in nearly every example of a label, often, and mostly for few labels.

    Args:
        stats: one item per dictionary. It is read once, so it may load each item when asked.
        example_rate: a unit passes if for some label it fires in at least int(example_rate *
            examples) examples,
        high_frequency_rate: and if for some label (the same or another) it fires on more than
            int(high_frequency_rate * tokens) tokens. A label without tokens or examples lets no
            unit pass.
        ratio: a label owns the unit if its firing probability is at least `ratio` times the
            greatest one.
        owners: keep the units with exactly this number of owners. 1 is the published
            `--lang-specific`, m is `--lang-shared --shared-count m`, "any" (or None) is neither
            flag: every unit, for each of its owners.
        top: greatest number of units per label; None: no limit (`--top`).
        by: order of the ranks and of `top`: lowest entropy, or highest probability first
            (`--top-by-frequency`).
        per_layer: whether `top` applies to each dictionary instead of all together
            (`--top-per-layer`).
        entropy_threshold: after `top`, keep units of at most this entropy in nats
            (`--entropy-threshold`; here 0 is a threshold too).

    Returns:
        The selection. The score is the entropy of the firing probabilities over labels, in nats.

    Raises:
        UserError: the statistics cannot be pooled.
    """
    owners = "any" if owners is None else owners
    parts = []
    for each in stats:
        unit, label, score, p = owned_units(each, example_rate, high_frequency_rate, ratio, owners)
        if top is not None and per_layer:
            frequency = [-p.numpy()] if by == "frequency" else []
            ranks = rank_within_labels(label.numpy(), *frequency, score.numpy(), unit.numpy())
            first = torch.from_numpy(ranks <= top)
            unit, label, score = unit[first], label[first], score[first]
        parts.append(make_part(each, unit, label, score))
    key: Literal["score", "probability"] = "probability" if by == "frequency" else "score"
    selection = Selection.build(parts, by=key, parameters={"owners": owners})
    if top is not None and not per_layer:
        selection = selection.head(top)
    if entropy_threshold is not None:
        selection = selection.filter(selection.table["score"].to_numpy() <= entropy_threshold)
    return selection


def all_owners(
    stats: Stats, *, example_rate: float, high_frequency_rate: float, ratio: float
) -> tuple[Tensor, Tensor]:
    """Return the units that pass the filters and their owners; a unit occurs once per owner."""
    unit, label, *_ = owned_units(stats, example_rate, high_frequency_rate, ratio, "any")
    return unit, label


METHOD = Method(
    rank=sae_lape,
    pools=is_sae,
    needs="SAEs",
    score="entropy",
    owners=all_owners,
    sized=lambda n: {"top": n},
)


def owned_units(
    stats: Stats,
    example_rate: float,
    high_frequency_rate: float,
    ratio: float,
    owners: int | Literal["any"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cells (unit, owning label) that pass the filters.

    Returns:
        unit [m] int64, label [m] int64 (by position), entropy [m] float64, probability [m] float32.
    """
    unit = passing(stats, example_rate, high_frequency_rate).nonzero().flatten()
    p = stats.probability().cpu()[:, unit]
    owned = owned_labels(p, ratio)
    if owners != "any":
        owned &= owned.sum(0) == owners
    label, column = owned.nonzero(as_tuple=True)
    return unit[column], label, entropy(p)[column], p[label, column]


def passing(stats: Stats, example_rate: float, high_frequency_rate: float) -> Tensor:
    """Which units pass both filters: bool [width]."""
    counted = stats.counted  # else every unit would pass for a label without text
    examples, tokens = stats.examples.cpu()[counted], stats.tokens.cpu()[counted]
    in_examples = stats.fired_examples.cpu()[counted] >= truncated(example_rate, examples)[:, None]
    often = stats.fired.cpu()[counted] > truncated(high_frequency_rate, tokens)[:, None]
    return in_examples.any(0) & often.any(0)


def owned_labels(p: Tensor, ratio: float) -> Tensor:
    """Which labels own which units: bool [K, n]. A unit that never fires has no owner.

    Args:
        p: firing probabilities [K, n] float32.
    """
    return (p >= ratio * p.amax(0)) & (p > 0)


def truncated(rate: float, counts: Tensor) -> Tensor:
    """int(rate * count) of each count, exact for the decimal notation of the rate.

    The published code multiplies an int64 tensor by the rate, in float32. At the published rates
    that gives the same for fewer than 267,501 examples (rate 0.98; there it gives 262,151, and this
    function 262,150) and for fewer than 16,777,219 tokens (rate 0.1). Beyond, it can differ by one,
    and by more as the counts grow.

    Args:
        counts: int64.

    Returns:
        int64, of the same shape.
    """
    exact = Fraction(repr(float(rate)))
    whole = [int(exact * count) for count in counts.tolist()]
    return torch.tensor(whole, dtype=torch.int64)
