"""What the commands share: options made from configurations, progress, lines of a file, tables."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import ValidationError

from saefeat.io import UserError
from saefeat.progress import Console

Out = Annotated[Path, typer.Option(help="Where to write.")]
Run = Annotated[Path, typer.Option(help="Run directory.")]
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
    own = inspect.signature(command, eval_str=True).parameters
    configurations = {
        name: _Options.of(parameter.annotation)
        for name, parameter in own.items()
        if hasattr(_bare(parameter.annotation), "__pydantic_fields__")
    }
    made = {
        name: options.parameter(name)
        for options in configurations.values()
        for name in options.names
    }
    made |= {name: parameter for name, parameter in own.items() if name not in configurations}

    def call(**values: Any) -> None:
        given = {name: options.read(values) for name, options in configurations.items()}
        command(**given, **{name: values[name] for name in own if name not in configurations})

    call.__doc__, call.__name__ = command.__doc__, command.__name__
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        sorted(
            (p.replace(kind=p.KEYWORD_ONLY) for p in made.values()),
            key=lambda p: p.default is not p.empty,  # required ones first
        )
    )
    return call


def description(configuration: Any, name: str) -> str:
    """The description of a field of a configuration."""
    return configuration.__pydantic_fields__[name].description


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


@dataclass(frozen=True)
class _Options:
    """The options of one configuration.

    Attributes:
        kind: the configuration, a pydantic dataclass.
        names: the fields that become options.
        preset: defaults and fixed values that replace those of the fields.
    """

    kind: Any
    names: tuple[str, ...]
    preset: dict[str, Any]

    @classmethod
    def of(cls, annotation: Any) -> _Options:
        kind = _bare(annotation)
        chosen = [part for part in get_args(annotation) if isinstance(part, Fields)]
        fields = chosen[0] if chosen else Fields()
        known = kind.__pydantic_fields__
        names = fields.names or sorted(known, key=lambda name: bool(known[name].kw_only))
        return cls(kind, tuple(names), fields.preset)

    def parameter(self, name: str) -> inspect.Parameter:
        """The parameter from which typer makes the option of a field."""
        field = self.kind.__pydantic_fields__[name]
        kind, help_text = field.annotation, field.description
        default = inspect.Parameter.empty if field.is_required() else field.default
        default = self.preset.get(name, default)
        flag = f"--{name.replace('_', '-')}"
        if kind is bool:
            flag = f"{flag}/--no-{flag[2:]}" if default else flag
        elif default == ():
            kind, default, help_text = list[str], None, f"{help_text[:-1]}; may be repeated."
        elif _item(kind):
            kind, help_text = str, f"{help_text[:-1]}; separated by commas."
            if isinstance(default, tuple):
                default = ",".join(map(str, default))
        bounds = {
            side: getattr(limit, bound)
            for limit in field.metadata
            for side, bound in (("min", "ge"), ("max", "le"))
            if hasattr(limit, bound)
        }
        option = typer.Option(flag, help=help_text, **bounds)
        return inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[kind | None if default is None else kind, option],
        )

    def read(self, values: dict[str, Any]) -> Any:
        """The configuration with the values that typer has read."""
        given = {name: self._value(name, values[name]) for name in self.names}
        try:
            return self.kind(**{**self.preset, **given})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0])
            reason = first["msg"].removeprefix("Value error, ")
            raise UserError(f"{name} {first['input']}: {reason}", name) from error

    def _value(self, name: str, value: Any) -> Any:
        item = _item(self.kind.__pydantic_fields__[name].annotation)
        if not item:
            return value
        if value is None:
            return self.preset.get(name, self.kind.__pydantic_fields__[name].default)
        return tuple(value) if isinstance(value, list) else tuple(_split(name, value, item))


def _item(kind: Any) -> Any:
    """The type of the items of a tuple (or None), None for other types."""
    for part in (kind, *get_args(kind)):
        if get_origin(part) is tuple:
            return get_args(part)[0]
    return None


def _split(name: str, text: str, item: Callable[[str], Any]) -> Iterator[Any]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError("an option that takes names separated by commas is empty", name)
    for part in parts:
        try:
            yield item(part)
        except ValueError as error:
            raise UserError(f"{part!r} is not a number", name) from error


def input_lines(file: Path | None) -> list[str]:
    """Lines of a file, which may be compressed, or of standard input (None or `-`).

    Bytes that are not UTF-8 are replaced, so that every line has its place in the list.
    """
    from saefeat.corpora.text import clean_text, decode_anyhow, read_bytes, split_lines

    data = sys.stdin.buffer.read() if file is None or str(file) == "-" else read_bytes(file)
    return [clean_text(line) for line in split_lines(decode_anyhow(data))]


def say_plan(lm: Any, corpus: Any, plan: Any) -> None:
    """Say what a plan reads."""
    say(
        f"model {lm.name} ({lm.dtype}); {corpus.name}: {len(corpus.labels)} labels, "
        f"{len(plan.tokens):,} of {len(corpus):,} examples, {plan.total:,} counted tokens"
    )
    if skipped := {**corpus.skipped, **plan.skipped}:
        say(skipped_rows(skipped))


def skipped_rows(counts: Mapping[str, int]) -> str:
    """A line on the rows of a corpus that were skipped or changed, by reason."""
    return f"rows skipped or mended: {', '.join(f'{name} {n:,}' for name, n in counts.items())}"


def print_table(
    rows: Sequence[Sequence[str]], right: Sequence[int] = (), notes: Mapping[int, str] | None = None
) -> None:
    """Print rows in aligned columns.

    Args:
        rows: cells; a row may have fewer than the first.
        right: columns that are aligned to the right.
        notes: row -> text after its last cell, which does not widen a column.
    """
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        typer.echo("  ".join([*cells, (notes or {}).get(number, "")]).rstrip())
