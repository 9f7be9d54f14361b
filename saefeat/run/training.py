"""SAE training as a job: from inputs and a configuration, or from a file that holds them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from saefeat.config import FollowConfig, RanksConfig, TrainConfig, TrainInputs
from saefeat.corpora import Plan, make_plan
from saefeat.corpora.mixing import check_mixing
from saefeat.dictionaries import SAE
from saefeat.hooks import site_width
from saefeat.io import UserError, user_path
from saefeat.memory import LIBRARIES, describe_memory, memory_limit, training_bytes
from saefeat.models import LanguageModel
from saefeat.progress import Say, quiet
from saefeat.run.forecast import forward_speed, step_seconds
from saefeat.run.opened import check_activations, load_inputs, say_plan
from saefeat.sae.chunks import plan_chunks
from saefeat.sae.layouts import check_layout, owned, planned_mesh
from saefeat.sae.objectives import check_config, sae_width
from saefeat.sae.trackers import check_trackers
from saefeat.sae.train import train_saes
from saefeat.schema import refusal
from saefeat.words import in_words
from saefeat.world import ALONE, World, own_device

OUT = "out"
# The kinds whose fields are the keys of a file.
_KINDS = (TrainInputs, TrainConfig, RanksConfig, FollowConfig)
_SAE_BYTES, _STATE_BYTES = 8, 24  # of an SAE and its trainer's state, per weight of the encoder
_GATHERED_BYTES = 20  # of an SAE that a rank gathers to write it, and of its parts


@dataclass(frozen=True)
class Job:
    """A training: what its configuration file says."""

    inputs: TrainInputs
    training: TrainConfig
    ranks: RanksConfig
    follow: FollowConfig
    out: Path


@dataclass(frozen=True)
class Prepared:
    """A training with everything loaded that it needs."""

    lm: LanguageModel
    plan: Plan
    sites: list[str]


# --------------------------------------------------------------------------- configuration files


def read_job(path: Path) -> Job:
    """Read a configuration file (TOML, or JSON by its name). Its keys are those of `Job`'s parts.

    `dtype` is that of the model, and `seed` is shared. Raises UserError for a file that cannot be
    read, an unknown or missing key, and a value out of range.
    """
    values = _read_table(path)
    names = {kind: [field.name for field in fields(kind)] for kind in _KINDS}
    names[TrainConfig].remove("dtype")
    known = [OUT, *dict.fromkeys(chain(*names.values()))]
    for key in values:
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; choose from {in_words(known)}"
            raise UserError(f"{path} has an unknown key {key!r}{hint}")
    if missing := [name for name in ("model", "corpus", "sites", OUT) if name not in values]:
        raise UserError(f"{path} lacks {in_words(missing, 'and')}")
    out = values.pop(OUT)
    if not isinstance(out, str) or not out:
        raise UserError(f"{path}: out should be a directory, not {out!r}", OUT)
    inputs, training, ranks, follow = (
        _part(kind, {name: values[name] for name in values if name in names[kind]}, path)
        for kind in _KINDS
    )
    return Job(inputs, training, ranks, follow, user_path(out))


def _read_table(path: Path) -> dict[str, Any]:
    read: Callable[[str], Any] = json.loads if path.suffix == ".json" else tomllib.loads
    try:
        found = read(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise UserError(f"{path} is no {kind} ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no table of keys and values")
    return found


def _part(kind: Any, values: Mapping[str, Any], path: Path) -> Any:
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        found = refusal(error)
        raise UserError(f"{path}: {found}", *found.options) from error


# --------------------------------------------------------------------------- the work


def prepare_training(
    inputs: TrainInputs,
    config: TrainConfig,
    follow: FollowConfig,
    say: Say = quiet,
    *,
    processes: int = 1,
    threads: int | None = None,
) -> Prepared:
    """Check and load everything that a training needs, and say what it reads.

    `processes`, `threads`: see `saefeat.run.set_threads`.
    """
    check_config(config)
    check_trackers(follow.log_to or ())
    check_mixing(inputs.temperature, inputs.max_tokens)
    lm, corpus = load_inputs(inputs, say, processes=processes, threads=threads)
    sites = list(inputs.sites)
    check_activations(lm, corpus, sites)
    budget = {"max_tokens": inputs.max_tokens, "temperature": inputs.temperature}
    plan = make_plan(corpus, lm, seed=config.seed, mixed=True, **budget)
    say_plan(lm, plan, say)
    return Prepared(lm, plan, sites)


def place_rank(job: Job, world: World) -> Job:
    """Give each process of a machine its own GPU.

    Raises UserError where there are more processes than GPUs, or the layout does not fit.
    """
    widths = [job.training.d_sae or 0] * len(job.inputs.sites)  # 0: it needs the model
    check_layout(job.ranks.layout, world, job.training, widths, job.ranks.replicas)
    device = own_device(job.inputs.device, world)
    return replace(job, inputs=replace(job.inputs, device=device))


def train_job(
    job: Job, world: World = ALONE, say: Say = quiet, stop: Callable[[], bool] = lambda: False
) -> list[SAE]:
    """Train the SAEs of a job, on every rank of a connected world; see `train_saes`."""
    prepared = _prepare(job, world, say)
    lm, ranks = prepared.lm, job.ranks
    if world.leads and world.size > 1:
        copies = f" with {ranks.replicas} replicas" if ranks.replicas > 1 else ""
        on = f"{lm.threads} threads each" if lm.threads else "a GPU each"
        say(f"{world.size} processes with {on}, in the layout over {ranks.layout}{copies}")
    return train_saes(
        *(lm, prepared.plan, prepared.sites, job.out, job.training),
        say=say,
        world=world,
        layout=ranks.layout,
        replicas=ranks.replicas,
        follow=job.follow,
        checkpoint_seconds=ranks.checkpoint_seconds,
        stop=stop,
    )


def _prepare(job: Job, world: World, say: Say) -> Prepared:
    return prepare_training(
        *(job.inputs, job.training, job.follow, say if world.leads else quiet),
        processes=world.local_size,
        threads=job.ranks.threads,
    )


def describe_training(sae: SAE) -> str:
    """A line with the figures of an SAE that was trained."""
    record = sae.record
    average = record.get("training_average", record)  # older files have these figures only
    found = "FVU not measured, because no text is held out"
    if held := record.get("held_out"):
        found = f"{_quality(held)} on {held['tokens']:,} held-out tokens"
    average = f"(average over training: {_quality(average)})"
    return f"d_sae {sae.width}, {found} {average}, dead {record['dead']:.1%}"


def _quality(figures: Mapping[str, Any]) -> str:
    return f"FVU {figures['fvu']:.3f}, L0 {figures['l0']:.1f}"


# --------------------------------------------------------------------------- forecast


def describe_steps(prepared: Prepared, config: TrainConfig) -> str:
    """A line with the widths of the SAEs, the chunks and the steps."""
    lm = prepared.lm
    widths = {name: sae_width(config, site_width(lm, lm.site(name))) for name in prepared.sites}
    chunks = plan_chunks(prepared.plan, config)
    steps = sum(chunk.steps for chunk in chunks)
    return f"d_sae {widths}, {len(chunks)} chunks, {steps} steps"


def forecast_job(job: Job, size: int, say: Say, local_size: int | None = None) -> None:
    """Say what the training takes of memory, disk and time on each of `size` ranks.

    The speed is that of this machine, of which `local_size` ranks (default all) share cores and
    memory. Exchange between the ranks is not counted.
    """
    local_size = min(size, local_size or size)
    world, config, ranks = World(0, size, 0, local_size), job.training, job.ranks
    prepared = _prepare(job, world, say)
    lm, plan = prepared.lm, prepared.plan
    say(describe_steps(prepared, config))
    d_ins = {name: site_width(lm, lm.site(name)) for name in prepared.sites}
    widths = {name: sae_width(config, d_in) for name, d_in in d_ins.items()}
    check_layout(ranks.layout, world, config, list(widths.values()), ranks.replicas)
    chunks = plan_chunks(plan, config)
    chunk, steps = max(c.tokens for c in chunks), sum(c.steps for c in chunks)
    reading = plan.total / forward_speed(lm, plan, prepared.sites) / size
    model = lm.model.get_memory_footprint(return_buffers=False)
    times: dict[tuple[int, ...], float] = {}
    here = 0.0  # bytes on the devices of this machine
    for rank in range(size):
        mesh = planned_mesh(World(rank, size), ranks.layout, ranks.replicas)
        copies, split = mesh.copies.size, mesh.split.size
        names = mesh.trained(prepared.sites)
        trained = [d_ins[name] for name in names]
        if (key := tuple(trained)) not in times:
            tokens = max(16, config.batch_size // copies)
            times[key] = steps * step_seconds(config, trained, tokens, lm.device) / split
        need = model + 2 * chunk / size * sum(d_ins.values())  # what this rank reads
        rows = chunk / copies if mesh.shares.size > 1 else 0  # what it gets
        need += training_bytes(rows, trained, [widths[name] // split for name in names])
        weights = {name: d_ins[name] * widths[name] for name in prepared.sites}
        mine = [weights[name] for name in owned(prepared.sites, mesh.world)]
        if split > 1:
            need += _GATHERED_BYTES * max(mine, default=0)
        here += need if rank < local_size else 0
        states = sum(weights[name] for name in mesh.writers(prepared.sites)) / split
        on_disk = 3 * _SAE_BYTES * sum(mine) + 2 * _STATE_BYTES * states
        sent = sum(mesh.step_bytes(d_ins[name], widths[name], config) for name in names)
        say(
            f"rank {rank}: {describe_memory(lm.device, need, LIBRARIES, 0)}, "
            f"{on_disk / 1e9:,.1f} GB on disk, {sent / 1e6:,.1f} MB sent per step, "
            f"{reading + times[key]:,.0f} s (read {reading:,.0f}, train {times[key]:,.0f})"
        )
    if local_size > 1:
        together = describe_memory(lm.device, here, local_size * LIBRARIES, 0)
        room = f", which has {memory_limit() / 1e9:,.1f} GB" if lm.device == "cpu" else ""
        say(f"{local_size} processes on this machine: {together}{room}")
