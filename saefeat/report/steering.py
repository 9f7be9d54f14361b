"""Steering on the page: the chosen settings, the frontier of forcing and fluency, and samples beside their twins."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from saefeat.report.facts import as_text
from saefeat.report.reading import direction, parsed, real, shortened, understood

Row = dict[str, Any]

MEASURES = ("score", "forcing", "perplexity", "distinct3")
_METHODS = ("none", "random", "diffmean", "neurons", "features")
_RECIPE = (
    "edit",
    "sites",
    "schedule",
    "parameters",
)  # with a strength it is a setting; units differ by label
_SAMPLES = 900  # on the page
_CHARACTERS = 600  # of a sample


def read_steering(run: Path) -> Row | None:
    """What `steering/metrics.json` and `steering/settings.json` say; None without metrics.

    {decoding, prompts, own: {label: numbers}, labels, methods, chosen: {method: {label: row}},
    mean: {method: numbers},
    summary: a row a method, best: its greatest score, lines: the frontier (see `_lines`), settings:
    {label: words},
    rows: as they are, for `steering.csv`}.
    """
    settings = parsed(run / "steering" / "settings.json", _settings) or {}
    view = parsed(run / "steering" / "metrics.json", _steering)
    return view and {**view, "settings": settings}


def _steering(metrics: Any) -> Row:
    rows = metrics["rows"]
    own = {
        label: {key: real(value.get(key)) for key in MEASURES[1:]}
        for label, value in metrics["own"].items()
    }
    labels = list(dict.fromkeys([*own, *(row["label"] for row in rows)]))
    place = {name: at for at, name in enumerate(_METHODS)}
    methods = sorted(
        {row["method"] for row in rows}, key=lambda name: (place.get(name, len(place)), name)
    )
    chosen: dict[str, dict[str, Row]] = {method: {} for method in methods}
    for (method, label), members in _grouped(rows, ("method", "label")):
        chosen[method][label] = _cell(_choice(members))
    means = {row["method"]: _summary(row) for row in metrics.get("summary") or []}
    summary = [means[method] for method in methods if method in means]
    return {
        "decoding": _pairs(metrics.get("decoding")),
        "prompts": as_text(metrics.get("prompts")),
        "own": own,
        "labels": labels,
        "methods": methods,
        "chosen": chosen,
        "mean": {method: _means(cells.values()) for method, cells in chosen.items()},
        "summary": summary,
        "best": max((row["score"] for row in summary if row["score"] is not None), default=None),
        "lines": [line for method in methods for line in _lines(method, rows, own)],
        "rows": rows,
    }


def _pairs(value: Any) -> list[str]:
    return (
        [f"{key} {as_text(leaf)}" for key, leaf in value.items()] if isinstance(value, dict) else []
    )


def _summary(row: Row) -> Row:
    numbers = {key: real(row.get(key)) for key in (*MEASURES, "features_ahead_by")}
    ends = {key: row.get(key) for key in ("score_ci", "features_ahead_ci")}
    counts = {key: row.get(key) for key in ("reached", "labels")}
    return {
        "method": row["method"],
        "sites": " + ".join(row.get("sites") or []),
        **numbers,
        **ends,
        **counts,
    }


def _settings(value: Any) -> dict[str, str]:
    return {
        label: f"{setting['method']}: {_words(setting)}"
        for label, setting in value["labels"].items()
    }


def _grouped(rows: Iterable[Row], keys: tuple[str, ...]) -> list[tuple[tuple[Any, ...], list[Row]]]:
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[tuple(_plain(row, key) if key in _RECIPE else row[key] for key in keys)].append(row)
    return list(found.items())


def _plain(row: Row, key: str) -> str:
    return json.dumps(row.get(key), sort_keys=True)


def _choice(rows: list[Row]) -> Row:
    """Of one method and label: what was chosen, as it does on the reporting half; where nothing was, the best."""

    def key(row: Row) -> Any:
        return [*(_plain(row, name) for name in _RECIPE), row["strength"]]

    def score(row: Row) -> float:
        return -1.0 if row["score"] is None else row["score"]

    half = {name: [row for row in rows if row.get("half") == name] for name in ("tune", "report")}
    reported = half["report"]
    if reported and half["tune"]:
        best = max(half["tune"], key=lambda row: (bool(row.get("chosen")), score(row)))
        reported = [row for row in reported if key(row) == key(best)] or reported
    return max(reported or rows, key=lambda row: (bool(row.get("chosen")), score(row)))


def _cell(row: Row) -> Row:
    numbers = {key: real(row.get(key)) for key in MEASURES}
    ends = row.get("score_ci")
    return {
        **numbers,
        "ci": [real(end, 3) for end in ends] if ends else None,
        "setting": _words(row),
        "half": row.get("half"),
    }


def _words(setting: Row) -> str:
    """A setting in one line."""
    schedule = setting.get("schedule")
    units = setting.get("units")
    parts = [
        setting.get("edit") or "",
        " + ".join(setting.get("sites") or []),
        f"strength {as_text(setting.get('strength'))}",
        f"{as_text(units)} units" if units else "",
        ", ".join(_pairs(setting.get("parameters"))),
        ", ".join(_pairs(schedule)),
    ]
    return " · ".join(part for part in parts if part)


def _means(cells: Iterable[Row]) -> Row:
    """Means over the labels that have the number."""
    cells = list(cells)
    found = {key: [cell[key] for cell in cells if cell.get(key) is not None] for key in MEASURES}
    return {
        key: real(math.fsum(values) / len(values)) if values else None
        for key, values in found.items()
    }


def _geometric(values: list[float]) -> float | None:
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else None


# --------------------------------------------------------------------------- frontier


def _lines(method: str, rows: list[Row], own: dict[str, Row]) -> Iterator[Row]:
    """A method's line: {method, setting, points: {label: [[strength, relative perplexity, forcing, score]]}}.

    The points of the label "" are means over labels. Of the settings that differ in more than
    strength, the line is that of the greatest mean score; of the halves it is the one with more
    strengths.
    """
    mine = [row for row in rows if row["method"] == method]
    halves = _grouped(mine, ("half",))
    mine = max(
        halves,
        key=lambda group: (len({row["strength"] for row in group[1]}), group[0] == ("report",)),
    )[1]
    best, greatest = None, -1.0
    for _, members in _grouped(mine, _RECIPE):
        points = _points(members, own)
        top = max((point[3] or 0.0 for point in points.get("", [])), default=-1.0)
        if top > greatest:
            best, greatest = (
                {"method": method, "setting": _place(members[0]), "points": points},
                top,
            )
    if best:
        yield best


def _place(row: Row) -> str:
    sites = " + ".join(row.get("sites") or [])
    return " · ".join(part for part in (row.get("edit"), sites) if part) if sites else ""


def _points(rows: list[Row], own: dict[str, Row]) -> dict[str, list[list[float | None]]]:
    points: dict[str, list[list[float | None]]] = defaultdict(list)
    for (strength,), members in sorted(
        _grouped(rows, ("strength",)), key=lambda group: group[0][0] or 0.0
    ):
        cells = []
        for row in members:
            base = own.get(row["label"], {}).get("perplexity")
            relative = row["perplexity"] / base if row["perplexity"] and base else None
            cells.append([strength, relative, row["forcing"], row["score"]])
            points[row["label"]].append([real(value) for value in cells[-1]])
        known = [cell[1] for cell in cells if cell[1]]
        means = [math.fsum(c[at] or 0.0 for c in cells) / len(cells) for at in (2, 3)]
        points[""].append([real(value) for value in (strength, _geometric(known), *means)])
    return dict(points)


# --------------------------------------------------------------------------- samples


def read_samples(run: Path) -> Row | None:
    """{total, rows}: samples of `steering/samples.jsonl`, at most some of each label and method; None without any."""
    path = run / "steering" / "samples.jsonl"
    return understood(path, lambda: _samples(path)) if path.exists() else None


def _samples(path: Path) -> Row:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                rows.append(_sample(json.loads(line)))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"line {number}: {error!r}") from error
    groups = _grouped(rows, ("label", "method"))
    most = max(1, _SAMPLES // max(1, len(groups)))
    return {"total": len(rows), "rows": [row for _, members in groups for row in members[:most]]}


def _sample(row: Any) -> Row:
    texts = {
        name: shortened(str(row[name] or ""), _CHARACTERS) for name in ("prompt", "text", "twin")
    }
    ways = {f"{name}_way": direction(texts["prompt"] + texts[name]) for name in ("text", "twin")}
    judged = {name: row.get(name) for name in ("judged", "judged_twin")}
    numbers = {name: real(row.get(name)) for name in ("strength", "perplexity", "perplexity_twin")}
    return {
        "label": str(row["label"]),
        "method": str(row["method"]),
        **texts,
        **ways,
        **judged,
        **numbers,
    }
