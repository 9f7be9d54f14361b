"""SAEs encode as a stable sort and as sae-lens do; neurons are the identity."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saefeat import encoders
from saefeat.dictionaries import SAE, Identity
from saefeat.io import RunFailed
from saefeat.sae.store import load_sae, save_sae


def make_sae(width=48, d_in=8, k=5, seed=0, whole=False, **options):
    """A random SAE. `whole`: of small integers: products are exact in float32 and often tie."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (d_in, width), "b_enc": (width,), "W_dec": (width, d_in), "b_dec": (d_in,)}
    draw = (
        (lambda s: torch.randint(-2, 3, s, generator=g).float())
        if whole
        else (lambda s: torch.randn(s, generator=g))
    )
    record = {"model": {"name": "m", "revision": None}, "module": "model.layers.1.mlp"}
    weights = {name: draw(shape) for name, shape in shapes.items()}
    return SAE("a", "mlp_out@1", **weights, k=k, record=record, **options)


def vectors(n=40, d_in=8, seed=1, whole=False):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randint(-2, 3, (n, d_in), generator=g).float()
        if whole
        else torch.randn(n, d_in, generator=g)
    )


def brute_force(sae, x):
    """[{unit: value}] of each vector: the first k units by falling value, then rising unit."""
    pre = ((x.double() - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()).tolist()
    return [
        dict(sorted(((u, v) for u, v in enumerate(row)), key=lambda p: (-p[1], p[0]))[: sae.k])
        for row in pre
    ]


def firing(codes):
    """The firing units of each token, in the order given."""
    rows = [{} for _ in range(len(codes))]
    for token, unit, value in zip(*(part.tolist() for part in codes.pairs()), strict=True):
        if value > 0:
            rows[token][unit] = value
    return rows


def positive(rows):
    return [{u: v for u, v in row.items() if v > 0} for row in rows]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 70), st.integers(1, 20), st.integers(0, 10**6))
def test_encoding_is_a_stable_sort_also_with_ties_and_odd_widths(width, k, seed):
    sae = make_sae(width, 4, min(k, width), seed, whole=True)
    x = vectors(12, 4, seed + 1, whole=True)
    found, expected = firing(sae.encode(x)), positive(brute_force(sae, x))
    assert found == expected
    assert [list(row) for row in found] == [
        list(row) for row in expected
    ]  # greatest first, lower unit on ties


@pytest.mark.parametrize("tile", [16, 32, 40, 10**6])
@pytest.mark.parametrize("width", [5, 16, 48, 64, 70])
def test_tiles_of_units_change_nothing(monkeypatch, tile, width):
    monkeypatch.setattr(encoders, "TILE", tile)
    x = vectors(12, 4, whole=True)
    sae = make_sae(width, 4, 3, whole=True)
    assert firing(sae.encode(x)) == positive(brute_force(sae, x))
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    bar = torch.arange(width) / width
    for options, fires in (
        ({"activation": "relu"}, pre > 0),
        ({"activation": "jumprelu"}, pre > bar),
    ):
        dense = dataclasses.replace(
            sae, k=0, threshold=bar if "jumprelu" in options.values() else None, **options
        )
        assert torch.equal(dense.encode(x).dense(), pre * fires)
        expected = [sorted(row.nonzero().flatten().tolist()) for row in fires]
        assert [list(row) for row in firing(dense.encode(x))] == expected  # in rising order
    gain, gate = torch.rand(width), torch.randn(width)
    gated = dataclasses.replace(sae, k=0, activation="gated", gain=gain, b_gate=gate)
    h = (x - sae.b_dec) @ sae.W_enc
    values = (h * gain + sae.b_enc) * (h + gate > 0)
    assert torch.equal(gated.encode(x).dense(), values.clamp(min=0))
    k = next(n for n in (8, 7, 5) if width % n == 0)
    best = dataclasses.replace(sae, k=k, activation="groupmax").encode(x)
    groups = pre.unflatten(1, (k, -1)).max(2)
    assert torch.equal(best.values, groups.values.clamp(min=0))
    assert torch.equal(best.indices, groups.indices + torch.arange(k) * (width // k))


def test_ties_across_groups_go_to_the_lower_unit():
    width, k = 64, 3
    sae = make_sae(width, 1, k, whole=True)
    sae.W_enc, sae.b_dec = torch.zeros(1, width), torch.zeros(1)
    sae.b_enc = torch.zeros(width)
    sae.b_enc[[63, 47, 31, 17]] = 2.0  # in four different groups of 16
    assert firing(sae.encode(torch.zeros(1, 1))) == [{17: 2.0, 31: 2.0, 47: 2.0}]
    sae = dataclasses.replace(sae, b_enc=torch.full((width,), 0.5))  # all equal
    assert firing(sae.encode(torch.zeros(2, 1))) == [{0: 0.5, 1: 0.5, 2: 0.5}] * 2


@pytest.mark.parametrize("width", [16, 17, 33, 48])
def test_fewer_positive_values_than_k_fire_alone(width):
    sae = make_sae(width, 1, 12, whole=True)
    sae.W_enc, sae.b_dec, sae.b_enc = (
        torch.zeros(1, width),
        torch.zeros(1),
        torch.full((width,), -1.0),
    )
    sae.b_enc[[0, width - 1]] = torch.tensor([1.0, 3.0])
    codes = sae.encode(torch.zeros(3, 1))
    assert firing(codes) == [{width - 1: 3.0, 0: 1.0}] * 3
    assert codes.indices.max() < width  # no unit of the padding of the last group
    assert codes.values.shape == codes.indices.shape == (3, 12)
    silent = dataclasses.replace(sae, b_enc=torch.full((width,), -1.0))
    assert firing(silent.encode(torch.zeros(1, 1))) == [{}]


def test_real_vectors_give_the_codes_of_float64():
    sae, x = make_sae(200, 16, 8), vectors(1500, 16)  # more rows than are encoded at once
    for found, expected in zip(firing(sae.encode(x)), positive(brute_force(sae, x)), strict=True):
        assert list(found) == list(expected)
        torch.testing.assert_close(
            list(found.values()), list(expected.values()), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "gated"])
def test_one_token_of_a_great_norm_takes_memory_for_itself_alone(activation):
    width, n = 4096, 600
    parts = {
        "relu": {},
        "jumprelu": {"threshold": torch.full((width,), 0.5)},
        "gated": {"gain": torch.ones(width), "b_gate": torch.full((width,), -15.0)},
    }[activation]
    sae = dataclasses.replace(
        make_sae(width, 16, 0), activation=activation, b_enc=torch.full((width,), -15.0), **parts
    )
    x = vectors(n, 16)
    usual = sae.encode(x)
    x[7] *= 200
    codes = sae.encode(x)
    most = int(codes.counts.max())
    assert most > width / 3 and len(usual.values) < 0.05 * n * width
    assert (
        len(codes.values)
        == len(codes.indices)
        == int((codes.dense() > 0).sum())
        <= len(usual.values) + most
    )
    others = torch.arange(n) != 7
    assert torch.equal(codes.dense()[others], usual.dense()[others])
    torch.testing.assert_close(
        sae.decode(codes), codes.dense() @ sae.W_dec + sae.b_dec, rtol=1e-4, atol=1e-2
    )


def test_decoding_sparse_codes_is_decoding_the_dense_ones():
    sae, x = make_sae(), vectors()
    codes = sae.encode(x)
    dense = dataclasses.replace(codes, values=codes.dense(), indices=None)
    by_hand = torch.stack(
        [sum((v * sae.W_dec[u] for u, v in row.items()), sae.b_dec) for row in firing(codes)]
    )
    torch.testing.assert_close(sae.decode(codes), by_hand, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.decode(dense), by_hand, rtol=1e-5, atol=1e-5)


def test_no_vectors_have_no_codes():
    codes = make_sae().encode(torch.zeros(0, 8))
    assert codes.values.shape == codes.indices.shape == (0, 5)
    bag = codes.bag(torch.tensor([0, 0]))
    assert bag.examples == 2 and len(bag.tokens) == 0


def test_tokens_of_outlier_norm_are_not_kept():
    x = torch.tensor([[3.0, 4.0], [3.0, 4.1], [0.0, 0.0]])
    assert make_sae(16, 2, 2, max_norm=5.0).keeps(x).tolist() == [True, False, True]
    assert make_sae(16, 2, 2).keeps(x) is None
    counted = torch.tensor([[True, False], [True, True]])
    left, of = make_sae(16, 2, 2, max_norm=5.0).select(x, counted)
    assert torch.equal(left, x[[0, 2]]) and of.tolist() == [[True, False], [False, True]]
    assert make_sae(16, 2, 2).select(x, counted) == (x, counted)  # the same tensors


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_a_vector_that_is_not_finite_fails_the_run(bad):
    # Both signs of NaN: the processor's own (inf - inf) has its sign set and would sort below every
    # number.
    x = torch.ones(3, 8)
    x[1, 2] = bad
    with pytest.raises(RunFailed):
        make_sae().encode(x)
    with pytest.raises(RunFailed):
        make_sae(max_norm=100.0).keeps(x)


def test_the_fingerprint_knows_everything_that_changes_the_codes():
    sae = make_sae()
    marks = {sae.identity["fingerprint"]}
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        changed = getattr(sae, name).clone()
        changed.view(-1)[3] += 1e-3
        marks.add(dataclasses.replace(sae, **{name: changed}).identity["fingerprint"])
    for options in ({"k": 4}, {"max_norm": 9.0}, {"dtype": "bfloat16"}):
        marks.add(dataclasses.replace(sae, **options).identity["fingerprint"])
    assert len(marks) == 8
    assert make_sae().identity == sae.identity and sae.to("cpu").identity == sae.identity


def test_neurons_are_the_identity():
    neurons, x = Identity("mlp_act@1", 8), vectors()
    codes = neurons.encode(x.to(torch.bfloat16))
    assert torch.equal(codes.dense(), x.to(torch.bfloat16).float()) and codes.signed
    assert torch.equal(neurons.decode(codes), codes.values)
    assert torch.equal(codes.values @ neurons.directions, codes.values)
    assert neurons.keeps(x) is None
    assert (neurons.id, neurons.width) == ("mlp_act@1", 8)
    assert neurons.identity["fingerprint"] != Identity("mlp_act@0", 8).identity["fingerprint"]


def test_directions_of_some_units_are_rows_of_all_directions():
    for dictionary in (make_sae(), Identity("mlp_act@1", 8)):
        found = dictionary.directions_of((5, 2, 5))
        assert torch.equal(found, dictionary.directions[[5, 2, 5]]) and found.dtype == torch.float32
        assert dictionary.directions_of([]).shape == (0, 8)


def test_an_edit_of_units_moves_a_vector_along_their_directions():
    sae, x = make_sae(normalize="layer_norm"), vectors().view(4, 10, 8)
    units = torch.tensor([3, 11, 40])
    z, size = sae.encode(x.flatten(0, 1)).of(units), sae.spread(x.flatten(0, 1))
    moved = sae.edit_units(x, units, lambda z: z * 3) - x
    expected = 2 * z @ sae.directions[units] * size
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(moved.flatten(0, 1), expected, rtol=1e-4, atol=1e-5)


def test_an_edit_of_neurons_sets_their_values_exactly():
    x = vectors().view(4, 10, 8)
    edited = Identity("mlp_act@1", 8).edit_units(x, torch.tensor([5, 2]), lambda z: z * 0 + 0.1)
    assert (edited[..., [5, 2]] == 0.1).all()
    assert torch.equal(edited[..., [0, 1, 3, 4, 6, 7]], x[..., [0, 1, 3, 4, 6, 7]])


def test_only_saes_have_weights_and_encoders():
    neurons, sae = Identity("mlp_act@1", 8), make_sae()
    for name in ("weight_bytes", "encoder_bytes", "weights_read"):
        assert getattr(neurons, name) == 0
    assert neurons.cells("cpu") == 0 and neurons.to("cpu") is neurons
    assert sae.weight_bytes == 4 * (2 * 8 * 48 + 8 + 48)
    assert (sae.encoder_bytes, sae.weights_read) == (4 * 8 * 48, 0)  # a copy in another layout
    relu = dataclasses.replace(sae, activation="relu")
    assert (relu.encoder_bytes, relu.weights_read) == (0, 4 * 8 * 48)  # the weights themselves
    assert sae.cells("cpu") == 1024 * 48


def test_some_neurons_are_read_at_their_own_places():
    x = vectors()
    codes = Identity("mlp_act@1", 8, torch.tensor([5, 2])).encode(x)
    assert codes.width == 8
    assert torch.equal(codes.dense()[:, [2, 5]], x[:, [2, 5]])
    assert not codes.dense()[:, [0, 1, 3, 4, 6, 7]].any()


# --------------------------------------------------------------------------- sae-lens


@pytest.fixture(scope="module")
def sae_lens():
    return pytest.importorskip("sae_lens")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sae_lens_opens_what_we_save_and_encodes_the_same_codes(sae_lens, tmp_path, dtype):
    sae, x = make_sae(200, 16, 8, dtype=dtype, max_norm=7.0), vectors(300, 16)
    save_sae(sae, tmp_path / "a")
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "a"))
    ours = load_sae(tmp_path / "a", dtype="float32")
    torch.testing.assert_close(theirs.encode(x), ours.encode(x).dense(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs(x), ours.decode(ours.encode(x)), rtol=1e-5, atol=1e-5)
    assert (
        theirs.cfg.metadata.model_name == "m"
        and theirs.cfg.metadata.hook_name == "blocks.1.hook_mlp_out"
    )
    again = load_sae(tmp_path / "a")
    assert (again.site, again.dtype, again.max_norm, again.k) == ("mlp_out@1", dtype, 7.0, 8)
    assert again.identity["fingerprint"] == sae.identity["fingerprint"]


@pytest.mark.parametrize("rescale", [True, False])
def test_we_open_what_sae_lens_saves_and_encode_the_same_codes(sae_lens, tmp_path, rescale):
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    metadata = SAEMetadata(model_name="m", hook_name="blocks.1.hook_mlp_out")
    cfg = TopKSAEConfig(
        d_in=16, d_sae=200, k=8, rescale_acts_by_decoder_norm=rescale, metadata=metadata
    )
    theirs, source = TopKSAE(cfg), make_sae(200, 16, 8)
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(theirs, name).copy_(getattr(source, name))
    theirs.save_model(tmp_path / "b")
    ours, x = load_sae(tmp_path / "b"), vectors(300, 16)
    assert ours.site == "mlp_out@1"
    torch.testing.assert_close(ours.encode(x).dense(), theirs.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.decode(ours.encode(x)), theirs(x), rtol=1e-5, atol=1e-5)
