"""Stream a corpus through a model and its dictionaries: bags, statistics and highest-activating examples.

The unit of work is a window of 1,024 examples. Windows that are done are listed in the header, so a
shard, a resume and a merge all are "the windows that are still missing".
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefeat.activations import counted_vectors
from saefeat.codes import STEP, Bag, concat
from saefeat.corpora import Batch, Corpus, Plan
from saefeat.dictionaries import Dictionary
from saefeat.io import (
    SCHEMA,
    UserError,
    atomic_path,
    load_tensors,
    make_dir,
    read_header,
    replacing,
    save_tensors,
)
from saefeat.memory import group_to_fit
from saefeat.models import LanguageModel
from saefeat.resume import claim
from saefeat.statistics import Stats, check_mergeable, comparable

CHECKPOINT_SECONDS = 30.0
TOP_EXAMPLES = 5
_STATE = "state.safetensors"
Progress = Callable[[str], None]


def encode_batches(
    lm: LanguageModel, dictionaries: Sequence[Dictionary], batches: Iterator[Batch]
) -> Iterator[tuple[Batch, dict[str, tuple[Bag, Tensor]]]]:
    """Run batches; for each, every dictionary's bag and the counted tokens [rows] behind it."""
    for batch, vectors in counted_vectors(lm, batches, [d.site for d in dictionaries]):
        with torch.inference_mode():
            bags = {d.id: _bag(d, vectors[d.site], batch.counted) for d in dictionaries}
        yield batch, bags


def _bag(dictionary: Dictionary, x: Tensor, counted: Tensor) -> tuple[Bag, Tensor]:
    x, counted = dictionary.select(x, counted)
    lengths = counted.sum(1)
    return dictionary.encode(x).bag(lengths), lengths


# --------------------------------------------------------------------------- highest-activating
# examples


@dataclass
class TopExamples:
    """Per unit the examples of greatest activation: `value` [width, n] (-inf: none) and `position` (-1: none).

    Ties go to the earlier example, so merging is exact in any order.
    """

    value: Tensor
    position: Tensor

    @classmethod
    def zeros(cls, width: int, n: int = TOP_EXAMPLES) -> TopExamples:
        return cls(
            torch.full((width, n), -torch.inf), torch.full((width, n), -1, dtype=torch.int64)
        )

    def add(self, bag: Bag, positions: Tensor) -> None:
        """Take the examples of a sparse bag, which stand at `positions` in the corpus."""
        if bag.unit is None or bag.example is None:
            raise TypeError("highest-activating examples are kept of sparse codes only")
        unit, value = bag.unit.cpu(), bag.max.cpu()
        beats = value >= self.value[unit, -1]
        unit, value, position = unit[beats], value[beats], positions[bag.example.cpu()[beats]]
        touched = unit.unique()
        old = [touched.repeat_interleave(self.value.shape[1])]
        self._place(
            torch.cat([*old, unit]),
            torch.cat([self.value[touched].view(-1), value]),
            torch.cat([self.position[touched].view(-1), position]),
        )

    def _place(self, unit: Tensor, value: Tensor, position: Tensor) -> None:
        order = torch.argsort(position, stable=True)
        order = order[torch.argsort(value[order], descending=True, stable=True)]
        order = order[torch.argsort(unit[order], stable=True)]
        unit, value, position = unit[order], value[order], position[order]
        counts = torch.unique_consecutive(unit, return_counts=True)[1]
        starts = torch.cumsum(counts, 0) - counts
        place = torch.arange(len(unit)) - starts.repeat_interleave(counts)
        keep = place < self.value.shape[1]
        self.value[unit[keep], place[keep]] = value[keep]
        self.position[unit[keep], place[keep]] = position[keep]

    def save(self, path: Path, corpus: Corpus, dictionary: str) -> None:
        """Parquet rows unit, place, value, position, id, label, text."""
        import pyarrow as pa

        unit, place = (self.position >= 0).nonzero(as_tuple=True)
        at = self.position[unit, place].tolist()
        columns = {
            "unit": unit.numpy(),
            "place": place.numpy(),
            "value": self.value[unit, place].numpy(),
            "position": pa.array(at, pa.int64()),
            "id": pa.array([corpus.ids[i] for i in at], pa.string()),
            "label": pa.array([corpus.of[i] for i in at], pa.string()),
            "text": pa.array([corpus.texts[i] for i in at], pa.string()),
        }
        _write_table(path, pa.table(columns), dictionary, corpus.labels)


def merge_examples(
    files: Sequence[Path], path: Path, dictionary: str, labels: tuple[str, ...]
) -> None:
    """Merge highest-activating examples of different windows: the bytes that one collection of all would write."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pa.concat_tables([pq.read_table(file) for file in files])
    rows = rows.sort_by([("unit", "ascending"), ("value", "descending"), ("position", "ascending")])
    unit = rows["unit"].to_numpy()
    place = np.arange(len(unit)) - np.searchsorted(unit, unit)
    rows = rows.set_column(1, "place", pa.array(place)).filter(pa.array(place < TOP_EXAMPLES))
    _write_table(path, rows.combine_chunks(), dictionary, labels)


def _write_table(path: Path, table: Any, dictionary: str, labels: tuple[str, ...]) -> None:
    import pyarrow.parquet as pq

    manifest = json.dumps(
        {"schema": SCHEMA, "dictionary": dictionary, "labels": list(labels)}, sort_keys=True
    )
    with atomic_path(path) as temporary:
        pq.write_table(
            table.replace_schema_metadata({"saefeat": manifest}), temporary, compression="zstd"
        )


# --------------------------------------------------------------------------- the stage


def request_header(lm: LanguageModel, dictionary: Dictionary, plan: Plan) -> dict[str, Any]:
    """What statistics are of: equal in every shard, process and resume of one collection."""
    corpus = plan.corpus
    return {
        "model": lm.identity,
        "dictionary": dictionary.identity,
        "corpus": {
            "name": corpus.name,
            "fingerprint": corpus.fingerprint,
            "skipped": corpus.skipped,
        },
        "policy": {**plan.policy, "prefix": lm.prefix, "suffix": lm.suffix},
        "chosen": {"examples": len(plan.tokens), "tokens": plan.total, "skipped": plan.skipped},
        "window_count": plan.window_count,
    }


@dataclass
class _State:
    stats: dict[str, Stats]
    top: dict[str, TopExamples]
    done: list[int]


def collect(
    lm: LanguageModel,
    plan: Plan,
    dictionaries: Sequence[Dictionary],
    out: Path,
    *,
    shard: tuple[int, int] = (0, 1),
    bags: Path | None = None,
    examples: Path | None = None,
    progress: Progress = lambda line: None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> list[Path]:
    """Write statistics of every dictionary to `out/<id>.safetensors`; run again, it goes on where it was killed.

    Args:
        shard: (i, n) takes the windows w with w mod n = i.
        bags: directory for bags by example, `<id>/window-NNNNN.parquet`, of sparse dictionaries.
        examples: directory for the highest-activating examples of SAEs, `<id>.parquet`; default
            `out/examples`.

    Dictionaries that do not fit in memory together take several passes over the corpus (see
    `memory.group_to_fit`).

    Returns the paths of the statistics. Raises UserError when `out` holds statistics of something
    else, RunFailed for activations that are not finite.
    """
    check_ids(dictionaries)
    with claim(out):
        _collect(
            lm,
            plan,
            dictionaries,
            out,
            shard,
            bags,
            examples or out / "examples",
            progress,
            checkpoint_seconds,
        )
    return [out / f"{d.id}.safetensors" for d in dictionaries]


def _collect(
    lm: LanguageModel,
    plan: Plan,
    dictionaries: Sequence[Dictionary],
    out: Path,
    shard: tuple[int, int],
    bags: Path | None,
    examples: Path,
    progress: Progress,
    checkpoint_seconds: float,
) -> None:
    windows = [w for w in range(plan.window_count) if w % shard[1] == shard[0]]
    paths = {d.id: out / f"{d.id}.safetensors" for d in dictionaries}
    begun = _begun(out / "partial")
    # What was killed goes on together, whatever fits in memory now; then what is missing.
    first = [d for d in dictionaries if d.id in begun]
    missing = [
        d
        for d in dictionaries
        if d.id not in begun and not _done(lm, d, plan, paths[d.id], windows, bags)
    ]
    groups = ([first] if first else []) + (
        group_to_fit(missing, lm.device, len(plan.corpus.labels)) if missing else []
    )
    if not groups:
        shutil.rmtree(
            out / "partial", ignore_errors=True
        )  # of a kill between the last file and its removal
        progress(f"{out} is complete already")
        return
    make_dir(out / "partial")  # as long as it is there, nobody takes the statistics for whole
    for number, group in enumerate(groups, 1):
        if len(groups) > 1:
            progress(f"collect: pass {number} of {len(groups)}, {', '.join(d.id for d in group)}")
        _pass(lm, plan, group, out, windows, bags, examples, progress, checkpoint_seconds)
    shutil.rmtree(out / "partial")


def check_ids(dictionaries: Sequence[Dictionary]) -> None:
    """Raises UserError for two dictionaries of one id."""
    names = [d.id for d in dictionaries]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"two dictionaries are named {name}; rename the directory of one of them"
            )


def _begun(partial: Path) -> set[str]:
    """Dictionaries whose collection was killed."""
    path = partial / _STATE
    return set(read_header(path)["headers"]) if path.exists() else set()


def _pass(
    lm: LanguageModel,
    plan: Plan,
    dictionaries: Sequence[Dictionary],
    out: Path,
    windows: list[int],
    bags: Path | None,
    examples: Path,
    progress: Progress,
    checkpoint_seconds: float,
) -> None:
    """Collect dictionaries in one pass over the corpus."""
    dictionaries = [d.to(lm.device) for d in dictionaries]
    headers = {d.id: request_header(lm, d, plan) for d in dictionaries}
    state = _resume(lm, out / "partial", dictionaries, headers, plan, windows, progress)
    if not _have_bags(bags, dictionaries, state.done):  # they were not asked for then: begin again
        state = _start(lm.device, dictionaries, headers, plan)
    done = set(state.done)
    missing = [w for w in windows if w not in done]
    _run_windows(
        lm, plan, dictionaries, state, missing, out / "partial", bags, progress, checkpoint_seconds
    )
    for d in dictionaries:
        if d.id in state.top:
            state.top[d.id].save(examples / f"{d.id}.parquet", plan.corpus, d.id)
        state.stats[d.id].header["windows"] = windows
        state.stats[d.id].checked().save(out / f"{d.id}.safetensors")
    (out / "partial" / _STATE).unlink(missing_ok=True)


def _done(
    lm: LanguageModel,
    dictionary: Dictionary,
    plan: Plan,
    path: Path,
    windows: list[int],
    bags: Path | None,
) -> bool:
    """Whether the statistics are written, and the bags where they are wanted; UserError for those of something else."""
    if not path.exists():
        return False
    header = Stats.read_header(path)
    if (
        comparable(header) != comparable(request_header(lm, dictionary, plan))
        or header["windows"] != windows
    ):
        raise UserError(
            f"{path} holds statistics of something else; choose another --out or remove it"
        )
    return _have_bags(bags, [dictionary], windows)


def _have_bags(bags: Path | None, dictionaries: Sequence[Dictionary], windows: list[int]) -> bool:
    """Whether the bags of these windows are written, or none are wanted."""
    names = [d.id for d in dictionaries if not d.signed and bags]
    return all(bags_path(bags, name, w).exists() for name in names for w in windows if bags)


def bags_path(bags: Path, name: str, window: int) -> Path:
    return bags / name / f"window-{window:05d}.parquet"


def _run_windows(
    lm: LanguageModel,
    plan: Plan,
    dictionaries: Sequence[Dictionary],
    state: _State,
    missing: list[int],
    partial: Path,
    bags: Path | None,
    progress: Progress,
    checkpoint_seconds: float,
) -> None:
    todo = sum(plan.counts[i] for w in missing for i in plan.window(w))
    start = saved = time.monotonic()
    tokens, pause = 0, checkpoint_seconds
    for w in missing:
        tokens += _run_window(lm, plan, dictionaries, state, w, bags)
        state.done.append(w)
        progress(_progress_line(len(state.done), tokens, todo, time.monotonic() - start))
        if (begun := time.monotonic()) - saved >= pause and w != missing[-1]:
            _checkpoint(partial, state, lm.threads)
            saved = time.monotonic()
            # Wide dictionaries take gigabytes: writing them may take a twentieth of the time.
            pause = max(pause, 20 * (saved - begun)) if checkpoint_seconds else 0.0


def _progress_line(done: int, tokens: int, todo: int, seconds: float) -> str:
    speed = tokens / max(seconds, 1e-9)
    left = (todo - tokens) / max(speed, 1e-9)
    return f"collect: window {done}, {tokens:,} tokens, {speed:,.0f} tokens/s, {left:,.0f} s left"


def _run_window(
    lm: LanguageModel,
    plan: Plan,
    dictionaries: Sequence[Dictionary],
    state: _State,
    w: int,
    bags: Path | None,
) -> int:
    """Add one window to the state and write its bags. Returns its counted tokens."""
    sparse: dict[str, list[Bag]] = {d.id: [] for d in dictionaries if not d.signed}
    positions: list[int] = []
    tokens = 0
    for batch, results in encode_batches(lm, dictionaries, plan.batches(lm, plan.window(w))):
        _add(lm.device, state, plan.corpus, batch, results)
        for name, parts in sparse.items():
            parts.append(results[name][0])
        positions += batch.positions
        tokens += int(batch.counted.sum())
    for name, parts in sparse.items():
        if parts:
            state.top[name].add(concat(parts), torch.tensor(positions))
        if bags:
            write_bags(bags_path(bags, name, w), parts, positions, plan.corpus, name)
    return tokens


def _add(
    device: str, state: _State, corpus: Corpus, batch: Batch, results: dict[str, tuple[Bag, Tensor]]
) -> None:
    rows = {label: k for k, label in enumerate(corpus.labels)}
    labels = torch.tensor([rows[corpus.of[i]] for i in batch.positions], device=device)
    for name, (bag, lengths) in results.items():
        state.stats[name].add(bag, labels, lengths.to(device))


def _checkpoint(partial: Path, state: _State, threads: int | None) -> None:
    """One file, renamed into place: statistics, top examples and the windows behind them always agree."""
    tensors = {
        f"stats|{f}|{n}": t.cpu() for n, s in state.stats.items() for f, t in s.tensors.items()
    }
    for name, top in state.top.items():
        tensors |= {f"top|value|{name}": top.value, f"top|position|{name}": top.position}
    headers = {name: stats.header for name, stats in state.stats.items()}
    save_tensors(
        partial / _STATE, tensors, {"headers": headers, "done": state.done, "threads": threads}
    )


def _start(
    device: str, dictionaries: Sequence[Dictionary], headers: dict[str, dict[str, Any]], plan: Plan
) -> _State:
    state = _State({}, {}, [])
    for d in dictionaries:
        labels, header = plan.corpus.labels, headers[d.id]
        state.stats[d.id] = Stats.zeros(labels, d.width, signed=d.signed, device=device, **header)
        if not d.signed:
            state.top[d.id] = TopExamples.zeros(d.width)
    return state


def _resume(
    lm: LanguageModel,
    partial: Path,
    dictionaries: Sequence[Dictionary],
    headers: dict[str, dict[str, Any]],
    plan: Plan,
    windows: list[int],
    progress: Progress,
) -> _State:
    state = _start(lm.device, dictionaries, headers, plan)
    path = partial / _STATE
    if not path.exists():
        return state
    tensors, header = load_tensors(path)
    before = {name: comparable(one) for name, one in header["headers"].items()}
    now = {name: comparable(one) for name, one in headers.items()}
    if before != now or not set(header["done"]) <= set(windows):
        raise UserError(
            f"{partial.parent} holds an unfinished collection of something else; choose another --out"
        )
    lm.say_threads(header, "the collection", progress)
    state.done = header["done"]
    for key, tensor in tensors.items():
        kind, field, name = key.split("|", 2)
        if kind == "stats":
            state.stats[name].tensors[field].copy_(tensor)
        else:
            setattr(state.top[name], field, tensor)
    return state


# --------------------------------------------------------------------------- bags as files


_BAG_TYPES = {
    "example": torch.int64,
    "unit": torch.int32,
    "tokens": torch.int32,
    "sum": torch.float64,
    "min": torch.float32,
    "max": torch.float32,
}


def write_bags(
    path: Path, parts: list[Bag], positions: list[int], corpus: Corpus, dictionary: str
) -> None:
    """Parquet rows example (position in the corpus), label, unit, tokens, sum, min, max of one window.

    `sum` is float64, exact in steps of 2^-20. `positions`: of the examples of all parts, in their
    order.
    """
    import pyarrow as pa

    columns: dict[str, Tensor] = {
        name: torch.zeros(0, dtype=kind) for name, kind in _BAG_TYPES.items()
    }
    if parts:
        rows = concat([part.rows() for part in parts])
        assert rows.example is not None and rows.unit is not None
        at = torch.tensor(positions, dtype=torch.int64)
        found = (
            at[rows.example.cpu()],
            rows.unit,
            rows.tokens,
            rows.sum.double() * STEP,
            rows.min,
            rows.max,
        )
        columns = {
            name: c.to("cpu", _BAG_TYPES[name]) for name, c in zip(_BAG_TYPES, found, strict=True)
        }
    arrays: dict[str, Any] = {name: column.numpy() for name, column in columns.items()}
    rows_of = {label: k for k, label in enumerate(corpus.labels)}
    code_of = torch.zeros(len(corpus), dtype=torch.int32)
    code_of[positions] = torch.tensor([rows_of[corpus.of[i]] for i in positions], dtype=torch.int32)
    codes = pa.array(code_of[columns["example"]].numpy())
    arrays["label"] = pa.DictionaryArray.from_arrays(
        codes, pa.array(list(corpus.labels), pa.string())
    )
    order = ("example", "label", "unit", "tokens", "sum", "min", "max")
    _write_table(path, pa.table({name: arrays[name] for name in order}), dictionary, corpus.labels)


# --------------------------------------------------------------------------- merge


def merge(sources: Sequence[Path], out: Path) -> list[str]:
    """Merge directories of statistics of shards into `out`, which appears at once. Returns warnings (missing windows).

    Raises UserError for statistics of different models, dictionaries or corpora, for windows
    counted twice, and for bags or examples that some of them lack.
    """
    if not sources:
        raise UserError("name at least one directory of statistics to merge")
    names = {source: sorted(p.name for p in source.glob("[!.]*.safetensors")) for source in sources}
    for source in sources:
        if not names[source]:
            raise UserError(f"{source} holds no statistics")
        if (source / "partial").exists():
            raise UserError(f"{source} is unfinished; run its collect again first")
        if names[source] != names[sources[0]]:
            raise UserError(f"{source} and {sources[0]} hold statistics of different dictionaries")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already and is not empty; choose another --out")
    with replacing(out) as temporary:
        for name in names[sources[0]]:
            _merge_one(sources, name, temporary)
        # A shard without windows has no bags to write.
        full = [
            source for source in sources if Stats.read_header(source / names[source][0])["windows"]
        ]
        for source in _all_or_none(full, "bags"):
            shutil.copytree(source / "bags", temporary / "bags", dirs_exist_ok=True)
        header = Stats.read_header(temporary / names[sources[0]][0])
    gap = sorted(set(range(header["window_count"])) - set(header["windows"]))
    return (
        [f"{len(gap)} of {header['window_count']} windows are in no shard, the first is {gap[0]}"]
        if gap
        else []
    )


def _merge_one(sources: Sequence[Path], name: str, out: Path) -> None:
    """Merge statistics and examples of one dictionary."""
    total = Stats.load(sources[0] / name)
    for source in sources[1:]:
        other = Stats.load(source / name)
        check_mergeable(total, other, str(source / name))
        total = total.merge(other)
    total.save(out / name)
    file = Path("examples", f"{total.dictionary}.parquet")
    found = [source / file for source in _all_or_none(sources, file)]
    if found:
        merge_examples(found, out / file, total.dictionary, total.labels)


def _all_or_none(sources: Sequence[Path], part: str | Path) -> Sequence[Path]:
    have = [source for source in sources if (source / part).exists()]
    lack = [source for source in sources if source not in have]
    if have and lack:
        raise UserError(f"{lack[0]} has no {part}, but {have[0]} has; collect both alike")
    return have


__all__ = [
    "TopExamples",
    "bags_path",
    "check_ids",
    "collect",
    "encode_batches",
    "merge",
    "merge_examples",
    "write_bags",
]
