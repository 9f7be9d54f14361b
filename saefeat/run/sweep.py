"""`steer sweep`: methods and strengths by label, tuned on one half of the prompts, reported on the other."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from saefeat.forcing import Outcome, Own, compare, reaches, row
from saefeat.generation import encode_prompts
from saefeat.io import SCHEMA, UserError, fingerprint, kept_json, make_dir, write_json, write_text
from saefeat.models import LanguageModel
from saefeat.run.stages import neuron_layers, same_threads
from saefeat.run.steer import NONE, Bench, Recipe, beside
from saefeat.steering import CONSTANT, CannotSteer, NoUnits, Schedule

STRENGTHS = (1.0, 1.3, 1.6, 2.0)
SHARED = (0.5, 0.7, 0.9, 1.2)  # strengths at each of several sites
SCHEDULES = (Schedule(), Schedule(rest=0.15))
TOP = 100  # features of a label at each SAE
START_ONLY = Schedule(first=4, rest=0.0)  # of patches: weak ones would hold the units down
SAMPLES = 4  # prompts of each label and method that are kept with their continuations


def english_prompts() -> list[str]:
    """The fixed list of English prompts, kind after kind; every second one is a half with all kinds in it."""
    kinds = json.loads(files("saefeat.run").joinpath("prompts.json").read_text(encoding="utf-8"))
    return [prompt for group in kinds.values() for prompt in group]


def full_grid(
    bench: Bench, groups: Sequence[Sequence[str]], strengths: Sequence[float] | None = None
) -> list[Recipe]:
    """What `steer sweep` tries: features, the difference of means and random units at each group of sites, and neurons.

    strengths: of the vectors; default those that serve one site or, for a group of several, each of
    them.
    """
    grid = [
        Recipe(method, "add", tuple(sites), schedule, strength, parameters)
        for method, parameters, schedules in (
            ("features", {"top": TOP}, SCHEDULES),
            ("diffmean", {}, SCHEDULES),
            ("random", {"top": TOP}, SCHEDULES[:1]),
        )
        for sites in groups
        for schedule in schedules
        for strength in strengths or (SHARED if len(sites) > 1 else STRENGTHS)
    ]
    layers = neuron_sites(bench.setting.lm)
    off = "clamp, source off"
    patches = (
        ("clamp", CONSTANT, 0.05),
        (off, CONSTANT, 0.03),
        (off, CONSTANT, 0.05),
        (off, START_ONLY, 0.05),
    )
    grid += [
        Recipe("neurons", edit, layers, schedule, strength, {"top_rate": rate})
        for edit, schedule, rate in patches
        for strength in (1.0, 1.5)
        if layers
    ]
    return grid


def neuron_sites(lm: LanguageModel) -> tuple[str, ...]:
    """`mlp_act` of every layer that has it; none for a family whose neurons are not known."""
    try:
        return tuple(f"mlp_act@{layer}" for layer in neuron_layers(lm))
    except UserError:
        return ()


def demo_grid(sites: Sequence[str]) -> list[Recipe]:
    """What the demo tries: features and the difference of means."""
    return [
        Recipe(method, "add", tuple(sites), Schedule(), strength, parameters)
        for method, parameters in (("features", {"top": TOP}), ("diffmean", {}))
        for strength in (SHARED if len(sites) > 1 else STRENGTHS)
    ]


@dataclass
class _Label:
    """What the sweep found for a label: rows of the table, and of each method the best recipe and its outcome."""

    rows: list[dict[str, Any]]
    own: Own
    recipes: dict[str, Recipe]
    outcomes: dict[str, Outcome]

    def plain(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "own": asdict(self.own),
            "recipes": {method: recipe.plain() for method, recipe in self.recipes.items()},
            "outcomes": {method: outcome.plain() for method, outcome in self.outcomes.items()},
        }

    @classmethod
    def read(cls, entry: dict[str, Any]) -> _Label:
        recipes = {method: Recipe.read(recipe) for method, recipe in entry["recipes"].items()}
        outcomes = {method: Outcome.read(outcome) for method, outcome in entry["outcomes"].items()}
        return cls(entry["rows"], Own(**entry["own"]), recipes, outcomes)


def sweep(
    bench: Bench,
    grid: Sequence[Recipe],
    prompts: Sequence[str],
    out: Path,
    *,
    halves: bool = True,
    labels: Sequence[str] | None = None,
) -> Path:
    """Write the metrics to `out`, and `settings.json` and `samples.jsonl` to `RUN/steering`; run again to resume.

    Labels are kept one by one in `RUN/steering/partial` until all that were asked for are done.
    Those that were measured with another number of threads, whose figures differ in bfloat16, are
    measured again. A label that cannot be measured (no test text, no features) is said and left
    out.

    halves: tune on every second prompt and report on the others. Else all prompts do both, which
    flatters every method that has something to tune.
    labels: steer towards these only; default all but the source. Settings of others are kept.

    Raises UserError when no label is left.
    """
    folder = make_dir(bench.setting.out / "steering")
    make_dir(out.parent)
    wanted = list(labels or bench.labels)
    request = fingerprint(
        [[recipe.plain() for recipe in grid], list(prompts), halves, bench.request]
    )
    whole = fingerprint([request, wanted])
    if kept_json(out).get("request") == whole:
        clear_kept(out, folder)
        bench.setting.say(f"{out} is complete already")
        return out
    bench.need(grid)
    ids = encode_prompts(bench.setting.lm, prompts, bench.decoding.max_new_tokens)
    parts = {"tune": ids[::2], "report": ids[1::2]} if halves else {"all": ids}
    texts = list(prompts[1::2] if halves else prompts)
    found: dict[str, _Label] = {}
    kept = {label: _kept(folder, request, label) for label in wanted}
    for number, label in enumerate(wanted, 1):
        if (before := kept_json(kept[label])) and same_threads(
            bench.setting.lm, before, label, bench.setting.say
        ):
            found[label] = _Label.read(before)
            continue
        try:
            found[label] = _sweep_label(bench, grid, label, parts)
        except UserError as error:
            bench.setting.say(f"note: {label} is left out: {error}")
            continue
        write_json(kept[label], {"threads": bench.setting.lm.threads, **found[label].plain()})
        best = found[label].rows[-1]
        bench.setting.say(
            f"steering: {label} ({number} of {len(wanted)}), {best['method']} forcing "
            f"{best['forcing']:.2f}, score {best['score']:.3f}"
        )
    if not found:
        raise CannotSteer(f"none of {', '.join(wanted)} can be steered; the notes above say why")
    numbers = {"prompts": len(prompts), "threads": bench.setting.lm.threads}
    _write(bench, found, texts, out, {"request": whole, "grid": request, **numbers})
    clear_kept(out, folder)
    return out


def clear_kept(out: Path, folder: Path) -> None:
    """Remove what was kept of the labels that are in the metrics `out`; a kill may have come before."""
    done = kept_json(out)
    for label in done.get("own", {}):
        _kept(folder, str(done.get("grid")), label).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another sweep's labels are still there
        (folder / "partial").rmdir()


def _kept(folder: Path, grid: str, label: str) -> Path:
    return folder / "partial" / f"{grid}-{fingerprint(label)}.json"


def _sweep_label(
    bench: Bench, grid: Sequence[Recipe], label: str, parts: dict[str, list[list[int]]]
) -> _Label:
    """Every recipe on the first part; of each method the chosen one on the last.

    Chosen is the greatest score among those that force the label fluently (`forcing.reaches`), or
    among all if none do.
    """
    first, last = next(iter(parts)), list(parts)[-1]
    own = bench.own(label, sum(map(len, parts.values())))
    rows: list[dict[str, Any]] = []
    best: dict[str, tuple[tuple[bool, float], Recipe, Outcome, dict[str, Any]]] = {}
    for _, group in groupby([NONE, *grid], key=lambda recipe: replace(recipe, strength=0.0)):
        recipes = list(group)
        try:
            outcomes, units = bench.outcomes(
                recipes[0], label, parts[first], [recipe.strength for recipe in recipes]
            )
        except NoUnits as error:
            bench.setting.say(f"note: {recipes[0].method} is left out for {label}: {error}")
            continue
        for recipe, outcome in zip(recipes, outcomes, strict=True):
            rows.append(_row(recipe, label, units, first, outcome, own))
            rank = (reaches(rows[-1], own), rows[-1]["score"])
            if recipe.method not in best or rank > best[recipe.method][0]:
                best[recipe.method] = (rank, recipe, outcome, rows[-1])
    for _, _, _, entry in best.values():
        entry["chosen"] = True
    chosen = {method: recipe for method, (_, recipe, _, _) in best.items()}
    final = {method: outcome for method, (_, _, outcome, _) in best.items()}
    if last != first:
        for method, recipe in chosen.items():
            (final[method],), units = bench.outcomes(recipe, label, parts[last], [recipe.strength])
            rows.append({**_row(recipe, label, units, last, final[method], own), "chosen": True})
    if "features" not in chosen and "diffmean" not in chosen:
        raise NoUnits(f"nothing steers {label}")
    order = sorted(chosen, key=lambda method: method == "features")
    rows.sort(key=lambda entry: (entry["half"] != first, order.index(entry["method"])))
    return _Label(rows, own, chosen, final)


def _row(
    recipe: Recipe, label: str, units: int, half: str, outcome: Outcome, own: Own
) -> dict[str, Any]:
    plain = recipe.plain()
    return {
        **{
            name: plain[name]
            for name in ("method", "edit", "sites", "schedule", "strength", "parameters")
        },
        "label": label,
        "units": units,
        "half": half,
        "chosen": False,
        **row(outcome, label, own),
    }


def _write(
    bench: Bench, found: dict[str, _Label], prompts: list[str], out: Path, head: dict[str, Any]
) -> None:
    own = {label: one.own for label, one in found.items()}
    methods = list(dict.fromkeys(method for one in found.values() for method in one.recipes))
    summary = [_summary(method, found, own) for method in methods]
    metrics = {
        "schema": SCHEMA,
        **head,
        "source": bench.source,
        "decoding": asdict(bench.decoding),
        "own": {label: asdict(one) for label, one in own.items()},
        "rows": [entry for one in found.values() for entry in one.rows],
        "summary": summary,
    }
    folder = bench.setting.out / "steering"
    before = kept_json(folder / "settings.json")
    old = before.get("methods", {}) if before.get("source") == bench.source else {}
    recipes = {
        method: old.get(method, {})
        | {
            label: one.recipes[method].plain()
            for label, one in found.items()
            if method in one.recipes
        }
        for method in dict.fromkeys([*old, *methods])
    }
    settings = {
        "schema": SCHEMA,
        "source": bench.source,
        "decoding": asdict(bench.decoding),
        "labels": recipes.get("features", {}),
        "methods": recipes,
    }
    samples = []
    for label, one in found.items():
        for method in [method for method in one.recipes if method != "none"]:
            samples += _samples(
                label, one.recipes[method], one.outcomes[method], one.outcomes["none"], prompts
            )
    write_text(
        folder / "samples.jsonl", "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples)
    )
    write_json(folder / "settings.json", settings)
    write_json(out, metrics)


def _summary(method: str, found: dict[str, _Label], own: dict[str, Own]) -> dict[str, Any]:
    """Means over labels of a method's chosen settings, and how much features are ahead of it on the same labels."""
    having = {label: one for label, one in found.items() if method in one.outcomes}
    chosen = [
        r
        for one in having.values()
        for r in one.rows
        if r["chosen"] and (r["method"], r["half"]) == (method, one.rows[-1]["half"])
    ]
    means = {
        name: _mean([r[name] for r in chosen]) for name in ("forcing", "perplexity", "distinct3")
    }
    outcomes = {label: one.outcomes[method] for label, one in having.items()}
    scored = compare(outcomes, outcomes, own)
    sites = dict.fromkeys(site for entry in chosen for site in entry["sites"])
    reached = sum(reaches(entry, own[entry["label"]]) for entry in chosen)
    entry = {
        "method": method,
        "labels": len(having),
        "sites": list(sites),
        **means,
        "reached": reached,
        "score": scored["score"],
        "score_ci": scored["score_ci"],
    }
    both = [label for label, one in having.items() if "features" in one.outcomes]
    if method != "features" and both:
        ahead = compare(
            {label: found[label].outcomes["features"] for label in both},
            {label: outcomes[label] for label in both},
            own,
        )
        entry |= {
            "features_ahead_by": ahead["difference"],
            "features_ahead_ci": ahead["difference_ci"],
        }
    return entry


def _samples(
    label: str, recipe: Recipe, steered: Outcome, plain: Outcome, prompts: list[str]
) -> list[dict[str, Any]]:
    head = {"label": label, "method": recipe.method, "strength": recipe.strength}
    rows = beside(steered, plain)[:SAMPLES]
    return [{**head, "prompt": prompt, **row} for prompt, row in zip(prompts, rows, strict=False)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
