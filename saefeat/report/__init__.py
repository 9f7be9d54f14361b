"""The report: a run directory as one self-contained HTML page, opened from disk without a network."""

from __future__ import annotations

from pathlib import Path

from saefeat.io import UserError, write_bytes
from saefeat.report.page import render
from saefeat.report.parts import read_run

__all__ = ["write_report"]

_PARTS = ("run.json", "saes", "stats", "selections", "lid")


def write_report(run: Path) -> Path:
    """Write `run/report.html` atomically and return its path; the same run directory gives the same bytes.

    Parts that the run does not have are named as missing on the page.

    Raises:
        UserError: `run` is not a run directory, or one of its files is damaged.
    """
    if not run.is_dir():
        raise UserError(f"{run} is not a directory; give the --out of `saefeat run` or `saefeat demo`")
    if not any((run / name).exists() for name in _PARTS):
        raise UserError(f"{run} is not a run directory: it holds none of {', '.join(_PARTS)}")
    page = render(read_run(run))
    # Text of a corpus may hold lone surrogates, which UTF-8 cannot.
    write_bytes(run / "report.html", page.encode("utf-8", "replace"))
    return run / "report.html"
