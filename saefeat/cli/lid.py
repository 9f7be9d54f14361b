"""`saefeat lid`: fit, evaluate, predict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from saefeat.cli.common import (
    IdColumn,
    LabelColumn,
    Labels,
    Run,
    TextColumn,
    by_commas,
    input_lines,
    say,
)
from saefeat.io import UserError, understood

app = typer.Typer(no_args_is_help=True, help="Identify languages with features, and measure it.")


@app.command("fit")
def lid_fit(
    run: Run,
    force: Annotated[
        bool, typer.Option("--force", help="Fit again what is fitted already.")
    ] = False,
) -> None:
    """Fit the heads of a run."""
    from saefeat.run import fit_heads, open_run, set_threads

    set_threads()
    fit_heads(open_run(run, say), force=force)
    typer.echo(run / "lid")


@app.command("evaluate")
def lid_evaluate(
    run: Run,
    corpus: Annotated[
        str | None, typer.Option(help="Another corpus; default the run's own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Metrics; default RUN/lid/metrics.json for the own corpus.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="test or all; default test for the own corpus.")
    ] = None,
    labels: Labels = None,
    max_texts: Annotated[
        int | None, typer.Option(min=1, help="At most this many texts a label.")
    ] = None,
    fasttext: Annotated[
        Path | None, typer.Option(help="lid.176.bin or .ftz; default the embedded one.")
    ] = None,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    id_column: IdColumn = "id",
) -> None:
    """Measure every head and baseline, whole texts and by length."""
    from saefeat.corpora import load_corpus
    from saefeat.run import evaluate, open_run, set_threads
    from saefeat.run.setting import same_request

    if corpus is not None and out is None:
        raise UserError("another corpus needs --out for its metrics")
    set_threads()
    columns: dict[str, Any] = {
        "text_column": text_column,
        "label_column": label_column,
        "id_column": id_column,
    }
    setting = open_run(run, say)
    other = None
    if corpus is not None:
        asked = replace(setting.config, corpus=corpus, **columns)
        own = setting.corpus.labels if same_request(asked, setting.config) else None
        other = load_corpus(corpus, labels=by_commas(labels) or own, say=say, **columns)
    if other is not None and other.fingerprint == setting.corpus.fingerprint:
        other = None  # the run's own corpus by its name: only its test split was never seen
    chosen = split or ("test" if other is None else "all")
    target = out or run / "lid" / "metrics.json"
    metrics = evaluate(
        setting, other, split=chosen, out=target, max_texts=max_texts, fasttext=fasttext
    )
    understood(target, lambda: print_metrics(metrics))  # an earlier call may have written them
    if out is None:
        from saefeat.report import write_report

        typer.echo(f"report: {write_report(run)}")


def print_metrics(metrics: Mapping[str, Any]) -> None:
    lengths = [key for key in metrics["by_length"] if key != "all"]
    typer.echo(f"{metrics['corpus']} ({metrics['split']}), {metrics['n']} texts, macro-F1")
    typer.echo(
        f"{'':20}{'whole':>8}{'95 %':>16}" + "".join(f"{'first ' + key:>10}" for key in lengths)
    )
    for name, head in metrics["heads"].items():
        low, high = head["f1_macro_ci"]
        short = "".join(
            f"{metrics['by_length'][key]['heads'][name]['f1_macro']:>10.3f}" for key in lengths
        )
        typer.echo(f"{name:20}{head['f1_macro']:>8.3f}{f'{low:.3f} - {high:.3f}':>16}{short}")


@app.command("predict")
def lid_predict(
    run: Run,
    file: Annotated[
        Path | None, typer.Argument(help="One text a line; default or -: standard input.")
    ] = None,
    head: Annotated[str, typer.Option(help="Which head.")] = "linear",
) -> None:
    """One JSON object a line: text, label (null where nothing can be said), score, the units that decided."""
    from saefeat.run import choose_head, open_run, predict, set_threads

    set_threads()
    texts = input_lines(file)
    setting = open_run(run, say, with_corpus=False)
    chosen = choose_head(setting, head)
    for start in range(0, len(texts), 1024):
        for row in predict(setting, texts[start : start + 1024], chosen):
            typer.echo(json.dumps(row, ensure_ascii=False))
