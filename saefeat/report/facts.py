"""`run.json` as groups of names and values, whatever keys it has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_ORDER = ("model", "corpus", "arguments", "timings", "seeds", "versions", "fingerprints")
_OPEN = ("run", "model", "corpus", "arguments", "timings")
_ROWS = 80  # of a group
_LENGTH = 300  # characters of a value


def model_name(record: dict[str, Any]) -> str:
    """Last part of the model's name: a hub id, a path or `embedded:...`; empty when it is not recorded."""
    model = record.get("model")
    arguments = record.get("arguments")
    if model is None and isinstance(arguments, dict):
        model = arguments.get("model")
    name = model.get("name") if isinstance(model, dict) else model
    return str(name).rstrip("/").split("/")[-1] if name else ""


def about(record: dict[str, Any]) -> list[str]:
    """The run in a line: corpus, examples, seed, as far as they are recorded."""
    corpus = record.get("corpus")
    seeds = record.get("seeds")
    found = []
    if isinstance(corpus, dict) and corpus.get("name"):
        found.append(as_text(corpus["name"]))
        if isinstance(corpus.get("examples"), int):
            found.append(f"{corpus['examples']:,} texts")
    if isinstance(seeds, dict):
        found += [f"{key} {as_text(value)}" for key, value in seeds.items()]
    return found


def fact_groups(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Groups {name, open, rows: [(name, value)]}: one for the scalars, then one for each dict or list."""
    scalars = {key: value for key, value in record.items() if not isinstance(value, dict)}
    nested = {key: value for key, value in record.items() if isinstance(value, dict) and value}
    place = {name: at for at, name in enumerate(_ORDER)}
    names = sorted(nested, key=lambda name: place.get(name, len(place)))
    groups = ([("run", scalars)] if scalars else []) + [(name, nested[name]) for name in names]
    return [
        {"name": name, "open": name in _OPEN, "rows": _rows(name, value)} for name, value in groups
    ]


def _rows(group: str, value: dict[str, Any]) -> list[tuple[str, str]]:
    seconds = group in ("timings", "seconds")
    rows = [(key, _duration(leaf) if seconds else as_text(leaf)) for key, leaf in _leaves(value)]
    left = len(rows) - _ROWS
    return [*rows[:_ROWS], ("…", f"{left} more")] if left > 0 else rows


def _leaves(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, f"{prefix}{key} · ")
        else:
            yield f"{prefix}{key}", inner


def as_text(value: Any) -> str:
    """A value on one line, cut where it is very long."""
    if value is None or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        text = ", ".join(map(as_text, value))
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LENGTH else text[:_LENGTH] + "…"


def _duration(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return as_text(value)
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
