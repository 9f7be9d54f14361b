"""The plots of an experiment, as the text of an SVG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from saefeat.artefacts.experiments import Plot
from saefeat.drawing import (
    HEIGHT,
    KEY,
    KEYS,
    WIDTH,
    colours,
    document,
    heat_panel,
    key,
    lines_panel,
)

Rows = Sequence[Mapping[str, Any]]


def draw_plots(experiment: Mapping[str, Any], n: int | None = None) -> str | None:
    """Draw the first n plots of an experiment, or all, below each other; None if there are none."""
    drawn = [
        (_lines if plot["kind"] == "lines" else _heat)(experiment[plot.get("of", "rows")], plot)
        for plot in experiment["plots"][:n]
    ]
    if not drawn:
        return None
    body, top = [], 0.0
    for part, _, height in drawn:
        body.append(f'<g transform="translate(0 {top:.0f})">{part}</g>')
        top += height
    width = max(width for _, width, _ in drawn)
    return document(width, round(top), experiment["title"], "".join(body))


def _panels(rows: Rows, plot: Plot) -> dict[str, list[Mapping[str, Any]]]:
    """Title -> rows with a value, by the values of the columns `panels`."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row[plot["value"]] is not None:
            parts = [str(row[name]) for name in plot["panels"]]
            found.setdefault(", ".join([plot["value"], *parts]), []).append(row)
    return found


def _lines(rows: Rows, plot: Plot) -> tuple[str, float, float]:
    """Panels of lines, two beside each other, with one key.

    Of several rows at one point of a line the mean is drawn.
    """
    panels = _panels(rows, plot)
    names = list(dict.fromkeys(str(row[plot["y"]]) for some in panels.values() for row in some))
    colour, body = colours(names), []
    for i, (title, some) in enumerate(panels.items()):
        values: dict[str, dict[float, list[float]]] = {}
        for row in some:
            line = values.setdefault(str(row[plot["y"]]), {})
            line.setdefault(float(row[plot["x"]]), []).append(float(row[plot["value"]]))
        lines = {
            name: [(x, fmean(here)) for x, here in line.items()] for name, line in values.items()
        }
        drawn = lines_panel(f"{title} over {plot['x']}", lines, colour)
        place = f"translate({i % 2 * WIDTH} {i // 2 * HEIGHT})"
        body.append(f'<g transform="{place}">{drawn}</g>')
    top = -(-len(panels) // 2) * HEIGHT
    body.append(key(colour, 2 * WIDTH, top + KEY))
    return "".join(body), 2 * WIDTH, top + KEY * (2 - (-len(names) // KEYS))


def _heat(rows: Rows, plot: Plot) -> tuple[str, float, float]:
    """Panels of colours below each other; all have one scale."""
    panels = _panels(rows, plot)
    greatest = max((abs(r[plot["value"]]) for some in panels.values() for r in some), default=0.0)
    body, width, top = [], 0.0, 0.0
    for title, some in panels.items():
        cells = {(str(r[plot["y"]]), str(r[plot["x"]])): float(r[plot["value"]]) for r in some}
        down, across = (list(dict.fromkeys(pair[i] for pair in cells)) for i in (0, 1))
        heading = f"{title}: {plot['y']} by {plot['x']}"
        drawn, wide, high = heat_panel(heading, down, across, cells, greatest)
        body.append(f'<g transform="translate(0 {top:.0f})">{drawn}</g>')
        width, top = max(width, wide), top + high
    return "".join(body), width, top
