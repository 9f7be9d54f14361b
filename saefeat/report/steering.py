"""Steering on the page: chosen settings, the frontier of forcing and fluency, and samples."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, geometric_mean
from typing import Any, TypeVar

from saefeat.artefacts.steering import (
    SteeringMetrics,
    SteeringRow,
    SteeringSample,
    SteeringSettings,
)
from saefeat.config import STEERING_METHODS
from saefeat.report.formats import as_text, direction, pairs, rounded, shortened

T = TypeVar("T", SteeringRow, SteeringSample)
Values = dict[str, Any]

SCORES = ("score", "score_in_context")
MEASURES = (*SCORES, "forcing", "perplexity", "distinct3")
_OWN = (*MEASURES[len(SCORES) :], "perplexity_in_context")
_SETTING = ("edit", "sites", "schedule", "parameters")  # a setting, but for its strength
_UNROUNDED = (*(f"{name}_ci" for name in SCORES), "features_ahead_ci", "reached", "labels")
_SAMPLES = 900  # on the page
_CHARACTERS = 600  # of a sample


def steering_view(metrics: SteeringMetrics, settings: SteeringSettings | None) -> Values:
    """What the page shows of a sweep.

    Returns:
        prompts, decoding: what all settings share; own: {label: measures of its own text}; labels;
        methods; chosen: {method: {label: measures and words of the chosen setting}}; summary: one
        row of means per method, and `mean`, the same by method; best: the greatest mean score;
        lines: the frontier (see `_line`), each with the place of its method among all, which gives
        it a colour and a shape; settings: {label: the setting in use, in words}.
    """
    rows = metrics["rows"]
    means = {row["method"]: row for row in metrics["summary"]}
    order = [*STEERING_METHODS, *sorted(means)]
    methods = sorted(means, key=order.index)
    summary = [_summary(means[method]) for method in methods]
    return {
        "decoding": pairs(asdict(metrics["decoding"])),
        "prompts": as_text(metrics["prompts"]),
        "own": {label: _rounded(own, _OWN) for label, own in metrics["own"].items()},
        "labels": list(metrics["own"]),
        "methods": methods,
        "chosen": _chosen(rows, methods),
        "mean": {row["method"]: {name: row[name] for name in MEASURES} for row in summary},
        "summary": summary,
        "best": max((row["score"] for row in summary), default=None),
        "lines": [{**_line(method, metrics), "place": order.index(method)} for method in methods],
        "settings": {
            label: f"{setting.method}: {_words(vars(setting))}"
            for label, setting in (settings["labels"] if settings else {}).items()
        },
    }


def _rounded(values: Mapping[str, Any], names: Iterable[str]) -> Values:
    return {name: rounded(values.get(name)) for name in names}


def _summary(row: Mapping[str, Any]) -> Values:
    return {
        "method": row["method"],
        "sites": " + ".join(row["sites"]),
        **_rounded(row, (*MEASURES, "features_ahead_by")),
        **{name: row.get(name) for name in _UNROUNDED},
    }


def _chosen(rows: Sequence[SteeringRow], methods: Sequence[str]) -> dict[str, Values]:
    """Method -> label -> the chosen setting, measured on the reporting half if there is one."""
    found: dict[str, Values] = {method: {} for method in methods}
    for row in sorted(rows, key=lambda row: row["half"] == "report"):  # the last one stays
        if row["chosen"]:
            found[row["method"]][row["label"]] = {
                **_rounded(row, MEASURES),
                "ci": {
                    name: [rounded(end, 3) for end in row.get(f"{name}_ci", ())] for name in SCORES
                },
                "setting": _words(row),
                "half": row["half"],
            }
    return found


def _words(setting: Mapping[str, Any]) -> str:
    """A setting in one line."""
    parts = [
        setting["edit"],
        " + ".join(setting["sites"]),
        f"strength {as_text(setting['strength'])}",
        f"{setting['units']} units" if setting.get("units") else "",
        ", ".join(pairs(setting["parameters"])),
        ", ".join(pairs(asdict(setting["schedule"]))),
    ]
    return " · ".join(filter(None, parts))


def _grouped(rows: Iterable[T], *keys: str) -> dict[tuple[Any, ...], list[T]]:
    """Values of some keys -> rows, in the order of first appearance."""
    found: dict[tuple[Any, ...], list[T]] = defaultdict(list)
    for row in rows:
        values = (row[key] for key in keys)
        found[tuple(json.dumps(v) if isinstance(v, list | dict) else v for v in values)].append(row)
    return found


# --------------------------------------------------------------------------- frontier


def _line(method: str, metrics: SteeringMetrics) -> Values:
    """A method's line in the frontier: all strengths of the setting with the best mean score.

    It is drawn from the half with more strengths, or the reporting half if both have equally many.

    Returns:
        method, setting: words; points: {label: [[strength, perplexity relative to the label's own
        text, forcing, score], ...]}, with means over labels for the label "".
    """
    halves = _grouped((row for row in metrics["rows"] if row["method"] == method), "half")
    rows = max(
        halves.values(),
        key=lambda rows: (len({row["strength"] for row in rows}), rows[0]["half"] == "report"),
    )
    settings = [(some[0], _points(some, metrics)) for some in _grouped(rows, *_SETTING).values()]
    first, points = max(settings, key=lambda found: max(point[3] or 0 for point in found[1][""]))
    sites = " + ".join(first["sites"])
    setting = f"{first['edit']} · {sites}" if sites else ""
    return {"method": method, "setting": setting, "points": points}


def _points(rows: Iterable[SteeringRow], metrics: SteeringMetrics) -> dict[str, list[Any]]:
    own = metrics["own"]
    points: dict[str, list[Any]] = defaultdict(list)
    for (strength,), some in sorted(_grouped(rows, "strength").items()):
        known = []
        for row in some:
            relative = row["perplexity"] and row["perplexity"] / own[row["label"]]["perplexity"]
            known += [relative] if relative else []
            point = (strength, relative, row["forcing"], row["score"])
            points[row["label"]].append([rounded(value) for value in point])
        relative = geometric_mean(known) if known else None
        means = (fmean(row[name] for row in some) for name in ("forcing", "score"))
        points[""].append([rounded(value) for value in (strength, relative, *means)])
    return dict(points)


# --------------------------------------------------------------------------- samples


def samples_view(samples: Sequence[SteeringSample]) -> Values:
    """{total, rows}: the number of samples, and some of each label and method."""
    groups = _grouped(samples, "label", "method")
    most = max(1, _SAMPLES // max(1, len(groups)))
    shown = [_sample(sample) for some in groups.values() for sample in some[:most]]
    return {"total": len(samples), "rows": shown}


def _sample(sample: SteeringSample) -> Values:
    texts = {name: shortened(sample[name], _CHARACTERS) for name in ("prompt", "text", "twin")}
    return {
        **{name: sample[name] for name in ("label", "method", "judged", "judged_twin")},
        **texts,
        **{f"{name}_way": direction(texts["prompt"] + texts[name]) for name in ("text", "twin")},
        **_rounded(sample, ("strength", "perplexity", "perplexity_twin")),
    }
