"""Experiments on the page: the summary as a table, and the plots."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from saefeat.artefacts.experiments import Experiment
from saefeat.report.plots import draw_plots

_LARGEST = 400_000  # bytes of a drawing in the page; what is larger is in the file of the plots


def experiment_views(experiments: Mapping[str, Experiment]) -> list[dict[str, Any]]:
    """What the page shows of each.

    Returns:
        file (its name without an ending), title, columns, rows, image (a data URL), more (whether
        there are plots that the image has not) and notes.
    """
    found = []
    for file, each in experiments.items():
        image, shown = _image(each)
        part = {
            "file": file,
            "title": each["title"],
            "columns": list(each["summary"][0]) if each["summary"] else [],
            "rows": [list(row.values()) for row in each["summary"]],
            "image": image,
            "more": shown < len(each["plots"]),
            "notes": each["notes"],
        }
        found.append(part)
    return found


def _image(each: Experiment) -> tuple[str | None, int]:
    """As many of the first plots as fit into the page, and their number."""
    for n in range(len(each["plots"]), 0, -1):
        drawn = (draw_plots(each, n) or "").encode()
        if len(drawn) <= _LARGEST:
            return f"data:image/svg+xml;base64,{base64.b64encode(drawn).decode()}", n
    return None, 0
