"""What a run will take of time, memory and disk, by the speed of the machine on a few batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from saefeat.activations import counted_vectors
from saefeat.baselines import BASELINES
from saefeat.corpora import TOKEN_LIMIT
from saefeat.dictionaries import SAE, Dictionary
from saefeat.generation import Decoding, generate, text_losses
from saefeat.hooks import site_width
from saefeat.lid.heads import HEADS, FitSize
from saefeat.memory import (
    collecting_bytes,
    describe_memory,
    dictionary_budget,
    group_to_fit,
    judging_bytes,
    mapped_bytes,
    training_bytes,
    working_bytes,
)
from saefeat.models import LanguageModel
from saefeat.run.evaluate_heads import choose_positions
from saefeat.run.grids import demo_grid
from saefeat.run.opened import OpenRun
from saefeat.run.stages import distinct, means, neurons
from saefeat.sae.objectives import sae_width
from saefeat.sae.trainer import Trainer
from saefeat.statistics import ACCUMULATORS

_LIBRARIES = 0.7e9  # bytes of a process that collects
_MORE_LIBRARIES = 0.5e9  # bytes that scikit-learn, the judge and the report add
_OTHER_SECONDS = 20  # ranking and the report
_OTHER_DISK = 6e6  # the report and the metrics


@dataclass(frozen=True)
class _Job:
    """What a run works on. `d_ins` and `widths` are those of its SAEs, given or to be trained."""

    setting: OpenRun
    sites: list[str]
    d_ins: list[int]
    widths: list[int]
    dictionaries: list[Dictionary]

    @property
    def labels(self) -> int:
        return len(self.setting.corpus.labels)

    @property
    def text_tokens(self) -> float:
        """Mean number of tokens of a text."""
        plan = self.setting.plan
        return plan.total / max(len(plan.tokens), 1) + len(self.setting.lm.prefix)

    @property
    def fit_size(self) -> FitSize:
        """How much the heads and baselines are fitted on."""
        plan = self.setting.plan
        texts, width = len(plan.tokens), sum(self.widths)
        return FitSize(texts, plan.total, self.text_tokens, width, self.labels)


def forecast(setting: OpenRun) -> list[str]:
    """Return lines that say what a run will do and what it will take."""
    config, lm, plan, job = setting.config, setting.lm, setting.plan, _job(setting)
    speed = _forward_speed(setting, job.sites)
    seconds = _seconds(job, speed)
    widths = " and ".join(str(width) for width in sorted(set(job.widths)))
    k = "" if setting.given else f", k {config.k}"
    layers = f"neurons of {len(setting.layers)} layers" if setting.layers else "no neurons"
    stages = ", ".join(f"{stage} {s:,.0f}" for stage, s in seconds.items())
    lines = [
        f"model {lm.name} ({lm.dtype}), corpus {setting.corpus.name}, {job.labels} labels, "
        f"SAEs at {', '.join(job.sites)} (width {widths}{k}), {layers}",
        f"forecast: {sum(seconds.values()) + _OTHER_SECONDS:,.0f} s ({stages}), {_memory(job)}, "
        f"{_disk_bytes(job) / 1e6:,.0f} MB on disk; {speed:,.0f} tokens/s forward",
    ]
    if skipped := {**setting.corpus.skipped, **plan.skipped}:
        counts = ", ".join(f"{reason} {n}" for reason, n in skipped.items())
        lines.append(f"rows skipped or mended: {counts}")
    return lines


def forecast_collect(
    lm: LanguageModel, saes: Sequence[SAE], labels: int, *, with_neurons: bool
) -> str:
    """Return a line with the memory that a collection takes, and its passes over the corpus."""
    neuron_sites = neurons(lm) if with_neurons else []
    dictionaries = [*saes, *distinct([*means(lm, saes, None), *neuron_sites])]
    on_device = _parameters(lm) + collecting_bytes(dictionaries, lm.device, labels)
    groups = len(group_to_fit(dictionaries, lm.device, labels))
    return (
        f"forecast: {describe_memory(lm.device, on_device, _LIBRARIES, mapped_bytes(saes))}, "
        f"{groups} pass{'es' * (groups > 1)} over the corpus"
    )


def _job(setting: OpenRun) -> _Job:
    lm, given = setting.lm, setting.given
    sites = setting.sites or [sae.site for sae in given]
    d_ins = [site_width(lm, lm.site(site)) for site in sites]
    widths = [sae.width for sae in given] or [sae_width(setting.training, d_in) for d_in in d_ins]
    identities = distinct([*means(lm, given, None), *neurons(lm, setting.layers)])
    return _Job(setting, sites, d_ins, widths, [*given, *identities])


# --------------------------------------------------------------------------- time


def _seconds(job: _Job, speed: float) -> dict[str, float]:
    """Return the time of each stage, given the counted tokens/s of the forward pass."""
    setting, plan = job.setting, job.setting.plan
    config, mean = setting.config, job.text_tokens
    short = min(mean, 9.0)  # tokens of the beginning of a text
    texts = len(choose_positions(setting.corpus, "test", config.seed, config.eval_texts))
    groups = (
        group_to_fit(
            job.dictionaries, setting.lm.device, job.labels, kinds=[*ACCUMULATORS.values()]
        )
        if setting.given
        else [[]]
    )
    tokens = {
        "train": 0 if setting.given else setting.training_plan.total,
        "collect": len(groups) * plan.total,
        "lid fit": int(sum(kind.fit_tokens(job.fit_size) for kind in HEADS.values())),
        "lid evaluate": int(texts * (2 * short + 1.3 * short + mean)),
    }
    seconds = {stage: n / speed for stage, n in tokens.items()}
    if not setting.given:
        seconds["train"] += _step_seconds(job)
    seconds["lid fit"] += 1e-3 * len(plan.tokens) * (2 * len(job.sites) + 1)
    seconds["lid evaluate"] += 1e-3 * texts  # of the baselines
    return seconds | _steering_seconds(setting)


def _forward_speed(setting: OpenRun, sites: list[str]) -> float:
    """Return counted tokens/s up to the deepest site, on a batch of the plan after a warm-up."""
    lm, plan = setting.lm, setting.plan
    by_length = sorted(plan.tokens, key=lambda i: len(plan.tokens[i]))
    batch = next(plan.batches(lm, by_length[len(by_length) // 2 :][:24]))
    sites = [*sites, *(f"mlp_act@{layer}" for layer in setting.layers)]
    passes = counted_vectors(lm, [batch, batch], sites)
    next(passes)
    start = _now(lm.device)
    next(passes)
    return float(batch.counted.sum()) / max(_now(lm.device) - start, 1e-6)


def _step_seconds(job: _Job) -> float:
    """Return the time of all steps of SAE training, from one step at each site."""
    training, device = job.setting.training, job.setting.lm.device
    total = 0.0
    for d_in in job.d_ins:
        with torch.inference_mode():
            trainer = Trainer(d_in, training, 2, device)
            x = torch.randn(training.batch_size, d_in, device=device)
            trainer.fit_scaler(x)
            trainer.step(x)
            start = _now(device)
            trainer.step(x)
            total += _now(device) - start
    return total * job.setting.training_plan.total * training.passes / training.batch_size


def _steering_seconds(setting: OpenRun) -> dict[str, float]:
    """Return the time of steering and of the matrix, from a few tokens and texts."""
    config, lm, labels = setting.config, setting.lm, len(setting.corpus.labels)
    texts = [setting.corpus.texts[i] for i in sorted(setting.plan.tokens)[:8]]
    found = {}
    if config.steer_prompts:
        decoding = Decoding(max_new_tokens=4)
        prompts = [lm.prefix + row[:10] for row in lm.tokenize(texts, 10)] * 4
        start = _now(lm.device)
        generate(lm, prompts, decoding)
        token = (_now(lm.device) - start) / (4 * len(texts) * decoding.max_new_tokens)
        settings = 2 + len(demo_grid(()))
        rows = config.steer_prompts * labels * settings
        found["steering"] = 1.5 * token * Decoding().max_new_tokens * rows
    if config.matrix_texts:
        start = _now(lm.device)
        text_losses(lm, texts, TOKEN_LIMIT)
        text = (_now(lm.device) - start) / len(texts)
        found["matrix"] = text * config.matrix_texts * labels * (1 + 2 * labels)
    return found


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.monotonic()


# --------------------------------------------------------------------------- memory and disk


def _memory(job: _Job) -> str:
    """Say how much memory the run needs.

    The stages are summed: what one has freed is kept for the next, but it is rarely of the right
    size. The sum is what is measured.
    """
    setting, lm, config = job.setting, job.setting.lm, job.setting.config
    on_device = _parameters(lm)
    if setting.given:
        on_device += collecting_bytes(
            job.dictionaries, lm.device, job.labels, [*ACCUMULATORS.values()]
        )
    else:
        chunk = min(setting.training.chunk_tokens * 1.25, setting.training_plan.total)
        on_device += training_bytes(chunk, job.d_ins, job.widths)
    if config.steer_prompts or config.matrix_texts:
        prompts = config.steer_prompts * 2 * TOKEN_LIMIT
        tokens = max(config.matrix_texts * job.labels * job.text_tokens, prompts)
        logits = lm.unembedding()
        on_device += judging_bytes(tokens, logits.shape[0], logits.element_size())
    if config.matrix_texts and setting.given:
        encoders = sum(working_bytes(sae, lm.device) for sae in setting.given)
        if encoders <= dictionary_budget(lm.device):  # else the matrix is left out
            on_device += encoders
    kinds = (*HEADS.values(), *BASELINES.values())
    process = _LIBRARIES + _MORE_LIBRARIES + sum(kind.fit_bytes(job.fit_size) for kind in kinds)
    return describe_memory(lm.device, on_device, process, mapped_bytes(setting.given))


def _parameters(lm: LanguageModel) -> float:
    return sum(p.numel() * p.element_size() for p in lm.model.parameters())


def _disk_bytes(job: _Job) -> float:
    """Return the bytes of statistics, bags and weights."""
    setting, width = job.setting, sum(job.widths)
    bags = setting.plan.total * setting.config.k * len(job.sites) * 8
    weights = 0 if setting.given else width * job.d_ins[0] * 8
    return job.labels * width * 44 + bags + weights + _OTHER_DISK
