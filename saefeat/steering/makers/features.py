"""Features of SAEs: erased, gates, chosen by their output, and few of a label alone."""

from __future__ import annotations

import torch

from saefeat.config import SteeringRecipe
from saefeat.dictionaries import SAE
from saefeat.methods.feature_diffmean import feature_diffmean, mean_difference
from saefeat.methods.langfir import active_share
from saefeat.methods.monolinguality import monolinguality
from saefeat.statistics import Stats
from saefeat.steering.along import add_where_firing, erase
from saefeat.steering.changes import check_counted, project_onto_units, rescale
from saefeat.steering.edits import add
from saefeat.steering.makers.common import (
    NOTHING,
    Made,
    direction_at,
    limit_at,
    no_units,
    on_device,
)
from saefeat.steering.materials import Materials


def make_erase(m: Materials, recipe: SteeringRecipe, label: str, site: str) -> Made:
    """Remove the directions of the source's most monolingual features (arXiv 2505.05111)."""
    found = _source_features(m, recipe, label, site)
    if not found:
        return NOTHING
    rows = torch.cat([sae.directions_of(units) for sae, units in found])
    orthogonal = recipe.edit.endswith("orthogonal")
    change = erase(on_device(m, rows), limit_at(m, site), orthogonal=orthogonal)
    return {site: [change]}, len(rows)


def make_gated(m: Materials, recipe: SteeringRecipe, label: str, site: str) -> Made:
    """Add the difference of means where the source's features fire (arXiv 2505.05111)."""
    found = _source_features(m, recipe, label, site)
    if not found:
        return NOTHING
    vector = on_device(m, m.collected.difference(site, label))
    gates = [(sae.to(m.collected.device), units) for sae, units in found]
    change = add_where_firing(vector, gates, limit_at(m, site))
    return {site: [change]}, sum(len(units) for _, units in found)


def _source_features(
    m: Materials, recipe: SteeringRecipe, label: str, site: str
) -> list[tuple[SAE, list[int]]]:
    """The most monolingual features of the source label, of each SAE that has any."""
    source = m.collected.source_label
    if source is None:
        raise no_units(recipe, label, "it needs a source label, whose features it reads")
    found = []
    for sae in m.saes_at(site):
        check_counted(m.collected.stats(sae), label, source)
        ranked = m.rank(monolinguality, [sae.id], top=int(recipe.parameters["top"]))
        units = ranked.units(sae.id)[source]
        found.append((sae, m.units(m.collected.stats(sae), units, label)))
    return [(sae, units) for sae, units in found if units]


def make_output_score(m: Materials, recipe: SteeringRecipe, label: str, site: str) -> Made:
    """Add the difference of means along features that change the output (Arad et al., 2025).

    `add, by language` scores a feature by the probability of the label's own tokens.
    """
    tokens = m.evidence.own_tokens(label) if recipe.edit.endswith("by language") else None
    kept, least = [], recipe.parameters["score"]
    for sae in m.saes_at(site):
        stats, source = m.collected.stats(sae), m.collected.source_label
        check_counted(stats, label, source)
        top = int(recipe.parameters["top"])
        units = m.rank(feature_diffmean, [sae.id], source=source, top=top).units(sae.id)[label]
        if units:
            scores = m.evidence.output_scores(sae, site, units, tokens).tolist()
            good = [u for u, s in zip(units, scores, strict=True) if s >= least]
            kept.append((sae, m.units(stats, good, label)))
    if not any(units for _, units in kept):
        return NOTHING
    vector = project_onto_units(kept, m.collected.difference(site, label))
    change = add(on_device(m, vector), limit_at(m, site))
    return {site: [change]}, sum(len(units) for _, units in kept)


def make_few_features(m: Materials, recipe: SteeringRecipe, label: str, site: str) -> Made:
    """Add a few features of the label alone, weighted by the difference of their means.

    After LangFIR (arXiv 2604.03532): at most `top` features that are active in most of the label's
    texts, in few sequences of random tokens, and on hardly any token of other labels. The last
    condition is not in the paper, which looks at one label; where the run has not collected random
    tokens, it stands alone. The rule `langfir` of `saefeat.methods` is the paper's, without it and
    with a higher share of the label's texts.
    """
    total, count = torch.zeros(()), 0
    for sae in m.saes_at(site):
        stats = m.collected.stats(sae)
        check_counted(stats, label, m.collected.source_label)
        read = m.collected.control
        control = None if read is None else read(sae.id)
        chosen = exclusive_units(stats, label, control, **recipe.parameters)
        units = m.units(stats, chosen, label)
        if units:
            weights = mean_difference(stats, label, m.collected.source_label)[units]
            total = total + weights.float() @ sae.directions_of(units).cpu()
            count += len(units)
    if not count:
        return NOTHING
    _, length = direction_at(m, site, label)
    return {site: [add(on_device(m, rescale(total, length)), limit_at(m, site))]}, count


def exclusive_units(
    stats: Stats,
    label: str,
    control: Stats | None = None,
    *,
    top: float,
    example_rate: float,
    other_rate: float,
    random_rate: float = 0.1,
) -> list[int]:
    """At most `top` units of a label that other labels hardly have, most frequent first.

    Args:
        control: statistics of random sequences; None: they play no part.
        example_rate: least share of the label's examples in which a unit fires.
        other_rate: greatest share of the tokens of all other labels together on which it fires.
        random_rate: the unit fires in less than this share of the random sequences.
    """
    row = stats.row(label)
    others = stats.counted.clone()
    others[row] = False
    active = active_share(stats)[row]
    elsewhere = stats.fired.cpu()[others].sum(0) / stats.tokens.cpu()[others].sum().clamp(min=1)
    kept = (active >= example_rate) & (elsewhere <= other_rate)
    if control is not None:
        kept &= active_share(control).amax(0) < random_rate
    chosen = kept.nonzero().flatten()
    order = active[chosen].argsort(descending=True, stable=True)[: int(top)]
    return chosen[order].tolist()


def make_codes(m: Materials, recipe: SteeringRecipe, label: str, site: str) -> Made:
    """Steer in the space of codes: dec(z + a v) + x - dec(z) (arXiv 2605.23036).

    v is the difference of the mean codes, others pooled by token (`add, from source`: the source,
    as in arXiv 2601.08331). The decoder is linear, so x moves by a multiple of v @ W_dec, whatever
    z is. `add, block before` edits the stream before the block, as far as the released code does:
    there the attention of the block still reads the unsteered stream.
    """
    source = m.collected.source_label if recipe.edit.endswith("from source") else None
    moved = torch.zeros(())
    for sae in m.saes_at(site):
        stats = m.collected.stats(sae)
        check_counted(stats, label, source)
        v = mean_difference(stats, label, source, others="labels" if source else "tokens")
        units = v.nonzero().flatten().tolist()
        if units:
            moved = moved + (v[units] / v.norm()).float() @ sae.directions_of(units).cpu()
    if not moved.any():
        return NOTHING
    _, length = direction_at(m, site, label)
    moved = m.direction(moved, label, site)
    at = site
    if recipe.edit.endswith("block before"):
        kind, _, layer = site.partition("@")
        if kind != "resid_post" or not int(layer):
            return NOTHING
        at = f"{kind}@{int(layer) - 1}"
    return {at: [add(on_device(m, rescale(moved, length)), limit_at(m, site))]}, 0
