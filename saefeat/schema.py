"""Strict types of configurations and of the content of JSON files (by pydantic).

A configuration is a frozen dataclass of `saefeat.config`, with `config=STRICT`. The content of a
file is a TypedDict beside the code that writes it. Both are checked by the same rules: unknown
names, missing names, values of another type and numbers that are not finite are errors.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from saefeat.io import UserError, read_json

T = TypeVar("T")
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def checked(kind: type[T], value: Any, path: Path) -> T:
    """A parsed JSON value as `kind`. Raises UserError that names the file and the first misfit."""
    try:
        # Through JSON, whose arrays stand for tuples too.
        found = _adapter(kind).validate_json(json.dumps(value))
        json.dumps(value, allow_nan=False)  # pydantic lets them pass where a type is Any
        return found
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        misfit = f"{where}: {first['msg']}"
    except ValueError:  # of json.dumps
        misfit = "the whole: a number is not finite"
    raise UserError(f"{path} is not what saefeat writes there ({misfit}); write it again")


def read(kind: type[T], path: Path) -> T:
    """The content of a JSON file as `kind`. Raises UserError when it is missing or does not fit."""
    return checked(kind, read_json(path), path)
