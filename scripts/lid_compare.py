"""Is `linear` as good as the best baseline? A paired bootstrap on predictions of `lid evaluate`.

    python scripts/lid_compare.py RUN/lid/predictions.parquet [--out FILE]

For whole texts and each length: macro-F1 of the head and of each baseline, and the difference with
its 95 % interval.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from common import by_commas, options, parse, record
from sklearn.metrics import f1_score

from saefeat.evaluation import paired_difference


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--head", default="linear")
    parser.add_argument("--baselines", default="char-naive-bayes,fasttext,token-naive-bayes")
    arguments = parse(parser)
    table = pq.read_table(arguments.predictions).to_pandas()
    predicted = {label for label in table["predicted"] if isinstance(label, str)}
    labels = sorted(set(table["label"]) | predicted)
    result = {}
    for length, rows in table.groupby("length", sort=False):
        by_head = dict(list(rows.groupby("head")))
        head = by_head[arguments.head]
        truth, ours = list(head["label"]), answers(head)
        found: dict[str, Any] = {"n": len(truth), arguments.head: macro_f1(truth, ours, labels)}
        for name in by_commas(arguments.baselines):
            theirs = answers(by_head[name])
            difference = paired_difference(
                truth, ours, theirs, labels, measure="f1_macro", seed=0, resamples=2000
            )
            found[name] = {
                "f1_macro": macro_f1(truth, theirs, labels),
                "difference": [round(float(value), 4) for value in difference],
            }
        result[str(length)] = found
    record(arguments, {"lengths": result})


def answers(rows: Any) -> list[str | None]:
    return [label if isinstance(label, str) else None for label in rows["predicted"]]


def macro_f1(truth: list[str], predicted: list[str | None], labels: list[str]) -> float:
    named = [label or "?" for label in predicted]
    return round(float(f1_score(truth, named, labels=labels, average="macro")), 4)


if __name__ == "__main__":
    main()
