"""How many texts per label heads need: features, n-grams of characters, and the model's tokens.

    python scripts/lid_few.py RUN [--texts 3,5,10,20,50,100] [--draws 3] [--out FILE]

Each head is fitted on the same few texts per label, drawn from those of the run. The figures are
macro-F1 on the run's test split, on whole texts and on their first 20 characters: the mean of the
draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from common import by_commas, options, parse, record, show
from sklearn.metrics import f1_score

from saefeat.baselines import BASELINES
from saefeat.lid.features import Features, featurize
from saefeat.lid.heads.linear import SHORT, linear_head, make_copies
from saefeat.run import open_run


def main() -> None:
    parser = options(__doc__, run=True)
    parser.add_argument("--texts", default="3,5,10,20,50,100")
    parser.add_argument("--draws", type=int, default=3)
    arguments = parse(parser)
    setting = open_run(arguments.run, print)
    corpus, labels = setting.corpus, setting.corpus.labels
    test = corpus.positions("test", setting.config.seed)
    measured = {
        "whole": [corpus.texts[i] for i in test],
        "20": [corpus.texts[i][:SHORT] for i in test],
    }
    bags = {at: featurize(setting.lm, setting.saes, texts) for at, texts in measured.items()}
    truth = [corpus.of[i] for i in test]
    result: dict[str, Any] = {}
    for number in map(int, by_commas(arguments.texts)):
        found: dict[str, list[tuple[float, ...]]] = {}
        for draw in range(arguments.draws):
            picked = draw_texts(corpus.of, sorted(setting.plan.tokens), labels, number, draw)
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
        show({number: result[str(number)]})
    record(arguments, {"corpus": corpus.name, "n": len(test), "texts per label": result})


def draw_texts(
    of: Sequence[str], positions: Sequence[int], labels: Sequence[str], number: int, draw: int
) -> list[int]:
    """Draw so many positions per label."""
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
    """Predictions of each head for the whole texts and for their beginnings."""
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
