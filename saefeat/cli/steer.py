"""`saefeat steer`: generate, sweep, matrix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saefeat.cli.common import Fields, Run, input_lines, say, with_options
from saefeat.config import MATRIX_EDITS, Decoding, GenerateConfig, MatrixConfig, SweepConfig
from saefeat.io import UserError, read_json

if TYPE_CHECKING:
    from saefeat.artefacts import SteeringMetrics

app = typer.Typer(no_args_is_help=True, help="Steer generation with features, and measure it.")

Sampling = Annotated[Decoding, Fields("max_new_tokens", "temperature", "seed")]
_FIRST_MEASURED = 6  # the new token from which perplexity is measured


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
    from saefeat.steering import check_strength

    if config.strength is not None:
        check_strength(config.strength)
    texts = _prompts(prompt, prompts)
    bench = _bench(run, config.source, decoding)
    recipe = load_recipe(bench, config.label, config.method)
    if config.strength is not None:
        recipe = replace(recipe, strength=config.strength)
    for row in continue_prompts(bench, config.label, texts, recipe, chat=config.chat):
        typer.echo(json.dumps(row, ensure_ascii=False) if as_json else _side_by_side(row))


def _bench(run: Path, source: str | None, decoding: Decoding) -> Any:
    from saefeat.run import open_run, set_threads
    from saefeat.run.steer import Bench, find_source

    set_threads()
    opened = open_run(run, say)
    return Bench(opened, find_source(opened, source), decoding)


def _prompts(given: list[str] | None, file: Path | None) -> list[str]:
    from saefeat.corpora import clean_text

    if bool(given) == (file is not None):
        raise UserError("give --prompt (once or more), or --prompts FILE")
    if file is None:
        return [clean_text(text) for text in given or ()]
    if not (lines := _prompt_lines(file)):
        raise UserError(f"{file} holds no prompt; write one per line")
    return lines


def _prompt_lines(file: Path) -> list[str]:
    return [line for line in input_lines(file) if line.strip()]


def _side_by_side(row: dict[str, Any]) -> str:
    def line(name: str, text: str, judged: str | None, perplexity: float | None) -> str:
        measured = "-" if perplexity is None else f"{perplexity:.1f}"
        return f"  {name:9} [{judged or '-'}, perplexity {measured}] {' '.join(text.split())}"

    return "\n".join(
        [
            row["prompt"],
            line("unsteered", row["twin"], row["judged_twin"], row["perplexity_twin"]),
            line(row["label"], row["text"], row["judged"], row["perplexity"]),
        ]
    )


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
    from saefeat.run.sweep import sweep

    lines = _sweep_prompts(prompts, decoding)
    for strength in config.strengths or ():
        _check_strength(strength)
    _check_replaceable(out, "summary")
    bench = _bench(run, config.source, decoding)
    if prompts is None:
        _check_english(bench.source_label)
    labels = None if config.labels is None else [bench.find_target(name) for name in config.labels]
    path = sweep(bench, _grid(bench, config), lines, out, labels=labels)
    print_steering(bench.run.load_steering_metrics(path))


def _sweep_prompts(file: Path | None, decoding: Decoding) -> list[str]:
    from saefeat.run.grids import english_prompts

    if decoding.max_new_tokens < _FIRST_MEASURED:
        raise UserError(
            f"--max-new-tokens is less than {_FIRST_MEASURED}; perplexity is measured from that "
            "token on"
        )
    lines = english_prompts() if file is None else _prompt_lines(file)
    if len(lines) < 2:
        raise UserError(f"{file} holds fewer than two prompts; half of them tune, half report")
    return lines


def _check_strength(strength: float) -> None:
    from saefeat.steering import check_strength

    check_strength(strength)


def _check_english(source: str) -> None:
    from saefeat.labels import fasttext_code

    if fasttext_code(source) != "en":
        raise UserError(
            f"the default prompts are English, but the source is {source}; give --prompts FILE"
        )


def _grid(bench: Any, config: SweepConfig) -> list[Any]:
    """The recipes that a sweep tries."""
    from saefeat.run.grids import full_grid, steering_sites, stream_sites

    for site in config.sites or ():
        bench.builder.saes_at(site)
    by_depth = [steering_sites(bench.setting), stream_sites(bench.setting)]
    groups = [config.sites] if config.sites else by_depth[: 1 + (by_depth[0] != by_depth[1])]
    grid = full_grid(bench.setting.lm, groups, config.strengths)
    if config.methods is None:
        return grid
    known = {"none", *(recipe.method for recipe in grid)}
    if unknown := set(config.methods) - known:
        raise UserError(
            f"there is no method {min(unknown)}; the methods are {', '.join(sorted(known))}"
        )
    return [recipe for recipe in grid if recipe.method in {"features", *config.methods}]


@app.command("matrix")
@with_options
def steer_matrix(
    run: Run,
    out: Annotated[Path, typer.Option(help="Result; the report reads RUN/steering/matrix.json.")],
    config: MatrixConfig,
) -> None:
    """Measure how editing the features of each label changes the perplexity of all labels."""
    from saefeat.run import open_run, set_threads
    from saefeat.run.matrix import matrix, most_affected

    _check_replaceable(out, "interventions")
    if unknown := set(config.edits) - set(MATRIX_EDITS):
        raise UserError(
            f"there is no edit {min(unknown)} for the matrix; there are {', '.join(MATRIX_EDITS)}"
        )
    set_threads()
    result = matrix(open_run(run, say), out, config)
    for edit in config.edits:
        own = most_affected(result, edit)
        typer.echo(
            f"{edit}: the median NLL of a label's own text rises most for {len(own)} of "
            f"{len(result['labels'])} labels"
        )


def _check_replaceable(out: Path, key: str) -> None:
    """Raises UserError when `out` holds something else than what the same command writes."""
    if out.exists():
        found = read_json(out)
        if not isinstance(found, dict) or key not in found:
            raise UserError(f"{out} exists and holds something else; choose another output", "out")


def print_steering(metrics: SteeringMetrics) -> None:
    """Print the summary of each method."""
    typer.echo(f"{metrics['prompts']} prompts, mean over {len(metrics['own'])} labels")
    typer.echo(
        f"{'':10}{'score':>7}{'95 %':>16}{'forcing':>9}{'perplexity':>12}{'distinct3':>11}"
        f"{'reached':>9}"
    )
    for row in metrics["summary"]:
        low, high = row["score_ci"]
        perplexity, distinct3 = (
            "-" if row[name] is None else f"{row[name]:.{places}f}"
            for name, places in (("perplexity", 1), ("distinct3", 3))
        )
        typer.echo(
            f"{row['method']:10}{row['score']:>7.3f}{f'{low:.3f} - {high:.3f}':>16}"
            f"{row['forcing']:>9.3f}{perplexity:>12}{distinct3:>11}{row['reached']:>9}"
        )
