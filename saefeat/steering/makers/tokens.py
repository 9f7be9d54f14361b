"""Logits of a label's tokens, raised: rivals of steering that need no units."""

from __future__ import annotations

import torch

from saefeat.config import SteeringRecipe
from saefeat.steering.edits import LOGITS, add
from saefeat.steering.logits import boost
from saefeat.steering.makers.common import NOTHING, Made, on_device
from saefeat.steering.materials import Materials
from saefeat.steering.twins import shuffled


def make_boost(m: Materials, recipe: SteeringRecipe, label: str, _site: str) -> Made:
    """Raise the logits of the label's tokens and of neutral ones (LATB, arXiv 2606.08994)."""
    own = m.evidence.own_tokens(label)
    if not own.any():
        return NOTHING
    neutral = m.evidence.neutral_tokens
    own = own & ~neutral
    if m.random:  # as many tokens of other labels
        others = (m.evidence.counts.any(0) & ~own & ~neutral).nonzero().flatten()
        few = shuffled(others, label)[: int(own.sum())]
        own = torch.zeros_like(own).index_fill_(0, few, True)
    tokens = (own | neutral).to(m.collected.device)
    amount, certain = recipe.parameters["amount"], recipe.parameters.get("certain")
    return {LOGITS: [boost(tokens, amount, certain)]}, int(tokens.sum())


def make_log_odds(m: Materials, recipe: SteeringRecipe, label: str, _site: str) -> Made:
    """Add the log-odds of tokens, label against others, to the logits (arXiv 2601.10960)."""
    table = m.evidence.log_odds(label)
    if table is None:
        return NOTHING
    table = shuffled(table, label) if m.random else table
    return {LOGITS: [add(on_device(m, table))]}, 0
