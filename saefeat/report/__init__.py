"""The report: a run directory as one self-contained HTML page, opened from disk without a network."""

from __future__ import annotations

from pathlib import Path

from saefeat.io import UserError, write_bytes
from saefeat.report.page import render
from saefeat.report.parts import read_run
from saefeat.report.tables import write_tables

__all__ = ["write_report"]


def write_report(run: Path) -> Path:
    """Write `run/report.html` and its tables `run/tables/*.csv`, each atomically; returns the page's path.

    The same run directory gives the same bytes. Parts that the run does not have are named as
    missing on the page.

    Raises:
        UserError: `run` is not a run directory, the run is unfinished, or one of its files is
        damaged.
    """
    if not run.is_dir():
        raise UserError(
            f"{run} is not a directory; give the --out of `saefeat run` or `saefeat demo`"
        )
    view, data, tables = read_run(run)
    try:
        page = render({**view, "tables": sorted(tables)}, data)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"a file of {run} holds a value that saefeat does not write there ({error})"
        ) from error
    write_tables(run / "tables", tables)
    # Text of a corpus may hold lone surrogates, which UTF-8 cannot.
    write_bytes(run / "report.html", page.encode("utf-8", "replace"))
    return run / "report.html"
