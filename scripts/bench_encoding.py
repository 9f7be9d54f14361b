"""Encoding through saefeat against the SAE's own library, on the same vectors, in one run.

    python scripts/bench_encoding.py --out scripts/results/bench_encoding.json

Both sides encode in float32 with the same weights and the same number of threads, turn by turn; the figure is the
median of the ratios. Both give the same units (checked before the clock starts).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from saefeat.pipeline import set_threads
from saefeat.sae.store import load_sae

ROWS = 2048


def lens(directory: Path, kind: str, d_in: int, d_sae: int, device: str) -> tuple[Path, Callable[[torch.Tensor], Any]]:
    """A random SAE of sae-lens, saved by it, and its own `encode`."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

    made = {"topk": lambda: TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=32)),
            "jumprelu": lambda: JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=d_sae)),
            "standard": lambda: StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae))}[kind]()  # fmt: skip
    weights = _weights(d_in, d_sae)
    state = {**weights, "threshold": torch.full((d_sae,), 0.05)} if kind == "jumprelu" else weights
    if kind == "standard":
        state["b_enc"] -= 0.05
    made.load_state_dict(state)
    made.cfg.metadata.hook_name = "blocks.0.hook_mlp_out"
    made.save_model(directory)
    return directory, made.to(device).encode


def sparse(directory: Path, d_in: int, d_sae: int, device: str) -> tuple[Path, Callable[[torch.Tensor], Any]]:
    """A random SAE of eai-sparsify, saved by it, and its own `encode`."""
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=32))
    weights = _weights(d_in, d_sae)
    with torch.no_grad():
        coder.encoder.weight.copy_(weights["W_enc"].T)
        assert coder.W_dec is not None
        coder.W_dec.copy_(weights["W_dec"])
    place = directory / "layers.0.mlp"
    coder.save_to_disk(place)
    coder.to(device)
    return place, lambda x: coder.encode(x).top_acts


def _weights(d_in: int, d_sae: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(d_sae, d_in), dim=1)
    return {"W_enc": 0.02 * rows.T.contiguous(), "b_enc": torch.zeros(d_sae), "W_dec": rows, "b_dec": torch.zeros(d_in)}


def measure(name: str, place: Path, theirs: Callable[[torch.Tensor], Any], rounds: int, device: str) -> dict[str, Any]:
    sae = load_sae(place).to(device)
    x = torch.randn(ROWS, sae.d_in, device=device)
    with torch.inference_mode():
        found = theirs(x[:64])
        ours = sae.encode(x[:64])
        assert int((found > 0).sum()) == int((ours.values > 0).sum()) > 0
        torch.testing.assert_close(found.sum(1), ours.dense().sum(1), rtol=1e-4, atol=1e-4)
        times = [(_seconds(lambda: sae.encode(x), device), _seconds(lambda: theirs(x), device)) for _ in range(rounds)]
    ratio = median(other / own for own, other in times)
    own, other = (ROWS / median(side) for side in zip(*times, strict=True))
    l0 = round(float((ours.values > 0).sum() / len(ours)), 1)
    return {"sae": name, "d_in": sae.d_in, "d_sae": sae.width, "l0": l0, "vectors/s": round(own),
            "theirs/s": round(other), "times as fast": round(ratio, 2)}  # fmt: skip


def _seconds(call: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-in", type=int, default=2048)
    parser.add_argument("--d-sae", type=int, default=32768)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    set_threads()
    size = (arguments.d_in, arguments.d_sae)
    rows = []
    for name in ("topk", "jumprelu", "standard", "sparsify"):
        with tempfile.TemporaryDirectory() as folder:
            where = (Path(folder), *size, arguments.device)
            place, encode = sparse(*where) if name == "sparsify" else lens(where[0], name, *where[1:])
            rows.append(measure(name, place, encode, arguments.rounds, arguments.device))
        print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
