"""The whole path over a run directory, stage after stage."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from saefeat.collection import check_ids
from saefeat.config import Decoding, MatrixConfig, RunConfig
from saefeat.io import SCHEMA, UserError, fingerprint, kept_json
from saefeat.methods import Method, run_methods
from saefeat.progress import Say, quiet
from saefeat.report import write_report
from saefeat.resume import claim, clear_finished
from saefeat.run.compare import compare_rules, small_comparison
from saefeat.run.evaluate_heads import evaluate
from saefeat.run.forecast import forecast
from saefeat.run.grids import demo_grid, english_prompts, steering_sites
from saefeat.run.identify import choose_head, fit_heads, load_heads, predict
from saefeat.run.matrix import matrix as measure_matrix
from saefeat.run.opened import OpenRun, default_sites, open_run, prepare_run
from saefeat.run.shown import add_activations, add_histograms, shown_units
from saefeat.run.stages import (
    check_fit,
    collect,
    collect_requested,
    counted_dictionaries,
    means,
    neurons,
    rank,
    set_threads,
)
from saefeat.run.steer import Bench, find_source
from saefeat.run.sweep import sweep as sweep_grid
from saefeat.sae.train import train_saes
from saefeat.statistics import run_kinds
from saefeat.steering import CannotSteer

__all__ = [
    "OpenRun",
    "RunConfig",
    "choose_head",
    "collect",
    "default_sites",
    "evaluate",
    "fit_heads",
    "load_heads",
    "neurons",
    "open_run",
    "predict",
    "rank",
    "run",
    "set_threads",
    "shown_units",
]

_PACKAGES = ("saefeat", "torch", "transformers", "numpy", "scikit-learn", "safetensors", "pyarrow")


def run(config: RunConfig, out: Path, *, say: Say = quiet, dry_run: bool = False) -> Path | None:
    """Run all stages into a directory. The same call resumes after a kill.

    Args:
        out: the run directory; it may hold an unfinished run with the same configuration.
        say: takes progress lines.
        dry_run: check everything and report the forecast, but write nothing.

    Returns:
        The path of the report, None after a dry run.

    Raises:
        UserError: something that the run was given cannot be used; raised before the long work.
        RunFailed: an activation or a loss is not finite.
    """
    threads = set_threads()
    opened = prepare_run(config, out, say)
    fit = _check_fit(opened)
    for line in forecast(opened):
        say(line)
    if dry_run:
        return None
    with claim(out):
        index = _begin_index(opened, threads)
        if fit:
            opened.files.save_fit_check(fit)
        sizes = {
            "steering": config.steer_prompts,
            "matrix": config.matrix_texts,
            "compare": config.compare_labels,
        }
        for name, stage in _STAGES.items():
            if sizes.get(name) != 0:
                with _timed(opened, index, name):
                    stage(opened)
        with _timed(opened, index, "report"):
            _show(opened)
            index["complete"] = True
            opened.files.save_index(index)
            return write_report(out)


def _train(opened: OpenRun) -> None:
    if not opened.given:
        lm, plan, say = opened.lm, opened.training_plan, opened.say
        train_saes(lm, plan, opened.sites, opened.files.saes, opened.training, say=say)


def _collect(opened: OpenRun) -> None:
    lm, plan, files = opened.lm, opened.plan, opened.files
    dictionaries = counted_dictionaries(lm, opened.saes, plan, opened.neurons)
    places = {}
    for name, kind in run_kinds(opened.config.requested).items():
        if kind.FOLDER:
            places[name] = (files.root if kind.IN_RUN else files.stats) / kind.FOLDER
    config, say = opened.config, opened.say
    collect_requested(lm, plan, dictionaries, files.stats, config, places, say=say)


def _rank(opened: OpenRun) -> None:
    for method in _methods(opened):
        opened.files.save_selection(method, rank(opened.files.stats, method))


def _methods(opened: OpenRun) -> dict[str, Method]:
    """The methods that can rank what the run has collected."""
    dictionaries = [*opened.saes, *opened.neurons]
    return run_methods([dictionary.identity for dictionary in dictionaries])


def _evaluate(opened: OpenRun) -> None:
    limit = opened.config.eval_texts
    evaluate(opened, None, out=opened.files.lid_metrics, max_texts=limit)


def _steer(opened: OpenRun) -> None:
    """Try steering on a few prompts. Figures of `steer sweep` are left alone."""
    config, out = opened.config, opened.files.steering_metrics
    with _skipped_if_impossible(opened, "steering"):
        if not out.exists():
            bench = Bench(opened, find_source(opened, config.source), Decoding(seed=config.seed))
            prompts, n = english_prompts(), config.steer_prompts
            spread = [prompts[i * len(prompts) // n] for i in range(n)]
            grid = demo_grid(steering_sites(opened))
            sweep_grid(bench, grid, spread, out, halves=False)
        clear_finished(opened.files.settings, kept_json(out).get("grid"))


def _matrix(opened: OpenRun) -> None:
    """Measure the perplexity matrix on a few texts. Figures of `steer matrix` are left alone."""
    out, texts = opened.files.matrix, opened.config.matrix_texts
    with _skipped_if_impossible(opened, "matrix"):
        if not out.exists():
            measure_matrix(opened, out, MatrixConfig(sentences=texts, edits=("ablate",)))
        clear_finished(out, kept_json(out).get("request"))


def _compare(opened: OpenRun) -> None:
    """Compare rules on a few labels and texts. Figures of `saefeat compare` are left alone."""
    files = opened.files.comparison
    if not files.metrics.exists():
        compare_rules(opened, small_comparison(opened))
    clear_finished(files.metrics, kept_json(files.metrics).get("request"))


# Name in `timings` -> what runs, in order. The report comes last.
_STAGES: dict[str, Callable[[OpenRun], None]] = {
    "train": _train,
    "collect": _collect,
    "rank": _rank,
    "lid fit": fit_heads,
    "lid evaluate": _evaluate,
    "steering": _steer,
    "matrix": _matrix,
    "compare": _compare,
}


def _show(opened: OpenRun) -> None:
    """Keep what the report shows of the ranked units: passages, activations, histograms."""
    files, saes, rows = opened.files, {sae.id: sae for sae in opened.saes}, []
    for name, method in _methods(opened).items():
        if method.shown:
            rows += shown_units(opened.lm, files.load_selection(name), saes, files.examples)
    add_activations(opened.lm, rows, saes)
    add_histograms(rows, files.histograms)
    files.save_shown(rows)


@contextmanager
def _skipped_if_impossible(opened: OpenRun, stage: str) -> Iterator[None]:
    """Report a stage that has nothing to work with, and go on without it."""
    try:
        yield
    except CannotSteer as error:
        opened.say(f"note: {stage} is skipped: {error}")


@contextmanager
def _timed(opened: OpenRun, index: dict[str, Any], stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds = round(time.monotonic() - start, 1)
    # A stage that an earlier call has finished keeps the time that it took then.
    index["timings"][stage] = max(seconds, index["timings"].get(stage, 0.0))
    opened.files.save_index(index)


def _begin_index(opened: OpenRun, threads: int) -> dict[str, Any]:
    """Write `run.json` of a run that starts or resumes. It keeps the timings of earlier calls."""
    files, corpus = opened.files, opened.corpus
    of_corpus = {"name": corpus.name, "fingerprint": corpus.fingerprint, "labels": corpus.labels}
    of_corpus |= {"examples": len(corpus), "skipped": corpus.skipped}
    index: dict[str, Any] = {
        "schema": SCHEMA,
        "arguments": opened.config,
        "versions": _versions(),
        "machine": {"device": opened.lm.device, "threads": threads},
        "seeds": {"seed": opened.config.seed},
        "model": opened.lm.identity,
        "corpus": of_corpus,
        "sites": opened.sites or [sae.site for sae in opened.given],
        "complete": False,
        "timings": files.load_index()["timings"] if files.index.exists() else {},
    }
    files.save_index(index)
    return index


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # saefeat itself, run from a source tree
            found[name] = version(name)
    return found


def _check_fit(opened: OpenRun) -> dict[str, Any] | None:
    """Try the given SAEs on a little text; None where there are none, or they were tried before.

    Raises:
        UserError: an SAE does not fit the model or the corpus.
    """
    lm, corpus, given = opened.lm, opened.corpus, opened.given
    if not (given and opened.config.gate):
        return None
    marks = [sae.identity["fingerprint"] for sae in given]
    request = fingerprint([lm.fingerprint, corpus.fingerprint, marks])
    with suppress(UserError):  # a missing or damaged file is written again
        if opened.files.load_fit_check()["request"] == request:
            return None
    check_ids([*given, *means(lm, given, None)])
    reports = check_fit(lm, given, corpus, opened.config.seed, opened.say)
    return {"schema": SCHEMA, "request": request, "saes": reports}
