"""The stages strung together over a run directory: what the command line and a notebook call."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from saefeat.collection import check_ids
from saefeat.collection import collect as collect_stats
from saefeat.config import DEMO, Decoding, RunConfig
from saefeat.io import SCHEMA, fingerprint, kept_json, read_json, write_json
from saefeat.resume import claim
from saefeat.run.forecast import forecast
from saefeat.run.grids import demo_grid, english_prompts
from saefeat.run.identify import choose_head, evaluate, fit_heads, load_heads, predict
from saefeat.run.matrix import clear_kept as clear_matrix
from saefeat.run.matrix import matrix as measure_matrix
from saefeat.run.setting import Setting, default_sites, open_run, open_setting, read_index
from saefeat.run.shown import add_activations, add_histograms, shown_units
from saefeat.run.stages import Say, collect, distinct, means, neurons, quiet, rank, set_threads
from saefeat.run.steer import Bench, find_source, steering_sites
from saefeat.run.sweep import clear_kept as clear_sweep
from saefeat.run.sweep import sweep as sweep_grid
from saefeat.rundir import RunDir
from saefeat.sae.gate import check_saes, describe
from saefeat.sae.train import train_saes
from saefeat.selection import Selection
from saefeat.steering import CannotSteer

__all__ = [
    "DEMO",
    "RunConfig",
    "Setting",
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
    "read_index",
    "run",
    "set_threads",
    "shown_units",
]

_PACKAGES = ("saefeat", "torch", "transformers", "numpy", "scikit-learn", "safetensors", "pyarrow")


def run(config: RunConfig, out: Path, *, say: Say = quiet, dry_run: bool = False) -> Path | None:
    """The whole path into a run directory; run again, it goes on where it stopped. Returns the report's path."""
    threads = set_threads()
    setting = open_setting(config, out, say)
    gates = _gate(setting)
    for line in forecast(setting):
        say(line)
    if dry_run:
        return None
    with claim(out):
        return _stages(setting, _index(setting, threads), gates)


def _stages(setting: Setting, index: dict[str, Any], gates: dict[str, Any]) -> Path:
    config, out, say = setting.config, setting.out, setting.say
    if gates:
        write_json(out / "gate.json", gates)
    with _timed(index, out, "train"):
        if not setting.given:
            train_saes(
                setting.lm,
                setting.training_plan,
                setting.sites,
                out / "saes",
                setting.training,
                progress=say,
            )
    lm, saes = setting.lm, setting.saes
    dictionaries = distinct([*saes, *means(lm, saes, setting.plan), *neurons(lm, setting.layers)])
    with _timed(index, out, "collect"):
        collect_stats(
            setting.lm,
            setting.plan,
            dictionaries,
            out / "stats",
            bags=out / "bags",
            examples=out / "examples",
            progress=say,
        )
    with _timed(index, out, "rank"):
        _rank_all(setting)
    with _timed(index, out, "lid fit"):
        fit_heads(setting)
    with _timed(index, out, "lid evaluate"):
        evaluate(
            setting,
            None,
            split="test",
            out=out / "lid" / "metrics.json",
            max_texts=config.eval_texts,
        )
    _steer(setting, index)
    with _timed(index, out, "report"):
        _show(setting)
        from saefeat.report import write_report

        index["complete"] = True
        write_json(out / "run.json", index)
        report = write_report(out)
    return report


def _index(setting: Setting, threads: int) -> dict[str, Any]:
    path = setting.out / "run.json"
    old = read_json(path) if path.exists() else {}
    index = {
        "schema": SCHEMA,
        "arguments": json.loads(json.dumps(asdict(setting.config))),
        "versions": _versions(),
        "machine": {"device": setting.lm.device, "threads": threads},
        "seeds": {"seed": setting.config.seed},
        "model": setting.lm.identity,
        "corpus": {
            "name": setting.corpus.name,
            "fingerprint": setting.corpus.fingerprint,
            "labels": list(setting.corpus.labels),
            "examples": len(setting.corpus),
            "skipped": setting.corpus.skipped,
        },
        "sites": setting.sites or [sae.site for sae in setting.given],
        "complete": False,
        "timings": old.get("timings", {}),
    }
    write_json(path, index)
    return index


def _gate(setting: Setting) -> dict[str, Any]:
    """What the given SAEs make of a little text, refusing those that do not fit; empty where that is known already."""
    if not (setting.given and setting.config.gate):
        return {}
    request = fingerprint(
        [
            setting.lm.fingerprint,
            setting.corpus.fingerprint,
            [sae.identity["fingerprint"] for sae in setting.given],
        ]
    )
    if kept_json(setting.out / "gate.json").get("request") == request:
        return {}
    check_ids([*setting.given, *means(setting.lm, setting.given, None)])
    reports = check_saes(setting.lm, setting.given, setting.corpus, seed=setting.config.seed)
    for report in reports:
        setting.say(describe(report))
    return {"schema": SCHEMA, "request": request, "saes": reports}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree
            continue
    return found


@contextmanager
def _timed(index: dict[str, Any], out: Path, stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds = round(time.monotonic() - start, 1)
    # A stage that was finished before keeps the time that it took then.
    index["timings"][stage] = max(seconds, index["timings"].get(stage, 0.0))
    write_json(out / "run.json", index)


def _steer(setting: Setting, index: dict[str, Any]) -> None:
    """A first look at steering; `steer sweep` and `steer matrix` have the full figures, and theirs are left alone.

    What cannot be steered (no English, no features that part the labels) is said, and does not stop
    the run.
    """
    config, folder = setting.config, setting.out / "steering"

    def sweep_few() -> None:
        bench = Bench(setting, find_source(setting, config.source), Decoding(seed=config.seed))
        prompts = english_prompts()
        some = [
            prompts[i * len(prompts) // config.steer_prompts] for i in range(config.steer_prompts)
        ]
        sweep_grid(
            bench, demo_grid(steering_sites(setting)), some, folder / "metrics.json", halves=False
        )

    def matrix_of_few() -> None:
        measure_matrix(
            setting, folder / "matrix.json", sentences=config.matrix_texts, edits=("ablate",)
        )

    for name, wanted, file, make, clear in (
        (
            "steering",
            config.steer_prompts,
            "metrics.json",
            sweep_few,
            partial(clear_sweep, run=RunDir(setting.out)),
        ),
        ("matrix", config.matrix_texts, "matrix.json", matrix_of_few, clear_matrix),
    ):
        if not wanted:
            continue
        with _timed(
            index, setting.out, name
        ):  # a kill may have come after the file and before its time
            try:
                if not (folder / file).exists():
                    make()
                clear(folder / file)
            except CannotSteer as error:
                setting.say(f"note: {name} is skipped: {error}")


def _rank_all(setting: Setting) -> None:
    for method in ("sae-lape", "lape", "feature-diffmean"):
        if method == "lape" and not setting.layers:
            continue
        rank(setting.out / "stats", method).save(setting.out / "selections" / f"{method}.parquet")


def _show(setting: Setting) -> None:
    saes = {sae.id: sae for sae in setting.saes}
    rows = []
    for method in ("sae-lape", "feature-diffmean"):
        selection = Selection.load(setting.out / "selections" / f"{method}.parquet")
        rows += shown_units(setting.lm, selection, saes, setting.out / "examples")
    add_activations(setting.lm, rows, saes)
    add_histograms(setting.lm, rows, saes, setting.plan)
    write_json(setting.out / "examples" / "shown.json", rows)
