"""Statistics are a commutative monoid: any partition and any order of the examples give the same bytes."""

from __future__ import annotations

import copy
import errno
import functools
import itertools
import json

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from saefeat.codes import STEP, Codes
from saefeat.collection import TopExamples, merge_examples
from saefeat.corpora import load_corpus
from saefeat.io import RunFailed, UserError, load_tensors, make_dir, save_tensors
from saefeat.statistics import REDUCTIONS, Stats, check_mergeable

LABELS = ("de", "en", "th")
WIDTH = 6
RANDOM = st.randoms(use_true_random=False)
QUICK = settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def random_examples(seed, count=9):
    """(dense codes [tokens, WIDTH], label) of each example, values of very different sizes, many of them zero."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        tokens = int(torch.randint(0, 5, (1,), generator=g))
        values = torch.randn(tokens, WIDTH, generator=g) * 10 ** (
            6 * torch.rand(tokens, WIDTH, generator=g) - 3
        )
        values *= torch.rand(tokens, WIDTH, generator=g) < 0.5
        made.append(
            (values, int(torch.randint(0, 2, (1,), generator=g)))
        )  # the third label stays empty
    return made


def codes_of(values, kind):
    if kind != "sparse":
        return Codes(values, None, WIDTH, signed=kind == "signed")
    top = values.topk(4, dim=1)
    return Codes(top.values, top.indices, WIDTH)


def total_of(examples, kind, **header):
    """Statistics of examples taken as one batch."""
    stats = Stats.zeros(LABELS, WIDTH, signed=kind == "signed", **header)
    if examples:
        lengths = torch.tensor([len(values) for values, _ in examples])
        bag = codes_of(torch.cat([values for values, _ in examples]), kind).bag(lengths)
        stats.add(bag, torch.tensor([label for _, label in examples]), lengths)
    return stats


def cut(items, random):
    """A random partition of a list into parts, some of them empty."""
    parts = [[] for _ in range(random.randint(1, 5))]
    for item in items:
        random.choice(parts).append(item)
    return parts


def saved(stats, path):
    stats.save(path)
    return path.read_bytes()


@QUICK
@given(st.integers(0, 10**6), RANDOM, st.sampled_from(["sparse", "dense", "signed"]))
def test_any_partition_in_any_order_gives_the_same_bytes(tmp_path, seed, random, kind):
    examples = random_examples(seed)
    whole = total_of(examples, kind, dictionary={"id": "a"}, windows=list(range(len(examples))))
    shuffled = list(enumerate(examples))
    random.shuffle(shuffled)
    parts = [
        total_of(
            [e for _, e in part], kind, dictionary={"id": "a"}, windows=sorted(w for w, _ in part)
        )
        for part in cut(shuffled, random)
    ]
    random.shuffle(parts)
    while len(parts) > 1:  # as a random tree
        parts.append(
            parts.pop(random.randrange(len(parts))).merge(parts.pop(random.randrange(len(parts))))
        )
        random.shuffle(parts)
    assert parts[0].equal(whole)
    assert saved(parts[0], tmp_path / "a") == saved(whole, tmp_path / "b")


@QUICK
@given(st.integers(0, 10**6), RANDOM, st.sampled_from(["sparse", "dense", "signed"]))
def test_adding_batch_by_batch_is_adding_at_once(seed, random, kind):
    examples = random_examples(seed)
    stats = Stats.zeros(LABELS, WIDTH, signed=kind == "signed")
    for part in cut(examples, random):
        if part:
            lengths = torch.tensor([len(values) for values, _ in part])
            bag = codes_of(torch.cat([values for values, _ in part]), kind).bag(lengths)
            stats.add(bag, torch.tensor([label for _, label in part]), lengths)
    assert stats.equal(total_of(examples, kind))


@QUICK
@given(st.integers(0, 10**6))
def test_sparse_and_dense_codes_give_the_same_statistics(seed):
    examples = [(values.clamp(min=0), label) for values, label in random_examples(seed)]
    lengths = torch.tensor([len(values) for values, _ in examples])
    values, labels = torch.cat([v for v, _ in examples]), torch.tensor([k for _, k in examples])
    order = values.argsort(1, descending=True)
    made = []
    for codes in (Codes(values, None, WIDTH), Codes(values.gather(1, order), order, WIDTH)):
        stats = Stats.zeros(LABELS, WIDTH, signed=False)
        stats.add(codes.bag(lengths), labels, lengths)
        made.append(stats)
    assert made[0].equal(made[1])


@QUICK
@given(st.integers(0, 10**6), st.sampled_from(["sparse", "signed"]))
def test_merging_is_commutative_associative_and_has_a_neutral_element(seed, kind):
    a, b, c = (total_of(random_examples(seed + i, 4), kind) for i in range(3))
    zero = Stats.zeros(LABELS, WIDTH, signed=kind == "signed")
    kept = copy.deepcopy((a, b, c))
    assert a.merge(b).equal(b.merge(a))
    assert a.merge(b).merge(c).equal(a.merge(b.merge(c)))
    assert a.merge(zero).equal(a) and zero.merge(a).equal(a)
    assert all(x.equal(y) and x.header == y.header for x, y in zip((a, b, c), kept, strict=True))


@QUICK
@given(st.integers(0, 10**6), st.sampled_from(["sparse", "dense", "signed"]))
def test_what_is_saved_and_loaded_and_saved_again_is_the_same(tmp_path, seed, kind):
    stats = total_of(
        random_examples(seed), kind, dictionary={"id": "ä", "site": "mlp_out@1"}, windows=[0, 2]
    )
    data = saved(stats, tmp_path / "a")
    loaded = Stats.load(tmp_path / "a")
    assert loaded.equal(stats) and loaded.header == stats.header and loaded.labels == LABELS
    assert (loaded.dictionary, loaded.site, loaded.width) == ("ä", "mlp_out@1", WIDTH)
    assert saved(loaded, tmp_path / "b") == data


def test_the_tensors_are_those_of_the_design():
    stats = total_of(random_examples(0), "signed")
    assert set(stats.tensors) == set(REDUCTIONS)
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
        Codes(values, None, 2, signed=True).bag(torch.tensor([2, 1, 1])),
        torch.tensor([0, 0, 1]),
        torch.tensor([2, 1, 1]),
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
        with pytest.raises(UserError, match=r"a\.safetensors is damaged; collect it again"):
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


# --------------------------------------------------------------------------- highest-activating
# examples


@QUICK
@given(st.integers(0, 10**6), RANDOM)
def test_top_examples_are_the_brute_force_ones_under_any_partition(tmp_path, seed, random):
    g = torch.Generator().manual_seed(seed)
    peaks = torch.randint(0, 4, (25, WIDTH), generator=g).float()  # few values, many ties
    expected = [
        sorted(((-float(v), p) for p, v in enumerate(peaks[:, unit]) if v > 0))[:5]
        for unit in range(WIDTH)
    ]
    corpus = load_corpus([(f"text {i}", LABELS[i % 3]) for i in range(25)])
    positions = list(range(len(peaks)))
    random.shuffle(positions)
    files = []
    for shard in cut(positions, random):
        top = TopExamples.zeros(WIDTH)
        for batch in cut(shard, random):
            if batch:
                values = peaks[batch]
                order = values.argsort(1)
                bag = Codes(values.gather(1, order), order, WIDTH).bag(
                    torch.ones(len(batch), dtype=torch.int64)
                )
                top.add(bag, torch.tensor(batch))
        files.append(tmp_path / f"{len(files)}.parquet")
        top.save(files[-1], corpus, "a")
    random.shuffle(files)
    merge_examples(files, tmp_path / "merged.parquet", "a", corpus.labels)
    rows = pq.read_table(tmp_path / "merged.parquet").to_pylist()
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
