"""Stream a corpus through a model and its dictionaries into accumulators.

The corpus is cut into windows of 1,024 examples. A window is the unit of work: a shard takes some
windows, and so does each of several processes that collect together (ranks). A resumed collection
takes those that are missing, and the header of the statistics lists those that were counted. The
accumulators come from `saefeat.statistics.ACCUMULATORS`.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from saefeat.activations import counted_vectors
from saefeat.config import TABLE_EXAMPLES
from saefeat.corpora import Batch, Corpus, Plan, first_by_hash, half_of
from saefeat.dictionaries import Dictionary
from saefeat.io import UserError, make_dir
from saefeat.memory import dictionary_budget, group_to_fit
from saefeat.models import LanguageModel
from saefeat.progress import Say, quiet, track
from saefeat.resume import check_alike, check_same, claim_together, pause_after
from saefeat.shares import Shares, States, begun_request, clear_shares, deal
from saefeat.statistics import ACCUMULATORS, Accumulator, Observed, collected_kinds, comparable
from saefeat.statistics.files import UNFINISHED, stats_file, stats_header
from saefeat.world import ALONE, World

CHECKPOINT_SECONDS = 30.0

# --------------------------------------------------------------------------- batches


def observe(
    lm: LanguageModel,
    dictionaries: Sequence[Dictionary],
    batches: Iterable[Batch],
    corpus: Corpus,
    kept: Collection[int] | None = None,
    half: Container[int] | None = None,
) -> Iterator[tuple[Batch, dict[str, Observed]]]:
    """Run batches of a corpus, and encode their counted tokens in every dictionary.

    Args:
        kept: positions of the examples that tables by example keep; None: all.
        half: positions of the examples of the first half; None where no accumulator needs it.

    Yields each batch and, by dictionary id, what accumulators add.
    """
    row = {label: k for k, label in enumerate(corpus.labels)}
    inputs = counted_vectors(lm, batches, [d.site for d in dictionaries])
    for number, (batch, vectors) in enumerate(inputs):
        labels = torch.tensor([row[corpus.of[i]] for i in batch.positions], device=lm.device)
        positions, found = torch.tensor(batch.positions), {}
        among = [
            None if some is None else torch.tensor([i in some for i in batch.positions])
            for some in (kept, half)
        ]
        with torch.inference_mode():
            for d in dictionaries:
                x, counted = d.select(vectors[d.site], batch.counted)
                lengths = counted.sum(1)
                found[d.id] = Observed(d.encode(x), lengths, labels, positions, number, d, *among)
        yield batch, found


# --------------------------------------------------------------------------- the stage


def request_header(lm: LanguageModel, dictionary: Dictionary, plan: Plan) -> dict[str, Any]:
    """What statistics are of: equal in every shard, process and resume of one collection."""
    corpus = plan.corpus
    return {
        "model": lm.identity,
        "dictionary": dictionary.identity,
        "corpus": {key: getattr(corpus, key) for key in ("name", "fingerprint", "skipped")},
        "policy": {**plan.policy, "prefix": lm.prefix, "suffix": lm.suffix},
        "chosen": {"examples": len(plan.tokens), "tokens": plan.total, "skipped": plan.skipped},
        "window_count": plan.window_count,
    }


@dataclass(frozen=True)
class _FirstHalf:
    """The examples of the first half of the texts."""

    corpus: Corpus
    seed: int

    def __contains__(self, position: int) -> bool:
        return half_of(self.corpus.ids[position], self.seed) == 0


@dataclass(frozen=True)
class _Job:
    """What a collection is asked for; see `collect`."""

    lm: LanguageModel
    plan: Plan
    headers: dict[str, dict[str, Any]]  # by dictionary
    out: Path
    places: dict[type[Accumulator], Path]
    shard: tuple[int, int]
    say: Say
    pause: float  # seconds between checkpoints
    table_examples: int
    world: World
    stop: Callable[[], bool]

    @cached_property
    def windows(self) -> list[int]:
        return [w for w in range(self.plan.window_count) if w % self.shard[1] == self.shard[0]]

    @cached_property
    def kept(self) -> frozenset[int] | None:
        """The examples that tables by example keep; None where there is no table."""
        if not any(kind.LIMITED for kind in self.places):
            return None
        plan, seed = self.plan, self.plan.policy["seed"]
        return frozenset(first_by_hash(plan.corpus, plan.chosen, seed, self.table_examples))

    @cached_property
    def half(self) -> Container[int] | None:
        """The examples of the first half of the texts; None where no accumulator needs it."""
        if not any(kind.HALVED for kind in self.places):
            return None
        corpus, seed = self.plan.corpus, self.plan.policy["seed"]
        return _FirstHalf(corpus, seed)

    def header(self, kind: type[Accumulator], dictionary: Dictionary) -> dict[str, Any]:
        limit = {"limit": self.table_examples} if kind.LIMITED else {}
        return self.headers[dictionary.id] | limit

    def zeros(
        self, dictionaries: Sequence[Dictionary], *, each_window: bool, device: str | None = None
    ) -> States:
        """Empty accumulators: those of one window, or those of all windows."""
        kinds = [kind for kind in self.places if kind.EACH_WINDOW is each_window]
        labels, device = self.plan.corpus.labels, device or self.lm.device
        return {
            d.id: [
                kind.zeros(labels, d.width, signed=d.signed, device=device, **self.header(kind, d))
                for kind in kinds
                if kind.applies(d)
            ]
            for d in dictionaries
        }

    def save(self, states: States, window: int = 0) -> None:
        for dictionary, accumulators in states.items():
            for state in accumulators:
                path = state.path(self.places[type(state)], dictionary, window)
                state.check_range().save(path, self.plan.corpus)

    def has_files(self, dictionary: Dictionary, windows: list[int], *, finished: bool) -> bool:
        """Whether the files of these windows are there and, if `finished`, those of all windows."""
        return all(
            self._is_written(kind, kind.path(place, dictionary.id, window))
            for kind, place in self.places.items()
            if kind.applies(dictionary) and (kind.EACH_WINDOW or finished)
            for window in (windows if kind.EACH_WINDOW else [0])
        )

    def _is_written(self, kind: type[Accumulator], path: Path) -> bool:
        """Whether a file is there, of as many examples as are asked for."""
        if not kind.LIMITED or not path.exists():
            return path.exists()
        return kind.read_header(path).get("limit") == self.table_examples

    def is_done(self, dictionary: Dictionary) -> bool:
        """Whether everything is written. Raises UserError for statistics of something else."""
        path = stats_file(self.out, dictionary.id)
        if not path.exists():
            return False
        header, wanted = stats_header(self.out, dictionary.id), self.headers[dictionary.id]
        found, wanted = (comparable(header), header.get("windows")), comparable(wanted)
        check_same(path, found, (wanted, self.windows), "statistics")
        return self.has_files(dictionary, self.windows, finished=True)


def collect(
    lm: LanguageModel,
    plan: Plan,
    dictionaries: Sequence[Dictionary],
    out: Path,
    *,
    places: Mapping[str, Path] | None = None,
    shard: tuple[int, int] = (0, 1),
    say: Say = quiet,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    table_examples: int = TABLE_EXAMPLES,
    world: World = ALONE,
    stop: Callable[[], bool] = lambda: False,
) -> list[Path]:
    """Write the statistics of every dictionary to `out/<id>.safetensors`.

    The same call resumes a collection that was stopped. All ranks of a world make the same call,
    with an output directory that all of them see; the files are those of one process. Any number
    of ranks may resume. Dictionaries that do not fit in memory together form groups, with one pass
    over the corpus each (see `memory.group_to_fit`).

    Args:
        places: name of an accumulator -> the directory of its files: `{"bags": out / "bags"}`.
            Those that are always collected need none; they have a folder in `out`.
        shard: (i, n) takes the windows w with w mod n = i.
        checkpoint_seconds: least time between two checkpoints.
        table_examples: greatest number of examples per label in tables by example.
        world: the ranks that collect together. Each takes some of the windows.
        stop: asked before each window; if it says so on a rank, that rank saves what is done and
            waits for the others, and all raise KeyboardInterrupt. It should say so on all ranks.

    Returns the paths of the statistics.

    Raises:
        UserError: `out` holds statistics of something else, another process writes there, or the
            ranks have not loaded the same.
        RunFailed: an activation is not finite, a sum leaves the exact range, or another rank has
            ended.
    """
    check_ids(dictionaries)
    wanted = {kind: out / kind.FOLDER for kind in collected_kinds()}
    wanted |= {ACCUMULATORS[name]: place for name, place in (places or {}).items()}
    headers = {d.id: request_header(lm, d, plan) for d in dictionaries}
    job = _Job(
        *(lm, plan, headers, out, wanted, shard, say if world.leads else quiet),
        *(checkpoint_seconds, table_examples, world, stop),
    )
    with claim_together(out, world):
        alike = {name: comparable(header) for name, header in headers.items()}
        check_alike(world, [alike, [kind.__name__ for kind in wanted], shard, table_examples])
        _collect(job, dictionaries)
    return [stats_file(out, d.id) for d in dictionaries]


def check_ids(dictionaries: Sequence[Dictionary]) -> None:
    """Raise UserError for two dictionaries of one id."""
    for name, count in Counter(d.id for d in dictionaries).items():
        if count > 1:
            raise UserError(
                f"two dictionaries are named {name}; rename the directory of one of them"
            )


def _collect(job: _Job, dictionaries: Sequence[Dictionary]) -> None:
    unfinished, world = job.out / UNFINISHED, job.world
    by_id = {d.id: d for d in dictionaries}
    groups = world.share(_groups(job, dictionaries) if world.leads else None)
    for number, group in enumerate(groups, 1):
        if len(groups) > 1:
            job.say(f"collect: group {number} of {len(groups)}, {', '.join(group)}")
        _collect_group(job, [by_id[name].to(job.lm.device) for name in group])
    if world.leads:
        if not groups:
            job.say(f"{job.out} is complete already")
        # Without groups it is there if the process was killed between its last write and this.
        shutil.rmtree(unfinished, ignore_errors=not groups)


def _groups(job: _Job, dictionaries: Sequence[Dictionary]) -> list[list[str]]:
    """The ids of the dictionaries that are collected together, one pass over the corpus each."""
    unfinished = job.out / UNFINISHED
    begun = (begun_request(unfinished) or {"headers": {}})["headers"]
    # The group that was stopped stays together, whatever fits in memory now. The others follow.
    stopped = [d for d in dictionaries if d.id in begun]
    if stopped and len(stopped) == len(begun) and all(map(job.is_done, stopped)):
        clear_shares(unfinished)  # killed after its last write
        stopped = []
    going_on = {d.id for d in stopped}
    missing = [d for d in dictionaries if d.id not in going_on and not job.is_done(d)]
    groups = [stopped] if stopped else []
    if missing:
        device, labels = job.lm.device, len(job.plan.corpus.labels)
        budget = dictionary_budget(device) // (job.world.local_size if device == "cpu" else 1)
        groups += group_to_fit(missing, device, labels, budget, [*job.places])
    if groups:
        make_dir(unfinished)  # as long as it is there, nobody takes the statistics for complete
    return [[d.id for d in group] for group in groups]


def _collect_group(job: _Job, dictionaries: Sequence[Dictionary]) -> None:
    """Collect dictionaries in one pass over the corpus."""
    world, folder = job.world, job.out / UNFINISHED
    headers = {d.id: comparable(job.headers[d.id]) for d in dictionaries}
    request = {"headers": headers, "shard": list(job.shard)}
    shares = Shares(folder, request, job.lm.threads, world, job.say)
    states = job.zeros(dictionaries, each_window=False)

    def is_whole(windows: list[int]) -> bool:
        return all(job.has_files(d, windows, finished=False) for d in dictionaries)

    kept = world.share(shares.find(states, is_whole) if world.leads else None)
    done = shares.take(states, kept)
    missing = set(job.windows).difference(*(windows for _, windows in kept))
    finished = _run_windows(job, dictionaries, states, shares, done, missing)
    if world.size > 1 or not finished:
        shares.save(states, done)
    if world.any(not finished)[0]:
        raise KeyboardInterrupt
    if world.size > 1:
        states.clear()
        mine = dictionaries[world.rank :: world.size]
        states = shares.merge(job.zeros(mine, each_window=False, device="cpu"), job.windows)
    for accumulator in chain.from_iterable(states.values()):
        accumulator.header["windows"] = job.windows
    job.save(states)
    world.barrier()
    if world.leads:
        clear_shares(folder)


def _run_windows(
    job: _Job,
    dictionaries: Sequence[Dictionary],
    states: States,
    shares: Shares,
    done: list[int],
    missing: Collection[int],
) -> bool:
    """Add this rank's part of the missing windows to the states, and their numbers to `done`.

    The files of each window are written, and checkpoints. Returns whether all is done; it is not
    if the process was to stop.
    """
    plan = job.plan
    sizes = {w: int(plan.numbers(plan.window(w)).sum()) for w in missing}
    mine = deal(missing, sizes, job.world)
    saved, pause = time.monotonic(), job.pause
    reading = plan.ahead(list(plan.batches(job.lm, plan.window(w))) for w in mine)
    with track(job.say, "collect", sum(sizes[w] for w in mine)) as bar:
        for w, batches in zip(mine, reading, strict=True):
            if job.stop():
                return False
            bar.set_postfix_str(f"window {len(done) + 1}", refresh=False)
            written = job.zeros(dictionaries, each_window=True)
            of = (batches, plan.corpus, job.kept, job.half)
            for batch, observed in observe(job.lm, dictionaries, *of):
                for name, one in observed.items():
                    for state in (*states[name], *written[name]):
                        state.add(one)
                bar.update(int(batch.counted.sum()))
            job.save(written, w)
            done.append(w)
            if (begun := time.monotonic()) - saved >= pause and w != mine[-1]:
                shares.save(states, done)
                saved = time.monotonic()
                # States of wide dictionaries are gigabytes.
                pause = pause_after(job.pause, saved - begun)
    return True
