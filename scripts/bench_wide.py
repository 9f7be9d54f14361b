"""Memory of a collection over very wide SAEs: the forecast of `--dry-run`, and what is measured.

    python scripts/bench_wide.py WORK --out scripts/results/bench_wide.json

The script makes below WORK a random Llama with the tokenizer of SmolLM2, random TopK SAEs in
sparsify's layout at every layer in bfloat16 (17 GB by default: 16 layers of 131,072 features of
2,048), and texts with 200 labels. Then it collects statistics of all SAEs and ranks their features,
each in a process of its own whose memory is watched.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from common import flags, options, parse, record, show
from safetensors.torch import save_file

from saefeat.corpora import load_corpus
from saefeat.memory import memory_limit
from saefeat.models import load_model

CHARACTERS = 20  # of a text


def make_model(folder: Path, d_in: int, layers: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    if (folder / "config.json").exists():
        return
    donor = load_model("embedded:smollm2-135m", device="cpu")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=donor.unembedding().shape[0],
        hidden_size=d_in,
        intermediate_size=4 * d_in,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    donor.tokenizer.save_pretrained(folder)


def make_sae(folder: Path, d_in: int, d_sae: int, seed: int) -> None:
    if (folder / "cfg.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed))
    rows = (rows / rows.norm(dim=1, keepdim=True)).bfloat16()
    biases = {"encoder.bias": torch.zeros(d_sae).bfloat16(), "b_dec": torch.zeros(d_in).bfloat16()}
    save_file({"encoder.weight": rows.clone(), "W_dec": rows, **biases}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(
        json.dumps({"activation": "topk", "d_in": d_in, "num_latents": d_sae, "k": 32})
    )


def make_corpus(path: Path, labels: int) -> None:
    """Real text with arbitrary labels."""
    corpus = load_corpus("embedded:eld")
    rows = [
        {"text": text[:CHARACTERS], "label": f"l{i % labels:03d}", "id": str(i)}
        for i, text in enumerate(corpus.texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def watched(*command: str) -> dict[str, Any]:
    """Run saefeat and watch it.

    Returns its output, the seconds it took, and in GB the peaks of its memory with and without
    mapped files.
    """
    start, peaks = time.monotonic(), {"VmRSS": 0, "RssAnon": 0}
    with subprocess.Popen(
        [sys.executable, "-m", "saefeat", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
    ) as process:
        lines: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
        reader.start()
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            for name in peaks:
                found = re.search(rf"{name}:\s+(\d+) kB", status)
                peaks[name] = max(peaks[name], int(found[1]) if found else 0)
            time.sleep(0.1)
        reader.join()
    if process.returncode:
        raise SystemExit("".join(lines[-5:]))
    return {
        "lines": lines,
        "seconds": round(time.monotonic() - start),
        "peak": round(peaks["VmRSS"] * 1024 / 1e9, 2),
        "peak without mapped files": round(peaks["RssAnon"] * 1024 / 1e9, 2),
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--d-in", type=int, default=2048)
    parser.add_argument("--d-sae", type=int, default=131072)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--labels", type=int, default=200)
    given = parse(parser)
    model, saes, stats = (given.work / name for name in ("model", "saes", "stats"))
    make_model(model, given.d_in, given.layers)
    for layer in range(given.layers):
        make_sae(saes / f"layers.{layer}", given.d_in, given.d_sae, layer)
    corpus = given.work / "corpus.jsonl"
    make_corpus(corpus, given.labels)
    inputs = flags(model=model, saes=saes, corpus=corpus, max_tokens=10)
    collect = ["collect", *inputs, "--no-gate", *flags(out=stats)]
    by_means = flags(method="feature-diffmean", out=given.work / "d.parquet")
    commands = {
        "collect": collect,
        "rank": ["rank", str(stats), *flags(out=given.work / "s.parquet")],
        "rank, feature-diffmean": ["rank", str(stats), *by_means],
    }
    lines = watched(*collect, "--dry-run")["lines"]
    result: dict[str, Any] = {
        "saes": f"{given.layers} of {given.d_sae:,} features of {given.d_in:,}, bfloat16",
        "labels": given.labels,
        "memory of the machine": round(memory_limit() / 1e9, 1),
        "forecast": next(line.strip() for line in lines if "forecast" in line),
    }
    print(result["forecast"], flush=True)
    for name, command in commands.items():
        found = watched(*command)
        result[name] = {key: value for key, value in found.items() if key != "lines"}
        show({name: result[name]})
    record(given, result)


if __name__ == "__main__":
    main()
