"""Run the experiments of all papers (`saefeat reproduce`) on small runs of the embedded model.

    python scripts/reproduce_papers.py WORK [--labels en,de,th] [--papers lape,code] [--out FILE]

WORK holds the runs and keeps what is done: run it again to resume. Most papers run on a demo of
some languages. `culture` runs on sayings of six cultures, with text of the same languages beside;
`code` on source files of six programming languages, with programs.csv beside, which has the same
programs in four; `sharing` and `mexa` on parallel documentation (see `label_kinds.py` for where
they come from). The result has the summary of each experiment, the published figures beside those
found here, and the seconds that each paper took. Papers that FILE has already are kept, unless they
are asked for by `--papers`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import by_commas, choose_parts, flags, options, parse, record
from label_corpora import CULTURES, Missing, write_code, write_cultures, write_docs, write_lines

from saefeat.corpora import load_corpus
from saefeat.experiments.lenses.programs import read_programs
from saefeat.experiments.papers import PAPERS, Step
from saefeat.experiments.published import choose_published, read_figures
from saefeat.rundir import RunDir
from saefeat.selection import Selection

MODEL = "embedded:gemma-3-270m"
LANGUAGES = "run"  # the run of languages
# Paper -> the run that it needs. All others run on that of languages.
RUNS = {"culture": "cultures", "code": "code", "sharing": "docs", "mexa": "docs"}
CORPORA: dict[str, tuple[str, Callable[[Path, int, Path], Any]]] = {
    "cultures": ("corpus", write_cultures),
    "code": ("corpus.jsonl", lambda out, n, _: write_code(out, n)),
    "docs": ("corpus.jsonl", write_docs),
}
PROGRAMS = Path(__file__).with_name("programs.csv")
SMALL = {
    "d_sae": 1024,
    "train_tokens": 4000,
    "max_tokens": 4000,
    "steer_prompts": 0,
    "matrix_texts": 0,
    "compare_labels": 0,
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--labels", default="en,de,th", help="of the run of languages")
    parser.add_argument("--papers", default=",".join(PAPERS), help="separated by commas")
    parser.add_argument("--per-label", type=int, default=160, help="texts per label of other runs")
    arguments = parse(parser)
    papers = choose_parts(parser, arguments.papers, tuple(PAPERS))
    found = kept(arguments.out)
    for name in papers:
        begun = time.monotonic()
        try:
            run, given = prepare(RUNS.get(name, LANGUAGES), arguments)
        except Missing as error:
            parser.error(str(error))
        needed = {name for step in PAPERS[name].steps for name in step.needs}
        some = {key: value for key, value in given.items() if key in needed}
        give = [word for key, value in some.items() for word in ("--give", f"{key}={value}")]
        code = call("reproduce", name, "--do", *flags(run=run), *give)
        seconds = round(time.monotonic() - begun, 1)
        steps = {step.name: result(step, name, run) for step in PAPERS[name].steps}
        one = {"exit": code, "seconds": seconds, "steps": steps}
        found[name] = json.loads(json.dumps(one).replace(str(arguments.work), "WORK"))
        record(arguments, {"labels": by_commas(arguments.labels), "papers": found})


def kept(out: Path | None) -> dict[str, Any]:
    """The papers that a result has already."""
    if out is None or not out.exists():
        return {}
    return json.loads(out.read_text(encoding="utf-8"))["papers"]


def prepare(kind: str, arguments: Any) -> tuple[Path, dict[str, Any]]:
    """Make a run with its corpus, and what its papers are given, or go on with them."""
    work = arguments.work / kind
    if kind == LANGUAGES:
        call("demo", *flags(labels=arguments.labels, out=work), check=True)
        return work, {}
    name, write = CORPORA[kind]
    corpus, run = work / name, work / "run"
    if not corpus.exists():
        work.mkdir(parents=True, exist_ok=True)
        write(corpus, arguments.per_label, arguments.work / "packages")
    call("run", *flags(model=MODEL, corpus=corpus, out=run, **SMALL), check=True)
    given = {
        "docs": lambda: {"parallel": corpus},
        "cultures": lambda: same_languages(work),
        "code": lambda: translated_programs(work),
    }
    return run, given[kind]()


def translated_programs(work: Path) -> dict[str, Any]:
    """Small programs in four languages, written for this: the table, and a corpus of its cells."""
    corpus = work / "programs.jsonl"
    programs = read_programs(PROGRAMS)
    rows = (
        {"text": program, "label": language, "id": str(i)}
        for language, some in programs.items()
        for i, program in enumerate(some)
    )
    write_lines(corpus, rows)
    return {"programs": PROGRAMS, "parallel": corpus}


def same_languages(work: Path) -> dict[str, Any]:
    """Text of the cultures' languages, and the neurons that are specific to one of them."""
    texts, stats, language = work / "languages.jsonl", work / "languages", work / "language.parquet"
    if not texts.exists():
        corpus = load_corpus("embedded:eld", labels=list(CULTURES))
        rows = zip(corpus.texts, corpus.of, corpus.ids, strict=True)
        write_lines(texts, ({"text": text, "label": of, "id": id_} for text, of, id_ in rows))
    few = flags(model=MODEL, corpus=texts, max_tokens=SMALL["max_tokens"], out=stats)
    call("collect", *few, "--neurons", check=True)
    if not language.exists():
        call("rank", str(stats), *flags(method="lape", out=language), "--no-lens", check=True)
    return {"language": language, "texts": texts}


def call(*words: str, check: bool = False) -> int:
    command = [sys.executable, "-m", "saefeat", *words]
    return subprocess.run(command, check=check).returncode


def result(step: Step, paper: str, run: Path) -> Any:
    """What an experiment has found, in a few rows; None where it was left out."""
    path = step.result(paper, run)
    if not path.is_file():
        return None
    found: dict[str, Any] = {"summary": summary(path)}
    if step.figures:
        model = RunDir(run).load_index()["model"]["name"]
        published, here = choose_published(step.figures, model), read_figures(path)
        found |= {
            "published": {"model": published.model, "data": published.data},
            "figures": {
                measure: {"published": value, "here": here.get(measure)}
                for measure, value in published.figures.items()
            },
        }
    return found


def summary(path: Path) -> Any:
    if path.suffix == ".parquet":
        return Selection.load(path).counts()
    found = json.loads(path.read_text(encoding="utf-8"))
    if "heads" in found:  # of identification
        return {head: figures["accuracy"] for head, figures in found["heads"].items()}
    return found["summary"] if "summary" in found else found["baseline"]


if __name__ == "__main__":
    main()
