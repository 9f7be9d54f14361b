"""Classes of units by dictionary, and the four stages of layers."""

from __future__ import annotations

from collections import defaultdict

import pytest
from helpers import DICTIONARIES, cell_tables, selection_of
from hypothesis import given, settings
from hypothesis import strategies as st

from saefeat.partition import class_counts, four_stages, layer_of, layer_rows

LEFT = ("da", "de", "zh")
# Recomputed from the files of NJUNLP/Language-Neurons-Alignment (Mistral-7B, MGSM): per layer the
# neurons active for all languages, and those of the released mask that some languages own.
GENERAL = (
    "181 106 103 114 192 194 253 253 270 307 334 431 417 443 555 445 348 423 316 261 151 92 66 48 "
    "50 51 54 66 108 136 284 745"
)
OF_SOME = (
    "188 12 281 65 40 3 2 3 1 1 1 1 0 3 5 7 4 0 89 102 82 76 59 74 106 89 95 292 526 591 269 152"
)


def shares(text):
    return [int(count) / 14_336 for count in text.split()]


def test_the_stages_of_published_counts():
    stages = four_stages(shares(OF_SOME), shares(GENERAL))
    assert stages == [1] * 3 + [2] * 16 + [3] * 12 + [4]


@pytest.mark.parametrize(
    ("of_some", "of_all", "stages"),
    [
        ([9, 0, 0, 9], [0, 1, 1, 0], [1, 2, 2, 3]),  # no last stage
        ([9, 0, 0, 9, 8], [0, 1, 1, 0, 2], [1, 2, 2, 3, 4]),
        ([9, 0, 0, 9, 8], [0, 1, 1, 0, 1], [1, 2, 2, 3, 3]),  # not above stage 2
        ([9, 0, 0, 8, 9], [0, 1, 1, 0, 2], [1, 2, 2, 3, 3]),  # no fewer than before
        ([9, 0, 0, 9, 8, 7], [0, 1, 1, 0, 2, 2], [1, 2, 2, 3, 4, 4]),
        ([9, 0, 9, 0, 9], [0] * 5, [1, 2, 3, 3, 3]),  # of two runs the first
        ([9, 0, 9, 0, 0], [0] * 5, [1, 1, 1, 2, 2]),
        ([0, 0, 9, 9], [0] * 4, [2, 2, 3, 3]),
        ([9, 0, 9], [0, 0, 0], None),
        ([1, 1, 1, 1], [0, 0, 0, 0], None),
        ([], [], None),
    ],
)
def test_the_stages_of_small_cases(of_some, of_all, stages):
    assert four_stages(of_some, of_all) == stages


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=4, max_size=12))
def test_stages_follow_each_other(counts):
    of_some, of_all = zip(*counts, strict=True)
    stages = four_stages(of_some, of_all)
    assert (stages is None) == (len(set(of_some)) == 1)
    if stages is not None:
        assert stages == sorted(stages) and 2 in stages and len(stages) == len(counts)


@settings(max_examples=60, deadline=None)
@given(cell_tables(LEFT))
def test_classes_are_the_numbers_of_owners(cells):
    owners = defaultdict(set)
    for dictionary, unit, label in cells:
        owners[dictionary, unit].add(label)
    wanted = {
        name: {d: sum(of == d and len(who) in sizes for (of, _), who in owners.items())
               for d in DICTIONARIES}
        for name, sizes in (("one label", {1}), ("several labels", {2}), ("all labels", {3}))
    }  # fmt: skip
    assert class_counts(selection_of(cells, LEFT)) == wanted


def test_one_and_two_labels_have_fewer_classes():
    assert class_counts(selection_of([("a", 1, "x")], ("x",))) == {"one label": {"a": 1, "b": 0}}
    both = selection_of([("a", 1, "x"), ("a", 1, "y"), ("b", 2, "y")], ("x", "y"))
    assert class_counts(both) == {
        "one label": {"a": 0, "b": 1}, "all labels": {"a": 1, "b": 0},
    }  # fmt: skip


def test_the_classes_of_a_method_are_kept():
    selection = selection_of([("a", 1, "da")], LEFT)
    selection.header["classes"] = {"general": {"b": 7}}
    assert class_counts(selection) == {"general": {"a": 0, "b": 7}}


@pytest.mark.parametrize(
    ("site", "layer"),
    [
        ("mlp_act@13", 13),
        ("resid_post@0", 0),
        ("model.layers.3.mlp", 3),
        ("transformer.h.11", 11),
        ("model.norm2", None),
    ],
)
def test_the_layer_of_a_site(site, layer):
    assert layer_of(site) == layer


def test_dictionaries_of_one_layer_are_told_apart_and_share_its_stage():
    """Neurons of five layers, two SAEs of layer 1, of one kind each."""
    ids = {f"act{i}": ("identity", f"mlp_act@{i}") for i in range(5)}
    ids |= {"wide": ("sae", "mlp_out@1"), "narrow": ("sae", "mlp_out@1")}
    cells = [("act0", unit, "da") for unit in range(3)]  # shares of some: 3, 0, 0, 2, 1 of 5
    cells += [("act3", 0, "da"), ("act3", 1, "de"), ("act4", 0, "da"), ("wide", 2, "da")]
    cells += [("act4", 4, label) for label in LEFT]  # a unit of all labels
    selection = selection_of(cells, LEFT, dictionaries=tuple(ids))
    for name, (kind, site) in ids.items():
        selection.dictionaries[name] |= {"kind": kind, "site": site}
    rows = layer_rows(selection)
    assert [(r["dictionary"], r["layer"], r["units"], r["stage"]) for r in rows] == [
        ("act0", 0, 3, 1),
        ("act1", 1, 0, 2),
        ("act2", 2, 0, 2),
        ("act3", 3, 2, 3),
        ("act4", 4, 2, 4),
        ("narrow", 1, 0, None),
        ("wide", 1, 1, None),
    ]
    assert rows[4]["classes"] == {"one label": 1, "several labels": 0, "all labels": 1}


def test_the_stages_of_a_method_are_of_its_own_classes():
    """Ternary classes overlap (`general-all`, `general`), and those of sharing have parts."""
    ids = tuple(f"act{i}" for i in range(5))
    some, every = (9, 0, 0, 9, 8), (0, 1, 1, 0, 2)  # the stages 1, 2, 2, 3, 4

    def stages(**classes):
        selection = selection_of([("act0", 1, "da"), ("act0", 1, "de")], LEFT, dictionaries=ids)
        for at, name in enumerate(ids):
            selection.dictionaries[name] |= {"kind": "identity", "site": f"mlp_act@{at}"}
        selection.header["classes"] = {
            name.replace("_", "-"): dict(zip(ids, numbers, strict=True))
            for name, numbers in classes.items()
        }
        rows = layer_rows(selection)
        assert [row["units"] for row in rows] == [1, 0, 0, 0, 0]  # chosen ones, each once
        return [row["stage"] for row in rows]

    none = (0,) * 5
    wanted = [1, 2, 2, 3, 4]
    assert stages(specific=none, related=some, general=none, general_all=every) == wanted
    assert stages(specific=some, related=none, general=every) == wanted
    halves = [n / 2 for n in some]
    assert stages(partial_shared=halves, specific=halves, all_shared=every) == wanted
    assert stages(partial_shared=some, non_activated=every, all_shared=none) == [1, 2, 2, 3, 3]
