"""Configurations: what each stage is asked for, with defaults, bounds and descriptions.

The command line makes its options from these fields (`saefeat.cli.common.with_options`). The
module imports nothing heavy, so that `--help` does not wait for torch.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from saefeat.schema import STRICT, Complete


def about(description: str, default: Any = ..., **options: Any) -> Any:
    """A field with a description, a default (or a required one) and options of `Field`."""
    return Field(default=default, description=description, **options)


DEMO_MODEL = "embedded:gemma-3-270m"
MODEL = f"Hub id, directory, .gguf file, or {DEMO_MODEL}."
DEFAULT_METHOD = "sae-lape"  # the rule that ranks by default
DEFAULT_HEAD = "linear"  # the head that predicts by default
TEXT, LABEL, ID = "text", "label", "id"  # usual names of the columns of a corpus
_SEED = about("Seed of all random choices.", 0, ge=0)
_BUDGET = about("Counted tokens per label; default all.", None, ge=1)
_LABELS = about("Use these labels only.", None)
_ACTIVE = about("Active features per token.", 32, ge=1)


@dataclass(frozen=True, config=STRICT)
class Columns:
    """Names of the columns of a corpus."""

    text_column: str = about("Column with the text.", TEXT, kw_only=True)
    label_column: str = about("Column with the label.", LABEL, kw_only=True)
    id_column: str = about("Column with the id that translations share.", ID, kw_only=True)
    prompt_column: str | None = about(
        "Column with a prompt that the model reads before the text; its tokens count nowhere.",
        None,
        kw_only=True,
    )

    @property
    def columns(self) -> dict[str, Any]:
        """The names, as keyword arguments of `load_corpus`."""
        parts = ("text", "label", "id", "prompt")
        return {name: getattr(self, name) for name in (f"{part}_column" for part in parts)}


@dataclass(frozen=True, config=STRICT)
class Inputs(Columns):
    """A model and a corpus, and how they are loaded."""

    model: str = about(MODEL)
    corpus: str = about(
        "embedded:eld, a .jsonl/.csv/.tsv/.parquet file, a directory of LABEL.txt, a "
        "name of `saefeat corpus list`, or hub:OWNER/NAME[:CONFIG]."
    )
    labels: tuple[str, ...] | None = _LABELS
    max_tokens: int | None = _BUDGET
    seed: int = _SEED
    device: str = about("auto, cpu, cuda, cuda:1, ...", "auto")
    dtype: str = about("Of the model: auto, float32, bfloat16, float16.", "auto")


@dataclass(frozen=True, config=STRICT)
class SAEInputs(Inputs):
    """A model, a corpus and SAEs that exist."""

    saes: tuple[str, ...] = about(
        "SAE directory, folder of them, sae-lens release/sae_id, or hub id.", ()
    )
    gate: bool = about("Try given SAEs on a little text first; refuse those that do not fit.", True)


# As many texts as the papers use: 500 of a label and 2,500 of five others (arXiv 2404.02431), 1,000
# inputs (2406.09265), 100 to 1,000 documents (2402.18815).
TABLE_EXAMPLES = 1000
NEURON_SITES = ("mlp_act", "mlp_hidden")  # what `both` stands for


@dataclass(frozen=True, config=STRICT)
class OnRequest:
    """What a collection of statistics counts on request."""

    with_: tuple[str, ...] | None = about(
        "Statistics that are collected on request, such as responses,distributions.",
        None,
        kw_only=True,
    )
    table_examples: int = about(
        "Examples per label in responses, patterns and importances.",
        TABLE_EXAMPLES,
        ge=1,
        kw_only=True,
    )
    random_tokens: int = about(
        "Count this number of sequences of random tokens too, the control of langfir.",
        0,
        ge=0,
        kw_only=True,
    )
    neuron_site: Literal["mlp_act", "mlp_hidden", "both"] = about(
        "Where neurons are counted; mlp_hidden is what the down projection reads.",
        "mlp_act",
        kw_only=True,
    )

    @property
    def requested(self) -> tuple[str, ...]:
        """Names of the accumulators that are asked for, see `saefeat.statistics`."""
        return self.with_ or ()


@dataclass(frozen=True, config=STRICT)
class TrainInputs(Inputs):
    """A model, a corpus and the sites where SAEs are trained."""

    sites: tuple[str, ...] = about(
        "mlp_out@13, resid_post@5, ... or module paths.", min_length=1, kw_only=True
    )
    temperature: float | None = about(
        "Mix labels by size: the largest has max_tokens, one of n examples that times "
        "(n / largest)^(1/T); default the same for all.",
        None,
        ge=1,
        kw_only=True,
    )


@dataclass(frozen=True, config=STRICT)
class SteeringSource:
    """The label that steering leads away from."""

    source: str | None = about("Label to steer away from; default English.", None, kw_only=True)


@dataclass(frozen=True, config=STRICT)
class RunConfig(SAEInputs, SteeringSource, OnRequest):
    """What `saefeat run` is asked for. None stands for a default that depends on the model."""

    sites: tuple[str, ...] | None = about("Sites where SAEs are trained; default by depth.", None)
    d_sae: int | None = about("Width of the SAEs; default 4 times d_in.", None, ge=16)
    k: int = _ACTIVE
    train_tokens: int | None = about("Counted tokens per label for SAE training.", 100_000, ge=1)
    max_tokens: int | None = about("Counted tokens per label for the statistics.", 50_000, ge=1)
    eval_texts: int | None = about("Test texts per label; default all.", None, ge=1)
    neuron_layers: int | None = about(
        "Number of first layers whose neurons are counted; default up to the deepest SAE.",
        None,
        ge=0,
    )
    steer_prompts: int = about("Prompts on which steering is tried; 0 for none.", 16, ge=0, le=64)
    matrix_texts: int = about("Texts per label of the perplexity matrix; 0 for none.", 10, ge=0)
    compare_labels: int = about("Labels on which rules are compared; 0 for none.", 0, ge=0)


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """How SAEs are trained. None stands for a default that depends on the site or the corpus."""

    k: int = _ACTIVE
    d_sae: int | None = about("Width, a multiple of 16; default expansion times d_in.", None, ge=16)
    expansion: int = about("Width over d_in where no width is given.", 4, ge=1)
    passes: int = about("How often each activation is used.", 2, ge=1)
    batch_size: int = about("Tokens per step.", 2048, ge=16)
    chunk_tokens: int = about(
        "Tokens held in memory, at 2 bytes times d_in for each site; a checkpoint is written after "
        "each chunk.",
        65_536,
        ge=16,
    )
    lr: float | None = about(
        "Peak rate of Adam, on inputs of unit variance; default 1e-3 * sqrt(10240 / d_sae).",
        None,
        ge=1e-8,
    )
    warmup: float = about("Share of the steps with rising rate.", 0.05, ge=0, le=1)
    decay: float = about("Share of the steps with falling rate.", 0.4, ge=0, le=1)
    aux: float = about("Weight of the loss that revives dead units.", 1 / 32, ge=0)
    dead_tokens: int | None = about(
        "Tokens without firing after which a unit is dead; default an eighth of all training "
        "tokens, at most 10 million.",
        None,
        ge=1,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = about(
        "Of the encoder product. Weights are float32, or float64 with it.", "auto"
    )
    seed: int = _SEED
    architecture: str = about("Architecture of the SAEs.", "topk")


@dataclass(frozen=True, config=STRICT)
class RanksConfig:
    """How several processes train SAEs together (`train/sae.py`)."""

    layout: Literal["data", "sites", "features"] = about(
        "What the processes share out: data (the tokens of each step), sites (the SAEs) or "
        "features (the units of every SAE).",
        "data",
    )
    replicas: int = about(
        "Copies of the SAEs, which share out the tokens of each step. The processes of a copy "
        "share out sites or features.",
        1,
        ge=1,
    )
    threads: int | None = about(
        "CPU threads per process; default the cores of the machine over its processes.", None, ge=1
    )
    checkpoint_seconds: int = about(
        "Least time between two checkpoints; 0: one after each chunk.", 600, ge=0
    )
    timeout_seconds: int = about(
        "Time after which a process that does not answer fails the others.", 1800, ge=10
    )


@dataclass(frozen=True, config=STRICT)
class FollowConfig:
    """What is recorded of a training of SAEs while it runs."""

    eval_tokens: int | None = about(
        "Trained tokens between evaluations on held-out text, which measure the loss recovered; "
        "default so many that they cost under 3 % of the time, or none; 0: never.",
        None,
        ge=0,
    )
    log_to: tuple[str, ...] | None = about(
        "Trackers that get the figures too: tensorboard, trackio, wandb.", None
    )


# What `saefeat demo` asks for: small enough for a laptop.
DEMO: dict[str, Any] = {
    "model": DEMO_MODEL,
    "corpus": "embedded:eld",
    "d_sae": 2560,
    "train_tokens": 6000,
    "max_tokens": 7000,
    "eval_texts": 60,
    "with_": ("halves",),
    "random_tokens": 100,
    "compare_labels": 2,
}


def _check_shard(shard: str) -> str:
    found = re.fullmatch(r"([0-9]{1,12})/([0-9]{1,12})", shard)
    if not found or int(found[1]) >= int(found[2]):
        raise ValueError("write i/n with 0 <= i < n")
    return shard


@dataclass(frozen=True, config=STRICT)
class CollectConfig(OnRequest):
    """What is counted in a collection of statistics, and in which texts."""

    neurons: bool = about("Count the hidden neurons of every layer too.", False)
    bags: bool = about("The same as --with bags: write the bag of each example as well.", False)
    shard: Annotated[str, AfterValidator(_check_shard)] = about(
        "i/n: take the windows w with w mod n = i.", "0/1"
    )
    split: str = about("train, test or all.", "train")
    count_bos: bool = about("Count BOS, as in the SAE-LAPE paper.", False)
    max_tokens: int | None = _BUDGET
    seed: int = _SEED

    @property
    def requested(self) -> tuple[str, ...]:
        return (*(self.with_ or ()), *["bags"] * self.bags)


@dataclass(frozen=True, config=STRICT)
class EvaluateConfig(Columns):
    """What `saefeat lid evaluate` measures the heads of a run on."""

    corpus: str | None = about("Another corpus; default the run's own.", None)
    labels: tuple[str, ...] | None = _LABELS
    split: str | None = about(
        "train, test, all; default test for the run's corpus, else all.", None
    )
    max_texts: int | None = about("Texts per label; default all.", None, ge=1)


@dataclass(frozen=True, config=STRICT)
class Decoding:
    """How continuations are sampled. Each prompt has its own random numbers."""

    max_new_tokens: int = about("Tokens to generate.", 24, ge=1)
    temperature: float = about("Sampling temperature; 0 is greedy.", 0.8, ge=0)
    top_k: int = about("Tokens to sample from.", 50, ge=1)
    seed: int = _SEED


# --------------------------------------------------------------------------- steering


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
SOURCE_OFF = ", source off"  # of an edit: the source label's own neurons are set to zero as well
BOUNDARY = ", boundary"  # of an edit: the axis and the limit are those of a logistic regression
_ENTROPY = ("entropy_ratio",)
_TOP = {"top": 100}
# From the least to the most specific, as tables show them; a sweep begins with the last. Those with
# `by_site` add a vector and are tried at each group of sites.
STEERING_METHODS = {
    UNSTEERED: SteeringMethod(edits=(UNSTEERED,)),
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
        {"top": 400}, ("layer", "outlier_factor"), ("clamp",), remedy="raise outlier_factor"
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
            whole difference of means), and those of `saefeat.steering.makers`.
        edit: one of the method's. `clamp, source off` (neurons) also sets the neurons of the source
            label alone to zero.
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
        if self.edit not in method.edits:
            raise ValueError(f"edits of {self.method} are {', '.join(method.edits)}")
        return self


@dataclass(frozen=True, config=STRICT)
class GenerateConfig(SteeringSource):
    """How `saefeat steer generate` steers."""

    label: str = about("Label to steer towards.", kw_only=True)
    method: str = about(f"{', '.join([*reversed(STEERING_METHODS)][:-1])}.", FEATURES)
    strength: float | None = about(
        "Default the best of the label's sweep. 1 is the difference of means; negative values "
        "suppress.",
        None,
    )
    chat: bool = about("Put prompts through the model's chat template.", False)


@dataclass(frozen=True, config=STRICT)
class SweepConfig(SteeringSource):
    """What `saefeat steer sweep` tries."""

    sites: tuple[str, ...] | None = about("Sites where features steer; default by depth.", None)
    strengths: tuple[float, ...] | None = about("Of vectors; default by the number of sites.", None)
    methods: tuple[str, ...] = about(
        "Methods besides features and random ones, or all.", ("neurons", "diffmean"), min_length=1
    )
    labels: tuple[str, ...] | None = about("Steer towards these labels only.", None)
    loss_budget: float | None = about(
        "Give each setting the strength at which the loss of source texts rises by so many nats "
        "(0.7 doubles their perplexity), instead of trying strengths.",
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
class ExperimentUnits:
    """Which units an experiment edits. Random units stand beside each."""

    units: tuple[str, ...] = about(
        "features (of low entropy, higher in the label), neurons (by LAPE, of all layers), other "
        "rules of `saefeat rank`, or files of selections.",
        ("neurons", "features"),
        min_length=1,
        kw_only=True,
    )


@dataclass(frozen=True, config=STRICT)
class ArithmeticConfig(ExperimentUnits):
    """What `saefeat steer arithmetic` swaps (arXiv 2507.22608)."""

    from_: tuple[str, ...] | None = about("Labels of the prompts; default all.", None)
    to: tuple[str, ...] | None = about("Labels to steer towards; default all.", None)
    activate: Literal["additive", "replacement", "diffmean", "none"] = about(
        "What the target's units get: their mean in the label is added or put in their place, or "
        "its difference to the mean of other labels is added.",
        "additive",
    )
    deactivate: float = about("Constant that the source's units are set to.", 0.0)
    keep_source: bool = about("Leave the source's units as they are.", False)
    alpha: float = about("Factor of the means.", 1.0)
    prompts: int = about("Prompts per label: beginnings of its test texts.", 6, ge=1, le=128)


@dataclass(frozen=True, config=STRICT)
class FallbackConfig(ExperimentUnits):
    """What `saefeat steer fallback` switches off, label after label (arXiv 2507.22608)."""

    order: tuple[str, ...] | None = about(
        "Labels, in the order in which their units are switched off; default that of the paper.",
        None,
    )
    deactivate: float = about("Constant that the units are set to.", -1.5)
    source: str | None = about("Label of the prompts, in place of the English ones.", None)
    prompts: int = about("Prompts.", 16, ge=1, le=128)


@dataclass(frozen=True, config=STRICT)
class AblateConfig(ExperimentUnits, Columns):
    """What `saefeat steer ablate` sets to zero, and on which texts the loss is measured."""

    apart_from: str | None = about(
        "A file of a selection, such as languages: selections that are given get a set without its "
        "units (pure) and one of the units of both (compound).",
        None,
    )
    texts: str | None = about("A second corpus on whose texts the loss is measured too.", None)
    sentences: int = about("Test texts per label.", 20, ge=1)


@dataclass(frozen=True, config=STRICT)
class MixConfig(ExperimentUnits):
    """Which texts `saefeat mix` mixes word by word (arXiv 2507.20279)."""

    base: tuple[str, ...] | None = about("Labels of the texts; default the first two.", None)
    with_: tuple[str, ...] | None = about("Labels that are mixed in; default all.", None)
    rates: tuple[int, ...] = about("Per cent of the words that are replaced.", (0, 25, 50, 75, 100))
    dictionary: str | None = about(
        "A table (.csv, .tsv, .jsonl, .parquet) with a column for each label and the words of one "
        "meaning in a row. Default: the words of parallel texts (examples of one id), or else of "
        "other texts.",
        None,
    )
    texts: int = about("Test texts per label.", 30, ge=1)
    seed: int = _SEED


@dataclass(frozen=True, config=STRICT)
class SweptEdits(ExperimentUnits):
    """Which edits amplify units, and by what factors (arXiv 2507.22581)."""

    edits: tuple[str, ...] = about(
        "Edits: pmax, pmedian (patched with the label's sentences), max, add-max, quantile, "
        "quantile:0.5 (of the values of the token; with pass- before, of all tokens), constant, "
        "times, and all others of steering.",
        ("pmax", "pmedian", "max"),
        min_length=1,
        kw_only=True,
    )
    factors: tuple[float, ...] = about(
        "What the value of an edit is multiplied by; of constant it is the value, of times the "
        "factor of the present value. 0 edits nothing.",
        (1.0, 2.0),
        min_length=1,
        kw_only=True,
    )


@dataclass(frozen=True, config=STRICT)
class AmplifyConfig(SweptEdits):
    """What `saefeat steer amplify` amplifies and measures."""

    labels: tuple[str, ...] | None = about("Amplify units of these labels; default all.", None)
    sentences: int = about("Test texts per label.", 3, ge=1)
    edits: tuple[str, ...] = about(
        "Edits, as in steer lss.", ("pmax", "pmedian"), min_length=1, kw_only=True
    )
    factors: tuple[float, ...] = about(
        "Factors, as in steer lss.", (1.0,), min_length=1, kw_only=True
    )


@dataclass(frozen=True, config=STRICT)
class FactColumns:
    """Names of the columns of a table of facts."""

    prompt_column: str = about("Column with the prompt, in base.", "prompt", kw_only=True)
    base_column: str = about("Column with the label of the prompt.", "base", kw_only=True)
    target_column: str = about("Column with the label that is amplified.", "target", kw_only=True)
    base_object_column: str = about(
        "Column with the object in base, what follows the prompt.", "base_object", kw_only=True
    )
    target_object_column: str = about(
        "Column with the same object in target.", "target_object", kw_only=True
    )


@dataclass(frozen=True, config=STRICT)
class LSSConfig(SweptEdits, FactColumns):
    """What `saefeat steer lss` amplifies and scores."""

    from_: tuple[str, ...] | None = about(
        "Labels of the prompts; default all of a table, and English of the embedded facts.", None
    )
    to: tuple[str, ...] | None = about("Amplify units of these labels; default all.", None)
    max_facts: int | None = about("Facts per pair of labels; default all.", None, ge=1)


@dataclass(frozen=True, config=STRICT)
class UnitClasses:
    """How the units of a run are sorted into classes, and a table of prompts with answers."""

    pools: tuple[str, ...] = about(
        "Units: neurons (of all layers), features (of all SAEs).",
        ("neurons", "features"),
        min_length=1,
        kw_only=True,
    )
    classes: str | None = about(
        "Classes of units: inputs (all-shared, partial-shared, specific, non-activated on each "
        "parallel input), sharing (the one of these that a unit has on most inputs), ternary "
        "(specific, related, general), owners (one, several, all labels by LAPE), or the owners "
        "by a rule or a file of a selection. Default inputs where texts are parallel, else "
        "ternary.",
        None,
        kw_only=True,
    )
    threshold: float = about("A unit is active above it; by inputs or sharing.", 0.0, kw_only=True)
    table: str | None = about(
        "Table (.csv, .tsv, .jsonl) with prompt, answer, label and, if there are some, id (shared "
        "by translations) and options (separated by |).",
        None,
        kw_only=True,
    )


@dataclass(frozen=True, config=STRICT)
class AttributionConfig(UnitClasses):
    """What `saefeat steer attribute` attributes to units (arXiv 2406.09265)."""

    prompts: int = about("Prompts per label.", 6, ge=1)
    tokens: int = about(
        "Tokens of a test text that are a prompt; the next is the answer.", 16, ge=1
    )
    steps: int = about("Steps of integrated gradients.", 20, ge=1)


@dataclass(frozen=True, config=STRICT)
class CategoriesConfig(UnitClasses):
    """What `saefeat steer categories` switches off and measures (2406.09265, 2505.21505)."""

    only: tuple[str, ...] | None = about("Classes to switch off; default all.", None, kw_only=True)
    sentences: int = about("Test texts per label; 0 for none.", 30, ge=0)


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
class TranslateConfig(SteeringSource):
    """What `saefeat steer translate` translates (arXiv 2510.07213)."""

    table: str = about(
        "File with sentences to translate: .jsonl, .csv, .tsv or .parquet.", kw_only=True
    )
    source_column: str = about("Column with the sentence in the source language.", "source")
    reference_column: str = about("Column with its translation.", "reference")
    label_column: str = about("Column with the label of the translation.", LABEL)
    labels: tuple[str, ...] | None = about("Translate into these labels only.", None)
    method: str = about(f"{', '.join([*reversed(STEERING_METHODS)][:-1])}.", FEATURES)
    strength: float | None = about("Default the best of each label's sweep.", None)
    sentences: int = about("Sentences per label.", 24, ge=1)
    repetition_penalty: float = about("Divides the logits of tokens that occurred.", 1.1, ge=1)


@dataclass(frozen=True, config=STRICT)
class HarnessConfig(SteeringSource):
    """What `saefeat steer lm-eval` measures with lm-evaluation-harness."""

    label: str = about("Label to steer towards.", kw_only=True)
    tasks: tuple[str, ...] = about("Tasks of lm-eval.", min_length=1, kw_only=True)
    method: str = about(f"{', '.join([*reversed(STEERING_METHODS)][:-1])}.", FEATURES)
    strength: float | None = about("Default the best of the label's sweep.", None)
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
    seed: int = _SEED


LENSES = ("languages", "scripts", "keywords", "words", "alignment", "probe")


@dataclass(frozen=True, config=STRICT)
class LensConfig:
    """What `saefeat lens` looks for in the residual stream, layer by layer."""

    kinds: tuple[str, ...] | None = about(
        f"{', '.join(LENSES)}; default those that the run allows.", None, min_length=1
    )
    layers: tuple[int, ...] | None = about(
        "Layers, -1 for the embeddings; default all.", None, min_length=1
    )
    norm: Literal["both", "with", "without"] = about(
        "Decode with the model's final norm, without it, or both.", "both"
    )
    texts: int = about("Test texts per label that are decoded.", 10, ge=1)
    positions: int = about("Positions per text; 1 is its last token.", 16, ge=1)
    generated: bool = about(
        "Decode where the model generates after the beginning of a text, not in the text.", False
    )
    top: int = about("Tokens decoded at a position.", 10, ge=1)
    reliable: float = about("Least probability of fastText for a token's language.", 0.5, ge=0)
    words: str | None = about(
        "Table (.csv) with the column prompt and one column per language, which has the expected "
        "word (several with | between them); the column target, the language that is asked for, is "
        "optional. Default a table of nouns.",
        None,
    )
    prefixes: bool = about(
        "Count all tokens with which a word may begin, not the first token only.", False
    )
    keywords: str | None = about(
        "Table (.csv) with the columns label and keyword; default the keywords of Pygments.", None
    )
    programming: tuple[str, ...] | None = about(
        "Programming languages as Pygments names them; default those of the run's labels, or ten.",
        None,
        min_length=1,
    )
    parallel: str | None = about(
        "Corpus whose translations share an id; default the run's own.", None
    )
    pivot: str | None = about("Label that others are compared with; default English.", None)
    pairs: int = about("Pairs of translations per label.", 100, ge=2)
    train_texts: int = about("Train texts per label for the probe.", 100, ge=2)
    test_texts: int = about("Test texts per label for the probe.", 50, ge=1)
