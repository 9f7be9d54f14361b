"""Codes of every activation by definition, in numbers that float32 holds exactly."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saefeat.dictionaries import ACTIVATIONS, NORMALIZATIONS, SAE

EXTRA = {"jumprelu": ("threshold",), "gated": ("b_gate", "gain")}


def make(activation="relu", width=12, d_in=4, k=3, seed=0, **options):
    """An SAE of small whole numbers: its sums are exact, and tie and lie on thresholds often."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (d_in, width), "W_dec": (width, d_in), "b_dec": (d_in,), "b_enc": (width,)}
    shapes |= dict.fromkeys(EXTRA.get(activation, ()), (width,))
    weights = {
        name: torch.randint(-2, 3, shape, generator=g).float() for name, shape in shapes.items()
    }
    if "gain" in weights:
        weights["gain"] = 2.0 ** weights["gain"]
    return SAE("a", "mlp_out@1", **weights, k=k, activation=activation, **options)


def by_definition(sae, x):
    """[n][width] values of each unit, one at a time in double precision."""
    rows = []
    for vector in x.double():
        inside = vector - sae.b_dec if sae.centred else vector
        h = [float(inside @ sae.W_enc[:, u].double()) for u in range(sae.width)]
        value = [max(h[u] + float(sae.b_enc[u]), 0.0) for u in range(sae.width)]
        if sae.activation == "jumprelu":
            value = [v if v > float(t) else 0.0 for v, t in zip(value, sae.threshold, strict=True)]
        elif sae.activation == "gated":
            gate = [h[u] + float(sae.b_gate[u]) > 0 for u in range(sae.width)]
            value = [
                max(h[u] * float(sae.gain[u]) + float(sae.b_enc[u]), 0.0) * gate[u]
                for u in range(sae.width)
            ]
        elif sae.activation == "topk":
            best = sorted(range(sae.width), key=lambda u: (-value[u], u))[: sae.k]
            value = [v if u in best else 0.0 for u, v in enumerate(value)]
        elif sae.activation == "groupmax":
            size = sae.width // sae.k
            best = [
                max(range(s, s + size), key=lambda u: (value[u], -u))
                for s in range(0, sae.width, size)
            ]
            value = [v if u in best else 0.0 for u, v in enumerate(value)]
        rows.append(value)
    return torch.tensor(rows, dtype=torch.float64)


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(ACTIVATIONS),
    st.integers(1, 4),
    st.integers(1, 20),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_codes_are_those_of_the_definition(activation, k, size, centred, seed):
    sae = make(activation, k * size, k=k, seed=seed, centred=centred)
    x = torch.randint(-2, 3, (7, 4), generator=torch.Generator().manual_seed(seed + 1)).float()
    codes = sae.encode(x)
    assert torch.equal(codes.dense().double(), by_definition(sae, x))
    assert torch.equal(sae.decode(codes), (codes.dense() @ sae.W_dec) + sae.b_dec)


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_vectors_have_no_codes(activation, normalize):
    sae = make(activation, normalize=normalize)
    codes = sae.encode(torch.zeros(0, 4))
    assert len(codes.values) == len(codes.indices) == 0
    assert sae.reconstruct(torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_move_to_a_device_takes_every_tensor_and_changes_nothing(activation):
    sae = make(activation)
    moved = sae.to("meta")
    assert {tensor.device.type for tensor in moved.tensors.values()} == {"meta"}
    assert moved.tensors.keys() == sae.tensors.keys() >= set(EXTRA.get(activation, ()))
    assert sae.to("cpu").identity == sae.identity


def test_the_fingerprint_knows_the_activation_and_the_transforms():
    sae = make()
    given = [dataclasses.replace(sae, activation=a) for a in ("topk", "relu", "groupmax")]
    given += [dataclasses.replace(sae, normalize=n) for n in NORMALIZATIONS[1:]]
    given += [dataclasses.replace(sae, centred=False)]
    for name in ("threshold", "b_gate", "gain"):
        given += [
            dataclasses.replace(sae, **{name: torch.full((12,), value)}) for value in (1.0, 2.0)
        ]
    assert len({one.identity["fingerprint"] for one in given}) == len(given)
