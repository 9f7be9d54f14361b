"""Command line: parses, checks input, calls one function. Heavy imports are inside the commands."""

from __future__ import annotations

import errno
import json
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from saefeat.io import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Find, rank and use the language features inside a language model.")  # fmt: skip
lid_app = typer.Typer(no_args_is_help=True, help="Identify languages with features, and measure it.")
app.add_typer(lid_app, name="lid")
steer_app = typer.Typer(no_args_is_help=True, help="Steer generation with features, and measure it.")
app.add_typer(steer_app, name="steer")

Model = Annotated[str, typer.Option("--model", help="Hub id, directory, .gguf file, or embedded:gemma-3-270m.")]
CorpusName = Annotated[str, typer.Option("--corpus", help="embedded:eld, a .jsonl/.csv/.tsv/.parquet file, or a "
                                                          "directory of LABEL.txt.")]  # fmt: skip
Labels = Annotated[str | None, typer.Option("--labels", help="Only these labels, by commas: de,fr,...")]
Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
Run = Annotated[Path, typer.Option("--run", help="Run directory.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option("--dtype", help="Of the model: auto, float32, bfloat16, float16.")]
Seed = Annotated[int, typer.Option("--seed", min=0)]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", min=1, help="Budget of counted tokens a label.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the forecast, and stop.")]
Saes = Annotated[list[str] | None, typer.Option("--saes", help="SAE directory or a folder of them; may be repeated.")]
Source = Annotated[str | None, typer.Option("--source", help="The label that is steered away from; default English.")]
TextColumn = Annotated[str, typer.Option("--text-column")]
LabelColumn = Annotated[str, typer.Option("--label-column")]
IdColumn = Annotated[str, typer.Option("--id-column")]


def say(line: str) -> None:
    """Progress on standard error: one line that is rewritten on a terminal, plain lines elsewhere."""
    if sys.stderr.isatty() and line.startswith(("train: ", "collect: ", "lid: ", "steering: ", "matrix: ")):
        width = max(20, _columns() - 1)
        sys.stderr.write("\r\x1b[K" + line[:width])
        say.open = True  # type: ignore[attr-defined]
    else:
        if getattr(say, "open", False):
            sys.stderr.write("\n")
            say.open = False  # type: ignore[attr-defined]
        sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns


def _split(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise UserError("an option that takes names separated by commas is empty")
    return parts


@app.command()
def demo(
    out: Out,
    model: Model = "embedded:gemma-3-270m",
    labels: Labels = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    dry_run: DryRun = False,
) -> None:
    """The whole path on an embedded model and the embedded text in 15 languages."""
    from saefeat.corpora import PAPER_LABELS
    from saefeat.pipeline import DEMO, RunConfig
    from saefeat.pipeline import run as run_all

    names = _split(labels) or PAPER_LABELS
    config = RunConfig(model, "embedded:eld", labels=names, seed=seed, device=device, dtype=dtype, **DEMO)
    _finish(run_all(config, out, say=say, dry_run=dry_run), out)


@app.command()
def run(
    model: Model,
    corpus: CorpusName,
    out: Out,
    saes: Saes = None,
    labels: Labels = None,
    sites: Annotated[str | None, typer.Option(help="Where to train SAEs, by commas; default by depth.")] = None,
    d_sae: Annotated[int | None, typer.Option(min=16, help="Width of the SAEs; default 4 times d_in.")] = None,
    k: Annotated[int, typer.Option(min=1, help="Active features of a token.")] = 32,
    train_tokens: Annotated[int, typer.Option(min=1, help="Tokens a label for SAE training.")] = 100_000,
    max_tokens: MaxTokens = 50_000,
    eval_texts: Annotated[int | None, typer.Option(min=1, help="Test texts a label; default all.")] = None,
    neuron_layers: Annotated[int | None, typer.Option(min=0, help="Layers whose neurons are counted.")] = None,
    steer_prompts: Annotated[int, typer.Option(min=0, max=64, help="English prompts to steer; 0: do not steer.")] = 16,
    matrix_texts: Annotated[int, typer.Option(min=0, help="Texts a label of the perplexity matrix; 0: none.")] = 10,
    source: Source = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    id_column: IdColumn = "id",
    dry_run: DryRun = False,
) -> None:
    """The whole path on one's own model and corpus; SAEs are trained where none are given."""
    from saefeat.pipeline import RunConfig
    from saefeat.pipeline import run as run_all

    if saes and (sites or d_sae):
        raise UserError("--saes takes SAEs that exist, --sites and --d-sae train new ones: give one or the other")
    config = RunConfig(
        model,
        corpus,
        saes=tuple(saes or ()),
        labels=_split(labels),
        sites=_split(sites),
        d_sae=d_sae,
        k=k,
        train_tokens=train_tokens,
        max_tokens=max_tokens,
        eval_texts=eval_texts,
        neuron_layers=neuron_layers,
        steer_prompts=steer_prompts,
        matrix_texts=matrix_texts,
        source=source,
        seed=seed,
        device=device,
        dtype=dtype,
        text_column=text_column,
        label_column=label_column,
        id_column=id_column,
    )
    _finish(run_all(config, out, say=say, dry_run=dry_run), out)


def _finish(report: Path | None, out: Path) -> None:
    if report is None:
        return
    from saefeat.io import read_json

    _print_metrics(read_json(out / "lid" / "metrics.json"))
    if (out / "steering" / "metrics.json").exists():
        _print_steering(read_json(out / "steering" / "metrics.json"))
    typer.echo(f"report: {report}")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Run directory.")]) -> None:
    """Write RUN/report.html, one self-contained page."""
    from saefeat.report import write_report

    typer.echo(write_report(run))


@app.command()
def fetch(assets: Annotated[list[str] | None, typer.Argument(help="Assets; default all.")] = None) -> None:
    """Embedded assets into the cache (SAEFEAT_CACHE) ahead of time."""
    from saefeat.assets import ASSETS
    from saefeat.assets import fetch as fetch_asset
    from saefeat.models import convert_embedded

    names = assets or list(ASSETS)
    unknown = [name for name in names if name not in ASSETS]
    if unknown:
        raise UserError(f"unknown asset {unknown[0]}; there are {', '.join(ASSETS)}")
    for name in names:
        typer.echo(ASSETS[name].describe())
        path = fetch_asset(name, recheck=True, say=say)
        typer.echo(f"  {path}")
        if path.suffix == ".gguf":
            typer.echo(f"  {convert_embedded(name, path)}")


@app.command()
def train(
    model: Model,
    corpus: CorpusName,
    sites: Annotated[str, typer.Option(help="By commas: mlp_out@13,resid_post@5 or module paths.")],
    out: Out,
    labels: Labels = None,
    d_sae: Annotated[int | None, typer.Option(min=16, help="Width; default --expansion times d_in.")] = None,
    expansion: Annotated[int, typer.Option(min=1)] = 4,
    k: Annotated[int, typer.Option(min=1, help="Active features of a token.")] = 32,
    passes: Annotated[int, typer.Option(min=1, help="How often each activation is used.")] = 2,
    batch_size: Annotated[int, typer.Option(min=16)] = 2048,
    chunk_tokens: Annotated[int, typer.Option(min=16, help="Tokens held in memory.")] = 65_536,
    lr: Annotated[float | None, typer.Option(min=1e-8, help="Default 1e-3 * sqrt(10240 / d_sae).")] = None,
    dead_tokens: Annotated[int | None, typer.Option(min=1, help="Silent so long, a unit is dead.")] = None,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    id_column: IdColumn = "id",
    dry_run: DryRun = False,
) -> None:
    """Train TopK SAEs for several sites from one stream of forward passes; run again to resume."""
    from saefeat.sae.train import TrainConfig, plan_chunks, train_saes

    names = _split(sites) or ()
    config = TrainConfig(k, d_sae, expansion, passes, batch_size, chunk_tokens, lr, dead_tokens=dead_tokens, seed=seed)
    lm, text = _open(model, corpus, labels, device, dtype, (text_column, label_column, id_column))
    from saefeat.corpora import make_plan
    from saefeat.hooks import site_width

    widths = {name: config.width(site_width(lm, lm.site(name))) for name in names}
    plan = make_plan(text, lm, seed=seed, max_tokens=max_tokens, mixed=True)
    _say_plan(lm, text, plan)
    if dry_run:
        chunks = plan_chunks(plan, config)
        say(f"d_sae {widths}, {len(chunks)} chunks, {sum(chunk.steps for chunk in chunks)} steps")
        return
    for sae in train_saes(lm, plan, list(names), out, config, progress=say):
        record = sae.record
        typer.echo(f"{out / sae.id}: d_sae {sae.width}, FVU {record['fvu']:.3f}, L0 {record['l0']:.1f}, "
                   f"dead {record['dead']:.1%}")  # fmt: skip


@app.command()
def collect(
    model: Model,
    corpus: CorpusName,
    out: Out,
    saes: Saes = None,
    neurons: Annotated[bool, typer.Option("--neurons", help="Count the hidden neurons of every layer too.")] = False,
    bags: Annotated[bool, typer.Option("--bags", help="Write bags by example as well.")] = False,
    shard: Annotated[str, typer.Option(help="i/n: take the windows w with w mod n = i.")] = "0/1",
    split: Annotated[str, typer.Option(help="train, test or all.")] = "train",
    count_bos: Annotated[bool, typer.Option("--count-bos", help="Count BOS, as SAE-LAPE was published.")] = False,
    labels: Labels = None,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    id_column: IdColumn = "id",
    dry_run: DryRun = False,
) -> None:
    """Statistics of SAE features and neurons by label; run again to resume."""
    part = _shard(shard)
    if not saes and not neurons:
        raise UserError("nothing to collect: give --saes or --neurons")
    lm, text = _open(model, corpus, labels, device, dtype, (text_column, label_column, id_column))
    from saefeat.corpora import make_plan
    from saefeat.pipeline import collect as collect_all
    from saefeat.sae.store import load_saes

    loaded = load_saes(list(saes), lm) if saes else []
    if dry_run:
        _say_plan(lm, text, make_plan(text, lm, split=split, seed=seed, max_tokens=max_tokens))
        return
    paths = collect_all(lm, text, loaded, out=out, with_neurons=neurons, with_bags=bags, split=split,
                        max_tokens=max_tokens, seed=seed, shard=part, count_bos=count_bos, progress=say)  # fmt: skip
    for path in paths:
        typer.echo(path)


def _shard(text: str) -> tuple[int, int]:
    i, slash, n = text.partition("/")
    if slash and i.isdecimal() and n.isdecimal() and int(i) < int(n):
        return int(i), int(n)
    raise UserError(f"--shard {text} should be i/n with 0 <= i < n")


@app.command()
def merge(
    stats: Annotated[list[Path], typer.Argument(help="Directories of statistics, one a shard.")], out: Out
) -> None:
    """Merge the statistics of shards."""
    from saefeat.collection import merge as merge_all

    for warning in merge_all(stats, out):
        say(f"warning: {warning}")
    typer.echo(out)


@app.command()
def rank(
    stats: Annotated[Path, typer.Argument(help="Directory of statistics.")],
    out: Out,
    method: Annotated[str, typer.Option(help="lape, sae-lape or feature-diffmean.")] = "sae-lape",
    parameters: Annotated[list[str] | None, typer.Option("-p", help="name=value; may be repeated.")] = None,
    dictionaries: Annotated[list[str] | None, typer.Option(help="Patterns of dictionary ids.")] = None,
    show: Annotated[int, typer.Option(min=0, help="Units of each label to print.")] = 3,
    lens: Annotated[bool, typer.Option("--lens/--no-lens", help="Print the tokens that units promote.")] = True,
) -> None:
    """Rank units by how specific they are to a label; writes Parquet, or CSV by the name of --out."""
    from saefeat.methods import parse_parameters
    from saefeat.pipeline import rank as rank_all

    _check_replaceable(out)
    selection = rank_all(stats, method, dictionaries=dictionaries, **parse_parameters(method, parameters or []))
    if out.suffix == ".csv":
        selection.to_csv(out)
    else:
        selection.save(out)
    counts = {label: len(selection.for_label(label)) for label in selection.labels}
    typer.echo(f"{out}: {len(selection)} rows; " + ", ".join(f"{label} {n}" for label, n in counts.items()))
    if show:
        _print_units(stats, selection, show, lens)


def _check_replaceable(out: Path) -> None:
    """Only a selection is written over."""
    from saefeat.selection import COLUMNS, Selection

    if not out.exists():
        return
    try:
        if out.suffix == ".csv":
            with out.open("rb") as file:
                known = file.readline().replace(b'"', b"").strip() == ",".join(COLUMNS).encode()
        else:
            known = bool(Selection.load(out).header)
    except (UserError, OSError):
        known = False
    if not known:
        raise UserError(f"{out} exists and is no selection; choose another --out")


def _print_units(stats: Path, selection: Any, show: int, lens: bool) -> None:
    from saefeat.models import load_model
    from saefeat.pipeline import shown_units
    from saefeat.sae.store import load_sae

    lm, saes = None, {}
    if lens:
        say("loading the model for the tokens that units promote (--no-lens leaves them out)")
        try:
            lm = load_model(selection.header["model"]["name"])
            entries = selection.header["dictionaries"]
            saes = {n: load_sae(_sae_path(e, stats, n)) for n, e in entries.items() if e.get("kind") == "sae"}
        except UserError as error:
            say(f"note: no promoted tokens ({error})")
    folder = stats / "examples" if (stats / "examples").is_dir() else stats.parent / "examples"
    for row in shown_units(lm, selection, saes, folder, show):
        typer.echo(f"{row['label']} {row['rank']}. {row['dictionary']}:{row['unit']}  score {row['score']:.4f}  "
                   f"p {row['probability']:.4f}")  # fmt: skip
        if row["tokens"]:
            typer.echo("    promotes " + " ".join(json.dumps(t, ensure_ascii=False) for t in row["tokens"]))
        for passage in row["passages"][:1]:
            typer.echo(f"    fires on [{passage['label']}] {passage['text'][:160]}")


def _sae_path(entry: dict[str, Any], stats: Path, name: str) -> Path:
    path = Path(entry.get("path") or "")
    return path if (path / "cfg.json").is_file() else stats.parent / "saes" / name


@lid_app.command("fit")
def lid_fit(
    run: Run, force: Annotated[bool, typer.Option("--force", help="Fit again what is fitted already.")] = False
) -> None:
    """Fit the heads of a run."""
    from saefeat.pipeline import fit_heads, open_run, set_threads

    set_threads()
    fit_heads(open_run(run, say), force=force)
    typer.echo(run / "lid")


@lid_app.command("evaluate")
def lid_evaluate(
    run: Run,
    corpus: Annotated[str | None, typer.Option(help="Another corpus; default the run's own.")] = None,
    out: Annotated[Path | None, typer.Option(help="Metrics; default RUN/lid/metrics.json for the own corpus.")] = None,
    split: Annotated[str | None, typer.Option(help="test or all; default test for the own corpus.")] = None,
    labels: Labels = None,
    max_texts: Annotated[int | None, typer.Option(min=1, help="At most this many texts a label.")] = None,
    fasttext: Annotated[Path | None, typer.Option(help="lid.176.bin or .ftz; default the embedded one.")] = None,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    id_column: IdColumn = "id",
) -> None:
    """Measure every head and baseline, whole texts and by length."""
    from saefeat.corpora import load_corpus
    from saefeat.pipeline import evaluate, open_run, set_threads

    if corpus is not None and out is None:
        raise UserError("another corpus needs --out for its metrics")
    set_threads()
    columns = {"text_column": text_column, "label_column": label_column, "id_column": id_column}
    setting = open_run(run, say)
    other = None
    if corpus is not None:
        own = setting.corpus.labels if corpus == setting.config.corpus else None
        other = load_corpus(corpus, labels=_split(labels) or own, **columns)
    if other is not None and other.fingerprint == setting.corpus.fingerprint:
        other = None  # the run's own corpus by its name: only its test split was never seen
    chosen = split or ("test" if other is None else "all")
    target = out or run / "lid" / "metrics.json"
    metrics = evaluate(setting, other, split=chosen, out=target, max_texts=max_texts, fasttext=fasttext)
    _print_metrics(metrics)
    if out is None:
        from saefeat.report import write_report

        typer.echo(f"report: {write_report(run)}")


def _print_metrics(metrics: dict[str, Any]) -> None:
    lengths = [key for key in metrics["by_length"] if key != "all"]
    typer.echo(f"{metrics['corpus']} ({metrics['split']}), {metrics['n']} texts, macro-F1")
    typer.echo(f"{'':20}{'whole':>8}{'95 %':>16}" + "".join(f"{'first ' + key:>10}" for key in lengths))
    for name, head in metrics["heads"].items():
        low, high = head["f1_macro_ci"]
        short = "".join(f"{metrics['by_length'][key]['heads'][name]['f1_macro']:>10.3f}" for key in lengths)
        typer.echo(f"{name:20}{head['f1_macro']:>8.3f}{f'{low:.3f} - {high:.3f}':>16}{short}")


@lid_app.command("predict")
def lid_predict(
    run: Run,
    file: Annotated[Path | None, typer.Argument(help="One text a line; default or -: standard input.")] = None,
    head: Annotated[str, typer.Option(help="Which head.")] = "linear",
) -> None:
    """One JSON object a line: text, label (null where nothing can be said), score, the units that decided."""
    from saefeat.pipeline import choose_head, open_run, predict, set_threads

    set_threads()
    texts = _input_lines(file)
    setting = open_run(run, say, with_corpus=False)
    chosen = choose_head(setting, head)
    for start in range(0, len(texts), 1024):
        for row in predict(setting, texts[start : start + 1024], chosen):
            typer.echo(json.dumps(row, ensure_ascii=False))


NewTokens = Annotated[int, typer.Option(min=1, help="Tokens to generate.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]


def _bench(run: Path, source: str | None, new_tokens: int = 24, temperature: float = 0.8, seed: int = 0) -> Any:
    from saefeat.generation import Decoding
    from saefeat.pipeline import open_run, set_threads
    from saefeat.pipeline.steer import Bench, source_of

    set_threads()
    setting = open_run(run, say)
    return Bench(setting, source_of(setting, source), Decoding(new_tokens, temperature, seed=seed))


@steer_app.command("generate")
def steer_generate(
    run: Run,
    label: Annotated[str, typer.Option(help="The label to steer towards.")],
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts, one a line.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="Default the label's best; 1 is the difference of means, negative suppresses.")
    ] = None,
    method: Annotated[str, typer.Option(help="features, diffmean, neurons or random.")] = "features",
    source: Source = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put prompts through the model's chat template.")] = False,
    max_new_tokens: NewTokens = 24,
    temperature: Temperature = 0.8,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Continue prompts, steered and unsteered side by side."""
    from dataclasses import replace

    from saefeat.pipeline.steer import continuations, recipe_for
    from saefeat.steering import check_strength

    if bool(prompt) == (prompts is not None):
        raise UserError("give --prompt (once or more), or --prompts FILE")
    if strength is not None:
        check_strength(strength)
    from saefeat.corpora import clean_text

    texts = [clean_text(text) for text in prompt or ()] if prompts is None else _prompt_lines(prompts)
    if not texts:
        raise UserError(f"{prompts} holds no prompt; write one a line")
    bench = _bench(run, source, max_new_tokens, temperature, seed)
    recipe = recipe_for(bench, label, method)
    if strength is not None:
        recipe = replace(recipe, strength=strength)
    for row in continuations(bench, label, texts, recipe, chat=chat):
        typer.echo(json.dumps(row, ensure_ascii=False) if as_json else _side_by_side(row))


def _prompt_lines(file: Path) -> list[str]:
    return [line for line in _input_lines(file) if line.strip()]


def _side_by_side(row: dict[str, Any]) -> str:
    def line(name: str, text: str, judged: str | None, perplexity: float | None) -> str:
        measured = "-" if perplexity is None else f"{perplexity:.1f}"
        return f"  {name:9} [{judged or '-'}, perplexity {measured}] {' '.join(text.split())}"

    return "\n".join([
        row["prompt"],
        line("unsteered", row["twin"], row["judged_twin"], row["perplexity_twin"]),
        line(row["label"], row["text"], row["judged"], row["perplexity"]),
    ])  # fmt: skip


@steer_app.command("sweep")
def steer_sweep(
    run: Run,
    out: Annotated[Path, typer.Option(help="Metrics; RUN/steering/metrics.json is the report's.")],
    sites: Annotated[str | None, typer.Option(help="Where SAEs steer, by commas; default by depth.")] = None,
    strengths: Annotated[str | None, typer.Option(help="Of vectors, by commas; default 1,1.3,1.6,2.")] = None,
    methods: Annotated[str | None, typer.Option(help="By commas; default all; features always are among them.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts, one a line; default 64 in English.")] = None,
    labels: Labels = None,
    source: Source = None,
    max_new_tokens: NewTokens = 24,
    temperature: Temperature = 0.8,
    seed: Seed = 0,
) -> None:
    """Every method, strength and count of units: tuned by label on half of the prompts, reported on the other half."""
    from saefeat.labels import fasttext_code
    from saefeat.pipeline.steer import steering_sites
    from saefeat.pipeline.sweep import STRENGTHS, english_prompts, full_grid, sweep

    forces = tuple(_number(text) for text in _split(strengths) or ()) or STRENGTHS
    lines = english_prompts() if prompts is None else _prompt_lines(prompts)
    if max_new_tokens < 6:
        raise UserError("--max-new-tokens is less than 6; perplexity is measured from the 6th new token on")
    if len(lines) < 2:
        raise UserError(f"{prompts} holds fewer than two prompts; half of them tune, half report")
    _check_own(out, "summary")
    bench = _bench(run, source, max_new_tokens, temperature, seed)
    if prompts is None and fasttext_code(bench.source) != "en":
        raise UserError(f"the prompts at hand are English, but the source is {bench.source}; give --prompts FILE")
    places = _split(sites) or steering_sites(bench.setting)
    for site in places:
        bench.saes_at(site)
    names = _split(labels)
    for name in names or ():
        bench.check_label(name)
    grid = full_grid(bench, places, forces)
    if methods is not None:
        known = {recipe.method for recipe in grid}
        if unknown := set(_split(methods) or ()) - known:
            raise UserError(f"there is no method {min(unknown)}; the methods are {', '.join(sorted(known))}")
        grid = [recipe for recipe in grid if recipe.method in {"features", *(_split(methods) or ())}]
    _print_steering(_read(sweep(bench, grid, lines, out, labels=names)))


def _number(text: str) -> float:
    from saefeat.steering import check_strength

    try:
        value = float(text)
    except ValueError as error:
        raise UserError(f"the strength {text!r} is not a number") from error
    check_strength(value)
    return value


@steer_app.command("matrix")
def steer_matrix(
    run: Run,
    out: Annotated[Path, typer.Option(help="Where to write; RUN/steering/matrix.json is the report's.")],
    sentences: Annotated[int, typer.Option(min=1, help="Test texts a label.")] = 100,
    top: Annotated[int, typer.Option(min=1, help="Features of a label at each SAE.")] = 100,
) -> None:
    """The perplexity change matrix: ablate and amplify each label's units, measure every label's text."""
    from saefeat.pipeline import open_run, set_threads
    from saefeat.pipeline.matrix import EDITS, matrix, own_is_most

    _check_own(out, "interventions")
    set_threads()
    result = matrix(open_run(run, say), out, sentences=sentences, top=top)
    for edit in EDITS:
        own = own_is_most(result, edit)
        typer.echo(f"{edit}: the own median NLL rises most for {len(own)} of {len(result['labels'])} labels")


def _read(path: Path) -> Any:
    from saefeat.io import read_json

    return read_json(path)


def _check_own(out: Path, key: str) -> None:
    """Only what the same command wrote is written over."""
    if out.exists():
        found = _read(out)
        if not isinstance(found, dict) or key not in found:
            raise UserError(f"{out} exists and holds something else; choose another --out")


def _print_steering(metrics: dict[str, Any]) -> None:
    typer.echo(f"{metrics['prompts']} prompts, mean over {len(metrics['own'])} labels")
    typer.echo(f"{'':10}{'score':>7}{'95 %':>16}{'forcing':>9}{'perplexity':>12}{'distinct3':>11}")
    for row in metrics["summary"]:
        low, high = row["score_ci"]
        typer.echo(f"{row['method']:10}{row['score']:>7.3f}{f'{low:.3f} - {high:.3f}':>16}{row['forcing']:>9.3f}"
                   f"{row['perplexity'] or 0:>12.1f}{row['distinct3']:>11.3f}")  # fmt: skip


def _input_lines(file: Path | None) -> list[str]:
    from saefeat.corpora import clean_text

    if file is None or str(file) == "-":
        data = sys.stdin.buffer.read()
    else:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {file} ({error.strerror})") from error
    # Every line is answered: bytes that are not UTF-8 show as replacement characters.
    lines = data.decode("utf-8", errors="replace").split("\n")
    return [clean_text(line.removesuffix("\r")) for line in (lines[:-1] if not lines[-1] else lines)]


def _open(
    model: str, corpus: str, labels: str | None, device: str, dtype: str, columns: tuple[str, str, str]
) -> tuple[Any, Any]:
    """Corpus first: it is cheap to find wrong."""
    from saefeat.corpora import load_corpus
    from saefeat.models import load_model
    from saefeat.pipeline import set_threads

    set_threads()
    text = load_corpus(
        corpus, labels=_split(labels), text_column=columns[0], label_column=columns[1], id_column=columns[2]
    )
    return load_model(model, dtype=dtype, device=device), text


def _say_plan(lm: Any, corpus: Any, plan: Any) -> None:
    say(f"model {lm.name} ({lm.dtype}); {corpus.name}: {len(corpus.labels)} labels, "
        f"{len(plan.tokens):,} of {len(corpus):,} examples, {plan.total:,} counted tokens")  # fmt: skip
    skipped = {**corpus.skipped, **plan.skipped}
    if skipped:
        say("rows skipped or mended: " + ", ".join(f"{reason} {n}" for reason, n in skipped.items()))


def main() -> None:
    """Entry point: turns failures into the exit codes of the contract."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's pre-emption ends like Ctrl-C
    started = time.monotonic()
    try:
        if app(standalone_mode=False) == 130:  # typer makes it of Ctrl-C
            raise KeyboardInterrupt
    except UserError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail(f"interrupted after {time.monotonic() - started:.0f} s; to go on, run: {_command()}", 130)
    except Exception as error:
        _other(error)


def _other(error: Exception) -> None:
    from saefeat.io import RunFailed

    if isinstance(error, typer.Exit):
        sys.exit(error.exit_code)
    if isinstance(error, typer.Abort):
        _fail(f"interrupted; to go on, run: {_command()}", 130)
    show = getattr(error, "show", None)
    if show is not None:  # typer's own usage errors
        show()
        sys.exit(2)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        _fail(f"out of memory; give it more, or less to do at once, then run: {_command()}", 1)
    if isinstance(error, RunFailed):
        _fail(f"{error}; what is done is kept; to go on, run: {_command()}", 1)
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
    # safetensors tells of the system's error in words only.
    told = any(f"os error {number})" in str(error) for number in full)
    if (isinstance(error, OSError) and error.errno in full) or told:
        reason = getattr(error, "strerror", None) or error
        _fail(f"cannot write ({reason}); make room, then run: {_command()}", 1)
    barred = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)
    if isinstance(error, OSError) and error.errno in barred:
        _fail(f"cannot write {error.filename or ''} ({error.strerror}); choose another place", 2)
    raise error


def _command() -> str:
    return shlex.join(["saefeat", *sys.argv[1:]])


def _fail(message: str, code: int) -> None:
    say(f"saefeat: {message}")
    sys.exit(code)


if __name__ == "__main__":
    main()
