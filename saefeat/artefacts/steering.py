"""Types of the files in `steering/`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, with_config
from typing_extensions import TypedDict

from saefeat.artefacts import Count, Interval, Label, Share, Version, require, require_known
from saefeat.config import Decoding, Schedule, SteeringRecipe
from saefeat.schema import STRICT, Complete, ensures

Perplexity = Annotated[float, Field(gt=0.5)]  # at least 1, but for rounding


@with_config(STRICT)
class SteeringSettings(TypedDict):
    """`steering/settings.json`: the settings in use; `labels` has those of `features`."""

    schema: Version
    source: Label
    decoding: Annotated[Decoding, Complete]
    labels: dict[Label, SteeringRecipe]
    methods: dict[str, dict[Label, SteeringRecipe]]


class UnsteeredText(TypedDict):
    """Measures of the model's own text in a label, unsteered.

    `perplexity_in_context`: of the same text after the prompts of the sweep. Sweeps of earlier
    versions did not measure it, nor what is made from it.
    """

    forcing: Share
    perplexity: Perplexity
    distinct3: Share
    perplexity_in_context: NotRequired[Perplexity | None]


class SteeringRow(TypedDict):
    """A recipe measured for a label; of those of a method and half, one is `chosen`."""

    method: str
    edit: str
    sites: list[str]
    schedule: Annotated[Schedule, Complete]
    strength: float
    parameters: dict[str, int | float]
    label: Label
    units: Count
    half: Literal["all", "tune", "report"]
    chosen: bool
    forcing: Share
    perplexity: Perplexity | None
    distinct3: Share | None
    score: Share
    score_ci: Interval
    score_in_context: NotRequired[Share]
    score_in_context_ci: NotRequired[Interval]
    lpr: NotRequired[Share | None]
    wpr: NotRequired[Share | None]
    lcpr: NotRequired[Share | None]


class SteeringSummary(TypedDict):
    """Means over labels of a method's chosen settings; `labels` and `reached` count labels."""

    method: str
    labels: Count
    sites: list[str]
    forcing: Share
    perplexity: Perplexity | None
    distinct3: Share | None
    reached: Count
    score: Share
    score_ci: Interval
    score_in_context: NotRequired[Share]
    score_in_context_ci: NotRequired[Interval]
    features_ahead_by: NotRequired[float]
    features_ahead_ci: NotRequired[Interval]


def _check_steering_metrics(metrics: SteeringMetrics) -> None:
    rows = metrics["rows"]
    require_known((row["label"] for row in rows), metrics["own"], "the label")
    measured = {(row["method"], row["label"]) for row in rows}
    chosen = {(row["method"], row["label"]) for row in rows if row["chosen"]}
    require(measured == chosen, "a method has no chosen row for a label")
    summarised = [row["method"] for row in metrics["summary"]]
    require(len(set(summarised)) == len(summarised), "the summary has a method twice")
    require({method for method, _ in measured} == set(summarised), "the summary has other methods")


@ensures(_check_steering_metrics)
@with_config(STRICT)
class SteeringMetrics(TypedDict):
    """`steering/metrics.json`."""

    schema: Version
    request: str
    grid: str
    prompts: Count
    threads: Count | None
    source: Label
    decoding: Annotated[Decoding, Complete]
    loss_budget: NotRequired[float]
    own: dict[Label, UnsteeredText]
    rows: list[SteeringRow]
    summary: list[SteeringSummary]


@with_config(STRICT)
class SteeringSample(TypedDict):
    """A line of `steering/samples.jsonl`: a continuation beside its unsteered twin."""

    label: Label
    method: str
    strength: float
    prompt: str
    text: str
    twin: str
    judged: str | None
    judged_twin: str | None
    perplexity: Perplexity | None
    perplexity_twin: Perplexity | None


class TextMeasures(TypedDict):
    """Measures over texts: nll in nats per token."""

    nll_mean: float
    nll_median: float
    perplexity_mean: Perplexity
    perplexity_median: Perplexity


class Intervention(TypedDict):
    """An edit of each label's units: `rows[edited][evaluated]`, and `counts` of units by label."""

    edit: str
    units: str
    counts: dict[Label, Count]
    rows: dict[Label, dict[Label, TextMeasures]]


def _check_matrix(matrix: PerplexityMatrix) -> None:
    known = matrix["labels"]
    tables: Sequence[Iterable[Any]] = (matrix["sentences"], matrix["baseline"])
    for each in matrix["interventions"]:
        tables = (*tables, each["counts"], each["rows"], *each["rows"].values())
        require(set(each["rows"]) <= set(each["counts"]), "a row has no count of units")
    for table in tables:
        require_known(table, known, "the label")


@ensures(_check_matrix)
@with_config(STRICT)
class PerplexityMatrix(TypedDict):
    """`steering/matrix.json`. A label without measures is left out."""

    schema: Version
    request: str
    threads: Count | None
    corpus: str
    split: str
    labels: list[Label]
    sentences: dict[Label, Count]
    baseline: dict[Label, TextMeasures]
    interventions: list[Intervention]
