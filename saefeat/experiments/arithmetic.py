"""Language arithmetics: switch the units of one label off, and those of another on.

Gurgurov et al., arXiv 2507.22608. The deactivation comes first. The model continues text of the
source label; success is the share of continuations that fastText judges to be in the target label.

The paper continues six questions of each label, greedily, with a repetition penalty of 1.1 and 256
new tokens. The defaults here are beginnings of test texts, sampled and shorter, without a penalty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from saefeat.artefacts.experiments import Experiment, Row
from saefeat.config import CONSTANT, ArithmeticConfig, Decoding
from saefeat.experiments.frame import Question, carry_out, mean_of
from saefeat.experiments.prompts import read_prompts_of
from saefeat.experiments.units import UnitBench, UnitSet, check_units
from saefeat.forcing import Measured
from saefeat.io import UserError, fingerprint
from saefeat.run.opened import OpenRun
from saefeat.run.steer import BEGINNING, Bench, find_label
from saefeat.steering import CannotSteer, Change, NoUnits, hold

NAME = "arithmetic"
_EDITS = {"additive": "shift", "replacement": "clamp", "diffmean": "contrast"}


def arithmetic(
    opened: OpenRun, config: ArithmeticConfig, decoding: Decoding, out: Path | None = None
) -> Experiment:
    """Swap every source label for every target label; see `saefeat.experiments`.

    Rows have the columns units, source, target, count (units that were edited), prompts, success,
    stays (share judged to be in the source label), perplexity (median, under the unedited model)
    and distinct3. Units "none" is the model as it is.

    Labels that are not asked for are left out where they have no prompts, and from the swaps of a
    set of units in which they have none; notes say so.

    Raises UserError for an unknown label, a label that fastText cannot judge, a source or target
    that is asked for and has no units of any set, or a file of prompts that cannot be used;
    CannotSteer where a source that is asked for has no prompts, NoUnits where no swap has units.
    """
    bench = Bench(opened, opened.corpus.labels[0], decoding, config.repetition_penalty)
    sources, targets = _labels(bench, config.from_, "from_"), _labels(bench, config.to, "to")
    if sources == targets and len(sources) == 1:
        raise UserError(f"{sources[0]} is both source and target; name two labels", "from_", "to")
    if config.activate == "none" and config.keep_source:
        raise UserError("nothing would be edited; activate or deactivate units", "activate")
    prompts = _prompts(bench, config, sources)
    sources = list(prompts)
    units = UnitBench(opened)
    sets = units.find(config.units)
    named = list(sources) if config.from_ and not config.keep_source else []
    named += targets if config.to and config.activate != "none" else []
    check_units(sets, named)
    notes = _check_swaps(sets, config, sources, targets)
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
            "prompt_fingerprint": fingerprint(prompts),
        },
        [
            {"kind": "heat", "x": "target", "y": "source", "value": value, "panels": ["units"]}
            for value in ("success", "stays")
        ],
        notes,
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


def _prompts(
    bench: Bench, config: ArithmeticConfig, sources: Sequence[str]
) -> dict[str, list[list[int]]]:
    """Source -> its prompts. Sources without any are refused if they are asked for, else reported.

    Raises CannotSteer where no source has prompts.
    """
    opened, found = bench.opened, {}
    if config.prompt_file is not None:
        path, new = Path(config.prompt_file), bench.decoding.max_new_tokens
        found = read_prompts_of(opened, path, sources, config.prompts, new)
        why, parameter = f"prompt in {path}", "prompt_file"
    else:
        for source in sources:
            with suppress(CannotSteer):
                found[source] = bench.beginnings(source, config.prompts)
        why, parameter = f"test text of {BEGINNING} tokens", "from_"
    without = [source for source in sources if source not in found]
    if without and (config.from_ is not None or not found):
        raise CannotSteer(f"{without[0]} has no {why}; choose other labels", parameter)
    if without:
        opened.say(f"note: {', '.join(without)} have no {why}; they are no sources")
    return found


def _swaps(
    units: UnitSet, config: ArithmeticConfig, source: str, targets: Sequence[str]
) -> list[tuple[str, int]]:
    """The targets of a source whose swaps have units, and how many units they edit."""
    off = 0 if config.keep_source else units.count(source)
    if not off and not config.keep_source:
        return []
    if config.activate == "none":
        return [(target, off) for target in targets]
    return [(target, off + on) for target in targets if (on := units.count(target))]


def _check_swaps(
    sets: Sequence[UnitSet],
    config: ArithmeticConfig,
    sources: Sequence[str],
    targets: Sequence[str],
) -> list[str]:
    """Notes of the sets whose swaps are fewer than those of the unedited model.

    Raises NoUnits where no set has a swap of different labels.
    """
    used = [] if config.keep_source else [*sources]
    used += [] if config.activate == "none" else [x for x in targets if x not in used]
    own = [each for each in sets if each.control is None]
    swaps = {
        each.name: sum(t != x for x in sources for t, _ in _swaps(each, config, x, targets))
        for each in own
    }
    if not any(swaps.values()):
        names = ", ".join(swaps)
        raise NoUnits(f"no two labels have units to swap by {names}; choose other units", "units")
    notes = []
    for each in own:
        if without := [label for label in used if not each.count(label)]:
            notes.append(
                f"Without units by {each.name}: {', '.join(without)}. Its means are over the other "
                f"pairs of labels, {swaps[each.name]}."
            )
    return notes


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
        config = self.config
        jobs = _swaps(units, config, source, self.targets)
        before = {} if config.keep_source else self._deactivate(units, source)
        if config.activate == "none":  # the same text for all targets
            once = self.bench.measure_changes([{}], prompts, [0.0], CONSTANT, before)
            measured = once * len(jobs)
        else:
            changes = [self.units.build(_EDITS[config.activate], units, x) for x, _ in jobs]
            alpha = config.alpha
            measured = self.bench.measure_changes(changes, prompts, [alpha], CONSTANT, before)
        return [
            self._row(units.name, source, target, count, found)
            for (target, count), (found,) in zip(jobs, measured, strict=True)
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
