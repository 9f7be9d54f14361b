"""Changes along directions do what their papers define, token by token, as plain loops do it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import close, random_sae
from hypothesis import given
from hypothesis import strategies as st

from saefeat.steering.along import add_where_firing, clamp_projection, erase, step, stretch

D = 32
STRENGTHS = [1.0, 0.4, -1.3, 2.0]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(seed):
    found = random(D, seed=seed)
    return found / found.norm()


def by_token(change, strength, rule, x=None):
    """Assert that a change of every token is what a rule, numpy [d] -> [d], makes of it."""
    x = random(2, 9, D, seed=1) if x is None else x
    found = change(x, torch.full((*x.shape[:2], 1), strength))
    wanted = [[rule(token.double().numpy()) for token in row] for row in x]
    close(found, torch.tensor(np.array(wanted)).float(), 1e-5)
    return found


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_clamp_sets_the_projection(strength):
    axis, low, high = unit(2), -0.7, 1.9
    u, target = axis.double().numpy(), low + strength * (high - low)
    change = clamp_projection(axis, low, high)
    found = by_token(change, strength, lambda h: h + (target - h @ u) * u)
    close(found @ axis, torch.full((2, 9), target), 1e-5)
    again = change(found, torch.full((2, 9, 1), strength))
    close(again, found, 1e-5)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_one_sided_clamp_moves_only_the_tokens_short_of_its_target(strength):
    axis, low, high = unit(2), 0.1, 0.6
    u, target = axis.double().numpy(), low + strength * (high - low)

    def rule(h):
        move = target - h @ u
        return h + (max(0.0, move) if strength > 0 else min(0.0, move)) * u

    x = random(2, 9, D, seed=1)
    found = by_token(clamp_projection(axis, low, high, one_sided=True), strength, rule)
    kept = (found == x).all(-1)
    assert 0 < kept.sum() < kept.numel()


@pytest.mark.parametrize("strength", STRENGTHS)
def test_erasing_uses_the_coefficients_of_the_original_vector(strength):
    directions = random(3, D, seed=3)
    directions[2] = directions[0] + 0.1 * random(D, seed=4)  # what both share goes twice

    def rule(x):
        out = x.copy()
        for d in directions.double().numpy():
            out -= strength * (x @ d) * d / (d @ d)
        return out

    by_token(erase(directions), strength, rule)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_orthogonal_erasing_removes_the_span_once(strength):
    directions = random(3, D, seed=3)
    directions[2] = 2 * directions[0]  # adds nothing to the span
    basis = np.linalg.qr(directions[:2].double().numpy().T)[0]
    found = by_token(
        erase(directions, orthogonal=True), strength, lambda x: x - strength * basis @ (basis.T @ x)
    )
    if strength == 1.0:
        close(found @ directions.T, torch.zeros(2, 9, 3), 1e-4)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_gated_vector_is_added_where_a_unit_fires(strength):
    sae, vector, units = random_sae(d_in=D, width=64, k=6), random(D, seed=5), [3, 40, 41]
    x = random(2, 9, D, seed=1)
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    best = pre.clamp(min=0).topk(6, dim=-1)
    fires = torch.tensor(
        [
            [
                any(u in units and v > 0 for u, v in zip(us, vs, strict=True))
                for us, vs in zip(*row, strict=True)
            ]
            for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
    )
    assert 0 < fires.sum() < fires.numel()
    found = add_where_firing(vector, [(sae, units)])(x, torch.full((2, 9, 1), strength))
    close(found, x + strength * vector * fires[..., None])
    assert torch.equal(found[~fires], x[~fires])
    halves = add_where_firing(vector, [(sae, units[:1]), (sae, units[1:])])
    assert torch.equal(halves(x, torch.full((2, 9, 1), strength)), found)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_step_keeps_the_norm(strength, relative):
    axis, length = unit(6), 0.8

    def rule(h):
        size = np.linalg.norm(h)
        moved = h + strength * length * (size if relative else 1) * axis.double().numpy()
        return moved * size / np.linalg.norm(moved)

    found = by_token(step(axis, length, relative=relative), strength, rule)
    close(found.norm(dim=-1), random(2, 9, D, seed=1).norm(dim=-1), 1e-5)


def test_a_step_of_a_zero_vector_is_finite():
    assert not step(unit(6), 1.0)(torch.zeros(1, 1, D), torch.ones(1, 1, 1)).any()


@pytest.mark.parametrize("side", [None, 1.0, -0.2])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_stretch_lengthens_the_part_along_the_axis(strength, side):
    axis, centre, factor = unit(7), random(D, seed=8), -2.4
    u, c = axis.double().numpy(), centre.double().numpy()

    def rule(x):
        part = (x - c) @ u
        kept = side is not None and np.sign(part) != np.sign(side)
        return x if kept else x + strength * factor * part * u

    by_token(stretch(axis, centre, factor, side=side), strength, rule)


def test_a_stretch_by_the_ratio_of_projections_moves_the_source_to_the_target():
    axis, centre = unit(7), random(D, seed=8)
    source, target = random(D, seed=9), random(D, seed=10)
    ratio = float((target - centre) @ axis / ((source - centre) @ axis))
    found = stretch(axis, centre, ratio - 1)(source[None, None], torch.ones(1, 1, 1))[0, 0]
    close(found @ axis, target @ axis, 1e-4)


@given(st.integers(0, 99), st.floats(-3, 3))
def test_vectors_of_outlier_norm_are_kept(seed, strength):
    x = random(1, 4, D, seed=seed)
    x[0, 2] *= 100
    sae = random_sae(d_in=D)
    for change in (
        clamp_projection(unit(2), 0.0, 1.0, 50.0),
        erase(random(2, D), 50.0),
        add_where_firing(random(D), [(sae, range(64))], 50.0),
        step(unit(2), 1.0, 50.0),
        stretch(unit(2), random(D), 1.0, 50.0),
    ):
        assert torch.equal(change(x, torch.full((1, 4, 1), strength))[0, 2], x[0, 2])
