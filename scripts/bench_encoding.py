"""Speed of encoding by saefeat and by the SAE's own library on the same vectors.

    python scripts/bench_encoding.py --out scripts/results/bench_encoding.json

Both encode in float32 with the same weights and the same number of threads, in turns; the figure is
the median of the ratios. Before the clock starts, it is checked that both give the same units. If
sae-lens is not installed, its formulas in plain torch are measured instead (see `against`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import by_commas, in_turns, options, parse, record, seconds, show

from saefeat.dictionaries import SAE
from saefeat.sae.store import load_sae

ROWS, K, THRESHOLD = 2048, 32, 0.05
Encode = Callable[[torch.Tensor], Any]
KINDS = ("topk", "jumprelu", "standard", "sparsify")


def lens(directory: Path, kind: str, d_in: int, d_sae: int, device: str) -> tuple[SAE, Encode, str]:
    """A random SAE, the `encode` of sae-lens for the same weights, and the name of this library.

    Without sae-lens, `encode` is made of its formulas in plain torch.
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
    """A random SAE that eai-sparsify has saved, and its `encode` there."""
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
    """Check that both sides give the same units, then measure them in turns."""
    sae = sae.to(device)
    x = torch.randn(ROWS, sae.d_in, device=device)
    with torch.inference_mode():
        found = theirs(x[:64])
        ours = sae.encode(x[:64])
        assert int((found > 0).sum()) == int((ours.values > 0).sum()) > 0
        torch.testing.assert_close(found.sum(1), ours.dense().sum(1), rtol=1e-4, atol=1e-4)
        sides = {
            "ours": lambda: seconds(lambda: sae.encode(x), device),
            "theirs": lambda: seconds(lambda: theirs(x), device),
        }
        times = in_turns(sides, rounds)
    ratios = [other / own for own, other in zip(times["ours"], times["theirs"], strict=True)]
    return {
        "sae": name,
        "d_in": sae.d_in,
        "d_sae": sae.width,
        "l0": round(float((ours.values > 0).sum() / len(ours)), 1),
        "vectors/s": round(ROWS / median(times["ours"])),
        "against": against,
        "theirs/s": round(ROWS / median(times["theirs"])),
        "times as fast": round(median(ratios), 2),
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--d-in", type=int, default=2048)
    parser.add_argument("--d-sae", type=int, default=32768)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--kinds",
        default=",".join(KINDS),
        help="by commas; a kind whose library is missing is skipped",
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parse(parser)
    device, size = arguments.device, (arguments.d_in, arguments.d_sae)
    rows = []
    for name in by_commas(arguments.kinds):
        if name == "sparsify" and find_spec("sparsify") is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            if name == "sparsify":
                made = sparse(Path(folder), *size, device)
            else:
                made = lens(Path(folder), name, *size, device)
            rows.append(measure(name, *made, arguments.rounds, device))
        show(rows[-1])
    record(arguments, {"rows": rows}, device)


if __name__ == "__main__":
    main()
