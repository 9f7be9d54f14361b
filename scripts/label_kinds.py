"""Try labels of three kinds: from a corpus file to a report, and on to the rules that suit them.

    python scripts/label_kinds.py WORK [--kinds code,docs,cultures] [--out FILE]

- `code`: programming languages. Source files that installed packages ship, found by extension below
  `sys.prefix` and parts of `/usr`, cut into pieces of 40 lines; the id of a piece is its file.
- `docs`: the same paragraphs of GNOME's help (Debian's gnome-user-docs) in five languages;
  translations share their id, as `sharing` needs it.
- `cultures`: sayings, verses and quotations of six cultures (Debian's packages fortunes-XX), a
  folder of LABEL.txt with a text per line, as in MUREL (`saefeat corpus show murel`). Pure culture
  neurons are those of the cultures less those of the languages, found on `embedded:eld`.

WORK keeps corpora, Debian packages, runs and selections. The same command goes on where it stopped.
Recorded are, per kind: where the text came from, its examples and tokens, the units of each label,
macro-F1 of the heads and of the baselines, and what the further rules found.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import choose_parts, flags, options, parse, record, run_python, show
from label_corpora import CULTURES, Missing, write_code, write_cultures, write_docs

from saefeat.rundir import RunDir
from saefeat.selection import Selection

SMOLLM, GEMMA = "embedded:smollm2-135m", "embedded:gemma-3-270m"


@dataclass(frozen=True)
class Kind:
    """A kind of labels: its model, its corpus, and what follows on the run."""

    model: str
    file: str
    write: Callable[[Path, int, Path], dict[str, Any]]
    follow: Callable[[Path, Path, Any], dict[str, Any]]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("work", type=Path, help="folder of everything that is made")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--model", help="of all kinds; default SmolLM2, for cultures Gemma 3")
    parser.add_argument("--per-label", type=int, default=240, help="texts per label")
    parser.add_argument("--max-tokens", type=int, default=8_000, help="of a run, per label")
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--k", type=int, default=32)
    arguments = parse(parser)
    result = {}
    for name in choose_parts(parser, arguments.kinds, tuple(KINDS)):
        try:
            result[name] = try_kind(KINDS[name], arguments.work.resolve() / name, arguments)
        except Missing as error:
            parser.error(str(error))
        show({name: result[name]})
    record(arguments, {"kinds": result})


def try_kind(kind: Kind, work: Path, arguments: Any) -> dict[str, Any]:
    """Write the corpus, run, follow, and gather the figures."""
    work.mkdir(parents=True, exist_ok=True)
    corpus, run, model = work / kind.file, work / "run", arguments.model or kind.model
    source = kind.write(corpus, arguments.per_label, work.parent / "packages")
    start = time.perf_counter()
    size = {name: getattr(arguments, name) for name in ("max_tokens", "d_sae", "k")}
    small = {"train_tokens": arguments.max_tokens, "steer_prompts": 0, "matrix_texts": 0}
    saefeat("run", *flags(model=model, corpus=corpus, out=run, **size, **small))
    found = {"model": model, "source": source, **run_figures(RunDir(run))}
    found |= kind.follow(run, corpus, arguments)
    return found | {"seconds": round(time.perf_counter() - start)}


def saefeat(*command: Any) -> str:
    """Run a command of saefeat, and return what it prints. Ends with its message if it fails."""
    done = run_python("-m", "saefeat", *map(str, command))
    if done.returncode:
        raise SystemExit(f"saefeat {command[0]} failed:\n{done.stderr}")
    return done.stdout


# --------------------------------------------------------------------------- figures


def run_figures(run: RunDir) -> dict[str, Any]:
    """Counts of the corpus, units per label and method, and macro-F1 of a run with its report."""
    if not run.report.is_file():
        raise SystemExit(f"the run {run.root} has no report")
    stats = run.load_stats(run.collected()[0])
    metrics = run.load_lid_metrics()
    lengths = {"whole": metrics["heads"], "20": metrics["by_length"]["20"]["heads"]}
    return {
        "labels": {
            label: {"examples": int(examples), "tokens": int(tokens)}
            for label, examples, tokens in zip(
                stats.labels, stats.examples, stats.tokens, strict=True
            )
        },
        "units": {name: by_label(run.load_selection(name)) for name in run.selected_methods()},
        "test texts": metrics["n"],
        "macro-F1": {
            at: {name: round(head["f1_macro"], 3) for name, head in heads.items()}
            for at, heads in lengths.items()
        },
    }


def by_label(selection: Selection) -> dict[str, int]:
    """Label -> number of units."""
    found = Counter(label for _, _, label in selection.cells())
    return {label: found[label] for label in selection.labels}


def class_shares(selection: Selection) -> dict[str, float]:
    """Class -> mean share of all units of the dictionaries, over the inputs."""
    width = sum(each["width"] for each in selection.dictionaries.values())
    classes = selection.header["classes"]
    return {name: round(sum(of.values()) / width, 4) for name, of in classes.items()}


# --------------------------------------------------------------------------- further rules


def rank(stats: Path, out: Path, method: str, *rest: str) -> Selection:
    saefeat("rank", stats, *flags(method=method, out=out), "--no-lens", *rest)
    return Selection.load(out)


def follow_code(run: Path, corpus: Path, arguments: Any) -> dict[str, Any]:
    """The 400 neurons of lowest entropy per language (arXiv 2506.01074), and classes of neurons."""
    stats, out = run / "stats", run.parent
    neurons = rank(stats, out / "lape-400.parquet", "lape", "-p", "per_label=400")
    classes = rank(stats, out / "ternary.parquet", "ternary")
    return {
        "lape, 400 per label": {"units": by_label(neurons), **spread(neurons)},
        "ternary": {"classes": class_totals(classes), "units": by_label(classes)},
    }


def class_totals(selection: Selection) -> dict[str, float]:
    """Class -> number of units, over all dictionaries."""
    return {name: sum(of.values()) for name, of in selection.header["classes"].items()}


def spread(selection: Selection) -> dict[str, Any]:
    """How many labels own a unit: number of labels -> units."""
    owners = Counter((name, unit) for name, unit, _ in selection.cells())
    return {"owners": {str(n): many for n, many in sorted(Counter(owners.values()).items())}}


def follow_docs(run: Path, corpus: Path, arguments: Any) -> dict[str, Any]:
    """Shares of the classes of `sharing` over parallel paragraphs, for neurons and features."""
    stats, model = run.parent / "patterns", arguments.model or SMOLLM
    extra = flags(model=model, corpus=corpus, saes=run / "saes", out=stats, split="all")
    saefeat("collect", *extra, "--neurons", "--with", "patterns")
    found: dict[str, Any] = {}
    for where in ("last", "any"):
        for units, glob in (("neurons", "mlp_act@*"), ("features", "sae-*")):
            out = run.parent / f"sharing-{units}-{where}.parquet"
            more = ("-p", f"where={where}", "--dictionaries", glob)
            selection = rank(stats, out, "sharing", *more)
            found[f"{units}, {where} token"] = {
                "shares": class_shares(selection),
                "units": by_label(selection),
            }
    return {"sharing": found}


def follow_cultures(run: Path, corpus: Path, arguments: Any) -> dict[str, Any]:
    """Neurons of cultures, of the same languages, of both, and of the culture alone (CAPE)."""
    work, model = run.parent, arguments.model or GEMMA
    labels, stats = ",".join(CULTURES), work / "languages"
    layers = [name for name in RunDir(run).collected() if name.startswith("mlp_act@")]
    few = flags(model=model, corpus="embedded:eld", labels=labels, max_tokens=arguments.max_tokens)
    saefeat("collect", *few, "--neurons", "--out", stats)
    same = [part for name in layers for part in ("--dictionaries", name)]
    cultures, languages = work / "culture.parquet", work / "language.parquet"
    found = {
        "culture": rank(run / "stats", cultures, "lape"),
        "language": rank(stats, languages, "lape", *same),
    }
    for name, operation in (("compound", "intersection"), ("pure culture", "difference")):
        out = work / f"{name.replace(' ', '-')}.parquet"
        saefeat("select", cultures, languages, *flags(op=operation, out=out))
        found[name] = Selection.load(out)
    return {"cape": {name: by_label(selection) for name, selection in found.items()}}


KINDS = {
    "code": Kind(SMOLLM, "corpus.jsonl", lambda out, n, _: write_code(out, n), follow_code),
    "docs": Kind(SMOLLM, "corpus.jsonl", write_docs, follow_docs),
    "cultures": Kind(GEMMA, "corpus", write_cultures, follow_cultures),
}


if __name__ == "__main__":
    main()
