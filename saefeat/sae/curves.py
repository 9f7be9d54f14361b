"""The curves of a training as a drawing (SVG): FVU, L0, dead share and loss recovered by site."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

Point = tuple[float, float]  # trained tokens, value
Curves = Mapping[str, Sequence[Point]]  # by site

_WIDTH, _HEIGHT = 460, 250  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 34, 36  # inside it, around the plot
_POINTS = 400  # of a line; of more, means are drawn
_KEY, _KEYS = 18, 4  # height of a line of the key, and sites in it
# The colours of the report, for light and for dark; `light-dark` is unknown to most viewers of SVG.
_STYLE = """
svg { --paper: #fbfaf7; --ink: #1d2326; --soft: #5a656a; --line: #e3e1da; --tone: 42%;
  font: 12px system-ui, "Segoe UI", "Noto Sans", Arial, sans-serif; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #14181a; --ink: #e6e9e8; --soft: #9eaaae; --line: #30373b; --tone: 66%; } }
.paper { fill: var(--paper); } text { fill: var(--soft); }
.title { fill: var(--ink); font-weight: 600; }
.grid { stroke: var(--line); } .curve { fill: none; stroke-width: 1.6; }
.held { stroke-dasharray: 5 3; } .dot { stroke: none; }
"""


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
    hues = {name: round(172 + 360 * i / max(len(names), 1)) % 360 for i, name in enumerate(names)}
    last = max(
        (x for p in panels for of in (p.trained, p.held) for c in of.values() for x, _ in c),
        default=1.0,
    )
    body = [
        f'<g transform="translate({i % 2 * _WIDTH} {i // 2 * _HEIGHT})">'
        f"{_draw(panel, hues, last)}</g>"
        for i, panel in enumerate(panels)
    ]
    width, height = 2 * _WIDTH, 2 * _HEIGHT + _KEY * (-(-len(names) // _KEYS) + 2)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="Curves of a training">'
        f'<style>{_STYLE}</style><rect class="paper" width="100%" height="100%"/>'
        f"{''.join(body)}{_draw_key(hues, width)}</svg>\n"
    )


def _curves(lines: Sequence[Mapping[str, Any]], part: str, *keys: str) -> dict[str, list[Point]]:
    """Site -> points of a figure, at most `_POINTS`."""
    found: dict[str, list[Point]] = {}
    for line in lines:
        for site, value in line.get(part, {}).items():
            for key in keys:
                value = value[key]
            if value is not None:
                found.setdefault(site, []).append((line["tokens"], value))
    return {site: _thinned(points) for site, points in found.items()}


def _thinned(points: list[Point]) -> list[Point]:
    size = -(-len(points) // _POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def _draw(panel: _Panel, hues: Mapping[str, int], last: float) -> str:
    curves = [*panel.trained.values(), *panel.held.values()]
    values = [y for points in curves for _, y in points]
    if not values:
        return f'<text class="title" x="{_LEFT}" y="20">{panel.title}: not measured</text>'
    low, high, step = _scale(min(values), max(values))

    def x(tokens: float) -> str:
        return f"{_LEFT + (_WIDTH - _LEFT - _RIGHT) * tokens / last:.1f}"

    def y(value: float) -> str:
        return (
            f"{_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low):.1f}"
        )

    drawn = [f'<text class="title" x="{_LEFT}" y="20">{panel.title}</text>']
    for i in range(round((high - low) / step) + 1):
        value = low + i * step
        drawn.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value)}" '
            f'y2="{y(value)}"/><text x="{_LEFT - 6}" y="{y(value)}" dy="4" text-anchor="end">'
            f"{_number(value, panel.percent)}</text>"
        )
    _, end, step = _scale(0, last)
    for i in range(round(end / step) + 1):
        if (tokens := i * step) <= last:
            drawn.append(
                f'<text x="{x(tokens)}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">'
                f"{_number(tokens)}</text>"
            )
    for curves, kind in ((panel.trained, "curve"), (panel.held, "curve held")):
        for site, points in curves.items():
            colour = f"hsl({hues[site]} 62% var(--tone))"
            path = "L".join(f"{x(tokens)} {y(value)}" for tokens, value in points)
            drawn.append(f'<path class="{kind}" style="stroke: {colour}" d="M{path}"/>')
            if kind != "curve":
                drawn += [
                    f'<circle class="dot" style="fill: {colour}" cx="{x(tokens)}" '
                    f'cy="{y(value)}" r="2.5"/>'
                    for tokens, value in points
                ]
    return "".join(drawn)


def _scale(low: float, high: float) -> tuple[float, float, float]:
    """Round ends of an axis that holds two values, and the step between its marks."""
    room = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(room / 4))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power * 5 >= room)
    first = math.floor(low / step) * step
    return first, max(math.ceil(high / step), round(first / step) + 1) * step, step


def _number(value: float, percent: bool = False) -> str:
    if percent:
        return f"{100 * value:.3g} %"
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}"


def _draw_key(hues: Mapping[str, int], width: float) -> str:
    """The sites with their colours, and what the axis and the dashes mean."""
    drawn = []
    top = 2 * _HEIGHT + _KEY
    for i, (name, hue) in enumerate(hues.items()):
        x, y = _LEFT + i % _KEYS * (width - _LEFT) / _KEYS, top + i // _KEYS * _KEY
        drawn.append(
            f'<line x1="{x:.0f}" x2="{x + 18:.0f}" y1="{y - 4}" y2="{y - 4}" stroke-width="3" '
            f'style="stroke: hsl({hue} 62% var(--tone))"/>'
            f'<text x="{x + 24:.0f}" y="{y}">{escape(name)}</text>'
        )
    y = top + -(-len(hues) // _KEYS) * _KEY
    words = "over trained tokens; solid: average over training, dashed: held-out text"
    return f'{"".join(drawn)}<text x="{_LEFT}" y="{y}">{words}</text>'
