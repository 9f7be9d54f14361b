"""What recipes read beside statistics: counts of tokens, samples of vectors, scores of output."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from saefeat.activations import sampled_vectors
from saefeat.corpora import Plan
from saefeat.dictionaries import SAE
from saefeat.generation import end_tokens
from saefeat.hooks import intervene
from saefeat.lens.logits import top_tokens
from saefeat.models import LanguageModel
from saefeat.tokens import outliers

_TEXT = "From my experience,"  # what output scores are measured on, as published
_AMPLIFIED = 10  # a feature gets its value plus so many times the token's greatest
_PROMOTED = 20  # tokens of a feature
_TOGETHER = 32  # features in one forward pass
_ALPHA = 1.0  # added to each count of a token


@dataclass
class Sample:
    """Vectors of a site: x float32 [n, d] on the CPU, and the row of each one's label [n]."""

    x: Tensor
    of: Tensor
    labels: tuple[str, ...]

    def take(self, labels: Sequence[str]) -> Tensor:
        """The vectors of some labels, float32 [m, d]."""
        rows = torch.tensor([self.labels.index(label) for label in labels])
        return self.x[torch.isin(self.of, rows)]


@dataclass
class Evidence:
    """Measures what recipes need of a model and the texts of a plan. Each thing is measured once.

    Attributes:
        make_plan: returns the plan of the statistics, where that is needed.
    """

    lm: LanguageModel
    make_plan: Callable[[], Plan]
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)

    # ----------------------------------------------------------------------- vectors

    def sample(self, site: str, max_norm: float | None) -> Sample:
        """A sample of the vectors of a site, without those of greater norm, for each label."""
        if site not in self._known:
            labels = self.make_plan().corpus.labels
            self._known[site] = Sample(*sampled_vectors(self.lm, self.make_plan(), site), labels)
        found: Sample = self._known[site]
        if max_norm is None:
            return found
        kept = ~outliers(found.x, max_norm)
        return Sample(found.x[kept], found.of[kept], found.labels)

    # ----------------------------------------------------------------------- tokens

    @property
    def vocabulary(self) -> int:
        """Number of logits of a token."""
        return self.lm.unembedding().shape[0]

    @cached_property
    def counts(self) -> Tensor:
        """How often each label has each token: int64 [K, vocabulary]."""
        plan, lm = self.make_plan(), self.lm
        row = {label: k for k, label in enumerate(plan.corpus.labels)}
        found: list[list[Tensor]] = [[] for _ in row]
        for window in range(plan.window_count):
            for batch in plan.batches(lm, plan.window(window)):
                for at, position in enumerate(batch.positions):
                    ids = batch.input_ids[at][batch.counted[at]]
                    found[row[plan.corpus.of[position]]].append(ids)
        none = torch.zeros(0, dtype=torch.int64)
        return torch.stack(
            [torch.bincount(torch.cat([none, *ids]), minlength=self.vocabulary) for ids in found]
        )

    @cached_property
    def probabilities(self) -> Tensor:
        """p(token | label), with 1 added to each count: float64 [K, vocabulary]."""
        counts = self.counts.double() + _ALPHA
        return counts / counts.sum(1, keepdim=True)

    def _row(self, label: str) -> int | None:
        """The row of a label with tokens."""
        row = self.make_plan().corpus.labels.index(label)
        return row if self.counts[row].any() else None

    def own_tokens(self, label: str) -> Tensor:
        """The tokens that a label has, and no other label with greater probability.

        By Bayes with equal priors, these are the tokens whose most probable label it is.

        Returns:
            bool [vocabulary]; none for a label without tokens.
        """
        row = self._row(label)
        if row is None:
            return torch.zeros(self.vocabulary, dtype=torch.bool)
        p = self.probabilities
        return (self.counts[row] > 0) & (p[row] >= p.max(0).values)

    def log_odds(self, label: str) -> Tensor | None:
        """ln p(token | label) - ln of its mean over the other labels: float32 [vocabulary].

        None where the label, or all others, have no tokens.
        """
        row, counted = self._row(label), self.counts.any(1)
        if row is None or counted.sum() < 2:
            return None
        counted[row] = False
        p = self.probabilities
        return (p[row].log() - p[counted].mean(0).log()).float()

    @cached_property
    def neutral_tokens(self) -> Tensor:
        """Tokens of all languages, bool [vocabulary]: without letters, special, and end of text."""
        tokenizer, n = self.lm.tokenizer, min(self.vocabulary, len(self.lm.tokenizer))
        texts = tokenizer.batch_decode([[token] for token in range(n)])
        found = torch.zeros(self.vocabulary, dtype=torch.bool)
        found[:n] = torch.tensor([_is_neutral(text) for text in texts])
        special = [t for t in {*self.lm.special_ids, *end_tokens(self.lm)} if t < self.vocabulary]
        found[special] = True
        return found

    # ----------------------------------------------------------------------- output scores

    def output_scores(
        self, sae: SAE, site: str, units: Sequence[int], tokens: Tensor | None = None
    ) -> Tensor:
        """Score how much features of a site change what the model says next (Arad et al., 2025).

        At the last position of a fixed text, a feature gets ten times the token's greatest value
        more. The score is (1 - the least rank of the feature's tokens / vocabulary) * the greatest
        probability of one of them. The feature's tokens are the 20 that its direction promotes.

        Args:
            tokens: bool [vocabulary]: the score is the probability of all of these together.

        Returns:
            float32 [m].
        """
        key = (sae.id, site, tokens is None)
        lm, known = self.lm, self._known.setdefault(key, {})
        ids = torch.tensor([lm.prefix + lm.tokenize([_TEXT], 32)[0]], device=lm.device)
        left = [unit for unit in units if tokens is not None or unit not in known]
        for start in range(0, len(left), _TOGETHER):
            some = left[start : start + _TOGETHER]
            directions = sae.directions_of(some)
            p = self._amplified(sae, site, directions.to(lm.device), ids)
            known |= zip(some, _scores(p, lm, directions, tokens), strict=True)
        return torch.tensor([known[unit] for unit in units])

    def _amplified(self, sae: SAE, site: str, directions: Tensor, ids: Tensor) -> Tensor:
        """Next-token probabilities float32 [m, vocabulary], each with one feature amplified."""
        lm, on_device = self.lm, sae.to(self.lm.device)

        def edit(x: Tensor, _steps: Tensor) -> Tensor:
            last = x[:, -1].float()
            greatest = on_device.encode(last).dense().amax(1, keepdim=True)
            moved, size = _AMPLIFIED * greatest * directions, on_device.spread(last)
            changed = x.clone()
            changed[:, -1] = (last + (moved if size is None else moved * size)).to(x.dtype)
            return changed

        with torch.inference_mode(), intervene(lm.model, {lm.site(site).path: edit}):
            out = lm.model(input_ids=ids.expand(len(directions), -1), use_cache=False)
        return out.logits[:, -1].float().softmax(-1).cpu()


def _scores(p: Tensor, lm: LanguageModel, directions: Tensor, tokens: Tensor | None) -> list[float]:
    if tokens is not None:
        return p[:, tokens].sum(1).tolist()
    promoted = top_tokens(lm, directions, _PROMOTED, bias=False)
    best = p.gather(1, promoted).amax(1, keepdim=True)
    ranks = (p > best).sum(1)
    return ((1 - ranks / p.shape[1]) * best[:, 0]).tolist()


def _is_neutral(text: str) -> bool:
    """Whether a text has no letter and no part of one."""
    return not any(
        character == "\ufffd" or unicodedata.category(character)[0] in "LM" for character in text
    )
