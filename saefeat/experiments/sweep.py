"""Sweeps over edits and factors: which there are, and their rows by setting."""

from __future__ import annotations

from collections.abc import Sequence

from saefeat.artefacts.experiments import Cell, Row
from saefeat.config import SweptEdits
from saefeat.steering.changes import check_edit

_COLUMNS = ("units", "edit", "factor")
Setting = tuple[Cell, ...]  # the values of these columns


def edits_and_factors(config: SweptEdits) -> list[tuple[str, float]]:
    """The edits at each factor. Raises UserError for an unknown edit."""
    for edit in config.edits:
        check_edit(edit, "edits")
    edits, factors = dict.fromkeys(config.edits), dict.fromkeys(config.factors)
    return [(edit, factor) for edit in edits for factor in factors]


def by_setting(rows: Sequence[Row]) -> dict[Setting, list[Row]]:
    """Units, edit and factor -> their rows, in order."""
    found: dict[Setting, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in _COLUMNS), []).append(row)
    return found


def setting_columns(setting: Setting) -> Row:
    """The columns of a setting."""
    return dict(zip(_COLUMNS, setting, strict=True))
