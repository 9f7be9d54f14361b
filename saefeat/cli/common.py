"""What the commands share: options made from configurations, progress, lines of a file, tables."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import ValidationError

from saefeat.io import UserError
from saefeat.progress import Console

Out = Annotated[Path, typer.Option(help="Where to write.")]
Run = Annotated[Path, typer.Option(help="Run directory.")]
Result = Annotated[
    Path | None, typer.Option("--out", help="Result; default in RUN/experiments, for the report.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, print the forecast, and stop.")
]

say = Console()


class Fields:
    """Which fields of a configuration become options, and defaults that replace its own."""

    def __init__(self, *names: str, preset: Mapping[str, Any] | None = None) -> None:
        self.names, self.preset = names, dict(preset or {})


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of the configurations among its parameters.

    Names, defaults, bounds and help texts come from the fields:

    - `max_tokens` becomes `--max-tokens`; `int | None = None` stays an optional number;
    - `bool = False` becomes a flag, `bool = True` a pair such as `--gate/--no-gate`;
    - a tuple that is empty by default becomes an option that may be repeated, and any other tuple
      one option with values separated by commas.

    `Annotated[SomeConfig, Fields("seed", "labels")]` makes options of these fields only. Two
    configurations that have a field of the same name share the option.
    """
    own = dict(inspect.signature(command, eval_str=True).parameters)
    configurations = {
        name: _Options(parameter.annotation)
        for name, parameter in own.items()
        if hasattr(_bare(parameter.annotation), "__pydantic_fields__")
    }
    own = {name: parameter for name, parameter in own.items() if name not in configurations}
    made: dict[str, inspect.Parameter] = {}
    for options in configurations.values():
        made |= {name: options.parameter(name) for name in options.names}
    parameters = [each.replace(kind=each.KEYWORD_ONLY) for each in (made | own).values()]

    def call(**values: Any) -> None:
        given = {name: options.read(values) for name, options in configurations.items()}
        command(**given, **{name: values[name] for name in own})

    call.__doc__, call.__name__ = command.__doc__, command.__name__
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        sorted(parameters, key=lambda each: each.default is not each.empty)  # required ones first
    )
    return call


def _bare(annotation: Any) -> Any:
    return getattr(annotation, "__origin__", annotation)  # of Annotated, its type


class _Options:
    """The options of a configuration: its class, or `Annotated[class, Fields(...)]`."""

    def __init__(self, annotation: Any) -> None:
        (chosen,) = getattr(annotation, "__metadata__", (Fields(),))
        self.kind, self.preset = _bare(annotation), chosen.preset
        self.fields = self.kind.__pydantic_fields__
        # Keyword-only fields come last in a signature.
        self.names = chosen.names or tuple(inspect.signature(self.kind).parameters)

    def parameter(self, name: str) -> inspect.Parameter:
        """The parameter from which typer makes the option of a field."""
        field, flag = self.fields[name], f"--{name.rstrip('_').replace('_', '-')}"
        kind, text = field.annotation, field.description
        default = self.preset.get(name, field.default)
        if field.is_required() and name not in self.preset:
            default = inspect.Parameter.empty
        if kind is bool and default:
            flag = f"{flag}/--no-{flag[2:]}"
        elif default == ():
            kind, default, text = list[str], None, f"{text[:-1]}; may be repeated."
        elif _item(kind):
            kind, text = str, f"{text[:-1]}; separated by commas."
            if isinstance(default, tuple):
                default = ",".join(map(str, default))
        lowest = next((limit.ge for limit in field.metadata if hasattr(limit, "ge")), None)
        highest = next((limit.le for limit in field.metadata if hasattr(limit, "le")), None)
        option = typer.Option(flag, help=text, min=lowest, max=highest)
        made = Annotated[kind | None if default is None else kind, option]
        where = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(name, where, default=default, annotation=made)

    def read(self, values: dict[str, Any]) -> Any:
        """The configuration with the values that typer has read."""
        given = {name: self._value(name, values[name]) for name in self.names}
        from saefeat.schema import refusal

        try:
            return self.kind(**{**self.preset, **given})
        except ValidationError as error:
            raise refusal(error) from error

    def _value(self, name: str, value: Any) -> Any:
        item = _item(self.fields[name].annotation)
        if item and value is None:
            return self.preset.get(name, self.fields[name].default)
        if item and isinstance(value, str):
            return tuple(_split(name, value, item))
        return tuple(value) if item else value


def _item(kind: Any) -> Any:
    """The type of the items of a tuple (or None), None for other types."""
    tuples = (part for part in (kind, *get_args(kind)) if get_origin(part) is tuple)
    return next((get_args(part)[0] for part in tuples), None)


def _split(name: str, text: str, item: Callable[[str], Any]) -> Iterator[Any]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError("an option that takes names separated by commas is empty", name)
    for part in parts:
        try:
            yield item(part)
        except ValueError as error:
            raise UserError(f"{part!r} is not a number", name) from error


def load_run(run: Path, *, with_corpus: bool = True) -> Any:
    """Open a run (see `saefeat.run.open_run`), and use every core."""
    from saefeat.run import open_run, set_threads

    set_threads()
    return open_run(run, say, with_corpus=with_corpus)


def input_lines(file: Path | None) -> list[str]:
    """Lines of a file, which may be compressed, or of standard input (None or `-`).

    Bytes that are not UTF-8 are replaced, so that every line has its place in the list.
    """
    from saefeat.corpora.text import clean_text, decode_anyhow, read_bytes, split_lines

    data = sys.stdin.buffer.read() if file is None or str(file) == "-" else read_bytes(file)
    return [clean_text(line) for line in split_lines(decode_anyhow(data))]


def print_table(
    rows: Sequence[Sequence[str]], right: Sequence[int] = (), notes: Mapping[int, str] | None = None
) -> None:
    """Print rows in aligned columns; those in `right` are aligned to the right.

    A row may have fewer cells than the first. `notes` are texts after the last cell of a row, by
    its number; they do not widen a column.
    """
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        typer.echo("  ".join([*cells, (notes or {}).get(number, "")]).rstrip())


def print_experiment(result: Mapping[str, Any]) -> None:
    """Print the summary of an experiment."""
    typer.echo(result["title"])
    print_rows(result["summary"])
    for note in result["notes"]:
        typer.echo(note)


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows that have the same columns, under their names."""
    names = list(rows[0]) if rows else []
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    numbers = [i for i, name in enumerate(names) if not isinstance(rows[0][name], str)]
    if names:
        print_table(cells, right=numbers)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
