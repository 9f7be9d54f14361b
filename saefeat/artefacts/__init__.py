"""Types of the content of a run's JSON files; `saefeat.rundir` knows where the files are.

Those of `lid/` and `steering/` are in `saefeat.artefacts.lid` and `saefeat.artefacts.steering`.

A TypedDict per object, with the constraints that readers rely on: what passes can be used without
further checks. Keys stand in the order in which they are written. The configuration of a file's
type holds for the types within it too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, NotRequired

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
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
Label = str


def require(true: bool, message: str) -> None:
    if not true:
        raise ValueError(message)


def require_known(names: Iterable[str], known: Iterable[str], what: str) -> None:
    strangers = sorted(set(names) - set(known))
    require(not strangers, f"{what} {', '.join(strangers)} is not listed")


class ModelRecord(TypedDict):
    """A model; `fingerprint` is of its weights."""

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
    require(len(pieces) == len(activations), "pieces and activations differ in number")


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
        require(len(edges) == len(histogram["counts"]) + 1, "edges and counts do not agree")
        require(edges == sorted(edges), "edges are not in order")


@ensures(_check_histogram)
class Histogram(TypedDict):
    """The firing values of one unit.

    `tokens` were counted, the unit fired on `fired` of them, with at most `max`. `counts[i]` of the
    values are at least `edges[i]` and less than `edges[i + 1]`, the last ones up to `max`. Without
    `edges` the bins are equal up to `max`.
    """

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
