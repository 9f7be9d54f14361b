"""Errors that mean "this cannot be steered", and nothing else."""

from __future__ import annotations

from saefeat.io import UserError


class CannotSteer(UserError):
    """A label or a run cannot be steered or measured. A sweep skips the label, a run the stage."""


class NoUnits(CannotSteer):
    """A label has nothing to be steered with."""
