"""`saefeat rank`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from saefeat.cli.common import Out, say
from saefeat.io import UserError
from saefeat.methods import DEFAULT_METHOD, METHODS, is_sae


def rank(
    stats: Annotated[Path, typer.Argument(help="Directory of statistics.")],
    out: Out,
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}.")] = DEFAULT_METHOD,
    parameters: Annotated[
        list[str] | None, typer.Option("-p", help="name=value; may be repeated.")
    ] = None,
    dictionaries: Annotated[
        list[str] | None, typer.Option(help="Pattern of dictionary ids; may be repeated.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Units to print per label.")] = 3,
    lens: Annotated[
        bool, typer.Option("--lens/--no-lens", help="Print the tokens that units promote.")
    ] = True,
) -> None:
    """Rank units by how specific they are to a label. Writes Parquet, or CSV if --out ends so."""
    from saefeat.methods import parse_parameters
    from saefeat.run import rank as rank_all

    check_replaceable(out)
    given = parse_parameters(method, parameters or [])
    selection = rank_all(stats, method, dictionaries=dictionaries, **given)
    write_selection(out, selection)
    if show:
        _print_units(stats, selection, show, lens)


def write_selection(out: Path, selection: Any) -> None:
    """Write a selection, as CSV if the path ends so, and print its counts."""
    if out.suffix == ".csv":
        selection.to_csv(out)
    else:
        selection.save(out)
    counts = [f"{label} {len(selection.for_label(label))}" for label in selection.labels]
    typer.echo(f"{out}: {len(selection)} rows; {', '.join(counts)}")


def check_replaceable(out: Path) -> None:
    """Raise UserError when `out` holds something else than a selection."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from saefeat.ranking import COLUMNS

    columns: list[str] = []
    with suppress(OSError, pa.ArrowInvalid):  # a directory, or a file of another kind
        if out.suffix == ".csv":
            with out.open(encoding="utf-8", errors="replace") as file:
                columns = file.readline().replace('"', "").strip().split(",")
        else:
            columns = pq.read_schema(out).names
    if out.exists() and columns != list(COLUMNS):
        raise UserError(f"{out} exists and is no selection; choose another output", "out")


def _print_units(stats: Path, selection: Any, show: int, lens: bool) -> None:
    from saefeat.run import shown_units
    from saefeat.rundir import RunDir

    lm, saes = _load_for_lens(stats, selection) if lens else (None, {})
    # A run has its examples beside its statistics, a collection by itself has them inside.
    inside, beside = RunDir(stats).examples, RunDir(stats.parent).examples
    for row in shown_units(lm, selection, saes, inside if inside.is_dir() else beside, show):
        for line in _describe(row):
            typer.echo(line)


def _describe(row: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{row['label']} {row['rank']}. {row['dictionary']}:{row['unit']}  "
        f"score {row['score']:.4f}  p {row['probability']:.4f}"
    )
    if row["tokens"]:
        tokens = (json.dumps(token, ensure_ascii=False) for token in row["tokens"])
        yield f"    promotes {' '.join(tokens)}"
    for passage in row["passages"][:1]:
        yield f"    fires on [{passage['label']}] {passage['text'][:160]}"


def _load_for_lens(stats: Path, selection: Any) -> tuple[Any, dict[str, Any]]:
    """The model and the SAEs of a selection. What cannot be loaded is reported and left out."""
    from saefeat.models import load_model
    from saefeat.sae.store import load_sae

    say("loading the model for the tokens that units promote (--no-lens skips it)")
    lm, saes, model = None, {}, selection.header.get("model")
    try:
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            raise UserError("the statistics name no model")
        lm = load_model(model["name"], say=say)
        for name, entry in selection.dictionaries.items():
            if is_sae(entry):
                saes[name] = load_sae(_sae_place(entry, stats, name))
    except UserError as error:
        say(f"note: no promoted tokens ({error})")
    return lm, saes


def _sae_place(entry: Mapping[str, Any], stats: Path, name: str) -> str:
    """Where an SAE is. One that a run has trained moves with the run."""
    from saefeat.rundir import RunDir

    path, trained = str(entry.get("path") or ""), RunDir(stats.parent).sae(name)
    return str(trained) if trained.is_dir() and not Path(path).exists() else path or str(trained)
