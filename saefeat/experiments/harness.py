"""Tasks of lm-evaluation-harness with a steered model, beside the unsteered one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from saefeat.artefacts.experiments import Experiment, Row
from saefeat.config import HarnessConfig, SteeringRecipe
from saefeat.experiments.frame import Question, carry_out
from saefeat.io import UserError, fingerprint, first_line
from saefeat.run.opened import OpenRun
from saefeat.run.recipes import choose_recipe
from saefeat.run.steer import Bench, Decoding, find_source
from saefeat.steering.harness import check_installed, harness_model
from saefeat.steering.twins import SEED

NAME = "lm-eval"


def lm_eval(opened: OpenRun, config: HarnessConfig, out: Path | None = None) -> Experiment:
    """Measure tasks unsteered, steered by a method, and by its random twin.

    Rows have the columns method ("none" is the unsteered model, "random" the random twin of the
    method, see `saefeat.steering.recipes.with_controls`), task, metric (with the filter of
    lm-eval), value and stderr. The settings of decoding are those of the task.

    Raises UserError where lm-eval is missing, or a task is unknown or cannot be loaded.
    """
    check_installed()
    bench = Bench(opened, find_source(opened, config.source), Decoding())
    label = bench.find_target(config.label)
    recipe = choose_recipe(bench, label, config)
    with _quiet():
        tasks = _load_tasks(config)
    jobs = bench.add_controls(recipe, label)
    settings = {
        **asdict(config),
        "label": label,
        "source_label": bench.source_label,
        "recipes": {name: asdict(one) for name, one in jobs.items()},
        "statistics": fingerprint(bench.origins(list(jobs.values()))),
        "random_seed": SEED,
        "versions": _versions(),
    }
    question = Question(NAME, f"Tasks of lm-eval, steered towards {label}", settings)

    def measure(part: str) -> list[Row]:
        rows = _measure(bench, config, jobs[part], label, tasks)
        return [{"method": part, **row} for row in rows]

    out = out or opened.files.experiment_file(NAME)
    return carry_out(opened, out, question, list(jobs), measure, lambda rows: rows)


def _load_tasks(config: HarnessConfig) -> Any:
    """The manager that knows the tasks. Raises UserError where one is unknown, or has no data."""
    if config.include_path and not Path(config.include_path).is_dir():
        raise UserError(f"{config.include_path} is not a directory of tasks", "include_path")
    manager = import_module("lm_eval.tasks").TaskManager(include_path=config.include_path)
    for task in config.tasks:
        if task not in manager.all_tasks:
            raise UserError(f"lm-eval has no task {task}", "tasks")
        try:
            manager.load([task])
        except (OSError, ValueError, ImportError) as error:
            raise UserError(
                f"the task {task} cannot be loaded ({first_line(error)})", "tasks"
            ) from error
    return manager


def _measure(
    bench: Bench, config: HarnessConfig, recipe: SteeringRecipe, label: str, tasks: Any
) -> list[Row]:
    changes, _ = bench.builder.build(recipe, label)
    lm = bench.opened.lm
    with _quiet():
        model = harness_model(
            lm, changes, recipe.strength, recipe.schedule, batch_size=config.batch_size
        )
        found = import_module("lm_eval").simple_evaluate(
            model=model,
            tasks=list(config.tasks),
            num_fewshot=config.few_shot,
            limit=config.limit,
            task_manager=tasks,
            log_samples=False,
        )
    return [
        {"task": task, **row}
        for task, values in found["results"].items()
        for row in metric_rows(values)
    ]


def metric_rows(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """metric, value and stderr of each metric of a task, from lm-eval's `metric,filter` keys."""
    for key, value in values.items():
        metric, _, kept = key.partition(",")
        if not kept or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{kept}")
        yield {
            "metric": metric if kept == "none" else key,
            "value": float(value),
            "stderr": float(error) if isinstance(error, int | float) else None,
        }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's remarks below warnings."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("lm_eval", "datasets")}
