"""Trackers of experiments, which get the figures of a training beside its own file.

Each is one function and one line of `TRACKERS`. It is called with the output directory, a name and
the number of steps that are done, and returns what takes figures and what ends it. None needs a
network: tensorboard writes files, trackio a local database, wandb an offline run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saefeat.io import UserError, fingerprint
from saefeat.words import in_words


@dataclass(frozen=True)
class Tracker:
    """Takes figures.

    Attributes:
        add: (figures by name, step); finish: ends it.
    """

    add: Callable[[Mapping[str, float], int], object]
    finish: Callable[[], object]


def tensorboard(out: Path, name: str, step: int) -> Tracker:
    """Event files in `out/tensorboard/`. Figures after the step are hidden in what is there."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)

    def add(figures: Mapping[str, float], step: int) -> None:
        for key, value in figures.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    return Tracker(add, writer.close)


def trackio(out: Path, name: str, step: int) -> Tracker:
    """The project `saefeat` of trackio's local database (`TRACKIO_DIR`)."""
    library: Any = import_module("trackio")
    options = {"name": f"{name}-{_mark(out)[:6]}", "resume": "allow" if step else "never"}
    with redirect_stdout(sys.stderr):  # it prints
        library.init(
            project="saefeat", embed=False, auto_log_cpu=False, auto_log_gpu=False, **options
        )

    def finish() -> None:
        with redirect_stdout(sys.stderr):
            library.finish()

    return Tracker(lambda figures, step: library.log(dict(figures), step=step), finish)


def wandb(out: Path, name: str, step: int) -> Tracker:
    """An offline run in `out/wandb/`; `wandb sync` uploads it. WANDB_MODE=online sends at once."""
    import wandb

    run: Any = wandb.init(
        project="saefeat",
        name=name,
        id=_mark(out),
        resume="allow",
        dir=str(out),
        mode="online" if os.environ.get("WANDB_MODE") == "online" else "offline",
        settings=wandb.Settings(console="off", silent=True),
    )
    return Tracker(lambda figures, step: run.log(dict(figures), step=step), run.finish)


def _mark(out: Path) -> str:
    """A name for a directory that no other has."""
    return fingerprint(str(out.resolve()))


TRACKERS: dict[str, Callable[[Path, str, int], Tracker]] = {
    "tensorboard": tensorboard,
    "trackio": trackio,
    "wandb": wandb,
}


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError for an unknown tracker, and for one whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(
                f"there is no tracker {name!r}; choose from {in_words(TRACKERS)}", "log_to"
            )
        if find_spec(name) is None:
            raise UserError(
                f"{name} is not installed; run: pip install 'saefeat[{name}]'", "log_to"
            )
