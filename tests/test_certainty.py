"""Certainty of selections, against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import make_stats, make_table
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from saefeat.certainty import (
    bootstrap,
    half,
    measure_certainty,
    q_values,
    specificity_p,
    stability,
    stats_of,
)
from saefeat.io import UserError
from saefeat.methods.lape import lape

LABELS = ("L0", "L1", "L2")


@pytest.fixture
def tables(tmp_path):
    """Statistics and responses of 60 examples and 6 units.

    Unit 0 fires in L0 alone, unit 1 in all labels alike, unit 2 never, the others at random.
    """
    generator = np.random.default_rng(0)
    label = [n % 3 for n in range(60)]
    tokens = generator.integers(5, 15, 60)
    fired = generator.binomial(tokens[:, None], 0.3, (60, 6))
    fired[:, 0] = np.where(np.array(label) == 0, 5, 0)
    fired[:, 1] = 4
    fired[:, 2] = 0
    stats = make_stats(
        "a",
        site="mlp_act@0",
        kind="identity",
        tokens=[int(tokens[k::3].sum()) for k in range(3)],
        examples=[20] * 3,
        fired=[fired[k::3].sum(0).tolist() for k in range(3)],
        fired_examples=[(fired[k::3] > 0).sum(0).tolist() for k in range(3)],
    )
    ids = [f"id{n // 3}" for n in range(60)]
    table = make_table(
        tmp_path,
        "responses",
        stats,
        label,
        ids,
        tokens=tokens.tolist(),
        fired=fired.tolist(),
        mean=(fired * 0.5 / tokens[:, None]).tolist(),
    )
    return stats, table, np.array(label), tokens, fired


def spread(label, tokens, fired):
    """Entropy over the labels of one unit's firing probabilities."""
    p = [fired[label == k].sum() / tokens[label == k].sum() for k in range(3)]
    return -sum(x / sum(p) * math.log(x / sum(p)) for x in p if x > 0)


def test_p_values_are_the_share_of_permutations_of_no_greater_entropy(tables):
    _, table, label, tokens, fired = tables
    found = specificity_p(table, permutations=50, seed=3)
    generator = torch.Generator().manual_seed(3)
    shuffled = [label[torch.randperm(60, generator=generator).numpy()] for _ in range(50)]
    for unit in (0, 1, 3, 4, 5):
        observed = spread(label, tokens, fired[:, unit])
        lower = [spread(one, tokens, fired[:, unit]) <= observed + 1e-5 for one in shuffled]
        assert found[unit] == pytest.approx((1 + sum(lower)) / 51)
    assert found[0] == pytest.approx(1 / 51)
    assert found[2] == 1


def test_the_same_seed_gives_the_same_numbers_in_any_parts(tables, monkeypatch):
    table = tables[1]
    whole = specificity_p(table, permutations=20), bootstrap(table, torch.tensor([0, 4]))
    monkeypatch.setattr(
        "saefeat.certainty.chunks", lambda width, rows, cells=0: [range(0, 1), range(1, width)]
    )
    assert torch.equal(whole[0], specificity_p(table, permutations=20))
    for one, other in zip(whole[1], bootstrap(table, torch.tensor([0, 4])), strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.equal(whole[0], specificity_p(table, permutations=20, seed=1))


def test_units_without_a_label_have_uniform_p_values(tmp_path):
    generator = np.random.default_rng(1)
    fired = generator.binomial(10, 0.4, (90, 400))
    stats = make_stats("a", fired=np.zeros((3, 400), int).tolist())
    table = make_table(
        tmp_path,
        "responses",
        stats,
        [n % 3 for n in range(90)],
        [str(n) for n in range(90)],
        tokens=[10] * 90,
        fired=fired.tolist(),
        mean=fired.tolist(),
    )
    p = specificity_p(table, permutations=199)
    for level in (0.05, 0.2, 0.5):  # within four standard errors
        error = 4 * math.sqrt(level * (1 - level) / 400)
        assert float((p <= level).double().mean()) == pytest.approx(level, abs=error)
    assert not (q_values(p, torch.ones(400, dtype=torch.bool)) < 0.05).any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=30), st.data())
def test_q_values_are_those_of_scipy(values, data):
    tested = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    found = q_values(torch.tensor(values, dtype=torch.float64), torch.tensor(tested)).numpy()
    if any(tested):
        wanted = false_discovery_control(np.array(values)[tested])
        np.testing.assert_allclose(found[tested], wanted, rtol=1e-12)
    assert (found[~np.array(tested)] == 1).all()


def test_intervals_are_percentiles_of_resampled_examples(tables):
    _, table, label, tokens, fired = tables
    units = torch.tensor([4, 0, 5])
    probability, entropy = bootstrap(table, units, resamples=40, seed=5)
    generator = torch.Generator().manual_seed(5)
    drawn = []
    for k in range(3):
        rows = np.flatnonzero(label == k)
        drawn.append(rows[torch.randint(20, (40, 20), generator=generator).numpy()])
    for at, unit in enumerate(units.tolist()):
        p = np.array(
            [
                [fired[rows[b], unit].sum() / tokens[rows[b]].sum() for b in range(40)]
                for rows in drawn
            ]
        )
        np.testing.assert_allclose(
            probability[:, :, at], np.quantile(p, [0.025, 0.975], axis=1), rtol=1e-5, atol=1e-6
        )
        share = p / p.sum(0)
        h = -np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0).sum(0)
        np.testing.assert_allclose(entropy[:, at], np.quantile(h, [0.025, 0.975]), atol=1e-5)
    low, high = probability[:, 0, 0].tolist()
    observed = fired[label == 0, 4].sum() / tokens[label == 0].sum()
    assert low < observed < high


def test_halves_are_disjoint_keep_translations_together_and_sum_to_the_whole(tables):
    stats, table, *_ = tables
    parts = [half(table, 0, n) for n in (0, 1)]
    assert not set(parts[0].ids) & set(parts[1].ids)
    assert sorted(parts[0].ids + parts[1].ids) == sorted(table.ids)
    assert min(len(part.ids) for part in parts) >= 12
    made = [stats_of(stats, part) for part in parts]
    for name in ("tokens", "examples", "fired", "fired_examples"):
        total = made[0].tensors[name] + made[1].tensors[name]
        assert torch.equal(total, stats.tensors[name]), name
    whole = stats_of(stats, table)
    torch.testing.assert_close(whole.probability(), stats.probability())
    assert (whole.sum - (stats.fired * 0.5 / 2**-20).long()).abs().max() <= 2  # float32 means
    rows = torch.cat([values for _, values in parts[1].windows("fired")])
    assert torch.equal(rows, parts[1].read("fired"))


def test_a_selection_gets_a_row_per_row(tables):
    stats, table, *_ = tables
    selection = lape([stats], top_rate=0.5, filter_rate=0.6, activation_bar_ratio=0.6)
    found = measure_certainty(selection, [stats], [table], permutations=199, resamples=50)
    assert found.table["unit"].to_pylist() == selection.table["unit"].to_pylist()
    first = found.table.slice(0, 1).to_pylist()[0]
    assert (first["label"], first["unit"]) == ("L0", 0)
    assert first["entropy"] == 0 and first["p"] == 1 / 200
    assert first["q"] == pytest.approx(5 / 200)  # of the five units that fire
    assert first["probability_low"] < first["probability"] < first["probability_high"]
    assert len(found.tested) == 5
    q = found.table["q"].to_numpy()
    assert found.significant() == ((q < 0.05).mean(), (found.tested < 0.05).mean())
    assert found.significant(0)[1] == 0
    assert found.stability["L0"] > 0
    again = measure_certainty(selection, [stats], [table], permutations=199, resamples=50)
    assert again.table.equals(found.table) and again.stability.keys() == set(LABELS)


def test_stability_is_the_intersection_over_the_union():
    one = lape([make_stats("a", kind="identity", tokens=[9] * 2, fired=[[9, 8, 0], [0, 0, 7]])])
    rows = [
        lape(
            [make_stats("a", kind="identity", tokens=[9] * 2, fired=fired)],
            top_rate=1.0,
            filter_rate=0.4,
            activation_bar_ratio=0.4,
        )
        for fired in ([[9, 8, 0], [0, 0, 0]], [[9, 0, 8], [0, 0, 0]])
    ]
    found = stability(one, rows)
    assert found["L0"] == pytest.approx(1 / 3) and math.isnan(found["L1"])


def test_the_command_writes_a_table_and_says_what_is_missing(saefeat, tiny_run, tmp_path):
    options = ["--method", "lape", "--show", "0", "--certainty", tmp_path / "c.csv"]
    code, _, err = saefeat("rank", tiny_run / "stats", "--out", tmp_path / "s.parquet", *options)
    assert code == 2 and "responses" in err and "collect --with responses" in err
    assert not (tmp_path / "c.csv").exists()


def test_too_few_labels_are_refused(tmp_path):
    stats = make_stats("a", fired=[[1], [0]])
    table = make_table(
        tmp_path, "responses", stats, [0, 0], ["a", "b"], tokens=[3, 3], fired=[1, 1], mean=[1, 1]
    )
    with pytest.raises(UserError, match="needs two"):
        specificity_p(table)
