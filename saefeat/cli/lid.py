"""`saefeat lid`: fit, evaluate, predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saefeat.cli.common import Run, input_lines, load_run, with_options
from saefeat.config import DEFAULT_HEAD, EvaluateConfig
from saefeat.io import UserError
from saefeat.lid.heads import HEADS

if TYPE_CHECKING:
    from saefeat.artefacts.lid import LIDMetrics

app = typer.Typer(no_args_is_help=True, help="Identify languages with features, and measure it.")
_BATCH = 1024  # texts whose predictions are printed together


@app.command("fit")
def lid_fit(
    run: Run,
    force: Annotated[
        bool, typer.Option("--force", help="Fit heads again that are fitted.")
    ] = False,
) -> None:
    """Fit the heads of a run."""
    from saefeat.run import fit_heads

    opened = load_run(run)
    fit_heads(opened, force=force)
    typer.echo(opened.files.lid)


@app.command("evaluate")
@with_options
def lid_evaluate(
    run: Run,
    config: EvaluateConfig,
    out: Annotated[
        Path | None, typer.Option(help="Metrics; default RUN/lid/metrics.json for the own corpus.")
    ] = None,
    fasttext: Annotated[
        Path | None, typer.Option(help="lid.176.bin or .ftz; default the embedded one.")
    ] = None,
) -> None:
    """Measure every head and baseline, on whole texts and by length."""
    from saefeat.report import write_report
    from saefeat.run import evaluate
    from saefeat.run.opened import other_corpus

    if config.corpus is not None and out is None:
        raise UserError("another corpus needs --out for its metrics")
    opened = load_run(run)
    other, place = other_corpus(opened, config), out or opened.files.lid_metrics
    evaluate(
        opened, other, out=place, split=config.split, max_texts=config.max_texts, fasttext=fasttext
    )
    print_metrics(opened.files.load_lid_metrics(place))
    if out is None:
        typer.echo(f"report: {write_report(run)}")


def print_metrics(metrics: LIDMetrics) -> None:
    """Print macro-F1 of each head, on whole texts and by length."""
    lengths = [key for key in metrics["by_length"] if key != "all"]
    row = "{:20}{:>8}{:>16}" + "{:>10}" * len(lengths)
    typer.echo(f"{metrics['corpus']} ({metrics['split']}), {metrics['n']} texts, macro-F1")
    typer.echo(row.format("", "whole", "95 %", *(f"first {key}" for key in lengths)))
    for name, head in metrics["heads"].items():
        low, high = head["f1_macro_ci"]
        cut = [metrics["by_length"][key]["heads"][name]["f1_macro"] for key in lengths]
        figures = [f"{f1:.3f}" for f1 in (head["f1_macro"], *cut)]
        typer.echo(row.format(name, figures[0], f"{low:.3f} - {high:.3f}", *figures[1:]))


@app.command("predict")
def lid_predict(
    run: Run,
    file: Annotated[
        Path | None, typer.Argument(help="One text per line; default or -: standard input.")
    ] = None,
    head: Annotated[str, typer.Option(help=f"{', '.join(HEADS)}.")] = DEFAULT_HEAD,
) -> None:
    """Print one JSON object per line of text.

    It has the text, the label (null if nothing can be said), the score, and the units that decided.
    """
    from saefeat.run import choose_head, predict

    texts = input_lines(file)
    opened = load_run(run, with_corpus=False)
    chosen = choose_head(opened, head)
    for start in range(0, len(texts), _BATCH):
        for row in predict(opened, texts[start : start + _BATCH], chosen):
            typer.echo(json.dumps(row, ensure_ascii=False))
