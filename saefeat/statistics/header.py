"""The header of statistics: what was collected."""

from __future__ import annotations

import json
from typing import Any, NotRequired

from pydantic import ConfigDict
from typing_extensions import TypedDict

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
