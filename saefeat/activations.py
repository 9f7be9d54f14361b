"""Which tokens count, and the vectors of those that do.

Special tokens and padding never count (`corpora.Batch.counted`). Tokens of outlier norm, such as
the first token of a text where the tokenizer puts no BOS before it, are left out by a limit on the
norm, at all sites but hidden neurons (`mlp_act`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from saefeat.corpora import Batch, Plan
from saefeat.corpora.corpus import hashed
from saefeat.hooks import capture
from saefeat.io import RunFailed
from saefeat.models import LanguageModel

OUTLIER_FACTOR = 8.0  # tokens whose norm exceeds this many medians of a sample are left out
SAMPLE_TOKENS = 4096  # of which the median is taken where no SAE brings one
DIGITS = (
    3  # of a limit: the last bits of a median differ between machines, and shards have to agree
)


def counted_vectors(
    lm: LanguageModel, batches: Iterable[Batch], paths: Sequence[str]
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Run batches; for each, the vectors [counted tokens, d] of every module path."""
    with capture(lm.model, tuple(dict.fromkeys(paths))) as captured:
        for batch in batches:
            # The inner block ends before the yield: the caller's own tensors are not made in
            # inference mode.
            with torch.inference_mode():
                vectors = captured.run(
                    lm.model,
                    input_ids=batch.input_ids.to(lm.device),
                    attention_mask=batch.attention_mask.to(lm.device),
                    use_cache=False,
                )
                counted = batch.counted.to(lm.device)
                found = {path: tensor[counted] for path, tensor in vectors.items()}
            yield batch, found


def inliers(x: Tensor, max_norm: float | None) -> Tensor | None:
    """Which vectors of x [n, d] have a norm of at most `max_norm`: bool [n]. None: all of them, there is no limit.

    Raises RunFailed where a vector is not finite.
    """
    return None if max_norm is None else finite(x.float().norm(dim=-1)) <= max_norm


def norm_limits(lm: LanguageModel, plan: Plan, sites: Sequence[str]) -> dict[str, float]:
    """Site -> 8 times the median norm of a sample of the plan's tokens, the same in every shard of a collection."""
    paths = {site: lm.site(site).path for site in sites}
    seed = plan.policy["seed"]
    norms: dict[str, list[Tensor]] = {path: [] for path in paths.values()}
    if norms:
        for _, vectors in counted_vectors(lm, plan.batches(lm, _sample(plan, seed)), list(norms)):
            for path, x in vectors.items():
                norms[path].append(finite(x.float().norm(dim=-1)))
    limits = {
        path: OUTLIER_FACTOR * float(torch.cat(parts).median()) for path, parts in norms.items()
    }
    return {site: float(f"{limits[path]:.{DIGITS}g}") for site, path in paths.items()}


def _sample(plan: Plan, seed: int) -> list[int]:
    """Examples of some SAMPLE_TOKENS counted tokens, by hashed id."""
    chosen: list[int] = []
    total = 0
    for i in sorted(plan.tokens, key=lambda i: (hashed(seed, "norms", plan.corpus.ids[i]), i)):
        if total >= SAMPLE_TOKENS:
            break
        chosen.append(i)
        total += plan.counts[i]
    return chosen


def finite(x: Tensor) -> Tensor:
    """Return x; raises RunFailed where it is not finite, which would pass for an outlier or a silent unit."""
    if not torch.isfinite(x.sum()):
        raise RunFailed("an activation is infinite or not a number")
    return x
