"""Shared by the tests of SAE formats: vectors, weights, the comparison with another library."""

from __future__ import annotations

import pytest
import torch

from saefeat.hooks import capture

D_IN, D_SAE = 640, 384  # the width of Gemma-3-270m, and a narrow SAE


@pytest.fixture(scope="session")
def activations(gemma):
    """Vectors float32 [n, 640] after a block of Gemma-3-270m, without those of BOS."""
    site = gemma.site("resid_post@3").path
    texts = [
        "The keeper of the old lighthouse climbed the stairs.",
        "Der Hund und die Katze schliefen im Haus.",
    ]
    rows = []
    with capture(gemma.model, (site,)) as captured, torch.inference_mode():
        for text in texts:
            ids = torch.tensor([gemma.tokenizer(text)["input_ids"]])
            rows.append(captured.run(gemma.model, input_ids=ids)[site][0, 1:].clone())
    return torch.cat(rows)


@pytest.fixture(scope="session", params=["random", "real"])
def x(request, activations):
    """Random vectors of the length of the real ones, and the real ones."""
    if request.param == "real":
        return activations
    scale = activations.norm(dim=1).median() / D_IN**0.5
    return torch.randn(60, D_IN, generator=torch.Generator().manual_seed(7)) * scale


@pytest.fixture(scope="session")
def weights():
    """weights(*names): random tensors by name; on any vector some units fire and most do not."""
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}

    def make(*names, seed=0):
        g = torch.Generator().manual_seed(seed)
        made = {name: torch.randn(shapes.get(name, (D_SAE,)), generator=g) for name in names}
        for name in ("W_enc", "W_dec", "r_mag"):
            if name in made:
                made[name] *= 0.05
        if "threshold" in made:
            made["threshold"] = made["threshold"].abs() * 10
        return made

    return make


def assert_same(sae, x, acts, out=None):
    """Units and values are those of another library's activations [n, d_sae]."""
    ours, scale = sae.encode(x).dense(), acts.amax(1, keepdim=True).clamp(min=1e-6)
    assert (acts > 0).any(1).all() and not (acts > 0).all(), "the vectors tell nothing"
    clear = torch.maximum(ours, acts) > 1e-5 * scale  # rounding may move a value over zero
    assert torch.equal((ours > 0) & clear, (acts > 0) & clear)
    torch.testing.assert_close(ours / scale, acts / scale, rtol=1e-5, atol=1e-5)
    if out is not None:
        size = out.norm(dim=1, keepdim=True)
        torch.testing.assert_close(sae.reconstruct(x) / size, out / size, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="session")
def same():
    return assert_same
