"""Types of `lid/metrics.json`."""

from __future__ import annotations

from typing import NotRequired

from pydantic import with_config
from typing_extensions import TypedDict

from saefeat.artefacts import Count, Interval, Label, Share, require, require_known
from saefeat.schema import STRICT, ensures


class LabelScores(TypedDict):
    precision: Share
    recall: Share
    f1: Share


class HeadMetrics(TypedDict):
    """Metrics of a head; see `saefeat.evaluation.head_metrics`."""

    accuracy: Share
    accuracy_ci: Interval
    f1_macro: Share
    f1_macro_ci: Interval
    per_label: dict[Label, LabelScores]
    confusion_matrix: list[list[Count]]


class LengthMetrics(TypedDict):
    n: Count
    heads: dict[str, HeadMetrics]


class LIDRequest(TypedDict):
    """What metrics are of. `heads` came with a later version."""

    corpus: str
    split: str
    max_texts: Count | None
    fasttext: str
    run: str
    heads: NotRequired[list[str]]


def is_length(name: str) -> bool:
    """Whether `name` stands for a length of texts: characters, or "all" for whole texts."""
    return name == "all" or (name.isascii() and name.isdigit() and len(name) < 10)


def _check_lid_metrics(metrics: LIDMetrics) -> None:
    labels, by_length = metrics["labels"], metrics["by_length"]
    k = len(labels)
    require("all" in by_length, "by_length has no 'all'")
    require(all(map(is_length, by_length)), "by_length has a key that is no length")
    for heads in (metrics["heads"], *(each["heads"] for each in by_length.values())):
        require_known(heads, metrics["heads"], "the head")
        for name, head in heads.items():
            require(list(head["per_label"]) == labels, f"per_label of {name} has other labels")
            shape = [len(row) for row in head["confusion_matrix"]]
            require(shape == [k + 1] * k, f"the confusion matrix of {name} has another shape")


@ensures(_check_lid_metrics)
@with_config(STRICT)
class LIDMetrics(TypedDict):
    """`lid/metrics.json`. `heads` is what `by_length` has of whole texts ("all")."""

    corpus: str
    split: str
    labels: list[Label]
    n: Count
    heads: dict[str, HeadMetrics]
    by_length: dict[str, LengthMetrics]
    request: NotRequired[LIDRequest]
