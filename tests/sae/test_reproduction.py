"""The script that reproduces SAE-LAPE, where SAEs keep half precision as stored."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from saefeat.dictionaries import SAE


def test_features_are_pushed_in_float32(monkeypatch):
    path = Path(__file__).parents[2] / "scripts" / "reproduce_sae_lape.py"
    monkeypatch.syspath_prepend(path.parent)  # of `common`
    spec = importlib.util.spec_from_file_location("reproduce_sae_lape", path)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)
    spec.loader.exec_module(script)
    rows = torch.randn(40, 8).bfloat16()
    half = SAE("a", "mlp_out@0", rows.T, torch.zeros(40), rows, torch.zeros(8), k=5)
    stats = {"a": SimpleNamespace(max=torch.rand(2, 40) * 1000)}
    selection = SimpleNamespace(units=lambda _: {"de": [3, 5]})
    lm = SimpleNamespace(site=lambda _: SimpleNamespace(path="p"))
    (edit,) = script._pushed(lm, [half], stats, selection, "de", 0.5).values()
    expected = 0.5 * (stats["a"].max[:, [3, 5]].amax(0) @ rows[[3, 5]].float())
    assert torch.equal(edit(torch.zeros(8), 0), expected)
