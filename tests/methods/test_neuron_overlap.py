from fractions import Fraction

from helpers import make_stats, selection_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from saefeat.methods.neuron_overlap import neuron_overlap


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_takes_the_fewest_units_that_make_up_the_share(data):
    k, width = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 7))
    row = st.lists(st.integers(0, 9), min_size=width, max_size=width)
    fired = [data.draw(row) for _ in range(k)]
    percent = data.draw(st.integers(1, 100))
    stats = make_stats("a", tokens=[10] * k, fired=fired)
    selection = neuron_overlap([stats], share=percent / 100)
    for at, counts in enumerate(fired):
        wanted, found = [], 0
        for unit in sorted(range(width), key=lambda u: (-counts[u], u)):
            if counts[unit] and Fraction(found) < Fraction(percent, 100) * sum(counts):
                wanted.append(unit)
                found += counts[unit]
        rows = [row for row in selection_rows(selection) if row[0] == f"L{at}"]
        # At a share that is met exactly, the product of floats may be just above or below.
        exact = (percent * sum(counts)) % 100 == 0
        assert [row[3] for row in rows][: len(wanted)] == wanted or exact
        assert len(rows) - len(wanted) in ((-1, 0, 1) if exact else (0,))
        assert all(abs(-row[4] - counts[row[3]] / 10) < 1e-7 for row in rows)


def test_a_case_by_hand():
    stats = make_stats("a", tokens=[10, 0, 10], fired=[[2, 6, 0, 2], [0] * 4, [1, 1, 1, 1]])
    assert [row[:4] for row in selection_rows(neuron_overlap([stats], share=0.7))] == [
        ("L0", 1, "a", 1),
        ("L0", 2, "a", 0),
        ("L2", 1, "a", 0),
        ("L2", 2, "a", 1),
        ("L2", 3, "a", 2),
    ]
    assert [row[3] for row in selection_rows(neuron_overlap([stats], share=1.0))] == [
        *(1, 0, 3),
        *(0, 1, 2, 3),
    ]
