"""How many texts a label need: features against runs of characters and the model's tokens, fitted on the same few.

    python scripts/lid_few.py RUN [--texts 3,5,10,20,50,100] [--draws 3] [--out FILE]

For each number of texts a label, drawn from those that the heads were fitted on: macro-F1 on the
run's test split, whole texts and their first 20 characters, the mean of the draws.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from saefeat.baselines import BASELINES
from saefeat.lid.copies import SHORT, make_copies
from saefeat.lid.features import Features, featurize
from saefeat.lid.heads.linear import linear_head
from saefeat.run import open_run, set_threads


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--texts", default="3,5,10,20,50,100")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    set_threads()
    setting = open_run(arguments.run, print)
    corpus, labels = setting.corpus, setting.corpus.labels
    test = corpus.positions("test", setting.config.seed)
    measured = {
        "whole": [corpus.texts[i] for i in test],
        "20": [corpus.texts[i][:SHORT] for i in test],
    }
    bags = {at: featurize(setting.lm, setting.saes, texts) for at, texts in measured.items()}
    truth = [corpus.of[i] for i in test]
    result: dict[str, Any] = {"corpus": corpus.name, "n": len(test), "draws": arguments.draws}
    for number in map(int, arguments.texts.split(",")):
        found: dict[str, list[tuple[float, ...]]] = {}
        for draw in range(arguments.draws):
            picked = drawn(corpus.of, sorted(setting.plan.tokens), labels, number, draw)
            texts, of = [corpus.texts[i] for i in picked], [corpus.of[i] for i in picked]
            for name, predicted in predictions(setting, texts, of, measured, bags).items():
                f1 = [
                    f1_score(truth, [p or "?" for p in row], labels=labels, average="macro")
                    for row in predicted
                ]
                found.setdefault(name, []).append(tuple(f1))
        result[str(number)] = {
            name: np.mean(rows, axis=0).round(4).tolist() for name, rows in found.items()
        }
        print(number, result[str(number)], flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def drawn(
    of: Sequence[str], positions: Sequence[int], labels: Sequence[str], number: int, draw: int
) -> list[int]:
    """So many positions of each label."""
    rng = np.random.default_rng(draw)
    return [
        int(i)
        for label in labels
        for i in rng.permutation([i for i in positions if of[i] == label])[:number]
    ]


def predictions(
    setting: Any,
    texts: list[str],
    of: list[str],
    measured: dict[str, list[str]],
    bags: dict[str, Features],
) -> dict[str, list[list[str | None]]]:
    """What each head says of the whole texts and of their beginnings."""
    copies, copies_of, weights = make_copies(texts, of)
    features = featurize(setting.lm, setting.saes, texts + copies)
    labels = setting.corpus.labels
    linear = linear_head(features, of + copies_of, labels, weights=weights)
    baselines = {
        name: kind.for_run(setting.lm, labels).fit(*kind.training_examples(texts, of))
        for name, kind in BASELINES.items()
        if kind.fitted
    }
    found = {
        name: [one.predict(texts) for texts in measured.values()] for name, one in baselines.items()
    }
    return {"linear": [linear.predict(row) for row in bags.values()]} | found


if __name__ == "__main__":
    main()
