"""What a run survives: kills, a full disk, a directory that becomes read-only, two processes, malformed input.

    python scripts/faults.py --out scripts/results/faults.json          # 200 kills, 500 inputs:
    some half an hour python scripts/faults.py --kills 10 --inputs 50                     # a look
    python scripts/faults.py --parts inputs --inputs 1 --first 217      # one case again

A whole small run (`saefeat run`: SmolLM2 cut to two blocks, three labels, two SAEs, heads,
steering, matrix, report) is made once undisturbed. Then

- kills: SIGKILL at random moments, by the clock and before the n-th operation on files in turn;
each kill is followed
  by a resume, and after several of them every artefact is compared with the undisturbed run's
  bytes;
- disk: the state before each stage on a small tmpfs that the stage fills: exit code 1, one
sentence; with more room
  the run goes on to the same bytes;
- readonly: the same on a tmpfs that is read-only from the start, or becomes so during the stage:
exit code 1 or 2; - together: two processes on one output, started with a delay: one may refuse with
a sentence; the bytes are the same; - inputs: a damaged corpus, cfg.json, weights, run.json,
selection, head or statistics: exit code 0 or 2, one sentence,
  no traceback, and after 2 nothing has changed on the disk.

Each process is a fork of this one, which has everything imported, so a start costs little; what is
killed is a real process. Windows, chunks and checkpoints are made small, so that a small run has
several. In `run.json` timings are left out of the comparison. Disk and readonly need root (they
mount); elsewhere they are left out, and said to be.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import sklearn.linear_model  # noqa: F401  (imported before the forks)
import torch
import transformers
from gpu_check import cut_model
from mutations import copy, mutate

from saefeat import cli, collection, corpora, run
from saefeat.corpora import load_corpus
from saefeat.report import parts
from saefeat.run import opened
from saefeat.sae.train import TrainConfig

LABELS = ("de", "en", "fr")
STAGES = ("train", "collect", "rank", "lid fit", "lid evaluate", "steering", "matrix", "report")
PARTS = ("kills", "disk", "readonly", "together", "inputs")
CHAIN = 8  # kills that an output meets on average before it is whole
TIMEOUT = 120
ADDRESSES = (
    2**34
)  # bytes of a process: a number that asks for too much memory fails here, not the machine


@dataclass
class Ended:
    """How a process ended. code: exit code, negative for a signal."""

    code: int
    out: str
    err: str
    seconds: float
    operations: int = 0

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.err

    @property
    def sentence(self) -> str:
        """The last line, where it is saefeat's own."""
        last = self.err.strip().splitlines()[-1:] or [""]
        return (
            last[0]
            if last[0].startswith("saefeat: ") or "Error" in last[0] or "╰" in last[0]
            else ""
        )


@dataclass
class Bench:
    """The undisturbed run and what is found beside it."""

    work: Path
    draw: Random
    arguments: list[str] = field(default_factory=list)
    seconds: float = 0.0
    overhead: float = 0.0  # seconds of a run that finds everything done
    operations: int = 0
    snapshots: dict[str, Path] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)

    @property
    def reference(self) -> Path:
        """The undisturbed run, out of the way."""
        return self.work / "reference"

    @property
    def out(self) -> Path:
        """Where every run is made: artefacts tell where SAEs were loaded from, so the place is part of the bytes."""
        return self.work / "place" / "run"

    def run(self, out: Path, **how: Any) -> Ended:
        return call([*self.arguments, "--out", str(out)], watched=out, **how)

    def fault(self, part: str, case: Any, what: str, ended: Ended | None = None) -> None:
        told = "" if ended is None else ended.err.strip()[-600:]
        self.faults.append({"part": part, "case": case, "what": what, "stderr": told})
        print(
            f"FAULT {part} {case}: {what}\n    " + "\n    ".join(told.splitlines()[-6:]), flush=True
        )


# --------------------------------------------------------------------------- processes


def call(
    argv: list[str],
    *,
    watched: Path | None = None,
    after: float | None = None,
    before_operation: int | None = None,
    snapshots: Path | None = None,
    meanwhile: Callable[[], None] | None = None,
    timeout: float = TIMEOUT,
    stdin: str = "",
) -> Ended:
    """`saefeat ARGV` in a process of its own, killed after so many seconds or before its n-th file operation."""
    child = start(
        argv, watched=watched, before_operation=before_operation, snapshots=snapshots, stdin=stdin
    )
    if meanwhile:
        meanwhile()
    return child.wait(min(after or timeout, timeout))


@dataclass
class Child:
    pid: int
    folder: Path
    begun: float

    def wait(self, seconds: float) -> Ended:
        """Its end; past so many seconds it is killed."""
        status = 0
        while time.monotonic() - self.begun < seconds:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                break
            time.sleep(0.002)
        else:
            os.kill(self.pid, signal.SIGKILL)
            status = os.waitpid(self.pid, 0)[1]
        out, err = ((self.folder / name).read_text(errors="replace") for name in ("out", "err"))
        count = self.folder / "operations"
        operations = int(count.read_text()) if count.exists() else 0
        shutil.rmtree(self.folder)
        return Ended(
            os.waitstatus_to_exitcode(status), out, err, time.monotonic() - self.begun, operations
        )


def start(
    argv: list[str],
    *,
    watched: Path | None = None,
    before_operation: int | None = None,
    snapshots: Path | None = None,
    stdin: str = "",
) -> Child:
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    (folder / "in").write_text(stdin)
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        _become(argv, folder, watched, before_operation, snapshots)
    return Child(pid, folder, time.monotonic())


def _become(
    argv: list[str],
    folder: Path,
    watched: Path | None,
    before_operation: int | None,
    snapshots: Path | None,
) -> None:
    """In the fork: the command line; never returns."""
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        flags = os.O_WRONLY | os.O_CREAT
        for number, (name, mode) in enumerate(
            (("in", os.O_RDONLY), ("out", flags), ("err", flags))
        ):
            os.dup2(os.open(folder / name, mode, 0o600), number)
        sys.stdin, sys.stdout = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
        sys.stderr = os.fdopen(os.dup(2), "w", errors="backslashreplace")  # as Python's own
        count = _count_operations(watched, before_operation) if watched else [0]
        if snapshots and watched:
            _take_snapshots(watched, snapshots)
        sys.argv = ["saefeat", *argv]
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        (folder / "operations").write_text(str(count[0]))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _count_operations(watched: Path, kill_before: int | None) -> list[int]:
    """Count what is done to files in a directory; a SIGKILL comes before the chosen operation."""
    count, inside = [0], str(watched)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            if not isinstance(given[0], str | os.PathLike) or not (given[2] or 0) & (
                os.O_WRONLY | os.O_RDWR
            ):
                return
        elif event not in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            return
        if inside in str(given[0]):
            count[0] += 1
            if count[0] == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def _take_snapshots(out: Path, folder: Path) -> None:
    """Copy the output before each stage."""
    timed = run._timed

    @contextmanager
    def noting(opened: run.OpenRun, index: Any, stage: str) -> Iterator[None]:
        shutil.copytree(out, folder / stage)
        with timed(opened, index, stage):
            yield

    run._timed = noting


# --------------------------------------------------------------------------- the undisturbed run


def prepare(work: Path, seed: int) -> Bench:
    """The model, the corpus, the undisturbed run and its state before each stage."""
    bench = Bench(work, Random(seed))
    _small_steps()
    model, corpus = work / "model", work / "corpus.jsonl"
    cut_model("embedded:smollm2-135m", model, blocks=2, tokens=1024)
    whole = load_corpus("embedded:eld", labels=LABELS)
    rows = [
        {"text": text[:60], "label": label, "id": str(i)}
        for i, (text, label) in enumerate(zip(whole.texts, whole.of, strict=True))
        if i % 1000 < 150
    ]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "model": model,
        "corpus": corpus,
        "sites": "resid_post@0,mlp_out@0",
        "d-sae": 128,
        "k": 8,
        "train-tokens": 1200,
        "max-tokens": 1200,
        "eval-texts": 8,
        "steer-prompts": 2,
        "matrix-texts": 2,
        "dtype": "float32",
    }
    bench.arguments = [
        "run",
        *(part for name, value in options.items() for part in (f"--{name}", str(value))),
    ]
    bench.out.parent.mkdir()
    ended = bench.run(bench.out, snapshots=work / "snapshots")
    if ended.code:
        raise SystemExit(f"the undisturbed run ended with {ended.code}:\n{ended.err[-3000:]}")
    bench.snapshots = {stage: work / "snapshots" / stage for stage in STAGES}
    bench.out.rename(bench.reference)
    again = bench.run(bench.out)
    bench.seconds, bench.operations = again.seconds, again.operations
    if told := differences(bench.reference, bench.out):
        raise SystemExit(f"two undisturbed runs differ: {told}")
    bench.overhead = bench.run(bench.out).seconds
    shutil.rmtree(bench.out)
    print(
        f"undisturbed: {bench.seconds:.1f} s, {bench.operations} operations on files; again: {bench.overhead:.1f} s",
        flush=True,
    )
    return bench


def _small_steps() -> None:
    """Several windows, chunks and checkpoints in a small run."""
    corpora.WINDOW = 32
    collection.collect.__kwdefaults__ = {
        **(collection.collect.__kwdefaults__ or {}),
        "checkpoint_seconds": 0.0,
    }
    told = parts.fact_groups  # the report shows timings
    parts.fact_groups = lambda record: told({k: v for k, v in record.items() if k != "timings"})
    small = property(
        lambda run: TrainConfig(
            k=run.config.k,
            d_sae=run.config.d_sae,
            seed=run.config.seed,
            batch_size=128,
            chunk_tokens=700,
        )
    )
    opened.OpenRun.training = small  # type: ignore[assignment]


def contents(directory: Path) -> dict[str, bytes]:
    """All files; of `run.json` what does not tell the time."""
    found = {
        str(p.relative_to(directory)): p.read_bytes()
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }
    if "run.json" in found:
        index = json.loads(found["run.json"])
        index["timings"] = sorted(index["timings"])
        found["run.json"] = json.dumps(index, sort_keys=True).encode()
    return found


def differences(one: Path, two: Path) -> str:
    """What differs between two directories; "" where nothing does. Names that begin with a dot are told apart."""
    first, second = contents(one), contents(two)
    told = [f"{name} is missing" for name in first.keys() - second.keys()]
    told += [f"{name} is left over" for name in second.keys() - first.keys()]
    told += [
        f"{name} differs" for name in first.keys() & second.keys() if first[name] != second[name]
    ]
    return "; ".join(sorted(told)[:6])


def stage_of(out: Path) -> str:
    """The first stage that is not finished."""
    try:
        index = json.loads((out / "run.json").read_text())
    except (OSError, ValueError):
        return "start"
    return next((stage for stage in STAGES if stage not in index["timings"]), "end")


# --------------------------------------------------------------------------- parts


def kills(bench: Bench, count: int) -> dict[str, Any]:
    draw, stages, kinds = bench.draw, Counter(), Counter()
    done = chains = 0
    started = time.monotonic()
    while done < count:
        out, chain = bench.out, 0
        shutil.rmtree(out, ignore_errors=True)
        while chain < 2 * CHAIN and done < count:
            by_clock = draw.random() < 0.5
            if by_clock:
                ended = bench.run(
                    out, after=draw.uniform(0.05, bench.overhead + 2 * bench.seconds / CHAIN)
                )
            else:
                ended = bench.run(
                    out, before_operation=draw.randint(1, 2 * bench.operations // CHAIN)
                )
            if ended.code == 0:
                break
            if ended.code != -signal.SIGKILL:
                bench.fault("kills", done, f"the resume ended with {ended.code}", ended)
                break
            done, chain = done + 1, chain + 1
            stages[stage_of(out) if out.exists() else "start"] += 1
            kinds["by the clock" if by_clock else "before an operation on files"] += 1
        last = bench.run(out)
        chains += 1
        if last.code:
            bench.fault("kills", done, f"the last resume ended with {last.code}", last)
        elif told := differences(bench.reference, out):
            bench.fault("kills", done, told, last)
    elapsed = time.monotonic() - started
    return {
        "kills": done,
        "outputs compared": chains,
        "by stage": dict(stages),
        "by kind": dict(kinds),
        "seconds a kill": round(elapsed / max(done, 1), 2),
    }


@contextmanager
def mounted(place: Path, size: int) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, options: str) -> bool:
    return not subprocess.run(
        ["mount", "-o", f"remount,{options}", str(place)], capture_output=True
    ).returncode


def pages(directory: Path) -> int:
    """Bytes that a directory takes on a tmpfs."""
    return sum(
        -(-path.stat().st_size // 4096) * 4096 for path in directory.rglob("*") if path.is_file()
    )


def disk(bench: Bench, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for stage, after in zip(STAGES, [*STAGES[1:], ""], strict=True):
        for _ in range(rounds):
            before = pages(bench.snapshots[stage])
            growth = pages(bench.snapshots[after] if after else bench.reference) - before
            size = before + 4096 * 3 + int(bench.draw.random() * max(growth - 4096 * 3, 0))
            with mounted(bench.out.parent, 2**28) as place:
                out = shutil.copytree(bench.snapshots[stage], bench.out)
                remount(place, f"size={size}")
                ended = bench.run(out)
                case = f"{stage}, {size:,} bytes"
                key = {0: "fitted", 1: "refused"}.get(ended.code, "wrong")
                found.setdefault(stage, Counter())[key] += 1
                if (
                    ended.code not in (0, 1)
                    or ended.traceback
                    or (ended.code and not ended.sentence)
                ):
                    bench.fault("disk", case, f"ended with {ended.code}", ended)
                elif ended.code and (halves := _unreadable(out)):
                    bench.fault("disk", case, f"half-written: {halves}", ended)
                remount(place, "size=268435456")
                _finish(bench, "disk", case, out)
    return {stage: dict(counts) for stage, counts in found.items()}


def readonly(bench: Bench, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for stage in STAGES:
        for turn in range(2 * rounds):
            with mounted(bench.out.parent, 2**28) as place:
                out = shutil.copytree(bench.snapshots[stage], bench.out)
                delay = bench.draw.uniform(0.2, 2.0) if turn % 2 else 0.0

                def bar(place: Path = place, delay: float = delay) -> None:
                    time.sleep(delay)
                    while not remount(place, "ro"):  # as long as a file is open for writing
                        time.sleep(0.001)

                if not turn % 2:
                    bar()
                ended = bench.run(out, meanwhile=bar if turn % 2 else None)
                case = f"{stage}, {f'after {delay:.2f} s' if turn % 2 else 'from the start'}"
                found.setdefault(stage, Counter())[str(ended.code)] += 1
                if (
                    ended.traceback
                    or ended.code not in (0, 1, 2)
                    or (ended.code and not ended.sentence)
                ):
                    bench.fault("readonly", case, f"ended with {ended.code}", ended)
                remount(place, "rw")
                _finish(bench, "readonly", case, out)
    return {stage: dict(counts) for stage, counts in found.items()}


def _finish(bench: Bench, part: str, case: str, out: Path) -> None:
    last = bench.run(out)
    if last.code:
        bench.fault(part, case, f"the resume ended with {last.code}", last)
    elif told := differences(bench.reference, out):
        bench.fault(part, case, told, last)


def _unreadable(out: Path) -> str:
    """Artefacts that do not parse."""
    import pyarrow.parquet as pq
    from safetensors import safe_open

    for path in sorted(out.rglob("*")):
        try:
            if path.name.startswith(".") or not path.is_file():
                continue
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".parquet":
                pq.read_table(path)
            elif path.suffix == ".safetensors":
                with safe_open(str(path), framework="np") as file:
                    file.keys()
        except Exception as error:
            return f"{path.relative_to(out)} ({error})"
    return ""


def together(bench: Bench, rounds: int) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for turn in range(rounds):
        out = bench.out
        shutil.rmtree(out, ignore_errors=True)
        delay = bench.draw.uniform(0, bench.seconds) if turn else 0.0
        argv = [*bench.arguments, "--out", str(out)]
        first = start(argv)
        time.sleep(delay)
        second = start(argv)
        ends = [child.wait(TIMEOUT) for child in (first, second)]
        counts[" and ".join(str(end.code) for end in ends)] += 1
        for end in ends:
            if end.traceback or end.code not in (0, 2) or (end.code and not end.sentence):
                bench.fault("together", f"delay {delay:.2f} s", f"one ended with {end.code}", end)
        _finish(bench, "together", f"delay {delay:.2f} s", out)
    return {"pairs": rounds, "exit codes": dict(counts)}


# --------------------------------------------------------------------------- malformed input


def inputs(bench: Bench, count: int, first: int, seed: int, verbose: bool) -> dict[str, Any]:
    found: dict[str, Counter[str]] = {}
    makers = cases(bench)
    for number in range(first, first + count):
        draw = Random(f"{seed} {number}")
        kind = sorted(makers)[number % len(makers)]
        place = bench.work / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        damaged, argv = makers[kind](place, draw)
        told = mutate(damaged, draw)
        case = f"{number} {kind} {damaged.relative_to(place)}: {told}; {' '.join(argv)[:150]}"
        before = _tree(place)
        ended = call(argv, timeout=60, stdin="Wo ist der Bahnhof?\n")
        key = {0: "accepted", 2: "refused"}.get(ended.code, "wrong")
        found.setdefault(kind, Counter())[key] += 1
        if verbose:
            print(f"{key}: {case}\n    {ended.err.strip().splitlines()[-1:]}", flush=True)
        if key == "wrong" or ended.traceback:
            bench.fault("inputs", case, f"ended with {ended.code}", ended)
        elif ended.code == 2 and not ended.sentence:
            bench.fault("inputs", case, "no sentence", ended)
        elif ended.code == 2 and (
            changed := _changed(before, _tree(place), may_write=argv[0] == "run")
        ):
            bench.fault("inputs", case, f"refused, but {changed}", ended)
        elif leftover := [name for name in _tree(place) if ".tmp" in name]:
            bench.fault("inputs", case, f"{leftover[0]} is left over", ended)
    return {kind: dict(counts) for kind, counts in sorted(found.items())}


def _tree(place: Path) -> dict[str, bytes | None]:
    return {
        str(p.relative_to(place)): p.read_bytes() if p.is_file() else None for p in place.rglob("*")
    }


def _changed(
    before: dict[str, bytes | None], after: dict[str, bytes | None], *, may_write: bool
) -> str:
    """What a refusal changed; a run that goes on may have finished stages before the one that refuses."""
    lost = [f"{name} is lost" for name in before.keys() - after.keys()]
    new = [f"{name} is new" for name in after.keys() - before.keys() if after[name] is not None]
    other = [
        f"{name} has changed"
        for name in before.keys() & after.keys()
        if before[name] != after[name]
    ]
    return "; ".join(sorted(lost if may_write else [*lost, *new, *other])[:3])


Maker = Callable[[Path, Random], tuple[Path, list[str]]]


def cases(bench: Bench) -> dict[str, Maker]:
    """Kind of input -> (place, generator) -> the file to damage and a command that reads it."""
    model, reference = str(bench.work / "model"), bench.reference
    rows = [json.loads(line) for line in (bench.work / "corpus.jsonl").read_text().splitlines()][
        ::5
    ]
    on = ["--dtype", "float32", "--max-tokens", "150"]

    def corpus(place: Path, draw: Random) -> tuple[Path, list[str]]:
        name = draw.choice(("c.jsonl", "c.csv", "c.tsv", "c.parquet", "c"))
        path = _write_corpus(place / name, rows)
        commands = [
            ["corpus", "show", str(path)],
            [
                "collect",
                "--model",
                model,
                "--corpus",
                str(path),
                "--saes",
                str(reference / "saes"),
                *on,
                "--out",
                str(place / "out"),
            ],
            [
                "lid",
                "evaluate",
                "--run",
                str(reference),
                "--corpus",
                str(path),
                "--max-texts",
                "3",
                "--out",
                str(place / "metrics.json"),
            ],
        ]
        return (path / "de.txt" if path.is_dir() else path), draw.choice(commands)

    def sae(file: str) -> Maker:
        def make(place: Path, draw: Random) -> tuple[Path, list[str]]:
            saes = copy(reference / "saes", place / "saes")
            path = draw.choice(sorted(saes.iterdir())) / file
            command = [
                "--model",
                model,
                "--corpus",
                str(bench.work / "corpus.jsonl"),
                "--saes",
                str(saes),
                *on,
            ]
            tail = draw.choice(
                (["--out", str(place / "out")], ["--out", str(place / "out"), "--no-gate"])
            )
            return path, ["collect", *command, *tail]

        return make

    def of_run(*names: str, commands: Callable[[str, Path, Random], list[list[str]]]) -> Maker:
        def make(place: Path, draw: Random) -> tuple[Path, list[str]]:
            run = copy(reference, place / "run")
            files = sorted(path for name in names for path in run.glob(name))
            return draw.choice(files), draw.choice(commands(str(run), place, draw))

        return make

    def reading(run: str, place: Path, draw: Random) -> list[list[str]]:
        return [
            ["lid", "predict", "--run", run, "-"],
            ["report", run],
            [
                "steer",
                "generate",
                "--run",
                run,
                "--label",
                "de",
                "--prompt",
                "The old",
                "--max-new-tokens",
                "6",
            ],
            [*bench.arguments, "--out", run],
            ["export", run, "--format", "sparsify", "--out", str(place / "out")],
            ["lid", "evaluate", "--run", run, "--max-texts", "2", "--out", str(place / "m.json")],
        ]

    def of_stats(run: str, place: Path, draw: Random) -> list[list[str]]:
        method = draw.choice(("sae-lape", "lape", "feature-diffmean"))
        return [
            [
                "rank",
                f"{run}/stats",
                "--method",
                method,
                "--no-lens",
                "--out",
                str(place / "s.parquet"),
            ],
            ["rank", f"{run}/stats", "--method", method, "--out", str(place / "s.csv")],
            ["merge", f"{run}/stats", "--out", str(place / "merged")],
            ["lid", "fit", "--force", "--run", run],
            *reading(run, place, draw)[1:4:2],
            ["steer", "matrix", "--run", run, "--sentences", "1", "--out", str(place / "x.json")],
        ]

    def of_heads(run: str, place: Path, draw: Random) -> list[list[str]]:
        head = draw.choice(("linear", "naive-bayes", "sae-count", "sae-min-max", "neuron-count"))
        evaluate = [
            "lid",
            "evaluate",
            "--run",
            run,
            "--max-texts",
            "2",
            "--out",
            str(place / "m.json"),
        ]
        return [["lid", "predict", "--run", run, "--head", head, "-"], evaluate, evaluate]

    def of_selections(run: str, place: Path, draw: Random) -> list[list[str]]:
        return [
            ["report", run],
            ["lid", "fit", "--force", "--run", run],
            ["rank", f"{run}/stats", "--no-lens", "--out", f"{run}/selections/sae-lape.parquet"],
            ["lid", "fit", "--force", "--run", run],
        ]

    others = (
        "lid/metrics.json",
        "lid/predictions.parquet",
        "steering/*.json",
        "examples/*",
        "gate.json",
        "steering/samples.jsonl",
    )
    return {
        "corpora": corpus,
        "cfg.json": sae("cfg.json"),
        "weights": sae("sae_weights.safetensors"),
        "run.json": of_run("run.json", commands=reading),
        "selections": of_run("selections/*.parquet", commands=of_selections),
        "heads": of_run("lid/*.safetensors", commands=of_heads),
        "statistics": of_run("stats/*.safetensors", commands=of_stats),
        "bags": of_run(
            "bags/*/*.parquet", commands=lambda run, *_: [["lid", "fit", "--force", "--run", run]]
        ),
        "results": of_run(*others, commands=lambda *given: reading(*given)[1:4]),
    }


def _write_corpus(path: Path, rows: list[dict[str, str]]) -> Path:
    import pandas

    frame = pandas.DataFrame(rows)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix:
        frame.to_csv(path, sep="," if path.suffix == ".csv" else "\t", index=False)
    else:
        path.mkdir()
        for label, group in frame.groupby("label"):
            (path / f"{label}.txt").write_text("\n".join(group["text"]) + "\n")
    return path


# --------------------------------------------------------------------------- results


def table(result: dict[str, Any]) -> str:
    """Markdown, as in scripts/results/README.md."""
    lines = ["| part | cases | outcome | faults |", "|---|---|---|---|"]
    faults = Counter(fault["part"] for fault in result["faults"])
    for part, found in result["parts"].items():
        if part == "kills":
            told = ", ".join(f"{stage} {n}" for stage, n in found["by stage"].items())
            lines.append(
                f"| {part} | {found['kills']} | {told}; {found['outputs compared']} outputs compared "
                f"| {faults[part]} |"
            )
        elif part == "together":
            lines.append(
                f"| {part} | {found['pairs']} | exit codes {found['exit codes']} | {faults[part]} |"
            )
        elif isinstance(found, str):
            lines.append(f"| {part} | 0 | {found} | |")
        else:
            for kind, counts in found.items():
                own = sum(
                    f["part"] == part and kind in str(f["case"]).split(",")[0]
                    for f in result["faults"]
                )
                told = ", ".join(f"{name} {n}" for name, n in counts.items())
                lines.append(f"| {part}: {kind} | {sum(counts.values())} | {told} | {own} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", default=",".join(PARTS), help=f"by commas; default {','.join(PARTS)}"
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--inputs", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument(
        "--verbose", action="store_true", help="print every input and what was said of it"
    )
    parser.add_argument(
        "--rounds", type=int, default=2, help="of disk and readonly, for each stage"
    )
    parser.add_argument("--pairs", type=int, default=8, help="of two processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where to work; default a temporary directory")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    given = parser.parse_args()
    chosen = given.parts.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"there is no part {min(unknown)}; there are {', '.join(PARTS)}")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # bytes are compared at one thread
    torch.set_num_threads(1)
    if given.work is not None:
        given.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="faults-", dir=given.work))
    try:
        code = campaign(given, chosen, work)
    finally:
        shutil.rmtree(work)
    sys.exit(code)


def campaign(given: argparse.Namespace, chosen: list[str], work: Path) -> int:
    """Run the parts, print and keep what they found. Returns the exit code."""
    started = time.monotonic()
    bench = prepare(work, given.seed)
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "arguments": {
            name: value for name, value in vars(given).items() if name not in ("out", "work")
        },
        "undisturbed seconds": round(bench.seconds, 1),
        "parts": {},
        "faults": bench.faults,
    }
    root = os.geteuid() == 0
    no_root = "left out: mounting needs root"
    run: dict[str, Callable[[], Any]] = {
        "kills": lambda: kills(bench, given.kills),
        "disk": lambda: disk(bench, given.rounds) if root else no_root,
        "readonly": lambda: readonly(bench, given.rounds) if root else no_root,
        "together": lambda: together(bench, given.pairs),
        "inputs": lambda: inputs(bench, given.inputs, given.first, given.seed, given.verbose),
    }
    for part in chosen:
        begun = time.monotonic()
        result["parts"][part] = run[part]()
        result["seconds"] = round(time.monotonic() - started)
        print(f"{part}: {time.monotonic() - begun:.0f} s, {result['parts'][part]}", flush=True)
        if given.out:
            given.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"\n{table(result)}\n{len(bench.faults)} faults, {result['seconds']} s")
    return 1 if bench.faults else 0


if __name__ == "__main__":
    main()
