"""Which tokens count: special tokens, padding, tokens before a text, outliers."""

from __future__ import annotations

import pytest
import torch

from saefeat.io import RunFailed
from saefeat.tokens import (
    OUTLIER_FACTOR,
    counted_tokens,
    inliers,
    norms,
    outlier_limit,
    outliers,
    special_ids,
    without_outliers,
    without_special,
)

SPECIAL = frozenset({0, 1, 2})


def test_special_ids_are_those_of_the_tokenizer_and_those_around_a_text(tokenizer):
    assert special_ids(tokenizer, [7], [8, 9]) == {0, 1, 2, 7, 8, 9}


def test_special_tokens_and_padding_do_not_count():
    ids = torch.tensor([[0, 40, 1, 41], [0, 42, 2, 2]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    counted = counted_tokens(ids, mask, SPECIAL)
    assert counted.tolist() == [[False, True, False, True], [False, True, False, False]]
    assert without_special([40, 1, 41], SPECIAL) == [40, 41]
    padding = torch.tensor([[50, 50]])  # a pad id that is no special token
    assert counted_tokens(padding, torch.tensor([[1, 0]]), SPECIAL).tolist() == [[True, False]]


def test_tokens_before_a_text_count_where_that_is_asked_for():
    ids, mask = torch.tensor([[0, 40, 1]]), torch.ones(1, 3)
    assert counted_tokens(ids, mask, SPECIAL, before=1).tolist() == [[True, True, False]]


def test_inliers_are_at_most_as_long_as_the_limit():
    x = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 0.0]])
    assert inliers(x, 5.0).tolist() == [True, False, True]
    assert outliers(x, 5.0).tolist() == [False, True, False]
    assert inliers(x, None) is None
    with pytest.raises(RunFailed, match="infinite"):
        inliers(x * torch.inf, 5.0)


def test_the_limit_is_8_medians_of_a_sample():
    x = torch.ones(10, 4)
    x[3] *= 100
    assert OUTLIER_FACTOR == 8.0
    assert float(outlier_limit(norms(x))) == 8 * 2.0
    kept, limit = without_outliers(x)
    assert torch.equal(kept, torch.ones(9, 4)) and float(limit) == 8 * 2.0


def test_norms_are_float32_and_do_not_depend_on_how_many_vectors_there_are():
    x = torch.randn(20_000, 3, dtype=torch.bfloat16)
    assert norms(x).dtype == torch.float32
    assert torch.equal(norms(x), x.float().norm(dim=1))
    assert torch.equal(norms(x.view(100, 200, 3)), norms(x).view(100, 200))
