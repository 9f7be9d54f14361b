"""`steer sweep`: tune methods per label on half of the prompts, and report on the other half."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NotRequired

from pydantic import with_config
from typing_extensions import TypedDict

from saefeat.config import Decoding
from saefeat.forcing import Measured, Reference, Scored, compare, forces_fluently, score
from saefeat.generation import encode_prompts
from saefeat.io import SCHEMA, UserError, fingerprint, kept_json, make_dir, write_json, write_text
from saefeat.progress import track
from saefeat.resume import clear_finished, resume
from saefeat.run.steer import Bench, Settings, pair_twins
from saefeat.rundir import RunDir
from saefeat.schema import STRICT, checked, read
from saefeat.steering import NONE, CannotSteer, NoUnits, Schedule, SteeringRecipe

SAMPLES = 4  # prompts of each label and method that are kept with their continuations


class Row(Scored):
    """One setting of one label, measured on the prompts of one half."""

    method: str
    edit: str
    sites: list[str]
    schedule: Schedule
    strength: float
    parameters: dict[str, int | float]
    label: str
    units: int
    half: str  # tune, report, or all
    chosen: bool


class Summary(TypedDict):
    """Means over labels of a method's chosen settings."""

    method: str
    labels: int
    sites: list[str]
    forcing: float | None
    perplexity: float | None
    distinct3: float | None
    reached: int  # labels that are forced fluently
    score: float
    score_ci: list[float]
    features_ahead_by: NotRequired[float]  # on the same labels
    features_ahead_ci: NotRequired[list[float]]


@with_config(STRICT)
class Metrics(TypedDict):
    """Content of `steering/metrics.json`."""

    schema: int
    request: str
    grid: str
    prompts: int
    threads: int | None
    source: str  # the label that is steered away from
    decoding: Decoding
    own: dict[str, Reference]
    rows: list[Row]
    summary: list[Summary]


@dataclass
class _Swept:
    """What is found for a label: rows of the table, each method's best recipe and its texts."""

    rows: list[dict[str, Any]]
    reference: Reference
    recipes: dict[str, SteeringRecipe]
    measured: dict[str, Measured]


def sweep(
    bench: Bench,
    grid: Sequence[SteeringRecipe],
    prompts: Sequence[str],
    out: Path,
    *,
    halves: bool = True,
    labels: Sequence[str] | None = None,
) -> Path:
    """Write the metrics to `out`, and `settings.json` and `samples.jsonl` to `RUN/steering`.

    Run it again to resume: labels that are done are kept until all are. With another number of
    threads, which changes figures in bfloat16, the sweep starts again. A label that cannot be
    measured (no test text, no features) is reported and skipped.

    Args:
        halves: tune on every second prompt and report on the others; else do both on all prompts,
            which flatters every method that has something to tune.
        labels: steer towards these only; default all but the source label. Settings of other
            labels are kept.

    Raises CannotSteer when no label is left.
    """
    setting, run = bench.setting, bench.run
    make_dir(out.parent)
    wanted = list(labels or bench.judged_labels())
    recipes = [asdict(recipe) for recipe in grid]
    grid_mark = fingerprint([recipes, list(prompts), halves, bench.request])
    request = fingerprint([grid_mark, wanted])
    if kept_json(out).get("request") == request:
        clear_kept(out, run)
        setting.say(f"{out} is complete already")
        return out
    with resume(run.settings, request, "the sweep", setting.lm.threads, setting.say) as checkpoint:
        bench.collect_missing(grid)
        ids = encode_prompts(setting.lm, prompts, bench.decoding.max_new_tokens)
        parts = {"tune": ids[::2], "report": ids[1::2]} if halves else {"all": ids}
        before, _ = checkpoint.load() or ({}, {})
        found = checked(dict[str, _Swept], before, checkpoint.path)
        left = [label for label in wanted if label not in found]
        with track(setting.say, "steering", len(left), "labels") as bar:
            for label in left:
                try:
                    found[label] = _sweep_label(bench, grid, label, parts)
                except CannotSteer as error:
                    setting.say(f"note: {label} is skipped: {error}")
                else:
                    checkpoint.save({name: asdict(swept) for name, swept in found.items()})
                    bar.set_postfix_str(_describe(label, found[label]), refresh=False)
                bar.update()
        if not found:
            raise CannotSteer(f"none of {', '.join(wanted)} can be steered; the notes say why")
        found = {label: found[label] for label in wanted if label in found}
        head = {"request": request, "grid": grid_mark, "prompts": len(prompts)}
        _write_samples(run, found, list(prompts[1::2] if halves else prompts))
        _write_settings(bench, found)
        write_json(out, _tabulate(bench, found, {**head, "threads": setting.lm.threads}))
    return out


def clear_kept(out: Path, run: RunDir) -> None:
    """Remove the state of the sweep whose metrics are in `out`; see `resume.clear_finished`."""
    clear_finished(run.settings, kept_json(out).get("request"))


def _describe(label: str, swept: _Swept) -> str:
    best = swept.rows[-1]
    return f"{label}: {best['method']} forcing {best['forcing']:.2f}, score {best['score']:.3f}"


# --------------------------------------------------------------------------- one label


def _sweep_label(
    bench: Bench, grid: Sequence[SteeringRecipe], label: str, parts: dict[str, list[list[int]]]
) -> _Swept:
    """Try every recipe on the first part of the prompts, and each method's best on the last."""
    first, last = next(iter(parts)), list(parts)[-1]
    reference = bench.measure_reference(label, sum(map(len, parts.values())))
    swept = _tune(bench, grid, label, first, parts[first], reference)
    if "features" not in swept.recipes and "diffmean" not in swept.recipes:
        raise NoUnits(f"neither features nor the difference of means steer towards {label}")
    if last != first:
        for method, recipe in swept.recipes.items():
            (measured,), units = bench.measure(recipe, label, parts[last], [recipe.strength])
            row = _make_row(recipe, label, units, last, measured, reference)
            swept.rows.append({**row, "chosen": True})
            swept.measured[method] = measured
    order = sorted(swept.recipes, key=lambda method: method == "features")
    swept.rows.sort(key=lambda row: (row["half"] != first, order.index(row["method"])))
    return swept


def _tune(
    bench: Bench,
    grid: Sequence[SteeringRecipe],
    label: str,
    half: str,
    ids: list[list[int]],
    reference: Reference,
) -> _Swept:
    """Measure every recipe, all strengths of one together, and choose the best of each method.

    The best has the greatest score among those that force the label fluently, or among all if none
    does.
    """
    swept = _Swept([], reference, {}, {})
    best: dict[str, dict[str, Any]] = {}

    def rank(row: dict[str, Any]) -> tuple[bool, float]:
        return forces_fluently(row, reference), row["score"]

    for _, group in groupby([NONE, *grid], key=lambda recipe: replace(recipe, strength=0.0)):
        recipes = list(group)
        method = recipes[0].method
        try:
            found, units = bench.measure(recipes[0], label, ids, [r.strength for r in recipes])
        except NoUnits as error:
            bench.setting.say(f"note: {method} is skipped for {label}: {error}")
            continue
        for recipe, measured in zip(recipes, found, strict=True):
            row = _make_row(recipe, label, units, half, measured, reference)
            swept.rows.append(row)
            if method not in best or rank(row) > rank(best[method]):
                best[method], swept.recipes[method], swept.measured[method] = row, recipe, measured
    for row in best.values():
        row["chosen"] = True
    return swept


def _make_row(
    recipe: SteeringRecipe,
    label: str,
    units: int,
    half: str,
    measured: Measured,
    reference: Reference,
) -> dict[str, Any]:
    head = {"label": label, "units": units, "half": half, "chosen": False}
    return {**asdict(recipe), **head, **score(measured, label, reference)}


# --------------------------------------------------------------------------- the files


def _write_samples(run: RunDir, found: dict[str, _Swept], prompts: list[str]) -> None:
    lines = []
    for label, swept in found.items():
        for method in [method for method in swept.recipes if method != "none"]:
            strength = swept.recipes[method].strength
            head = {"label": label, "method": method, "strength": strength}
            pairs = pair_twins(swept.measured[method], swept.measured["none"])[:SAMPLES]
            for prompt, row in zip(prompts, pairs, strict=False):
                lines.append(json.dumps({**head, "prompt": prompt, **row}, ensure_ascii=False))
    write_text(run.samples, "".join(line + "\n" for line in lines))


def _write_settings(bench: Bench, found: dict[str, _Swept]) -> None:
    """Write the recipe of each method and label; those of other labels stay as they are."""
    methods: dict[str, dict[str, Any]] = {}
    for method, recipes in _settings_before(bench).items():
        methods[method] = {label: asdict(recipe) for label, recipe in recipes.items()}
    for label, swept in found.items():
        for method, recipe in swept.recipes.items():
            methods.setdefault(method, {})[label] = asdict(recipe)
    settings = {
        "schema": SCHEMA,
        "source": bench.source_label,
        "decoding": asdict(bench.decoding),
        "labels": methods.get("features", {}),
        "methods": methods,
    }
    write_json(bench.run.settings, settings)


def _settings_before(bench: Bench) -> dict[str, dict[str, SteeringRecipe]]:
    """Method -> label -> recipe of earlier sweeps that steered away from the same label."""
    try:
        before = read(Settings, bench.run.settings)
    except UserError:  # there are none, or they are damaged
        return {}
    return before["methods"] if before["source"] == bench.source_label else {}


def _tabulate(bench: Bench, found: dict[str, _Swept], head: dict[str, Any]) -> dict[str, Any]:
    """The content of `steering/metrics.json`."""
    methods = dict.fromkeys(method for swept in found.values() for method in swept.recipes)
    return {
        "schema": SCHEMA,
        **head,
        "source": bench.source_label,
        "decoding": asdict(bench.decoding),
        "own": {label: asdict(swept.reference) for label, swept in found.items()},
        "rows": [row for swept in found.values() for row in swept.rows],
        "summary": [_summarize(method, found) for method in methods],
    }


def _summarize(method: str, found: dict[str, _Swept]) -> Summary:
    """Average a method's chosen settings, and compare features with it on the same labels."""
    having = {label: swept for label, swept in found.items() if method in swept.recipes}
    references = {label: swept.reference for label, swept in having.items()}
    chosen = [
        row
        for swept in having.values()
        for row in swept.rows
        if row["chosen"] and (row["method"], row["half"]) == (method, swept.rows[-1]["half"])
    ]
    measured = {label: swept.measured[method] for label, swept in having.items()}
    scored = compare(measured, measured, references)
    summary: Summary = {
        "method": method,
        "labels": len(having),
        "sites": list(dict.fromkeys(site for row in chosen for site in row["sites"])),
        "forcing": _mean([row["forcing"] for row in chosen]),
        "perplexity": _mean([row["perplexity"] for row in chosen]),
        "distinct3": _mean([row["distinct3"] for row in chosen]),
        "reached": sum(forces_fluently(row, references[row["label"]]) for row in chosen),
        "score": scored["score"],
        "score_ci": scored["score_ci"],
    }
    both = {x: one.measured["features"] for x, one in having.items() if "features" in one.recipes}
    if method != "features" and both:
        ahead = compare(both, {label: measured[label] for label in both}, references)
        summary["features_ahead_by"] = ahead["difference"]
        summary["features_ahead_ci"] = ahead["difference_ci"]
    return summary


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
