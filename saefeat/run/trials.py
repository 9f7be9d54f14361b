"""Trials of chosen units: identification, ablation and steering, with random units beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch

from saefeat.config import CONSTANT, CompareConfig, Schedule
from saefeat.dictionaries import Dictionary, Identity
from saefeat.evaluation import head_metrics
from saefeat.forcing import Measured, Reference
from saefeat.generation import encode_prompts, losses_by_label
from saefeat.lid.features import featurize
from saefeat.lid.heads.naive_bayes import naive_bayes_head
from saefeat.run.chosen import Chosen, Opened, at_sites, every_unit
from saefeat.run.evaluate_heads import choose_positions
from saefeat.run.grids import english_prompts
from saefeat.run.opened import OpenRun
from saefeat.run.steer import Bench, pick_test_texts
from saefeat.statistics.files import load_stats, stats_header
from saefeat.steering import CannotSteer, apply
from saefeat.steering.changes import Collected, build_changes

LENGTHS = {"all": None, "20": 20}  # characters of the texts that are identified

Values = dict[str, Any]


@dataclass
class Trials:
    """Measures units on the test texts of a run.

    Attributes:
        stats: the directory of statistics from which the units were chosen.
        labels: those whose units are ablated and steer.
        bench: None where nothing can be steered.
    """

    opened: OpenRun
    config: CompareConfig
    stats: Path
    labels: Sequence[str]
    bench: Bench | None

    @cached_property
    def dictionaries(self) -> Opened:
        """The SAEs of the run, and identities as they are asked for."""
        return Opened(self.opened.saes, self._header, self.opened.lm.device)

    def _header(self, name: str) -> Mapping[str, Any]:
        return stats_header(self.stats, name)["dictionary"]

    # ----------------------------------------------------------------- identification

    def identify(self, rows: Sequence[Chosen]) -> list[dict[str, Values]]:
        """Metrics by length of naive Bayes on the units of each row."""
        opened, load = self.opened, partial(load_stats, self.stats)
        labels, seed = opened.corpus.labels, opened.config.seed
        used = every_unit(rows)
        read = [self._reader(name, units) for name, units in used.items()]
        heads = [
            naive_bayes_head(load, [*units], labels, units) if units else None
            for units in (every_unit([row]) for row in rows)
        ]
        where = choose_positions(opened.corpus, "test", seed, self.config.eval_texts)
        texts = [opened.corpus.texts[i] for i in where]
        truth = [opened.corpus.of[i] for i in where]
        found: list[dict[str, Values]] = [{} for _ in rows]
        for name, length in LENGTHS.items():
            cut = [text[:length] for text in texts]
            features = featurize(opened.lm, read, cut, letters=False, say=opened.say)
            for row, head in zip(found, heads, strict=True):
                guess = head.predict(features) if head else [None] * len(texts)
                metrics = head_metrics(truth, guess, labels, seed=seed)
                row[name] = {key: metrics[key] for key in ("f1_macro", "f1_macro_ci")}
        return found

    def _reader(self, name: str, units: Sequence[int]) -> Dictionary:
        """A dictionary for reading texts; of an identity, the units that are needed alone."""
        found = self.dictionaries.read(name)
        if not isinstance(found, Identity):
            return found
        index = torch.tensor(units, device=self.opened.lm.device)
        return Identity(found.site, found.width, max_norm=found.max_norm, units=index)

    # ----------------------------------------------------------------- ablation

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        """Test texts of the labels, for ablation; no entry for a label without any."""
        found = {x: pick_test_texts(self.opened, x, self.config.sentences) for x in self.labels}
        return {label: some for label, some in found.items() if some}

    def losses(self, units: Mapping[str, list[int]] | None = None) -> dict[str, list[float | None]]:
        """Mean NLL of each text, by label, with some units set to zero; None where there is none.

        `units`: by dictionary; None: the model as it is.
        """
        changes = {}
        if units:
            changes = build_changes(
                "ablate", at_sites(units, self.dictionaries.edit), "", self.collected
            )
        with apply(self.opened.lm, changes, 1.0, CONSTANT):
            return losses_by_label(self.opened.lm, self.texts)

    # ----------------------------------------------------------------- steering

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Token ids of prompts, evenly spread over the fixed English ones."""
        assert self.bench
        every, n = english_prompts(), self.config.prompts
        spread = [every[i * len(every) // n] for i in range(n)]
        return encode_prompts(self.opened.lm, spread, self.bench.decoding.max_new_tokens)

    @cached_property
    def collected(self) -> Collected:
        """The means of the sites. Without steering there is no source label."""
        source = self.bench.source_label if self.bench else None
        return Collected(cache(partial(load_stats, self.stats)), source, self.opened.lm.device)

    @cached_property
    def steered(self) -> list[str]:
        """The labels that can be steered towards and judged."""
        assert self.bench
        return [label for label in self.bench.judged_labels() if label in self.labels]

    def reference(self, label: str) -> Reference | None:
        """The model's own text in a label; None where there is nothing to measure."""
        assert self.bench
        try:
            return self.bench.measure_reference(label, self.config.prompts)
        except CannotSteer as error:
            self.opened.say(f"note: {label} is not steered: {error}")
            return None

    def steer(self, several: Sequence[tuple[str, dict[str, list[int]]]]) -> list[list[Measured]]:
        """Add the difference of means along units, at all their sites and at each strength.

        `several`: a label to steer towards, and its units by dictionary.
        """
        assert self.bench
        changes = [
            build_changes("add", at_sites(units, self.dictionaries.read), label, self.collected)
            for label, units in several
        ]
        strengths = self.config.strengths
        return self.bench.measure_changes(changes, self.prompts, strengths, Schedule())
