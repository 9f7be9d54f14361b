"""Types of the files in `experiments/`: one per experiment, all in the same form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired

from pydantic import with_config
from typing_extensions import TypedDict

from saefeat.artefacts import Count, Version, require
from saefeat.schema import STRICT, ensures

Cell = str | bool | int | float | None
Row = dict[str, Cell]


@with_config(STRICT)
class Plot(TypedDict):
    """How rows are drawn.

    `lines`: `value` over the number in column `x`, a line for each value of the column `y`; of
    several rows at one point the mean is drawn. `heat`: a table with the values of `y` as rows and
    those of `x` as columns. There is a panel for each combination of values of the columns
    `panels`.

    `of`: the rows that are drawn, those of the experiment unless it says means.
    """

    kind: Literal["lines", "heat"]
    x: str
    y: str
    value: str
    panels: list[str]
    of: NotRequired[Literal["means"]]


def _check(experiment: Mapping[str, Any]) -> None:
    for name in ("rows", "summary", "means"):
        _check_columns(experiment.get(name, ()), name)
    for plot in experiment["plots"]:
        if not (rows := experiment.get(plot.get("of", "rows"))):
            require(rows is not None, "a plot is of means that are not there")
            continue
        columns = {*plot["panels"], plot["x"], plot["y"], plot["value"]}
        known = set(rows[0])
        require(columns <= known, f"a plot is of columns that are not there: {columns - known}")
        numbers = [plot["value"], *([plot["x"]] if plot["kind"] == "lines" else [])]
        for row in rows:
            drawn = row[plot["value"]] is not None
            fine = all(type(row[name]) in (int, float) for name in numbers)
            require(not drawn or fine, f"the columns {', '.join(numbers)} are not numbers")


def _check_columns(rows: Sequence[Mapping[str, Any]], name: str) -> None:
    columns = {tuple(row) for row in rows}
    require(len(columns) < 2, f"{name} have different columns")


@ensures(_check)
@with_config(STRICT)
class Experiment(TypedDict):
    """`experiments/NAME.json`: what an experiment has measured, as flat rows.

    `settings` says what was asked for; `means` are averages of the rows that are drawn, such as
    those over all labels by layer; `notes` are sentences for the reader.
    """

    schema: Version
    request: str
    threads: Count | None
    experiment: str
    title: str
    corpus: str
    settings: dict[str, Any]
    rows: list[Row]
    summary: list[Row]
    means: NotRequired[list[Row]]
    plots: list[Plot]
    notes: list[str]
