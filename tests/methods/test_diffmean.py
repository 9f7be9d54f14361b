from fractions import Fraction

import pytest
from helpers import make_stats, selection_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from saefeat.io import UserError
from saefeat.methods.diffmean import diffmean
from saefeat.methods.monolinguality import monolinguality


def tables(name, tokens, total):
    fired = [[int(value != 0) for value in row] for row in total]
    return make_stats(name, tokens=tokens, fired=fired, sum=total, total=total, signed=True)


def oracle(tokens, total, top, *, others=None, source=None, lower=True):
    """The units of each label by the definitions, in exact fractions.

    Returns {(label, unit): score}, and whether a unit that is not chosen has the score of one that
    is: which of the two is chosen then depends on how floats are rounded.
    """
    mean = [
        [Fraction(x, n) if n else Fraction(0) for x in row]
        for n, row in zip(tokens, total, strict=True)
    ]
    chosen, tied = {}, False
    for k, n in enumerate(tokens):
        if not n or k == source:
            continue
        rest = [j for j, m in enumerate(tokens) if m and j != k and source in (None, j)]
        scored = []
        for u in range(len(total[0])):
            if others == "tokens":
                theirs = Fraction(sum(total[j][u] for j in rest), sum(tokens[j] for j in rest))
            else:
                theirs = sum(mean[j][u] for j in rest) / len(rest)
            difference = mean[k][u] - theirs
            scored.append((abs(difference) if lower else difference, u))
        ordered = sorted(scored, key=lambda pair: (-pair[0], pair[1]))
        tied |= top < len(ordered) and ordered[top - 1][0] == ordered[top][0]
        chosen |= {(f"L{k}", u): -float(d) for d, u in ordered[:top] if d > 0}
    return chosen, tied


CASES = st.integers(2, 4).flatmap(
    lambda k: st.tuples(
        st.lists(st.sampled_from([0, 16, 32, 64]), min_size=k, max_size=k).filter(
            lambda tokens: sum(n > 0 for n in tokens) > 1
        ),
        st.lists(st.lists(st.integers(-99, 99), min_size=6, max_size=6), min_size=k, max_size=k),
        st.integers(1, 6),
    )
)


@settings(max_examples=80, deadline=None)
@given(CASES, st.sampled_from(["labels", "tokens", "source"]))
def test_the_three_differences_equal_their_definitions(case, kind):
    tokens, total, top = case
    total = [row if n else [0] * 6 for n, row in zip(tokens, total, strict=True)]
    source = next(k for k, n in enumerate(tokens) if n) if kind == "source" else None
    options = {"source": f"L{source}"} if kind == "source" else {"others": kind}
    selection = diffmean([tables("a", tokens, total)], top=top, **options)
    found = {(label, u): score for label, _, _, u, score in selection_rows(selection)}
    wanted, tied = oracle(tokens, total, top, others=options.get("others"), source=source)
    assert sorted(found.values()) == pytest.approx(sorted(wanted.values()), abs=1e-9)
    assert tied or found == pytest.approx(wanted, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_monolinguality_equals_its_definition(case):
    tokens, total, top = case
    total = [row if n else [0] * 6 for n, row in zip(tokens, total, strict=True)]
    selection = monolinguality([tables("a", tokens, total)], top=top)
    found = {(label, u): score for label, _, _, u, score in selection_rows(selection)}
    wanted, tied = oracle(tokens, total, top, lower=False)
    assert sorted(found.values()) == pytest.approx(sorted(wanted.values()), abs=1e-9)
    assert tied or found == pytest.approx(wanted, abs=1e-9)


def test_a_case_by_hand():
    # Means: unit 0 4, 1, 1; unit 1 0, 2, 0. L1 has half of the tokens of each other label.
    stats = [tables("a", [16, 8, 16], [[64, 0], [8, 16], [16, 0]])]
    assert selection_rows(monolinguality(stats, top=1)) == [
        ("L0", 1, "a", 0, -3.0),
        ("L1", 1, "a", 1, -2.0),
    ]  # L2 has no unit that is higher than in the others
    rows = selection_rows(diffmean(stats, others="tokens", top=1))
    assert rows[0] == ("L0", 1, "a", 0, -3.0)  # 64 / 16 - 24 / 24
    assert rows[2] == ("L2", 1, "a", 0, pytest.approx(-2.0))  # 1 - 72 / 24
    rows = selection_rows(diffmean(stats, source="L2", top=1))
    assert rows == [("L0", 1, "a", 0, -3.0), ("L1", 1, "a", 1, -2.0)]


def test_the_top_is_per_label_and_dictionary():
    stats = [tables(name, [16, 16], [[32, 16], [0, 0]]) for name in "ba"]
    assert [row[:4] for row in selection_rows(monolinguality(stats, top=1))] == [
        ("L0", 1, "a", 0),
        ("L0", 2, "b", 0),
    ]


def test_one_label_and_an_unknown_source_are_refused():
    one = [tables("a", [16, 0], [[32], [0]])]
    for rule in (monolinguality, diffmean):
        with pytest.raises(UserError, match="nothing to compare"):
            rule(one)
    with pytest.raises(UserError, match="no label 'x'"):
        diffmean([tables("a", [16, 16], [[32], [0]])], source="x")
    with pytest.raises(UserError, match="no label to compare"):
        diffmean(one, source="L0")


def test_a_source_and_weights_of_the_others_are_refused_together(saefeat, tmp_path):
    stats = tables("a", [16, 8], [[64, 0], [8, 16]])
    recorded = [
        diffmean([stats], **options).header["parameters"]
        for options in ({}, {"others": "labels"}, {"source": "L1"})
    ]
    assert [(each["source"], each["others"]) for each in recorded] == [
        (None, "tokens"),
        (None, "labels"),
        ("L1", None),
    ]
    assert diffmean([stats], **recorded[2]).header["parameters"] == recorded[2]
    stats.save(tmp_path / "stats/a.safetensors")
    words = ["rank", tmp_path / "stats", "--method", "diffmean", "--out", tmp_path / "s.parquet"]
    code, _, told = saefeat(*words, "-p", "source=L1", "-p", "others=tokens")
    assert code == 2 and not (tmp_path / "s.parquet").exists()
    assert "the source L1 or with all others by tokens, not with both" in told
