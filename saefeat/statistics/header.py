"""The header of statistics: what was collected. It decides which of them may be merged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NotRequired

from pydantic import ConfigDict
from typing_extensions import TypedDict

from saefeat.io import UserError

if TYPE_CHECKING:
    from saefeat.statistics.base import Accumulator

_OPEN = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
# Names and paths may differ between machines, and windows between shards.
_IGNORED = {"model": ("name", "revision"), "dictionary": ("path",), "corpus": ("name",)}


class DictionaryHeader(TypedDict):
    """A dictionary, as far as the statistics themselves read it."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    id: NotRequired[str]
    site: NotRequired[str]


class Header(TypedDict):
    """What a file of statistics says of itself, as far as the statistics themselves read it."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    labels: list[str]
    windows: NotRequired[list[int]]
    dictionary: NotRequired[DictionaryHeader]


def comparable(header: dict[str, Any]) -> dict[str, Any]:
    """The part of a header that is equal in all shards, processes and resumes of a collection."""
    return {
        key: {k: v for k, v in value.items() if k not in _IGNORED[key]}
        if key in _IGNORED
        else value
        for key, value in header.items()
        if key != "windows"
    }


def merge_headers(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The header of merged statistics: that of the smaller first window, with all windows."""
    header = min(one, other, key=_first_window)
    if "windows" not in header:
        return header
    return {**header, "windows": sorted(one["windows"] + other["windows"])}


def _first_window(header: dict[str, Any]) -> tuple[float, str]:
    """Sort key; a header without windows comes last."""
    return min(header.get("windows", []), default=float("inf")), json.dumps(header, sort_keys=True)


def check_mergeable(first: Accumulator, other: Accumulator, where: str) -> None:
    """Raise UserError when statistics are of different things or share a window.

    Args:
        where: the place of `other`, in the message.
    """
    one, two = comparable(first.header), comparable(other.header)
    # The cause first: the limits of dictionaries follow from the model, the corpus and the policy.
    for key in sorted(one.keys() | two.keys(), key=lambda key: (key == "dictionary", key)):
        if one.get(key) != two.get(key):
            raise UserError(
                f"{where}: cannot merge, its {key} differs: "
                f"{first.header.get(key)} / {other.header.get(key)}"
            )
    if first.labels != other.labels:
        raise UserError(f"{where}: cannot merge, the labels differ")
    shared = set(first.header.get("windows", [])) & set(other.header.get("windows", []))
    if shared:
        raise UserError(f"{where}: cannot merge, window {min(shared)} is counted in both")
