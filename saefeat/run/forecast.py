"""What a run will take of time, memory and disk, by the speed of the machine on a few batches."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from saefeat.activations import counted_vectors
from saefeat.baselines import BASELINES
from saefeat.config import CollectConfig, OnRequest, TrainConfig
from saefeat.corpora import TOKEN_LIMIT, WINDOW, Plan
from saefeat.corpora.corpus import describe_skipped
from saefeat.corpora.random_tokens import random_plan
from saefeat.dictionaries import SAE
from saefeat.generation import Decoding, generate, text_losses
from saefeat.hooks import site_width
from saefeat.lid.heads import HEADS, FitSize
from saefeat.memory import (
    LIBRARIES,
    MORE_LIBRARIES,
    Kinds,
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
from saefeat.methods import METHODS
from saefeat.models import LanguageModel
from saefeat.run.compare import small_comparison
from saefeat.run.evaluate_heads import choose_positions
from saefeat.run.grids import demo_grid
from saefeat.run.opened import OpenRun
from saefeat.run.stages import collected_neurons, counted_dictionaries
from saefeat.sae.objectives import sae_width
from saefeat.sae.trainer import Trainer
from saefeat.statistics import collected_kinds, run_kinds

_OTHER_SECONDS = 20  # ranking and the report
_OTHER_DISK = 6e6  # the report and the metrics


class _Job:
    """A run, and the sizes by which its stages are estimated.

    `d_ins` and `widths` are those of its SAEs, given or to be trained. `kinds` are the accumulators
    that it collects.
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
        self.dictionaries = counted_dictionaries(lm, given, None, opened.neurons)
        self.kinds = list(run_kinds(opened.config.requested).values())
        self.random = _random_total(lm, plan, opened.config)
        texts, width = len(plan.tokens), sum(self.widths)
        self.text_tokens = plan.total / max(texts, 1) + len(lm.prefix)  # mean of a text
        self.fit_size = FitSize(texts, plan.total, self.text_tokens, width, self.labels)


def forecast(opened: OpenRun) -> list[str]:
    """Lines that say what a run will do, and what it will take of time, memory and disk."""
    config, lm, job = opened.config, opened.lm, _Job(opened)
    neurons_read = [each.site for each in opened.neurons]
    speed = forward_speed(lm, opened.plan, [*job.sites, *neurons_read])
    seconds = _seconds(job, speed)
    widths = " and ".join(map(str, sorted(set(job.widths))))
    k = "" if opened.given else f", k {config.k}"
    layers = f"neurons of {len(opened.layers)} layers" if opened.layers else "no neurons"
    extra = "".join(f", {name}" for name in config.requested)
    extra += _random_words(config, job.random)
    stages = ", ".join(f"{stage} {s:,.0f}" for stage, s in seconds.items())
    return [
        f"model {lm.name} ({lm.dtype}), corpus {opened.corpus.name}, {job.labels} labels, "
        f"SAEs at {', '.join(job.sites)} (width {widths}{k}), {layers}{extra}",
        f"forecast: {sum(seconds.values()) + _OTHER_SECONDS:,.0f} s ({stages}), {_memory(job)}, "
        f"{_disk_bytes(job) / 1e6:,.0f} MB on disk; {speed:,.0f} tokens/s forward",
        *describe_skipped(opened.corpus, opened.plan),
    ]


def forecast_collect(
    lm: LanguageModel, saes: Sequence[SAE], plan: Plan, config: CollectConfig
) -> str:
    """A line with the memory and disk that a collection takes, and how many groups it makes."""
    kinds, labels = collected_kinds(config.requested), len(plan.corpus.labels)
    dictionaries = counted_dictionaries(lm, saes, None, collected_neurons(lm, config))
    rows = _table_rows(plan, config)
    on_device = lm.model.get_memory_footprint(return_buffers=False)
    on_device += collecting_bytes(dictionaries, lm.device, labels, kinds)
    groups = len(group_to_fit(dictionaries, lm.device, labels, kinds=kinds))
    on_disk = sum(state_bytes(each, labels, kinds, rows) for each in dictionaries)
    if config.random_tokens:
        on_disk += sum(state_bytes(each, 1) for each in dictionaries)
    return (
        f"forecast: {describe_memory(lm.device, on_device, LIBRARIES, mapped_bytes(saes))}, "
        f"{on_disk / 1e6:,.0f} MB of statistics on disk, "
        f"{groups} group{'s' * (groups > 1)} of dictionaries, one pass over the corpus each"
        + _random_words(config, _random_total(lm, plan, config))
    )


def _table_rows(plan: Plan, config: OnRequest) -> int:
    """The number of examples in tables by example."""
    examples = np.bincount(plan.corpus.codes[plan.chosen]).tolist()
    return sum(min(count, config.table_examples) for count in examples)


def _random_total(lm: LanguageModel, plan: Plan, config: OnRequest) -> int:
    """The number of random tokens that are counted."""
    return random_plan(lm, plan, config.random_tokens).total if config.random_tokens else 0


def _random_words(config: OnRequest, tokens: int) -> str:
    if not tokens:
        return ""
    return f", and {config.random_tokens:,} sequences of random tokens ({tokens:,} tokens)"


# --------------------------------------------------------------------------- time


def _seconds(job: _Job, speed: float) -> dict[str, float]:
    """The time of each stage, given the counted tokens/s of the forward pass."""
    opened, plan, mean, fit = job.opened, job.opened.plan, job.text_tokens, job.fit_size
    config = opened.config
    short = min(mean, 9.0)  # tokens of the beginning of a text
    texts = len(choose_positions(opened.corpus, "test", config.seed, config.eval_texts))
    groups = 1
    if opened.given:
        groups = len(group_to_fit(job.dictionaries, opened.lm.device, job.labels, kinds=job.kinds))
    tokens = {
        "train": 0 if opened.given else opened.training_plan.total,
        "collect": groups * (plan.total + job.random),
        "lid fit": int(sum(kind.fit_tokens(fit) for kind in HEADS.values())),
        "lid evaluate": int(texts * (2 * short + 1.3 * short + mean)),
    }
    seconds = {stage: n / speed for stage, n in tokens.items()}
    if not opened.given:
        training = job.training
        step = step_seconds(training, job.d_ins, training.batch_size, opened.lm.device)
        steps = opened.training_plan.total * training.passes / training.batch_size
        seconds["train"] += step * steps
    seconds["lid fit"] += 1e-3 * len(plan.tokens) * (2 * len(job.sites) + 1)
    seconds["lid evaluate"] += 1e-3 * texts  # of the baselines
    return seconds | _steering_seconds(opened)


def forward_speed(lm: LanguageModel, plan: Plan, sites: Sequence[str]) -> float:
    """Counted tokens/s up to the deepest site, on a batch of the plan after a warm-up."""
    by_length = plan.chosen[np.argsort(plan.numbers(plan.chosen), kind="stable")]
    batch = next(plan.batches(lm, by_length[len(by_length) // 2 :][:24].tolist()))
    passes = counted_vectors(lm, [batch, batch], sites)
    next(passes)
    seconds = _seconds_of(lm.device, partial(next, passes))
    return float(batch.counted.sum()) / max(seconds, 1e-6)


def step_seconds(training: TrainConfig, d_ins: Sequence[int], tokens: int, device: str) -> float:
    """The time of one step of SAE training at sites of these widths, on so many tokens."""
    total = 0.0
    for d_in, sites in Counter(d_ins).items():
        with torch.inference_mode():
            trainer = Trainer(d_in, training, 2, device)
            x = torch.randn(tokens, d_in, device=device)
            trainer.fit_scaler(x)
            trainer.step(x)
            total += sites * _seconds_of(device, partial(trainer.step, x))
    return total


def _steering_seconds(opened: OpenRun) -> dict[str, float]:
    """The time of steering, of the matrix and of rules, from a few tokens and texts."""
    config, lm, labels = opened.config, opened.lm, len(opened.corpus.labels)
    some: list[int] = opened.plan.chosen[:8].tolist()
    texts = [opened.corpus.texts[i] for i in some]
    found = {}
    continuation = text = 0.0  # seconds for one
    if config.steer_prompts or config.compare_labels:
        decoding = Decoding(max_new_tokens=4)
        prompts = [lm.prefix + row[:10] for row in lm.tokenize(texts, 10)] * 4
        seconds = _seconds_of(lm.device, partial(generate, lm, prompts, decoding))
        token = seconds / (len(prompts) * decoding.max_new_tokens)
        continuation = 1.5 * token * Decoding().max_new_tokens
    if config.matrix_texts or config.compare_labels:
        seconds = _seconds_of(lm.device, partial(text_losses, lm, texts, TOKEN_LIMIT))
        text = seconds / len(texts)
    if config.steer_prompts:
        rows = config.steer_prompts * labels * (2 + len(demo_grid(())))
        found["steering"] = continuation * rows
    if config.matrix_texts:
        found["matrix"] = text * config.matrix_texts * labels * (1 + 2 * labels)
    if config.compare_labels:
        small = small_comparison(opened)
        edited = len(small.labels or ()) * 2 * _compared_rules(opened)  # random units too
        texts_read = small.sentences * len(small.labels or ())
        found["compare"] = edited * (small.prompts * continuation + texts_read * text)
        found["compare"] += small.eval_texts * labels * text
    return found


def _compared_rules(opened: OpenRun) -> int:
    """How many rules are compared, on features and on neurons."""
    config = opened.config
    rules = [
        method
        for method in METHODS.values()
        if set(method.accumulators) <= set(config.requested)
        and (config.random_tokens or not method.control)
    ]
    return len(rules) * (1 + bool(opened.neurons))


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
        on_device += collecting_bytes(job.dictionaries, lm.device, job.labels, job.kinds)
    else:
        chunk = min(job.training.chunk_tokens * 1.25, opened.training_plan.total)
        on_device += training_bytes(chunk, job.d_ins, job.widths)
        # The statistics of a run that are always collected are small beside the training.
        requested = [kind for kind in job.kinds if not kind.IN_RUN]
        on_device += _statistics_bytes(job, requested, WINDOW)
        neurons = sum(each.width for each in job.dictionaries)
        on_device += neurons * sum(kind.BUFFER for kind in requested)
    if config.steer_prompts or config.matrix_texts or config.compare_labels:
        prompts = config.steer_prompts * 2 * TOKEN_LIMIT
        tokens = max(config.matrix_texts * job.labels * job.text_tokens, prompts)
        logits = lm.unembedding()
        on_device += judging_bytes(tokens, logits.shape[0], logits.element_size())
    ablating = config.matrix_texts or config.compare_labels
    if ablating and encoders_fit(opened.given, lm.device):  # else it is left out
        on_device += sum(working_bytes(sae, lm.device) for sae in opened.given)
    kinds = (*HEADS.values(), *BASELINES.values())
    process = LIBRARIES + MORE_LIBRARIES + sum(kind.fit_bytes(job.fit_size) for kind in kinds)
    return describe_memory(lm.device, on_device, process, mapped_bytes(opened.given))


def _disk_bytes(job: _Job) -> float:
    """Bytes of statistics, histograms, tables, bags and weights."""
    opened, width = job.opened, sum(job.widths)
    tables = _statistics_bytes(job, job.kinds, _table_rows(opened.plan, opened.config))
    if job.random:
        tables += _statistics_bytes(job, collected_kinds(), 0, labels=1)
    bags = opened.plan.total * opened.config.k * len(job.sites) * 8
    weights = 0 if opened.given else width * job.d_ins[0] * 8
    return tables + bags + weights + _OTHER_DISK


def _statistics_bytes(job: _Job, kinds: Kinds, rows: int, labels: int | None = None) -> int:
    """Bytes of accumulators of all dictionaries, with so many examples in tables by example."""
    labels = job.labels if labels is None else labels
    identities = job.dictionaries[len(job.opened.given) :]
    total = sum(state_bytes(each, labels, kinds, rows) for each in identities)
    each_unit = sum(kind.unit_bytes(labels, signed=False, rows=rows) for kind in kinds)
    return total + sum(job.widths) * each_unit
