"""`steer sweep`: tune methods per label on half of the prompts, and report on the other half."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from saefeat.config import FEATURES, STEERING_METHODS, UNSTEERED, SteeringRecipe
from saefeat.confusion import pass_rates
from saefeat.forcing import Measured, Reference, compare, forces_fluently, score
from saefeat.generation import encode_prompts
from saefeat.io import SCHEMA, fingerprint, kept_json, make_dir
from saefeat.progress import track
from saefeat.resume import Checkpoint, check_replaceable, clear_finished, resume
from saefeat.run.budget import LossBudget, at_full_strength
from saefeat.run.continuation import pair_twins
from saefeat.run.prompting import longest
from saefeat.run.recipes import load_recipes
from saefeat.run.steer import BEGINNING, Bench
from saefeat.schema import checked
from saefeat.steering import CannotSteer, NoUnits
from saefeat.steering.recipes import NONE

SAMPLES = 4  # prompts of each label and method that are kept with their continuations


@dataclass
class _Swept:
    """What is found for a label: rows of the table, each method's best recipe and its texts."""

    rows: list[dict[str, Any]]  # as `saefeat.artefacts.steering.SteeringRow`
    reference: Reference
    recipes: dict[str, SteeringRecipe]
    measured: dict[str, Measured]

    def add(
        self,
        recipe: SteeringRecipe,
        label: str,
        units: int,
        half: str,
        measured: Measured,
        bench: Bench,
    ) -> dict[str, Any]:
        head = {"label": label, "units": units, "half": half, "chosen": False}
        rates = pass_rates(*bench.passes(measured.texts, label))
        row = {**asdict(recipe), **head, **score(measured, label, self.reference), **rates}
        self.rows.append(row)
        return row

    def choose(self, recipe: SteeringRecipe, measured: Measured) -> None:
        self.recipes[recipe.method], self.measured[recipe.method] = recipe, measured


def sweep(
    bench: Bench,
    grid: Sequence[SteeringRecipe],
    prompts: Sequence[str],
    out: Path,
    *,
    halves: bool = True,
    labels: Sequence[str] | None = None,
    loss_budget: float | None = None,
) -> Path:
    """Write the metrics to `out`, and `settings.json` and `samples.jsonl` to `RUN/steering`.

    Run it again to resume: finished labels are kept until a sweep of this grid is complete, also
    when it is resumed with other labels. With another number of threads, which changes figures in
    bfloat16, and with statistics that are collected anew, which change the edits, the sweep starts
    again. A label that cannot be measured (no test text, no features) is reported and skipped.

    Args:
        halves: tune on every second prompt and report on the others; else do both on all prompts,
            which flatters every method that has something to tune.
        labels: steer towards these only; default all but the source label. Settings of other
            labels are kept.
        loss_budget: give each recipe the strength that raises the loss of source texts by so many
            nats, see `LossBudget`, and the schedule `CONSTANT`; None: the strengths and schedules
            of the grid.

    Raises CannotSteer when no label is left, and UserError when `out` is something else or fastText
    cannot judge one of `labels`.
    """
    opened, run = bench.opened, bench.run
    check_replaceable(out, "result of a sweep", lambda path: "summary" in kept_json(path))
    make_dir(out.parent)
    bench.judge.check(labels or (), "labels")
    grid = grid if loss_budget is None else at_full_strength(grid)
    wanted = list(labels or bench.judged_labels())
    recipes = [asdict(recipe) for recipe in grid]
    # The last words: a sweep of an earlier version, without this reference, is not complete.
    last = ["in context", *([] if loss_budget is None else [loss_budget])]
    bench.collect_missing(grid)
    grid_mark = fingerprint([recipes, list(prompts), halves, bench.request(grid), *last])
    request = fingerprint([grid_mark, wanted])
    if kept_json(out).get("request") == request:
        clear_finished(run.settings, grid_mark)
        opened.say(f"{out} is complete already")
        return out
    threads = opened.lm.threads
    # Read before the work: a damaged file is reported and stays.
    before = load_recipes(run) if run.settings.exists() else (None, {})
    with resume(run.settings, grid_mark, "the sweep", threads, opened.say) as checkpoint:
        # The model's own text stands after a prompt and its beginning, an instruction before it.
        room = max(BEGINNING, longest(opened.lm, grid, wanted))
        ids = encode_prompts(opened.lm, prompts, bench.decoding.max_new_tokens + room)
        parts = {"tune": ids[::2], "report": ids[1::2]} if halves else {"all": ids}
        budget = None if loss_budget is None else LossBudget(bench, loss_budget)
        found = _sweep_labels(bench, grid, wanted, parts, checkpoint, budget)
        if not found:
            raise CannotSteer(f"none of {', '.join(wanted)} can be steered; the notes say why")
        run.save_samples(_samples(found, prompts[1::2] if halves else prompts))
        _save_settings(bench, found, before)
        methods = dict.fromkeys(method for swept in found.values() for method in swept.recipes)
        metrics = {
            "schema": SCHEMA,
            "request": request,
            "grid": grid_mark,
            "prompts": len(prompts),
            "threads": threads,
            "source": bench.source_label,
            "decoding": bench.decoding,
            **({} if loss_budget is None else {"loss_budget": loss_budget}),
            "own": {label: swept.reference for label, swept in found.items()},
            "rows": [row for swept in found.values() for row in swept.rows],
            "summary": [_summarize(method, found) for method in methods],
        }
        run.save_steering_metrics(metrics, out)
    return out


# --------------------------------------------------------------------------- one label


def _sweep_labels(
    bench: Bench,
    grid: Sequence[SteeringRecipe],
    wanted: Sequence[str],
    parts: dict[str, list[list[int]]],
    checkpoint: Checkpoint,
    budget: LossBudget | None,
) -> dict[str, _Swept]:
    """Sweep the labels that the checkpoint lacks; labels that cannot be steered are skipped."""
    say = bench.opened.say
    kept, _ = checkpoint.load() or ({}, {})
    found = checked(dict[str, _Swept], kept, checkpoint.path)
    left = [label for label in wanted if label not in found]
    with track(say, "steering", len(left), "labels") as bar:
        for label in left:
            try:
                found[label] = _sweep_label(bench, grid, label, parts, budget)
            except CannotSteer as error:
                say(f"note: {label} is skipped: {error}")
            else:
                checkpoint.save({name: asdict(swept) for name, swept in found.items()})
                best = found[label].rows[-1]
                result = f"forcing {best['forcing']:.2f}, score {best['score']:.3f}"
                bar.set_postfix_str(f"{label}: {best['method']} {result}", refresh=False)
            bar.update()
    return {label: found[label] for label in wanted if label in found}


def _sweep_label(
    bench: Bench,
    grid: Sequence[SteeringRecipe],
    label: str,
    parts: dict[str, list[list[int]]],
    budget: LossBudget | None,
) -> _Swept:
    """Try every recipe on the first part of the prompts, and each method's best on the last."""
    first, last = next(iter(parts)), list(parts)[-1]
    ids = [prompt for part in parts.values() for prompt in part]
    reference = bench.measure_reference(label, len(ids), ids)
    swept = _Swept([], reference, {}, {})
    _tune(swept, bench, grid, label, first, parts[first], budget)
    if not any(STEERING_METHODS[method].basic for method in swept.recipes):
        raise NoUnits(f"neither features nor the difference of means steer towards {label}")
    if last != first:
        for recipe in list(swept.recipes.values()):
            (measured,), units = bench.measure(recipe, label, parts[last], [recipe.strength])
            swept.add(recipe, label, units, last, measured, bench)["chosen"] = True
            swept.choose(recipe, measured)
    order = sorted(swept.recipes, key=lambda method: method == FEATURES)
    swept.rows.sort(key=lambda row: (row["half"] != first, order.index(row["method"])))
    return swept


def _tune(
    swept: _Swept,
    bench: Bench,
    grid: Sequence[SteeringRecipe],
    label: str,
    half: str,
    ids: list[list[int]],
    budget: LossBudget | None,
) -> None:
    """Measure every recipe, all strengths of one together, and choose the best of each method.

    With a budget, a recipe has one strength.

    The best has the greatest score among those that force the label fluently, or among all if none
    does.
    """
    best: dict[str, dict[str, Any]] = {}

    def rank(row: dict[str, Any]) -> tuple[bool, float]:
        return forces_fluently(row, swept.reference), row["score"]

    for _, group in groupby([NONE, *grid], key=lambda recipe: replace(recipe, strength=0.0)):
        recipes = list(group)
        method = recipes[0].method
        try:
            if budget is not None:
                recipes = [budget.fit(recipes[0], label)]
            found, units = bench.measure(recipes[0], label, ids, [r.strength for r in recipes])
        except NoUnits as error:
            bench.opened.say(f"note: {method} is skipped for {label}: {error}")
            continue
        for recipe, measured in zip(recipes, found, strict=True):
            row = swept.add(recipe, label, units, half, measured, bench)
            if method not in best or rank(row) > rank(best[method]):
                best[method] = row
                swept.choose(recipe, measured)
    for row in best.values():
        row["chosen"] = True


# --------------------------------------------------------------------------- the files


def _samples(found: Mapping[str, _Swept], prompts: Sequence[str]) -> Iterator[dict[str, Any]]:
    for label, swept in found.items():
        for method, recipe in swept.recipes.items():
            if method == UNSTEERED:
                continue
            pairs = pair_twins(swept.measured[method], swept.measured[UNSTEERED])[:SAMPLES]
            for prompt, row in zip(prompts, pairs, strict=False):
                head = {"label": label, "method": method, "strength": recipe.strength}
                yield {**head, "prompt": prompt, **row}


def _save_settings(bench: Bench, found: Mapping[str, _Swept], before: tuple[Any, Any]) -> None:
    """Save the recipe of each method and label; those of other labels stay as they are."""
    source, methods = before
    if source != bench.source_label:
        methods = {}
    for label, swept in found.items():
        for method, recipe in swept.recipes.items():
            methods.setdefault(method, {})[label] = recipe
    settings = {
        "schema": SCHEMA,
        "source": bench.source_label,
        "decoding": bench.decoding,
        "labels": methods.get(FEATURES, {}),
        "methods": {method: recipes for method, recipes in methods.items() if recipes},
    }
    bench.run.save_settings(settings)


def _summarize(method: str, found: Mapping[str, _Swept]) -> dict[str, Any]:
    """Average a method's chosen settings, and compare features with it on the same labels."""
    having = {label: swept for label, swept in found.items() if method in swept.recipes}
    references = {label: swept.reference for label, swept in having.items()}
    measured = {label: swept.measured[method] for label, swept in having.items()}
    chosen = [
        row
        for swept in having.values()
        for row in swept.rows
        if row["chosen"] and (row["method"], row["half"]) == (method, swept.rows[-1]["half"])
    ]
    scored = compare(measured, measured, references)
    measures = ("forcing", "perplexity", "distinct3")
    summary = {
        "method": method,
        "labels": len(having),
        "sites": list(dict.fromkeys(site for row in chosen for site in row["sites"])),
        **{name: _mean([row[name] for row in chosen]) for name in measures},
        "reached": sum(forces_fluently(row, references[row["label"]]) for row in chosen),
        "score": scored["score"],
        "score_ci": scored["score_ci"],
    }
    in_context = {x: after for x, one in references.items() if (after := one.in_context)}
    if len(in_context) == len(references):
        scored = compare(measured, measured, in_context)
        summary |= {f"score_in_context{end}": scored[f"score{end}"] for end in ("", "_ci")}
    both = {x: one.measured[FEATURES] for x, one in having.items() if FEATURES in one.recipes}
    if method != FEATURES and both:
        ahead = compare(both, {label: measured[label] for label in both}, references)
        summary["features_ahead_by"] = ahead["difference"]
        summary["features_ahead_ci"] = ahead["difference_ci"]
    return summary


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
