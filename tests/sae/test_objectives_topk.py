"""Gradients written out by hand are those of autograd on a naive implementation."""

from __future__ import annotations

import pytest
import torch

from saefeat.config import TrainConfig
from saefeat.sae.objectives.topk import TopK, aux_gradients


def weights(width, d, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    shapes = {"encoder": (width, d), "b_enc": (width,), "decoder": (width, d), "b_dec": (d,)}
    return {name: scale * torch.randn(shape, generator=g) for name, shape in shapes.items()}


def naive(x, encoder, b_enc, decoder, b_dec, k):
    """Loss of a TopK SAE in float64, with autograd; rows stand for units."""
    p = {
        n: t.double().requires_grad_()
        for n, t in locals().items()
        if isinstance(t, torch.Tensor) and n != "x"
    }
    pre = ((x.double() - p["b_dec"]) @ p["encoder"].t() + p["b_enc"]).relu()
    chosen = (pre * p["decoder"].norm(dim=1)).topk(k, dim=1).indices
    codes = torch.zeros_like(pre).scatter(1, chosen, pre.gather(1, chosen))
    loss = (codes @ p["decoder"] + p["b_dec"] - x.double()).square().sum(1).mean()
    loss.backward()
    return loss.detach(), {name: tensor.grad for name, tensor in p.items()}, codes.detach()


@pytest.mark.parametrize(
    ("width", "k", "bias"), [(64, 4, 0.0), (64, 4, -3.0), (16, 16, 0.0), (160, 7, 0.0)]
)
def test_the_step_has_the_gradients_of_autograd(width, k, bias):
    n, d = 300, 12
    p = weights(width, d)
    p["b_enc"] += bias  # at -3, many tokens have fewer than k positive units
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(5)) + 0.3
    loss, gradients, codes = naive(x, **p, k=k)
    objective = TopK(TrainConfig(k=k), torch.float32)
    step, (values, units) = objective.step(x, p, n), objective.select(x - p["b_dec"], p)
    torch.testing.assert_close(step.loss.double(), loss, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            step.gradients[name].double(), gradient, rtol=2e-4, atol=2e-4, msg=name
        )
        assert gradient.abs().max() > 0.01
    dense = torch.zeros(n, width).scatter(1, units, values)
    torch.testing.assert_close(dense.double(), codes, rtol=1e-4, atol=1e-4)
    assert torch.equal(step.fired, (codes > 0).any(0)) and step.l0 == (codes > 0).sum() / n
    error = codes @ p["decoder"].double() + p["b_dec"].double() - x.double()
    torch.testing.assert_close(step.error.double(), error, rtol=1e-4, atol=1e-3)


def test_units_that_never_fire_have_no_gradient():
    p = weights(32, 6)
    p["b_enc"][7] = -100
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    step = TopK(TrainConfig(k=3), torch.float32).step(x, p, len(x))
    assert not step.fired[7] and step.fired.any()
    assert not any(step.gradients[name][7].any() for name in ("encoder", "decoder", "b_enc"))


@pytest.mark.parametrize(("dead", "k"), [(1, 4), (3, 8), (40, 6)])
def test_the_auxiliary_step_has_the_gradients_of_autograd(dead, k):
    n, d = 80, 10
    p = weights(dead, d, seed=2)
    g = torch.Generator().manual_seed(3)
    x, error = torch.randn(n, d, generator=g), torch.randn(n, d, generator=g)
    rows = {name: p[name].double().requires_grad_() for name in ("encoder", "b_enc", "decoder")}
    pre = x.double() @ rows["encoder"].t() + rows["b_enc"]
    chosen = (pre * rows["decoder"].norm(dim=1)).topk(min(k, dead), dim=1).indices
    codes = torch.zeros_like(pre).scatter(1, chosen, pre.gather(1, chosen).relu())
    left = -error.double()  # what the living units have not reconstructed
    ((codes @ rows["decoder"] - left).square().mean() / left.square().mean()).backward()
    found = aux_gradients(x, error, p, k)
    assert found.keys() == rows.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(
            gradient.double(), rows[name].grad, rtol=1e-4, atol=1e-5, msg=name
        )
        assert gradient.abs().max() > 1e-4
