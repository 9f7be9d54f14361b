"""Memory and time of loading, planning, training on and collecting corpora of many texts.

    python scripts/bench_stream.py --texts 100000,1000000 --out scripts/results/bench_stream.json

The embedded corpus, repeated with numbers before its texts, is written as Parquet shards. Each
measurement is a process of its own: it loads the corpus, plans, with `--train` trains an SAE, and
with `--collect` collects the statistics of one layer's neurons. Peaks are those of the process's
resident memory, and of the part of it that is no page of a file. The time to the first step is
counted from the start of the process, that is with imports and the model.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import threading
import time
from itertools import count, islice
from pathlib import Path
from typing import Any

from common import by_commas, options, parse, record, run_python, show

_ROWS = 50_000  # of a row group


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--texts", default="100000,1000000", help="numbers of texts, by commas")
    parser.add_argument("--shards", type=int, default=8, help="Parquet files of each corpus")
    parser.add_argument("--max-tokens", type=int, help="budget of a label; default none")
    parser.add_argument("--model", default="embedded:smollm2-135m", help="model")
    parser.add_argument("--turns", type=int, default=2, help="loads of each corpus")
    parser.add_argument("--train", action="store_true", help="train an SAE at mlp_out@5 too")
    parser.add_argument("--chunk-tokens", type=int, default=16_384, help="of the training")
    parser.add_argument("--collect", action="store_true", help="collect too")
    parser.add_argument("--data", type=Path, help="folder of the corpora; default a temporary one")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parse(parser)
    if arguments.one:
        show(measure(arguments))
        return
    folder = arguments.data or Path(tempfile.mkdtemp())
    rows = []
    for number in map(int, by_commas(arguments.texts)):
        corpus = write_corpus(folder / f"{number}-{arguments.shards}", number, arguments.shards)
        for turn in range(arguments.turns):
            rows.append({"texts": number, "turn": turn, **in_process(arguments, corpus)})
            show(rows[-1])
    if arguments.data is None:
        shutil.rmtree(folder)
    record(arguments, {"rows": rows})


def write_corpus(folder: Path, number: int, shards: int) -> Path:
    """Write a corpus of so many texts, if it is not there; a single shard is a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from saefeat.corpora import load_corpus

    done = folder / ("one.parquet" if shards == 1 else f"{shards - 1:05d}.parquet")
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        base = load_corpus("embedded:eld")
        texts = (
            (f"{turn} {text}", label)
            for turn in count()
            for text, label in zip(base.texts, base.of, strict=True)
        )
        for shard in range(shards):
            size = number // shards + (shard < number % shards)
            path = done if shards == 1 else folder / f"{shard:05d}.parquet"
            schema = pa.schema({"text": pa.string(), "label": pa.string()})
            with pq.ParquetWriter(path, schema) as writer:
                for start in range(0, size, _ROWS):
                    some = list(islice(texts, min(_ROWS, size - start)))
                    writer.write_table(pa.table(list(zip(*some, strict=True)), schema))
    return done if shards == 1 else folder


def in_process(arguments: argparse.Namespace, corpus: Path) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [str(Path(__file__).resolve()), "--one", str(corpus), "--model", arguments.model]
    command += ["--chunk-tokens", str(arguments.chunk_tokens)]
    if arguments.max_tokens:
        command += ["--max-tokens", str(arguments.max_tokens)]
    command += [f"--{name}" for name in ("train", "collect") if getattr(arguments, name)]
    done = run_python(*command)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:], "code": done.returncode}
    return json.loads(done.stdout.splitlines()[-1])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load, plan, and perhaps train on and collect one corpus; seconds, and peaks in MB.

    Where other work shares the cores, compare the seconds of the processor.
    """
    from saefeat.corpora import load_corpus, make_plan
    from saefeat.models import load_model

    lm, found, peak = load_model(arguments.model), {}, Peak()
    found["libraries"] = peak.now()
    start, cpu = time.perf_counter(), time.process_time()

    def note(name: str) -> None:
        nonlocal start, cpu
        seconds, used = time.perf_counter() - start, time.process_time() - cpu
        found[name] = {"seconds": round(seconds, 1), "cpu_seconds": round(used, 1), **peak.now()}
        start, cpu = time.perf_counter(), time.process_time()

    corpus = load_corpus(str(arguments.one))
    note("load")
    found["examples"], found["fingerprint"] = len(corpus), corpus.fingerprint
    note("fingerprint")
    plan = make_plan(corpus, lm, max_tokens=arguments.max_tokens, mixed=True)
    note("plan")
    found |= {"chosen": len(plan.tokens), "tokens": plan.total}
    if arguments.train:
        found["first_step"] = train(lm, plan, arguments.chunk_tokens)
        note("train")
    plan = make_plan(corpus, lm, max_tokens=arguments.max_tokens)
    found["windows"] = plan.window_count
    note("plan again")
    if arguments.collect:
        from saefeat.collection import collect
        from saefeat.run.stages import neurons

        with tempfile.TemporaryDirectory() as out:
            collect(lm, plan, neurons(lm, layers=[0]), Path(out))
        note("collect")
    return found


def train(lm: Any, plan: Any, chunk_tokens: int) -> float:
    """Train an SAE; return the seconds from the start of the process to the end of the first step.

    /proc/self/stat has the start in ticks of the clock of the system.
    """
    from saefeat.config import TrainConfig
    from saefeat.sae.train import train_saes
    from saefeat.sae.trainer import Trainer

    step, ends = Trainer.step, []

    def noted(*given: Any) -> None:
        step(*given)
        ends.append(time.clock_gettime(time.CLOCK_BOOTTIME))

    setattr(Trainer, "step", noted)  # noqa: B010
    config = TrainConfig(d_sae=2560, batch_size=1024, chunk_tokens=chunk_tokens)
    with tempfile.TemporaryDirectory() as out:
        train_saes(lm, plan, ["mlp_out@5"], Path(out) / "saes", config)
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return round(ends[0] - ticks / os.sysconf("SC_CLK_TCK"), 1)


class Peak:
    """Watches the memory of this process."""

    def __init__(self) -> None:
        self.anonymous = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            sizes = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
            self.anonymous = max(self.anonymous, *sizes)
            time.sleep(0.05)

    def now(self) -> dict[str, int]:
        """The peaks until now, in MB."""
        whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"peak_mb": whole // 1024, "anonymous_mb": self.anonymous // 1024}


if __name__ == "__main__":
    main()
