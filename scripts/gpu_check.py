"""Checks and figures on a GPU, as one table and one JSON file. Started by `scripts/gpu.sh`.

    scripts/gpu.sh --pack                       # with a network: fill gpu-pack/
    scripts/gpu.sh --out gpu.json               # on a GPU, offline, under eight minutes
    scripts/gpu.sh --cpu --out gpu.json         # the same on the CPU, with small sizes

gpu-pack/ holds what a machine without a network lacks (`gpu_pack.py`).

The CPU's figures are made in the same run as the GPU's. `share` of training is that of the
encoder's product (2 x batch x d_in x d_sae operations per step) in the measured bfloat16 matrix
rate of the card. A check that fails is marked in the table, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from bench_training import sparsify_steps
from common import (
    ROOT,
    choose_parts,
    flags,
    median_seconds,
    options,
    parse,
    random_sae,
    record,
    run_python,
)
from gpu_pack import PACK, pack
from torch import Tensor

from saefeat import collection, memory
from saefeat.config import TrainConfig
from saefeat.corpora import load_corpus, make_plan
from saefeat.io import read_json
from saefeat.models import LanguageModel, load_model
from saefeat.sae.formats.values import stated
from saefeat.sae.store import load_saes
from saefeat.sae.trainer import Trainer
from saefeat.statistics import Stats

LABELS = ("en", "de", "fr", "ru")
PARTS = ("tests", "matrix", "run", "encoding", "training", "groups")
# Limits of the difference to the CPU in float32: (float32, bfloat16) on the device.
LIMITS = {
    # Firing tokens of features, as a share of all.
    "counts": (1e-3, 0.05),
    # Of SAEs trained there: sums on a GPU have no fixed order.
    "fvu": (0.02, 0.05),
    "accuracy": (0.03, 0.05),
    # Mean loss of texts as a share, the mean over labels. An edit adds the features that differ.
    "unsteered loss": (1e-5, 1e-2),
    "edited loss": (1e-3, 2e-2),
    # Share of greedily decoded tokens that differ.
    "steered tokens": (0.1, 0.7),
}


@dataclass
class Report:
    """Rows of the table, and their values."""

    device: str
    small: bool
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)

    def add(
        self, part: str, what: str, value: Any, against: Any = "", ok: bool | None = None
    ) -> None:
        shown = {None: "", True: "ok", False: "FAILED"}[ok]
        self.rows.append((f"{part}: {what}", _shown(value), _shown(against), shown))
        self.found.setdefault(part, []).append(
            {"what": what, "value": value, "against": against, "ok": ok}
        )
        print("   ".join(self.rows[-1]).rstrip(), flush=True)

    @property
    def failed(self) -> int:
        return sum(row[3] == "FAILED" for row in self.rows)

    def table(self) -> str:
        widths = [max(len(row[i]) for row in self.rows) for i in range(4)]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
            for row in self.rows
        )


def _shown(value: Any) -> str:
    return (
        f"{value:,.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


# --------------------------------------------------------------------------- parts


def check_tests(report: Report) -> None:
    """Run `tests/test_cuda.py`, which is skipped on a CPU, and the layouts of several ranks.

    The ranks share the device, and exchange through the CPU: NCCL wants a GPU for each.
    """
    _run_tests(report, "tests/test_cuda.py", "skipped" if report.small else "passed")
    layouts = "tests/sae/test_ranks.py::test_ranks_train_as_one_in_every_layout"
    _run_tests(report, layouts, "passed")


def _run_tests(report: Report, tests: str, wanted: str) -> None:
    environment = {**os.environ, "DEVICE": report.device}
    options = ("-p", "no:cacheprovider", "-rN")
    done = run_python("-m", "pytest", *options, tests, environment=environment)
    counts = {
        word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout)
    }
    if done.returncode or set(counts) != {wanted}:
        print(done.stdout[-6000:], done.stderr[-2000:], sep="\n")
    outcome = ", ".join(f"{n} {word}" for word, n in counts.items())
    ok = set(counts) == {wanted} and not done.returncode
    report.add("tests", tests, outcome, f"all {wanted}", ok)


def measure_matrix_rate(report: Report) -> float:
    """Measure the bfloat16 operations/s of a square matrix product on random data."""
    n = 1024 if report.small else 8192
    a, b = (torch.randn(n, n, device=report.device).bfloat16() for _ in range(2))
    seconds = median_seconds(lambda: a @ b, 3 if report.small else 20, report.device)
    rate = 2 * n**3 / seconds
    report.add("matrix", f"bfloat16 product of {n} x {n}, TFLOP/s", rate / 1e12)
    return rate


def check_run(report: Report, work: Path) -> None:
    """Make runs on both devices and compare the figures of the device with those of the CPU."""
    model, small = str(PACK / "model"), report.small
    kinds = {
        "cpu float32": ("cpu", "float32"),
        "float32": (report.device, "float32"),
        "bfloat16": (report.device, "bfloat16"),
    }
    for name, (device, dtype) in kinds.items():
        trained = work / name / "trained"
        _run(model, trained, device, dtype, small)
        if name != "cpu float32":  # with the SAEs of the CPU, so that only the device differs
            given = ("--saes", str(work / "cpu float32" / "trained" / "saes"), "--no-gate")
            _run(model, work / name / "given", device, dtype, small, *given)
    cpu = work / "cpu float32" / "trained"
    for place, name in enumerate(("float32", "bfloat16")):
        _compare(report, place, name, cpu, work / name)
    _compare_steering(report, work, model, kinds)
    for name in kinds:
        for source in ("trained", "given"):  # the second run finds the libraries in memory
            if (path := work / name / source / "run.json").exists():
                times = " ".join(f"{k} {s}" for k, s in read_json(path)["timings"].items())
                report.add("run", f"{name}, SAEs {source}, seconds a stage", times)


def _run(model: str, out: Path, device: str, dtype: str, small: bool, *more: str) -> None:
    tokens = 600 if small else 6000
    command = ["run", "--model", model, "--corpus", "embedded:eld", "--labels", ",".join(LABELS)]
    command += flags(device=device, dtype=dtype, max_tokens=tokens, out=out)
    command += flags(
        eval_texts=10 if small else 60,
        steer_prompts=2 if small else 4,
        matrix_texts=2 if small else 5,
    )
    if not more:  # SAEs are trained
        command += flags(d_sae=1152, k=32, sites="resid_post@1,mlp_out@2", train_tokens=tokens)
    done = run_python("-m", "saefeat", *command, *more, timeout=150)
    if done.returncode:
        raise RuntimeError(
            f"saefeat {' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}"
        )


def _compare(report: Report, place: int, name: str, cpu: Path, folder: Path) -> None:
    def row(what: str, value: float, kind: str) -> None:
        limit = LIMITS[kind][place]
        report.add("run", f"{name}, {what}", value, f"at most {limit}", value <= limit)

    for source in ("given", "trained"):
        one, two = (_stats(where / "stats") for where in (cpu, folder / source))
        same = all(torch.equal(one[i].tokens, two[i].tokens) for i in one)
        report.add(
            "run",
            f"{name}, counted tokens, SAEs {source}",
            "equal" if same else "differ",
            "equal",
            same,
        )
    one, two = (_stats(where / "stats") for where in (cpu, folder / "given"))
    fired = sum(int(stats.fired.sum()) for stats in one.values())
    moved = sum(int((one[i].fired - two[i].fired).abs().sum()) for i in one)
    row("firing tokens that differ, the CPU's SAEs", moved / max(fired, 1), "counts")
    errors = [_fvu(where) for where in (cpu, folder / "trained")]
    row(
        "FVU of trained SAEs, greatest difference",
        max(abs(a - b) for a, b in zip(*errors, strict=True)),
        "fvu",
    )
    scores = [
        read_json(where / "lid" / "metrics.json")["heads"] for where in (cpu, folder / "given")
    ]
    worst = max(
        abs(scores[0][head]["accuracy"] - scores[1][head]["accuracy"]) for head in scores[0]
    )
    row("accuracy of heads, greatest difference", worst, "accuracy")
    matrices = [read_json(where / "steering" / "matrix.json") for where in (cpu, folder / "given")]
    losses = [_losses(matrix) for matrix in matrices]
    shares = {key: abs(loss - losses[1][key]) / loss for key, loss in losses[0].items()}
    for kind in ("unsteered", "edited"):
        of = [share for key, share in shares.items() if (key[0] == "") == (kind == "unsteered")]
        row(f"loss of {kind} texts, mean difference", mean(of), f"{kind} loss")
    forcing = [
        {
            m["method"]: round(m["forcing"], 2)
            for m in read_json(where / "steering" / "metrics.json")["summary"]
        }
        for where in (cpu, folder / "given")
    ]
    report.add("run", f"{name}, forcing by method", forcing[1], forcing[0])


def _stats(folder: Path) -> dict[str, Stats]:
    return {path.stem: Stats.load(path) for path in sorted(folder.glob("sae-*.safetensors"))}


def _fvu(run: Path) -> list[float]:
    return [stated(sae.record)["fvu"] for sae in load_saes(str(run / "saes"))]


def _losses(matrix: dict[str, Any]) -> dict[tuple[str, ...], float]:
    """(edit, units, label of the units, label of the texts) -> mean loss; "": unsteered."""
    found = {("", "", "", label): m["nll_mean"] for label, m in matrix["baseline"].items()}
    for one in matrix["interventions"]:
        for label, row in one["rows"].items():
            for of, m in row.items():
                found[one["edit"], one["units"], label, of] = m["nll_mean"]
    return found


def _compare_steering(
    report: Report, work: Path, model: str, kinds: dict[str, tuple[str, str]]
) -> None:
    """Compare greedy steered text with that of the CPU, and with the cache and without."""
    stats = work / "cpu float32" / "trained" / "stats"
    prompts = ["The old lighthouse keeper", "In the morning we", "My sister told me that"]
    with torch.inference_mode():
        made = {}
        for name, (device, dtype) in kinds.items():
            lm = load_model(model, device=device, dtype=dtype)
            made[name] = [_steered(lm, stats, prompt, use_cache=True) for prompt in prompts]
            if dtype == "float32":
                slow = [_steered(lm, stats, prompt, use_cache=False) for prompt in prompts]
                same = slow == made[name]
                report.add(
                    "run",
                    f"{name}, steered tokens with and without cache",
                    "equal" if same else "differ",
                    "equal",
                    same,
                )
    for place, name in enumerate(("float32", "bfloat16")):
        pairs = [
            pair
            for one, two in zip(made["cpu float32"], made[name], strict=True)
            for pair in zip(one, two, strict=False)
        ]
        share, limit = sum(a != b for a, b in pairs) / len(pairs), LIMITS["steered tokens"][place]
        report.add(
            "run", f"{name}, steered tokens that differ", share, f"at most {limit}", share <= limit
        )


def _steered(lm: LanguageModel, stats: Path, prompt: str, *, use_cache: bool) -> list[int]:
    from saefeat import rank, steer

    features = rank(
        stats, "feature-diffmean", source="en", top=50, dictionaries=["sae-resid_post*"]
    )
    inputs = lm.tokenizer(prompt, return_tensors="pt").to(lm.device)
    with steer(lm, features, "de", strength=1.5, source="en"):
        tokens = lm.model.generate(
            **inputs, max_new_tokens=16, do_sample=False, use_cache=use_cache
        )
    return tokens[0].tolist()


def measure_encoding(report: Report, work: Path) -> None:
    """Run `scripts/bench_encoding.py` at two widths."""
    sizes = [(256, 2048)] if report.small else [(2048, 32_768), (2048, 131_072)]
    for d_in, d_sae in sizes:
        out = work / f"encoding-{d_sae}.json"
        given = flags(
            device=report.device,
            out=out,
            d_in=d_in,
            d_sae=d_sae,
            rounds=2 if report.small else 7,
            kinds="topk,sparsify" if d_sae > 65_536 else "topk,jumprelu,standard,sparsify",
        )
        script = str(ROOT / "scripts" / "bench_encoding.py")
        done = run_python(script, *given, timeout=150, environment=_with_rival())
        if done.returncode:
            print(done.stdout[-1000:], done.stderr[-3000:], sep="\n")
            report.add("encoding", f"bench_encoding.py, d_sae {d_sae}", "failed", "", False)
            continue
        for entry in read_json(out)["rows"]:
            report.add(
                "encoding",
                f"{entry['sae']}, d_in {d_in}, d_sae {d_sae}, vectors/s",
                entry["vectors/s"],
                f"{entry['theirs/s']:,} ({entry['against']})",
            )


def _with_rival() -> dict[str, str]:
    """The environment of a process that can import sparsify."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), _rival_site()]))
    return {**os.environ, "PYTHONPATH": path}


def _rival_site() -> str:
    """A folder with sparsify's packages, unpacked once; "" if they are not in the pack."""
    target = PACK / "rival-site"
    if not target.is_dir() and (wheels := sorted((PACK / "rival").glob("*.whl"))):
        for wheel in wheels:
            shutil.unpack_archive(wheel, target, "zip")
    return str(target) if target.is_dir() else ""


def measure_training(report: Report, rate: float) -> None:
    """Measure training steps of saefeat and of sparsify on the same random vectors."""
    d_in, d_sae, batch, steps = (128, 1024, 256, 3) if report.small else (2048, 131_072, 8192, 12)
    directions = torch.randn(4 * d_in, d_in, generator=torch.Generator().manual_seed(0)).to(
        report.device
    )
    chosen = torch.rand(4 * batch, 4 * d_in, device=report.device)
    x = (chosen * (chosen > 0.99)) @ directions  # sparse sums, so that there is something to learn
    del chosen, directions
    where = f"d_in {d_in}, d_sae {d_sae}, k 32, batch {batch}"
    config = TrainConfig(k=32, d_sae=d_sae, batch_size=batch, dtype="bfloat16")
    for name, make in (
        ("saefeat", lambda: _our_steps(x, config, report.device)),
        ("sparsify", lambda: _their_steps(x, d_sae, batch, report.device)),
    ):
        _free(report.device)
        try:
            step = make()
        except ImportError as error:
            report.add("training", f"{name}, {where}", f"not measured ({error})")
            continue
        seconds = median_seconds(step, steps, report.device)
        share = 2 * batch * d_in * d_sae / seconds / rate
        report.add("training", f"{name}, {where}, tokens/s", batch / seconds)
        report.add("training", f"{name}, encoder product's share of the matrix rate", share)
        if report.device.startswith("cuda"):
            report.add(
                "training", f"{name}, peak memory, GB", torch.cuda.max_memory_allocated() / 1e9
            )
        del step


def _our_steps(x: Tensor, config: TrainConfig, device: str) -> Callable[[], None]:
    batches = x.split(config.batch_size)
    with torch.inference_mode():
        trainer = Trainer(x.shape[1], config, 1000, device)
        trainer.fit_scaler(x)

    def step() -> None:
        with torch.inference_mode():
            trainer.step(batches[trainer.completed % len(batches)])

    return step


def _their_steps(x: Tensor, d_sae: int, batch: int, device: str) -> Callable[[], None]:
    if site := _rival_site():
        sys.path.append(site)
    if device == "cpu":
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    with redirect_stdout(sys.stderr):  # it prints notes on Triton
        return sparsify_steps(x, d_sae, batch, device)


def check_groups(report: Report, work: Path) -> None:
    """Collect with SAEs that do not fit together: in groups, with the same bytes as in one pass."""
    lm = load_model(str(PACK / "model"), device=report.device, dtype="float32")
    corpus = load_corpus("embedded:eld", labels=LABELS)
    plan = make_plan(corpus, lm, max_tokens=200 if report.small else 2000)
    d_in, width = lm.model.config.hidden_size, 1024 if report.small else 65_536
    saes = [random_sae(f"sae-{i}", f"resid_post@{i}", d_in, width, seed=i) for i in range(4)]
    room = memory.working_bytes(saes[0], lm.device, len(corpus.labels))
    held: list[int] = []

    def note(line: str) -> None:
        if "group" in line:
            _free(lm.device)
            held.append(torch.cuda.memory_allocated() if lm.device.startswith("cuda") else 0)

    together, apart = work / "together", work / "apart"
    start = time.perf_counter()
    collection.collect(lm, plan, saes, together)
    whole = time.perf_counter() - start
    before, memory.memory_limit = (memory.memory_limit, lambda device="cpu": int(2.5 * 2 * room))
    try:
        start = time.perf_counter()
        collection.collect(lm, plan, saes, apart, say=note)
        in_groups = time.perf_counter() - start
    finally:
        memory.memory_limit = before
    same = all(
        path.read_bytes() == (apart / path.name).read_bytes()
        for path in together.glob("*.safetensors")
    )
    report.add(
        "groups",
        "4 SAEs in 2 passes: bytes",
        "equal" if same else "differ",
        "equal",
        same and len(held) == 2,
    )
    report.add("groups", f"seconds in 2 passes, d_sae {width}", in_groups, whole)
    growth = max(held) - min(held)
    report.add(
        "groups",
        "memory held more at the second pass, bytes",
        growth,
        f"at most {room // 4:,}",
        growth <= room // 4,
    )
    moved = median_seconds(lambda: saes[0].to(lm.device), 3, report.device)
    size = sum(tensor.nbytes for tensor in saes[0].tensors.values())
    report.add("groups", "an SAE onto the device, GB/s", size / moved / 1e9)


def _free(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--pack", action="store_true", help="fill gpu-pack/ and stop")
    parser.add_argument("--cpu", action="store_true", help="run on the CPU with small sizes")
    parser.add_argument("--parts", default=",".join(PARTS), help="by commas; default all")
    parser.set_defaults(out=Path("gpu.json"))
    arguments = parse(parser)
    if arguments.pack:
        return pack()
    parts = choose_parts(parser, arguments.parts, PARTS)
    if not PACK.is_dir():
        parser.error("there is no gpu-pack/; run scripts/gpu.sh --pack with a network")
    if not arguments.cpu and not torch.cuda.is_available():
        parser.error("there is no GPU; --cpu runs the same checks on the CPU")
    report = Report("cpu" if arguments.cpu else "cuda", arguments.cpu)
    checks = _checks(report)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            start = time.monotonic()
            try:
                checks[part](Path(folder))
            except Exception as error:  # the other parts are measured nevertheless
                report.add(part, "ended early", f"{type(error).__name__}: {error}", "", False)
            _free(report.device)
            seconds[part] = round(time.monotonic() - start, 1)
            _write(arguments, report, seconds)
    print(f"\n{report.table()}\n{seconds}, {sum(seconds.values()):.0f} s\n{arguments.out}")
    sys.exit(1 if report.failed else 0)


def _checks(report: Report) -> dict[str, Callable[[Path], Any]]:
    """Name of a part -> what makes it, given a directory to work in."""
    rates: list[float] = []  # the matrix rate is measured once

    def rate() -> float:
        if not rates:
            rates.append(measure_matrix_rate(report))
        return rates[0]

    return {
        "tests": lambda work: check_tests(report),
        "matrix": lambda work: rate(),
        "run": lambda work: check_run(report, work),
        "encoding": lambda work: measure_encoding(report, work),
        "training": lambda work: measure_training(report, rate()),
        "groups": lambda work: check_groups(report, work),
    }


def _write(arguments: argparse.Namespace, report: Report, seconds: dict[str, float]) -> None:
    result = {"failed": report.failed, "seconds": seconds, "parts": report.found}
    record(arguments, result, report.device)


if __name__ == "__main__":
    main()
