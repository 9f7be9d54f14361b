"""Experiments on the page: the summary as a table, and the plots."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from saefeat.artefacts.experiments import Experiment
from saefeat.report.plots import draw_plots

_LARGEST = 400_000  # bytes of a drawing in the page; a larger one is a file beside the result


def experiment_views(experiments: Mapping[str, Experiment]) -> list[dict[str, Any]]:
    """What the page shows of each.

    Returns:
        file (its name without an ending), title, columns, rows, image (a data URL), drawn (whether
        there are plots) and notes.
    """
    return [
        {
            "file": file,
            "title": each["title"],
            "columns": list(each["summary"][0]) if each["summary"] else [],
            "rows": [list(row.values()) for row in each["summary"]],
            "image": _image(each),
            "drawn": bool(each["plots"]),
            "notes": each["notes"],
        }
        for file, each in experiments.items()
    ]


def _image(each: Experiment) -> str | None:
    drawn = draw_plots(each["title"], each["rows"], each["plots"])
    if drawn is None or len(drawn) > _LARGEST:
        return None
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.encode()).decode()}"
