"""Published rules that choose units: functions from statistics to a selection, by name.

The module of a rule defines a `Method`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from saefeat.io import UserError
from saefeat.registry import Registry
from saefeat.schema import STRICT

if TYPE_CHECKING:
    from torch import Tensor

    from saefeat.selection import Selection

P = ParamSpec("P")

# Types of parameters, with their ranges.
Rate = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Method:
    """A rule, and what the stages need to know of it.

    Attributes:
        rank: the rule, `rank(stats, **parameters) -> Selection`, with `records_parameters`. Its
            keyword-only arguments are the parameters, with the published defaults; their
            annotations give types and ranges. With `accumulators`, it is `rank(stats, *tables)`.
        pools: whether the rule uses, by default, the dictionary of a header
            (`stats.header["dictionary"]`).
        needs: those dictionaries in words.
        shown: whether the report shows passages and promoted tokens of its units.
        score: the name of its score in tables.
        in_run: whether a run ranks by it.
        owners: for a rule by which labels own units: `owners(stats, **filters)` returns units and
            labels (by position) that own them, int64 [m] each. The filters are keyword-only, and
            parameters of `rank`.
        accumulators: names of the accumulators that the rule reads beside the counts. After
            `stats`, the rule gets for each of them what was collected of every dictionary, in the
            same order: a `Table`, or the accumulator.
        control: whether the rule gets, as its last sequence, the statistics of the dictionaries on
            sequences of random tokens.
        sized: n -> parameters by which the rule chooses as near to n units per label as it can,
            or more. `compare` takes the first n. Default: none, for a rule without such parameters.
    """

    rank: Callable[..., Selection]
    pools: Callable[[Mapping[str, Any]], bool]
    needs: str
    shown: bool = True
    score: str = "score"
    in_run: bool = True
    owners: Callable[..., tuple[Tensor, Tensor]] | None = None
    accumulators: tuple[str, ...] = ()
    control: bool = False
    sized: Callable[[int], dict[str, Any]] = lambda _: {}


METHODS: Registry[Method] = Registry(
    "method",
    {
        "sae-lape": "saefeat.methods.sae_lape:METHOD",
        "feature-diffmean": "saefeat.methods.feature_diffmean:METHOD",
        "lape": "saefeat.methods.lape:METHOD",
        "ternary": "saefeat.methods.ternary:METHOD",
        "monolinguality": "saefeat.methods.monolinguality:METHOD",
        "diffmean": "saefeat.methods.diffmean:METHOD",
        "neuron-overlap": "saefeat.methods.neuron_overlap:METHOD",
        "langfir": "saefeat.methods.langfir:METHOD",
        "average-precision": "saefeat.methods.average_precision:METHOD",
        "sharing": "saefeat.methods.sharing:METHOD",
        "plnd": "saefeat.methods.plnd:METHOD",
        "dln": "saefeat.methods.dln:METHOD",
    },
)


def records_parameters(name: str) -> Callable[[Callable[P, Selection]], Callable[P, Selection]]:
    """Write the name of a rule and the values of its parameters into the selections it makes.

    A value that the rule has written there itself stays.
    """

    def decorate(rule: Callable[P, Selection]) -> Callable[P, Selection]:
        defaults = {each.name: each.default for each in _parameters(rule)}

        @wraps(rule)
        def rank(*args: P.args, **parameters: P.kwargs) -> Selection:
            selection = rule(*args, **parameters)
            values = defaults | parameters | selection.header["parameters"]
            selection.header.update(method=name, parameters=values)
            return selection

        return rank

    return decorate


def _parameters(rule: Callable[..., Any]) -> list[inspect.Parameter]:
    arguments = inspect.signature(rule).parameters.values()
    return [each for each in arguments if each.kind is each.KEYWORD_ONLY]


def is_sae(header: Mapping[str, Any]) -> bool:
    """Whether a dictionary is an SAE."""
    return header.get("kind") == "sae"


def is_hidden_neurons(header: Mapping[str, Any]) -> bool:
    """Whether a dictionary is the identity at hidden neurons (`mlp_act`)."""
    return header.get("kind") == "identity" and header.get("site", "").startswith("mlp_act@")


def run_methods(headers: Sequence[Mapping[str, Any]]) -> dict[str, Method]:
    """The methods that a run ranks by: those of which one of its dictionaries is pooled.

    A run does not collect what some rules read beside the counts.
    """
    methods = {
        name: method
        for name, method in METHODS.items()
        if method.in_run and not method.accumulators
    }
    return {name: method for name, method in methods.items() if any(map(method.pools, headers))}


def choose(
    headers: Iterable[Mapping[str, Any]], method: str, globs: Sequence[str] | None = None
) -> list[str]:
    """Return the ids of the dictionaries that a method pools, sorted.

    Args:
        headers: headers of the dictionaries (`stats.header["dictionary"]`: id, site, kind, ...).
        method: its name. It decides where no globs are given.
        globs: patterns of ids (`fnmatch`). They replace the method's own choice: every dictionary
            that matches one of them is pooled.

    Raises:
        UserError: the method is unknown, or there is nothing to pool. The message lists what there
            is.
    """
    rule, entries = METHODS[method], list(headers)
    if globs:
        chosen = [each["id"] for each in entries if any(fnmatchcase(each["id"], g) for g in globs)]
        wanted = f"a dictionary that matches {' or '.join(globs)}"
    else:
        chosen = [each["id"] for each in entries if rule.pools(each)]
        wanted = f"statistics of {rule.needs}"
    if not chosen:
        have = ", ".join(sorted(each["id"] for each in entries)) or "no dictionaries"
        raise UserError(f"{method} needs {wanted}; there are {have}")
    return sorted(chosen)


def parse_parameters(method: str, settings: Iterable[str]) -> dict[str, Any]:
    """Parse parameters of the form `name=value`. `none`, `true` and `false` are None and booleans.

    Raises UserError for an unknown method, for an unknown or repeated name, and for a value of the
    wrong type or range.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = (piece.strip() for piece in setting.partition("="))
        if not equals:
            raise UserError(f"the parameter {setting!r} of {method} has no value; write name=value")
        if name in values:
            raise UserError(f"the parameter {name} of {method} is given twice")
        values[name] = _parse_value(text)
    return check_parameters(method, values)


def check_parameters(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check parameters against the annotations of a method's rule.

    Returns:
        The same values; integers are floats where the parameter is a float.

    Raises:
        UserError: as `parse_parameters`.
    """
    rank = METHODS[method].rank
    types = get_type_hints(rank, include_extras=True)
    kinds = {each.name: types[each.name] for each in _parameters(rank)}
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in kinds:
            close = difflib.get_close_matches(name, kinds, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(
                f"{method} has no parameter {name!r}{hint}; its parameters are {', '.join(kinds)}"
            )
        try:
            checked[name] = TypeAdapter(kinds[name], config=STRICT).validate_python(value)
        except ValidationError as error:
            found = error.errors(include_url=False)
            wanted = " or ".join(each["msg"].removeprefix("Input should be ") for each in found)
            raise UserError(
                f"the parameter {name} of {method} is {value!r}, but should be {wanted}"
            ) from error
    return checked


def _parse_value(text: str) -> Any:
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text
