"""What a run will take of time, memory and disk, by the speed of the machine on a few batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from saefeat.activations import counted_vectors
from saefeat.baselines import BASELINES
from saefeat.config import CollectConfig
from saefeat.corpora import TOKEN_LIMIT, Plan
from saefeat.corpora.corpus import describe_skipped
from saefeat.dictionaries import SAE
from saefeat.generation import Decoding, generate, text_losses
from saefeat.hooks import site_width
from saefeat.lid.heads import HEADS, FitSize
from saefeat.memory import (
    LIBRARIES,
    MORE_LIBRARIES,
    collecting_bytes,
    describe_memory,
    encoders_fit,
    group_to_fit,
    judging_bytes,
    mapped_bytes,
    state_bytes,
    training_bytes,
    working_bytes,
)
from saefeat.models import LanguageModel
from saefeat.run.evaluate_heads import choose_positions
from saefeat.run.grids import demo_grid
from saefeat.run.opened import OpenRun
from saefeat.run.stages import chosen_neurons, counted_dictionaries, neurons
from saefeat.sae.objectives import sae_width
from saefeat.sae.trainer import Trainer
from saefeat.statistics import collected_kinds, run_kinds

_OTHER_SECONDS = 20  # ranking and the report
_OTHER_DISK = 6e6  # the report and the metrics
_ALL = list(run_kinds().values())


class _Job:
    """A run, and the sizes by which its stages are estimated.

    `d_ins` and `widths` are those of its SAEs, given or to be trained.
    """

    def __init__(self, opened: OpenRun) -> None:
        lm, given, plan = opened.lm, opened.given, opened.plan
        self.opened, self.training = opened, opened.training
        self.labels = len(opened.corpus.labels)
        self.sites = opened.sites or [sae.site for sae in given]
        self.d_ins = [site_width(lm, lm.site(site)) for site in self.sites]
        self.widths = [sae.width for sae in given]
        if not given:
            self.widths = [sae_width(self.training, d_in) for d_in in self.d_ins]
        # SAEs that are to be trained are not among them.
        self.dictionaries = counted_dictionaries(lm, given, None, neurons(lm, opened.layers))
        texts, width = len(plan.tokens), sum(self.widths)
        self.text_tokens = plan.total / max(texts, 1) + len(lm.prefix)  # mean of a text
        self.fit_size = FitSize(texts, plan.total, self.text_tokens, width, self.labels)


def forecast(opened: OpenRun) -> list[str]:
    """Lines that say what a run will do, and what it will take of time, memory and disk."""
    config, lm, job = opened.config, opened.lm, _Job(opened)
    speed = _forward_speed(job)
    seconds = _seconds(job, speed)
    widths = " and ".join(map(str, sorted(set(job.widths))))
    k = "" if opened.given else f", k {config.k}"
    layers = f"neurons of {len(opened.layers)} layers" if opened.layers else "no neurons"
    stages = ", ".join(f"{stage} {s:,.0f}" for stage, s in seconds.items())
    return [
        f"model {lm.name} ({lm.dtype}), corpus {opened.corpus.name}, {job.labels} labels, "
        f"SAEs at {', '.join(job.sites)} (width {widths}{k}), {layers}",
        f"forecast: {sum(seconds.values()) + _OTHER_SECONDS:,.0f} s ({stages}), {_memory(job)}, "
        f"{_disk_bytes(job) / 1e6:,.0f} MB on disk; {speed:,.0f} tokens/s forward",
        *describe_skipped(opened.corpus, opened.plan),
    ]


def forecast_collect(
    lm: LanguageModel, saes: Sequence[SAE], plan: Plan, config: CollectConfig
) -> str:
    """A line with the memory and disk that a collection takes, and how many groups it makes."""
    kinds, labels = collected_kinds(config.requested), len(plan.corpus.labels)
    dictionaries = counted_dictionaries(lm, saes, None, chosen_neurons(lm, config))
    examples = np.bincount(plan.corpus.codes[plan.chosen]).tolist()
    rows = sum(min(count, config.table_examples) for count in examples)
    on_device = lm.model.get_memory_footprint(return_buffers=False)
    on_device += collecting_bytes(dictionaries, lm.device, labels, kinds)
    groups = len(group_to_fit(dictionaries, lm.device, labels, kinds=kinds))
    on_disk = sum(state_bytes(each, labels, kinds, rows) for each in dictionaries)
    return (
        f"forecast: {describe_memory(lm.device, on_device, LIBRARIES, mapped_bytes(saes))}, "
        f"{on_disk / 1e6:,.0f} MB of statistics on disk, "
        f"{groups} group{'s' * (groups > 1)} of dictionaries, one pass over the corpus each"
    )


# --------------------------------------------------------------------------- time


def _seconds(job: _Job, speed: float) -> dict[str, float]:
    """The time of each stage, given the counted tokens/s of the forward pass."""
    opened, plan, mean, fit = job.opened, job.opened.plan, job.text_tokens, job.fit_size
    config = opened.config
    short = min(mean, 9.0)  # tokens of the beginning of a text
    texts = len(choose_positions(opened.corpus, "test", config.seed, config.eval_texts))
    groups = 1
    if opened.given:
        groups = len(group_to_fit(job.dictionaries, opened.lm.device, job.labels, kinds=_ALL))
    tokens = {
        "train": 0 if opened.given else opened.training_plan.total,
        "collect": groups * plan.total,
        "lid fit": int(sum(kind.fit_tokens(fit) for kind in HEADS.values())),
        "lid evaluate": int(texts * (2 * short + 1.3 * short + mean)),
    }
    seconds = {stage: n / speed for stage, n in tokens.items()}
    if not opened.given:
        seconds["train"] += _step_seconds(job)
    seconds["lid fit"] += 1e-3 * len(plan.tokens) * (2 * len(job.sites) + 1)
    seconds["lid evaluate"] += 1e-3 * texts  # of the baselines
    return seconds | _steering_seconds(opened)


def _forward_speed(job: _Job) -> float:
    """Counted tokens/s up to the deepest site, on a batch of the plan after a warm-up."""
    lm, plan = job.opened.lm, job.opened.plan
    by_length = plan.chosen[np.argsort(plan.numbers(plan.chosen), kind="stable")]
    batch = next(plan.batches(lm, by_length[len(by_length) // 2 :][:24].tolist()))
    sites = [*job.sites, *(f"mlp_act@{layer}" for layer in job.opened.layers)]
    passes = counted_vectors(lm, [batch, batch], sites)
    next(passes)
    seconds = _seconds_of(lm.device, partial(next, passes))
    return float(batch.counted.sum()) / max(seconds, 1e-6)


def _step_seconds(job: _Job) -> float:
    """The time of all steps of SAE training, from one step at each site."""
    training, lm = job.training, job.opened.lm
    total = 0.0
    for d_in in job.d_ins:
        with torch.inference_mode():
            trainer = Trainer(d_in, training, 2, lm.device)
            x = torch.randn(training.batch_size, d_in, device=lm.device)
            trainer.fit_scaler(x)
            trainer.step(x)
            total += _seconds_of(lm.device, partial(trainer.step, x))
    return total * job.opened.training_plan.total * training.passes / training.batch_size


def _steering_seconds(opened: OpenRun) -> dict[str, float]:
    """The time of steering and of the matrix, from a few tokens and texts."""
    config, lm, labels = opened.config, opened.lm, len(opened.corpus.labels)
    some: list[int] = opened.plan.chosen[:8].tolist()
    texts = [opened.corpus.texts[i] for i in some]
    found = {}
    if config.steer_prompts:
        decoding = Decoding(max_new_tokens=4)
        prompts = [lm.prefix + row[:10] for row in lm.tokenize(texts, 10)] * 4
        seconds = _seconds_of(lm.device, partial(generate, lm, prompts, decoding))
        token = seconds / (len(prompts) * decoding.max_new_tokens)
        rows = config.steer_prompts * labels * (2 + len(demo_grid(())))
        found["steering"] = 1.5 * token * Decoding().max_new_tokens * rows
    if config.matrix_texts:
        seconds = _seconds_of(lm.device, partial(text_losses, lm, texts, TOKEN_LIMIT))
        found["matrix"] = seconds / len(texts) * config.matrix_texts * labels * (1 + 2 * labels)
    return found


def _seconds_of(device: str, work: Callable[[], Any]) -> float:
    start = _now(device)
    work()
    return _now(device) - start


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.monotonic()


# --------------------------------------------------------------------------- memory and disk


def _memory(job: _Job) -> str:
    """How much memory the run needs, in words.

    The stages are summed: memory that one stage has freed is kept, but the next can rarely use it.
    Measured peaks agree with the sum.
    """
    opened, lm, config = job.opened, job.opened.lm, job.opened.config
    on_device = lm.model.get_memory_footprint(return_buffers=False)
    if opened.given:
        on_device += collecting_bytes(job.dictionaries, lm.device, job.labels, _ALL)
    else:
        chunk = min(job.training.chunk_tokens * 1.25, opened.training_plan.total)
        on_device += training_bytes(chunk, job.d_ins, job.widths)
    if config.steer_prompts or config.matrix_texts:
        prompts = config.steer_prompts * 2 * TOKEN_LIMIT
        tokens = max(config.matrix_texts * job.labels * job.text_tokens, prompts)
        logits = lm.unembedding()
        on_device += judging_bytes(tokens, logits.shape[0], logits.element_size())
    if config.matrix_texts and encoders_fit(opened.given, lm.device):  # else it is left out
        on_device += sum(working_bytes(sae, lm.device) for sae in opened.given)
    kinds = (*HEADS.values(), *BASELINES.values())
    process = LIBRARIES + MORE_LIBRARIES + sum(kind.fit_bytes(job.fit_size) for kind in kinds)
    return describe_memory(lm.device, on_device, process, mapped_bytes(opened.given))


def _disk_bytes(job: _Job) -> float:
    """Bytes of statistics, histograms, bags and weights."""
    opened, width = job.opened, sum(job.widths)
    identities = job.dictionaries[len(opened.given) :]
    tables = sum(state_bytes(each, job.labels, _ALL) for each in identities)
    tables += width * sum(kind.unit_bytes(job.labels, signed=False) for kind in _ALL)
    bags = opened.plan.total * opened.config.k * len(job.sites) * 8
    weights = 0 if opened.given else width * job.d_ins[0] * 8
    return tables + bags + weights + _OTHER_DISK
