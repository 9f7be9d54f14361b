"""Types of the content of a run's JSON files; `saefeat.rundir` knows where the files are.

A TypedDict per object, with the constraints that readers rely on: what passes can be used without
further checks. Keys stand in the order in which they are written. The configuration of a file's
type holds for the types within it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, Field, with_config
from typing_extensions import TypedDict

from saefeat.config import RunConfig
from saefeat.io import SCHEMA
from saefeat.schema import STRICT, ensures


def _check_version(version: int) -> int:
    if version != SCHEMA:
        raise ValueError(f"version {version}, where this saefeat reads {SCHEMA}")
    return version


Version = Annotated[int, AfterValidator(_check_version)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Share = Annotated[float, Field(ge=0, le=1)]
Perplexity = Annotated[float, Field(gt=0.5)]  # at least 1, but for rounding
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
Label = str


def _require(true: bool, message: str) -> None:
    if not true:
        raise ValueError(message)


def _require_known(names: Iterable[str], known: Iterable[str], what: str) -> None:
    strangers = sorted(set(names) - set(known))
    _require(not strangers, f"{what} {', '.join(strangers)} is not listed")


class ModelRecord(TypedDict):
    """The model of a run; `fingerprint` is of its weights."""

    name: str
    revision: str | None
    fingerprint: str
    dtype: str


class CorpusRecord(TypedDict):
    """The corpus of a run; `skipped` counts rows that were not used, by reason."""

    name: str
    fingerprint: str
    labels: list[Label]
    examples: Count
    skipped: dict[str, Count]


class Machine(TypedDict):
    device: str
    threads: Count


@with_config(STRICT)
class RunIndex(TypedDict):
    """`run.json`. `timings` are seconds by stage."""

    schema: Version
    arguments: RunConfig
    versions: dict[str, str]
    machine: Machine
    seeds: dict[str, int]
    model: ModelRecord
    corpus: CorpusRecord
    sites: list[str]
    complete: bool
    timings: dict[str, Annotated[float, Field(ge=0)]]


class SAEFit(TypedDict):
    """How well an SAE fits the model (`saefeat.sae.fit_check`).

    The figures are of its own site. better: FVU by site of up to three sites that fit better.
    stated: fvu, l0 and dead by the SAE's own files. doubt: why the files may be wrong. revisions:
    of the base model then and now, where both are known and differ. bos: how training and tokenizer
    differ in what stands before a text, or "".
    """

    id: str
    site: str
    fvu: float
    l0: float
    silent: Share
    tokens: Count
    better: dict[str, float]
    stated: dict[str, float]
    doubt: str | None
    revisions: list[str]
    bos: str


@with_config(STRICT)
class FitCheck(TypedDict):
    """`gate.json`: the fit check of the given SAEs."""

    schema: Version
    request: str
    saes: list[SAEFit]


class SAEFidelity(TypedDict, total=False):
    fvu: float
    l0: float
    dead: Share


class SAETraining(TypedDict, total=False):
    tokens: Count


class SAERecord(SAEFidelity, total=False):
    """What saefeat adds to the metadata of an SAE that it trains."""

    site: str
    training: SAETraining
    held_out: SAEFidelity


class SAEMetadata(TypedDict, total=False):
    hook_name: str
    saefeat: SAERecord


@with_config(STRICT | {"extra": "ignore"})  # sae-lens has many more keys
class SAEConfig(TypedDict):
    """The part of `saes/<id>/cfg.json` that the report shows."""

    d_in: Count
    d_sae: Count
    k: NotRequired[Count | None]
    metadata: NotRequired[SAEMetadata]


def _check_passage(passage: Passage) -> None:
    pieces, activations = passage.get("pieces", []), passage.get("activations", [])
    _require(len(pieces) == len(activations), "pieces and activations differ in number")


@ensures(_check_passage)
class Passage(TypedDict):
    """A text on which a unit fires; some have the unit's activation on each of their tokens."""

    text: str
    label: Label
    value: float
    pieces: NotRequired[list[str]]
    activations: NotRequired[list[float]]


def _check_histogram(histogram: Histogram) -> None:
    edges = histogram.get("edges")
    if edges:  # a unit that never fires has none
        _require(len(edges) == len(histogram["counts"]) + 1, "edges and counts do not agree")
        _require(edges == sorted(edges), "edges are not in order")


@ensures(_check_histogram)
class Histogram(TypedDict):
    """Firing values of a unit: `counts` by bin. The bins have `edges`, or are equal up to `max`."""

    tokens: Count
    fired: Count
    max: float
    counts: list[Count]
    edges: NotRequired[list[float]]


@with_config(STRICT)
class ShownUnit(TypedDict):
    """A row of `examples/shown.json`: a ranked unit, the tokens that it promotes, and passages."""

    dictionary: str
    site: str
    unit: Count
    label: Label
    rank: Count
    score: float
    probability: float
    mean_firing: float
    mean: float
    max: float | None  # None for a unit that never fires for its label
    method: str
    tokens: list[str]
    passages: list[Passage]
    histogram: NotRequired[Histogram]


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
    _require("all" in by_length, "by_length has no 'all'")
    _require(all(map(is_length, by_length)), "by_length has a key that is no length")
    for heads in (metrics["heads"], *(each["heads"] for each in by_length.values())):
        _require_known(heads, metrics["heads"], "the head")
        for name, head in heads.items():
            _require(list(head["per_label"]) == labels, f"per_label of {name} has other labels")
            shape = [len(row) for row in head["confusion_matrix"]]
            _require(shape == [k + 1] * k, f"the confusion matrix of {name} has another shape")


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


class Decoding(TypedDict):
    max_new_tokens: Count
    temperature: Annotated[float, Field(ge=0)]
    top_k: Count
    seed: int


class Schedule(TypedDict):
    first: Count
    rest: float | None


class SteeringSetting(TypedDict):
    """One way to steer."""

    method: str
    edit: str
    sites: list[str]
    schedule: Schedule
    strength: float
    parameters: dict[str, int | float]


@with_config(STRICT)
class SteeringSettings(TypedDict):
    """`steering/settings.json`: the settings in use; `labels` has those of `features`."""

    schema: Version
    source: Label
    decoding: Decoding
    labels: dict[Label, SteeringSetting]
    methods: dict[str, dict[Label, SteeringSetting]]


class UnsteeredText(TypedDict):
    """Measures of the model's own text in a label, unsteered."""

    forcing: Share
    perplexity: Perplexity
    distinct3: Share


class SteeringRow(SteeringSetting):
    """A setting measured for a label; of those of a method and half, one is `chosen`."""

    label: Label
    units: Count
    half: Literal["all", "tune", "report"]
    chosen: bool
    forcing: Share
    perplexity: Perplexity | None
    distinct3: Share | None
    score: Share
    score_ci: Interval


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
    features_ahead_by: NotRequired[float]
    features_ahead_ci: NotRequired[Interval]


def _check_steering_metrics(metrics: SteeringMetrics) -> None:
    rows = metrics["rows"]
    _require_known((row["label"] for row in rows), metrics["own"], "the label")
    measured = {(row["method"], row["label"]) for row in rows}
    chosen = {(row["method"], row["label"]) for row in rows if row["chosen"]}
    _require(measured == chosen, "a method has no chosen row for a label")
    summarised = [row["method"] for row in metrics["summary"]]
    _require(len(set(summarised)) == len(summarised), "the summary has a method twice")
    _require({method for method, _ in measured} == set(summarised), "the summary has other methods")


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
    decoding: Decoding
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
        _require(set(each["rows"]) <= set(each["counts"]), "a row has no count of units")
    for table in tables:
        _require_known(table, known, "the label")


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
