"""Command line: parses, checks input, calls one function. Heavy imports are inside the commands."""

from __future__ import annotations

import errno
import json
import shlex
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from saefeat.cli import corpus, export, labels, lid, sites, steer
from saefeat.cli.common import (
    CorpusName,
    Device,
    DryRun,
    Dtype,
    Gate,
    IdColumn,
    LabelColumn,
    Labels,
    MaxTokens,
    Model,
    Out,
    Saes,
    Seed,
    Source,
    TextColumn,
    by_commas,
    say,
)
from saefeat.io import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find, rank and use the language features inside a language model.",
)
app.add_typer(corpus.app, name="corpus")
app.add_typer(lid.app, name="lid")
app.add_typer(steer.app, name="steer")


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
    from saefeat.run import DEMO, RunConfig
    from saefeat.run import run as run_all

    names = by_commas(labels) or PAPER_LABELS
    config = RunConfig(
        model, "embedded:eld", labels=names, seed=seed, device=device, dtype=dtype, **DEMO
    )
    _finish(run_all(config, out, say=say, dry_run=dry_run), out)


@app.command()
def run(
    model: Model,
    corpus: CorpusName,
    out: Out,
    saes: Saes = None,
    labels: Labels = None,
    sites: Annotated[
        str | None, typer.Option(help="Where to train SAEs, by commas; default by depth.")
    ] = None,
    d_sae: Annotated[
        int | None, typer.Option(min=16, help="Width of the SAEs; default 4 times d_in.")
    ] = None,
    k: Annotated[
        int | None, typer.Option(min=1, help="Active features of a token; default 32.")
    ] = None,
    train_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens a label for SAE training; default 100000.")
    ] = None,
    max_tokens: MaxTokens = 50_000,
    eval_texts: Annotated[
        int | None, typer.Option(min=1, help="Test texts a label; default all.")
    ] = None,
    neuron_layers: Annotated[
        int | None, typer.Option(min=0, help="Layers whose neurons are counted.")
    ] = None,
    steer_prompts: Annotated[
        int, typer.Option(min=0, max=64, help="English prompts to steer; 0: do not steer.")
    ] = 16,
    matrix_texts: Annotated[
        int, typer.Option(min=0, help="Texts a label of the perplexity matrix; 0: none.")
    ] = 10,
    source: Source = None,
    gate: Gate = True,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    id_column: IdColumn = "id",
    dry_run: DryRun = False,
) -> None:
    """The whole path on one's own model and corpus; SAEs are trained where none are given."""
    from saefeat.run import RunConfig
    from saefeat.run import run as run_all

    training = {"--sites": sites, "--d-sae": d_sae, "--k": k, "--train-tokens": train_tokens}
    asked = [name for name, value in training.items() if value is not None]
    if saes and asked:
        raise UserError(
            f"--saes takes SAEs that exist, {asked[0]} is for new ones: give one or the other"
        )
    config = RunConfig(
        model,
        corpus,
        saes=tuple(saes or ()),
        labels=by_commas(labels),
        sites=by_commas(sites),
        d_sae=d_sae,
        k=k or 32,
        train_tokens=train_tokens or 100_000,
        max_tokens=max_tokens,
        eval_texts=eval_texts,
        neuron_layers=neuron_layers,
        steer_prompts=steer_prompts,
        matrix_texts=matrix_texts,
        source=source,
        gate=gate,
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
    from saefeat.io import read_json, understood

    metrics, steering = (out / folder / "metrics.json" for folder in ("lid", "steering"))
    understood(metrics, lambda: lid.print_metrics(read_json(metrics)))
    if steering.exists():
        understood(steering, lambda: steer.print_steering(read_json(steering)))
    typer.echo(f"report: {report}")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Run directory.")]) -> None:
    """Write RUN/report.html, one self-contained page."""
    from saefeat.report import write_report

    typer.echo(write_report(run))


@app.command()
def fetch(
    assets: Annotated[list[str] | None, typer.Argument(help="Assets; default all.")] = None,
) -> None:
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
    d_sae: Annotated[
        int | None, typer.Option(min=16, help="Width; default --expansion times d_in.")
    ] = None,
    expansion: Annotated[int, typer.Option(min=1)] = 4,
    k: Annotated[int, typer.Option(min=1, help="Active features of a token.")] = 32,
    passes: Annotated[int, typer.Option(min=1, help="How often each activation is used.")] = 2,
    batch_size: Annotated[int, typer.Option(min=16)] = 2048,
    chunk_tokens: Annotated[int, typer.Option(min=16, help="Tokens held in memory.")] = 65_536,
    lr: Annotated[
        float | None, typer.Option(min=1e-8, help="Default 1e-3 * sqrt(10240 / d_sae).")
    ] = None,
    dead_tokens: Annotated[
        int | None, typer.Option(min=1, help="Silent so long, a unit is dead.")
    ] = None,
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

    names = by_commas(sites) or ()
    config = TrainConfig(
        k,
        d_sae,
        expansion,
        passes,
        batch_size,
        chunk_tokens,
        lr,
        dead_tokens=dead_tokens,
        seed=seed,
    )
    lm, text = _open(model, corpus, labels, device, dtype, (text_column, label_column, id_column))
    from saefeat.corpora import make_plan
    from saefeat.hooks import site_width
    from saefeat.run.setting import check_activations

    widths = {name: config.width(site_width(lm, lm.site(name))) for name in names}
    check_activations(lm, text, names)
    plan = make_plan(text, lm, seed=seed, max_tokens=max_tokens, mixed=True)
    _say_plan(lm, text, plan)
    if dry_run:
        chunks = plan_chunks(plan, config)
        say(f"d_sae {widths}, {len(chunks)} chunks, {sum(chunk.steps for chunk in chunks)} steps")
        return
    for sae in train_saes(lm, plan, list(names), out, config, progress=say):
        record, held = sae.record, sae.record.get("held_out")
        average = record.get("training_average", record)  # older files have these figures alone
        found = (
            f"FVU {held['fvu']:.3f}, L0 {held['l0']:.1f} on {held['tokens']:,} held-out tokens"
            if held
            else ("FVU not measured, as no text is held out")
        )
        typer.echo(
            f"{out / sae.id}: d_sae {sae.width}, {found} (average over training: FVU {average['fvu']:.3f}, "
            f"L0 {average['l0']:.1f}), dead {record['dead']:.1%}"
        )


@app.command()
def collect(
    model: Model,
    corpus: CorpusName,
    out: Out,
    saes: Saes = None,
    neurons: Annotated[
        bool, typer.Option("--neurons", help="Count the hidden neurons of every layer too.")
    ] = False,
    bags: Annotated[bool, typer.Option("--bags", help="Write bags by example as well.")] = False,
    shard: Annotated[str, typer.Option(help="i/n: take the windows w with w mod n = i.")] = "0/1",
    split: Annotated[str, typer.Option(help="train, test or all.")] = "train",
    count_bos: Annotated[
        bool, typer.Option("--count-bos", help="Count BOS, as SAE-LAPE was published.")
    ] = False,
    labels: Labels = None,
    max_tokens: MaxTokens = None,
    gate: Gate = True,
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
    from saefeat.run import collect as collect_all
    from saefeat.run import neurons as identities
    from saefeat.run.forecast import forecast_collect
    from saefeat.run.setting import check_activations
    from saefeat.sae.gate import check_saes, describe
    from saefeat.sae.store import load_saes

    loaded = load_saes(list(saes), lm, same_model=gate) if saes else []
    sites = [d.site for d in (*loaded, *(identities(lm) if neurons else ()))]
    check_activations(lm, text, sites, whole=bool(loaded) and gate)
    if dry_run:
        _say_plan(
            lm,
            text,
            make_plan(text, lm, split=split, seed=seed, max_tokens=max_tokens, count_bos=count_bos),
        )
        for report in check_saes(lm, loaded if gate else [], text, seed=seed):
            say(describe(report))
        say(forecast_collect(lm, loaded, len(text.labels), with_neurons=neurons))
        return
    paths = collect_all(
        lm,
        text,
        loaded,
        out=out,
        with_neurons=neurons,
        with_bags=bags,
        split=split,
        max_tokens=max_tokens,
        seed=seed,
        shard=part,
        count_bos=count_bos,
        gate=gate,
        progress=say,
    )
    for path in paths:
        typer.echo(path)


def _shard(text: str) -> tuple[int, int]:
    i, slash, n = text.partition("/")
    if (
        slash
        and i.isdecimal()
        and n.isdecimal()
        and len(n) <= 12
        and len(i) <= 12
        and int(i) < int(n)
    ):
        return int(i), int(n)
    raise UserError(f"--shard {text} should be i/n with 0 <= i < n")


@app.command()
def merge(
    stats: Annotated[list[Path], typer.Argument(help="Directories of statistics, one a shard.")],
    out: Out,
) -> None:
    """Merge the statistics of shards."""
    from saefeat.statistics.merging import merge as merge_all

    for warning in merge_all(stats, out):
        say(f"warning: {warning}")
    typer.echo(out)


@app.command()
def rank(
    stats: Annotated[Path, typer.Argument(help="Directory of statistics.")],
    out: Out,
    method: Annotated[str, typer.Option(help="lape, sae-lape or feature-diffmean.")] = "sae-lape",
    parameters: Annotated[
        list[str] | None, typer.Option("-p", help="name=value; may be repeated.")
    ] = None,
    dictionaries: Annotated[
        list[str] | None, typer.Option(help="Patterns of dictionary ids.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Units of each label to print.")] = 3,
    lens: Annotated[
        bool, typer.Option("--lens/--no-lens", help="Print the tokens that units promote.")
    ] = True,
) -> None:
    """Rank units by how specific they are to a label; writes Parquet, or CSV by the name of --out."""
    from saefeat.methods import parse_parameters
    from saefeat.run import rank as rank_all

    _check_replaceable(out)
    selection = rank_all(
        stats, method, dictionaries=dictionaries, **parse_parameters(method, parameters or [])
    )
    if out.suffix == ".csv":
        selection.to_csv(out)
    else:
        selection.save(out)
    counts = {label: len(selection.for_label(label)) for label in selection.labels}
    typer.echo(
        f"{out}: {len(selection)} rows; " + ", ".join(f"{label} {n}" for label, n in counts.items())
    )
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
    from saefeat.run import shown_units
    from saefeat.sae.store import load_sae

    lm, saes = None, {}
    if lens:
        say("loading the model for the tokens that units promote (--no-lens leaves them out)")
        try:
            lm = load_model(_model_name(selection))
            entries = selection.header["dictionaries"]
            saes = {
                n: load_sae(_sae_source(e, stats, n))
                for n, e in entries.items()
                if e.get("kind") == "sae"
            }
        except UserError as error:
            say(f"note: no promoted tokens ({error})")
    folder = stats / "examples" if (stats / "examples").is_dir() else stats.parent / "examples"
    for row in shown_units(lm, selection, saes, folder, show):
        typer.echo(
            f"{row['label']} {row['rank']}. {row['dictionary']}:{row['unit']}  score {row['score']:.4f}  "
            f"p {row['probability']:.4f}"
        )
        if row["tokens"]:
            typer.echo(
                "    promotes " + " ".join(json.dumps(t, ensure_ascii=False) for t in row["tokens"])
            )
        for passage in row["passages"][:1]:
            typer.echo(f"    fires on [{passage['label']}] {passage['text'][:160]}")


def _model_name(selection: Any) -> str:
    try:
        return selection.header["model"]["name"]
    except (KeyError, TypeError) as error:
        raise UserError("the statistics name no model") from error


def _sae_source(entry: dict[str, Any], stats: Path, name: str) -> str:
    """Where an SAE was loaded from; a run that was moved has those that it trained beside its statistics."""
    path, own = str(entry.get("path") or ""), stats.parent / "saes" / name
    return str(own) if own.is_dir() and not Path(path).exists() else path or str(own)


def _open(
    model: str,
    corpus: str,
    labels: str | None,
    device: str,
    dtype: str,
    columns: tuple[str, str, str],
) -> tuple[Any, Any]:
    """Corpus first: it is cheap to find wrong."""
    from saefeat.corpora import load_corpus
    from saefeat.models import load_model
    from saefeat.run import set_threads

    set_threads()
    text = load_corpus(
        corpus,
        labels=by_commas(labels),
        text_column=columns[0],
        label_column=columns[1],
        id_column=columns[2],
        say=say,
    )
    return load_model(model, dtype=dtype, device=device), text


def _say_plan(lm: Any, corpus: Any, plan: Any) -> None:
    say(
        f"model {lm.name} ({lm.dtype}); {corpus.name}: {len(corpus.labels)} labels, "
        f"{len(plan.tokens):,} of {len(corpus):,} examples, {plan.total:,} counted tokens"
    )
    skipped = {**corpus.skipped, **plan.skipped}
    if skipped:
        say(
            "rows skipped or mended: " + ", ".join(f"{reason} {n}" for reason, n in skipped.items())
        )


app.command()(sites.sites)
app.command()(labels.labels)
app.command()(export.export)


def main() -> None:
    """Entry point: turns failures into the exit codes of the contract."""
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # a cluster's pre-emption ends like Ctrl-C
    warnings.formatwarning = lambda message, *_args, **_options: (
        f"warning: {message}\n"
    )  # not where in the code
    started = time.monotonic()
    try:
        if app(standalone_mode=False) == 130:  # typer makes it of Ctrl-C
            raise KeyboardInterrupt
    except UserError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail(
            f"interrupted after {time.monotonic() - started:.0f} s; to go on, run: {_command()}",
            130,
        )
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
        _fail(
            f"{error}; what is done is kept; mend that (another --dtype, whole weights), then run: {_command()}",
            1,
        )
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
    # safetensors tells of the system's error in words only.
    told = any(f"os error {number})" in str(error) for number in full)
    if (isinstance(error, OSError) and error.errno in full) or told:
        reason = getattr(error, "strerror", None) or error
        _fail(f"cannot write ({reason}); make room, then run: {_command()}", 1)
    barred = (
        errno.EACCES,
        errno.EROFS,
        errno.EPERM,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENAMETOOLONG,
    )
    if isinstance(error, OSError) and error.errno in barred:
        _fail(f"cannot write {error.filename or ''} ({error.strerror}); choose another place", 2)
    raise error


def _command() -> str:
    return shlex.join(["saefeat", *sys.argv[1:]])


def _fail(message: str, code: int) -> None:
    say(f"saefeat: {message}")
    sys.exit(code)
