"""Configurations of runs and their stages: training, collection, evaluation, decoding."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from saefeat.config.fields import (
    ACTIVE,
    BUDGET,
    DEMO_MODEL,
    LABELS,
    SEED,
    Columns,
    Inputs,
    SAEInputs,
    about,
)
from saefeat.schema import STRICT

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
    k: int = ACTIVE
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

    k: int = ACTIVE
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
    seed: int = SEED
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
    max_tokens: int | None = BUDGET
    seed: int = SEED

    @property
    def requested(self) -> tuple[str, ...]:
        return (*(self.with_ or ()), *["bags"] * self.bags)


@dataclass(frozen=True, config=STRICT)
class EvaluateConfig(Columns):
    """What `saefeat lid evaluate` measures the heads of a run on."""

    corpus: str | None = about("Another corpus; default the run's own.", None)
    labels: tuple[str, ...] | None = LABELS
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
    seed: int = SEED
