"""How many units the rule langfir keeps at each pair of its thresholds.

    saefeat collect --model M --corpus C --saes RUN/saes --random-tokens 400 --out STATS
    python scripts/langfir_thresholds.py STATS --out scripts/results/langfir_thresholds.json

The paper does not give its thresholds, but says that it keeps fewer than five features per label.
The defaults of the rule were chosen with this script.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from common import options, parse, record, show

from saefeat.methods import is_sae
from saefeat.methods.langfir import langfir
from saefeat.statistics import Stats
from saefeat.statistics.files import CONTROL, list_stats

EXAMPLE_RATES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
RANDOM_RATES = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
FEW = 5  # the paper reports fewer


def describe(
    texts: list[Stats], control: list[Stats], example_rate: float, random_rate: float
) -> dict[str, Any]:
    """Units per label and dictionary, and labels per unit, at two thresholds."""
    chosen = langfir(texts, control, example_rate=example_rate, random_rate=random_rate)
    units = [chosen.units(name) for name in chosen.dictionaries]
    counts = np.array([[len(own) for own in of.values()] for of in units])
    cells = [np.concatenate(list(of.values())) for of in units]
    owners = [np.unique(each, return_counts=True)[1] for each in cells]
    return {
        "example_rate": example_rate,
        "random_rate": random_rate,
        "median": float(np.median(counts)),
        "greatest": int(counts.max()),
        "share with fewer than 5": round(float((counts < FEW).mean()), 2),
        "share with none": round(float((counts == 0).mean()), 2),
        "share of units with one label": round(float((np.concatenate(owners) == 1).mean()), 2),
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("stats", type=Path)
    given = parse(parser)
    control = list_stats(given.stats / CONTROL)
    loaded = {name: Stats.load(file) for name, file in list_stats(given.stats).items()}
    texts = [each for each in loaded.values() if is_sae(each.header["dictionary"])]
    random = [Stats.load(control[each.dictionary]) for each in texts]
    rows = []
    for example_rate in EXAMPLE_RATES:
        for random_rate in RANDOM_RATES:
            rows.append(describe(texts, random, example_rate, random_rate))
            show(rows[-1])
    record(given, {"sequences": int(random[0].examples.sum()), "rows": rows})


if __name__ == "__main__":
    main()
