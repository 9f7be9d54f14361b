"""The loop over a model's activations: batches -> vectors of the counted tokens, by site.

SAE training, collection, language identification, the fit check, the report and the forecast all
read activations here. Which tokens count is decided in `saefeat.tokens`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from saefeat.corpora import Batch, Plan, hashed_order
from saefeat.hooks import capture
from saefeat.models import LanguageModel
from saefeat.progress import beat
from saefeat.tokens import finite, norms, outlier_limit

SAMPLE_TOKENS = 4096  # their median norm gives the outlier limit where no SAE has one
LABEL_TOKENS = 1000  # of each label in a sample of vectors
SAMPLED_VECTORS = 2**14  # of all labels together
# Significant digits of a limit. The last bits of a median differ between machines, and all shards
# of a collection must leave out the same tokens.
DIGITS = 3


def counted_vectors(
    lm: LanguageModel, batches: Iterable[Batch], sites: Sequence[str]
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Run batches (see `Plan.batches`) through the model, up to the deepest of the sites.

    Args:
        sites: names of sites or module paths. Two names of one module share its vectors.

    Yields:
        Each batch, and by site the vectors [n, d] of its n counted tokens, row by row, in the
        model's dtype and on its device. Outliers are among them: each dictionary decides which
        of those count (`Dictionary.keeps`).

    Raises:
        UserError: a site does not exist, or its module does not run in a forward pass.
    """
    paths = {site: lm.site(site).path for site in sites}
    with capture(lm.model, tuple(dict.fromkeys(paths.values()))) as captured:
        for batch in batches:
            # Inference mode ends before the yield, so that it does not reach into the caller.
            with torch.inference_mode():
                tensors = captured.run(
                    lm.model,
                    input_ids=batch.input_ids.to(lm.device),
                    attention_mask=batch.attention_mask.to(lm.device),
                    use_cache=False,
                )
                counted = batch.counted.to(lm.device)
                vectors = {path: tensor[counted] for path, tensor in tensors.items()}
            beat()
            yield batch, {site: vectors[path] for site, path in paths.items()}


def norm_limits(lm: LanguageModel, plan: Plan, sites: Sequence[str]) -> dict[str, float]:
    """Return the outlier limit of each site, from the norms of a sample of the plan's tokens.

    It is the same in every shard of a collection. Raises RunFailed when a vector is not finite.
    """
    if not sites:
        return {}
    found = {site: [] for site in sites}
    for _, vectors in counted_vectors(lm, plan.batches(lm, _sample(plan)), sites):
        for site, x in vectors.items():
            found[site].append(finite(norms(x)))
    limits = {site: float(outlier_limit(torch.cat(parts))) for site, parts in found.items()}
    return {site: float(f"{limit:.{DIGITS}g}") for site, limit in limits.items()}


def sampled_vectors(lm: LanguageModel, plan: Plan, site: str) -> tuple[Tensor, Tensor]:
    """Return vectors of counted tokens of a site, of as many of each label where the plan has them.

    Examples are chosen by hashed id, until each label has LABEL_TOKENS tokens; of many labels, so
    many that all have some SAMPLED_VECTORS together. Outliers are among them.

    Returns:
        float32 [n, d], and the row of each vector's label, int64 [n]; both on the CPU.
    """
    corpus, seed = plan.corpus, plan.policy["seed"]
    most = max(1, min(LABEL_TOKENS, SAMPLED_VECTORS // len(corpus.labels)))
    left, chosen = dict.fromkeys(corpus.labels, most), []
    for i in map(int, hashed_order(corpus, plan.chosen, seed, "vectors")):
        label = corpus.of[i]
        if left[label] > 0:
            left[label] -= plan.counts[i]
            chosen.append(i)
    row = {label: k for k, label in enumerate(corpus.labels)}
    vectors, of = [], []
    for batch, found in counted_vectors(lm, plan.batches(lm, chosen), [site]):
        rows = torch.tensor([row[corpus.of[i]] for i in batch.positions])
        vectors.append(finite(found[site].float()).cpu())
        of.append(rows.repeat_interleave(batch.counted.sum(1)))
    return torch.cat(vectors), torch.cat(of)


def _sample(plan: Plan) -> list[int]:
    """Return examples with some SAMPLE_TOKENS counted tokens, chosen by hashed id."""
    seed = plan.policy["seed"]
    chosen: list[int] = []
    total = 0
    for i in map(int, hashed_order(plan.corpus, plan.chosen, seed, "norms")):
        if total >= SAMPLE_TOKENS:
            break
        chosen.append(i)
        total += plan.counts[i]
    return chosen
