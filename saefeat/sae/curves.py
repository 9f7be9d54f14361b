"""The curves of a training as a drawing (SVG): FVU, L0, dead share and loss recovered by site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from saefeat.drawing import (
    HEIGHT,
    KEY,
    KEYS,
    LEFT,
    WIDTH,
    Axes,
    Point,
    colours,
    document,
    empty_panel,
    key,
)

Curves = Mapping[str, Sequence[Point]]  # by site: trained tokens, value

_POINTS = 400  # of a line; of more, means are drawn


class _Panel(NamedTuple):
    title: str
    trained: Curves
    held: Curves  # on held-out text: dashed, with a dot for each evaluation
    percent: bool = False


def draw_curves(lines: Sequence[Mapping[str, Any]]) -> str:
    """Draw the lines of `training.jsonl` as the text of an SVG file."""
    panels = [
        _Panel("FVU", _curves(lines, "sites", "fvu"), _curves(lines, "evaluation", "fvu")),
        _Panel("L0", _curves(lines, "sites", "l0"), _curves(lines, "evaluation", "l0")),
        _Panel("dead share", _curves(lines, "sites", "dead"), {}, True),
        _Panel("loss recovered", {}, _curves(lines, "evaluation", "loss", "recovered"), True),
    ]
    names = list(dict.fromkeys(name for panel in panels for name in (*panel.trained, *panel.held)))
    colour = colours(names)
    last = max(
        (x for p in panels for of in (p.trained, p.held) for c in of.values() for x, _ in c),
        default=1.0,
    )
    body = [
        f'<g transform="translate({i % 2 * WIDTH} {i // 2 * HEIGHT})">'
        f"{_draw(panel, colour, last)}</g>"
        for i, panel in enumerate(panels)
    ]
    width, rows = 2 * WIDTH, -(-len(names) // KEYS)
    words = "over trained tokens; solid: average over training, dashed: held-out text"
    top = 2 * HEIGHT + KEY
    body += [key(colour, width, top), f'<text x="{LEFT}" y="{top + rows * KEY}">{words}</text>']
    return document(width, top + KEY * (rows + 1), "Curves of a training", "".join(body))


def _curves(lines: Sequence[Mapping[str, Any]], part: str, *keys: str) -> dict[str, list[Point]]:
    """Site -> points of a figure, at most `_POINTS`."""
    found: dict[str, list[Point]] = {}
    for line in lines:
        for site, value in line.get(part, {}).items():
            for name in keys:
                value = value[name]
            if value is not None:
                found.setdefault(site, []).append((line["tokens"], value))
    return {site: _thinned(points) for site, points in found.items()}


def _thinned(points: list[Point]) -> list[Point]:
    size = -(-len(points) // _POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def _draw(panel: _Panel, colour: Mapping[str, str], last: float) -> str:
    curves = [*panel.trained.values(), *panel.held.values()]
    values = [y for points in curves for _, y in points]
    if not values:
        return empty_panel(panel.title)
    axes = Axes((0, last), values, panel.percent)
    drawn = axes.marks(panel.title)
    drawn += [axes.curve(points, colour[site]) for site, points in panel.trained.items()]
    for site, points in panel.held.items():
        drawn += [axes.curve(points, colour[site], "curve held"), axes.dots(points, colour[site])]
    return "".join(drawn)
