"""`saefeat steer`: generate, sweep, matrix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from saefeat.cli.common import Labels, Run, Seed, Source, by_commas, input_lines, say
from saefeat.io import UserError, read_json

app = typer.Typer(no_args_is_help=True, help="Steer generation with features, and measure it.")

NewTokens = Annotated[int, typer.Option(min=1, help="Tokens to generate.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]


def _bench(
    run: Path, source: str | None, new_tokens: int = 24, temperature: float = 0.8, seed: int = 0
) -> Any:
    from saefeat.config import Decoding
    from saefeat.run import open_run, set_threads
    from saefeat.run.steer import Bench, find_source

    set_threads()
    setting = open_run(run, say)
    return Bench(
        setting, find_source(setting, source), Decoding(new_tokens, temperature, seed=seed)
    )


@app.command("generate")
def steer_generate(
    run: Run,
    label: Annotated[str, typer.Option(help="The label to steer towards.")],
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts, one a line.")] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="Default the label's best; 1 is the difference of means, negative suppresses."
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="features, diffmean, neurons or random.")
    ] = "features",
    source: Source = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put prompts through the model's chat template.")
    ] = False,
    max_new_tokens: NewTokens = 24,
    temperature: Temperature = 0.8,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Continue prompts, steered and unsteered side by side."""
    from dataclasses import replace

    from saefeat.run.steer import continue_prompts, load_recipe
    from saefeat.steering import check_strength

    if bool(prompt) == (prompts is not None):
        raise UserError("give --prompt (once or more), or --prompts FILE")
    if strength is not None:
        check_strength(strength)
    from saefeat.corpora import clean_text

    texts = (
        [clean_text(text) for text in prompt or ()] if prompts is None else _prompt_lines(prompts)
    )
    if not texts:
        raise UserError(f"{prompts} holds no prompt; write one a line")
    bench = _bench(run, source, max_new_tokens, temperature, seed)
    recipe = load_recipe(bench, label, method)
    if strength is not None:
        recipe = replace(recipe, strength=strength)
    for row in continue_prompts(bench, label, texts, recipe, chat=chat):
        typer.echo(json.dumps(row, ensure_ascii=False) if as_json else _side_by_side(row))


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
def steer_sweep(
    run: Run,
    out: Annotated[Path, typer.Option(help="Metrics; RUN/steering/metrics.json is the report's.")],
    sites: Annotated[
        str | None, typer.Option(help="Where SAEs steer, by commas; default by depth.")
    ] = None,
    strengths: Annotated[
        str | None, typer.Option(help="Of vectors, by commas; default by how many sites.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="By commas; default all; features always are among them.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of prompts, one a line; default 64 in English.")
    ] = None,
    labels: Labels = None,
    source: Source = None,
    max_new_tokens: NewTokens = 24,
    temperature: Temperature = 0.8,
    seed: Seed = 0,
) -> None:
    """Every method, site, schedule and strength: tuned by label on half of the prompts, reported on the other half."""
    from saefeat.labels import fasttext_code
    from saefeat.run.grids import english_prompts, full_grid
    from saefeat.run.steer import steering_sites, stream_sites
    from saefeat.run.sweep import Metrics, sweep
    from saefeat.schema import read

    forces = tuple(_number(text) for text in by_commas(strengths) or ()) or None
    lines = english_prompts() if prompts is None else _prompt_lines(prompts)
    if max_new_tokens < 6:
        raise UserError(
            "--max-new-tokens is less than 6; perplexity is measured from the 6th new token on"
        )
    if len(lines) < 2:
        raise UserError(f"{prompts} holds fewer than two prompts; half of them tune, half report")
    _check_own(out, "summary")
    bench = _bench(run, source, max_new_tokens, temperature, seed)
    if prompts is None and fasttext_code(bench.source_label) != "en":
        raise UserError(
            f"the prompts at hand are English, but the source is {bench.source_label}; give --prompts FILE"
        )
    given = by_commas(sites)
    groups = (
        [given]
        if given
        else _distinct([steering_sites(bench.setting), stream_sites(bench.setting)])
    )
    for site in given or ():
        bench.builder.saes_at(site)
    names = (
        None if labels is None else [bench.find_target(name) for name in by_commas(labels) or ()]
    )
    grid = full_grid(bench.setting.lm, groups, forces)
    if methods is not None:
        known = {"none", *(recipe.method for recipe in grid)}
        if unknown := set(by_commas(methods) or ()) - known:
            raise UserError(
                f"there is no method {min(unknown)}; the methods are {', '.join(sorted(known))}"
            )
        grid = [
            recipe for recipe in grid if recipe.method in {"features", *(by_commas(methods) or ())}
        ]
    path = sweep(bench, grid, lines, out, labels=names)
    print_steering(read(Metrics, path))


def _distinct(groups: list[list[str]]) -> list[list[str]]:
    return [group for i, group in enumerate(groups) if group not in groups[:i]]


def _number(text: str) -> float:
    from saefeat.steering import check_strength

    try:
        value = float(text)
    except ValueError as error:
        raise UserError(f"the strength {text!r} is not a number") from error
    check_strength(value)
    return value


@app.command("matrix")
def steer_matrix(
    run: Run,
    out: Annotated[
        Path, typer.Option(help="Where to write; RUN/steering/matrix.json is the report's.")
    ],
    sentences: Annotated[int, typer.Option(min=1, help="Test texts a label.")] = 100,
    top: Annotated[int, typer.Option(min=1, help="Features of a label at each SAE.")] = 100,
    edits: Annotated[str, typer.Option(help="By commas: ablate, amplify.")] = "ablate,amplify",
) -> None:
    """The perplexity change matrix: ablate and amplify each label's units, measure every label's text."""
    from saefeat.run import open_run, set_threads
    from saefeat.run.matrix import EDITS, matrix, most_affected

    _check_own(out, "interventions")
    chosen = by_commas(edits) or ()
    if unknown := set(chosen) - set(EDITS):
        raise UserError(
            f"there is no edit {min(unknown)} for the matrix; there are {', '.join(EDITS)}"
        )
    set_threads()
    result = matrix(open_run(run, say), out, sentences=sentences, top=top, edits=chosen)
    for edit in chosen:
        own = most_affected(result, edit)
        typer.echo(
            f"{edit}: the own median NLL rises most for {len(own)} of {len(result['labels'])} labels"
        )


def _check_own(out: Path, key: str) -> None:
    """Only what the same command wrote is written over."""
    if out.exists():
        found = read_json(out)
        if not isinstance(found, dict) or key not in found:
            raise UserError(f"{out} exists and holds something else; choose another --out")


def print_steering(metrics: Any) -> None:
    typer.echo(f"{metrics['prompts']} prompts, mean over {len(metrics['own'])} labels")
    typer.echo(
        f"{'':10}{'score':>7}{'95 %':>16}{'forcing':>9}{'perplexity':>12}{'distinct3':>11}{'reached':>9}"
    )
    for row in metrics["summary"]:
        low, high = row["score_ci"]
        perplexity, distinct3 = (
            "-" if row[name] is None else f"{row[name]:.{places}f}"
            for name, places in (("perplexity", 1), ("distinct3", 3))
        )
        typer.echo(
            f"{row['method']:10}{row['score']:>7.3f}{f'{low:.3f} - {high:.3f}':>16}{row['forcing']:>9.3f}"
            f"{perplexity:>12}{distinct3:>11}{row['reached']:>9}"
        )
