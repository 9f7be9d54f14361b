"""`saefeat steer`: generate, sweep, matrix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saefeat.cli.common import (
    Fields,
    Result,
    Run,
    input_lines,
    load_run,
    print_experiment,
    with_options,
)
from saefeat.config import (
    FEATURES,
    MATRIX_EDITS,
    UNSTEERED,
    ArithmeticConfig,
    Decoding,
    GenerateConfig,
    MatrixConfig,
    SweepConfig,
)
from saefeat.io import UserError

if TYPE_CHECKING:
    from saefeat.artefacts.steering import SteeringMetrics

app = typer.Typer(no_args_is_help=True, help="Steer generation with features, and measure it.")

Sampling = Annotated[Decoding, Fields("max_new_tokens", "temperature", "seed")]
_WIDTHS = "{:15}{:>7}{:>16}{:>9}{:>12}{:>11}{:>9}"  # of the columns of metrics


@app.command("generate")
@with_options
def steer_generate(
    run: Run,
    config: GenerateConfig,
    decoding: Sampling,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file with one prompt per line.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line.")
    ] = False,
) -> None:
    """Continue prompts, steered and unsteered side by side."""
    from dataclasses import replace

    from saefeat.run.steer import continue_prompts, load_recipe

    texts = _prompts(prompt, prompts)
    bench = _bench(run, config.source, decoding)
    recipe = load_recipe(bench, config.label, config.method)
    if config.strength is not None:
        recipe = replace(recipe, strength=config.strength)
    for row in continue_prompts(bench, config.label, texts, recipe, chat=config.chat):
        typer.echo(json.dumps(row, ensure_ascii=False) if as_json else _side_by_side(row))


def _bench(run: Path, source: str | None, decoding: Decoding) -> Any:
    from saefeat.run.steer import Bench, find_source

    opened = load_run(run)
    return Bench(opened, find_source(opened, source), decoding)


def _prompts(given: list[str] | None, file: Path | None) -> list[str]:
    from saefeat.corpora import clean_text

    if bool(given) == (file is not None):
        raise UserError("give --prompt (once or more), or --prompts FILE")
    if given:
        return [clean_text(text) for text in given]
    if lines := _prompt_lines(file):
        return lines
    raise UserError(f"{file} holds no prompt; write one per line")


def _prompt_lines(file: Path | None) -> list[str]:
    return [line for line in input_lines(file) if line.strip()]


def _side_by_side(row: dict[str, Any]) -> str:
    lines = [row["prompt"]]
    for name, text, end in (("unsteered", row["twin"], "_twin"), (row["label"], row["text"], "")):
        judged, perplexity = row[f"judged{end}"], row[f"perplexity{end}"]
        measured = f"{judged or '-'}, perplexity {_number(perplexity, 1)}"
        lines.append(f"  {name:9} [{measured}] {' '.join(text.split())}")
    return "\n".join(lines)


def _number(value: float | None, places: int) -> str:
    return "-" if value is None else f"{value:.{places}f}"


@app.command("sweep")
@with_options
def steer_sweep(
    run: Run,
    out: Annotated[Path, typer.Option(help="Metrics; the report reads RUN/steering/metrics.json.")],
    config: SweepConfig,
    decoding: Sampling,
    prompts: Annotated[
        Path | None, typer.Option(help="A file with one prompt per line; default 64 in English.")
    ] = None,
) -> None:
    """Try every method, site, schedule and strength.

    Half of the prompts choose the setting of each method and label, the other half are reported.
    """
    from saefeat.labels import fasttext_code
    from saefeat.run.sweep import sweep

    lines = _sweep_prompts(prompts, decoding)
    bench = _bench(run, config.source, decoding)
    if prompts is None and fasttext_code(bench.source_label) != "en":
        raise UserError(
            f"the default prompts are English, but the source is {bench.source_label}; give "
            "--prompts FILE"
        )
    labels = None if config.labels is None else [bench.find_target(name) for name in config.labels]
    budget = config.loss_budget
    path = sweep(bench, _grid(bench, config), lines, out, labels=labels, loss_budget=budget)
    print_steering(bench.run.load_steering_metrics(path))


def _sweep_prompts(file: Path | None, decoding: Decoding) -> list[str]:
    from saefeat.generation import SKIPPED
    from saefeat.run.grids import english_prompts

    if decoding.max_new_tokens <= SKIPPED:
        raise UserError(
            f"--max-new-tokens is less than {SKIPPED + 1}; perplexity is measured from that token "
            "on"
        )
    lines = english_prompts() if file is None else _prompt_lines(file)
    if len(lines) < 2:
        raise UserError(f"{file} holds fewer than two prompts; half of them tune, half report")
    return lines


def _grid(bench: Any, config: SweepConfig) -> list[Any]:
    """The recipes that a sweep tries."""
    from saefeat.run.grids import full_grid, steering_sites, stream_sites

    for site in config.sites or ():
        bench.builder.saes_at(site)
    deep, stream = steering_sites(bench.opened), stream_sites(bench.opened)
    groups = [config.sites] if config.sites else [deep, stream][: 1 + (deep != stream)]
    grid = full_grid(bench.opened.lm, groups, config.strengths)
    if config.methods is None:
        return grid
    known = sorted({UNSTEERED, *(recipe.method for recipe in grid)})
    for name in config.methods:
        if name not in known:
            raise UserError(f"there is no method {name}; the methods are {', '.join(known)}")
    return [recipe for recipe in grid if recipe.method in {FEATURES, *config.methods}]


@app.command("matrix")
@with_options
def steer_matrix(
    run: Run,
    out: Annotated[Path, typer.Option(help="Result; the report reads RUN/steering/matrix.json.")],
    config: MatrixConfig,
) -> None:
    """Measure how editing the features of each label changes the perplexity of all labels."""
    from saefeat.run.matrix import matrix, most_affected

    if unknown := set(config.edits) - set(MATRIX_EDITS):
        raise UserError(
            f"there is no edit {min(unknown)} for the matrix; there are {', '.join(MATRIX_EDITS)}"
        )
    result = matrix(load_run(run), out, config)
    for edit in config.edits:
        own = most_affected(result, edit)
        typer.echo(
            f"{edit}: the median NLL of a label's own text rises most for {len(own)} of "
            f"{len(result['labels'])} labels"
        )


@app.command("arithmetic")
@with_options
def steer_arithmetic(
    run: Run, config: ArithmeticConfig, decoding: Sampling, out: Result = None
) -> None:
    """Switch one label's units off and another's on; the table is source by target."""
    from saefeat.experiments.arithmetic import arithmetic

    print_experiment(arithmetic(load_run(run), config, decoding, out))


def print_steering(metrics: SteeringMetrics) -> None:
    """Print the summary of each method."""
    typer.echo(f"{metrics['prompts']} prompts, mean over {len(metrics['own'])} labels")
    columns = ("", "score", "95 %", "forcing", "perplexity", "distinct3", "reached")
    typer.echo(_WIDTHS.format(*columns))
    for row in metrics["summary"]:
        low, high = row["score_ci"]
        cells = [row["method"], f"{row['score']:.3f}", f"{low:.3f} - {high:.3f}"]
        cells += [f"{row['forcing']:.3f}", _number(row["perplexity"], 1)]
        typer.echo(_WIDTHS.format(*cells, _number(row["distinct3"], 3), row["reached"]))
