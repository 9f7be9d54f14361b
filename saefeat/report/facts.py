"""The run's index as groups of names and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from saefeat.artefacts import RunIndex
from saefeat.report.formats import as_text, duration

_GROUPS = ("model", "corpus", "arguments", "timings", "seeds", "versions")  # in this order
_OPEN = ("run", "model", "corpus", "arguments", "timings")
_ROWS = 80  # of a group


def model_name(index: RunIndex) -> str:
    """Last part of the model's name, which is a hub id, a path or `embedded:...`."""
    return index["model"]["name"].rstrip("/").split("/")[-1]


def about(index: RunIndex) -> list[str]:
    """The corpus, the number of its texts, and the seeds."""
    corpus = index["corpus"]
    seeds = [f"{name} {seed}" for name, seed in index["seeds"].items()]
    return [as_text(corpus["name"]), f"{corpus['examples']:,} texts", *seeds]


def fact_groups(index: RunIndex) -> list[dict[str, Any]]:
    """Groups {name, open, rows: [(name, value)]}: the scalars first, then one per nested object."""
    record: dict[str, Any] = {**index, "arguments": asdict(index["arguments"])}
    nested = {name: value for name, value in record.items() if isinstance(value, dict) and value}
    groups = {"run": {name: value for name, value in record.items() if name not in nested}}
    groups |= {name: nested[name] for name in dict.fromkeys((*_GROUPS, *nested)) if name in nested}
    return [
        {"name": name, "open": name in _OPEN, "rows": _rows(value, name == "timings")}
        for name, value in groups.items()
    ]


def _rows(values: Mapping[str, Any], are_seconds: bool) -> list[tuple[str, str]]:
    write = duration if are_seconds else as_text
    rows = [(name, write(value)) for name, value in _leaves(values)]
    left = len(rows) - _ROWS
    return [*rows[:_ROWS], ("…", f"{left} more")] if left > 0 else rows


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name} · ")
        else:
            yield f"{prefix}{name}", value
