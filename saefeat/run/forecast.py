"""What a run will take, from the speed of this machine on a few batches."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from saefeat import lid
from saefeat.collection import passes, working_bytes
from saefeat.config import Decoding
from saefeat.corpora import BATCH_TOKENS, GPU_BATCH_TOKENS, TOKEN_LIMIT, Plan
from saefeat.dictionaries import SAE, Dictionary
from saefeat.generation import LOGITS, generate, text_losses
from saefeat.hooks import capture, site_width
from saefeat.models import LanguageModel
from saefeat.run.grids import demo_grid
from saefeat.run.identify import evaluated
from saefeat.run.matrix import room
from saefeat.run.setting import Setting
from saefeat.run.stages import distinct, means, neurons
from saefeat.sae.train import Trainer

_LIBRARIES = 0.7e9  # bytes; the heads, the judge and the report take more
_MORE_LIBRARIES = 0.5e9


def forecast(setting: Setting) -> list[str]:
    """What a run will do and what it will take, from the speed of this machine on a few batches."""
    config, lm = setting.config, setting.lm
    plan, training = setting.plan, setting.training_plan
    sites = setting.sites or [sae.site for sae in setting.given]
    texts = len(evaluated(setting.corpus, "test", config.seed, config.eval_texts))
    mean = plan.total / max(len(plan.tokens), 1) + len(lm.prefix)
    short = min(mean, 9.0)
    dictionaries = distinct(
        [*setting.given, *means(lm, setting.given, None), *neurons(lm, setting.layers)]
    )
    rounds = (
        len(passes(dictionaries, lm.device, len(setting.corpus.labels))) if setting.given else 1
    )
    tokens_of = {
        "train": training.total if not setting.given else 0,
        "collect": rounds * plan.total,
        "lid fit": int(
            len(plan.tokens) * 2.3 * short + 1.3 * plan.total
        ),  # beginnings, and both in capitals
        "lid evaluate": int(texts * (2 * short + 1.3 * short + mean)),
    }
    neurons_at = [f"mlp_act@{layer}" for layer in setting.layers]
    speed = _forward_speed(setting, plan, [*sites, *neurons_at])
    seconds = {stage: tokens / speed for stage, tokens in tokens_of.items()}
    if not setting.given:
        seconds["train"] += _training_seconds(setting, training.total)
    seconds["lid fit"] += 1e-3 * len(plan.tokens) * (2 * len(sites) + 1)
    seconds["lid evaluate"] += 1e-3 * texts  # of the baselines
    seconds |= _steering_seconds(setting, plan)
    widths = [sae.width for sae in setting.given] or [
        setting.training.width(_d(lm, s)) for s in sites
    ]
    width = sum(widths)
    there: dict[str, float] = {"model": _parameters(lm)}  # on the model's device
    if setting.given:
        there["collect"] = collect_memory(lm, dictionaries, len(setting.corpus.labels))
    else:
        chunk = (
            min(setting.training.chunk_tokens * 1.25, training.total)
            * sum(_d(lm, s) for s in sites)
            * 2
        )
        there["train"] = chunk + width * _d(lm, sites[0]) * 4 * 10
    if config.steer_prompts or config.matrix_texts:
        there["judge"] = _judging_memory(setting, mean)
    if config.matrix_texts and setting.given:
        encoders, most = room(setting)
        there["matrix"] = encoders if encoders <= most else 0  # else it is left out
    # What a stage has freed is kept for the next, but it is rarely of the right size: the sum is
    # what is measured.
    memory = _memory(
        lm,
        sum(there.values()),
        _LIBRARIES + _MORE_LIBRARIES + _lid_memory(setting, plan, width),
        mapped_bytes(setting.given),
    )
    k = len(setting.corpus.labels)
    weights = 0 if setting.given else width * _d(lm, sites[0]) * 8
    disk = k * width * 44 + plan.total * config.k * len(sites) * 8 + weights + 6e6
    lines = [
        f"model {lm.name} ({lm.dtype}), corpus {setting.corpus.name}, {k} labels, "
        f"SAEs at {', '.join(sites)} (width {' and '.join(str(n) for n in sorted(set(widths)))}"
        + ("), " if setting.given else f", k {config.k}), ")
        + (f"neurons of {len(setting.layers)} layers" if setting.layers else "no neurons"),
        f"forecast: {sum(seconds.values()) + 20:,.0f} s ("
        + ", ".join(f"{stage} {s:,.0f}" for stage, s in seconds.items())
        + f"), {memory}, {disk / 1e6:,.0f} MB on disk; "
        f"{speed:,.0f} tokens/s forward",
    ]
    if setting.corpus.skipped or plan.skipped:
        counts = ", ".join(
            f"{reason} {n}" for reason, n in {**setting.corpus.skipped, **plan.skipped}.items()
        )
        lines.append(f"rows skipped or mended: {counts}")
    return lines


def forecast_collect(
    lm: LanguageModel, saes: Sequence[SAE], labels: int, *, with_neurons: bool
) -> str:
    """What a collection takes of memory, and in how many passes over the corpus."""
    dictionaries = distinct([*saes, *means(lm, saes, None), *(neurons(lm) if with_neurons else [])])
    there = _parameters(lm) + collect_memory(lm, dictionaries, labels)
    groups = len(passes(dictionaries, lm.device, labels))
    return (
        f"forecast: {_memory(lm, there, _LIBRARIES, mapped_bytes(saes))}, "
        f"{groups} pass{'es' * (groups > 1)} over the corpus"
    )


def _parameters(lm: LanguageModel) -> float:
    return sum(p.numel() * p.element_size() for p in lm.model.parameters())


def collect_memory(lm: LanguageModel, dictionaries: Sequence[Dictionary], labels: int) -> float:
    """Bytes that the heaviest pass of a collection takes beside the model and the mapped weights."""
    groups = passes(dictionaries, lm.device, labels)
    own = {d.id: working_bytes(d, lm.device, labels) for d in dictionaries}
    for d in dictionaries:
        if isinstance(d, SAE) and not d.encoder_bytes and lm.device == "cpu":
            own[d.id] -= d.W_enc.nbytes
    heaviest = max(sum(own[d.id] for d in group) for group in groups)
    tokens = GPU_BATCH_TOKENS if lm.device.startswith("cuda") else BATCH_TOKENS
    held = [min(d.cells(lm.device), tokens * d.width) for d in dictionaries if isinstance(d, SAE)]
    return heaviest + 2 * 4 * max(held, default=0)  # pre-activations, and what is made of them


def mapped_bytes(saes: Sequence[SAE]) -> float:
    """Bytes of the weights of SAEs, which stay in their files, mapped into memory."""
    return sum(tensor.nbytes for sae in saes for tensor in sae.tensors.values())


def _memory(lm: LanguageModel, there: float, here: float, mapped: float) -> str:
    """In words: what the model's device and the process must have, and what mapped weights take where there is room."""
    more = (
        f" (and up to {mapped / 1e9:.1f} for weights of SAEs, which stay in their files)"
        if mapped > 5e7
        else ""
    )
    if lm.device == "cpu":
        return f"{(there + here) / 1e9:.1f} GB of memory{more}"
    return f"{there / 1e9:.1f} GB of GPU memory and {here / 1e9:.1f} GB of memory{more}"


def _lid_memory(setting: Setting, plan: Plan, width: int) -> float:
    """Bytes of the heads: the fit of the linear one (dense rows, or the history of its optimiser), and naive Bayes.

    Of the baselines: counts of runs of characters, some 20 a token.
    """
    labels = len(setting.corpus.labels)
    kept = min(width, lid.WEIGHTS // labels)
    dense = 4 * len(plan.tokens) * kept * 4
    fit = dense * 3 if dense <= lid.DENSE_BYTES else 24 * 8 * kept * labels
    return fit + 2 * 8 * width * labels + 20 * 12 * plan.total


def _judging_memory(setting: Setting, tokens: float) -> float:
    """Bytes of the logits over texts, of so many tokens: of a group in the model's dtype, of one text in float32."""
    weight, config = setting.lm.unembedding(), setting.config
    rows = max(
        config.matrix_texts * len(setting.corpus.labels) * tokens,
        config.steer_prompts * 2 * TOKEN_LIMIT,
    )
    return (
        min(LOGITS, rows * weight.shape[0]) * weight.element_size()
        + 1.5 * 4 * TOKEN_LIMIT * weight.shape[0]
    )


def _d(lm: LanguageModel, site: str) -> int:
    return site_width(lm, lm.site(site))


def _forward_speed(setting: Setting, plan: Plan, sites: list[str]) -> float:
    """Counted tokens/s through the model up to its deepest site, on a batch of the plan after a warm-up."""
    some = sorted(plan.tokens, key=lambda i: len(plan.tokens[i]))
    middle = some[len(some) // 2 :][:24]
    batch = next(plan.batches(setting.lm, middle))
    paths = tuple(dict.fromkeys(setting.lm.site(site).path for site in sites))
    inputs = {"input_ids": batch.input_ids.to(setting.lm.device)}
    inputs["attention_mask"] = batch.attention_mask.to(setting.lm.device)
    with capture(setting.lm.model, paths) as captured, torch.inference_mode():
        captured.run(setting.lm.model, **inputs, use_cache=False)
        start = _now(setting.lm.device)
        captured.run(setting.lm.model, **inputs, use_cache=False)
    return float(batch.counted.sum()) / max(_now(setting.lm.device) - start, 1e-6)


def _steering_seconds(setting: Setting, plan: Plan) -> dict[str, float]:
    """Time of steering and of the matrix, from a few tokens generated and a few texts measured."""
    config, lm, labels = setting.config, setting.lm, len(setting.corpus.labels)
    texts = [setting.corpus.texts[i] for i in sorted(plan.tokens)[:8]]
    found = {}
    if config.steer_prompts:
        decoding = Decoding(max_new_tokens=4)
        start = _now(lm.device)
        generate(lm, [lm.prefix + row[:10] for row in lm.tokenize(texts, 10)] * 4, decoding)
        row = (
            (_now(lm.device) - start)
            / (4 * len(texts) * decoding.max_new_tokens)
            * Decoding().max_new_tokens
        )
        found["steering"] = 1.5 * row * config.steer_prompts * labels * (2 + len(demo_grid(())))
    if config.matrix_texts:
        start = _now(lm.device)
        text_losses(lm, texts, TOKEN_LIMIT)
        found["matrix"] = (
            (_now(lm.device) - start) / len(texts) * config.matrix_texts * labels * (1 + 2 * labels)
        )
    return found


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.monotonic()


def _training_seconds(setting: Setting, tokens: int) -> float:
    """Time of SAE steps, from one step at each site's shape."""
    total = 0.0
    for site in setting.sites:
        width = _d(setting.lm, site)
        with torch.inference_mode():
            trainer = Trainer(width, setting.training, 2, setting.lm.device)
            x = torch.randn(setting.training.batch_size, width, device=setting.lm.device)
            trainer.set_frame(x)
            trainer.train_on(x)
            start = _now(setting.lm.device)
            trainer.train_on(x)
            total += _now(setting.lm.device) - start
    return total * tokens * setting.training.passes / setting.training.batch_size
