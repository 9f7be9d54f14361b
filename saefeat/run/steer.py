"""Steering over a run directory: recipes, generation beside its twin, the sweep over methods and strengths."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from saefeat import steering
from saefeat.baselines.fasttext import FastText
from saefeat.collection import collect
from saefeat.corpora import first_by_hash
from saefeat.dictionaries import SAE, Identity
from saefeat.forcing import Outcome, Own, measure, own_text
from saefeat.generation import BATCH, Decoding, encode_prompts, generate
from saefeat.io import UserError, read_json
from saefeat.labels import LID176, fasttext_code, own_label, to_labels
from saefeat.methods.feature_diffmean import feature_diffmean, mean_difference
from saefeat.methods.lape import lape
from saefeat.run.opened import OpenRun as Setting
from saefeat.run.stages import means
from saefeat.statistics import Stats
from saefeat.statistics.files import load_stats
from saefeat.steering import CONSTANT, Change, Schedule

BEGINNING = 10  # tokens of a label's own texts that the model continues for the reference
_SEED = 11  # of the random units


@dataclass(frozen=True)
class Recipe:
    """One way to steer, as plain data: what `steering/settings.json` keeps of each label.

    Attributes:
        method: none, features, neurons, diffmean or random.
        edit: add, or (neurons) clamp; `clamp, source off` also sets the source's own neurons to
            zero.
        sites: where; each is steered with the force of its own means.
        parameters: of the choice of units: top (features, random), top_rate (neurons).
    """

    method: str
    edit: str
    sites: tuple[str, ...]
    schedule: Schedule
    strength: float
    parameters: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def read(cls, entry: dict[str, Any]) -> Recipe:
        """The recipe of an entry of `settings.json`; raises UserError for one that saefeat does not write."""
        try:
            recipe = cls(
                entry["method"],
                entry["edit"],
                tuple(entry["sites"]),
                Schedule(**entry["schedule"]),
                float(entry["strength"]),
                dict(entry["parameters"]),
            )
            known = {
                "features": {"top"},
                "random": {"top"},
                "neurons": {"top_rate"},
                "diffmean": set(),
                "none": set(),
            }
            when = recipe.schedule
            numbers = [
                abs(recipe.strength),
                when.first,
                when.rest or 0,
                *recipe.parameters.values(),
            ]
            whole = set(recipe.parameters) == known[recipe.method] and all(
                isinstance(s, str) for s in recipe.sites
            )
            if not whole or not all(
                isinstance(n, int | float) and 0 <= n < math.inf for n in numbers
            ):
                raise ValueError("not a recipe")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                "steering/settings.json is damaged; run saefeat steer sweep again"
            ) from error
        return recipe


NONE = Recipe("none", "none", (), CONSTANT, 0.0)
DEFAULT = Recipe("features", "add", (), Schedule(), 1.3, {"top": 100})


def steering_sites(setting: Setting) -> list[str]:
    """Where features steer by default: the residual stream at the SAE nearest to 30 % depth, else every SAE's site."""
    sites = list(dict.fromkeys(sae.site for sae in setting.saes))
    stream = [site for site in sites if site.startswith("resid_post@")]
    if not stream:
        return sites
    depth = 0.3 * (setting.lm.n_layers - 1)
    return [min(stream, key=lambda site: abs(int(site.split("@")[1]) - depth))]


def stream_sites(setting: Setting) -> list[str]:
    """The residual-stream sites with an SAE, up to the one where features steer by default."""
    last = steering_sites(setting)
    sites = list(
        dict.fromkeys(sae.site for sae in setting.saes if sae.site.startswith("resid_post@"))
    )
    layer = {site: int(site.split("@")[1]) for site in sites}
    return (
        sorted((site for site in sites if layer[site] <= layer[last[0]]), key=layer.__getitem__)
        if sites
        else last
    )


def source_of(setting: Setting, source: str | None) -> str:
    """The label that is steered away from: the one asked for, or English; raises UserError where it is not there."""
    labels = setting.corpus.labels
    asked = setting.config.source if source is None else source
    english = next((label for label in labels if fasttext_code(label) == "en"), None)
    found = english if asked is None else known_label(setting, asked)
    if found is None:
        raise steering.CannotSteer(
            f"the run has no English label to steer away from; name one of {', '.join(labels)} by --source"
        )
    if len(labels) < 2:
        raise steering.CannotSteer(
            f"the run has the label {found} alone; there is nothing to steer towards"
        )
    return found


def known_label(setting: Setting, label: str) -> str:
    """The run's own label for one of any code system; raises UserError where there is none."""
    own = own_label(label, setting.corpus.labels)
    if own is None:
        raise UserError(
            f"there is no label {label!r} in this run; it has {', '.join(setting.corpus.labels)}"
        )
    return own


def recipe_for(bench: Bench, label: str, method: str = "features") -> Recipe:
    """The best setting of a label by the last sweep (or demo), or the default one where there was none."""
    path = bench.setting.out / "steering" / "settings.json"
    label = bench.target(label)
    if not path.exists():
        if method not in ("features", "diffmean"):
            raise UserError(
                f"there is no setting for {method}; methods are features and diffmean before a sweep"
            )
        sites = tuple(steering_sites(bench.setting))
        default = replace(
            DEFAULT, sites=sites, strength=0.7 if len(sites) > 1 else DEFAULT.strength
        )
        return default if method == "features" else replace(default, method=method, parameters={})
    settings = read_json(path)
    try:
        if settings["source"] != bench.source:
            raise UserError(
                f"{path} is of steering away from {settings['source']}, not {bench.source}; sweep again"
            )
        entry = (
            settings["labels"].get(label)
            if method == "features"
            else settings["methods"][method].get(label)
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} has no settings for {method}; run saefeat steer sweep again"
        ) from error
    if entry is None:
        raise steering.NoUnits(
            f"{path} has no setting for {label}; run saefeat steer sweep --labels {label}"
        )
    return Recipe.read(entry)


def continuations(
    bench: Bench, label: str, prompts: Sequence[str], recipe: Recipe, *, chat: bool = False
) -> list[dict[str, Any]]:
    """One object a prompt: the steered continuation beside its unsteered twin, judged, with perplexities."""
    label = bench.target(label)
    ids = encode_prompts(bench.setting.lm, prompts, bench.decoding.max_new_tokens, chat=chat)
    if recipe.method in ("features", "random"):
        for site in recipe.sites:
            for sae in bench.saes_at(site):
                bench.stats(sae.id)  # refused before anything is collected
    bench.need([recipe])
    ((steered,), _), ((twin,), _) = (
        bench.outcomes(one, label, ids, [one.strength]) for one in (recipe, NONE)
    )
    rows = beside(steered, twin)
    head = {"label": label, "strength": recipe.strength}
    return [{"prompt": prompt, **head, **row} for prompt, row in zip(prompts, rows, strict=True)]


def beside(steered: Outcome, twin: Outcome) -> list[dict[str, Any]]:
    """One object a prompt: text, judged and perplexity of the steered continuation and of its unsteered twin."""
    ours, twins = steered.plain(), twin.plain()
    return [
        {
            "text": text,
            "twin": twins["texts"][i],
            "judged": ours["judged"][i],
            "judged_twin": twins["judged"][i],
            "perplexity": ours["perplexity"][i],
            "perplexity_twin": twins["perplexity"][i],
        }
        for i, text in enumerate(ours["texts"])
    ]


def random_units(stats: Stats, chosen: Sequence[int], seed: int) -> list[int]:
    """As many units as were chosen, drawn from all others that fire."""
    fires = stats.fired.sum(0).bool()
    fires[list(chosen)] = False
    others = fires.nonzero().flatten()
    generator = torch.Generator().manual_seed(seed)
    return others[torch.randperm(len(others), generator=generator)[: len(chosen)]].tolist()


@dataclass
class Bench:
    """What steering a run needs: its model, statistics and judge, each loaded once.

    Statistics that the run has not collected (neurons of further layers) come into
    `RUN/steering/stats`.
    """

    setting: Setting
    source: str
    decoding: Decoding

    @property
    def labels(self) -> list[str]:
        """All labels but the source that fastText can judge."""
        others = [label for label in self.setting.corpus.labels if label != self.source]
        known = set(to_labels(LID176, self.setting.corpus.labels).values())
        if left := [label for label in others if label not in known]:
            self.setting.say(f"note: fastText cannot judge {', '.join(left)}; they are not swept")
        return [label for label in others if label in known]

    @cached_property
    def _judge(self) -> FastText:
        return FastText(labels=list(self.setting.corpus.labels), unknown=None).fit()

    def judge(self, texts: Sequence[str]) -> list[str | None]:
        """fastText's best of 176, in the run's codes where they meet."""
        best = [found[0] if found else None for found in self._judge.judge(texts)]
        names = to_labels(
            LID176, self.setting.corpus.labels
        )  # whatever codes the texts at hand happen to have
        return [None if code is None else names.get(code, code) for code in best]

    def stats(self, name: str) -> Stats:
        """Statistics of a dictionary of the run; raises UserError when they are missing or of another dictionary."""
        stats = self._stats[name]
        own = next(
            (sae.identity["fingerprint"] for sae in self.setting.saes if sae.id == name), None
        )
        if own is not None and stats.header["dictionary"].get("fingerprint") != own:
            raise UserError(
                f"the SAE {name} has changed since the statistics were collected; start a new run"
            )
        return stats

    @property
    def request(self) -> list[Any]:
        """What steering of this run depends on."""
        setting = self.setting
        marks = [sae.identity["fingerprint"] for sae in setting.saes]
        return [
            setting.lm.fingerprint,
            setting.corpus.fingerprint,
            marks,
            self.source,
            asdict(self.decoding),
        ]

    @cached_property
    def _stats(self) -> _StatsOf:
        return _StatsOf((self.setting.out / "stats", self.setting.out / "steering" / "stats"))

    def need(self, recipes: Iterable[Recipe]) -> None:
        """Collect the statistics that recipes read and that are missing: those of the identities of their sites."""
        missing = self._missing(recipes)
        if missing:
            self.setting.say("steering: collecting " + ", ".join(d.id for d in missing))
            # Each collection is a directory of its own, so that it resumes and later ones do not
            # collide.
            folder = self.setting.out / "steering" / "stats"
            collect(
                self.setting.lm,
                self.setting.plan,
                missing,
                folder / missing[0].id,
                progress=self.setting.say,
            )
            for d in missing:
                (folder / missing[0].id / f"{d.id}.safetensors").replace(
                    folder / f"{d.id}.safetensors"
                )
            shutil.rmtree(folder / missing[0].id, ignore_errors=True)

    def _missing(self, recipes: Iterable[Recipe]) -> list[Identity]:
        sites = dict.fromkeys(
            site for recipe in recipes if recipe.method != "none" for site in recipe.sites
        )
        missing = [site for site in sites if not self._stats.has(site)]
        saes = [sae for sae in self.setting.saes if sae.site in missing]
        return means(self.setting.lm, saes, self.setting.plan, missing)

    def saes_at(self, site: str) -> list[SAE]:
        found = [sae for sae in self.setting.saes if sae.site == site]
        if not found:
            have = ", ".join(sae.site for sae in self.setting.saes)
            raise UserError(f"the run has no SAE at {site}; it has them at {have}")
        return found

    def changes(self, recipe: Recipe, label: str) -> tuple[dict[str, list[Change]], int]:
        """Site -> changes of a recipe for a label, and the number of units that they are made of."""
        label = self.target(label)
        make = {"features": self._features, "random": self._features, "neurons": self._neurons}
        if recipe.method == "none":
            return {}, 0
        if recipe.method == "diffmean":
            return {
                site: [self._add(self._difference(site, label), site)] for site in recipe.sites
            }, 0
        return make[recipe.method](recipe, label)

    def target(self, label: str) -> str:
        """The run's own label for one of any code system; raises UserError where it cannot be steered towards."""
        own = known_label(self.setting, label)
        if own == self.source:
            raise UserError(
                f"{own} is the source that is steered away from; choose another label or --source"
            )
        return own

    def _add(self, vector: torch.Tensor, site: str) -> Change:
        saes = [sae for sae in self.setting.saes if sae.site == site]
        return steering.add(
            vector.to(self.setting.lm.device), steering.limit_of(self.stats(site), saes)
        )

    def _difference(self, site: str, label: str) -> torch.Tensor:
        return mean_difference(self.stats(site), label, self.source).float()

    def _features(self, recipe: Recipe, label: str) -> tuple[dict[str, list[Change]], int]:
        """What the label's features hold of the difference of means, in its length; or as many random ones."""
        changes: dict[str, list[Change]] = {}
        count = 0
        for site in recipe.sites:
            chosen = [(sae, self._units(recipe, label, sae.id)) for sae in self.saes_at(site)]
            here = sum(len(units) for _, units in chosen)
            if here:
                vector = steering.towards_with(
                    chosen, mean_difference(self.stats(site), label, self.source)
                )
                if vector.any():
                    changes[site] = [self._add(vector, site)]
                    count += here
        if not changes:
            raise steering.NoUnits(
                f"{label} has no features of low entropy at {', '.join(recipe.sites)}; use diffmean"
            )
        return changes, count

    def _units(self, recipe: Recipe, label: str, name: str) -> list[int]:
        stats, key = self.stats(name), json.dumps([name, recipe.parameters])
        if key not in self._ranked:
            selection = feature_diffmean([stats], source=self.source, **recipe.parameters)
            self._ranked[key] = selection.units(name)
        chosen = self._ranked[key][label]
        if recipe.method != "random":
            return chosen
        return random_units(stats, chosen, _SEED + stats.labels.index(label))

    @cached_property
    def _ranked(self) -> dict[str, dict[str, list[int]]]:
        return {}

    def _neurons(self, recipe: Recipe, label: str) -> tuple[dict[str, list[Change]], int]:
        """LAPE neurons set to the label's mean; `source off`: those of the source alone to zero."""
        rate = recipe.parameters["top_rate"]
        chosen = self._lape(rate, recipe.sites)
        changes: dict[str, list[Change]] = {}
        count = 0
        for site in recipe.sites:
            units = chosen[site][label]
            values = steering.label_mean(self.stats(site), label)[units].float()
            if recipe.edit.endswith("source off"):
                off = sorted(set(chosen[site][self.source]) - set(units))
                units, values = units + off, torch.cat([values, torch.zeros(len(off))])
            if units:
                identity = Identity(site, self.stats(site).width)
                changes[site] = [steering.clamp(identity, units, values.to(self.setting.lm.device))]
                count += len(units)
        if not count:
            raise steering.NoUnits(f"{label} has no LAPE neurons at top_rate {rate}; raise it")
        return changes, count

    def _lape(self, rate: float, sites: Sequence[str]) -> dict[str, dict[str, list[int]]]:
        if (rate, *sites) not in self._chosen:
            selection = lape([self.stats(site) for site in sites], top_rate=rate)
            self._chosen[rate, *sites] = {site: selection.units(site) for site in sites}
        return self._chosen[rate, *sites]

    @cached_property
    def _chosen(self) -> dict[tuple[Any, ...], dict[str, dict[str, list[int]]]]:
        return {}

    def outcomes(
        self,
        recipe: Recipe,
        label: str,
        prompts: Sequence[Sequence[int]],
        strengths: Sequence[float],
    ) -> tuple[list[Outcome], int]:
        """What each strength of a recipe does to the prompts (token ids), all in one batch, and the count of units."""
        changes, count = self.changes(recipe, label)
        n, rows = len(prompts), []
        # Strengths stand side by side in a batch where several fit, and each sees the same random
        # numbers.
        step = max(1, BATCH // n)
        for start in range(0, len(strengths), step):
            some = strengths[start : start + step]
            each = (
                some[0]
                if len(some) == 1
                else torch.tensor([strength for strength in some for _ in range(n)])
            )
            with steering.apply(self.setting.lm, changes, each, recipe.schedule):
                rows += generate(self.setting.lm, [*prompts] * len(some), self.decoding, repeat=n)
        outcome = measure(self.setting.lm, [*prompts] * len(strengths), rows, self.judge)
        return [outcome.of(range(i * n, (i + 1) * n)) for i in range(len(strengths))], count

    def own(self, label: str, n: int) -> Own:
        """The model's own text in a label: unsteered continuations of the first tokens of n of its test texts."""
        setting = self.setting
        corpus, seed = setting.corpus, setting.config.seed
        positions = [i for i in corpus.positions("test", seed) if corpus.of[i] == label]
        picked = first_by_hash(corpus, positions, seed, 4 * n)
        rows = setting.lm.tokenize([corpus.texts[i] for i in picked], BEGINNING)
        begun = [setting.lm.prefix + row for row in rows if len(row) == BEGINNING][:n]
        if not begun:
            raise UserError(
                f"{label} has no test text of {BEGINNING} tokens, so no text of the model's own to compare"
            )
        own = own_text(setting.lm, label, begun, self.decoding, self.judge)
        if not math.isfinite(own.perplexity):
            raise UserError(
                f"the model's own text in {label} is too short to measure; allow more new tokens"
            )
        return own


@dataclass
class _StatsOf:
    """Statistics by dictionary id from several directories, loaded once."""

    folders: tuple[Path, ...]
    loaded: dict[str, Stats] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        return any((folder / f"{name}.safetensors").is_file() for folder in self.folders)

    def __getitem__(self, name: str) -> Stats:
        if name not in self.loaded:
            folder = next(
                (f for f in self.folders if (f / f"{name}.safetensors").is_file()), self.folders[0]
            )
            self.loaded[name] = load_stats(folder, name)
        return self.loaded[name]
