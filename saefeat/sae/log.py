"""The figures of a training, written while it runs: `training.jsonl`, and trackers on request.

A line has `step`, `tokens` (trained on, of all ranks) and `seconds` (of work, without what was done
again), and either

- `tokens_per_second`, `seconds_left`, and `sites`: site -> fvu, l0, dead and lr; or
- `evaluation`: site -> what `saefeat.sae.held_out` measures, and dead.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from saefeat.io import write_text
from saefeat.sae.curves import draw_curves
from saefeat.sae.trackers import TRACKERS

LINES, CURVES = "training.jsonl", "training.svg"


class TrainingLog:
    """Writes the lines of a training, on one rank.

    Args:
        out: the output directory.
        step: steps that are done. Lines after it, of work that is done again, are removed.
        batch_size: tokens of a step.
        trackers: names of trackers that get the figures too.
    """

    def __init__(self, out: Path, step: int, batch_size: int, trackers: Sequence[str] = ()) -> None:
        self.out, self.first, self.batch_size = out, step, batch_size
        kept = [line for line in read_lines(out / LINES) if line["step"] <= step] if step else []
        write_text(out / LINES, "".join(map(_dump, kept)))
        self.before = kept[-1]["seconds"] if kept else 0.0
        self.begun = time.monotonic()
        self.trackers = [TRACKERS[name](out, out.resolve().name, step) for name in trackers]

    def add_training(self, step: int, sites: Mapping[str, Any], bar: tqdm[Any]) -> None:
        """Write figures of the steps. `bar` counts the work, for the time that is left."""
        seconds = time.monotonic() - self.begun
        left = seconds * (bar.total - bar.n) / max(bar.n - bar.initial, 1)
        speed = (step - self.first) * self.batch_size / max(seconds, 1e-9)
        figures = {"tokens_per_second": round(speed, 1), "seconds_left": round(left, 1)}
        self._add(step, {**figures, "sites": sites})
        self._track(step, "", {"tokens_per_second": {"all": speed}, **_by_figure(sites)})

    def add_evaluation(self, step: int, sites: Mapping[str, Any]) -> None:
        """Write figures on held-out text."""
        self._add(step, {"evaluation": sites})
        totals = {name: {**found, **found["loss"]} for name, found in sites.items()}
        self._track(step, "held-out ", _by_figure(totals))

    def finish(self) -> None:
        """Draw the curves, and end the trackers: the training is done."""
        draw_lines(self.out)
        for tracker in self.trackers:
            tracker.finish()

    def _add(self, step: int, values: Mapping[str, Any]) -> None:
        seconds = round(self.before + time.monotonic() - self.begun, 1)
        line = {"step": step, "tokens": step * self.batch_size, "seconds": seconds, **values}
        with (self.out / LINES).open("a", encoding="utf-8") as file:
            file.write(_dump(line))

    def _track(self, step: int, prefix: str, found: Mapping[str, Mapping[str, float]]) -> None:
        figures = {
            f"{prefix}{name}/{site}": value
            for name, of in found.items()
            for site, value in of.items()
        }
        for tracker in self.trackers:
            tracker.add(figures, step)


def _by_figure(sites: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Site -> name -> figure the other way round, without what is no number."""
    found: dict[str, dict[str, float]] = {}
    for site, figures in sites.items():
        for name, value in figures.items():
            if isinstance(value, int | float):
                found.setdefault(name, {})[site] = value
    return found


def draw_lines(out: Path) -> None:
    """Draw the curves of the lines in an output directory, if it has lines."""
    if (out / LINES).exists():
        write_text(out / CURVES, draw_curves(list(read_lines(out / LINES))))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a training, up to one that a killed process has left unfinished."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                return
            if not isinstance(line, dict) or not {"step", "seconds"} <= line.keys():
                return
            yield line


def _dump(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
