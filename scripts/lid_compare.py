"""Is `linear` as good as the best baseline? Paired bootstrap on the predictions that `lid evaluate` wrote.

    python scripts/lid_compare.py RUN/lid/predictions.parquet [--out FILE]

For whole texts and each length: macro-F1 of the head and of each baseline, and the difference with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pyarrow.parquet as pq
from sklearn.metrics import f1_score

from saefeat.evaluation import paired_difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--head", default="linear")
    parser.add_argument("--baselines", default="fasttext,token-naive-bayes")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    table = pq.read_table(arguments.predictions).to_pandas()
    labels = sorted(table["label"].unique())
    result = {}
    for length, rows in table.groupby("length", sort=False):
        by_head = {name: part for name, part in rows.groupby("head")}
        head = by_head[arguments.head]
        truth, ours = list(head["label"]), [p or None for p in head["predicted"]]
        found: dict[str, object] = {"n": len(truth), arguments.head: macro_f1(truth, ours, labels)}
        for name in arguments.baselines.split(","):
            theirs = [p or None for p in by_head[name]["predicted"]]
            difference = paired_difference(truth, ours, theirs, labels, measure="f1_macro", seed=0, resamples=2000)
            found[name] = {
                "f1_macro": macro_f1(truth, theirs, labels),
                "difference": [round(float(value), 4) for value in difference],
            }
        result[str(length)] = found
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


def macro_f1(truth: list[str], predicted: list[str | None], labels: list[str]) -> float:
    return round(float(f1_score(truth, [p or "?" for p in predicted], labels=labels, average="macro")), 4)


if __name__ == "__main__":
    main()
