"""`saefeat compare`: all rules that choose units, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from saefeat.artefacts.comparison import Comparison
from saefeat.config import CompareConfig, Decoding
from saefeat.evaluation import interval
from saefeat.io import SCHEMA, UserError, fingerprint, kept_json, visible
from saefeat.progress import Say, quiet
from saefeat.resume import check_replaceable, claim_file, clear_finished, resume
from saefeat.run.chosen import chosen_units, every_unit
from saefeat.run.contenders import Contender, Left, find_contenders, overlaps
from saefeat.run.measuring import Measuring
from saefeat.run.opened import OpenRun
from saefeat.run.steer import Bench, find_label, find_source
from saefeat.run.summaries import RESAMPLES
from saefeat.run.trials import Trials
from saefeat.rundir import ComparisonDir
from saefeat.statistics import Stats
from saefeat.statistics.files import list_stats, stats_origin
from saefeat.steering import CannotSteer
from saefeat.steering.changes import check_counted

Values = dict[str, Any]


def small_comparison(opened: OpenRun) -> CompareConfig:
    """What a run asks for: few labels, texts and prompts, and one strength."""
    config, source = opened.config, None
    with suppress(CannotSteer):
        source = find_source(opened, config.source)
    targets = [label for label in opened.corpus.labels if label != source]
    return CompareConfig(
        labels=tuple(targets[: config.compare_labels]),
        eval_texts=20,
        sentences=2,
        prompts=4,
        strengths=(1.3,),
        source=config.source,
        seed=config.seed,
    )


def compare_stats(
    source: Path, out: Path, config: CompareConfig, *, say: Say = quiet
) -> Comparison:
    """Compare what rules choose in statistics: counts, overlap, stability. No model is needed.

    Args:
        source: a directory of statistics.
        out: a directory for the result.

    Raises:
        UserError: `out` is something else or holds a comparison on a run, a method is unknown or
            not allowed by the statistics, or there are no statistics of SAEs or neurons.
    """
    files = _open_output(out)
    if "measured" in kept_json(files.metrics):
        raise UserError(f"{out} holds a comparison on a run; choose another output", "out")
    found, left = find_contenders(source, units=config.units, methods=config.methods, say=say)
    result = _result(found, left, _request(found, config, source), config, [{} for _ in found])
    with claim_file(files.metrics):
        _save(files, found, result)
    return result


def compare_rules(
    opened: OpenRun, config: CompareConfig, *, source: Path | None = None, out: Path | None = None
) -> Comparison:
    """Compare rules on a run: what they choose, and what the chosen units do.

    Run it again to resume: what is measured is kept. With another number of threads, which changes
    figures in bfloat16, or with other rules, options or statistics, it starts again. What cannot be
    measured is reported and left out.

    Args:
        source: statistics of the model, the SAEs and the labels of the run; default its own.
        out: a directory for the result; default that of the run.

    Raises:
        UserError: `out` is something else, the statistics are of another model, SAE or list of
            labels, a method is unknown or not allowed by them, a label is unknown, or there are no
            statistics of SAEs or neurons.
    """
    files = _open_output(opened.files.comparison.root if out is None else out)
    names = config.labels or opened.corpus.labels
    labels = list(dict.fromkeys(find_label(opened, name, "labels") for name in names))
    source = source or opened.files.stats
    found, left = find_contenders(
        source, units=config.units, methods=config.methods, say=opened.say
    )
    _check_statistics(source, found, opened)
    request = _request(found, config, source, opened)
    before = kept_json(files.metrics).get("request")
    if before == request:
        clear_finished(files.metrics, request)
        opened.say(f"{files.metrics} is complete already")
        return files.load_metrics()
    if before:
        opened.say(
            f"note: {files.metrics} is of other rules, options or statistics, and will be replaced"
        )
    threads = opened.lm.threads
    with resume(files.metrics, request, "the comparison", threads, opened.say) as checkpoint:
        trials = Trials(opened, config, source, labels, _bench(opened, config, source))
        parts = Measuring(trials, found, checkpoint).all()
        result = _result(found, left, request, config, parts)
        result["measured"] = {
            "corpus": opened.corpus.name,
            "threads": threads,
            "labels": labels,
            "eval_texts": config.eval_texts,
            "sentences": config.sentences,
            "prompts": config.prompts,
            "source": trials.bench.source_label if trials.bench else None,
            "strengths": list(config.strengths),
            "seed": config.seed,
        }
        _save(files, found, result)
    return result


def _check_statistics(source: Path, found: Sequence[Contender], opened: OpenRun) -> None:
    """Raise UserError unless contenders are of the model, the SAEs and the labels of a run."""
    saes = {sae.id: sae.identity["fingerprint"] for sae in opened.saes}
    for each in found:
        header = each.selection.header
        dictionaries = header["dictionaries"].values()
        of_saes = [(d["id"], d["fingerprint"]) for d in dictionaries if d.get("kind") == "sae"]
        if (
            each.selection.labels != opened.corpus.labels
            or header.get("model", {}).get("fingerprint") != opened.lm.fingerprint
            or any(saes.get(name) != mark for name, mark in of_saes)
        ):
            raise UserError(
                f"{source} is of another model, SAE or list of labels than the run in "
                f"{opened.out}; collect it with those of the run",
                "stats",
            )


def _open_output(out: Path) -> ComparisonDir:
    files = ComparisonDir(out)
    check_replaceable(out, "comparison", lambda path: path.is_dir() and files.is_ours())
    return files


def _bench(opened: OpenRun, config: CompareConfig, stats: Path) -> Bench | None:
    """What steers; None where nothing is to be steered, or nothing can be."""
    if not config.prompts:
        return None
    try:
        source = find_source(opened, config.source)
        first = next(iter(list_stats(stats).values()))
        check_counted(Stats.load(first), source, source)
    except CannotSteer as error:
        opened.say(f"note: rules are compared without steering: {error}")
        return None
    return Bench(opened, source, Decoding(seed=config.seed))


def _request(
    found: Sequence[Contender], config: CompareConfig, source: Path, opened: OpenRun | None = None
) -> str:
    """What a comparison is of."""
    chosen = [
        [each.pool, each.method, each.selection.cells(), repr(each.stability)] for each in found
    ]
    run = [opened.lm.fingerprint, opened.corpus.fingerprint] if opened else []
    origins = [stats_origin(path.parent, name) for name, path in list_stats(source).items()]
    return fingerprint([chosen, run, origins, asdict(config)])


# --------------------------------------------------------------------------- the result


def _result(
    found: Sequence[Contender],
    left: Sequence[Left],
    request: str,
    config: CompareConfig,
    parts: Sequence[Mapping[str, Any]],
) -> Comparison:
    rows = []
    for each, part in zip(found, parts, strict=True):
        units = chosen_units(each.selection)
        row = {
            "pool": each.pool,
            "method": each.method,
            "parameters": each.selection.header["parameters"],
            "units": {label: sum(map(len, some.values())) for label, some in units.items()},
            "distinct": sum(map(len, every_unit([units]).values())),
            "stability": _stability(each, config.seed),
        }
        measures = ("identification", "ablation", "steering")
        rows.append(row | {name: part.get(name) for name in measures})
    pools = {each.pool: sorted(each.selection.dictionaries) for each in found}
    return {
        "schema": SCHEMA,
        "request": request,
        "units": config.units,
        "labels": list(found[0].selection.labels) if found else [],
        "pools": pools,
        "rows": rows,
        "overlap": overlaps(found),
        "left_out": [
            {
                "pool": each.pool,
                "method": each.method,
                "reason": each.reason,
                "command": each.command or None,
            }
            for each in left
        ],
    }


def _stability(contender: Contender, seed: int) -> Values | None:
    """The stability, and the interval of its mean over resampled labels (no judgement slips)."""
    if contender.stability is None:
        return None
    known = np.array([v for v in contender.stability.values() if not np.isnan(v)])
    if not len(known):
        return None
    picks = np.random.default_rng(seed).integers(0, len(known), (RESAMPLES, len(known)))
    mean = float(known.mean())
    return {
        "mean": mean,
        "ci": interval(mean, known[picks].mean(1), len(known)),
        "labels": {x: None if np.isnan(v) else v for x, v in contender.stability.items()},
    }


def _save(files: ComparisonDir, found: Sequence[Contender], result: Comparison) -> None:
    paths = {files.selection_file(each.pool, each.method): each.selection for each in found}
    for path, selection in paths.items():
        selection.save(path)
    for path in visible(files.selections, "*/*.parquet"):
        if path not in paths:  # of rules of an earlier comparison
            path.unlink()
    files.save_metrics(result)
