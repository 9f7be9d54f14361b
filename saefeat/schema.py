"""Strict types of configurations and of the content of files (by pydantic).

A configuration is a frozen dataclass of `saefeat.config`, with `config=STRICT`. The content of a
JSON file is a TypedDict of `saefeat.artefacts`. Both follow the same rules: unknown names, missing
names, values of another type and numbers that are not finite are errors. `saefeat.parquet` checks
tables.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from saefeat.io import UserError, read_json, write_json, write_text

T = TypeVar("T")
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def ensures(check: Callable[[Any], None]) -> Callable[[type[T]], type[T]]:
    """Decorate a TypedDict by a check of values that have to agree with each other.

    `check` gets the values when each of them has its type, and raises ValueError.
    """

    def after(value: Any) -> Any:
        check(value)
        return value

    def build(source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(after, handler(source))

    def decorate(kind: type[T]) -> type[T]:
        kind.__get_pydantic_core_schema__ = build  # type: ignore[attr-defined]
        return kind

    return decorate


class Complete:
    """Marks a configuration in a file, which has all fields: `Annotated[Decoding, Complete]`.

    Elsewhere a field that is not given has its default.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: Any) -> Any:
            for field in fields(source):
                if isinstance(value, dict) and field.name not in value:
                    raise ValueError(f"{field.name} is missing")
            return value

        return core_schema.no_info_before_validator_function(check, handler(source))


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def checked(
    kind: type[T], value: Any, path: Path, *, line: str = "", help: str = "write it again"
) -> T:
    """A parsed JSON value as `kind`. Arrays become tuples where `kind` says so.

    Args:
        kind: a TypedDict, a configuration, or any other type that pydantic knows.
        value: what was parsed.
        path: the file, for the message.
        line: the place in the file, for the message: "line 3".
        help: what the user can do, for the message.

    Raises:
        UserError: the value does not fit. The message names the file and the first misfit.
    """
    try:
        found = _adapter(kind).validate_json(_json(value))
        json.dumps(value, allow_nan=False)  # where a type is Any, pydantic lets them pass
        return found
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where, misfit = ".".join(map(str, first["loc"])), first["msg"]
    except ValueError:  # of json.dumps
        where, misfit = "", "a number is not finite"
    place = ", ".join(part for part in (line, where) if part) or "the whole"
    raise UserError(f"{path} is not what saefeat writes there ({place}: {misfit}); {help}")


def refusal(error: ValidationError) -> UserError:
    """The first of the errors that a configuration raises, in one sentence."""
    first = error.errors(include_url=False)[0]
    name, *inside = map(str, first["loc"])
    value, reason = first["input"], first["msg"].removeprefix("Value error, ")
    if (wanted := reason.removeprefix("Input should be ")) == reason:
        return UserError(f"{name} {value}: {reason}", name)
    what = f"{'each of ' if inside else ''}the {name.replace('_', ' ')}"
    return UserError(f"{what} should be {wanted}, not {value}", name)


def read(kind: type[T], path: Path, *, help: str = "write it again") -> T:
    """The content of a JSON file as `kind`. Raises UserError when it is missing or does not fit."""
    return checked(kind, read_json(path), path, help=help)


def write(kind: type[Any], path: Path, value: Any) -> None:
    """Write a JSON file that `read` reads.

    A value that does not fit is a bug of the caller: it raises ValueError, and nothing is written.
    Lists may stand for tuples, and dicts for configurations.
    """
    write_json(path, _plain(kind, value))


def read_lines(kind: type[T], path: Path) -> list[T]:
    """The lines of a JSONL file, each as `kind`; blank lines are skipped.

    Raises UserError when the file is missing, or when a line does not fit, with its number.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path} is damaged in line {number} ({error})") from error
            found.append(checked(kind, value, path, line=f"line {number}"))
    return found


def write_lines(kind: type[Any], path: Path, values: Iterable[Any]) -> None:
    """Write a JSONL file that `read_lines` reads; raises as `write`."""
    lines = (json.dumps(_plain(kind, value), ensure_ascii=False) + "\n" for value in values)
    write_text(path, "".join(lines))


def _plain(kind: type[Any], value: Any) -> Any:
    """A value as JSON has it; raises ValueError when it does not fit."""
    plain = json.loads(json.dumps(value, default=asdict))
    _adapter(kind).validate_json(_json(plain))
    return plain


def _json(value: Any) -> bytes:
    """A value as JSON in UTF-8. Lone surrogates, which UTF-8 cannot express, become "?"."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
