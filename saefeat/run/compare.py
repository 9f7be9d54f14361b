"""`saefeat compare`: all rules that choose units, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from saefeat.artefacts.comparison import Comparison
from saefeat.config import CompareConfig, Decoding
from saefeat.evaluation import interval
from saefeat.forcing import Measured, Reference
from saefeat.io import SCHEMA, fingerprint, kept_json
from saefeat.progress import Say, quiet, track
from saefeat.resume import Checkpoint, check_replaceable, claim_file, clear_finished, resume
from saefeat.run.contenders import Contender, Left, find_contenders, overlaps
from saefeat.run.opened import OpenRun
from saefeat.run.steer import Bench, find_label, find_source
from saefeat.run.trials import (
    RESAMPLES,
    Trials,
    chosen_units,
    every_unit,
    random_twins,
    summarize_ablation,
    summarize_steering,
)
from saefeat.rundir import ComparisonDir
from saefeat.statistics.files import load_stats
from saefeat.steering import CannotSteer

Values = dict[str, Any]


def small_comparison(opened: OpenRun) -> CompareConfig:
    """What a run asks for: few labels, texts and prompts, and one strength."""
    config, source = opened.config, None
    with suppress(CannotSteer):
        source = find_source(opened, config.source)
    targets = [label for label in opened.corpus.labels if label != source]
    return CompareConfig(
        labels=tuple(targets[: config.compare_labels]),
        eval_texts=20,
        sentences=2,
        prompts=4,
        strengths=(1.3,),
        source=config.source,
        seed=config.seed,
    )


def compare_stats(
    source: Path, out: Path, config: CompareConfig, *, say: Say = quiet
) -> Comparison:
    """Compare what rules choose in statistics: counts, overlap, stability. No model is needed.

    Args:
        source: a directory of statistics.
        out: a directory for the result.

    Raises:
        UserError: `out` is something else, a method is unknown, or there are no statistics of SAEs
            or neurons.
    """
    files = _open_output(out)
    found, left = find_contenders(source, units=config.units, methods=config.methods, say=say)
    result = _result(found, left, _request(found, config), config, [{} for _ in found])
    with claim_file(files.metrics):
        _save(files, found, result)
    return result


def compare(
    opened: OpenRun, config: CompareConfig, *, source: Path | None = None, out: Path | None = None
) -> Comparison:
    """Compare rules on a run: what they choose, and what the chosen units do.

    Run it again to resume: what is measured is kept. With another number of threads, which changes
    figures in bfloat16, it starts again. What cannot be measured is reported and left out.

    Args:
        source: statistics of the dictionaries of the run; default its own.
        out: a directory for the result; default that of the run.

    Raises:
        UserError: `out` is something else, a method or a label is unknown, or there are no
            statistics of SAEs or neurons.
    """
    files = opened.files.comparison if out is None else _open_output(out)
    _open_output(files.root)
    names = config.labels or opened.corpus.labels
    labels = list(dict.fromkeys(find_label(opened, name) for name in names))
    source = source or opened.files.stats
    found, left = find_contenders(
        source, units=config.units, methods=config.methods, say=opened.say
    )
    request = _request(found, config, opened)
    if kept_json(files.metrics).get("request") == request:
        clear_finished(files.metrics, request)
        opened.say(f"{files.metrics} is complete already")
        return files.load_metrics()
    threads = opened.lm.threads
    with resume(files.metrics, request, "the comparison", threads, opened.say) as checkpoint:
        trials = Trials(opened, config, source, labels, _bench(opened, config))
        parts = _Measuring(trials, found, checkpoint).all()
        result = _result(found, left, request, config, parts)
        result["measured"] = {
            "corpus": opened.corpus.name,
            "threads": threads,
            "eval_texts": config.eval_texts,
            "sentences": config.sentences,
            "prompts": config.prompts,
            "source": trials.bench.source_label if trials.bench else None,
            "strengths": list(config.strengths),
            "seed": config.seed,
        }
        _save(files, found, result)
    return result


def _open_output(out: Path) -> ComparisonDir:
    files = ComparisonDir(out)
    check_replaceable(out, "comparison", lambda path: path.is_dir() and files.is_ours())
    return files


def _bench(opened: OpenRun, config: CompareConfig) -> Bench | None:
    """What steers; None where nothing is to be steered, or nothing can be."""
    if not config.prompts:
        return None
    try:
        source = find_source(opened, config.source)
    except CannotSteer as error:
        opened.say(f"note: rules are compared without steering: {error}")
        return None
    return Bench(opened, source, Decoding(seed=config.seed))


def _request(
    found: Sequence[Contender], config: CompareConfig, opened: OpenRun | None = None
) -> str:
    """What a comparison is of."""
    chosen = [[each.pool, each.method, each.selection.cells()] for each in found]
    run = [opened.lm.fingerprint, opened.corpus.fingerprint] if opened else []
    return fingerprint([chosen, run, asdict(config)])


# --------------------------------------------------------------------------- measures


class _Measuring:
    """Measures contenders and their random twins. What a checkpoint has is kept."""

    def __init__(self, trials: Trials, found: Sequence[Contender], checkpoint: Checkpoint) -> None:
        self.trials, self.checkpoint = trials, checkpoint
        self.pools = [each.pool for each in found]  # one after the other
        rows = [chosen_units(each.selection) for each in found]
        twins = random_twins(rows, partial(load_stats, trials.stats))
        self.pairs = {
            f"{each.pool} {each.method}": pair
            for each, *pair in zip(found, rows, twins, strict=True)
        }
        self.state: Values = (checkpoint.load() or ({}, {}))[0]

    def all(self) -> list[Values]:
        """The measures of each contender, as `saefeat.artefacts.comparison` names them."""
        config = self.trials.config
        parts: list[dict[str, Values | None]] = [{} for _ in self.pairs]
        if config.eval_texts:
            for part, found in zip(parts, self._identify(), strict=True):
                part["identification"] = found
        if config.sentences and self._can_ablate():
            for part, found in zip(parts, self._ablate(), strict=True):
                part["ablation"] = found
        if self.trials.bench:
            for part, found in zip(parts, self._steer(), strict=True):
                part["steering"] = found
        return parts

    def _identify(self) -> Iterator[Values]:
        if "identification" not in self.state:
            both = [row for pair in self.pairs.values() for row in pair]
            self.state["identification"] = self.trials.identify(both)
            self.checkpoint.save(self.state)
        found = self.state["identification"]
        for own, twin in zip(found[::2], found[1::2], strict=True):
            yield {
                length: {
                    **own[length],
                    "random": twin[length]["f1_macro"],
                    "random_ci": twin[length]["f1_macro_ci"],
                }
                for length in own
            }

    def _can_ablate(self) -> bool:
        used = every_unit([row for row, _ in self.pairs.values()])
        if fits := self.trials.can_ablate(used):
            return fits
        self.trials.opened.say(
            "note: rules are compared without ablation: the encoders of all SAEs together do not "
            "fit in memory"
        )
        return False

    def _ablate(self) -> Iterator[Values | None]:
        if "baseline" not in self.state:
            self.state["baseline"] = self.trials.losses()
        done = self._each_label(
            "ablation", self.trials.texts, lambda units, _: self.trials.losses(units)
        )
        for key in self.pairs:
            after, twin = ({x: pair[n] for x, pair in done[key].items()} for n in (0, 1))
            seed = self.trials.config.seed
            yield summarize_ablation(self.state["baseline"], after, twin, seed=seed)

    def _steer(self) -> Iterator[Values | None]:
        known = self.state.setdefault("references", {})
        for label in self.trials.steered:
            if label not in known:
                found = self.trials.reference(label)
                known[label] = asdict(found) if found else None
                self.checkpoint.save(self.state)
        references = {x: Reference(**values) for x, values in known.items() if values}
        done = self._each_label(
            "steering",
            references,
            lambda units, label: [asdict(each) for each in self.trials.steer(units, label)],
        )
        found = [self._steered(done[key], references) for key in self.pairs]
        for pool in dict.fromkeys(self.pools):
            mine = [each for of, each in zip(self.pools, found, strict=True) if of == pool]
            yield from _at_best_strength(mine)

    def _steered(
        self, done: Mapping[str, list[Any]], references: Mapping[str, Reference]
    ) -> list[Values | None]:
        """The summary of one contender at each strength."""
        config, found = self.trials.config, []
        for at, strength in enumerate(config.strengths):
            one, twin = (
                {label: Measured(**pair[side][at]) for label, pair in done.items()}
                for side in (0, 1)
            )
            found.append(summarize_steering(one, twin, references, strength, seed=config.seed))
        return found

    def _each_label(
        self,
        name: str,
        labels: Iterable[str],
        measure: Callable[[Mapping[str, list[int]], str], Any],
    ) -> dict[str, dict[str, list[Any]]]:
        """Measure the units of each label of each contender, and their random twins.

        Returns:
            contender -> label with units -> the two results.
        """
        done = self.state.setdefault(name, {})
        jobs = []
        for key, (row, _) in self.pairs.items():
            here = done.setdefault(key, {})
            jobs += [(key, label) for label in labels if row[label] and label not in here]
        with track(self.trials.opened.say, f"compare: {name}", len(jobs), "labels") as bar:
            for key, label in jobs:
                bar.set_postfix_str(key, refresh=False)
                done[key][label] = [measure(row[label], label) for row in self.pairs[key]]
                self.checkpoint.save(self.state)
                bar.update()
        return done


def _at_best_strength(rules: Sequence[Sequence[Values | None]]) -> list[Values | None]:
    """Of the results of each rule by strength, those at the strength of the best mean score."""
    known = [each for each in rules if each[0]]
    totals = [sum(one["score"] for one in at if one) for at in zip(*known, strict=True)]
    best = int(np.argmax(totals)) if totals else 0
    return [each[best] for each in rules]


# --------------------------------------------------------------------------- the result


def _result(
    found: Sequence[Contender],
    left: Sequence[Left],
    request: str,
    config: CompareConfig,
    parts: Sequence[Mapping[str, Any]],
) -> Comparison:
    rows = []
    for each, part in zip(found, parts, strict=True):
        units = chosen_units(each.selection)
        row = {
            "pool": each.pool,
            "method": each.method,
            "parameters": each.selection.header["parameters"],
            "units": {label: sum(map(len, some.values())) for label, some in units.items()},
            "distinct": sum(map(len, every_unit([units]).values())),
            "stability": _stability(each, config.seed),
        }
        measures = ("identification", "ablation", "steering")
        rows.append(row | {name: part.get(name) for name in measures})
    pools = {each.pool: sorted(each.selection.dictionaries) for each in found}
    return {
        "schema": SCHEMA,
        "request": request,
        "units": config.units,
        "labels": list(found[0].selection.labels) if found else [],
        "pools": pools,
        "rows": rows,
        "overlap": overlaps(found),
        "left_out": [
            {"pool": each.pool, "method": each.method, "reason": each.reason} for each in left
        ],
    }


def _stability(contender: Contender, seed: int) -> Values | None:
    """The stability, and the interval of its mean over resampled labels."""
    if contender.stability is None:
        return None
    known = np.array([v for v in contender.stability.values() if not np.isnan(v)])
    if not len(known):
        return None
    picks = np.random.default_rng(seed).integers(0, len(known), (RESAMPLES, len(known)))
    mean = float(known.mean())
    return {
        "mean": mean,
        "ci": interval(mean, known[picks].mean(1), len(known)),
        "labels": {x: None if np.isnan(v) else v for x, v in contender.stability.items()},
    }


def _save(files: ComparisonDir, found: Sequence[Contender], result: Comparison) -> None:
    for each in found:
        each.selection.save(files.selection_file(each.pool, each.method))
    files.save_metrics(result)
