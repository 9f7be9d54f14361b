"""`saefeat reproduce`."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saefeat.cli.common import print_table
from saefeat.io import UserError

if TYPE_CHECKING:
    from saefeat.experiments.published import Published


def reproduce(
    paper: Annotated[str | None, typer.Argument(help="A paper; without one, all are listed.")] = (
        None
    ),
    run: Annotated[
        Path | None, typer.Option(help="Run directory, of any model and corpus.")
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--give",
            help="What an experiment needs: NAME=FILE, or NAME=CORPUS as --corpus takes it; may be "
            "repeated.",
        ),
    ] = None,
    do: Annotated[bool, typer.Option("--do", help="Run the experiments.")] = False,
) -> None:
    """List the experiments of a paper with their commands, or run them on a run.

    Run it again to resume. Published figures are shown beside those of the results that are there;
    they are of the paper's model and data.
    """
    from saefeat.experiments.papers import PAPERS, inputs_of
    from saefeat.rundir import RunDir

    if paper is None:
        rows = [["paper", "arXiv", "about"]]
        print_table([*rows, *([name, each.arxiv, each.subject] for name, each in PAPERS.items())])
        return
    if paper not in PAPERS:
        raise UserError(f"there is no paper {paper!r}; choose from {', '.join(PAPERS)}")
    found = PAPERS[paper]
    files = _files(given or [], dict.fromkeys(name for step in found.steps for name in step.needs))
    if do and run is None:
        raise UserError("give the directory of a run to run them on", "run")
    if run is not None and not (run / "run.json").exists():
        raise UserError(f"{run} is not a run directory; make one with `saefeat run`", "run")
    model, inputs = "MODEL", ["--model", "MODEL", "--corpus", "CORPUS"]
    if run is not None:
        index = RunDir(run).load_index()
        model, inputs = index["model"]["name"], inputs_of(index["arguments"])
    typer.echo(f"{found.subject} (arXiv {found.arxiv})\npublished with: {found.used}")
    failed = []
    for step in found.steps:
        typer.echo(f"\n{step.name}: {step.what}")
        if step.published:
            typer.echo(f"  published: {step.published}")
        missing = [name for name in step.needs if name not in files]
        names = files | {name: name.upper() for name in missing}
        words = step.words(paper, run or Path("RUN"), names, inputs)
        typer.echo(f"  saefeat {shlex.join(words)}")
        if do and missing:
            typer.echo(f"  left out: give {', '.join(f'{name}={_kind(name)}' for name in missing)}")
        elif do and run is not None and not _run(words, step.result(paper, run)):
            failed.append(step.name)
        if run is not None and step.figures and (result := step.result(paper, run)).exists():
            _compare(step.figures, result, model)
    if failed:
        raise UserError(f"{', '.join(failed)} failed; the messages above say why")


def _files(given: list[str], needed: Collection[str]) -> dict[str, str]:
    """What the user gives by name.

    Raises UserError for a name that no step needs, no corpus, and no file that exists.
    """
    from saefeat.corpora.corpus import check_name

    found = {}
    for each in given:
        name, equals, value = each.partition("=")
        if equals and name not in needed:
            known = ", ".join(f"{one}={_kind(one)}" for one in needed) or "nothing"
            raise UserError(f"{each}: the experiments of this paper need {known}", "given")
        if equals and _kind(name) == "CORPUS":
            try:
                check_name(value)
            except UserError as error:
                raise UserError(f"{each}: {error}", "given") from error
        elif not equals or not os.path.isfile(value):
            raise UserError(f"{each}: write NAME=FILE with a file that exists", "given")
        found[name] = value
    return found


def _kind(name: str) -> str:
    """What stands behind the name of what the user gives."""
    from saefeat.experiments.papers import CORPORA

    return "CORPUS" if name in CORPORA else "FILE"


def _run(words: list[str], result: Path) -> bool:
    """Run a command in a process of its own; what it prints is shown. Whether it succeeded."""
    result.parent.mkdir(parents=True, exist_ok=True)
    code = subprocess.run([sys.executable, "-m", "saefeat", *words], check=False).returncode
    if code == 130:
        raise KeyboardInterrupt
    return code == 0


def _compare(figures: Sequence[Published], result: Path, model: str) -> None:
    """Print published figures beside those of a result."""
    from saefeat.experiments.published import choose_published, read_figures, same_model

    published, here = choose_published(figures, model), read_figures(result)
    same = same_model(published.model, model)
    of = "the same model" if same else f"another model, {model}: only the order of size compares"
    typer.echo(f"  published of {published.model} ({published.data}); here is {of}")
    rows = [["  measure", "published", "here"]]
    for measure, value in published.figures.items():
        cell = f"{here[measure]:,.5g}" if measure in here else "-"
        rows.append([f"  {measure}", f"{value:,.5g}", cell])
    print_table(rows, right=(1, 2))
