"""Configurations of steering, and what steers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from saefeat.config.fields import LABEL, SEED, TEXT, about
from saefeat.config.runs import SteeringSource
from saefeat.schema import STRICT, Complete


@dataclass(frozen=True, config=STRICT)
class Schedule:
    """Strength over a generation.

    The prompt and the first `first` new tokens get the full strength. Later tokens get at most
    `rest`, with the same sign; None: the full strength.
    """

    first: Annotated[int, Field(ge=0)] = 2
    rest: Annotated[float | None, Field(ge=0)] = 0.3


CONSTANT = Schedule(first=0, rest=None)


@dataclasses.dataclass(frozen=True)
class SteeringMethod:
    """What steers.

    Attributes:
        parameters: those that a recipe needs, with usual values.
        optional: further parameters.
        edits: what `SteeringRecipe.edit` may be.
        of_saes: whether it reads features of SAEs.
        by_site: whether it adds a vector at any group of sites.
        basic: whether it has a recipe before any sweep. A sweep over a label needs such a method.
        remedy: what helps where it finds no units.
    """

    parameters: Mapping[str, int | float] = dataclasses.field(default_factory=dict)
    optional: tuple[str, ...] = ()
    edits: tuple[str, ...] = ("add",)
    of_saes: bool = False
    by_site: bool = False
    basic: bool = False
    remedy: str = "use diffmean"


UNSTEERED, FEATURES, RANDOM = "none", "features", "random"
RANDOM_VECTOR, PROMPTING = "random-vector", "prompting"
SOURCE_OFF = ", source off"  # of an edit: the source label's own neurons are set to zero as well
BOUNDARY = ", boundary"  # of an edit: the axis and the limit are those of a logistic regression
AT_RANDOM = ", at random"  # of an edit: of random units, or along a random direction; a control
_ENTROPY = ("entropy_ratio",)
_TOP = {"top": 100}
# From the least to the most specific, as tables show them; a sweep begins with the last. Those with
# `by_site` add a vector and are tried at each group of sites.
STEERING_METHODS = {
    UNSTEERED: SteeringMethod(edits=(UNSTEERED,)),
    PROMPTING: SteeringMethod(edits=("instruct",)),
    RANDOM_VECTOR: SteeringMethod(by_site=True),
    RANDOM: SteeringMethod(_TOP, _ENTROPY, of_saes=True, by_site=True),
    "log-odds": SteeringMethod(remedy="give texts of it"),
    "boost": SteeringMethod({"amount": 5}, edits=("boost",), remedy="give texts of it"),
    "boost-adaptive": SteeringMethod(
        {"amount": 5, "certain": 0.8}, edits=("boost",), remedy="give texts of it"
    ),
    "diffmean": SteeringMethod(by_site=True, basic=True),
    "clamp": SteeringMethod(edits=("clamp",)),
    "one-sided": SteeringMethod(edits=("clamp", f"clamp{BOUNDARY}")),
    "pca": SteeringMethod(
        edits=("stretch", "stretch, source side", "stretch, pair", "stretch, pair, source side")
    ),
    "recover": SteeringMethod({"beta": 1}, edits=("step", "step, relative", "step, absolute")),
    "overwrite": SteeringMethod(
        {"top": 400},
        ("layer", "anchor", "outlier_factor"),
        edits=("clamp", "clamp, monolingual"),
        remedy="raise outlier_factor",
    ),
    "ablation": SteeringMethod(
        {"top": 2}, edits=("erase", "erase, orthogonal"), of_saes=True, remedy="raise top"
    ),
    "gated": SteeringMethod({"top": 2}, of_saes=True, remedy="raise top"),
    "neurons": SteeringMethod(
        {"top_rate": 0.05}, edits=("clamp", f"clamp{SOURCE_OFF}"), remedy="raise top_rate"
    ),
    "codes": SteeringMethod(edits=("add", "add, from source", "add, block before"), of_saes=True),
    "langfir": SteeringMethod(
        {"top": 5, "example_rate": 0.5, "other_rate": 0.01},
        ("random_rate",),
        of_saes=True,
        remedy="lower example_rate",
    ),
    "output-score": SteeringMethod(
        {"top": 100, "score": 0.01},
        edits=("add", "add, by language"),
        of_saes=True,
        remedy="lower score",
    ),
    FEATURES: SteeringMethod(_TOP, _ENTROPY, of_saes=True, by_site=True, basic=True),
}


@dataclass(frozen=True, config=STRICT)
class SteeringRecipe:
    """One way to steer, as `steering/settings.json` keeps it.

    Attributes:
        method: what steers, of `STEERING_METHODS`: features (those of a label, by feature
            difference of means), random (as many other features), neurons (by LAPE), diffmean (the
            whole difference of means), random-vector (a random direction of its length), prompting
            (no edit: the prompts ask for the language), and those of `saefeat.steering.makers`.
        edit: one of the method's. `clamp, source off` (neurons) also sets the neurons of the source
            label alone to zero. With `, at random` at its end it is the method's random twin.
        sites: each is steered with the force of its own means. Methods that change the logits have
            the site `logits`.
        parameters: of the choice of units.
    """

    method: str
    edit: str
    sites: tuple[str, ...]
    schedule: Annotated[Schedule, Complete]
    strength: float
    parameters: Mapping[str, Annotated[int | float, Field(ge=0)]]

    @model_validator(mode="after")
    def _check_parameters(self) -> SteeringRecipe:
        method = STEERING_METHODS.get(self.method)
        if method is None:
            raise ValueError(f"the methods are {', '.join(STEERING_METHODS)}")
        needed = method.parameters.keys()
        allowed = needed | set(method.optional)
        if not needed <= self.parameters.keys() <= allowed:
            raise ValueError(f"parameters of {self.method} are {sorted(allowed)}")
        if self.edit.removesuffix(AT_RANDOM) not in method.edits:
            raise ValueError(f"edits of {self.method} are {', '.join(method.edits)}")
        return self


@dataclass(frozen=True, config=STRICT)
class RecipeChoice(SteeringSource):
    """A recipe to steer with: the best of the last sweep, or the published setting."""

    method: str = about(f"{', '.join([*reversed(STEERING_METHODS)][:-1])}.", FEATURES)
    strength: float | None = about(
        "Default the best of the label's sweep. 1 is the difference of means where a vector is "
        "added, else the whole edit; negative values do the opposite.",
        None,
    )
    edit: str | None = about(
        "One of the method's edits, as tables of a sweep name them; default the best of the "
        "label's sweep, or the published one.",
        None,
        kw_only=True,
    )
    sites: tuple[str, ...] | None = about(
        "Sites that are steered; default those of the label's sweep, or of the method.",
        None,
        min_length=1,
        kw_only=True,
    )


@dataclass(frozen=True, config=STRICT)
class GenerateConfig(RecipeChoice):
    """How `saefeat steer generate` steers."""

    label: str = about("Label to steer towards.", kw_only=True)
    chat: bool = about("Put prompts through the model's chat template.", False)


@dataclass(frozen=True, config=STRICT)
class SweepConfig(SteeringSource):
    """What `saefeat steer sweep` tries."""

    sites: tuple[str, ...] | None = about(
        "Sites where all methods steer but recover (every layer), neurons (all layers) and those "
        "at the logits; default by depth.",
        None,
    )
    strengths: tuple[float, ...] | None = about(
        "Of methods that add a vector: features, random, diffmean, gated, codes, langfir and "
        "output-score; default by the number of sites. The others have their own.",
        None,
    )
    methods: tuple[str, ...] = about(
        "Methods besides features and random ones, or all.", ("neurons", "diffmean"), min_length=1
    )
    labels: tuple[str, ...] | None = about("Steer towards these labels only.", None)
    loss_budget: float | None = about(
        "Give each setting the strength at which the loss of source texts rises by so many nats "
        "(0.7 doubles their perplexity), on all tokens, instead of trying strengths and "
        "schedules.",
        None,
        gt=0,
        allow_inf_nan=False,
    )


MATRIX_EDITS = {"ablate": "ablate", "amplify": "scale"}  # name -> edit of `saefeat.steering`


@dataclass(frozen=True, config=STRICT)
class MatrixConfig:
    """What `saefeat steer matrix` edits and measures."""

    sentences: int = about("Test texts per label.", 100, ge=1)
    top: int = about("Features per label and SAE.", 100, ge=1)
    edits: tuple[str, ...] = about(f"{', '.join(MATRIX_EDITS)}.", tuple(MATRIX_EDITS))


@dataclass(frozen=True, config=STRICT)
class ScoreConfig:
    """How `saefeat steer score` reads a table of texts, and who judges their quality."""

    text_column: str = about("Column with the texts.", TEXT)
    label_column: str = about("Column with the label that each text should be in.", LABEL)
    rating_column: str | None = about("Column with ratings of quality: 0, 1 or 2.", None)
    judge_command: str | None = about(
        "Shell command that rates quality: it reads a JSON object a line (prompt, text, label) and "
        "prints 0, 1, 2 or an empty line for each.",
        None,
    )
    model: str | None = about(
        "Model that measures the perplexity of texts and twins; the table has the columns prompt "
        "and twin.",
        None,
    )
    judge_model: str | None = about(
        "Model of fastText that judges the language; default the embedded lid.176.ftz.", None
    )
    words: str | None = about(
        "File with English words, one a line: errors in text of other scripts; default all words "
        "in Latin letters.",
        None,
    )
    device: str = about("auto, cpu, cuda, cuda:1, ...", "auto")
    dtype: str = about("Of the model: auto, float32, bfloat16, float16.", "auto")


@dataclass(frozen=True, config=STRICT)
class TranslateConfig(RecipeChoice):
    """What `saefeat steer translate` translates (arXiv 2510.07213)."""

    table: str = about(
        "File with sentences to translate: .jsonl, .csv, .tsv or .parquet.", kw_only=True
    )
    source_column: str = about("Column with the sentence in the source language.", "source")
    reference_column: str = about("Column with its translation.", "reference")
    label_column: str = about("Column with the label of the translation.", LABEL)
    labels: tuple[str, ...] | None = about("Translate into these labels only.", None)
    sentences: int = about("Sentences per label.", 24, ge=1)
    repetition_penalty: float = about("Divides the logits of tokens that occurred.", 1.1, ge=1)


@dataclass(frozen=True, config=STRICT)
class HarnessConfig(RecipeChoice):
    """What `saefeat steer lm-eval` measures with lm-evaluation-harness."""

    label: str = about("Label to steer towards.", kw_only=True)
    tasks: tuple[str, ...] = about("Tasks of lm-eval.", min_length=1, kw_only=True)
    include_path: str | None = about("Directory with further tasks.", None)
    few_shot: int | None = about("Examples before each item; default as in the task.", None, ge=0)
    limit: int | None = about("Items per task; default all.", None, ge=1)
    batch_size: int = about("Items that are run together.", 8, ge=1)


@dataclass(frozen=True, config=STRICT)
class CompareConfig(SteeringSource):
    """What `saefeat compare` measures of each rule that chooses units."""

    units: int = about("Units per label of each rule.", 50, ge=1)
    methods: tuple[str, ...] | None = about("Rules; default all that the statistics allow.", None)
    labels: tuple[str, ...] | None = about(
        "Labels of ablation and steering, at least two; default all.", None
    )
    eval_texts: int = about("Test texts per label for identification; 0 for none.", 60, ge=0)
    sentences: int = about("Test texts per label for ablation; 0 for none.", 8, ge=0)
    prompts: int = about("Prompts for steering; 0 for none.", 8, ge=0, le=64)
    strengths: tuple[float, ...] = about(
        "Strengths of steering; 1 is the difference of means, at each site of a label's units. The "
        "one of the best mean score is shown for all rules of a pool.",
        (0.7, 1.3),
        min_length=1,
    )
    seed: int = SEED
