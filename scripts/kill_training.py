"""Kill ranks of a training at random moments, resume it, and count hangs and lost checkpoints.

    python scripts/kill_training.py --out scripts/results/kill_training.json    # 15 minutes
    python scripts/kill_training.py --kills 10                                  # a quick look

Ranks train SAEs at four sites of SmolLM2 cut to two blocks (`train/sae.py`, gloo). One rank or all
get SIGKILL or SIGTERM at a random moment of a random phase: loading, reading a chunk, steps, saving
a checkpoint, or saving the SAEs at the end; reading, steps and saving for the first, second or
third time. Then all ranks are started again. These are faults:

- hang: a process is alive a minute after the signal;
- lost: the checkpoint does not load as SAEs with states, or has fewer steps than the one before;
- bytes: the SAEs are not those of a training that was not disturbed, of the same layout and size;
- end: an exit code that does not fit, or a traceback.

Layouts, and a checkpoint after each chunk or each second, take turns from output to output. Ranks
are forks of this process, which tell it their phase in shared memory.
"""

from __future__ import annotations

import json
import mmap
import os
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from common import ROOT, by_commas, options, record, show
from faults import differences
from gpu_pack import cut_model
from processes import Child, Ended, start

from saefeat.corpora import load_corpus
from saefeat.io import UserError, load_tensors, read_header
from saefeat.resume import STATE
from saefeat.sae import train
from saefeat.sae.checkpoints import INDEX, Checkpoints
from saefeat.sae.log import CURVES, LINES
from saefeat.sae.store import load_saes

PHASES = ("loading", "reading", "steps", "saving", "end")
SITES = ("resid_post@0", "mlp_out@0", "resid_post@1", "mlp_out@1")
LIMIT = 60  # seconds in which all processes have to end
KILLS_PER_OUTPUT = 8  # most kills before an output is completed
JOB = {
    **{"labels": ["de", "en", "fr"], "dtype": "float32", "device": "cpu", "threads": 1},
    **{"d_sae": 256, "k": 8, "batch_size": 128, "chunk_tokens": 1500, "passes": 2},
    **{"timeout_seconds": 30},  # for ranks that wait for one that died before all were connected
}


class Board:
    """Memory that the ranks share with this process: the phase of each, and how often it came."""

    def __init__(self, size: int) -> None:
        self._cells = mmap.mmap(-1, size * (1 + len(PHASES)))

    def clear(self) -> None:
        self._cells[:] = bytes(len(self._cells))

    def __getitem__(self, rank: int) -> str:
        return PHASES[self._cells[rank * (1 + len(PHASES))]]

    def times(self, rank: int, phase: str) -> int:
        """How often a rank has come to a phase since `clear`."""
        return self._cells[rank * (1 + len(PHASES)) + 1 + PHASES.index(phase)]

    def enter(self, phase: str, again: bool = False) -> None:
        """Note the phase of this rank; `again`: it goes on with one that it was in before."""
        start = int(os.environ["RANK"]) * (1 + len(PHASES))
        self._cells[start + 1 + PHASES.index(phase)] += not again
        self._cells[start] = PHASES.index(phase)

    def note(self, owner: Any, name: str, during: str, after: str | None = None) -> None:
        """Let a function enter a phase when it is called, and another one when it returns."""
        call = getattr(owner, name)

        def noting(*given: Any, **named: Any) -> Any:
            before = self[int(os.environ["RANK"])]
            if before != "end":
                self.enter(during)
            found = call(*given, **named)
            if before != "end":
                self.enter(after or before, again=after is None)
            return found

        setattr(owner, name, noting)


@dataclass
class Campaign:
    """What is trained, and what has been found.

    Attributes:
        work: a directory to work in.
        size: number of ranks.
        draw: generator of all random choices.
        board: the phases of the ranks.
        lasts: phase -> its mean seconds in undisturbed trainings.
        resumed: how many trainings began at a checkpoint.
        faults: what was found.
    """

    work: Path
    size: int
    draw: Random
    board: Board
    lasts: dict[str, float] = field(default_factory=dict)
    resumed: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)

    def out(self, name: str) -> Path:
        return self.work / name

    def start(self, name: str, layout: str, pause: int) -> list[Child]:
        """Start all ranks of a training."""
        out, path = self.out(name), self.work / f"{name}.json"
        inputs = {"model": str(self.work / "model"), "corpus": str(self.work / "corpus.jsonl")}
        job = {**JOB, **inputs, "out": str(out), "sites": SITES, "layout": layout}
        path.write_text(json.dumps({**job, "checkpoint_seconds": pause}))
        self.resumed += steps_saved(out) > 0
        main = runpy.run_path(str(ROOT / "train/sae.py"))["main"]
        shared = {"WORLD_SIZE": self.size, "LOCAL_WORLD_SIZE": self.size}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        self.board.clear()
        return [
            start(
                [str(path)],
                program=main,
                environment={
                    key: str(value)
                    for key, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()
                },
            )
            for rank in range(self.size)
        ]

    def fault(self, kind: str, case: Any, what: str, ended: Sequence[Ended] = ()) -> None:
        """Print and keep a fault."""
        said = [end.err.strip()[-600:] for end in ended]
        self.faults.append({"kind": kind, "case": case, "what": what, "stderr": said})
        print(f"FAULT {kind} {case}: {what}", *said, sep="\n    ", flush=True)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def prepare(work: Path, size: int, seed: int) -> Campaign:
    """Make model and corpus, and let the functions of a training note their phases."""
    board = Board(size)
    board.note(train, "read_chunk", "reading", "steps")
    board.note(Checkpoints, "save", "saving")
    board.note(train, "_save", "end", "end")
    cut_model("embedded:smollm2-135m", work / "model", blocks=2, tokens=1024)
    sentences = load_corpus("embedded:eld", labels=JOB["labels"])
    rows = [
        {"text": text[:60], "label": label, "id": str(i)}
        for i, (text, label) in enumerate(zip(sentences.texts, sentences.of, strict=True))
        if i % 1000 < 90
    ]
    (work / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Campaign(work, size, Random(seed), board)


def undisturbed(campaign: Campaign, layout: str) -> float:
    """Train without a kill. Returns its seconds; keeps those of each phase."""
    begun = time.monotonic()
    ranks = campaign.start(f"undisturbed-{layout}", layout, 0)
    spent: defaultdict[str, float] = defaultdict(float)
    times: Counter[str] = Counter()
    last, phase = begun, ""
    while is_alive(ranks[0]):
        now, found = time.monotonic(), campaign.board[0]
        times[found] += found != phase
        spent[found] += now - last
        last, phase = now, found
        time.sleep(0.0005)
    ended = [rank.wait(LIMIT * 5) for rank in ranks]
    if any(end.code for end in ended):
        raise SystemExit(f"an undisturbed training ended with {ended}")
    for phase in PHASES:
        mean = spent[phase] / max(times[phase], 1)
        campaign.lasts[phase] = max(mean, campaign.lasts.get(phase, 0))
    return time.monotonic() - begun


def is_alive(child: Child) -> bool:
    """Whether a process runs; it is not waited for."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


# --------------------------------------------------------------------------- kills


@dataclass(frozen=True)
class Kill:
    """Which ranks get which signal, when the first of them is in a phase for the n-th time."""

    phase: str
    time: int
    ranks: tuple[int, ...]
    signal: str

    @classmethod
    def drawn(cls, draw: Random, size: int) -> Kill:
        all_of_them, number = draw.random() < 0.3, draw.randrange(size)
        ranks = tuple(range(size)) if all_of_them else (number,)
        phase, time = draw.choice(PHASES), draw.randint(1, 3)
        time = {"loading": 0, "end": 1}.get(phase, time)
        return cls(phase, time, ranks, draw.choice(("SIGKILL", "SIGTERM")))


def kill(campaign: Campaign, ranks: Sequence[Child], chosen: Kill) -> str:
    """Send the signal in the phase; returns the phase of each rank then, "" if all have ended."""
    first, board = chosen.ranks[0], campaign.board
    while board[first] != chosen.phase or board.times(first, chosen.phase) < chosen.time:
        if not is_alive(ranks[first]):
            return ""
        time.sleep(0.0002)
    time.sleep(campaign.draw.uniform(0, campaign.lasts[chosen.phase]))
    if not all(map(is_alive, ranks)):
        return ""
    phases = ", ".join(board[rank] for rank in range(campaign.size))
    for rank in chosen.ranks:
        os.kill(ranks[rank].pid, getattr(signal, chosen.signal))
    return phases


def disturb(campaign: Campaign, name: str, layout: str, pause: int) -> tuple[Kill, str, float]:
    """Start a training, kill it, and look at what is left.

    Returns the kill, the phases at that moment ("": the training ended first) and the seconds until
    all had ended.
    """
    before = 0.0
    with suppress(UserError):  # a fault that is known already
        before = steps_kept(campaign.out(name))
    chosen = Kill.drawn(campaign.draw, campaign.size)
    ranks = campaign.start(name, layout, pause)
    phases = kill(campaign, ranks, chosen)
    begun = time.monotonic()
    ended = [rank.wait(begun + LIMIT - rank.begun) for rank in ranks]
    took = time.monotonic() - begun
    case = [name, *vars(chosen).values(), phases]
    if took >= LIMIT:
        campaign.fault("hang", case, f"a process is alive after {LIMIT} s", ended)
    if wrong := check_ends(chosen, phases, ended):
        campaign.fault("end", case, wrong, ended)
    try:
        after = steps_kept(campaign.out(name))
    except UserError as error:
        campaign.fault("lost", case, str(error), ended)
    else:
        if after < before:
            campaign.fault("lost", case, f"{after} steps are kept after {before}", ended)
    return chosen, phases, took


def check_ends(chosen: Kill, phases: str, ended: Sequence[Ended]) -> str:
    """What is wrong with exit codes and messages; "" if nothing is."""
    number = getattr(signal, chosen.signal)
    for rank, end in enumerate(ended):
        # Before it listens, a process dies of SIGTERM, and others of its end; later all save.
        early = chosen.signal == "SIGKILL" or "loading" in phases
        fine = {0, 1} if early else {0, 130}
        fine |= {130} if chosen.signal == "SIGTERM" else set()
        fine |= {-number} if rank in chosen.ranks and early else set()
        if end.code not in (fine if phases else {0}):
            return f"rank {rank} ended with {end.code}"
        if end.traceback:
            return f"rank {rank} wrote a traceback"
    said = ("has ended", "does not answer", "cannot connect")
    named = any(words in end.err for end in ended for words in said)
    one_of_them = len(chosen.ranks) < len(ended) and any(end.code == 1 for end in ended)
    return "no rank says which has ended" if one_of_them and not named else ""


def steps_kept(out: Path) -> float:
    """Steps of the checkpoint; infinite if the SAEs are complete, 0 if nothing is there.

    Raises UserError if the checkpoint is damaged.
    """
    if all((out / train.sae_id(site)).exists() for site in SITES):
        return float("inf")
    steps = steps_saved(out)
    if not steps:
        return 0
    folder = out / f"training-{steps}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they say that the training is not finished
        found = load_saes(str(folder))
    if sorted(sae.site for sae in found) != sorted(SITES):
        raise UserError(f"{folder} has SAEs of {[sae.site for sae in found]} alone")
    for sae in found:
        load_tensors(folder / sae.id / STATE)
    return steps


def steps_saved(out: Path) -> int:
    """Steps of the checkpoint that the index names; 0 without one."""
    path = out / INDEX
    return json.loads(read_header(path)["values"])["steps"] if path.exists() else 0


def complete(campaign: Campaign, name: str, layout: str, pause: int) -> None:
    """Resume a training without a kill, and compare its SAEs with those of the undisturbed one."""
    ended = [rank.wait(LIMIT * 5) for rank in campaign.start(name, layout, pause)]
    if any(end.code for end in ended):
        campaign.fault("end", name, f"the last resume ended with {[e.code for e in ended]}", ended)
        return
    places = [campaign.out(f"undisturbed-{layout}"), campaign.out(name)]
    for place in places:
        for figures in (LINES, CURVES):  # they have times
            (place / figures).unlink(missing_ok=True)
    if found := differences(*places):
        campaign.fault("bytes", name, found, ended)


def measure(campaign: Campaign, kills: int, layouts: Sequence[str]) -> dict[str, Any]:
    """Kill trainings until so many kills are made, and compare the output of each."""
    seconds = {layout: round(undisturbed(campaign, layout), 2) for layout in layouts}
    show({"undisturbed": seconds, "phases": campaign.lasts})
    by: dict[str, Counter[str]] = {key: Counter() for key in ("phase", "signal", "ranks", "layout")}
    slowest, outputs, done = 0.0, 0, 0
    while done < kills:
        layout, pause = layouts[outputs % len(layouts)], outputs // len(layouts) % 2
        name = f"output-{outputs}"
        for _ in range(min(campaign.draw.randint(1, 2 * KILLS_PER_OUTPUT), kills - done)):
            chosen, phases, took = disturb(campaign, name, layout, pause)
            if not phases:
                break
            kinds = (chosen.phase, chosen.signal, str(len(chosen.ranks)), layout)
            for counter, kind in zip(by.values(), kinds, strict=True):
                counter[kind] += 1
            done, slowest = done + 1, max(slowest, took)
        complete(campaign, name, layout, pause)
        shutil.rmtree(campaign.out(name), ignore_errors=True)
        outputs += 1
        show({"outputs": outputs, "kills": done, "faults": len(campaign.faults)})
    kinds = Counter(fault["kind"] for fault in campaign.faults)
    return {
        "undisturbed_seconds": seconds,
        "kills": done,
        **{f"by_{name}": dict(counter) for name, counter in by.items()},
        "resumed_at_a_checkpoint": campaign.resumed,
        "outputs_compared": outputs,
        "slowest_end_seconds": round(slowest, 1),
        "hangs": kinds["hang"],
        "lost_checkpoints": kinds["lost"],
        "other_bytes": kinds["bytes"],
        "other_ends": kinds["end"],
        "faults": campaign.faults,
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layouts", default="sites,data,features", help="by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where to work; default a temporary directory")
    given = parser.parse_args()
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(prefix="kill-training-", dir=given.work))
    try:
        campaign = prepare(work, given.ranks, given.seed)
        found = measure(campaign, given.kills, by_commas(given.layouts))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    record(given, found)
    sys.exit(bool(campaign.faults))


if __name__ == "__main__":
    main()
