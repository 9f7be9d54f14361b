"""Functions that the scripts share: options, records of results, timing, random SAEs, commands."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from saefeat.dictionaries import SAE
from saefeat.models import native_bf16
from saefeat.run import set_threads

ROOT = Path(__file__).resolve().parents[1]


# --------------------------------------------------------------------------- options


def options(
    description: str | None, *, run: bool = False, out: str = "JSON file of the results"
) -> argparse.ArgumentParser:
    """A parser with `--out`, whose help is `out`, and with the argument RUN if `run` is set."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if run:
        parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--out", type=Path, help=out)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments of the command line. Sets the number of threads to that of a run."""
    arguments = parser.parse_args()
    set_threads()
    return arguments


def by_commas(text: str) -> list[str]:
    """Names or numbers separated by commas."""
    return text.split(",")


def choose_parts(parser: argparse.ArgumentParser, text: str, parts: tuple[str, ...]) -> list[str]:
    """The parts named in `text`. Ends with a message if one of them does not exist."""
    chosen = by_commas(text)
    if unknown := set(chosen) - set(parts):
        parser.error(f"there is no part {min(unknown)}; there are {', '.join(parts)}")
    return chosen


# --------------------------------------------------------------------------- results


def machine(device: str = "cpu") -> dict[str, Any]:
    """What figures depend on: processor, threads, versions, and the GPU if one is used."""
    import transformers

    found: dict[str, Any] = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "native_bf16": native_bf16(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if device.startswith("cuda"):
        found |= {"gpu": torch.cuda.get_device_name(), "bytes": torch.cuda.mem_get_info()[1]}
    return found


def record(arguments: argparse.Namespace, result: Mapping[str, Any], device: str = "cpu") -> None:
    """Write a result to `--out`, with date, machine and arguments. Without `--out`, print it.

    Args:
        arguments: of the command line.
        result: JSON values.
        device: on which the figures were measured.
    """
    given = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(arguments).items()
        if name != "out"
    }
    whole = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(device),
        "arguments": given,
        **result,
    }
    text = json.dumps(whole, indent=1, ensure_ascii=False)
    if arguments.out is None:
        print(text)
    else:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def show(row: Any) -> None:
    """Print a row of a result as soon as it is there."""
    print(json.dumps(row, ensure_ascii=False), flush=True)


# --------------------------------------------------------------------------- timing


def seconds(call: Callable[[], Any], device: str = "cpu") -> float:
    """How long a call takes, the work that it has started on a GPU included."""
    start = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def median_seconds(call: Callable[[], Any], rounds: int, device: str = "cpu") -> float:
    """The median of some rounds, after two that warm up."""
    return median([seconds(call, device) for _ in range(rounds + 2)][2:])


def in_turns(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Take several measurements in turns, so that a slow phase of the machine affects all alike.

    A first round warms up and is dropped.
    """
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds + 1):
        for name, measure in measures.items():
            found[name].append(measure())
    return {name: values[1:] for name, values in found.items()}


# --------------------------------------------------------------------------- SAEs and commands


def random_sae(
    identity: str,
    site: str,
    d_in: int,
    width: int,
    *,
    k: int = 32,
    seed: int = 0,
    max_norm: float | None = None,
    dtype: str = "float32",
) -> SAE:
    """A TopK SAE of random directions of length 1.

    The time of encoding does not depend on what an SAE has learned.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(width, d_in, generator=generator), dim=1)
    return SAE(
        identity,
        site,
        rows.t().contiguous(),
        torch.zeros(width),
        rows,
        torch.zeros(d_in),
        k,
        max_norm=max_norm,
        dtype=dtype,
    )


def flags(**values: Any) -> list[str]:
    """Options of a command line: `max_tokens=5` as `--max-tokens 5`."""
    return [
        part
        for name, value in values.items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]


def run_python(
    *command: str, timeout: float | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in the repository, and capture what it writes."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=None if environment is None else dict(environment),
    )
