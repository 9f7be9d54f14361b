"""The sweep with settings chosen by the score alone, which favours no method.

    python scripts/steering_by_score.py RUN --out scripts/results/steering_by_score.json

`steer sweep` prefers settings that force the label fluently. Here each label takes the setting of
the greatest score on the tuning half (rows of RUN/steering/metrics.json), and texts are generated
again on the reporting half.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from common import options, parse, record, show

from saefeat.forcing import Outcome, Own, compare, reaches, row
from saefeat.generation import Decoding, encode_prompts
from saefeat.io import read_json
from saefeat.run import open_run
from saefeat.run.steer import Bench, Recipe
from saefeat.run.sweep import english_prompts


def main() -> None:
    arguments = parse(options(__doc__, run=True))
    metrics = read_json(arguments.run / "steering" / "metrics.json")
    own = {label: Own(**values) for label, values in metrics["own"].items()}
    bench = Bench(open_run(arguments.run), metrics["source"], Decoding(**metrics["decoding"]))
    prompts = encode_prompts(
        bench.setting.lm, english_prompts()[1::2], bench.decoding.max_new_tokens
    )
    outcomes: dict[str, dict[str, Outcome]] = {}
    rows: list[dict[str, Any]] = []
    for method in dict.fromkeys(r["method"] for r in metrics["rows"] if r["method"] != "none"):
        outcomes[method] = {}
        for label in own:
            tuned = [
                r
                for r in metrics["rows"]
                if (r["method"], r["label"], r["half"]) == (method, label, "tune")
            ]
            recipe = Recipe.read(max(tuned, key=lambda r: r["score"]))
            (outcomes[method][label],), _ = bench.outcomes(
                recipe, label, prompts, [recipe.strength]
            )
        found = {
            label: row(outcome, label, own[label]) for label, outcome in outcomes[method].items()
        }
        scored = compare(outcomes[method], outcomes[method], own)
        rows.append(
            {
                "method": method,
                "score": scored["score"],
                "score_ci": scored["score_ci"],
                "forcing": fmean(one["forcing"] for one in found.values()),
                "relative": fmean(
                    one["perplexity"] / own[label].perplexity for label, one in found.items()
                ),
                "reached": sum(reaches(one, own[label]) for label, one in found.items()),
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
