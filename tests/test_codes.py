"""Bags of sparse codes, of the same codes dense, and counted in plain Python are equal."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saefeat.codes import STEP, Codes, to_steps
from saefeat.io import RunFailed

HALF = 2.0**-21  # half a step: what is rounded to even
VALUES = st.one_of(
    st.sampled_from(
        [0.0, -0.0, HALF, -HALF, 3 * HALF, 5 * HALF, 1.0, 1 + HALF, -1.0, 2.0**-100, 7.25]
    ),
    st.floats(-1000, 1000, width=32),
)


def steps(value: float) -> int:
    """A value in whole steps of 2^-20, by fractions: Python rounds them half to even."""
    return round(Fraction(value) * 2**20)


@st.composite
def examples(draw):
    """(dense values [n][width], lengths of the examples)."""
    width = draw(st.integers(1, 5))
    lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    rows = [draw(st.lists(VALUES, min_size=width, max_size=width)) for _ in range(sum(lengths))]
    return rows, lengths, width


def tensors(rows, lengths, width):
    return torch.tensor(rows, dtype=torch.float32).view(-1, width), torch.tensor(lengths)


def by_hand(rows, lengths, width):
    """{(example, unit): (tokens, sum, min, max, total)} in plain Python."""
    table, start = {}, 0
    for example, length in enumerate(lengths):
        for unit in range(width):
            values = [row[unit] for row in rows[start : start + length]]
            firing = [v for v in values if v > 0]
            bounds = (min(firing), max(firing)) if firing else (float("inf"), -float("inf"))
            total = sum(steps(v) for v in values)
            table[example, unit] = (len(firing), sum(map(steps, firing)), *bounds, total)
        start += length
    return table


def sparse(dense, seed=0):
    """The same codes as values and indices, every row in an order of its own."""
    indices = torch.rand(dense.shape, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return Codes(dense.gather(1, indices), indices, dense.shape[1])


def flat(dense):
    """The same codes token by token, those that fire alone, in rising order of unit."""
    token, unit = (dense > 0).nonzero(as_tuple=True)
    return Codes(dense[token, unit], unit, dense.shape[1], counts=(dense > 0).sum(1))


@settings(deadline=None, max_examples=80)
@given(examples(), st.integers(0, 9))
def test_flat_codes_are_the_padded_ones(case, seed):
    dense, lengths = tensors(*case)
    dense = dense.clamp(min=0)
    one, other = flat(dense), sparse(dense, seed)
    assert len(one) == len(other) == len(dense)
    assert torch.equal(one.dense(), dense) and torch.equal(other.dense(), dense)
    assert torch.equal(dense[one.pairs()[0], one.units()], one.values)
    units = torch.randperm(case[2], generator=torch.Generator().manual_seed(seed))[:2]
    assert torch.equal(one.of(units), dense[:, units])
    ours, theirs = one.bag(lengths), other.bag(lengths)
    for name in ("example", "unit", "tokens", "sum", "min", "max"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


@settings(deadline=None, max_examples=80)
@given(examples())
def test_a_dense_bag_is_what_counting_by_hand_gives(case):
    dense, lengths = tensors(*case)
    for signed in (True, False):
        bag = Codes(dense, None, case[2], signed=signed).bag(lengths)
        for (example, unit), (tokens, total, low, high, everything) in by_hand(*case).items():
            got = [int(t[example, unit]) for t in (bag.tokens, bag.sum)]
            assert got == [tokens, total]
            assert [float(t[example, unit]) for t in (bag.min, bag.max)] == [low, high]
            assert bag.total is None if not signed else int(bag.total[example, unit]) == everything


@settings(deadline=None, max_examples=80)
@given(examples(), st.integers(0, 9))
def test_a_sparse_bag_holds_the_firing_pairs_counted_by_hand_in_order(case, seed):
    dense, lengths = tensors(*case)
    bag = sparse(dense, seed).bag(lengths)
    expected = {pair: row[:4] for pair, row in by_hand(*case).items() if row[0]}
    pairs = list(zip(bag.example.tolist(), bag.unit.tolist(), strict=True))
    assert pairs == sorted(expected)
    rows = zip(
        bag.tokens.tolist(), bag.sum.tolist(), bag.min.tolist(), bag.max.tolist(), strict=True
    )
    assert list(rows) == [expected[pair] for pair in pairs]
    assert bag.total is None


@settings(deadline=None, max_examples=50)
@given(examples())
def test_the_rows_of_a_dense_bag_are_the_sparse_bag(case):
    dense, lengths = tensors(*case)
    rows, other = Codes(dense, None, case[2]).bag(lengths).rows(), sparse(dense).bag(lengths)
    for name in ("example", "unit", "tokens", "sum", "min", "max"):
        assert torch.equal(getattr(rows, name), getattr(other, name)), name
    assert other.rows() is other


@settings(deadline=None, max_examples=50)
@given(st.floats(-(2**30), 2**30, width=32))
def test_a_value_is_rounded_once_half_to_even(value):
    assert int(to_steps(torch.tensor([value]))) == steps(value)


def test_steps_keep_large_and_tiny_values_apart():
    values = torch.tensor([2.0**20 + 0.125, HALF, 3 * HALF, -5 * HALF])
    assert to_steps(values).tolist() == [2.0**40 + 2**17, 0, 2, -2]
    assert STEP == 2.0**-20


def test_sparse_codes_made_dense_stand_at_their_units():
    codes = Codes(torch.tensor([[2.0, 1.0], [3.0, 0.0]]), torch.tensor([[4, 0], [1, 2]]), 5)
    assert codes.dense().tolist() == [[1, 0, 0, 0, 2], [0, 3, 0, 0, 0]]


@settings(deadline=None, max_examples=60)
@given(examples(), st.integers(0, 9), st.randoms(use_true_random=False))
def test_the_values_of_chosen_units_are_the_columns_of_the_dense_codes(case, seed, random):
    dense, _ = tensors(*case)
    width = case[2]
    units = torch.tensor(random.sample(range(width), random.randint(0, width)), dtype=torch.int64)
    for codes in (Codes(dense, None, width), sparse(dense, seed)):
        assert torch.equal(codes.of(units), dense[:, units])


def test_chosen_units_that_are_not_among_the_codes_are_0():
    codes = Codes(torch.tensor([[2.0, 1.0], [3.0, 0.0]]), torch.tensor([[4, 0], [1, 2]]), 6)
    assert codes.of(torch.tensor([4, 5, 1, 2])).tolist() == [[2, 0, 0, 0], [0, 0, 3, 0]]
    assert codes.of(torch.tensor([5])).tolist() == [[0], [0]]
    assert codes.of(torch.tensor([], dtype=torch.int64)).shape == (2, 0)
    nothing = Codes(torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.int64), 6)
    assert nothing.of(torch.tensor([4, 5])).shape == (0, 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("nan")])
@pytest.mark.parametrize("kind", ["sparse", "dense", "signed"])
def test_an_activation_that_is_no_number_fails_the_run(kind, bad):
    dense = torch.tensor([[1.0, 2.0], [bad, 3.0]])
    codes = sparse(dense) if kind == "sparse" else Codes(dense, None, 2, signed=kind == "signed")
    with pytest.raises(RunFailed):
        codes.bag(torch.tensor([1, 1]))


def test_minus_infinity_fails_the_run_where_it_is_counted():
    with pytest.raises(RunFailed):
        Codes(torch.tensor([[-torch.inf, 1.0]]), None, 2, signed=True).bag(torch.tensor([1]))


@pytest.mark.parametrize("kind", ["sparse", "dense"])
@pytest.mark.parametrize("values", [[1e14], [2.0**33], [2.0**32, 2.0**32], [3e38, 1.0]])
def test_a_sum_beyond_the_exact_range_fails_the_run(kind, values):
    dense = torch.tensor(values)[:, None]
    codes = sparse(dense) if kind == "sparse" else Codes(dense, None, 1)
    with pytest.raises(RunFailed, match="exceeds"):
        codes.bag(torch.tensor([len(values)]))


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_the_largest_exact_sum_is_kept_exactly(kind):
    dense = torch.tensor([[2.0**32], [2.0**32 - 2**8], [2.0**-20]])
    codes = sparse(dense) if kind == "sparse" else Codes(dense, None, 1)
    assert codes.bag(torch.tensor([3])).sum.tolist() in ([2**53 - 2**28 + 1], [[2**53 - 2**28 + 1]])
