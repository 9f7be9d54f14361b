"""The report: a run directory as one self-contained HTML page that needs no network."""

from __future__ import annotations

from pathlib import Path

from saefeat.io import UserError, write_bytes
from saefeat.report.page import render
from saefeat.report.parts import read_parts
from saefeat.report.tables import write_tables
from saefeat.report.view import drawn_data, page_view, table_rows
from saefeat.rundir import RunDir

__all__ = ["write_report"]


def write_report(run: Path) -> Path:
    """Write the page `report.html` and its tables `tables/*.csv` into a run, each file atomically.

    The same run gives the same bytes. The page names the parts that the run does not have.

    Returns the path of the page.

    Raises:
        UserError: `run` is not a run directory, the run is unfinished, or one of its files is
            damaged.
    """
    if not run.is_dir():
        raise UserError(f"{run} is not a directory; give the directory of a run")
    place = RunDir(run)
    parts = read_parts(place)
    view, tables = page_view(parts, run.resolve().name), table_rows(parts)
    page = render({**view, "tables": sorted(tables)}, drawn_data(view))
    write_tables(place, tables)
    # File names may contain lone surrogates, which UTF-8 cannot express.
    write_bytes(place.report, page.encode("utf-8", "replace"))
    return place.report
