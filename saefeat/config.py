"""Configurations: what stages are asked for, with one set of defaults.

The command line makes its options of these fields, their descriptions and their bounds.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from saefeat.schema import STRICT


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """What `saefeat run` is asked for. None stands for a default that depends on the model."""

    model: str = Field(description="Hub id, directory, .gguf file, or embedded:gemma-3-270m.")
    corpus: str = Field(
        description="embedded:eld, a .jsonl/.csv/.tsv/.parquet file, a directory of LABEL.txt, a "
        "name of `saefeat corpus list`, or hub:OWNER/NAME[:CONFIG]."
    )
    saes: tuple[str, ...] = Field(
        (), description="SAE directory, folder of them, release/sae_id of sae-lens, or hub id."
    )
    labels: tuple[str, ...] | None = Field(None, description="Only these labels.")
    sites: tuple[str, ...] | None = Field(
        None, description="Where SAEs are trained when none are given; default by depth."
    )
    d_sae: int | None = Field(None, ge=16, description="Width of the SAEs; default 4 times d_in.")
    k: int = Field(32, ge=1, description="Active features per token.")
    train_tokens: int | None = Field(
        100_000, ge=1, description="Counted tokens per label for SAE training."
    )
    max_tokens: int | None = Field(
        50_000, ge=1, description="Counted tokens per label for the statistics."
    )
    eval_texts: int | None = Field(
        None, ge=1, description="Test texts per label in the evaluation; default all."
    )
    neuron_layers: int | None = Field(
        None,
        ge=0,
        description="How many of the first layers have their neurons counted; default up to the "
        "deepest site of an SAE.",
    )
    steer_prompts: int = Field(
        16, ge=0, le=64, description="English prompts on which steering is tried; 0: none."
    )
    matrix_texts: int = Field(
        10, ge=0, description="Texts per label of the perplexity matrix; 0: no matrix."
    )
    source: str | None = Field(
        None, description="The label that is steered away from; default English."
    )
    gate: bool = Field(
        True, description="Try given SAEs on a little text first; refuse those that do not fit."
    )
    seed: int = Field(0, ge=0, description="Seed of everything random.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    dtype: str = Field("auto", description="Of the model: auto, float32, bfloat16, float16.")
    text_column: str = Field("text", description="Column of the text.")
    label_column: str = Field("label", description="Column of the label.")
    id_column: str = Field("id", description="Column of the id that translations share.")


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
    seed: int = Field(default=0, ge=0, description="Seed of everything random.")
    architecture: str = Field(default="topk", description="Architecture of the SAEs.")


# What `saefeat demo` asks for: small enough for a laptop.
DEMO: dict[str, Any] = {
    "d_sae": 2560,
    "train_tokens": 6000,
    "max_tokens": 7000,
    "eval_texts": 60,
    "steer_prompts": 16,
    "matrix_texts": 10,
}
