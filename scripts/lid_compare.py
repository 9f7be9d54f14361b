"""Is `linear` as good as the best baseline? Paired bootstrap on the predictions that `lid evaluate` wrote.

    python scripts/lid_compare.py RUN/lid/predictions.parquet [--out FILE]

For whole texts and each length: macro-F1 of the head and of each baseline, and the difference with
its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from sklearn.metrics import f1_score

from saefeat.evaluation import paired_difference


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--head", default="linear")
    parser.add_argument("--baselines", default="char-naive-bayes,fasttext,token-naive-bayes")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    table = pq.read_table(arguments.predictions).to_pandas()
    told = [p for p in table["predicted"] if isinstance(p, str)]
    labels = sorted(set(table["label"]) | set(told))
    result = {}
    for length, rows in table.groupby("length", sort=False):
        by_head = dict(list(rows.groupby("head")))
        head = by_head[arguments.head]
        truth, ours = list(head["label"]), answers(head)
        found: dict[str, object] = {"n": len(truth), arguments.head: macro_f1(truth, ours, labels)}
        for name in arguments.baselines.split(","):
            theirs = answers(by_head[name])
            difference = paired_difference(
                truth, ours, theirs, labels, measure="f1_macro", seed=0, resamples=2000
            )
            found[name] = {
                "f1_macro": macro_f1(truth, theirs, labels),
                "difference": [round(float(value), 4) for value in difference],
            }
        result[str(length)] = found
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


def answers(rows: Any) -> list[str | None]:
    return [p if isinstance(p, str) else None for p in rows["predicted"]]


def macro_f1(truth: list[str], predicted: list[str | None], labels: list[str]) -> float:
    return round(
        float(f1_score(truth, [p or "?" for p in predicted], labels=labels, average="macro")), 4
    )


if __name__ == "__main__":
    main()
