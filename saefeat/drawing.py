"""Drawings as SVG text, without a library: axes, lines over a number, and tables of colours.

They follow the reader's light or dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 460, 250  # of a panel of lines
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 34, 36  # inside it, around the plot
KEY, KEYS = 18, 4  # height of a line of the key, and names in it
_CELL, _ROW, _LETTER = 44, 22, 7  # of a table of colours: a cell, and the width of a letter
# The colours of the report, for light and for dark; `light-dark` is unknown to most viewers of SVG.
STYLE = """
svg { --paper: #fbfaf7; --ink: #1d2326; --soft: #5a656a; --line: #e3e1da; --tone: 42%;
  font: 12px system-ui, "Segoe UI", "Noto Sans", Arial, sans-serif; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #14181a; --ink: #e6e9e8; --soft: #9eaaae; --line: #30373b; --tone: 66%; } }
.paper { fill: var(--paper); } text { fill: var(--soft); }
.title { fill: var(--ink); font-weight: 600; }
.grid { stroke: var(--line); } .curve { fill: none; stroke-width: 1.6; }
.held { stroke-dasharray: 5 3; }
.dots { fill: none; stroke-width: 5; stroke-linecap: round; }
.cell { font-size: 10px; fill: var(--ink); }
"""


def document(width: float, height: float, label: str, body: str) -> str:
    """The text of an SVG file."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        f'<style>{STYLE}</style><rect class="paper" width="100%" height="100%"/>'
        f"{body}</svg>\n"
    )


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name."""
    hues = {name: round(172 + 360 * i / max(len(names), 1)) % 360 for i, name in enumerate(names)}
    return {name: f"hsl({hue} 62% var(--tone))" for name, hue in hues.items()}


def scale(low: float, high: float) -> tuple[float, float, float]:
    """Round ends of an axis that holds two values, and the step between its marks."""
    room = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(room / 4))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power * 5 >= room)
    first = math.floor(low / step) * step
    return first, max(math.ceil(high / step), round(first / step) + 1) * step, step


def short(value: float, percent: bool = False) -> str:
    """A number in a few characters."""
    if percent:
        return f"{100 * value:.3g} %"
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}"


class Axes:
    """The axes of a panel of lines: places of values, and the marks."""

    def __init__(
        self, xs: tuple[float, float], values: Sequence[float], percent: bool = False
    ) -> None:
        self.first, self.last = xs
        self.low, self.high, self.step = scale(min(values), max(values))
        self.percent = percent

    def x(self, value: float) -> str:
        room = (self.last - self.first) or 1.0
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * (value - self.first) / room:.1f}"

    def y(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share:.1f}"

    def marks(self, title: str) -> list[str]:
        """The title, the lines of the grid, and the numbers of both axes."""
        drawn = [f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>']
        for i in range(round((self.high - self.low) / self.step) + 1):
            value = self.low + i * self.step
            drawn.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.y(value)}" '
                f'y2="{self.y(value)}"/><text x="{LEFT - 6}" y="{self.y(value)}" dy="4" '
                f'text-anchor="end">{short(value, self.percent)}</text>'
            )
        first, end, step = scale(self.first, self.last)
        for i in range(round((end - first) / step) + 1):
            if self.first <= (at := first + i * step) <= self.last:
                drawn.append(
                    f'<text x="{self.x(at)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
                    f"{short(at)}</text>"
                )
        return drawn

    def curve(self, points: Sequence[Point], colour: str, kind: str = "curve") -> str:
        path = "L".join(f"{self.x(x)} {self.y(value)}" for x, value in points)
        return f'<path class="{kind}" style="stroke: {colour}" d="M{path}"/>'

    def dots(self, points: Sequence[Point], colour: str) -> str:
        """Lines of no length with round ends, which need fewer bytes than circles."""
        path = "".join(f"M{self.x(x)} {self.y(value)}h0" for x, value in points)
        return f'<path class="dots" style="stroke: {colour}" d="{path}"/>'


def empty_panel(title: str) -> str:
    """A panel without values."""
    return f'<text class="title" x="{LEFT}" y="20">{escape(title)}: not measured</text>'


def lines_panel(title: str, lines: Mapping[str, Sequence[Point]], colour: Mapping[str, str]) -> str:
    """Lines with a dot at each point."""
    points = [point for line in lines.values() for point in line]
    if not points:
        return empty_panel(title)
    xs = [x for x, _ in points]
    axes = Axes((min(xs), max(xs)), [value for _, value in points])
    drawn = axes.marks(title)
    for name, line in lines.items():
        drawn += [axes.curve(line, colour[name]), axes.dots(line, colour[name])]
    return "".join(drawn)


def heat_panel(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Mapping[tuple[str, str], float],
    greatest: float,
) -> tuple[str, float, float]:
    """A table of colours, with the number in each cell: the drawing, its width and its height.

    Values above 0 are in one colour and those below 0 in another; `greatest` has the full colour.
    """
    side = 12 + _LETTER * max(map(len, rows), default=0)
    head = 40 + _LETTER * max(map(len, columns), default=0)
    drawn = [f'<text class="title" x="8" y="20">{escape(title)}</text>']
    for j, name in enumerate(columns):
        place = f"translate({side + (j + 0.5) * _CELL:.0f} {head - 6}) rotate(-60)"
        drawn.append(f'<text transform="{place}">{escape(name)}</text>')
    for i, row in enumerate(rows):
        y = head + i * _ROW
        drawn.append(f'<text x="{side - 6}" y="{y + 15}" text-anchor="end">{escape(row)}</text>')
        for j, column in enumerate(columns):
            if (value := values.get((row, column))) is not None:
                drawn.append(_cell(side + j * _CELL, y, value, greatest))
    return "".join(drawn), side + len(columns) * _CELL + 16, head + len(rows) * _ROW + 16


def _cell(x: float, y: float, value: float, greatest: float) -> str:
    hue, weight = 172 if value >= 0 else 18, min(1.0, abs(value) / (greatest or 1))
    return (
        f'<rect x="{x}" y="{y}" width="{_CELL - 1}" height="{_ROW - 1}" '
        f'fill="hsl({hue} 62% 45%)" fill-opacity="{0.85 * weight:.2f}"/>'
        f'<text class="cell" x="{x + _CELL / 2:.0f}" y="{y + 14}" text-anchor="middle">'
        f"{short(value)}</text>"
    )


def key(colour: Mapping[str, str], width: float, top: float) -> str:
    """The names of lines with their colours, `KEYS` beside each other."""
    drawn = []
    for i, (name, tone) in enumerate(colour.items()):
        x, y = LEFT + i % KEYS * (width - LEFT) / KEYS, top + i // KEYS * KEY
        drawn.append(
            f'<line x1="{x:.0f}" x2="{x + 18:.0f}" y1="{y - 4}" y2="{y - 4}" stroke-width="3" '
            f'style="stroke: {tone}"/><text x="{x + 24:.0f}" y="{y}">{escape(name)}</text>'
        )
    return "".join(drawn)
