"""Run the experiments of all papers (`saefeat reproduce`) on a small run of the embedded model.

    python scripts/reproduce_papers.py WORK [--labels en,de,th] [--papers lape,code] [--out FILE]

WORK holds the run and keeps what is done: run it again to resume. The result has the summary of
each experiment, and the seconds that each paper took.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import by_commas, choose_parts, flags, options, parse, record

from saefeat.experiments.papers import PAPERS, Step
from saefeat.selection import Selection


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--labels", default="en,de,th")
    parser.add_argument("--papers", default=",".join(PAPERS), help="separated by commas")
    arguments = parse(parser)
    papers, run = choose_parts(parser, arguments.papers, tuple(PAPERS)), arguments.work / "run"
    call("demo", *flags(labels=arguments.labels, out=run))
    found: dict[str, Any] = {}
    for name in papers:
        begun = time.monotonic()
        code = call("reproduce", name, "--do", *flags(run=run))
        seconds = round(time.monotonic() - begun, 1)
        steps = {step.name: summary(step, step.result(name, run)) for step in PAPERS[name].steps}
        found[name] = {"exit": code, "seconds": seconds, "steps": steps}
        record(arguments, {"labels": by_commas(arguments.labels), "papers": found})


def call(*words: str) -> int:
    return subprocess.run([sys.executable, "-m", "saefeat", *words], check=False).returncode


def summary(step: Step, path: Path) -> Any:
    """What an experiment has found, in a few rows; None where it was left out."""
    if not path.exists():
        return None
    if path.suffix == ".parquet":
        selection = Selection.load(path)
        return {label: len(selection.for_label(label)) for label in selection.labels}
    found = json.loads(path.read_text())
    if "heads" in found:  # of identification
        return {head: figures["accuracy"] for head, figures in found["heads"].items()}
    return found["summary"] if "summary" in found else found["baseline"]


if __name__ == "__main__":
    main()
