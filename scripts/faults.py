"""What a run survives: kills, a full disk, a read-only directory, two processes, malformed input.

    python scripts/faults.py --out scripts/results/faults.json       # half an hour
    python scripts/faults.py --kills 10 --inputs 50                  # a quick look
    python scripts/faults.py --parts inputs --inputs 1 --first 217   # one case again

A complete small run (`saefeat run`: SmolLM2 cut to two blocks, three labels, two SAEs, heads,
steering, matrix, report) is made once undisturbed. Then come these parts:

- kills: SIGKILL at random moments, by the clock or before the n-th operation on files. Each kill is
  followed by a resume; after several of them, the bytes of every artefact are compared with the
  undisturbed run's.
- disk: each stage fills a small tmpfs: exit code 1 and one sentence. With more room, the run goes
  on to the same bytes.
- readonly: the tmpfs is read-only from the start, or becomes so during the stage: exit code 1 or 2.
- together: two processes on one output, started with a delay. One may refuse with a sentence; the
  bytes are the same.
- inputs: a damaged corpus, cfg.json, weights, run.json, selection, head or statistics: exit code 0
  or 2, one sentence, no traceback, and after 2 nothing has changed on the disk.

Windows, chunks and checkpoints are made small, so that a small run has several. Timings in
`run.json` are not compared. The parts disk and readonly need root, because they mount; otherwise
they are skipped and reported as such.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import sklearn.linear_model  # noqa: F401  (imported before the forks)
import torch
from common import choose_parts, flags, options, record
from gpu_pack import cut_model
from malformed import Inputs, try_inputs
from processes import TIMEOUT, Ended, Watch, call, start

from saefeat import collection, corpora
from saefeat.config import TrainConfig
from saefeat.corpora import load_corpus
from saefeat.report import view
from saefeat.run import opened

LABELS = ("de", "en", "fr")
STAGES = ("train", "collect", "rank", "lid fit", "lid evaluate", "steering", "matrix", "report")
PARTS = ("kills", "disk", "readonly", "together", "inputs")
KILLS_PER_OUTPUT = 8  # on average, before an output is complete
ROOM = 2**28  # bytes of a tmpfs with enough room
PAGE = 4096


@dataclass
class Campaign:
    """The undisturbed run, and the faults that are found.

    Attributes:
        work: a directory to work in.
        draw: generator of all random choices.
        arguments: of `saefeat run`, without its output.
        seconds: how long the undisturbed run takes.
        overhead: seconds of a run that finds everything done.
        operations: operations on files of the undisturbed run.
        snapshots: stage -> the run before this stage.
        faults: what was found.
    """

    work: Path
    draw: Random
    arguments: list[str] = field(default_factory=list)
    seconds: float = 0.0
    overhead: float = 0.0
    operations: int = 0
    snapshots: dict[str, Path] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)

    @property
    def reference(self) -> Path:
        """The undisturbed run, moved away."""
        return self.work / "reference"

    @property
    def out(self) -> Path:
        """Where every run is made: the path of the SAEs is part of the bytes of artefacts."""
        return self.work / "place" / "run"

    def run(self, kill_before: int | None = None, **how: Any) -> Ended:
        """Run or resume the run in `out`."""
        return call([*self.arguments, *flags(out=self.out)], Watch(self.out, kill_before), **how)

    def fault(self, part: str, case: Any, what: str, ended: Ended | None = None) -> None:
        """Print and keep a fault."""
        end = "" if ended is None else ended.err.strip()[-600:]
        self.faults.append({"part": part, "case": case, "what": what, "stderr": end})
        lines = "\n    ".join(end.splitlines()[-6:])
        print(f"FAULT {part} {case}: {what}\n    {lines}", flush=True)

    def compare(self, part: str, case: Any, ended: Ended) -> None:
        """A fault unless the last resume has succeeded and its bytes are the undisturbed run's."""
        if ended.code:
            self.fault(part, case, f"the last resume ended with {ended.code}", ended)
        elif found := differences(self.reference, self.out):
            self.fault(part, case, found, ended)


# --------------------------------------------------------------------------- the undisturbed run


def prepare(work: Path, seed: int) -> Campaign:
    """Make the model, the corpus, the undisturbed run and its state before each stage."""
    campaign = Campaign(work, Random(seed))
    _small_steps()
    model, corpus = work / "model", work / "corpus.jsonl"
    cut_model("embedded:smollm2-135m", model, blocks=2, tokens=1024)
    _write_corpus(corpus)
    sizes = flags(d_sae=128, k=8, train_tokens=1200, max_tokens=1200, eval_texts=8)
    sizes += flags(steer_prompts=2, matrix_texts=2)
    inputs = flags(model=model, corpus=corpus, sites="resid_post@0,mlp_out@0", dtype="float32")
    campaign.arguments = ["run", *inputs, *sizes]
    campaign.out.parent.mkdir()
    snapshots = work / "snapshots"
    argv = [*campaign.arguments, *flags(out=campaign.out)]
    ended = call(argv, Watch(campaign.out, snapshots=snapshots))
    if ended.code:
        raise SystemExit(f"the undisturbed run ended with {ended.code}:\n{ended.err[-3000:]}")
    campaign.snapshots = {stage: snapshots / stage for stage in STAGES}
    campaign.out.rename(campaign.reference)
    again = campaign.run()
    campaign.seconds, campaign.operations = again.seconds, again.operations
    if found := differences(campaign.reference, campaign.out):
        raise SystemExit(f"two undisturbed runs differ: {found}")
    campaign.overhead = campaign.run().seconds
    shutil.rmtree(campaign.out)
    print(
        f"undisturbed: {campaign.seconds:.1f} s, {campaign.operations} operations on files; "
        f"again: {campaign.overhead:.1f} s",
        flush=True,
    )
    return campaign


def _write_corpus(path: Path) -> None:
    """The beginnings of 150 sentences per label."""
    sentences = load_corpus("embedded:eld", labels=LABELS)
    rows = [
        {"text": text[:60], "label": label, "id": str(i)}
        for i, (text, label) in enumerate(zip(sentences.texts, sentences.of, strict=True))
        if i % 1000 < 150
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _small_steps() -> None:
    """Several windows, chunks and checkpoints in a small run, and a report without timings."""
    corpora.WINDOW = 32
    collection.collect.__kwdefaults__ = {
        **(collection.collect.__kwdefaults__ or {}),
        "checkpoint_seconds": 0.0,
    }
    view._GROUPS = tuple(name for name in view._GROUPS if name != "timings")
    opened.OpenRun.training = property(  # type: ignore[assignment]
        lambda run: TrainConfig(
            k=run.config.k,
            d_sae=run.config.d_sae,
            seed=run.config.seed,
            batch_size=128,
            chunk_tokens=700,
        )
    )


def contents(directory: Path) -> dict[str, bytes]:
    """Relative path -> bytes of all files; of `run.json` without the times."""
    found = {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    if "run.json" in found:
        index = json.loads(found["run.json"])
        index["timings"] = sorted(index["timings"])
        found["run.json"] = json.dumps(index, sort_keys=True).encode()
    return found


def differences(one: Path, two: Path) -> str:
    """The first differences between two directories, hidden files included; "" for none."""
    first, second = contents(one), contents(two)
    found = [f"{name} is missing" for name in first.keys() - second.keys()]
    found += [f"{name} is left over" for name in second.keys() - first.keys()]
    found += [
        f"{name} differs" for name in first.keys() & second.keys() if first[name] != second[name]
    ]
    return "; ".join(sorted(found)[:6])


def stage_of(out: Path) -> str:
    """The first stage that is not finished."""
    try:
        index = json.loads((out / "run.json").read_text())
    except (OSError, ValueError):
        return "start"
    return next((stage for stage in STAGES if stage not in index["timings"]), "end")


# --------------------------------------------------------------------------- parts


def kills(campaign: Campaign, count: int) -> dict[str, Any]:
    """Kill runs again and again, and compare their outputs when they are complete."""
    stages: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    outputs = 0
    started = time.monotonic()
    while kinds.total() < count:
        shutil.rmtree(campaign.out, ignore_errors=True)
        for _ in range(min(2 * KILLS_PER_OUTPUT, count - kinds.total())):
            kind, ended = _killed(campaign)
            if ended.code == 0:
                break
            if ended.code != -signal.SIGKILL:
                message = f"the resume ended with {ended.code}"
                campaign.fault("kills", kinds.total(), message, ended)
                break
            kinds[kind] += 1
            stages[stage_of(campaign.out) if campaign.out.exists() else "start"] += 1
        campaign.compare("kills", kinds.total(), campaign.run())
        outputs += 1
    return {
        "kills": kinds.total(),
        "outputs compared": outputs,
        "by stage": dict(stages),
        "by kind": dict(kinds),
        "seconds per kill": round((time.monotonic() - started) / max(kinds.total(), 1), 2),
    }


def _killed(campaign: Campaign) -> tuple[str, Ended]:
    """Kill a run by the clock or before an operation on files; it may end before."""
    draw = campaign.draw
    if draw.random() < 0.5:
        longest = campaign.overhead + 2 * campaign.seconds / KILLS_PER_OUTPUT
        return "by the clock", campaign.run(after=draw.uniform(0.05, longest))
    before = draw.randint(1, 2 * campaign.operations // KILLS_PER_OUTPUT)
    return "before an operation on files", campaign.run(kill_before=before)


@contextmanager
def mounted(place: Path, size: int) -> Iterator[Path]:
    """Mount a tmpfs of so many bytes."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, option: str) -> bool:
    """Change an option of a tmpfs; whether that was possible."""
    command = ["mount", "-o", f"remount,{option}", str(place)]
    return not subprocess.run(command, capture_output=True, check=False).returncode


def bytes_on_tmpfs(directory: Path) -> int:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in files)


def disk(campaign: Campaign, rounds: int) -> dict[str, Any]:
    """Let the disk fill up during each stage."""
    found: dict[str, Counter[str]] = {}
    for stage, following in zip(STAGES, [*STAGES[1:], ""], strict=True):
        for _ in range(rounds):
            before = bytes_on_tmpfs(campaign.snapshots[stage])
            after = campaign.snapshots[following] if following else campaign.reference
            growth = bytes_on_tmpfs(after) - before
            size = before + 3 * PAGE + int(campaign.draw.random() * max(growth - 3 * PAGE, 0))
            with mounted(campaign.out.parent, ROOM) as place:
                shutil.copytree(campaign.snapshots[stage], campaign.out)
                remount(place, f"size={size}")
                ended = campaign.run()
                case = f"{stage}, {size:,} bytes"
                outcome = {0: "fitted", 1: "refused"}.get(ended.code, "wrong")
                found.setdefault(stage, Counter())[outcome] += 1
                if not _is_refusal(ended, (0, 1)):
                    campaign.fault("disk", case, f"ended with {ended.code}", ended)
                elif ended.code and (unreadable := _unreadable(campaign.out)):
                    campaign.fault("disk", case, f"half-written: {unreadable}", ended)
                remount(place, f"size={ROOM}")
                campaign.compare("disk", case, campaign.run())
    return {stage: dict(counts) for stage, counts in found.items()}


def readonly(campaign: Campaign, rounds: int) -> dict[str, Any]:
    """Make the directory read-only before and during each stage."""
    found: dict[str, Counter[str]] = {}
    for stage in STAGES:
        for turn in range(2 * rounds):
            during = bool(turn % 2)
            with mounted(campaign.out.parent, ROOM) as place:
                shutil.copytree(campaign.snapshots[stage], campaign.out)
                delay = campaign.draw.uniform(0.2, 2.0) if during else 0.0

                def close(place: Path = place, delay: float = delay) -> None:
                    time.sleep(delay)
                    while not remount(place, "ro"):  # impossible while a file is open for writing
                        time.sleep(0.001)

                if not during:
                    close()
                ended = campaign.run(meanwhile=close if during else None)
                case = f"{stage}, {f'after {delay:.2f} s' if during else 'from the start'}"
                found.setdefault(stage, Counter())[str(ended.code)] += 1
                if not _is_refusal(ended, (0, 1, 2)):
                    campaign.fault("readonly", case, f"ended with {ended.code}", ended)
                remount(place, "rw")
                campaign.compare("readonly", case, campaign.run())
    return {stage: dict(counts) for stage, counts in found.items()}


def together(campaign: Campaign, rounds: int) -> dict[str, Any]:
    """Start two processes on one output."""
    counts: Counter[str] = Counter()
    argv = [*campaign.arguments, *flags(out=campaign.out)]
    for turn in range(rounds):
        shutil.rmtree(campaign.out, ignore_errors=True)
        delay = campaign.draw.uniform(0, campaign.seconds) if turn else 0.0
        first = start(argv)
        time.sleep(delay)
        ends = [child.wait(TIMEOUT) for child in (first, start(argv))]
        counts[" and ".join(str(end.code) for end in ends)] += 1
        case = f"delay {delay:.2f} s"
        for end in ends:
            if not _is_refusal(end, (0, 2)):
                campaign.fault("together", case, f"one ended with {end.code}", end)
        campaign.compare("together", case, campaign.run())
    return {"pairs": rounds, "exit codes": dict(counts)}


def inputs(campaign: Campaign, given: argparse.Namespace) -> dict[str, Any]:
    """Run commands on malformed input."""
    return try_inputs(
        Inputs(campaign.work, campaign.reference, campaign.arguments),
        range(given.first, given.first + given.inputs),
        given.seed,
        lambda case, what, ended: campaign.fault("inputs", case, what, ended),
        verbose=given.verbose,
    )


def _is_refusal(ended: Ended, codes: tuple[int, ...]) -> bool:
    """Whether a process ended with one of these codes, without a traceback, and says why."""
    return ended.code in codes and not ended.traceback and bool(not ended.code or ended.sentence)


def _unreadable(out: Path) -> str:
    """The first artefact that cannot be parsed; "" for none."""
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
        except Exception as error:  # whatever a parser raises
            return f"{path.relative_to(out)} ({error})"
    return ""


# --------------------------------------------------------------------------- results


def table(found: dict[str, Any], faults: list[dict[str, Any]]) -> str:
    """The results as Markdown, as in scripts/results/README.md."""
    lines = ["| part | cases | outcome | faults |", "|---|---|---|---|"]
    count = Counter(fault["part"] for fault in faults)
    for part, results in found.items():
        if part == "kills":
            stages = ", ".join(f"{stage} {n}" for stage, n in results["by stage"].items())
            outcome = f"{stages}; {results['outputs compared']} outputs compared"
            lines.append(f"| {part} | {results['kills']} | {outcome} | {count[part]} |")
        elif part == "together":
            outcome = f"exit codes {results['exit codes']}"
            lines.append(f"| {part} | {results['pairs']} | {outcome} | {count[part]} |")
        elif isinstance(results, str):
            lines.append(f"| {part} | 0 | {results} | |")
        else:
            for kind, outcomes in results.items():
                n = sum(
                    fault["part"] == part and kind in str(fault["case"]).split(",")[0]
                    for fault in faults
                )
                outcome = ", ".join(f"{name} {cases}" for name, cases in outcomes.items())
                lines.append(f"| {part}: {kind} | {sum(outcomes.values())} | {outcome} | {n} |")
    return "\n".join(lines)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="by commas; default all")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--inputs", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--verbose", action="store_true", help="print every input and its outcome")
    parser.add_argument("--rounds", type=int, default=2, help="of disk and readonly, per stage")
    parser.add_argument("--pairs", type=int, default=8, help="of two processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where to work; default a temporary directory")
    given = parser.parse_args()
    chosen = choose_parts(parser, given.parts, PARTS)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # bytes are compared at one thread
    torch.set_num_threads(1)
    if given.work is not None:
        given.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="faults-", dir=given.work))
    try:
        found = measure(given, chosen, work)
    finally:
        shutil.rmtree(work)
    sys.exit(1 if found else 0)


def measure(given: argparse.Namespace, chosen: list[str], work: Path) -> int:
    """Make the chosen parts, print and write what they find. Returns the number of faults."""
    started = time.monotonic()
    campaign = prepare(work, given.seed)
    makers: dict[str, Callable[[], Any]] = {
        "kills": lambda: kills(campaign, given.kills),
        "disk": lambda: disk(campaign, given.rounds),
        "readonly": lambda: readonly(campaign, given.rounds),
        "together": lambda: together(campaign, given.pairs),
        "inputs": lambda: inputs(campaign, given),
    }
    if os.geteuid():
        makers |= dict.fromkeys(("disk", "readonly"), lambda: "skipped: mounting needs root")
    found: dict[str, Any] = {}
    for part in chosen:
        begun = time.monotonic()
        found[part] = makers[part]()
        print(f"{part}: {time.monotonic() - begun:.0f} s, {found[part]}", flush=True)
        if given.out:
            result = {
                "undisturbed seconds": round(campaign.seconds, 1),
                "parts": found,
                "faults": campaign.faults,
                "seconds": round(time.monotonic() - started),
            }
            record(given, result)
    print(f"\n{table(found, campaign.faults)}\n{len(campaign.faults)} faults")
    return len(campaign.faults)


if __name__ == "__main__":
    main()
