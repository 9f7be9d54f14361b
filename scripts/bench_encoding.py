"""Encoding through saefeat against the SAE's own library, on the same vectors, in one run.

    python scripts/bench_encoding.py --out scripts/results/bench_encoding.json

Both sides encode in float32 with the same weights and the same number of threads, turn by turn; the
figure is the median of the ratios. Both give the same units (checked before the clock starts).
Where sae-lens is not installed, its formulas in plain torch take its place (`against` says so).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch

from saefeat.dictionaries import SAE
from saefeat.run import set_threads
from saefeat.sae.store import load_sae

ROWS, K, THRESHOLD = 2048, 32, 0.05
Encode = Callable[[torch.Tensor], Any]
KINDS = ("topk", "jumprelu", "standard", "sparsify")


def lens(directory: Path, kind: str, d_in: int, d_sae: int, device: str) -> tuple[SAE, Encode, str]:
    """A random SAE, the `encode` of sae-lens for the same weights, and the name of that side.

    Where sae-lens is not installed, its formulas in plain torch stand for it.
    """
    state = _weights(d_in, d_sae)
    if kind == "standard":
        state["b_enc"] -= 0.05
    if find_spec("sae_lens") is None:
        return _plain(kind, state, device)
    from sae_lens import (
        JumpReLUSAE,
        JumpReLUSAEConfig,
        StandardSAE,
        StandardSAEConfig,
        TopKSAE,
        TopKSAEConfig,
    )

    made = {
        "topk": lambda: TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=K)),
        "jumprelu": lambda: JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=d_sae)),
        "standard": lambda: StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae)),
    }[kind]()
    if kind == "jumprelu":
        state["threshold"] = torch.full((d_sae,), THRESHOLD)
    made.load_state_dict(state)
    made.cfg.metadata.hook_name = "blocks.0.hook_mlp_out"
    made.save_model(directory)
    return load_sae(directory), made.to(device).encode, "sae-lens"


def _plain(kind: str, state: dict[str, Any], device: str) -> tuple[SAE, Encode, str]:
    activation = "relu" if kind == "standard" else kind
    threshold = torch.full_like(state["b_enc"], THRESHOLD) if kind == "jumprelu" else None
    sae = SAE(
        kind,
        "mlp_out@0",
        **state,
        k=K if kind == "topk" else 0,
        activation=activation,
        threshold=threshold,
    )
    W, b_enc, b_dec = (state[name].to(device) for name in ("W_enc", "b_enc", "b_dec"))

    def encode(x: torch.Tensor) -> torch.Tensor:
        pre = (x - b_dec) @ W + b_enc
        if kind == "jumprelu":
            return pre.relu() * (pre > THRESHOLD)
        if kind == "standard":
            return pre.relu()
        values, units = pre.topk(K, sorted=False)
        return torch.zeros_like(pre).scatter_(1, units, values.relu())

    return sae, encode, "plain torch"


def sparse(directory: Path, d_in: int, d_sae: int, device: str) -> tuple[SAE, Encode, str]:
    """A random SAE of eai-sparsify, saved by it, and its own `encode`."""
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=K))
    weights = _weights(d_in, d_sae)
    with torch.no_grad():
        coder.encoder.weight.copy_(weights["W_enc"].T)
        assert coder.W_dec is not None
        coder.W_dec.copy_(weights["W_dec"])
    place = directory / "layers.0.mlp"
    coder.save_to_disk(place)
    coder.to(device)
    return load_sae(place), lambda x: coder.encode(x).top_acts, "sparsify"


def _weights(d_in: int, d_sae: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(d_sae, d_in), dim=1)
    return {
        "W_enc": 0.02 * rows.T.contiguous(),
        "b_enc": torch.zeros(d_sae),
        "W_dec": rows,
        "b_dec": torch.zeros(d_in),
    }


def measure(
    name: str, sae: SAE, theirs: Encode, against: str, rounds: int, device: str
) -> dict[str, Any]:
    sae = sae.to(device)
    x = torch.randn(ROWS, sae.d_in, device=device)
    with torch.inference_mode():
        found = theirs(x[:64])
        ours = sae.encode(x[:64])
        assert int((found > 0).sum()) == int((ours.values > 0).sum()) > 0
        torch.testing.assert_close(found.sum(1), ours.dense().sum(1), rtol=1e-4, atol=1e-4)
        times = [
            (_seconds(lambda: sae.encode(x), device), _seconds(lambda: theirs(x), device))
            for _ in range(rounds)
        ]
    ratio = median(other / own for own, other in times)
    own, other = (ROWS / median(side) for side in zip(*times, strict=True))
    l0 = round(float((ours.values > 0).sum() / len(ours)), 1)
    return {
        "sae": name,
        "d_in": sae.d_in,
        "d_sae": sae.width,
        "l0": l0,
        "vectors/s": round(own),
        "against": against,
        "theirs/s": round(other),
        "times as fast": round(ratio, 2),
    }


def _seconds(call: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--d-in", type=int, default=2048)
    parser.add_argument("--d-sae", type=int, default=32768)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--kinds",
        default=",".join(KINDS),
        help="by commas; those whose library is missing are left out",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    set_threads()
    size = (arguments.d_in, arguments.d_sae)
    rows = []
    for name in arguments.kinds.split(","):
        if name == "sparsify" and find_spec("sparsify") is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            where = (Path(folder), *size, arguments.device)
            made = sparse(*where) if name == "sparsify" else lens(where[0], name, *where[1:])
            rows.append(measure(name, *made, arguments.rounds, arguments.device))
        print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
