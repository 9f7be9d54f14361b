"""Statistics are commutative monoids: batches in any partition and order give the same bytes."""

from __future__ import annotations

import copy
import errno
import functools
import itertools
import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import codes_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from saefeat.codes import STEP, Codes
from saefeat.corpora import load_corpus
from saefeat.io import RunFailed, UserError, load_tensors, make_dir, save_tensors
from saefeat.memory import state_bytes
from saefeat.statistics import ACCUMULATORS, Observed, Stats
from saefeat.statistics.bags import Bags
from saefeat.statistics.base import Field
from saefeat.statistics.examples import N, TopExamples, read_passages
from saefeat.statistics.histograms import BINS, EDGES, Histograms, bins
from saefeat.statistics.merging import check_mergeable

LABELS = ("de", "en", "th")
WIDTH = 6
COUNT = 9  # examples
DICTIONARY = SimpleNamespace(norms=torch.tensor([1.0, 0.5, 2.0, 0.0, 3.0, 1.5]))
CORPUS = load_corpus([(f"text {i}", LABELS[i % 3]) for i in range(25)])
RANDOM = st.randoms(use_true_random=False)
QUICK = settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Every accumulator with every layout of codes that it is collected for.
CASES = [
    (name, kind)
    for name, accumulator in ACCUMULATORS.items()
    for kind in ("sparse", "flat", "dense", "signed")
    if accumulator.applies(SimpleNamespace(signed=kind == "signed", norms=torch.ones(WIDTH)))
]


def random_examples(seed, count=COUNT):
    """(dense codes [tokens, WIDTH], label) of each example; values vary in size, many are zero."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        tokens = int(torch.randint(0, 5, (1,), generator=g))
        values = torch.randn(tokens, WIDTH, generator=g) * 10 ** (
            6 * torch.rand(tokens, WIDTH, generator=g) - 3
        )
        values *= torch.rand(tokens, WIDTH, generator=g) < 0.5
        label = int(torch.randint(0, 2, (1,), generator=g))  # the third label stays empty
        made.append((values, label))
    return made


def observed(batch, kind, number=0):
    """A batch of (position, (dense codes, label))."""
    examples = [example for _, example in batch]
    return Observed(
        codes_of(torch.cat([values for values, _ in examples]), kind),
        torch.tensor([len(values) for values, _ in examples]),
        torch.tensor([label for _, label in examples]),
        torch.tensor([position for position, _ in batch]),
        number,
        DICTIONARY,
        half=torch.tensor([position % 2 == 0 for position, _ in batch]),
    )


def collected(name, kind, batches):
    """The accumulator of numbered batches, which stand for windows in its header."""
    header = {"dictionary": {"id": "a"}, "windows": sorted(number for number, _ in batches)}
    made = ACCUMULATORS[name].zeros(LABELS, WIDTH, signed=kind == "signed", **header)
    for number, batch in batches:
        made.add(observed(batch, kind, number))
    return made


def total_of(examples, kind, **header):
    """Counts of examples taken as one batch."""
    stats = Stats.zeros(LABELS, WIDTH, signed=kind == "signed", **header)
    if examples:
        stats.add(observed(list(enumerate(examples)), kind))
    return stats


def cut(items, random):
    """A random partition of a list into parts, some of them empty."""
    parts = [[] for _ in range(random.randint(1, 5))]
    for item in items:
        random.choice(parts).append(item)
    return parts


def random_batches(seed, random):
    """The examples of a seed in numbered batches."""
    parts = cut(enumerate(random_examples(seed)), random)
    return list(enumerate(part for part in parts if part))


def saved(state, path):
    state.save(path, CORPUS)
    return path.read_bytes()


# --------------------------------------------------------------------------- every accumulator


@pytest.mark.parametrize(("name", "kind"), CASES)
@QUICK
@given(seed=st.integers(0, 10**6), random=RANDOM)
def test_any_partition_in_any_order_gives_the_same_bytes(tmp_path, name, kind, seed, random):
    batches = random_batches(seed, random)
    whole = collected(name, kind, batches)
    random.shuffle(batches)
    parts = [collected(name, kind, part) for part in cut(batches, random)]
    while len(parts) > 1:  # as a random tree
        random.shuffle(parts)
        parts.append(parts.pop().merge(parts.pop()))
    assert parts[0].equal(whole)
    assert saved(parts[0], tmp_path / "a") == saved(whole, tmp_path / "b")


@pytest.mark.parametrize(("name", "kind"), CASES)
@QUICK
@given(seed=st.integers(0, 10**6), random=RANDOM)
def test_merging_is_commutative_associative_and_has_a_neutral_element(name, kind, seed, random):
    batches = random_batches(seed, random)
    a, b, c = (collected(name, kind, batches[k::3]) for k in range(3))
    zero = collected(name, kind, [])
    kept = copy.deepcopy((a, b, c))
    assert a.merge(b).equal(b.merge(a))
    assert a.merge(b).merge(c).equal(a.merge(b.merge(c)))
    assert a.merge(zero).equal(a) and zero.merge(a).equal(a)
    assert all(x.equal(y) and x.header == y.header for x, y in zip((a, b, c), kept, strict=True))
    assert a.equal(zero) == all(torch.equal(a.tensors[n], t) for n, t in zero.tensors.items())


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[0] != "bags"])
@QUICK
@given(seed=st.integers(0, 10**6), random=RANDOM)
def test_adding_batch_by_batch_is_adding_at_once(name, kind, seed, random):
    examples = list(enumerate(random_examples(seed)))
    one = collected(name, kind, [(0, examples)])
    several = collected(name, kind, [(0, part) for part in cut(examples, random) if part])
    assert several.equal(one)


@pytest.mark.parametrize(("name", "kind"), CASES)
@QUICK
@given(seed=st.integers(0, 10**6), random=RANDOM)
def test_what_is_saved_and_loaded_and_saved_again_is_the_same(tmp_path, name, kind, seed, random):
    state = collected(name, kind, random_batches(seed, random))
    data = saved(state, tmp_path / "a")
    loaded = type(state).load(tmp_path / "a")
    assert loaded.labels == LABELS and loaded.dictionary == "a"
    loaded.save(tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == data


@pytest.mark.parametrize(
    ("name", "kind"), [case for case in CASES if not ACCUMULATORS[case[0]].EACH_WINDOW]
)
@QUICK
@given(seed=st.integers(0, 10**6), random=RANDOM)
def test_files_of_shards_merge_to_the_bytes_of_the_whole(tmp_path, name, kind, seed, random):
    batches = random_batches(seed, random)
    whole = saved(collected(name, kind, batches), tmp_path / "whole")
    random.shuffle(batches)
    parts = []
    for number, part in enumerate(cut(batches, random)):
        saved(collected(name, kind, part), tmp_path / str(number))
        parts.append(ACCUMULATORS[name].load(tmp_path / str(number)))
    functools.reduce(lambda a, b: a.merge(b), parts).save(tmp_path / "merged")
    assert (tmp_path / "merged").read_bytes() == whole


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_zeros_have_the_declared_types_and_shapes_and_bytes(name):
    kind = ACCUMULATORS[name]
    for signed in (False, True):
        zero = kind.zeros(LABELS, WIDTH, signed=signed)
        fields = {n: f for n, f in kind.FIELDS.items() if signed or not f.signed_only}
        assert zero.tensors.keys() == fields.keys()
        for field, tensor in zero.tensors.items():
            assert tensor.dtype == fields[field].dtype
            assert tensor.dim() == len(fields[field].axes)
        size = sum(t.nbytes for n, t in zero.tensors.items() if "unit" in fields[n].axes)
        assert WIDTH * kind.unit_bytes(3, signed=signed) == size
    dictionary = SimpleNamespace(signed=False, width=WIDTH, norms=DICTIONARY.norms)
    for rows in (0, 7):
        expected = WIDTH * kind.unit_bytes(3, signed=False, rows=rows)
        assert state_bytes(dictionary, 3, [kind], rows) == expected


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_a_damaged_file_is_a_user_error(tmp_path, name):
    path, kind = tmp_path / "a", ACCUMULATORS[name]
    with pytest.raises(UserError, match="does not exist"):
        kind.load(path)
    good = saved(collected(name, "sparse", [(0, list(enumerate(random_examples(0))))]), path)
    for data in (good[: len(good) // 2], b"", b"junk" * 99):
        path.write_bytes(data)
        with pytest.raises(UserError, match="not a readable"):
            kind.load(path)
    other = next(one for one in ACCUMULATORS if one != name)
    saved(collected(other, "sparse", []), path)
    with pytest.raises(UserError, match=str(path)):
        kind.load(path)


# --------------------------------------------------------------------------- counts


@QUICK
@given(st.integers(0, 10**6))
def test_sparse_and_dense_codes_give_the_same_statistics(seed):
    examples = random_examples(seed)
    one, *others = (total_of(examples, kind) for kind in ("dense", "sparse", "flat"))
    assert all(one.equal(other) for other in others)


def test_a_loaded_header_is_the_one_saved(tmp_path):
    header = {"dictionary": {"id": "ä", "site": "mlp_out@1"}, "windows": [0, 2]}
    saved(total_of(random_examples(1), "signed", **header), tmp_path / "a")
    loaded = Stats.load(tmp_path / "a")
    assert loaded.header == header and loaded.labels == LABELS
    assert (loaded.dictionary, loaded.site, loaded.width) == ("ä", "mlp_out@1", WIDTH)


def test_the_tensors_are_those_of_the_design():
    stats = total_of(random_examples(0), "signed")
    assert set(stats.tensors) == set(Stats.FIELDS)
    for name, tensor in stats.tensors.items():
        assert tensor.dtype == (torch.float32 if name in ("min", "max") else torch.int64)
    assert (stats.tensors["min"][2] == torch.inf).all() and (
        stats.tensors["max"][2] == -torch.inf
    ).all()
    assert "total" not in total_of(random_examples(0), "sparse").tensors


def test_means_and_probabilities_are_those_of_a_table_worked_by_hand():
    values = torch.tensor([[1.0, -2.0], [0.5, 4.0], [0.0, -1.0], [2.0, 0.0]])
    stats = Stats.zeros(("a", "b", "empty"), 2, signed=True)
    stats.add(
        Observed(
            Codes(values, None, 2, signed=True),
            torch.tensor([2, 1, 1]),
            torch.tensor([0, 0, 1]),
            torch.arange(3),
        )
    )
    assert stats.tokens.tolist() == [3, 1, 0] and stats.examples.tolist() == [2, 1, 0]
    assert stats.fired.tolist() == [[2, 1], [1, 0], [0, 0]]
    assert stats.fired_examples.tolist() == [[1, 1], [1, 0], [0, 0]]
    torch.testing.assert_close(stats.probability(), torch.tensor([[2 / 3, 1 / 3], [1, 0], [0, 0]]))
    torch.testing.assert_close(
        stats.mean(), torch.tensor([[0.5, 1 / 3], [2, 0], [0, 0]], dtype=torch.float64)
    )
    torch.testing.assert_close(
        stats.mean_firing(), torch.tensor([[0.75, 4], [2, 0], [0, 0]], dtype=torch.float64)
    )
    assert stats.min.tolist()[0] == [0.5, 4] and stats.max.tolist()[0] == [1, 4]
    assert torch.equal(Stats(("a",), {"sum": torch.ones(1, 1)}).total, torch.ones(1, 1))
    with pytest.raises(AttributeError):
        _ = stats.no_such_field


@pytest.mark.parametrize("name", ["sum", "total"])
@pytest.mark.parametrize(
    ("first", "second"), [(2**61, 2**61), (2**62 - 1, 2**62 - 1), (2**62, 1), (-(2**62), -5)]
)
def test_a_sum_that_leaves_the_exact_range_fails_the_run(name, first, second):
    a, b = (Stats.zeros(LABELS, WIDTH, signed=True) for _ in range(2))
    a.tensors[name][1, 2], b.tensors[name][1, 2] = first, second
    with pytest.raises(RunFailed, match=f"the {name}"):
        a.merge(b)


def header(**changes):
    made = {
        "model": {"name": "m", "fingerprint": "f"},
        "dictionary": {"id": "a"},
        "policy": {"seed": 0},
        "windows": [0, 1],
    }
    return {**made, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "m", "fingerprint": "g"}, "windows": [2]}, "its model differs"),
        ({"dictionary": {"id": "b"}, "windows": [2]}, "its dictionary differs"),
        ({"policy": {"seed": 1}, "windows": [2]}, "its policy differs"),
        ({"extra": 1, "windows": [2]}, "its extra differs"),
        ({"windows": [3, 1]}, "window 1 is counted in both"),
    ],
)
def test_statistics_of_different_things_or_a_shared_window_do_not_merge(changes, message):
    first, other = (
        Stats.zeros(LABELS, WIDTH, signed=False, **h) for h in (header(), header(**changes))
    )
    with pytest.raises(UserError, match=f"here: .*{message}"):
        check_mergeable(first, other, "here")


def test_statistics_merge_although_names_and_paths_differ():
    first = Stats.zeros(
        LABELS, WIDTH, signed=False, **header(dictionary={"id": "a", "path": "/one/a"})
    )
    moved = header(
        model={"name": "elsewhere/m", "fingerprint": "f"}, dictionary={"id": "a", "path": "/two/a"}
    )
    check_mergeable(
        first, Stats.zeros(LABELS, WIDTH, signed=False, **{**moved, "windows": [5]}), "here"
    )


def test_a_merged_file_does_not_depend_on_the_order_although_names_and_paths_differ(tmp_path):
    parts = []
    for number, windows in enumerate([[4, 1], [], [0, 5], []]):
        made = header(dictionary={"id": "a", "path": f"/{number}/a"}, windows=windows)
        parts.append(total_of(random_examples(number), "sparse", **made))
    written = set()
    for order in itertools.permutations(parts):
        functools.reduce(Stats.merge, order).save(tmp_path / "a.safetensors")
        written.add((tmp_path / "a.safetensors").read_bytes())
    assert len(written) == 1
    made = Stats.read_header(tmp_path / "a.safetensors")
    assert made["dictionary"]["path"] == "/2/a" and made["windows"] == [0, 1, 4, 5]


def test_statistics_with_another_field_are_not_equal():
    sparse, signed = (Stats.zeros(LABELS, WIDTH, signed=signed) for signed in (False, True))
    assert not sparse.equal(signed) and not signed.equal(sparse)
    assert sparse.equal(Stats.zeros(LABELS, WIDTH, signed=False))


def test_statistics_with_other_labels_do_not_merge():
    first = Stats.zeros(LABELS, WIDTH, signed=False, **header())
    other = Stats.zeros(LABELS[::-1], WIDTH, signed=False, **header(windows=[5]))
    with pytest.raises(UserError, match="labels differ"):
        check_mergeable(first, other, "here")
    check_mergeable(first, Stats.zeros(LABELS, WIDTH, signed=False, **header(windows=[5])), "here")


def test_a_file_that_is_damaged_or_of_something_else_is_a_user_error(tmp_path):
    path = tmp_path / "a.safetensors"

    def refused(message):
        for read in (Stats.load, Stats.read_header):
            with pytest.raises(UserError, match=message):
                read(path)

    refused("does not exist")
    Stats.zeros(LABELS, WIDTH, signed=False, **header()).save(path)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    refused("not a readable")
    path.write_bytes(b"")
    refused("not a readable")
    save_file({"fired": torch.zeros(1)}, path)
    refused("not written by saefeat")
    save_file({"fired": torch.zeros(1)}, path, metadata={"saefeat": "{"})
    refused("not a readable")
    save_tensors(path, {"fired": torch.zeros(1)}, {"schema": 1, "step": STEP})
    refused("no statistics")
    save_tensors(path, {"x": torch.zeros(1)}, {"schema": 1, "step": STEP, "labels": []})
    with pytest.raises(UserError, match="no statistics"):
        Stats.load(path)


@pytest.mark.parametrize("change", [{"step": 2.0**-16}, {"schema": 0}])
def test_another_step_or_schema_is_a_user_error(tmp_path, change):
    path = tmp_path / "a.safetensors"
    Stats.zeros(LABELS, WIDTH, signed=False, **header()).save(path)
    tensors, made = load_tensors(path)
    save_tensors(path, tensors, {**made, **change})
    for read in (Stats.load, Stats.read_header):
        with pytest.raises(UserError, match="collect it again"):
            read(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("max", None),
        ("fired", lambda t: t[:, :-1]),
        ("sum", lambda t: t.reshape(-1)),
        ("tokens", lambda t: t[:-1]),
        ("min", lambda t: t.half()),
        ("fired_examples", lambda t: t.float()),
        ("more", lambda t: torch.zeros(2)),
    ],
)
def test_tensors_that_are_not_those_of_statistics_are_a_user_error(tmp_path, name, change):
    path = tmp_path / "a.safetensors"
    Stats.zeros(("de", "fr"), 4, signed=True, dictionary={"id": "a", "site": "s"}).save(path)
    tensors, header = load_tensors(path)
    tensors = {k: v for k, v in tensors.items() if k != name} | (
        {name: change(tensors.get(name))} if change else {}
    )
    save_tensors(path, tensors, header)
    with pytest.raises(UserError, match=r"a\.safetensors .*collect it again|holds no statistics"):
        Stats.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": None},
        {"labels": "de"},
        {"labels": ["de", "de"]},
        {"labels": ["de", 1]},
        {"windows": 3},
        {"windows": ["a"]},
        {"dictionary": None},
        {"dictionary": []},
        {"dictionary": {"id": 1, "site": "s"}},
    ],
)
def test_a_header_that_is_damaged_is_a_user_error(tmp_path, change):
    path = tmp_path / "a.safetensors"
    Stats.zeros(
        ("de", "fr"), 4, signed=True, dictionary={"id": "a", "site": "s"}, windows=[0]
    ).save(path)
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, {**header, **change})
    for read in (Stats.load, Stats.read_header):
        with pytest.raises(UserError, match=r"a\.safetensors is not what|names a label twice"):
            read(path)


def test_the_header_alone_is_that_of_the_statistics(tmp_path):
    path = tmp_path / "a.safetensors"
    Stats.zeros(LABELS, WIDTH, signed=False, **header()).save(path)
    assert Stats.read_header(path) == Stats.load(path).header == header()
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("number", "expected"), [("ENOSPC", OSError), ("EDQUOT", OSError), ("EACCES", UserError)]
)
def test_a_full_disk_is_no_user_error(tmp_path, monkeypatch, number, expected):
    def fail(**_options):
        raise OSError(getattr(errno, number), "reason")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    with pytest.raises(expected, match="reason"):
        make_dir(tmp_path / "a")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    Stats.zeros(LABELS, WIDTH, signed=False, **header()).save(path)
    before = path.read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"0123456789")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        total_of(random_examples(0), "sparse").save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_file_opens_with_safetensors_alone_and_its_header_is_json(tmp_path):
    path = tmp_path / "a.safetensors"
    stats = total_of(random_examples(1), "signed", **header())
    stats.save(path)
    assert all(torch.equal(tensor, stats.tensors[name]) for name, tensor in load_file(path).items())
    size = int.from_bytes(path.read_bytes()[:8], "little")
    metadata = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]
    assert list(metadata) == ["saefeat"]
    assert json.loads(metadata["saefeat"])["step"] == STEP


# --------------------------------------------------------------------------- examples, bags


@QUICK
@given(st.integers(0, 10**6), RANDOM)
def test_top_examples_are_the_brute_force_ones(tmp_path, seed, random):
    g = torch.Generator().manual_seed(seed)
    peaks = torch.randint(0, 4, (25, WIDTH), generator=g).float()  # few values, many ties
    expected = [
        sorted((-float(v), p) for p, v in enumerate(peaks[:, unit]) if v > 0)[:N]
        for unit in range(WIDTH)
    ]
    examples = [(i, (peaks[i : i + 1], i % 3)) for i in range(25)]
    random.shuffle(examples)
    batches = [(0, part) for part in cut(examples, random) if part]
    saved(collected("examples", "sparse", batches), tmp_path / "a.parquet")
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    found = [
        [(-row["value"], row["position"]) for row in rows if row["unit"] == unit]
        for unit in range(WIDTH)
    ]
    assert found == expected
    for row in rows:
        assert row["position"] == expected[row["unit"]][row["place"]][1]
        assert (row["text"], row["label"]) == (
            f"text {row['position']}",
            LABELS[row["position"] % 3],
        )
    passages = read_passages(tmp_path / "a.parquet", [0, 3])
    assert passages.keys() == {unit for unit in (0, 3) if expected[unit]}
    for unit, some in passages.items():
        assert [(-p["value"], p["text"]) for p in some] == [
            (value, f"text {position}") for value, position in expected[unit]
        ]


@pytest.mark.parametrize(
    ("column", "value"),
    [("value", "a"), ("unit", 1.5), ("place", 7), ("unit", -1), ("text", None), (None, None)],
)
def test_examples_with_other_columns_or_values_are_a_user_error(tmp_path, column, value):
    path = tmp_path / "a.parquet"
    saved(collected("examples", "sparse", [(0, list(enumerate(random_examples(2))))]), path)
    table = pq.read_table(path)
    if column is None:
        table = table.drop_columns(["text"])
    else:
        at = table.column_names.index(column)
        kind = table.schema.field(at).type if value in (-1, 7, None) else None
        cells = pa.array([value] * len(table), kind)
        table = table.set_column(at, column, cells)
    pq.write_table(table, path)
    with pytest.raises(UserError, match=r"a\.parquet .*collect it again"):
        TopExamples.load(path)


def test_values_of_passages_that_are_not_finite_are_a_user_error(tmp_path):
    path = tmp_path / "a.parquet"
    saved(collected("examples", "sparse", [(0, list(enumerate(random_examples(2))))]), path)
    table = pq.read_table(path)
    values = pa.array([float("nan")] * len(table), pa.float32())
    pq.write_table(table.set_column(2, "value", values), path)
    with pytest.raises(UserError, match="not finite"):
        read_passages(path, range(WIDTH))


def test_files_of_bags_stand_window_by_window_when_they_are_merged(tmp_path):
    first, second = (list(enumerate(random_examples(k)))[k * 4 : k * 4 + 4] for k in range(2))
    for name, batch in (("a", first), ("b", second)):
        saved(collected("bags", "sparse", [(0, batch)]), tmp_path / name)
    a, b = (Bags.load(tmp_path / name) for name in "ab")
    assert b.merge(a).equal(a.merge(b))
    assert torch.equal(b.merge(a).example, torch.cat([a.example, b.example]))


# --------------------------------------------------------------------------- histograms


@QUICK
@given(st.integers(0, 10**6), st.sampled_from(["sparse", "flat", "dense"]))
def test_histograms_count_every_firing_value_in_its_bin(seed, kind):
    examples = random_examples(seed)
    values = torch.cat([values for values, _ in examples])
    made = collected("histograms", kind, [(0, list(enumerate(examples)))])
    assert made.tokens == len(values)
    for unit in range(WIDTH):
        fired = values[:, unit][values[:, unit] > 0].tolist()
        expected = [0] * BINS
        for value in fired:
            above = sum(value >= edge for edge in EDGES.tolist())
            expected[min(max(above - 1, 0), BINS - 1)] += 1
        assert made.counts[unit].tolist() == expected
        shown = made.of(unit)
        assert shown["tokens"] == len(values)
        assert shown["fired"] == sum(shown["counts"]) == len(fired)
        assert shown["max"] == pytest.approx(max(fired, default=0.0), abs=1e-4)
        if fired:
            assert shown["counts"][0] and shown["counts"][-1]
            assert len(shown["edges"]) == len(shown["counts"]) + 1
            assert shown["edges"][0] <= min(fired) * 1.001
            assert shown["edges"][-1] == pytest.approx(max(fired), rel=1e-3)
            assert shown["edges"] == sorted(shown["edges"])


def test_bins_take_their_lower_edge_and_the_outer_ones_what_lies_beyond():
    assert bins(EDGES).tolist() == [*range(BINS), BINS - 1]
    assert bins(torch.tensor([1e-30, 1e30])).tolist() == [0, BINS - 1]
    below = torch.nextafter(EDGES[1:-1], torch.tensor(0.0))
    assert bins(below).tolist() == list(range(BINS - 1))
    assert EDGES[0] == 2**-8 and EDGES[-1] == 2**14
    assert torch.equal(EDGES[8:], 2 * EDGES[:-8]) and (EDGES.diff() > 0).all()
    assert bins(torch.tensor([0.0, -1.0, -1e30])).tolist() == [0, 0, 0]


def test_a_unit_that_never_fires_has_an_empty_histogram():
    zero = Histograms.zeros(LABELS, WIDTH)
    assert zero.of(0) == {"tokens": 0, "fired": 0, "max": 0.0, "counts": [], "edges": []}


def test_histograms_with_other_edges_are_a_user_error(tmp_path):
    path = tmp_path / "a"
    saved(collected("histograms", "sparse", []), path)
    tensors, found = load_tensors(path)
    save_tensors(path, tensors, {**found, "edges": [1.0]})
    with pytest.raises(UserError, match="another edges"):
        Histograms.load(path)


@pytest.mark.parametrize(("reduction", "neutral"), [("max", -(2**31)), ("min", 2**31 - 1)])
def test_integer_fields_begin_with_the_neutral_value_of_their_reduction(reduction, neutral):
    field = Field(("unit",), reduction, torch.int32)
    assert field.zeros({"unit": 3}, "cpu").tolist() == [neutral] * 3


def test_histograms_count_beyond_32_bits(tmp_path):
    many = collected("histograms", "sparse", [(0, [(0, (torch.ones(1, WIDTH), 0))])])
    many.tensors["counts"] *= 2**31 - 1
    more = many.merge(many)
    assert more.counts.max() == 2 * (2**31 - 1)
    saved(more, tmp_path / "a")
    assert Histograms.load(tmp_path / "a").equal(more)


def test_histograms_of_older_versions_with_32_bit_counts_are_read(tmp_path):
    path = tmp_path / "a"
    made = collected("histograms", "sparse", [(0, [(0, (torch.ones(2, WIDTH), 0))])])
    saved(made, path)
    tensors, found = load_tensors(path)
    save_tensors(path, {**tensors, "counts": tensors["counts"].int()}, found)
    assert made.counts.sum() and Histograms.load(path).equal(made)


def test_labels_with_tokens_are_counted():
    stats = Stats.zeros(LABELS, WIDTH)
    assert stats.counted_labels == [] and not stats.counted.any()
    stats.tokens[1] = 3
    assert stats.counted_labels == [LABELS[1]] and stats.counted.tolist()[:2] == [False, True]
    assert stats.row(LABELS[1]) == 1
    with pytest.raises(UserError, match="there is no label 'x' in the statistics; they have"):
        stats.row("x")
