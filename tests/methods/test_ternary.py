import math

import numpy as np
import pytest
import torch
from helpers import make_stats, selection_rows
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from saefeat.io import UserError
from saefeat.methods.ternary import TOLERANCE, _search, ternary
from saefeat.selection import Selection


def tables(name, tokens, fired):
    return make_stats(name, tokens=tokens, fired=fired, signed=True, kind="identity")


def oracle(dictionaries, top_rate, bar_rate, penalty, normalised):
    """The published rule with loops: {(label, id, unit): score}, {class: {id: number}}."""
    present = [
        k
        for k in range(len(next(iter(dictionaries.values()))[0]))
        if any(tokens[k] for tokens, _ in dictionaries.values())
    ]
    units = [
        (name, u, [np.float32(fired[k][u]) / np.float32(max(tokens[k], 1)) for k in present])
        for name, (tokens, fired) in sorted(dictionaries.items())
        for u in range(len(fired[0]))
    ]
    flat = sorted(float(x) for _, _, p in units for x in p)
    bar = flat[max(round(bar_rate * len(flat)), 1) - 1]
    n = len(present)

    def score(p):
        total = sum(float(x) for x in p)
        h = -sum(x / total * math.log(x / total) for x in map(float, p) if x > 0)
        h = h if total else math.log(n)
        if normalised:
            norm = sum(1 / rank for rank in range(1, n + 1)) / n
            return h / math.log(n) - penalty * float(max(p)) / norm
        return h - penalty * float(max(p))

    ordered = sorted((round(score(p), 9), at) for at, (_, _, p) in enumerate(units))
    cut = round(top_rate * len(units))
    kept = {at for _, at in ordered[:cut]}
    if 0 < cut < len(units):  # proportional counts have one entropy, but for rounding
        (last, one), (first, other) = ordered[cut - 1 : cut + 1]
        assume(first - last > 1e-8 or units[one][2] == units[other][2])
    rows, classes = {}, {of: dict.fromkeys(sorted(dictionaries), 0) for of in CLASSES}
    for at, (name, u, p) in enumerate(units):
        owners = [k for k, x in zip(present, p, strict=True) if float(x) > bar]
        classes["general-all"][name] += len(owners) == n
        if at not in kept or not owners:
            continue
        of = "specific" if len(owners) == 1 else "general" if len(owners) == n else "related"
        classes[of][name] += 1
        for k in owners:
            rows[f"L{k}", name, u] = score(p)
    return rows, classes


CLASSES = ("specific", "related", "general", "general-all")


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_equals_the_published_rule(data):
    k = data.draw(st.integers(2, 5))
    tokens = data.draw(st.permutations([101, 103, 107, 109, 113]))[:k]
    made = {}
    for name in ("b", "a")[: data.draw(st.integers(1, 2))]:
        width = data.draw(st.integers(1, 9))
        row = st.lists(st.integers(0, 100), min_size=width, max_size=width)
        made[name] = tokens, [data.draw(row) for _ in range(k)]
    rates = {name: data.draw(st.floats(0.05, 1)) for name in ("top_rate", "bar_rate")}
    rates |= {"penalty": data.draw(st.floats(0, 2)), "normalised": data.draw(st.booleans())}
    selection = ternary([tables(name, *each) for name, each in made.items()], **rates)
    rows, classes = oracle(made, **rates)
    found = {(label, name, u): s for label, _, name, u, s in selection_rows(selection)}
    assert found == pytest.approx(rows, abs=1e-8)
    assert selection.header["classes"] == classes
    for label in selection.labels:
        scores = selection.for_label(label).table["score"].to_pylist()
        assert scores == sorted(scores)


def test_a_case_by_hand(tmp_path):
    # The bar, at .8 of 12 probabilities in order (0 five times, .1 x 2, .5 x 3, .8, .9), is the
    # tenth: .5.
    fired = [[9, 0, 5, 0], [0, 8, 5, 1], [0, 0, 5, 1]]
    selection = ternary(
        [tables("a", [10, 10, 10], fired)], top_rate=0.75, bar_rate=0.75, penalty=1.0
    )
    # Scores: -.9 for unit 0, -.8 for unit 1, ln 2 - .1 for unit 3, ln 3 - .5 for unit 2.
    assert selection_rows(selection) == [
        ("L0", 1, "a", 0, pytest.approx(-0.9)),
        ("L1", 1, "a", 1, pytest.approx(-0.8)),
    ]
    selection.save(tmp_path / "s.parquet")
    assert Selection.load(tmp_path / "s.parquet").header["classes"] == {
        "specific": {"a": 2},
        "related": {"a": 0},
        "general": {"a": 0},
        "general-all": {"a": 0},
    }


def test_the_search_goes_as_far_as_no_kept_unit_is_general():
    generator = torch.Generator().manual_seed(0)
    fired = torch.randint(0, 400, (4, 500), generator=generator)
    fired[:, :30] = 900 + torch.arange(30)  # fire for all labels, and their entropy is greatest
    stats = [tables("a", [1000] * 4, fired.tolist())]
    found = ternary(stats, top_rate=0.4, bar_rate=0.9, normalised=True)
    penalty = found.header["parameters"]["penalty"]
    assert 0 < penalty < 0.19
    assert sum(found.header["classes"]["general"].values()) == 0
    assert found.header["classes"]["general-all"] == {"a": 30}
    further = ternary(
        stats, top_rate=0.4, bar_rate=0.9, normalised=True, penalty=penalty + TOLERANCE
    )
    assert further.header["classes"]["general"]["a"] > 0
    # The score of the paper is that of the code in other units.
    plain = ternary(stats, top_rate=0.4, bar_rate=0.9)
    norm = (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4
    assert plain.header["parameters"]["penalty"] == pytest.approx(penalty * math.log(4) / norm)
    assert [row[:4] for row in selection_rows(plain)] == [row[:4] for row in selection_rows(found)]


def test_the_published_penalty_is_a_step_of_the_bisection():
    # No general unit at .109375, one at .11 (arXiv 2505.21505, MGSM).
    assert _search(lambda value: value < 0.11) == 0.109375
    assert _search(lambda value: False) == 0


def test_a_unit_that_never_fires_is_not_kept_before_one_that_does():
    fired = [[0, 3, 0], [0, 2, 0]]
    selection = ternary([tables("a", [10, 10], fired)], top_rate=0.34, bar_rate=0.5, penalty=0)
    assert {row[3] for row in selection_rows(selection)} == {1}


def test_one_label_and_no_text_are_refused():
    with pytest.raises(UserError, match="two labels"):
        ternary([tables("a", [5, 0], [[1], [0]])])
    with pytest.raises(UserError, match="no label has tokens"):
        ternary([tables("a", [0, 0], [[0], [0]])])
