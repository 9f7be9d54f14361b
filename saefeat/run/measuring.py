"""Measure the units of contenders, one label after the other, with a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from saefeat.forcing import Measured, Reference
from saefeat.generation import BATCH
from saefeat.progress import track
from saefeat.resume import Checkpoint
from saefeat.run.chosen import Chosen, chosen_units, every_unit, random_twins, random_unions
from saefeat.run.contenders import Contender
from saefeat.run.summaries import summarize_ablation, summarize_steering
from saefeat.run.trials import Trials
from saefeat.statistics.files import load_stats

Values = dict[str, Any]
_Job = tuple[str, dict[str, list[int]], dict[str, list[int]]]  # label, units, random units


class Measuring:
    """Measures contenders, with random units beside them. What a checkpoint has is kept."""

    def __init__(self, trials: Trials, found: Sequence[Contender], checkpoint: Checkpoint) -> None:
        self.trials, self.checkpoint = trials, checkpoint
        self.pools = [each.pool for each in found]  # one after the other
        self.rows = [chosen_units(each.selection) for each in found]
        self.read = partial(load_stats, trials.stats)
        twins = random_twins(self.rows, self.read)
        self.pairs = {
            f"{each.pool} {each.method}": pair
            for each, *pair in zip(found, self.rows, twins, strict=True)
        }
        self.sites = {
            name: header["site"]
            for each in found
            for name, header in each.selection.dictionaries.items()
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
            both = [*self.rows, *random_unions(self.rows, self.read)]
            self.state["identification"] = self.trials.identify(both)
            self.checkpoint.save(self.state)
        found = self.state["identification"]
        for own, twin in zip(found, found[len(self.rows) :], strict=False):
            yield {
                length: {
                    **own[length],
                    "random": twin[length]["f1_macro"],
                    "random_ci": twin[length]["f1_macro_ci"],
                }
                for length in own
            }

    def _can_ablate(self) -> bool:
        why = ""
        if len(self.trials.texts) < 2:
            why = "it needs two labels with test texts"
        elif not self.trials.dictionaries.fit(every_unit(self.rows)):
            why = "the encoders of all SAEs together do not fit in memory"
        if why:
            self.trials.opened.say(f"note: rules are compared without ablation: {why}")
        return not why

    def _ablate(self) -> Iterator[Values | None]:
        if "baseline" not in self.state:
            self.state["baseline"] = self.trials.losses()
        done = self._each(
            "ablation",
            self.trials.texts,
            1,
            lambda pairs: [[self.trials.losses(units) for units in pair] for _, *pair in pairs],
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
        config = self.trials.config
        rows = 2 * config.prompts * len(config.strengths)  # of a label, decoded together
        done = self._each("steering", references, max(1, BATCH // rows), self._steer_pairs)
        found = [
            self._steered(done[key], references, row)
            for key, row in zip(self.pairs, self.rows, strict=True)
        ]
        for pool in dict.fromkeys(self.pools):
            mine = [each for of, each in zip(self.pools, found, strict=True) if of == pool]
            yield from _at_best_strength(mine)

    def _steer_pairs(self, pairs: Sequence[_Job]) -> list[list[Any]]:
        jobs = [(label, units) for label, *pair in pairs for units in pair]
        found = [[asdict(one) for one in each] for each in self.trials.steer(jobs)]
        return [found[i : i + 2] for i in range(0, len(found), 2)]

    def _steered(
        self, done: Mapping[str, list[Any]], references: Mapping[str, Reference], row: Chosen
    ) -> list[Values | None]:
        """The summary of one contender at each strength."""
        config, found = self.trials.config, []
        counts = [len({self.sites[name] for name in row[label]}) for label in done]
        sites = sum(counts) / max(len(counts), 1)
        for at, strength in enumerate(config.strengths):
            one, twin = (
                {label: Measured(**pair[side][at]) for label, pair in done.items()}
                for side in (0, 1)
            )
            summary = summarize_steering(one, twin, references, strength, sites, seed=config.seed)
            found.append(summary)
        return found

    def _each(
        self,
        name: str,
        labels: Iterable[str],
        together: int,
        measure: Callable[[Sequence[_Job]], list[list[Any]]],
    ) -> dict[str, dict[str, list[Any]]]:
        """Measure the units of each label of each contender, and their random twins.

        Args:
            together: labels of one contender that are measured at once.
            measure: returns two results for each label that it gets.

        Returns:
            contender -> label with units -> the two results.
        """
        done: dict[str, dict[str, list[Any]]] = self.state.setdefault(name, {})
        left: list[tuple[str, list[_Job]]] = []
        for key, (row, twin) in self.pairs.items():
            here = done.setdefault(key, {})
            jobs = [(x, row[x], twin[x]) for x in labels if row[x] and x not in here]
            left += [(key, jobs[i : i + together]) for i in range(0, len(jobs), together)]
        total = sum(len(jobs) for _, jobs in left)
        with track(self.trials.opened.say, f"compare: {name}", total, "labels") as bar:
            for key, jobs in left:
                bar.set_postfix_str(key, refresh=False)
                for job, results in zip(jobs, measure(jobs), strict=True):
                    done[key][job[0]] = results
                self.checkpoint.save(self.state)
                bar.update(len(jobs))
        return done


def _at_best_strength(rules: Sequence[Sequence[Values | None]]) -> list[Values | None]:
    """Of the results of each rule by strength, those at the strength of the best mean score."""
    known = [each for each in rules if each[0]]
    totals = [sum(one["score"] for one in at if one) for at in zip(*known, strict=True)]
    best = int(np.argmax(totals)) if totals else 0
    return [each[best] for each in rules]
