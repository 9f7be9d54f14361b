import math

import numpy as np
import pytest
import torch
from helpers import make_stats, selection_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from saefeat.io import UserError
from saefeat.methods.sae_lape import owned_labels, passing, sae_lape, truncated


def stats_of(name, tokens, examples, fired, seen):
    """tokens[K], examples[K], fired[K][width], seen[K][width] (examples in which a unit fires)."""
    return make_stats(name, tokens=tokens, examples=examples, fired=fired, fired_examples=seen)


def units(selection):
    return {label: selection.units("a")[label] for label in selection.labels}


def oracle(pool, ratio, owners, top, by, per_layer, threshold):
    """The published rule with loops, rates 0.98 and 0.1.

    pool: {id: (tokens, examples, fired, fired_examples)}.
    """
    found = {}
    for name, (tokens, examples, fired, fired_examples) in pool.items():
        labels = range(len(tokens))
        for u in range(len(fired[0])):
            text = [k for k in labels if tokens[k] > 0 and examples[k] > 0]
            if not any(fired_examples[k][u] >= int(0.98 * examples[k]) for k in text):
                continue
            if not any(fired[k][u] > int(0.1 * tokens[k]) for k in text):
                continue
            p = [np.float32(fired[k][u]) / np.float32(max(tokens[k], 1)) for k in labels]
            own = [k for k in labels if p[k] >= np.float32(ratio) * max(p)]
            if owners != "any" and len(own) != owners:
                continue
            total = sum(sorted(float(x) for x in p))
            h = 0.0
            for x in sorted(float(x) for x in p):
                if x > 0:
                    h -= (x / total) * math.log(x / total)
            for k in own:
                found.setdefault(k, []).append(
                    (-float(p[k]) if by == "frequency" else 0.0, h, name, u)
                )
    chosen = {}
    for k, cells in found.items():
        kept, count = [], {}
        for cell in sorted(cells):
            group = cell[2] if per_layer else "all"
            count[group] = count.get(group, 0) + 1
            if top is None or count[group] <= top:
                kept.append(cell)
        chosen[k] = [(name, u, h) for _, h, name, u in kept if threshold is None or h <= threshold]
    return chosen


@st.composite
def pools(draw):
    k = draw(st.integers(1, 4))
    pool = {}
    for name in draw(st.permutations(["b", "a", "c"]))[: draw(st.integers(1, 3))]:
        width = draw(st.integers(1, 10))
        examples = draw(st.lists(st.sampled_from([0, 1, 2, 3, 4]), min_size=k, max_size=k))
        tokens = [n * draw(st.integers(1, 12)) for n in examples]
        fired = [
            [draw(st.one_of(st.just(0), st.integers(0, n))) for _ in range(width)] for n in tokens
        ]
        seen = [
            [draw(st.integers(min(f, 1), min(f, n))) for f in row]
            for n, row in zip(examples, fired, strict=True)
        ]
        pool[name] = (tokens, examples, fired, seen)
    return pool


@settings(max_examples=300, deadline=None)
@given(
    pools(),
    st.sampled_from([0.5, 0.8, 0.3, 1.0]),
    st.sampled_from([1, 2, 3, "any"]),
    st.sampled_from([None, 1, 2]),
    st.sampled_from(["entropy", "frequency"]),
    st.booleans(),
    st.sampled_from([None, 0.0, 0.5]),
)
def test_same_as_the_rule_written_with_loops(pool, ratio, owners, top, by, per_layer, threshold):
    selection = sae_lape(
        [stats_of(name, *table) for name, table in pool.items()],
        ratio=ratio,
        owners=owners,
        top=top,
        by=by,
        per_layer=per_layer,
        entropy_threshold=threshold,
    )
    want = oracle(pool, ratio, owners, top, by, per_layer, threshold)
    expected = [(f"L{k}", i + 1, *cell[:2]) for k in sorted(want) for i, cell in enumerate(want[k])]
    assert [row[:4] for row in selection_rows(selection)] == expected
    assert [row[4] for row in selection_rows(selection)] == pytest.approx(
        [c[2] for k in sorted(want) for c in want[k]], abs=1e-12
    )


# Three labels of 100 tokens and 10 examples. int(.98 * 10) = 9 examples, more than 10 tokens.
#        0: one-hot  1: uniform  2: dead  3: at half  4: below half  5: 10 tokens  6: 8 examples  7:
# pair, no third
FIRED = [[60, 40, 0, 40, 41, 10, 50, 30], [0, 40, 0, 20, 20, 0, 0, 30], [0, 40, 0, 0, 0, 0, 0, 0]]
SEEN = [[10, 10, 0, 9, 10, 9, 8, 10], [0, 10, 0, 9, 9, 0, 0, 10], [0, 10, 0, 0, 0, 0, 0, 0]]


def example(name="a"):
    return stats_of(name, [100] * 3, [10] * 3, FIRED, SEEN)


def test_by_hand():
    assert units(sae_lape([example()])) == {"L0": [0, 4], "L1": [], "L2": []}
    assert units(sae_lape([example()], owners=2)) == {"L0": [3, 7], "L1": [3, 7], "L2": []}
    assert units(sae_lape([example()], owners=3)) == {"L0": [1], "L1": [1], "L2": [1]}
    anyone = {"L0": [0, 4, 3, 7, 1], "L1": [3, 7, 1], "L2": [1]}
    assert (
        units(sae_lape([example()], owners="any"))
        == units(sae_lape([example()], owners=None))
        == anyone
    )
    scores = sae_lape([example()], owners="any").for_label("L0").table["score"].to_pylist()
    thirds = math.log(3) - 2 / 3 * math.log(2)
    assert scores[0] == 0 and scores[2:] == pytest.approx(
        [thirds, math.log(2), math.log(3)], abs=1e-7
    )


def test_cuts():
    assert units(sae_lape([example()], owners="any", top=2)) == {
        "L0": [0, 4],
        "L1": [3, 7],
        "L2": [1],
    }
    by_frequency = sae_lape([example()], owners="any", by="frequency")
    assert units(by_frequency) == {
        "L0": [0, 4, 3, 1, 7],
        "L1": [1, 7, 3],
        "L2": [1],
    }  # 3 before 1: equal p, lower entropy
    assert units(sae_lape([example()], owners="any", by="frequency", top=1)) == {
        "L0": [0],
        "L1": [1],
        "L2": [1],
    }
    cut = sae_lape([example()], owners="any", by="frequency", top=4, entropy_threshold=0.65)
    assert units(cut) == {"L0": [0, 4, 3], "L1": [3], "L2": []}
    assert cut.for_label("L1").table["rank"].to_pylist() == [1]
    assert units(sae_lape([example()], entropy_threshold=0.0)) == {"L0": [0], "L1": [], "L2": []}


def test_top_is_overall_or_in_each_dictionary():
    both = [example("b"), example("a")]
    overall = sae_lape(both, owners="any", top=3).for_label("L0")
    assert [row[1:4] for row in selection_rows(overall)] == [(1, "a", 0), (2, "b", 0), (3, "a", 4)]
    each = sae_lape(both, owners="any", top=1, per_layer=True, by="frequency").for_label("L1")
    assert [row[1:4] for row in selection_rows(each)] == [(1, "a", 1), (2, "b", 1)]


def test_filters_may_be_met_by_different_labels():
    # Label 0: in every example, rarely; label 1: in few examples, often.
    stats = stats_of("a", [100, 100], [10, 10], [[10], [40]], [[10], [2]])
    assert units(sae_lape([stats])) == {"L0": [], "L1": [0]}
    assert not passing(
        stats_of("a", [100, 100], [10, 10], [[10], [10]], [[10], [2]]), 0.98, 0.1
    ).any()


def test_a_label_without_text_lets_nothing_pass():
    stats = stats_of("a", [100, 0], [10, 0], [[50, 20], [0, 0]], [[3, 10], [0, 0]])
    assert units(sae_lape([stats])) == {"L0": [1], "L1": []}
    assert len(sae_lape([stats_of("a", [0, 0], [0, 0], [[0], [0]], [[0], [0]])], owners="any")) == 0


def test_ownership_at_exactly_the_ratio():
    p = torch.tensor([[0.8, 0.0, 0.3], [0.4, 0.0, 0.14999999]])
    assert owned_labels(p, 0.5).tolist() == [[True, False, True], [True, False, False]]


def test_truncation_is_as_published():
    counts = torch.cat(
        [torch.arange(20_000), torch.randint(0, 2**40, (20_000,)), torch.tensor([2997, 1997, 997])]
    )
    for rate in (0.98, 0.1):
        assert truncated(rate, counts).tolist() == [int(rate * n) for n in counts.tolist()]
    assert truncated(0.98, counts)[-3:].tolist() == [2937, 1957, 977]
    assert truncated(0.29, torch.tensor([100])).tolist() == [29]  # int(0.29 * 100) is 28


def test_the_published_float32_truncates_otherwise_from_the_documented_counts_on():
    for rate, first in ((0.98, 267_501), (0.1, 16_777_219)):
        counts = torch.arange(first + 1)
        published = (
            counts * rate
        ).long()  # float32, as torch multiplies an int64 tensor by a Python float
        assert published.dtype == torch.int64 and (counts * rate).dtype == torch.float32
        differs = (published != truncated(rate, counts)).nonzero().flatten()
        assert differs.tolist() == [first]


def test_goes_through_the_statistics_once_and_records_its_parameters():
    class Once:
        made = 0

        def __len__(self):
            return 2

        def __getitem__(self, i):
            if i >= 2:
                raise IndexError
            self.made += 1
            return example("ab"[i])

    lazy = Once()
    selection = sae_lape(lazy, top=5)  # type: ignore[arg-type]
    assert lazy.made == 2
    assert selection.header["method"] == "sae-lape"
    assert selection.header["parameters"] == {
        "example_rate": 0.98,
        "high_frequency_rate": 0.1,
        "ratio": 0.5,
        "owners": 1,
        "top": 5,
        "by": "entropy",
        "per_layer": False,
        "entropy_threshold": None,
    }


def test_no_statistics_are_refused():
    with pytest.raises(UserError):
        sae_lape([])
