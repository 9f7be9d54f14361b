"""Stream a corpus through a model and its dictionaries into accumulators.

The corpus is cut into windows of 1,024 examples. A window is the unit of work: a shard takes some
windows, a resumed collection takes those that are missing, and the header of the statistics lists
those that were counted. The accumulators come from `saefeat.statistics.ACCUMULATORS`.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefeat.activations import counted_vectors
from saefeat.config import TABLE_EXAMPLES
from saefeat.corpora import Batch, Corpus, Plan, first_by_hash, half_of
from saefeat.dictionaries import Dictionary
from saefeat.io import UserError, make_dir
from saefeat.memory import group_to_fit
from saefeat.models import LanguageModel
from saefeat.progress import Say, quiet, track
from saefeat.resume import STATE, Checkpoint, check_same, claim, saved_request
from saefeat.statistics import ACCUMULATORS, Accumulator, Observed, collected_kinds, comparable
from saefeat.statistics.files import UNFINISHED, stats_file, stats_header

CHECKPOINT_SECONDS = 30.0
_WRITING = 20  # a checkpoint that takes a second is followed by at least 20 seconds of work

States = dict[str, list[Accumulator]]  # by dictionary

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

    def zeros(self, dictionaries: Sequence[Dictionary], *, each_window: bool) -> States:
        """Empty accumulators: those of one window, or those of all windows."""
        kinds = [kind for kind in self.places if kind.EACH_WINDOW is each_window]
        labels, device = self.plan.corpus.labels, self.lm.device
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
) -> list[Path]:
    """Write the statistics of every dictionary to `out/<id>.safetensors`.

    The same call resumes a collection that was stopped. Dictionaries that do not fit in memory
    together form groups, with one pass over the corpus each (see `memory.group_to_fit`).

    Args:
        places: name of an accumulator -> the directory of its files: `{"bags": out / "bags"}`.
            Those that are always collected need none; they have a folder in `out`.
        shard: (i, n) takes the windows w with w mod n = i.
        checkpoint_seconds: least time between two checkpoints.
        table_examples: greatest number of examples per label in tables by example.

    Returns the paths of the statistics.

    Raises:
        UserError: `out` holds statistics of something else, or another process writes there.
        RunFailed: an activation is not finite, or a sum leaves the exact range.
    """
    check_ids(dictionaries)
    wanted = {kind: out / kind.FOLDER for kind in collected_kinds()}
    wanted |= {ACCUMULATORS[name]: place for name, place in (places or {}).items()}
    headers = {d.id: request_header(lm, d, plan) for d in dictionaries}
    job = _Job(lm, plan, headers, out, wanted, shard, say, checkpoint_seconds, table_examples)
    with claim(out):
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
    unfinished = job.out / UNFINISHED
    begun = (saved_request(unfinished / STATE) or {"headers": {}})["headers"]
    # The group that was stopped stays together, whatever fits in memory now. The others follow.
    stopped = [d for d in dictionaries if d.id in begun]
    missing = [d for d in dictionaries if d.id not in begun and not job.is_done(d)]
    groups = [stopped] if stopped else []
    if missing:
        labels = len(job.plan.corpus.labels)
        groups += group_to_fit(missing, job.lm.device, labels, kinds=[*job.places])
    if not groups:
        # Still there if the process was killed between its last write and the removal.
        shutil.rmtree(unfinished, ignore_errors=True)
        job.say(f"{job.out} is complete already")
        return
    make_dir(unfinished)  # as long as it is there, nobody takes the statistics for complete
    for number, group in enumerate(groups, 1):
        if len(groups) > 1:
            names = ", ".join(d.id for d in group)
            job.say(f"collect: group {number} of {len(groups)}, {names}")
        _collect_group(job, [d.to(job.lm.device) for d in group])
    shutil.rmtree(unfinished)


def _collect_group(job: _Job, dictionaries: Sequence[Dictionary]) -> None:
    """Collect dictionaries in one pass over the corpus."""
    headers = {d.id: comparable(job.headers[d.id]) for d in dictionaries}
    request = {"headers": headers, "shard": list(job.shard)}
    state = job.out / UNFINISHED / STATE
    checkpoint = Checkpoint(state, request, "the collection", job.lm.threads, say=job.say)
    states, done = job.zeros(dictionaries, each_window=False), []
    tensors = _tensors(states)
    if kept := checkpoint.load():
        windows, found = kept[0]["windows"], kept[1]
        # The checkpoint is ignored where it lacks an accumulator that is asked for now.
        if tensors.keys() <= found.keys() and all(
            job.has_files(d, windows, finished=False) for d in dictionaries
        ):
            done = windows
            for name, tensor in tensors.items():
                tensor.copy_(found[name])
    _run_windows(job, dictionaries, states, done, checkpoint)
    for accumulator in chain.from_iterable(states.values()):
        accumulator.header["windows"] = job.windows
    job.save(states)
    checkpoint.clear()


def _tensors(states: States) -> dict[str, Tensor]:
    """Every tensor of the states, by its name in a checkpoint."""
    return {
        f"{type(state).__name__}|{field}|{dictionary}": tensor
        for dictionary, accumulators in states.items()
        for state in accumulators
        for field, tensor in state.tensors.items()
    }


def _run_windows(
    job: _Job,
    dictionaries: Sequence[Dictionary],
    states: States,
    done: list[int],
    checkpoint: Checkpoint,
) -> None:
    """Add the windows that are not done. Write the files of each window, and checkpoints."""
    plan, missing = job.plan, [w for w in job.windows if w not in set(done)]
    saved, pause = time.monotonic(), job.pause
    tokens = sum(int(plan.numbers(plan.window(w)).sum()) for w in missing)
    reading = plan.ahead(list(plan.batches(job.lm, plan.window(w))) for w in missing)
    with track(job.say, "collect", tokens) as bar:
        for w, batches in zip(missing, reading, strict=True):
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
            if (begun := time.monotonic()) - saved >= pause and w != missing[-1]:
                tensors = {name: tensor.cpu() for name, tensor in _tensors(states).items()}
                checkpoint.save({"windows": done}, tensors)
                saved = time.monotonic()
                # States of wide dictionaries are gigabytes.
                if job.pause:
                    pause = max(job.pause, _WRITING * (saved - begun))
