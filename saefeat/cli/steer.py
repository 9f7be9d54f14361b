"""`saefeat steer`: generation, its measures, and experiments with edited units."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saefeat.cli.common import (
    Fields,
    Result,
    Run,
    input_lines,
    load_run,
    print_experiment,
    print_rows,
    say,
    with_options,
)
from saefeat.config import (
    FEATURES,
    MATRIX_EDITS,
    RANDOM,
    UNSTEERED,
    AblateConfig,
    AmplifyConfig,
    ArithmeticConfig,
    AttributionConfig,
    CategoriesConfig,
    Decoding,
    FallbackConfig,
    GenerateConfig,
    HarnessConfig,
    LSSConfig,
    MatrixConfig,
    ScoreConfig,
    SweepConfig,
    TranslateConfig,
)
from saefeat.io import UserError

if TYPE_CHECKING:
    from saefeat.artefacts.steering import SteeringMetrics

app = typer.Typer(no_args_is_help=True, help="Steer generation with features, and measure it.")

Sampling = Annotated[Decoding, Fields("max_new_tokens", "temperature", "seed")]
_WIDTHS = "{:15}{:>7}{:>16}{:>12}{:>9}{:>12}{:>11}{:>9}"  # of the columns of metrics


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
    from saefeat.run.continuation import continue_prompts
    from saefeat.run.recipes import choose_recipe

    texts = _prompts(prompt, prompts)
    bench = _bench(run, config.source, decoding)
    recipe = choose_recipe(bench, config.label, config)
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
    asked = config.labels
    labels = None if asked is None else [bench.find_target(name, "labels") for name in asked]
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
    grid = full_grid(bench.opened.lm, groups, config.strengths, config.sites)
    if config.methods == ("all",):
        return grid
    known = sorted({UNSTEERED, *(recipe.method for recipe in grid)})
    for name in config.methods:
        if name not in known:
            raise UserError(
                f"there is no method {name}; the methods are all, {', '.join(known)}", "methods"
            )
    return [recipe for recipe in grid if recipe.method in {FEATURES, RANDOM, *config.methods}]


@app.command("matrix")
@with_options
def steer_matrix(
    run: Run,
    out: Annotated[Path, typer.Option(help="Result; the report reads RUN/steering/matrix.json.")],
    config: MatrixConfig,
) -> None:
    """Measure how editing the features of each label changes the perplexity of all labels."""
    from saefeat.run.matrix import lost_cells, matrix, most_affected

    if unknown := set(config.edits) - set(MATRIX_EDITS):
        raise UserError(
            f"there is no edit {min(unknown)} for the matrix; there are {', '.join(MATRIX_EDITS)}",
            "edits",
        )
    result = matrix(load_run(run), out, config)
    for edit in config.edits:
        own = most_affected(result, edit)
        typer.echo(
            f"{edit}: the median NLL of a label's own text rises most for {len(own)} of "
            f"{len(result['labels'])} labels"
        )
        if lost := lost_cells(result, edit):
            typer.echo(f"{edit}: {lost} losses became infinite or no number, and have no figures")


@app.command("arithmetic")
@with_options
def steer_arithmetic(
    run: Run, config: ArithmeticConfig, decoding: Sampling, out: Result = None
) -> None:
    """Switch one label's units off and another's on; the table is source by target.

    The paper decodes with --temperature 0 --repetition-penalty 1.1 --max-new-tokens 256.
    """
    from saefeat.experiments.arithmetic import arithmetic

    print_experiment(arithmetic(load_run(run), config, decoding, out))


@app.command("fallback")
@with_options
def steer_fallback(
    run: Run, config: FallbackConfig, decoding: Sampling, out: Result = None
) -> None:
    """Switch off the units of one label after the other, and see which language comes next.

    The paper decodes with --temperature 0 --repetition-penalty 1.1 --max-new-tokens 128.
    """
    from saefeat.experiments.fallback import fallback

    print_experiment(fallback(load_run(run), config, decoding, out))


@app.command("ablate")
@with_options
def steer_ablate(run: Run, config: AblateConfig, out: Result = None) -> None:
    """Set units of each label to zero, and measure the loss of every label's text."""
    from saefeat.experiments.ablation import ablate_sets

    print_experiment(ablate_sets(load_run(run), config, out))


@app.command("lss")
@with_options
def steer_lss(
    run: Run,
    config: LSSConfig,
    facts: Annotated[
        Path | None,
        typer.Option(help="Facts (.csv, .tsv, .jsonl, .parquet); default embedded capitals."),
    ] = None,
    out: Result = None,
) -> None:
    """Amplify units, and count how often the model then prefers the target's word (LSS)."""
    from saefeat.experiments.lss import lss

    print_experiment(lss(load_run(run), config, facts, out))


@app.command("amplify")
@with_options
def steer_amplify(run: Run, config: AmplifyConfig, out: Result = None) -> None:
    """Amplify the units of each label, and measure the likelihood of all labels' text."""
    from saefeat.experiments.amplification import amplify

    print_experiment(amplify(load_run(run), config, out))


@app.command("attribute")
@with_options
def steer_attribute(run: Run, config: AttributionConfig, out: Result = None) -> None:
    """Attribute the next token to classes of units, layer by layer."""
    from saefeat.experiments.attribution import attribute

    print_experiment(attribute(load_run(run), config, out))


@app.command("categories")
@with_options
def steer_categories(run: Run, config: CategoriesConfig, out: Result = None) -> None:
    """Switch off classes of units; measure the loss of every label, and answers."""
    from saefeat.experiments.categories import categories

    print_experiment(categories(load_run(run), config, out))


@app.command("score")
@with_options
def steer_score(
    file: Annotated[Path, typer.Argument(help="Table: .jsonl, .csv, .tsv or .parquet.")],
    config: ScoreConfig,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line.")
    ] = False,
) -> None:
    """Score texts that should be in a label: forcing, language confusion, CLaS-Bench's score."""
    from saefeat.scoring import score_file

    rows = score_file(file, config, say)
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row, ensure_ascii=False))
        return
    shown = [{**row, "label": row["label"] or "all"} for row in rows]
    print_rows(shown)
    if not rows[-1]["rated"]:
        typer.echo(
            "no text has a rating of its quality, so there is no score; give --rating-column, "
            "--judge-command or --model"
        )


@app.command("translate")
@with_options
def steer_translate(
    run: Run,
    config: TranslateConfig,
    decoding: Annotated[
        Decoding,
        Fields(
            "max_new_tokens",
            "temperature",
            "seed",
            preset={"max_new_tokens": 128, "temperature": 0.0},
        ),
    ],
    out: Result = None,
) -> None:
    """Translate a table, steered and unsteered: share in the language, BLEU, chrF."""
    from saefeat.experiments.translate import translate

    print_experiment(translate(load_run(run), config, decoding, out))


@app.command("lm-eval")
@with_options
def steer_lm_eval(run: Run, config: HarnessConfig, out: Result = None) -> None:
    """Measure tasks of lm-evaluation-harness, steered and unsteered."""
    from saefeat.experiments.harness import lm_eval

    print_experiment(lm_eval(load_run(run), config, out))


def print_steering(metrics: SteeringMetrics) -> None:
    """Print the summary of each method."""
    own = metrics["own"].values()
    alone = fmean(one["perplexity"] for one in own)
    after = [known for one in own if (known := one.get("perplexity_in_context"))]
    words = f", after the prompts {fmean(after):.1f}" if after else ""
    typer.echo(
        f"{metrics['prompts']} prompts, mean over {len(own)} labels; perplexity of the model's own "
        f"text {alone:.1f}{words}"
    )
    columns = ("", "score", "95 %", "in context", "forcing", "perplexity", "distinct3", "reached")
    typer.echo(_WIDTHS.format(*columns))
    for row in metrics["summary"]:
        low, high = row["score_ci"]
        cells = [row["method"], f"{row['score']:.3f}", f"{low:.3f} - {high:.3f}"]
        cells += [
            _number(row.get("score_in_context"), 3),
            f"{row['forcing']:.3f}",
            _number(row["perplexity"], 1),
        ]
        typer.echo(_WIDTHS.format(*cells, _number(row["distinct3"], 3), row["reached"]))
