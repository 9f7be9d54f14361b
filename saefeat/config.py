"""Configurations: what each stage is asked for, with defaults, bounds and descriptions.

The command line makes its options from these fields (`saefeat.cli.common.with_options`). The
module imports nothing heavy, so that `--help` does not wait for torch.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from saefeat.schema import STRICT

_SEED: Any = Field(default=0, ge=0, description="Seed of all random choices.")
_BUDGET: Any = Field(default=None, ge=1, description="Counted tokens per label; default all.")
_LABELS: Any = Field(default=None, description="Use these labels only.")


@dataclass(frozen=True, config=STRICT)
class Columns:
    """Names of the columns of a corpus."""

    text_column: str = Field(default="text", kw_only=True, description="Column with the text.")
    label_column: str = Field(default="label", kw_only=True, description="Column with the label.")
    id_column: str = Field(
        default="id", kw_only=True, description="Column with the id that translations share."
    )

    @property
    def columns(self) -> dict[str, Any]:
        """The three names, as keyword arguments of `load_corpus`."""
        return {name: getattr(self, name) for name in ("text_column", "label_column", "id_column")}


@dataclass(frozen=True, config=STRICT)
class Inputs(Columns):
    """A model and a corpus, and how they are loaded."""

    model: str = Field(description="Hub id, directory, .gguf file, or embedded:gemma-3-270m.")
    corpus: str = Field(
        description="embedded:eld, a .jsonl/.csv/.tsv/.parquet file, a directory of LABEL.txt, a "
        "name of `saefeat corpus list`, or hub:OWNER/NAME[:CONFIG]."
    )
    labels: tuple[str, ...] | None = _LABELS
    max_tokens: int | None = _BUDGET
    seed: int = _SEED
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, ...")
    dtype: str = Field(
        default="auto", description="Of the model: auto, float32, bfloat16, float16."
    )


@dataclass(frozen=True, config=STRICT)
class SAEInputs(Inputs):
    """A model, a corpus and SAEs that exist."""

    saes: tuple[str, ...] = Field(
        default=(),
        description="SAE directory, folder of them, release/sae_id of sae-lens, or hub id.",
    )
    gate: bool = Field(
        default=True,
        description="Try given SAEs on a little text first, and refuse those that do not fit.",
    )


@dataclass(frozen=True, config=STRICT)
class TrainInputs(Inputs):
    """A model, a corpus and the sites where SAEs are trained."""

    sites: tuple[str, ...] = Field(
        kw_only=True, description="mlp_out@13, resid_post@5, ... or module paths."
    )


@dataclass(frozen=True, config=STRICT)
class SteeringSource:
    """The label that steering leads away from."""

    source: str | None = Field(
        default=None, kw_only=True, description="Label to steer away from; default English."
    )


@dataclass(frozen=True, config=STRICT)
class RunConfig(SAEInputs, SteeringSource):
    """What `saefeat run` is asked for. None stands for a default that depends on the model."""

    sites: tuple[str, ...] | None = Field(
        default=None,
        description="Sites where SAEs are trained when none are given; default by depth.",
    )
    d_sae: int | None = Field(
        default=None, ge=16, description="Width of the SAEs; default 4 times d_in."
    )
    k: int = Field(default=32, ge=1, description="Active features per token.")
    train_tokens: int | None = Field(
        default=100_000, ge=1, description="Counted tokens per label for SAE training."
    )
    max_tokens: int | None = Field(
        default=50_000, ge=1, description="Counted tokens per label for the statistics."
    )
    eval_texts: int | None = Field(
        default=None, ge=1, description="Test texts per label in the evaluation; default all."
    )
    neuron_layers: int | None = Field(
        default=None,
        ge=0,
        description="Number of first layers whose neurons are counted; default up to the deepest "
        "site with an SAE.",
    )
    steer_prompts: int = Field(
        default=16,
        ge=0,
        le=64,
        description="English prompts on which steering is tried; 0 for none.",
    )
    matrix_texts: int = Field(
        default=10, ge=0, description="Texts per label of the perplexity matrix; 0 for no matrix."
    )


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """How SAEs are trained. None stands for a default that depends on the site or the corpus."""

    k: int = Field(default=32, ge=1, description="Active features per token.")
    d_sae: int | None = Field(
        default=None, ge=16, description="Width, a multiple of 16; default `expansion` times d_in."
    )
    expansion: int = Field(default=4, ge=1, description="Width over d_in where no width is given.")
    passes: int = Field(default=2, ge=1, description="How often each activation is used.")
    batch_size: int = Field(default=2048, ge=16, description="Tokens per step.")
    chunk_tokens: int = Field(
        default=65_536,
        ge=16,
        description="Tokens held in memory, at 2 bytes times d_in for each site; a checkpoint is "
        "written after each chunk.",
    )
    lr: float | None = Field(
        default=None,
        ge=1e-8,
        description="Peak rate of Adam, on inputs of unit variance; default "
        "1e-3 * sqrt(10240 / d_sae).",
    )
    warmup: float = Field(
        default=0.05, ge=0, le=1, description="Share of the steps with rising rate."
    )
    decay: float = Field(
        default=0.4, ge=0, le=1, description="Share of the steps with falling rate."
    )
    aux: float = Field(
        default=1 / 32, ge=0, description="Weight of the loss that revives dead units."
    )
    dead_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Tokens without firing after which a unit is dead; default an eighth of all "
        "training tokens, at most 10 million.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Of the encoder product. Weights are float32 always."
    )
    seed: int = _SEED
    architecture: str = Field(default="topk", description="Architecture of the SAEs.")


# What `saefeat demo` asks for: small enough for a laptop.
DEMO: dict[str, Any] = {
    "model": "embedded:gemma-3-270m",
    "corpus": "embedded:eld",
    "d_sae": 2560,
    "train_tokens": 6000,
    "max_tokens": 7000,
    "eval_texts": 60,
}


def _checked_shard(shard: str) -> str:
    found = re.fullmatch(r"([0-9]{1,12})/([0-9]{1,12})", shard)
    if not found or int(found[1]) >= int(found[2]):
        raise ValueError("write i/n with 0 <= i < n")
    return shard


@dataclass(frozen=True, config=STRICT)
class CollectConfig:
    """What is counted in a collection of statistics, and in which texts."""

    neurons: bool = Field(default=False, description="Count the hidden neurons of every layer too.")
    bags: bool = Field(default=False, description="Write the bag of each example as well.")
    shard: Annotated[str, AfterValidator(_checked_shard)] = Field(
        default="0/1", description="i/n: take the windows w with w mod n = i."
    )
    split: str = Field(default="train", description="train, test or all.")
    count_bos: bool = Field(default=False, description="Count BOS, as in the SAE-LAPE paper.")
    max_tokens: int | None = _BUDGET
    seed: int = _SEED


@dataclass(frozen=True, config=STRICT)
class EvaluateConfig(Columns):
    """What `saefeat lid evaluate` measures the heads of a run on."""

    corpus: str | None = Field(default=None, description="Another corpus; default the run's own.")
    labels: tuple[str, ...] | None = _LABELS
    split: str | None = Field(
        default=None,
        description="train, test or all; default test for the run's own corpus, else all.",
    )
    max_texts: int | None = Field(default=None, ge=1, description="Texts per label; default all.")


@dataclass(frozen=True, config=STRICT)
class Decoding:
    """How continuations are sampled. Each prompt has its own random numbers."""

    max_new_tokens: int = Field(default=24, ge=1, description="Tokens to generate.")
    temperature: float = Field(default=0.8, ge=0, description="Sampling temperature; 0 is greedy.")
    top_k: int = Field(default=50, ge=1, description="Tokens to sample from.")
    seed: int = _SEED


@dataclass(frozen=True, config=STRICT)
class GenerateConfig(SteeringSource):
    """How `saefeat steer generate` steers."""

    label: str = Field(kw_only=True, description="Label to steer towards.")
    method: str = Field(default="features", description="features, diffmean, neurons or random.")
    strength: float | None = Field(
        default=None,
        description="Default the best of the label's sweep. 1 is the difference of means; negative "
        "values suppress.",
    )
    chat: bool = Field(default=False, description="Put prompts through the model's chat template.")


@dataclass(frozen=True, config=STRICT)
class SweepConfig(SteeringSource):
    """What `saefeat steer sweep` tries."""

    sites: tuple[str, ...] | None = Field(
        default=None, description="Sites of SAEs where features steer; default by depth."
    )
    strengths: tuple[float, ...] | None = Field(
        default=None, description="Strengths of vectors; default by the number of sites."
    )
    methods: tuple[str, ...] | None = Field(
        default=None, description="Methods to try besides features; default all."
    )
    labels: tuple[str, ...] | None = Field(
        default=None, description="Steer towards these labels only."
    )


MATRIX_EDITS = {"ablate": "ablate", "amplify": "scale"}  # name -> edit of `saefeat.steering`


@dataclass(frozen=True, config=STRICT)
class MatrixConfig:
    """What `saefeat steer matrix` edits and measures."""

    sentences: int = Field(default=100, ge=1, description="Test texts per label.")
    top: int = Field(default=100, ge=1, description="Features per label and SAE.")
    edits: tuple[str, ...] = Field(
        default=tuple(MATRIX_EDITS), description=f"{', '.join(MATRIX_EDITS)}."
    )
