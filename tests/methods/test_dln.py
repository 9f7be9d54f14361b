"""DLN against all bipartitions by loops, and cases worked by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers import make_stats, refused, selection_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from saefeat.methods.dln import dln
from saefeat.statistics.distributions import BINS, CENTRE, Distributions

TOKENS = 16  # a power of two, so that shares and overlaps are exact, and ties are ties


def ranked(tables, present=None, **parameters):
    """The selection of {dictionary: counts [K, width, few bins]} of TOKENS tokens each."""
    stats, found = [], []
    for name, counts in tables.items():
        counts = np.asarray(counts)
        labels, width, used = counts.shape
        tokens = [TOKENS * (present is None or k in present) for k in range(labels)]
        cells = [[1] * width] * labels
        stats.append(make_stats(name, fired=cells, tokens=tokens, kind="identity"))
        made = Distributions.zeros(stats[-1].labels, width, dictionary={"id": name})
        made.tokens += torch.tensor(tokens)
        made.counts[..., CENTRE - 1 : CENTRE - 1 + used] = torch.tensor(counts)
        made.counts[..., CENTRE] = 0  # the rest of the tokens
        found.append(made)
    return dln(stats, found, **parameters)


def best(overlap, labels):
    """The first bipartition of least cost, in the published order."""
    found = None
    for size in range(1, len(labels) // 2 + 1):
        for side in itertools.combinations(labels, size):
            others = [k for k in labels if k not in side]
            cost = max(overlap[frozenset((i, j))] for i in side for j in others)
            if found is None or cost < found[0]:
                found = (cost, side)
    return found


def oracle(tables, labels, rate, clusters):
    overlaps, every = {}, []
    for name, counts in tables.items():
        for unit in range(len(counts[0])):
            pairs = {
                frozenset((i, j)): sum(
                    min(a, b) / TOKENS
                    for a, b in zip(counts[i][unit], counts[j][unit], strict=True)
                )
                for i, j in itertools.combinations(labels, 2)
            }
            overlaps[name, unit] = pairs
            every += pairs.values()
    bar = sorted(every)[max(1, int(rate * len(every))) - 1]
    rows, sizes = [], {}
    for (name, unit), pairs in overlaps.items():
        cost, side = best(pairs, labels)
        if cost <= bar:
            kind = "single" if len(side) == 1 else "multi"
            sizes[kind, name] = sizes.get((kind, name), 0) + 1
            if clusters in (kind, "any"):
                rows += [(k, cost, name, unit) for k in side]
    return [(f"L{k}", name, unit, cost) for k, cost, name, unit in sorted(rows)], sizes


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    labels=st.integers(2, 6),
    bins=st.integers(2, 5),
    rate=st.sampled_from([0.01, 0.3, 1.0]),
    clusters=st.sampled_from(["any", "single", "multi"]),
)
def test_rows_are_those_of_all_bipartitions(seed, labels, bins, rate, clusters):
    g = np.random.default_rng(seed)
    tables = {
        name: g.multinomial(TOKENS, g.dirichlet(np.full(bins, 0.3)), (labels, width)).tolist()
        for name, width in {"b": 4, "a": 5}.items()
    }
    selection = ranked(tables, rate=rate, clusters=clusters)
    expected, sizes = oracle(tables, range(labels), rate, clusters)
    found = selection_rows(selection)
    assert [(row[0], row[2], row[3], row[4]) for row in found] == expected
    classes = selection.header["classes"]
    assert {
        (kind, n): c for kind in ("single", "multi") for n, c in classes[f"{kind}-label"].items()
    } == sizes


def test_a_case_worked_by_hand():
    # Unit 0: L0 is apart, L1 and L2 share 12 of 16 tokens. Unit 1: all alike.
    counts = [[[16, 0, 0], [16, 0, 0]], [[2, 14, 0], [16, 0, 0]], [[0, 12, 4], [16, 0, 0]]]
    selection = ranked({"a": counts}, rate=0.4)  # bar: second of 0, 2/16, 12/16, 1, 1, 1
    assert selection_rows(selection) == [("L0", 1, "a", 0, 2 / 16)]
    assert selection.header["classes"] == {"single-label": {"a": 1}, "multi-label": {}}
    assert len(ranked({"a": counts}, rate=0.2)) == 0  # bar: 0
    assert selection.header["parameters"] == {"rate": 0.4, "clusters": "any"}


def test_an_even_split_is_that_of_the_first_label():
    counts = [[[16, 0]], [[0, 16]], [[0, 16]], [[16, 0]]]
    found = [row[0] for row in selection_rows(ranked({"a": counts}, rate=0.5))]
    assert found == ["L0", "L3"]


def test_a_label_without_tokens_is_as_if_it_were_not_there():
    g = np.random.default_rng(2)
    counts = g.multinomial(TOKENS, [0.5, 0.3, 0.2], (3, 6))
    three = selection_rows(ranked({"a": counts}, rate=1.0))
    gap = np.insert(counts, 1, 0, axis=0)
    four = selection_rows(ranked({"a": gap}, present={0, 2, 3}, rate=1.0))
    names = {"L0": "L0", "L1": "L2", "L2": "L3"}
    assert four == [(names[row[0]], *row[1:]) for row in three]


def test_one_label_is_refused():
    with refused("the rule compares two labels or more"):
        ranked({"a": [[[16, 0]], [[0, 0]]]}, present={0})


def test_the_bins_of_both_signs_are_mirrored_and_the_middle_has_what_is_small():
    from saefeat.statistics.distributions import bins

    values = torch.tensor([0.0, -0.0, 2**-6 - 1e-9, 2**-6, -(2**-6), 1e9, -1e9, 1.0, 1.124, 1.125])
    found = bins(values).tolist()
    assert found[:3] == [CENTRE] * 3 and found[3:5] == [CENTRE + 1, CENTRE - 1]
    assert found[5:7] == [BINS - 1, 0]
    assert found[7] == found[8] == CENTRE + 1 + 6 * 8 and found[9] == found[8] + 1
    some = torch.rand(1000) * 10 ** (8 * torch.rand(1000) - 4)
    assert torch.equal(bins(some) - CENTRE, CENTRE - bins(-some))
    assert (bins(some.sort().values).diff() >= 0).all()


@pytest.mark.parametrize("kind", ["dense", "padded", "flat"])
def test_shares_are_those_of_a_loop_and_add_up_to_one(kind, monkeypatch):
    from saefeat.codes import Codes
    from saefeat.statistics import Observed
    from saefeat.statistics import distributions as module

    monkeypatch.setattr(module, "_BUFFER", 5)
    values = torch.randn(12, 3) * (torch.rand(12, 3) < 0.7)
    if kind == "dense":
        codes = [Codes(part, None, 3, signed=True) for part in values.split(4)]
    else:
        values = values.clamp(min=0)
        codes = []
        for part in values.split(4):
            token, unit = (part > 0).nonzero(as_tuple=True)
            flat = Codes(part[token, unit], unit, 3, counts=(part > 0).sum(1))
            order = part.argsort(1, descending=True)
            codes.append(flat if kind == "flat" else Codes(part.gather(1, order), order, 3))
    made = Distributions.zeros(("a", "b", "c"), 3, dictionary={"id": "d"})
    for part in codes:  # two examples, of one token and of three
        made.add(Observed(part, torch.tensor([1, 3]), torch.tensor([2, 0]), torch.arange(2)))
    shares = made.shares()
    assert made.tokens.tolist() == [9, 0, 3]
    assert not shares[1].any()
    for k, rows in ((0, [1, 2, 3, 5, 6, 7, 9, 10, 11]), (2, [0, 4, 8])):
        assert shares[k].sum(-1).tolist() == pytest.approx([1, 1, 1])
        for unit in range(3):
            for place in range(BINS):
                count = sum(int(module.bins(values[row, unit][None])) == place for row in rows)
                assert float(shares[k, unit, place]) == pytest.approx(count / len(rows))
