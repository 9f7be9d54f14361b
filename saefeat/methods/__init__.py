"""Published rules that choose units: pure functions from statistics to a selection, by name."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from saefeat.io import UserError
from saefeat.methods.feature_diffmean import feature_diffmean
from saefeat.methods.lape import lape
from saefeat.methods.sae_lape import sae_lape
from saefeat.selection import Selection


@dataclass(frozen=True)
class Method:
    """A rule and the dictionaries it pools where none are named.

    Attributes:
        rank: the function, `rank(stats, **parameters) -> Selection`.
        pools: tells from a dictionary's header whether the rule takes it by default.
        wants: what that is, in words.
    """

    rank: Callable[..., Selection]
    pools: Callable[[Mapping[str, Any]], bool]
    wants: str


def _is_hidden_neurons(dictionary: Mapping[str, Any]) -> bool:
    return dictionary.get("kind") == "identity" and dictionary["site"].split("@")[0] == "mlp_act"


def _is_sae(dictionary: Mapping[str, Any]) -> bool:
    return dictionary.get("kind") == "sae"


METHODS: dict[str, Method] = {
    "lape": Method(
        lape, _is_hidden_neurons, "neurons at the site mlp_act (collect with --neurons)"
    ),
    "sae-lape": Method(sae_lape, _is_sae, "SAEs (collect with --saes)"),
    "feature-diffmean": Method(feature_diffmean, _is_sae, "SAEs (collect with --saes)"),
}


def get_method(name: str) -> Method:
    """The method of that name; raises UserError that lists the methods."""
    if name not in METHODS:
        raise UserError(f"there is no method {name!r}; the methods are {', '.join(METHODS)}")
    return METHODS[name]


def choose(
    dictionaries: Iterable[Mapping[str, Any]], method: str, globs: Sequence[str] | None = None
) -> list[str]:
    """Ids of the dictionaries that a method pools, sorted.

    Args:
        dictionaries: their headers (`stats.header["dictionary"]`: id, site, kind, ...).
        method: its name; decides where no globs are given.
        globs: patterns of ids (`fnmatch`). They replace the method's own choice: what matches any
            of them is taken.

    Raises:
        UserError: unknown method, or nothing to pool; the message lists what there is.
    """
    rule = get_method(method)
    entries = list(dictionaries)
    if globs:
        chosen = [d["id"] for d in entries if any(fnmatchcase(d["id"], glob) for glob in globs)]
        wanted = f"a dictionary that matches {' or '.join(globs)}"
    else:
        chosen = [d["id"] for d in entries if rule.pools(d)]
        wanted = f"statistics of {rule.wants}"
    if not chosen:
        have = ", ".join(sorted(d["id"] for d in entries)) or "no dictionaries"
        raise UserError(f"{method} needs {wanted}; there are {have}")
    return sorted(chosen)


def parse_parameters(method: str, settings: Iterable[str]) -> dict[str, Any]:
    """Parameters from the command line's `name=value`; `none`, `true` and `false` mean what they say.

    Raises UserError for an unknown method, an unknown or repeated name, or a value of the wrong
    kind or range.
    """
    get_method(method)
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = (piece.strip() for piece in setting.partition("="))
        if not equals:
            raise UserError(f"the parameter {setting!r} of {method} has no value; write name=value")
        if name in values:
            raise UserError(f"the parameter {name} of {method} is given twice")
        values[name] = _read(text)
    return check_parameters(method, values)


def check_parameters(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The same parameters, whole numbers made floats where floats are due; raises UserError like `parse_parameters`."""
    function = get_method(method).rank
    hints = get_type_hints(function)
    names = [
        p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(
                f"{method} has no parameter {name!r}{hint}; its parameters are {', '.join(names)}"
            )
        kinds = (
            get_args(hints[name])
            if get_origin(hints[name]) in (Union, UnionType)
            else (hints[name],)
        )
        if not any(_accepts(kind, name, value) for kind in kinds):
            wanted = " or ".join(_in_words(kind, name) for kind in kinds)
            raise UserError(
                f"the parameter {name} of {method} is {value!r}, but should be {wanted}"
            )
        checked[name] = float(value) if float in kinds and value is not None else value
    return checked


def _read(text: str) -> Any:
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def _is_rate(name: str) -> bool:
    return name.endswith(("rate", "ratio"))


def _accepts(kind: Any, name: str, value: Any) -> bool:
    """Whether a value is of a kind (None, bool, int, float or a Literal) and in the range that its name stands for."""
    if kind is NoneType:
        return value is None
    if get_origin(kind) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind))
    if kind in (bool, str):
        return isinstance(value, kind)
    if isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, int) and value >= 1
    if not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return not _is_rate(name) or 0 < value <= 1


def _in_words(kind: Any, name: str) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(str(choice) for choice in get_args(kind))
    if kind is float:
        return "a number above 0 and up to 1" if _is_rate(name) else "a number"
    return {
        NoneType: "none",
        bool: "true or false",
        int: "a whole number of at least 1",
        str: "a label",
    }[kind]
