"""The sweep with settings chosen by the score alone, which favours no method.

    python scripts/steering_by_score.py RUN --out scripts/results/steering_by_score.json

`steer sweep` prefers settings that force the label fluently. Here each label takes the setting of
the greatest score on the tuning half (rows of RUN/steering/metrics.json), and texts are generated
again on the reporting half.
"""

from __future__ import annotations

import math
from dataclasses import fields
from statistics import fmean
from typing import Any

from common import options, parse, record, show

from saefeat.config import Decoding
from saefeat.forcing import Measured, Reference, compare, forces_fluently, score
from saefeat.generation import encode_prompts
from saefeat.io import read_json
from saefeat.run import open_run
from saefeat.run.grids import english_prompts
from saefeat.run.steer import Bench
from saefeat.rundir import RunDir
from saefeat.schema import checked
from saefeat.steering import SteeringRecipe


def main() -> None:
    parser = options(__doc__, run=True)
    arguments = parse(parser)
    path = RunDir(arguments.run).steering_metrics
    metrics = read_json(path)
    tuning = [row for row in metrics["rows"] if row["half"] == "tune" and row["method"] != "none"]
    if not tuning:
        parser.error(f"{path} has no tuning half, because the sweep had too few prompts")
    own = {label: Reference(**values) for label, values in metrics["own"].items()}
    bench = Bench(open_run(arguments.run), metrics["source"], Decoding(**metrics["decoding"]))
    prompts = encode_prompts(
        bench.opened.lm, english_prompts()[1::2], bench.decoding.max_new_tokens
    )
    outcomes: dict[str, dict[str, Measured]] = {}
    rows: list[dict[str, Any]] = []
    for method in dict.fromkeys(row["method"] for row in tuning):
        outcomes[method] = {}
        for label in own:
            tuned = [row for row in tuning if (row["method"], row["label"]) == (method, label)]
            best = max(tuned, key=lambda r: r["score"])
            entry = {field.name: best[field.name] for field in fields(SteeringRecipe)}
            recipe = checked(SteeringRecipe, entry, path)
            (outcomes[method][label],), _ = bench.measure(recipe, label, prompts, [recipe.strength])
        found = {
            label: score(outcome, label, own[label]) for label, outcome in outcomes[method].items()
        }
        scored = compare(outcomes[method], outcomes[method], own)
        rows.append(
            {
                "method": method,
                "score": scored["score"],
                "score_ci": scored["score_ci"],
                "forcing": fmean(one["forcing"] for one in found.values()),
                "relative": fmean(
                    (one["perplexity"] or math.nan) / own[label].perplexity
                    for label, one in found.items()
                ),
                "reached": sum(forces_fluently(one, own[label]) for label, one in found.items()),
            }
        )
    for entry in rows:
        ahead = compare(outcomes["features"], outcomes[entry["method"]], own)
        entry |= {
            "features_ahead_by": ahead["difference"],
            "features_ahead_ci": ahead["difference_ci"],
        }
        show(entry)
    record(arguments, {"rows": rows})


if __name__ == "__main__":
    main()
