"""Difference of means among units of low entropy: by hand, and against the rule with loops."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import make_stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from saefeat.io import UserError
from saefeat.methods import METHODS, check_parameters, choose, parse_parameters
from saefeat.methods.feature_diffmean import feature_diffmean, mean_difference


def stats_of(name, tokens, fired, total, *, signed=False, labels=None, **header):
    """tokens[K], fired[K][width], total[K][width] (sums of values, integers)."""
    fields = {"tokens": tokens, "fired": fired, "total" if signed else "sum": total}
    return make_stats(name, signed=signed, labels=labels, header=header, **fields)


def units(selection, name="a"):
    return selection.units(name)


def scores(selection, label):
    return selection.for_label(label).table["score"].to_pylist()


# Three labels of 10 tokens each.
#        0: L0 alone  1: L1 alone  2: all alike  3: L0 and L1  4: never  5: L2 alone, weak  6: L0 as
# 0, stronger
FIRED = [[5, 0, 6, 4, 0, 0, 5], [0, 8, 6, 4, 0, 0, 0], [0, 0, 6, 0, 0, 2, 0]]
TOTAL = [[20, 0, 90, 40, 0, 0, 30], [0, 40, 30, 10, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0]]


def example(name="a", **header):
    return stats_of(name, [10] * 3, FIRED, TOTAL, **header)


def test_by_hand():
    # Means, a tenth of TOTAL. Unit 2 has the greatest differences and the greatest entropy: it is
    # left out.
    chosen = feature_diffmean([example()], source="L2")
    assert units(chosen) == {"L0": [3, 6, 0, 5], "L1": [1, 3, 5], "L2": []}
    assert scores(chosen, "L0") == pytest.approx([-4, -3, -2, -0.1])
    assert scores(chosen, "L1") == pytest.approx([-4, -1, -0.1])
    others = feature_diffmean([example()])
    assert units(others) == {"L0": [3, 6, 0, 1, 5], "L1": [1, 6, 0, 3, 5], "L2": [3, 1, 6, 0, 5]}
    assert scores(others, "L0") == pytest.approx([-3.5, -3, -2, -2, -0.05])
    assert scores(others, "L1") == pytest.approx([-4, -1.5, -1, -1, -0.05])
    assert scores(others, "L2") == pytest.approx([-2.5, -2, -1.5, -1, -0.1])


def test_the_bar_on_the_entropy():
    # Entropies: ln 2 for unit 3, ln 3 for unit 2, 0 for the rest.
    def of(ratio):
        return units(feature_diffmean([example()], source="L2", entropy_ratio=ratio))["L0"]

    assert of(0.01) == of(math.log(2) / math.log(3) - 1e-6) == [6, 0, 5]
    assert of(math.log(2) / math.log(3) + 1e-6) == [3, 6, 0, 5]
    assert of(0.9999) == [3, 6, 0, 5]
    assert of(1.0) == [2, 3, 6, 0, 5]


@pytest.mark.parametrize("k", [2, 3, 5, 12, 13, 50, 101, 200])
def test_ratio_1_keeps_every_unit_that_fires(k):
    stats = stats_of(
        "a", [10] * k, [[3]] * k, [[i] for i in range(k)]
    )  # fires alike in all, unlike in strength
    assert units(feature_diffmean([stats], entropy_ratio=1.0))["L0"] == [0]


def test_top_is_by_label_and_dictionary():
    chosen = feature_diffmean([example("b"), example("a")], source="L2", top=2)
    assert units(chosen, "a") == units(chosen, "b") == {"L0": [3, 6], "L1": [1, 3], "L2": []}
    rows = chosen.for_label("L0").table.select(["rank", "dictionary", "unit"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        (1, "a", 3),
        (2, "b", 3),
        (3, "a", 6),
        (4, "b", 6),
    ]


def test_ties_go_to_the_lower_unit_also_where_top_cuts():
    stats = stats_of("a", [4, 4], [[2] * 40, [0] * 40], [[3] * 40, [0] * 40])
    assert units(feature_diffmean([stats], top=7)) == {"L0": list(range(7)), "L1": list(range(7))}


def test_units_that_never_fire_are_not_chosen_however_far_their_means_lie():
    # Unit 0 is negative everywhere: it never fires, its entropy is 0 by convention, its means
    # differ most.
    stats = stats_of("a", [10, 10], [[0, 5], [0, 1]], [[-90, 20], [-10, 1]], signed=True)
    assert units(feature_diffmean([stats], entropy_ratio=0.9)) == {"L0": [1], "L1": [1]}
    assert scores(feature_diffmean([stats], entropy_ratio=0.9), "L0") == pytest.approx([-1.9])


def test_a_label_without_tokens_takes_no_part():
    with_it = stats_of(
        "a", [10, 0, 10, 10], [FIRED[0], [0] * 7, *FIRED[1:]], [TOTAL[0], [0] * 7, *TOTAL[1:]]
    )
    renamed = {"L0": "L0", "L1": "L2", "L2": "L3"}
    for ratio in (0.886, 1.0):
        for source in (None, "L2"):
            plain = feature_diffmean([example()], source=source, entropy_ratio=ratio)
            found = feature_diffmean(
                [with_it], source=source and renamed[source], entropy_ratio=ratio
            )
            assert units(found)["L1"] == []
            for label, name in renamed.items():
                assert units(found)[name] == units(plain)[label]
                assert scores(found, name) == scores(plain, label)


def test_the_order_of_labels_does_not_matter():
    turned = stats_of("a", [10] * 3, FIRED[::-1], TOTAL[::-1])
    for source in (None, "L1"):
        one, two = (units(feature_diffmean([each], source=source)) for each in (example(), turned))
        assert (one["L0"], one["L1"], one["L2"]) == (two["L2"], two["L1"], two["L0"])


def test_mean_difference_by_hand():
    stats = stats_of("a", [4, 2, 1], [[1, 1]] * 3, [[8, -4], [1, 2], [3, 5]], signed=True)
    assert mean_difference(stats, "L0", "L1").tolist() == [1.5, -2.0]
    assert mean_difference(stats, "L0").tolist() == [
        2 - (0.5 + 3) / 2,
        -1 - (1 + 5) / 2,
    ]  # labels weigh the same
    assert mean_difference(stats, "L2", "L0").tolist() == [1.0, 6.0]
    assert mean_difference(stats, "L0").dtype == torch.float64


@st.composite
def tables(draw):
    k, width = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    signed = draw(st.booleans())
    tokens = [draw(st.sampled_from([0, 1, 3, 8])) for _ in range(k)]
    fired = [[draw(st.one_of(st.just(0), st.integers(0, n))) for _ in range(width)] for n in tokens]
    low = -6 if signed else 0
    total = [
        [draw(st.integers(low, 6)) if n and (signed or f) else 0 for f in row]
        for n, row in zip(tokens, fired, strict=True)
    ]
    return tokens, fired, total, signed


def oracle(tokens, fired, total, source, ratio):
    """{label: {unit: score}} in loops."""
    labels = [k for k, n in enumerate(tokens) if n]
    means = {k: [v / tokens[k] for v in total[k]] for k in labels}
    found = {}
    for k in labels:
        others = [j for j in labels if j != k] if source is None else [source]
        if k == source:
            continue
        found[k] = {}
        for u in range(len(fired[0])):
            p = [fired[j][u] / tokens[j] for j in labels]
            h = -sum(x / sum(p) * math.log(x / sum(p)) for x in p if x)
            away = abs(means[k][u] - sum(means[j][u] for j in others) / len(others))
            if any(p) and h <= ratio * math.log(len(labels)) + 1e-9 and away > 1e-9:
                found[k][u] = -away
    return found


@settings(max_examples=200, deadline=None)
@given(
    tables(),
    st.one_of(st.none(), st.integers(0, 3)),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([0.6, 0.9, 1]),
)
def test_same_as_the_rule_written_with_loops(table, source, top, ratio):
    tokens, fired, total, signed = table
    assume(sum(n > 0 for n in tokens) > 1)
    assume(source is None or (source < len(tokens) and tokens[source]))
    stats = stats_of("a", tokens, fired, total, signed=signed)
    chosen = feature_diffmean(
        [stats], source=None if source is None else f"L{source}", top=top, entropy_ratio=ratio
    )
    want = oracle(tokens, fired, total, source, ratio)
    for k in range(len(tokens)):
        cells = sorted(want.get(k, {}).values())[:top]
        # Means that are equal as fractions may differ in the last bit, and so may differences.
        got = [score for score in scores(chosen, f"L{k}") if score < -1e-9]
        own = units(chosen)[f"L{k}"][: len(got)]
        assert got == pytest.approx(cells, abs=1e-8) and got == sorted(got)
        assert [want[k][u] for u in own] == pytest.approx(got, abs=1e-8) and len(set(own)) == len(
            own
        )


def test_the_source_may_be_named_in_another_code_system():
    tokens, fired = [5, 4, 6], [[2, 1], [0, 3], [1, 1]]
    stats = stats_of("a", tokens, fired, [[3, 3], [0, 9], [2, 2]], labels=("de", "en", "fr"))
    by_code, by_own = (
        feature_diffmean([stats], source=source, entropy_ratio=1.0) for source in ("eng", "en")
    )
    assert len(by_own) and by_code.table.equals(by_own.table)
    assert by_code.header["parameters"]["source"] == "en"


def test_sources_and_labels_that_are_not_there_are_refused():
    with pytest.raises(UserError, match=r"no label 'xx'.*L0, L1, L2"):
        feature_diffmean([example()], source="xx")
    for label, source in (("xx", None), ("xx", "L1"), ("L1", "xx")):
        with pytest.raises(UserError, match="no label 'xx'"):
            mean_difference(example(), label, source)
    with pytest.raises(UserError):
        feature_diffmean([])


def test_where_there_is_nothing_to_compare_is_refused():
    single = stats_of("a", [5], [[2, 1]], [[3, 3]])
    empty = stats_of("a", [5, 0], [[2, 1], [0, 0]], [[3, 3], [0, 0]])
    silent = stats_of("a", [0, 0], [[0], [0]], [[0], [0]])
    for stats in (single, empty, silent):
        with pytest.raises(UserError, match=r"compare"):
            feature_diffmean([stats])
    with pytest.raises(UserError, match="compare"):
        mean_difference(example(), "L1", "L1")
    for label, source in (("L1", None), ("L1", "L0"), ("L0", "L1")):
        with pytest.raises(UserError, match="L1 has no tokens"):
            mean_difference(empty, label, source)
    with pytest.raises(UserError, match="L1 has no tokens"):
        feature_diffmean([empty], source="L1")


def test_statistics_that_cannot_be_pooled_are_refused():
    with pytest.raises(UserError, match="labels"):
        feature_diffmean([example(), stats_of("b", [10] * 2, FIRED[:2], TOTAL[:2])])
    with pytest.raises(UserError, match="twice"):
        feature_diffmean([example(), example()])


def test_goes_through_the_statistics_once_and_records_its_parameters():
    made = []

    def lazy():
        for name in "ab":
            made.append(name)
            yield example(name)

    chosen = feature_diffmean(lazy(), source="L2", top=3)  # type: ignore[arg-type]
    assert made == ["a", "b"]
    assert chosen.header["method"] == "feature-diffmean"
    assert chosen.header["parameters"] == {"source": "L2", "top": 3, "entropy_ratio": 0.886}
    assert list(chosen.dictionaries) == ["a", "b"]


def test_parameters_from_the_command_line():
    assert parse_parameters("feature-diffmean", ["source=en", "top=5", "entropy_ratio=1"]) == {
        "source": "en",
        "top": 5,
        "entropy_ratio": 1.0,
    }
    assert parse_parameters("feature-diffmean", ["source=none", "top=none"]) == {
        "source": None,
        "top": None,
    }
    assert check_parameters("feature-diffmean", {"source": "None"}) == {"source": "None"}
    for setting, message in (
        ("top=0", "top"),
        ("entropy_ratio=2", "less than or equal to 1"),
        ("source=5", "a valid string"),
        ("sorce=en", "source"),
    ):
        with pytest.raises(UserError, match=message):
            parse_parameters("feature-diffmean", [setting])


def test_saes_are_what_it_pools():
    saes = [example(name).header["dictionary"] for name in "ba"]
    neurons = {"id": "mlp_act@0", "site": "mlp_act@0", "kind": "identity"}
    assert choose([*saes, neurons], "feature-diffmean") == ["a", "b"]
    assert choose([*saes, neurons], "feature-diffmean", ["mlp_act*"]) == ["mlp_act@0"]
    assert METHODS["feature-diffmean"].rank is feature_diffmean
