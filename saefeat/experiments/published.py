"""Figures that papers published, and the same figures of a result, to be shown side by side.

Only figures that come out of a released file or of a published table are listed. They compare with
a result on the same model and data; on another model they show the order of size.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saefeat.io import UserError
from saefeat.selection import Selection

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Published:
    """Figures of one model: its name or hub id, the data, and measure -> value."""

    model: str
    data: str
    figures: Figures


def read_figures(path: Path) -> dict[str, float]:
    """Measure -> value of a result that a step of a paper wrote.

    Of a selection: the units, those of each number of labels, and those of each label. Of an
    identification: the accuracy of each head. Of an experiment: the cells of its summary. Other
    files have none.

    Raises UserError for a file that is damaged.
    """
    if path.suffix == ".parquet":
        return _of_selection(Selection.load(path))
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged; delete it and run the command again") from error
    if "heads" in found:
        return {head: figures["accuracy"] for head, figures in found["heads"].items()}
    return _of_summary(found.get("summary", []))


def _of_selection(selection: Selection) -> dict[str, float]:
    owners = Counter((dictionary, unit) for dictionary, unit, _ in selection.cells())
    of = Counter(owners.values())
    shared = _shared(*(of[n] for n in range(1, len(selection.labels) + 1)))
    return {"units": len(owners), **shared, **selection.counts()}


def _of_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = {}
    for row in rows:
        name = ", ".join(cell for cell in row.values() if isinstance(cell, str))
        numbers = {key: x for key, x in row.items() if isinstance(x, int | float)}
        found |= {f"{name}: {key}": float(value) for key, value in numbers.items()}
    return found


def choose_published(published: Sequence[Published], model: str) -> Published:
    """Choose the figures of a model, or the first ones where it has none."""
    return next((each for each in published if same_model(each.model, model)), published[0])


def same_model(published: str, model: str) -> bool:
    """Whether two names are of one model: the last parts of hub ids or paths are compared."""
    return Path(model).name.lower() == Path(published).name.lower()


def _by_label(labels: str, counts: Sequence[int]) -> dict[str, float]:
    return dict(zip(labels.split(), counts, strict=True))


def _shared(*counts: int) -> dict[str, float]:
    """The number of units of 1, 2, ... labels."""
    return {f"units of {n} label{'s'[: n > 1]}": count for n, count in enumerate(counts, 1)}


_SIX, _LLAMA = "en zh fr es vi id", "meta-llama/Llama-3.2-1B"

# Counted in the released masks, the last one in that of SAE-LAPE's authors; top rate 1 %.
LAPE = [
    Published(
        "meta-llama/Llama-2-7b-hf",
        "Wikipedia, seven languages",
        {
            "units": 3523,
            **_shared(2396, 856, 193, 58, 15, 5),
            **_by_label(f"{_SIX} ja", [95, 583, 1022, 838, 836, 1068, 582]),
        },
    ),
    Published(
        "meta-llama/Llama-2-13b-hf",
        "Wikipedia, seven languages",
        {"units": 5530, **_by_label(f"{_SIX} ja", [161, 1168, 1583, 1255, 1252, 1384, 1435])},
    ),
    Published(
        "meta-llama/Llama-2-70b-hf",
        "Wikipedia, six languages",
        {"units": 22938, **_by_label(_SIX, [731, 5366, 6482, 5873, 5515, 6522])},
    ),
    Published(
        "bigscience/bloom-7b1",
        "Wikipedia, six languages",
        {"units": 4915, **_by_label(_SIX, [445, 653, 680, 918, 551, 2823])},
    ),
    Published(
        "mistralai/Mistral-7B-v0.1",
        "Wikipedia, six languages",
        {"units": 4588, **_by_label(_SIX, [76, 1190, 919, 838, 1554, 1445])},
    ),
    Published(
        "facebook/opt-6.7b",
        "Wikipedia, six languages",
        {"units": 5243, **_by_label(_SIX, [347, 833, 1571, 1517, 752, 1129])},
    ),
    Published(
        "microsoft/phi-2",
        "Wikipedia, six languages",
        {"units": 3277, **_by_label(_SIX, [52, 196, 1032, 1119, 511, 764])},
    ),
    Published(
        _LLAMA,
        "XNLI, PAWS-X and FLORES+, 15 languages",
        {
            "units": 1311,
            **_by_label(
                "en zh vi ko ru th ja es fr pt hi de it tr bg",
                [48, 128, 130, 133, 138, 180, 189, 191, 246, 253, 254, 270, 279, 282, 348],
            ),
        },
    ),
]

# From the log of the authors, who count BOS.
SAE_LAPE = [
    Published(
        _LLAMA,
        "XNLI, PAWS-X and FLORES+, 15 languages, BOS counted",
        {"units": 1043, **_shared(540, 199, 96, 69, 38, 17, 16, 14, 5, 6, 5, 8, 5, 7, 18)},
    )
]
IDENTIFICATION = [
    Published(
        _LLAMA,
        "WiLI-2018, test, 500 texts of each of 15 languages",
        {
            "sae-count": 0.97213,
            "sae-min-max": 0.96107,
            "neuron-count": 0.61733,
            "fasttext": 0.98267,
        },
    )
]
TERNARY = [
    Published(
        "MistralMathOctopus-7B",
        "MGSM, ten languages, top rate 1 %",
        {"units": 3219, **_shared(1866, 617, 310, 153, 127, 59, 40, 27, 20)},
    )
]
