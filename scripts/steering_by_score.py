"""The sweep again, with every method's setting chosen by the score alone.

    python scripts/steering_by_score.py RUN --out scripts/results/steering_by_score.json

`steer sweep` first asks whether a setting forces the label fluently, which does not favour all
methods alike. Here each label takes the
setting of greatest score on the tuning half (rows of RUN/steering/metrics.json), and it is
generated again on the reporting half.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import fields
from pathlib import Path
from statistics import fmean
from typing import Any

from saefeat.config import Decoding
from saefeat.forcing import Measured, Reference, compare, forces_fluently, score
from saefeat.generation import encode_prompts
from saefeat.io import read_json
from saefeat.run import open_run, set_threads
from saefeat.run.grids import english_prompts
from saefeat.run.steer import Bench
from saefeat.rundir import RunDir
from saefeat.schema import checked
from saefeat.steering import SteeringRecipe


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    set_threads()
    path = RunDir(arguments.run).steering_metrics
    metrics = read_json(path)
    own = {label: Reference(**values) for label, values in metrics["own"].items()}
    bench = Bench(open_run(arguments.run), metrics["source"], Decoding(**metrics["decoding"]))
    prompts = encode_prompts(
        bench.setting.lm, english_prompts()[1::2], bench.decoding.max_new_tokens
    )
    outcomes: dict[str, dict[str, Measured]] = {}
    rows: list[dict[str, Any]] = []
    for method in dict.fromkeys(r["method"] for r in metrics["rows"] if r["method"] != "none"):
        outcomes[method] = {}
        for label in own:
            tuned = [
                r
                for r in metrics["rows"]
                if (r["method"], r["label"], r["half"]) == (method, label, "tune")
            ]
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
        print(json.dumps(entry), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
