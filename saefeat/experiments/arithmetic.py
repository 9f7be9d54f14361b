"""Language arithmetics: switch the units of one label off, and those of another on.

Gurgurov et al., arXiv 2507.22608. The deactivation comes first. The model continues text of the
source label; success is the share of continuations that fastText judges to be in the target label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from saefeat.artefacts.experiments import Experiment, Row
from saefeat.config import CONSTANT, ArithmeticConfig, Decoding
from saefeat.experiments.frame import Question, carry_out, mean_of
from saefeat.experiments.units import UnitBench, UnitSet, check_units
from saefeat.forcing import Measured
from saefeat.io import UserError
from saefeat.run.opened import OpenRun
from saefeat.run.steer import Bench, find_label
from saefeat.steering import Change, hold

NAME = "arithmetic"
_EDITS = {"additive": "shift", "replacement": "clamp", "diffmean": "contrast"}


def arithmetic(
    opened: OpenRun, config: ArithmeticConfig, decoding: Decoding, out: Path | None = None
) -> Experiment:
    """Swap every source label for every target label; see `saefeat.experiments`.

    Rows have the columns units, source, target, count (units that were edited), prompts, success,
    stays (share judged to be in the source label), perplexity (median, under the unedited model)
    and distinct3. Units "none" is the model as it is.

    Raises UserError for an unknown label, a label that fastText cannot judge, or a source or target
    without units of any set; CannotSteer where a source has no test text.
    """
    bench = Bench(opened, opened.corpus.labels[0], decoding)
    sources, targets = _labels(bench, config.from_, "from_"), _labels(bench, config.to, "to")
    if sources == targets and len(sources) == 1:
        raise UserError(f"{sources[0]} is both source and target; name two labels", "from_", "to")
    if config.activate == "none" and config.keep_source:
        raise UserError("nothing would be edited; activate or deactivate units", "activate")
    prompts = {source: bench.beginnings(source, config.prompts) for source in sources}
    units = UnitBench(opened)
    sets = units.find(config.units)
    named = list(sources) if config.from_ and not config.keep_source else []
    named += targets if config.to and config.activate != "none" else []
    check_units(sets, named)
    experiment = _Arithmetic(bench, units, config, prompts, targets)
    question = Question(
        NAME,
        "Language arithmetics: success by source and target label",
        {
            **asdict(config),
            "from_": sources,
            "to": targets,
            "sets": units.describe(sets),
            "decoding": asdict(decoding),
        },
        [
            {"kind": "heat", "x": "target", "y": "source", "value": value, "panels": ["units"]}
            for value in ("success", "stays")
        ],
    )
    by_name = {each.name: each for each in sets}
    parts = [f"{name} {source}" for name in ("none", *by_name) for source in sources]
    of = {f"{name} {x}": (by_name.get(name), x) for name in ("none", *by_name) for x in sources}

    def measure(part: str) -> list[Row]:
        return experiment.measure(*of[part])

    out = out or opened.files.experiment_file(NAME)
    return carry_out(opened, out, question, parts, measure, _summarize)


def _labels(bench: Bench, asked: Sequence[str] | None, name: str) -> list[str]:
    """The labels asked for, or all that can be judged."""
    if asked is None:
        return bench.judged_labels(with_source=True)
    found = list(dict.fromkeys(find_label(bench.opened, label, name) for label in asked))
    bench.judge.check(found, name)
    return found


class _Arithmetic:
    """Measures the swaps of one set of units and one source label."""

    def __init__(
        self,
        bench: Bench,
        units: UnitBench,
        config: ArithmeticConfig,
        prompts: Mapping[str, list[list[int]]],
        targets: Sequence[str],
    ) -> None:
        self.bench, self.units, self.config = bench, units, config
        self.prompts, self.targets = prompts, targets

    def measure(self, units: UnitSet | None, source: str) -> list[Row]:
        """Rows of all targets. A swap without units of the source or the target has no row."""
        prompts = self.prompts[source]
        if units is None:
            ((found,),) = self.bench.measure_changes([{}], prompts, [0.0], CONSTANT)
            return [self._row("none", source, target, 0, found) for target in self.targets]
        config, jobs = self.config, []
        off = 0 if config.keep_source else units.count(source)
        for target in self.targets:
            on = 0 if config.activate == "none" else units.count(target)
            if (off or config.keep_source) and (on or config.activate == "none"):
                jobs.append((target, on))
        before = {} if config.keep_source else self._deactivate(units, source)
        if config.activate == "none":  # the same text for all targets
            once = self.bench.measure_changes([{}], prompts, [0.0], CONSTANT, before)
            measured = once * len(jobs)
        else:
            changes = [self.units.build(_EDITS[config.activate], units, x) for x, _ in jobs]
            alpha = config.alpha
            measured = self.bench.measure_changes(changes, prompts, [alpha], CONSTANT, before)
        return [
            self._row(units.name, source, target, off + on, found)
            for (target, on), (found,) in zip(jobs, measured, strict=True)
        ]

    def _deactivate(self, units: UnitSet, source: str) -> dict[str, list[Change]]:
        value = self.config.deactivate
        return self.units.each(units, source, lambda d, chosen: hold(d, chosen, value))

    def _row(self, name: str, source: str, target: str, count: int, found: Measured) -> Row:
        one = found.summary(target)
        return {
            "units": name,
            "source": source,
            "target": target,
            "count": count,
            "prompts": len(found.texts),
            "success": one["forcing"],
            "stays": sum(label == source for label in found.judged) / len(found.judged),
            "perplexity": one["perplexity"],
            "distinct3": one["distinct3"],
        }


def _summarize(rows: list[Row]) -> list[Row]:
    """Means over pairs of different labels, by set of units."""
    found: list[Row] = []
    for name in dict.fromkeys(row["units"] for row in rows):
        here: list[Any] = [r for r in rows if r["units"] == name and r["source"] != r["target"]]
        columns = ("success", "stays", "perplexity", "distinct3")
        means = {column: mean_of(here, column) for column in columns}
        found.append({"units": name, "pairs": len(here), **means})
    return found
