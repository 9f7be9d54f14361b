import inspect
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import make_stats, selection_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from saefeat.io import UserError
from saefeat.methods import METHODS, check_parameters, choose, parse_parameters, run_methods
from saefeat.methods.lape import entropy, lape, quantile


def stats_of(name, tokens, fired):
    """Statistics of neurons. tokens[K], fired[K][width]."""
    neurons = {"site": f"mlp_act@{name}", "kind": "identity"}
    return make_stats(name, tokens=tokens, fired=fired, signed=True, **neurons)


def oracle(dictionaries, top_rate, filter_rate, bar_rate):
    """The published rule with loops: {label: [(id, unit, H)]}.

    dictionaries: {id: (tokens[K], fired[K][width])}.
    """
    k_all = len(next(iter(dictionaries.values()))[0])
    present = [k for k in range(k_all) if any(tokens[k] > 0 for tokens, _ in dictionaries.values())]
    units = []
    for name in sorted(dictionaries):
        tokens, fired = dictionaries[name]
        for u in range(len(fired[0])):
            units.append(
                (
                    name,
                    u,
                    [np.float32(fired[k][u]) / np.float32(max(tokens[k], 1)) for k in present],
                )
            )
    ordered = sorted(float(x) for _, _, p in units for x in p)

    def bar(rate):
        return ordered[max(round(rate * len(ordered)), 1) - 1]

    scored = []
    for name, u, p in units:
        if not any(float(x) > bar(filter_rate) for x in p):
            continue
        total = sum(sorted(float(x) for x in p))
        h = 0.0
        for x in sorted(float(x) for x in p):
            if x > 0:
                h -= (x / total) * math.log(x / total)
        scored.append((h, name, u, p))
    scored.sort(key=lambda item: item[:3])
    chosen = {k: [] for k in range(k_all)}
    for h, name, u, p in scored[: round(top_rate * len(units))]:
        for k, x in zip(present, p, strict=True):
            if float(x) > bar(bar_rate):
                chosen[k].append((name, u, h))
    return chosen


@st.composite
def pools(draw):
    k = draw(st.integers(1, 4))
    pool = {}
    for name in draw(st.permutations(["b@2", "a@10", "a@9"]))[: draw(st.integers(1, 3))]:
        width = draw(st.integers(1, 12))
        tokens = draw(st.lists(st.sampled_from([0, 1, 2, 3, 7, 10]), min_size=k, max_size=k))
        count = [st.lists(st.integers(0, n), min_size=width, max_size=width) for n in tokens]
        pool[name] = (tokens, draw(st.tuples(*count)))
    return pool


RATES = st.sampled_from([0.01, 0.1, 0.25, 0.5, 0.7, 0.9, 0.95, 1.0])


@settings(max_examples=300, deadline=None)
@given(pools(), RATES, RATES, RATES)
def test_same_as_the_rule_written_with_loops(pool, top_rate, filter_rate, bar_rate):
    stats = [stats_of(name, *table) for name, table in pool.items()]
    if not any(n for tokens, _ in pool.values() for n in tokens):
        with pytest.raises(UserError, match="tokens"):
            lape(stats)
        return
    selection = lape(
        stats, top_rate=top_rate, filter_rate=filter_rate, activation_bar_ratio=bar_rate
    )
    got = {
        k: [row[2:4] for row in selection_rows(selection) if row[0] == f"L{k}"]
        for k in range(len(selection.labels))
    }
    want = oracle(pool, top_rate, filter_rate, bar_rate)
    assert got == {k: [row[:2] for row in want[k]] for k in want}
    scores = [row[2] for k in want for row in want[k]]
    assert [row[4] for row in selection_rows(selection)] == pytest.approx(scores, abs=1e-12)


def test_by_hand():
    # Of the 20 values, number round(.8 * 20) = 16 in ascending order is the bar: .3. Units 4 and 9
    # are at the bar: out.
    fired = [[9, 8, 6, 0, 3, 0, 1, 1, 1, 1], [0, 8, 2, 0, 0, 0, 1, 1, 1, 3]]
    selection = lape(
        [stats_of("a", [10, 10], fired)], top_rate=0.5, filter_rate=0.8, activation_bar_ratio=0.8
    )
    share = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert [row[:4] for row in selection_rows(selection)] == [
        ("L0", 1, "a", 0),
        ("L0", 2, "a", 2),
        ("L0", 3, "a", 1),
        ("L1", 1, "a", 1),
    ]
    assert [row[4] for row in selection_rows(selection)] == pytest.approx(
        [0, share, math.log(2), math.log(2)], abs=1e-7
    )
    assert math.copysign(1, selection_rows(selection)[0][4]) == 1


def test_a_number_per_label_keeps_its_units_of_lowest_entropy():
    generator = torch.Generator().manual_seed(3)
    fired = torch.randint(0, 100, (3, 200), generator=generator).tolist()
    tokens = [100, 100, 100]
    selection = lape([stats_of("a", tokens, fired)], per_label=4)
    everything = oracle({"a": (tokens, fired)}, 1.0, 0.95, 0.95)
    for k, units in everything.items():
        chosen = selection.for_label(f"L{k}").table
        assert chosen["unit"].to_pylist() == [unit for _, unit, _ in units][:4]
        assert len(units) > 4
    other = lape([stats_of("a", tokens, fired)], per_label=4, top_rate=0.5)
    assert other.table.equals(selection.table)


def test_one_hot_has_entropy_zero_and_one_owner_uniform_is_not_selected():
    k, width = 4, 400
    fired = torch.zeros(k, width, dtype=torch.int64)
    fired[2, 7] = 90
    fired[:, 8] = 95  # uniform: entropy ln 4
    fired[:2, 9] = 90
    selection = lape([stats_of("a", [100] * k, fired.tolist())], top_rate=2 / width)
    assert selection_rows(selection) == [
        ("L0", 1, "a", 9, pytest.approx(math.log(2))),
        ("L1", 1, "a", 9, pytest.approx(math.log(2))),
        ("L2", 1, "a", 7, 0.0),
    ]


def test_never_selects_dead_units_even_where_few_pass():
    fired = [[5] + [0] * 99, [0] * 100]
    assert [
        row[3] for row in selection_rows(lape([stats_of("a", [10, 10], fired)], top_rate=1.0))
    ] == [0]
    assert len(lape([stats_of("a", [10, 10], [[0] * 9] * 2)], top_rate=1.0)) == 0


def test_a_label_without_text_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    fired = torch.randint(0, 50, (4, 300), generator=generator)
    fired[1] = 0
    full = lape([stats_of("a", [50, 0, 50, 50], fired.tolist())], top_rate=0.1)
    without = lape([stats_of("a", [50, 50, 50], fired[[0, 2, 3]].tolist())], top_rate=0.1)
    names = {"L0": "L0", "L1": "L2", "L2": "L3"}
    assert selection_rows(full) == [(names[row[0]], *row[1:]) for row in selection_rows(without)]
    assert full.labels == ("L0", "L1", "L2", "L3") and len(full.for_label("L1")) == 0


def test_entropy_does_not_depend_on_the_order_of_labels_and_units():
    p = torch.rand(7, 501, generator=torch.Generator().manual_seed(1))
    shuffled = p[torch.randperm(7)]
    assert torch.equal(entropy(p), entropy(shuffled))
    assert torch.equal(entropy(p)[100:], entropy(p[:, 100:]))
    q = p.double() / p.double().sum(0)
    torch.testing.assert_close(entropy(p), -(q * q.log()).sum(0), rtol=0, atol=1e-12)
    assert entropy(torch.zeros(3, 2)).tolist() == [0, 0]
    assert entropy(torch.full((4, 1), 0.3)).item() == pytest.approx(math.log(4))


def test_quantile_is_an_order_statistic_rounded_half_to_even():
    values = torch.arange(1, 11).float()
    assert quantile(values, 0.95).item() == 10  # 9.5 -> 10
    assert quantile(values, 0.25).item() == 2  # 2.5 -> 2
    assert quantile(values.view(2, 5).T, 0.01).item() == 1


class Lazy:
    """A sequence that makes each item anew, as one that reads files does."""

    def __init__(self, *arguments):
        self.arguments, self.made = arguments, 0

    def __len__(self):
        return len(self.arguments)

    def __getitem__(self, i):
        stats = stats_of(*self.arguments[i])
        self.made += 1
        return stats


def test_reads_each_dictionary_twice_and_records_its_parameters():
    lazy = Lazy(("a", [9, 9], [[8, 1, 0], [0, 1, 0]]), ("b", [9, 9], [[1, 1], [0, 9]]))
    selection = lape(lazy, top_rate=0.5, filter_rate=0.7)  # type: ignore[arg-type]
    assert lazy.made == 4
    assert selection.header["method"] == "lape"
    assert selection.header["parameters"] == {
        "top_rate": 0.5,
        "filter_rate": 0.7,
        "activation_bar_ratio": 0.95,
        "per_label": None,
    }
    assert list(selection.dictionaries) == ["a", "b"]


def test_other_labels_no_statistics_and_twins_are_refused():
    first = stats_of("a", [9, 9], [[8], [0]])
    for stats in ([], [first, stats_of("b", [9], [[8]])], [first, first]):
        with pytest.raises(UserError):
            lape(stats)


DICTIONARIES = [
    {"id": "sae-3", "site": "mlp_out@3", "kind": "sae"},
    {"id": "mlp_act@3", "site": "mlp_act@3", "kind": "identity"},
    {"id": "mlp_act@12", "site": "mlp_act@12", "kind": "identity"},
    {"id": "resid_post@3", "site": "resid_post@3", "kind": "identity"},
]


def test_each_method_pools_its_kind_of_dictionary():
    assert choose(DICTIONARIES, "lape") == ["mlp_act@12", "mlp_act@3"]
    assert choose(DICTIONARIES, "sae-lape", []) == ["sae-3"]
    assert choose(DICTIONARIES, "sae-lape", ["mlp_act@*", "sae-?"]) == [
        "mlp_act@12",
        "mlp_act@3",
        "sae-3",
    ]
    with pytest.raises(UserError, match=r"SAEs.*resid_post@3"):
        choose(DICTIONARIES[3:], "sae-lape")
    with pytest.raises(UserError, match="matches x"):
        choose(DICTIONARIES, "lape", ["x*"])
    with pytest.raises(UserError, match="sae-lape, feature-diffmean, lape"):
        choose(DICTIONARIES, "nothing")


def test_parameters_are_parsed():
    assert parse_parameters("lape", ["top_rate=1", " filter_rate = 0.9"]) == {
        "top_rate": 1.0,
        "filter_rate": 0.9,
    }
    settings = ["owners=any", "top=10", "by=frequency", "per_layer=true", "entropy_threshold=1"]
    assert parse_parameters("sae-lape", settings) == {
        "owners": "any",
        "top": 10,
        "by": "frequency",
        "per_layer": True,
        "entropy_threshold": 1.0,
    }
    assert parse_parameters("sae-lape", ["owners=3", "top=none"]) == {"owners": 3, "top": None}
    assert parse_parameters("sae-lape", []) == {}
    assert check_parameters("sae-lape", {"ratio": 0.8}) == {"ratio": 0.8}


@pytest.mark.parametrize(
    ("method", "setting", "message"),
    [
        ("nothing", "x=1", "choose from sae-lape, feature-diffmean, lape"),
        (
            "lape",
            "top-rate=0.1",
            "did you mean top_rate.*top_rate, filter_rate, activation_bar_ratio",
        ),
        ("lape", "stats=1", "no parameter 'stats'"),
        ("lape", "top_rate", "name=value"),
        ("lape", "top_rate=0", "should be greater than 0"),
        ("lape", "top_rate=1.5", "should be less than or equal to 1"),
        ("lape", "top_rate=nan", "should be a finite number"),
        ("lape", "top_rate=true", "should be a valid number"),
        ("lape", "top_rate=none", "should be a valid number"),
        ("lape", "top_rate=", "should be a valid number"),
        ("sae-lape", "owners=0", "greater than or equal to 1 or 'any'"),
        ("sae-lape", "owners=some", "a valid integer or 'any'"),
        ("sae-lape", "top=1.5", "a valid integer"),
        ("sae-lape", "top=true", "a valid integer"),
        ("sae-lape", "by=chance", "'entropy' or 'frequency'"),
        ("sae-lape", "per_layer=1", "a valid boolean"),
        ("sae-lape", "entropy_threshold=inf", "a finite number"),
    ],
)
def test_wrong_parameters_are_refused_in_one_sentence(method, setting, message):
    with pytest.raises(UserError, match=message) as error:
        parse_parameters(method, [setting])
    assert "\n" not in str(error.value)


def test_a_repeated_parameter_is_refused():
    with pytest.raises(UserError, match="twice"):
        parse_parameters("lape", ["top_rate=0.1", "top_rate=0.2"])


def test_defaults_are_the_published_ones_and_pass_their_own_check():
    for name, method in METHODS.items():
        defaults = {
            p.name: p.default
            for p in inspect.signature(method.rank).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        }
        assert check_parameters(name, defaults) == defaults


def test_a_run_ranks_by_the_methods_that_find_something_to_pool():
    assert list(run_methods(DICTIONARIES)) == ["sae-lape", "feature-diffmean", "lape"]
    assert list(run_methods(DICTIONARIES[:1])) == ["sae-lape", "feature-diffmean"]
    assert list(run_methods(DICTIONARIES[1:2])) == ["lape"]
    assert not run_methods(DICTIONARIES[3:])


def test_the_names_of_methods_heads_and_baselines_are_known_without_torch():
    program = (
        "import sys; from saefeat.methods import METHODS; from saefeat.baselines import BASELINES; "
        "from saefeat.lid.heads import HEADS; assert METHODS and BASELINES and HEADS; "
        "print([name for name in ('torch', 'sklearn', 'pandas', 'pyarrow') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert told.stdout.strip() == "[]", told.stderr
