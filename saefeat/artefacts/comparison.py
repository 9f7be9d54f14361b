"""Types of `compare/metrics.json`: rules that choose units, side by side."""

from __future__ import annotations

from typing import NotRequired

from pydantic import with_config
from typing_extensions import TypedDict

from saefeat.artefacts import Count, Interval, Label, Share, Version, require, require_known
from saefeat.artefacts.steering import Perplexity
from saefeat.schema import STRICT, ensures


class Stability(TypedDict):
    """How far two halves of the texts agree: mean over labels, and by label."""

    mean: Share
    ci: Interval
    labels: dict[Label, Share | None]


class Identification(TypedDict):
    """Macro-F1 of naive Bayes on the chosen units, and on as many random ones."""

    f1_macro: Share
    f1_macro_ci: Interval
    random: Share
    random_ci: Interval


class Ablated(TypedDict):
    """Rises of the median NLL, in nats per token, when a label's units are set to zero.

    `own`: of the label's texts; `others`: the greatest one of the other labels. `random_*`: of as
    many random units.
    """

    own: float
    others: float
    random_own: float
    random_others: float


class Ablation(TypedDict):
    """Selectivity: own rise minus the greatest of the others, mean over labels with units.

    `ahead` is the difference from random units. `most_affected` counts the labels whose own rise is
    the greatest of all.
    """

    selectivity: float
    selectivity_ci: Interval
    random: float
    random_ci: Interval
    ahead: float
    ahead_ci: Interval
    most_affected: Count
    random_most_affected: Count
    labels: dict[Label, Ablated]


class Steered(TypedDict):
    forcing: Share
    perplexity: Perplexity | None
    distinct3: Share | None
    score: Share
    random: Share


class SteeringTrial(TypedDict):
    """Score of steering, mean over labels with units; `ahead` is the difference from random units.

    `sites`: mean number of sites of a label's units, each of which gets the whole strength.
    """

    strength: float
    sites: float
    score: Share
    score_ci: Interval
    random: Share
    random_ci: Interval
    ahead: float
    ahead_ci: Interval
    labels: dict[Label, Steered]


class ComparedRule(TypedDict):
    """A rule on a pool of dictionaries. `units` by label; `distinct` units in all."""

    pool: str
    method: str
    parameters: dict[str, str | int | float | bool | None]
    units: dict[Label, Count]
    distinct: Count
    stability: Stability | None
    identification: dict[str, Identification] | None
    ablation: Ablation | None
    steering: SteeringTrial | None


class RulePair(TypedDict):
    """Intersection over union of the units of two rules, mean over labels, and by chance."""

    pool: str
    method: str
    other: str
    iou: Share
    expected: Share


class LeftOut(TypedDict):
    pool: str
    method: str
    reason: str
    command: str | None


def _check(comparison: Comparison) -> None:
    rows, known = comparison["rows"], comparison["labels"]
    names = [(row["pool"], row["method"]) for row in rows]
    require(len(set(names)) == len(names), "a rule is there twice")
    require({pool for pool, _ in names} == set(comparison["pools"]), "the pools are others")
    for row in rows:
        lengths = row["identification"]
        require(lengths is None or lengths.keys() == {"all", "20"}, "a length is missing")
        parts = (row["stability"], row["ablation"], row["steering"])
        for table in (row["units"], *(part["labels"] for part in parts if part)):
            require_known(table, known, "the label")
    for pair in comparison["overlap"]:
        for end in ("method", "other"):
            require((pair["pool"], pair[end]) in names, f"the rule {pair[end]} is not listed")


@ensures(_check)
@with_config(STRICT)
class Comparison(TypedDict):
    """`compare/metrics.json`. What was measured on a run stands in `measured`."""

    schema: Version
    request: str
    units: Count
    labels: list[Label]
    pools: dict[str, list[str]]
    rows: list[ComparedRule]
    overlap: list[RulePair]
    left_out: list[LeftOut]
    measured: NotRequired[MeasuredOn]


class MeasuredOn(TypedDict):
    """On what the rules of a run were measured; `labels`: those of ablation and steering."""

    corpus: str
    threads: Count | None
    labels: list[Label]
    eval_texts: Count
    sentences: Count
    prompts: Count
    source: Label | None
    strengths: list[float]
    seed: Count
