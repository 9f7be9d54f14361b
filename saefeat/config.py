"""Configurations: what stages are asked for, with one set of defaults.

The command line makes its options of these fields, their descriptions and their bounds.
"""

from __future__ import annotations

from typing import Any

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
class Decoding:
    """How continuations are sampled. Each prompt has random numbers of its own."""

    max_new_tokens: int = Field(default=24, ge=1, description="Tokens to generate.")
    temperature: float = Field(default=0.8, ge=0, description="0 is greedy.")
    top_k: int = Field(default=50, ge=1, description="Only the k best tokens are sampled.")
    seed: int = Field(default=0, ge=0, description="Seed of the random numbers.")


# What `saefeat demo` asks for: small enough for a laptop.
DEMO: dict[str, Any] = {
    "d_sae": 2560,
    "train_tokens": 6000,
    "max_tokens": 7000,
    "eval_texts": 60,
    "steer_prompts": 16,
    "matrix_texts": 10,
}
