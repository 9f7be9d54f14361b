"""A run directory, made by hand, with all that the report shows. One of four labels is markup."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import make_stats

from saefeat.codes import STEP
from saefeat.evaluation import lid_metrics
from saefeat.io import SCHEMA, write_json
from saefeat.ranking import make_part
from saefeat.selection import Selection
from saefeat.statistics import Stats

EVIL = "<script>alert('x')</script> & </script><img src=x onerror=alert(1)>"
LABELS = ("de", "ar", "ja", EVIL)
METHODS = ("none", "features", "neurons", "diffmean", "random")
TEXTS = {
    "de": ["Grüße", " & ", "</script>", "<b>x</b>"],
    "ar": ["مرحبا", " بالعالم"],
    "ja": ["こんにちは", "世界"],
}


def stats_of(site: str, kind: str, seed: int) -> Stats:
    """16 units. Unit 15 never fires; units 0 to 4 fire mostly for one or two of the labels."""
    generator = torch.Generator().manual_seed(seed)
    fired = torch.randint(1, 60, (len(LABELS), 16), generator=generator)
    options = {"kind": kind, "labels": LABELS, "header": {"model": {"name": "m"}}}
    stats = make_stats(site, site=site, **options, fired=fired, tokens=1000, examples=10)
    for unit, label in ((0, 0), (0, 1), (1, 0), (2, 1), (3, 2), (4, 2)):
        stats.tensors["fired"][label, unit] = 600 - unit
        stats.tensors["fired_examples"][label, unit] = 10
    stats.tensors["fired"][:, 15] = 0
    stats.tensors["sum"] += (stats.fired * 1.5 / STEP).long()
    stats.tensors["max"] = torch.full(stats.max.shape, 3.5)
    return stats


def make_selection(method: str, all_stats: list[Stats], seed: int) -> Selection:
    """Two units of each dictionary per label but the last; the first two labels share unit 0."""
    generator = torch.Generator().manual_seed(seed)
    unit, label = torch.tensor([0, 1, 0, 2, 3, 4]), torch.tensor([0, 0, 1, 1, 2, 2])
    parts = [
        make_part(s, unit, label, torch.rand(6, generator=generator, dtype=torch.float64))
        for s in all_stats
    ]
    return Selection.build(parts, method=method, parameters={"top": None, "note": EVIL})


def make_shown(selection: Selection, method: str) -> list[dict[str, Any]]:
    rows = []
    for row in selection.head(10).table.to_pylist():
        pieces = TEXTS[row["label"]]
        passage = {"text": "".join(pieces), "label": row["label"], "value": 2.5}
        if row["rank"] > 1:  # the first one has no pieces
            passage |= {"pieces": pieces, "activations": [0.0, 2.5, 1.0, 0.0][: len(pieces)]}
        shown = {"tokens": [" Tag", "\n", EVIL], "passages": [passage]}
        histogram = {"tokens": 500, "fired": 30, "max": 3.5, "counts": [0, 5, 15, 10]}
        rows.append({**row, "method": method, **shown, "histogram": histogram})
    return rows


def write_lid(run: Path) -> None:
    """Ten texts per label. fastText errs on the second and third, `linear` on the first two.

    `linear` errs on the beginnings of texts only.
    """
    truth = [label for label in LABELS for _ in range(10)]
    wrong = ["ar", None, *truth[2:]]
    theirs = [truth[0], None, "ja", *truth[3:]]
    predictions = {
        length: {
            "linear": truth if length == "all" else wrong,
            "fasttext": theirs,
            "a new head": [None] * len(truth),
        }
        for length in ("all", "10", "20", "50")
    }
    write_json(
        run / "lid" / "metrics.json",
        lid_metrics(EVIL, "test", LABELS, truth, predictions, resamples=20),
    )
    columns: dict[str, list[Any]] = {
        name: [] for name in ("id", "label", "text", "length", "head", "predicted")
    }
    for length, heads in predictions.items():
        for head, predicted in heads.items():
            columns["id"] += [f"id{at % 5}" for at in range(len(truth))]  # translations share an id
            columns["label"] += truth
            columns["text"] += [f"{EVIL} text {at}" for at in range(len(truth))]
            columns["length"] += [length] * len(truth)
            columns["head"] += [head] * len(truth)
            columns["predicted"] += predicted
    pq.write_table(pa.table(columns), run / "lid" / "predictions.parquet")


def steering_row(method: str, label: str, strength: float, half: str) -> dict[str, Any]:
    forcing = (
        0.1 if method == "none" else min(1.0, 0.2 * strength * (1 + METHODS.index(method) % 3))
    )
    perplexity = None if (method, label, strength) == ("random", "de", 2.0) else 10 * (1 + strength)
    score = round(2 * forcing * 0.5 / (forcing + 0.5), 4)
    setting = {
        "edit": "add",
        "sites": ["resid_post@3"],
        "schedule": {"first": 4, "rest": 0.3},
        "parameters": {"top": 100},
    }
    units = 20 + LABELS.index(label)  # how many there are differs by label
    return {
        "method": method,
        "label": label,
        **setting,
        "strength": strength,
        "units": units,
        "half": half,
        "chosen": half == "report" or strength in (0.0, 3.0),
        "forcing": forcing,
        "perplexity": perplexity,
        "distinct3": 0.8,
        "score": score,
        "score_ci": [max(0.0, score - 0.1), score + 0.1],
        "score_in_context": score + 0.05,
        "score_in_context_ci": [score, score + 0.1],
        "lpr": forcing,
        "wpr": None,
        "lcpr": None,
    }


def write_steering(run: Path) -> None:
    """Strengths 1, 2 and 3 on the tuning half, 3 on the other; 15 samples per label and method."""
    rows = []
    for label in LABELS:
        for method in METHODS:
            strengths = (0.0,) if method == "none" else (1.0, 2.0, 3.0)
            rows += [steering_row(method, label, s, "tune") for s in strengths]
            rows.append(steering_row(method, label, strengths[-1], "report"))
    alone = {"forcing": 0.9, "perplexity": 10.0, "distinct3": 0.9}
    own = {label: {**alone, "perplexity_in_context": 14.0} for label in LABELS}
    decoding = {"max_new_tokens": 40, "temperature": 0.7, "top_k": 50, "seed": 0}
    summary = []
    for method in METHODS:
        reported = [row for row in rows if (row["method"], row["half"]) == (method, "report")]
        means = {"labels": len(LABELS), "sites": ["resid_post@3"], "reached": 0}
        means |= {
            name: sum(row[name] for row in reported) / len(reported)
            for name in ("forcing", "perplexity", "distinct3", "score", "score_in_context")
        }
        ahead = {"features_ahead_by": 0.123, "features_ahead_ci": [0.1, 0.2]}
        rest = {f"{name}_ci": [0.4, 0.6] for name in ("score", "score_in_context")}
        rest |= ahead if method == "random" else {}
        summary.append({"method": method, **means, **rest})
    head = {"schema": SCHEMA, "source": "de", "decoding": decoding}
    metrics = {"request": "r", "grid": "g", "prompts": 24, "threads": 1, "own": own, "rows": rows}
    write_json(run / "steering" / "metrics.json", {**head, **metrics, "summary": summary})
    setting = {
        "method": "features",
        "edit": "add",
        "sites": ["resid_post@3"],
        "schedule": {"first": 4, "rest": 0.3},
        "strength": 1.5,
        "parameters": {"top": 100},
    }
    settings = dict.fromkeys(LABELS[:3], setting)
    write_json(
        run / "steering" / "settings.json",
        {**head, "labels": settings, "methods": {"features": settings}},
    )
    lines = []
    for label in LABELS:
        for method in ("features", "random"):
            for at in range(15):
                text = f" {''.join(TEXTS.get(label, [EVIL]))} number {at}"
                lines.append(
                    {
                        "label": label,
                        "method": method,
                        "strength": 1.5,
                        "prompt": f"{EVIL} The",
                        "text": text,
                        "twin": " same as ever",
                        "judged": label,
                        "judged_twin": None,
                        "perplexity": 20.5,
                        "perplexity_twin": None,
                    }
                )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (run / "steering" / "samples.jsonl").write_text(text, encoding="utf-8")


def write_matrix(run: Path) -> None:
    """Ablating features adds 0.5 nats to their own label's text; random units do nothing.

    The last label is unchanged too.
    """

    def numbers(nats: float) -> dict[str, float]:
        return {
            "nll_mean": nats,
            "nll_median": nats,
            "perplexity_mean": math.exp(nats),
            "perplexity_median": math.exp(nats),
        }

    def rows(change: float) -> dict[str, Any]:
        return {r: {c: numbers(2 + change * (r == c != EVIL)) for c in LABELS} for r in LABELS}

    counts = dict.fromkeys(LABELS, 3)
    interventions = [
        {"edit": "ablate", "units": units, "counts": counts, "rows": rows(change)}
        for units, change in (("features", 0.5), ("random", 0.0))
    ]
    baseline = {label: numbers(2.0) for label in LABELS}
    found = {
        "schema": SCHEMA,
        "request": "r",
        "threads": None,
        "corpus": EVIL,
        "split": "test",
        "labels": LABELS,
        "sentences": dict.fromkeys(LABELS, 40),
        "baseline": baseline,
    }
    write_json(run / "steering" / "matrix.json", {**found, "interventions": interventions})


def write_experiment(run: Path) -> None:
    rows = [
        {"layer": layer, "label": label, "share": None if layer == 1 else 0.25 * layer}
        for layer in range(4)
        for label in LABELS
    ]
    lines = {"kind": "lines", "x": "layer", "y": "label", "value": "share", "panels": []}
    heat = {"kind": "heat", "x": "layer", "y": "label", "value": "share", "panels": ["layer"]}
    means = {**lines, "y": "of", "value": "mean", "of": "means"}
    experiment = {
        "schema": SCHEMA,
        "request": "r",
        "threads": 1,
        "experiment": "lens",
        "title": f"Share by layer of {EVIL}",
        "corpus": EVIL,
        "settings": {"top": 3},
        "rows": rows,
        "summary": [{"label": EVIL, "share": 0.1875, "n": None}],
        "means": [{"layer": layer, "of": EVIL, "mean": 0.5} for layer in range(4)],
        "plots": [means, lines, heat],
        "notes": [f"a note on {EVIL}"],
    }
    write_json(run / "experiments" / "lens.json", experiment)


def write_comparison(run: Path) -> None:
    """Two rules on features, with all measures, and one on neurons, with none."""

    def figures(name: str, value: float, *, ahead: bool = True) -> dict[str, Any]:
        found = {name: value, f"{name}_ci": [value - 0.1, value + 0.1], "random": 0.125}
        found["random_ci"] = [0.05, 0.2]
        return found | ({"ahead": value - 0.125, "ahead_ci": [0.0, 0.5]} if ahead else {})

    def compared(pool: str, method: str, measured: bool) -> dict[str, Any]:
        ablated = {"own": 0.5, "others": 0.25, "random_own": 0.125, "random_others": 0.25}
        steered = {"forcing": 0.5, "perplexity": None, "distinct3": 0.75, "score": 0.5}
        f1 = figures("f1_macro", 0.75, ahead=False)
        affected = {"most_affected": 1, "random_most_affected": 0}
        ablation = {**figures("selectivity", 0.25), **affected, "labels": {"de": ablated}}
        steering = {"strength": 1.3, "sites": 1.5, **figures("score", 0.5)}
        steering["labels"] = {EVIL: {**steered, "random": 0.125}}
        stability = {"mean": 0.625, "ci": [0.5, 0.75], "labels": {"de": 0.625, "ar": None}}
        return {
            "pool": pool,
            "method": method,
            "parameters": {"top": None, "note": EVIL},
            "units": {label: 2 * (label != EVIL) for label in LABELS},
            "distinct": 5,
            "stability": stability if measured else None,
            "identification": {"all": f1, "20": f1} if measured else None,
            "ablation": ablation if measured else None,
            "steering": steering if measured else None,
        }

    measured = {"corpus": EVIL, "threads": 1, "labels": ["de", EVIL], "eval_texts": 20}
    measured |= {"sentences": 2, "prompts": 4, "source": "de", "strengths": [1.3], "seed": 0}
    pair = {"pool": "features", "method": "sae-lape", "other": "diffmean"}
    comparison = {
        "schema": SCHEMA,
        "request": "r",
        "units": 50,
        "labels": list(LABELS),
        "pools": {"features": ["mlp_out@3"], "neurons": ["mlp_act@3"]},
        "rows": [
            compared("features", "sae-lape", True),
            compared("features", "diffmean", True),
            compared("neurons", "lape", False),
        ],
        "overlap": [{**pair, "iou": 0.375, "expected": 0.25}],
        "left_out": [
            {"pool": "neurons", "method": "plnd", "reason": EVIL, "command": "collect --with x"}
        ],
        "measured": measured,
    }
    write_json(run / "compare" / "metrics.json", comparison)


def make_index() -> dict[str, Any]:
    arguments = {"model": "org/tiny", "corpus": EVIL, "labels": list(LABELS), "seed": 7}
    model = {"name": "org/tiny", "revision": None, "fingerprint": "2:a", "dtype": "float32"}
    corpus = {"name": EVIL, "fingerprint": "b", "labels": list(LABELS), "examples": 1234}
    return {
        "schema": SCHEMA,
        "arguments": arguments,
        "versions": {"torch": "2.11"},
        "machine": {"device": "cpu", "threads": 1},
        "seeds": {"seed": 7},
        "model": model,
        "corpus": {**corpus, "skipped": {"blank": 5}},
        "sites": ["mlp_out@3", "mlp_out@12"],
        "complete": True,
        "timings": {"train": 75.2},
    }


@pytest.fixture
def evil() -> str:
    """Markup that stands for text of a corpus."""
    return EVIL


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    write_json(run / "run.json", make_index())
    for layer in (12, 3):
        ours = {"site": f"mlp_out@{layer}", "dead": 0.031, "training": {"tokens": 400_000}}
        ours |= {
            "held_out": {"fvu": 0.25, "l0": 31.7},
            "training_average": {"fvu": 0.75, "l0": 31.9},
        }
        cfg = {
            "architecture": "topk",
            "d_in": 640,
            "d_sae": 5120,
            "k": 32,
            "metadata": {"saefeat": ours},
        }
        write_json(run / "saes" / f"mlp_out@{layer}" / "cfg.json", cfg)
    saes = [stats_of(name, "sae", seed) for seed, name in enumerate(("mlp_out@12", "mlp_out@3"))]
    neurons = stats_of("mlp_act@3", "identity", 5)
    for stats in (*saes, neurons):
        stats.save(run / "stats" / f"{stats.dictionary}.safetensors")
    sae_lape = make_selection("sae-lape", saes, 0)
    sae_lape.save(run / "selections" / "sae-lape.parquet")
    make_selection("lape", [neurons], 5).save(run / "selections" / "lape.parquet")
    write_json(run / "examples" / "shown.json", make_shown(sae_lape, "sae-lape"))
    write_lid(run)
    write_steering(run)
    write_matrix(run)
    write_comparison(run)
    write_experiment(run)
    return run
