"""Commands on damaged files: corpora, configurations, weights, and every artefact of a run."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from common import flags
from mutations import copy, mutate
from processes import Ended, call

# From a place to work in and a generator to the file to damage and a command that reads it.
Maker = Callable[[Path, Random], tuple[Path, list[str]]]
Commands = Callable[[Path, Path, Random], list[list[str]]]  # of a run, a place and a generator
_QUESTION = "Wo ist der Bahnhof?\n"


class Inputs:
    """Kinds of malformed input.

    Attributes:
        work: directory with the model, the corpus and the run whose files are damaged.
        reference: the undisturbed run.
        arguments: of the command that has made this run, without its output.
    """

    def __init__(self, work: Path, reference: Path, arguments: list[str]) -> None:
        self.work, self.reference, self.arguments = work, reference, arguments
        lines = (work / "corpus.jsonl").read_text().splitlines()
        self.rows = [json.loads(line) for line in lines][::5]

    def makers(self) -> dict[str, Maker]:
        """Kind of input -> its maker."""
        results = (
            "lid/metrics.json",
            "lid/predictions.parquet",
            "steering/*.json",
            "examples/*",
            "gate.json",
            "steering/samples.jsonl",
        )
        return {
            "corpora": self._corpus,
            "cfg.json": self._of_sae("cfg.json"),
            "weights": self._of_sae("sae_weights.safetensors"),
            "run.json": self._of_run(("run.json",), self._readers),
            "selections": self._of_run(("selections/*.parquet",), self._selection_readers),
            "heads": self._of_run(("lid/*.safetensors",), self._head_readers),
            "statistics": self._of_run(("stats/*.safetensors",), self._statistics_readers),
            "bags": self._of_run(("bags/*/*.parquet",), lambda run, *_: [_fit(run)]),
            "results": self._of_run(results, lambda *given: self._readers(*given)[1:4]),
        }

    def _collect(self, **inputs: Path) -> list[str]:
        given = {"model": self.work / "model", "saes": self.reference / "saes"} | inputs
        return ["collect", *flags(**given, dtype="float32", max_tokens=150)]

    def _corpus(self, place: Path, draw: Random) -> tuple[Path, list[str]]:
        name = draw.choice(("c.jsonl", "c.csv", "c.tsv", "c.parquet", "c"))
        path = write_corpus(place / name, self.rows)
        other = flags(run=self.reference, corpus=path, max_texts=3, out=place / "metrics.json")
        commands = [
            ["corpus", "show", str(path)],
            self._collect(corpus=path, out=place / "out"),
            ["lid", "evaluate", *other],
        ]
        return (path / "de.txt" if path.is_dir() else path), draw.choice(commands)

    def _of_sae(self, file: str) -> Maker:
        def make(place: Path, draw: Random) -> tuple[Path, list[str]]:
            saes = copy(self.reference / "saes", place / "saes")
            path = draw.choice(sorted(saes.iterdir())) / file
            corpus = self.work / "corpus.jsonl"
            command = self._collect(corpus=corpus, saes=saes, out=place / "out")
            return path, command + draw.choice(([], ["--no-gate"]))

        return make

    def _of_run(self, names: tuple[str, ...], commands: Commands) -> Maker:
        def make(place: Path, draw: Random) -> tuple[Path, list[str]]:
            run = copy(self.reference, place / "run")
            files = sorted(path for name in names for path in run.glob(name))
            return draw.choice(files), draw.choice(commands(run, place, draw))

        return make

    def _readers(self, run: Path, place: Path, draw: Random) -> list[list[str]]:
        generate = flags(run=run, label="de", prompt="The old", max_new_tokens=6)
        return [
            ["lid", "predict", *flags(run=run), "-"],
            ["report", str(run)],
            ["steer", "generate", *generate],
            [*self.arguments, *flags(out=run)],
            ["export", str(run), *flags(format="sparsify", out=place / "out")],
            _evaluate(run, place),
        ]

    def _statistics_readers(self, run: Path, place: Path, draw: Random) -> list[list[str]]:
        method = draw.choice(("sae-lape", "lape", "feature-diffmean"))
        rank = ["rank", str(run / "stats"), *flags(method=method)]
        matrix = flags(run=run, sentences=1, out=place / "x.json")
        return [
            [*rank, "--no-lens", *flags(out=place / "s.parquet")],
            [*rank, *flags(out=place / "s.csv")],
            ["merge", str(run / "stats"), *flags(out=place / "merged")],
            _fit(run),
            *self._readers(run, place, draw)[1:4:2],
            ["steer", "matrix", *matrix],
        ]

    def _head_readers(self, run: Path, place: Path, draw: Random) -> list[list[str]]:
        head = draw.choice(("linear", "naive-bayes", "sae-count", "sae-min-max", "neuron-count"))
        predict = ["lid", "predict", *flags(run=run, head=head), "-"]
        return [predict, _evaluate(run, place), _evaluate(run, place)]

    def _selection_readers(self, run: Path, place: Path, draw: Random) -> list[list[str]]:
        out = flags(out=run / "selections" / "sae-lape.parquet")
        rank = ["rank", str(run / "stats"), "--no-lens", *out]
        return [["report", str(run)], _fit(run), rank, _fit(run)]


def _fit(run: Path) -> list[str]:
    return ["lid", "fit", "--force", *flags(run=run)]


def _evaluate(run: Path, place: Path) -> list[str]:
    return ["lid", "evaluate", *flags(run=run, max_texts=2, out=place / "m.json")]


def write_corpus(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write rows in the format of the suffix, or as a directory of LABEL.txt."""
    import pandas

    table = pandas.DataFrame(rows)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix:
        table.to_csv(path, sep="," if path.suffix == ".csv" else "\t", index=False)
    else:
        path.mkdir()
        for label, group in table.groupby("label"):
            (path / f"{label}.txt").write_text("\n".join(group["text"]) + "\n")
    return path


def try_inputs(
    inputs: Inputs,
    numbers: range,
    seed: int,
    report: Callable[[str, str, Ended], None],
    *,
    verbose: bool = False,
) -> dict[str, dict[str, int]]:
    """Run a command on each damaged file.

    Args:
        inputs: kinds of input.
        numbers: of the cases; a number and the seed decide the case.
        seed: of the cases.
        report: is called with the case, the fault and the end of the process.
        verbose: print every case and the last line of its standard error.

    Returns:
        Kind of input -> outcome -> number of cases.
    """
    found: dict[str, Counter[str]] = {}
    makers = inputs.makers()
    place = inputs.work / "case"
    for number in numbers:
        draw = Random(f"{seed} {number}")
        kind = sorted(makers)[number % len(makers)]
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        damaged, argv = makers[kind](place, draw)
        damage = mutate(damaged, draw)
        case = f"{number} {kind} {damaged.relative_to(place)}: {damage}; {' '.join(argv)[:150]}"
        before = _tree(place)
        ended = call(argv, timeout=60, stdin=_QUESTION)
        outcome = {0: "accepted", 2: "refused"}.get(ended.code, "wrong")
        found.setdefault(kind, Counter())[outcome] += 1
        if verbose:
            print(f"{outcome}: {case}\n    {ended.err.strip().splitlines()[-1:]}", flush=True)
        if fault := _fault(ended, before, _tree(place), may_write=argv[0] == "run"):
            report(case, fault, ended)
    return {kind: dict(counts) for kind, counts in sorted(found.items())}


def _fault(ended: Ended, before: dict[str, Any], after: dict[str, Any], *, may_write: bool) -> str:
    """What is wrong with the end of a command on malformed input; "" for nothing."""
    if ended.code not in (0, 2) or ended.traceback:
        return f"ended with {ended.code}"
    if ended.code == 2 and not ended.sentence:
        return "no sentence"
    if ended.code == 2 and (changed := _changed(before, after, may_write=may_write)):
        return f"refused, but {changed}"
    if leftover := [name for name in after if ".tmp" in name]:
        return f"{leftover[0]} is left over"
    return ""


def _tree(place: Path) -> dict[str, bytes | None]:
    """Relative path -> bytes, None for a directory."""
    return {
        str(p.relative_to(place)): p.read_bytes() if p.is_file() else None for p in place.rglob("*")
    }


def _changed(
    before: dict[str, bytes | None], after: dict[str, bytes | None], *, may_write: bool
) -> str:
    """What a refusal changed. A run may have finished stages before the one that refuses."""
    lost = [f"{name} is lost" for name in before.keys() - after.keys()]
    new = [f"{name} is new" for name in after.keys() - before.keys() if after[name] is not None]
    other = [
        f"{name} has changed"
        for name in before.keys() & after.keys()
        if before[name] != after[name]
    ]
    return "; ".join(sorted(lost if may_write else [*lost, *new, *other])[:3])
