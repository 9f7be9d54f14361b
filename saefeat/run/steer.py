"""Steer a run: its labels, generation with the recipes of the last sweep, and measurement."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Any

import torch

from saefeat.baselines.judge import LanguageJudge
from saefeat.collection import collect
from saefeat.config import PROMPTING, RANDOM, STEERING_METHODS, Decoding, Schedule, SteeringRecipe
from saefeat.confusion import line_passes, word_passes
from saefeat.corpora import Corpus, first_by_hash
from saefeat.forcing import Measured, Reference, measure, measure_reference
from saefeat.generation import BATCH, generate
from saefeat.io import UserError
from saefeat.labels import find_english, own_label
from saefeat.run import prompting
from saefeat.run.opened import OpenRun
from saefeat.run.stages import means
from saefeat.rundir import RunDir
from saefeat.steering import CannotSteer, Change, NoUnits, apply
from saefeat.steering.changes import Collected
from saefeat.steering.evidence import Evidence
from saefeat.steering.recipes import RecipeBuilder, sites_read, with_controls

BEGINNING = 10  # tokens of a label's own texts that the model continues for the reference


def find_source(opened: OpenRun, source: str | None) -> str:
    """Find the label that is steered away from: the one asked for, or English.

    Raises UserError when the run does not have the one asked for, and CannotSteer when it has no
    English label, or no other label.
    """
    labels = opened.corpus.labels
    asked = opened.config.source if source is None else source
    found = find_english(labels) if asked is None else find_label(opened, asked, "source")
    if found is None:
        raise CannotSteer(
            f"the run has no English label to steer away from; name one of {', '.join(labels)}",
            "source",
        )
    if len(labels) < 2:
        raise CannotSteer(f"{found} is the only label of the run; there is none to steer towards")
    return found


def find_label(opened: OpenRun, label: str, *parameters: str) -> str:
    """Find the run's own label for one of any code system.

    Raises UserError if there is none; `parameters` are those that named it.
    """
    found = own_label(label, opened.corpus.labels)
    if found is None:
        raise UserError(
            f"there is no label {label!r} in this run; it has {', '.join(opened.corpus.labels)}",
            *parameters,
        )
    return found


def pick_test_texts(opened: OpenRun, label: str, n: int) -> list[str]:
    """Pick at most n texts of a label's test split, by hashed id."""
    return pick_texts(opened.corpus, label, n, opened.config.seed)


def pick_texts(corpus: Corpus, label: str, n: int, seed: int, split: str = "test") -> list[str]:
    """Pick at most n texts of a label in a split, by hashed id."""
    positions = [i for i in corpus.positions(split, seed) if corpus.of[i] == label]
    return [corpus.texts[i] for i in first_by_hash(corpus, positions, seed, n)]


def _sites_of(recipes: Iterable[SteeringRecipe]) -> list[str]:
    """The sites whose means recipes are made from, each once."""
    return list(dict.fromkeys(site for recipe in recipes for site in sites_read(recipe)))


def collect_sites(opened: OpenRun, sites: Iterable[str]) -> None:
    """Collect the statistics of the identities of sites, if the run does not have them.

    They are collected into `RUN/steering/stats`.
    """
    lm, run, say = opened.lm, opened.files, opened.say
    sites = [site for site in dict.fromkeys(sites) if not run.has_stats(site)]
    if not sites:
        return
    missing = means(lm, [sae for sae in opened.saes if sae.site in sites], opened.plan, sites)
    say("steering: collecting " + ", ".join(d.id for d in missing))
    # Each collection has a directory of its own, where it resumes after a kill.
    directory = run.steering_stats / missing[0].id
    collect(lm, opened.plan, missing, directory, say=say)
    run.take_steering_stats(directory)


@dataclass
class Bench:
    """Steers a run and measures what comes out. The model, statistics and judge are loaded once.

    Statistics that the run has not collected (neurons of further layers) are collected into
    `RUN/steering/stats`.

    Attributes:
        source_label: the label that is steered away from; see `find_source`.
        repetition_penalty: of what `measure` and `measure_changes` generate; see `generate`.
        stops: strings before the first of which these texts end; see `cut_at_stops`.
    """

    opened: OpenRun
    source_label: str
    decoding: Decoding
    repetition_penalty: float = 1.0
    stops: Sequence[str] = ()

    @property
    def run(self) -> RunDir:
        return self.opened.files

    def request(self, recipes: Sequence[SteeringRecipe]) -> list[Any]:
        """What steering of this run by recipes depends on, as JSON; see `origins`."""
        opened = self.opened
        return [
            opened.lm.fingerprint,
            opened.corpus.fingerprint,
            [sae.identity["fingerprint"] for sae in opened.saes],
            self.origins(recipes),
            self.source_label,
            asdict(self.decoding),
        ]

    def origins(self, recipes: Sequence[SteeringRecipe]) -> list[Any]:
        """What the statistics that recipes read were collected from; see `stats_origin`.

        They have to be there; see `collect_missing`.
        """
        sites = _sites_of(recipes)
        read = [*sites, *(sae.id for sae in self.opened.saes if sae.site in sites)]
        of = (STEERING_METHODS[recipe.method] for recipe in recipes)
        control = any("random_rate" in method.optional for method in of)
        return self.run.stats_origins(read, control=control)

    @cached_property
    def builder(self) -> RecipeBuilder:
        opened = self.opened
        read, control = cache(self.run.load_stats), self.run.load_control
        collected = Collected(read, self.source_label, opened.lm.device, control=control)
        return RecipeBuilder(collected, opened.saes, Evidence(opened.lm, lambda: opened.plan))

    def find_target(self, label: str, parameter: str = "label") -> str:
        """Find the run's own label for one of any code system; `parameter` is what named it.

        Raises UserError if there is none, or if it is the source label.
        """
        found = find_label(self.opened, label, parameter)
        if found == self.source_label:
            raise UserError(
                f"{found} is the source that is steered away from; choose another label",
                parameter,
                "source",
            )
        return found

    def judged_labels(self, *, with_source: bool = False) -> list[str]:
        """List the labels that fastText can judge, but the source. The others are reported."""
        labels = self.opened.corpus.labels
        others = [label for label in labels if with_source or label != self.source_label]
        if unknown := self.judge.unknown(others):
            self.opened.say(f"note: fastText cannot judge {', '.join(unknown)}; they are skipped")
        return [label for label in others if label not in unknown]

    @cached_property
    def judge(self) -> LanguageJudge:
        """fastText's best label of 176 for each text, in the run's codes where they meet."""
        return LanguageJudge(self.opened.corpus.labels)

    def passes(
        self, texts: Sequence[str], label: str
    ) -> tuple[list[bool | None], list[bool | None]]:
        """Whether all lines, and all words, of each text are in a label (`saefeat.confusion`)."""
        return line_passes(texts, label, self.judge.judge), word_passes(texts, label)

    def collect_missing(self, recipes: Iterable[SteeringRecipe]) -> None:
        """Collect the statistics of sites that recipes steer, if the run does not have them."""
        collect_sites(self.opened, _sites_of(recipes))

    def add_controls(self, recipe: SteeringRecipe, label: str) -> dict[str, SteeringRecipe]:
        """A recipe with its controls, by name (see `with_controls`); statistics are collected.

        A random twin that finds no units is reported and left out. Raises NoUnits when the recipe
        finds none for the label.
        """
        found = with_controls(recipe)
        self.collect_missing(found.values())
        self.builder.build(recipe, label)
        try:
            self.builder.build(found.get(RANDOM, recipe), label)
        except NoUnits as error:
            self.opened.say(f"note: {recipe.method} has no random twin for {label}: {error}")
            del found[RANDOM]
        return found

    def measure(
        self,
        recipe: SteeringRecipe,
        label: str,
        prompts: Sequence[Sequence[int]],
        strengths: Sequence[float],
        told: Sequence[Sequence[int]] | None = None,
    ) -> tuple[list[Measured], int]:
        """Steer prompts (token ids) by a recipe at several strengths, and measure each.

        Args:
            told: the prompts with what prompting puts before them; default from `prompts`.

        Returns:
            What is measured, one per strength, and the number of units that steered.
        """
        if recipe.method == PROMPTING and told is None:
            told = prompting.told(self.opened.lm, prompts, label)
        changes, count = self.builder.build(recipe, label)
        (found,) = self.measure_changes([changes], prompts, strengths, recipe.schedule, told=told)
        return found, count

    def measure_changes(
        self,
        several: Sequence[Mapping[str, Sequence[Change]]],
        prompts: Sequence[Sequence[int]],
        strengths: Sequence[float],
        schedule: Schedule,
        before: Mapping[str, Sequence[Change]] | None = None,
        told: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Measured]]:
        """Steer prompts (token ids) by each of several changes at each strength, and measure them.

        As many as fit are decoded in one batch. Each sees the same random numbers.

        Args:
            before: changes at strength 1 that are made before each of the several.
            told: prompts that are continued in place of `prompts`. What comes out is measured after
                `prompts`, as that of all other methods is.
        """
        lm, n, rows = self.opened.lm, len(prompts), []
        jobs = [(which, strength) for which in range(len(several)) for strength in strengths]
        step = max(1, BATCH // n)
        for start in range(0, len(jobs), step):
            some = jobs[start : start + step]
            with ExitStack() as stack:
                if before:
                    stack.enter_context(apply(lm, before, 1.0))
                for which in dict.fromkeys(each for each, _ in some):
                    # Strength 0 changes no bit of the rows of other changes.
                    at = [strength if each == which else 0.0 for each, strength in some]
                    by_row = at[0] if len(at) == 1 else torch.tensor(at).repeat_interleave(n)
                    stack.enter_context(apply(lm, several[which], by_row, schedule))
                rows += generate(
                    lm,
                    [*(told or prompts)] * len(some),
                    self.decoding,
                    repeat=n,
                    repetition_penalty=self.repetition_penalty,
                    stops=self.stops,
                )
        measured = measure(lm, [*prompts] * len(jobs), rows, self.judge, self.stops)
        each = [measured.take(i * n, (i + 1) * n) for i in range(len(jobs))]
        return [each[i : i + len(strengths)] for i in range(0, len(jobs), len(strengths))]

    def beginnings(self, label: str, n: int, *parameters: str) -> list[list[int]]:
        """The first tokens, BOS included, of at most n of a label's test texts.

        Raises CannotSteer when there is no text to continue; `parameters` named the label.
        """
        lm = self.opened.lm
        rows = lm.tokenize(pick_test_texts(self.opened, label, 4 * n), BEGINNING)
        begun = [lm.prefix + row for row in rows if len(row) == BEGINNING][:n]
        if not begun:
            raise CannotSteer(
                f"{label} has no test text of {BEGINNING} tokens that the model could continue",
                *parameters,
            )
        return begun

    def measure_reference(
        self, label: str, n: int, prompts: Sequence[Sequence[int]] | None = None
    ) -> Reference:
        """Measure unsteered continuations of the first tokens of n of a label's test texts.

        `prompts` (token ids): the same continuations are measured after these as well.
        Raises CannotSteer when there is no text to continue, or nothing to measure in what follows.
        """
        begun = self.beginnings(label, n)
        found = measure_reference(self.opened.lm, label, begun, self.decoding, self.judge, prompts)
        if not math.isfinite(found.perplexity):
            raise CannotSteer(
                f"the model's own text in {label} is too short to measure; allow more new tokens",
                "max_new_tokens",
            )
        return found
