"""Which tokens count. To count other tokens, change this module alone.

A token counts when it is neither padding nor special nor of a prompt, and its vector is no outlier:

- Padding is what the attention mask leaves out.
- Special tokens are the tokenizer's own and those that it puts around a text (BOS, EOS). The option
  `count_bos` counts the tokens before a text, as SAE-LAPE was published.
- A prompt is what a corpus puts before a text (`Corpus.prompts`). What stands before the prompt
  (BOS) does not count either, even with `count_bos`. So the counts are those of prompt and text
  together, minus those of the prompt alone. A token with characters of both counts.
- A vector is an outlier when its norm exceeds a limit: `OUTLIER_FACTOR` times the median norm of a
  sample. The first token of a text usually has one where the tokenizer adds no BOS. Each dictionary
  carries its limit (`max_norm`). Hidden neurons have none, because LAPE counts them all.

Statistics, SAE training, bags, the language-identification heads and edits all use these functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from saefeat.io import RunFailed

OUTLIER_FACTOR = 8.0
_ROWS = 8192  # vectors whose float32 copies are held at once


# --------------------------------------------------------------------------- special tokens


def special_ids(tokenizer: Any, prefix: Sequence[int], suffix: Sequence[int]) -> frozenset[int]:
    """Return the ids that never count, given those that the tokenizer puts around a text."""
    return frozenset(tokenizer.all_special_ids) | set(prefix) | set(suffix)


def is_special(ids: Tensor, special: Iterable[int]) -> Tensor:
    """Return which of the token ids (any shape, int64) are special: bool of the same shape."""
    return torch.isin(ids, torch.tensor(sorted(special), dtype=ids.dtype, device=ids.device))


def without_special(ids: Sequence[int], special: frozenset[int]) -> list[int]:
    """Return the token ids of a text that count; those around it are not among them."""
    return [token for token in ids if token not in special]


def counted_tokens(
    ids: Tensor, mask: Tensor, special: Iterable[int], before: int = 0, prompts: Sequence[int] = ()
) -> Tensor:
    """Return which tokens of texts count, given ids and attention mask: bool [rows, tokens].

    Padding is on the right. The first `before` tokens of each row count even if they are special.
    `prompts`: by row, the number of first tokens that do not count, because a prompt ends there.
    """
    counted = mask.bool() & ~is_special(ids, special)
    counted[:, :before] = True
    for row, end in enumerate(prompts):
        counted[row, :end] = False
    return counted


# --------------------------------------------------------------------------- outliers


def norms(x: Tensor) -> Tensor:
    """Return the norms of vectors [n, ..., d] of any dtype: float32 [n, ...]."""
    parts = [part.float().norm(dim=-1) for part in x.split(_ROWS)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def outlier_limit(lengths: Tensor) -> Tensor:
    """Return the greatest norm that counts, given the norms [n] of a sample: float32 []."""
    return lengths.median() * OUTLIER_FACTOR


def outliers(x: Tensor, limit: float | Tensor) -> Tensor:
    """Return which vectors [n, ..., d] have a norm above the limit: bool [n, ...]."""
    return norms(x) > limit


def inliers(x: Tensor, limit: float | Tensor | None) -> Tensor | None:
    """Return which vectors [n, d] have a norm within the limit: bool [n]; None: all, without limit.

    Raises RunFailed when a vector is not finite.
    """
    return None if limit is None else finite(norms(x)) <= limit


def without_outliers(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of a sample x [n, d] that are no outliers of it, and the limit of norms."""
    lengths = norms(x)
    limit = outlier_limit(lengths)
    return x[lengths <= limit], limit


def finite(x: Tensor) -> Tensor:
    """Return x. Raises RunFailed when it is not finite.

    Without this check, such a vector would be left out as an outlier, or its units would not fire.
    """
    if not torch.isfinite(x.sum()):
        raise RunFailed("an activation is not finite (infinite or not a number)")
    return x
