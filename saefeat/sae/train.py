"""Train SAEs for several sites from one stream of forward passes, in bounded memory and resumable.

Checkpoints are written at the ends of chunks (`saefeat.sae.chunks`), so that a training that was
killed and resumed gives the same bytes as one that was not.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from saefeat.config import TrainConfig
from saefeat.corpora import Plan, fill_budget, in_hashed_order
from saefeat.dictionaries import SAE
from saefeat.hooks import site_width
from saefeat.io import RunFailed, UserError, fingerprint
from saefeat.models import LanguageModel, Site
from saefeat.progress import Say, quiet, track
from saefeat.resume import Checkpoint, check_same, claim
from saefeat.sae.chunks import Chunk, draw, fill, plan_chunks, single_chunk
from saefeat.sae.fit_check import MIN_TOKENS, measure_fit
from saefeat.sae.objectives import sae_width
from saefeat.sae.store import load_sae, save_sae
from saefeat.sae.trainer import Trainer, below
from saefeat.tokens import OUTLIER_FACTOR

HELD_OUT_TOKENS = 4096  # counted tokens of the held-out text, equally many per label
_FIGURE_STEPS = 50  # between updates of the figures on the progress bar, which wait for the GPU


def sae_id(site: str) -> str:
    """Id and directory name of the SAE that is trained at a site.

    The name of the site alone is the id of its identity dictionary.
    """
    return "sae-" + site.replace("/", "_")


@dataclass(frozen=True)
class _Training:
    """The SAEs in training, and what they are trained on."""

    lm: LanguageModel
    plan: Plan
    config: TrainConfig
    sites: list[Site]
    chunks: list[Chunk]
    trainers: dict[str, Trainer]  # by site

    def tokens(self, chunks: list[Chunk]) -> int:
        """What the progress bar counts: tokens that are read, and tokens that steps use."""
        return sum(chunk.tokens + chunk.steps * self.config.batch_size for chunk in chunks)


def train_saes(
    lm: LanguageModel,
    plan: Plan,
    sites: list[str],
    out: str | Path,
    config: TrainConfig,
    *,
    say: Say = quiet,
) -> list[SAE]:
    """Train one SAE per site and write each to `out/<id>/`. The same call resumes after a kill.

    Args:
        plan: which tokens are read. It should be mixed, so that every chunk holds every label.
        sites: names of different sites.
        say: takes lines for the user.

    Returns:
        The SAEs, in the order of `sites`. The record of each has `held_out` (its fit to text of the
        corpus that the plan leaves out; empty if there is too little), `training_average` (FVU
        and L0 in training, averaged over the last steps) and `dead` (share of dead units).

    Raises:
        UserError: a site is unknown or named twice, there is no SAE of this width, or `out` holds
            SAEs of another training.
        RunFailed: the activations are constant or not finite, or training diverges.
    """
    out = Path(out)
    resolved = [lm.site(site) for site in sites]
    if len({site.path for site in resolved}) < len(resolved):
        raise UserError(f"a site is named twice in {','.join(sites)}", "sites")
    widths = {site.name: site_width(lm, site) for site in resolved}
    for width in widths.values():
        sae_width(config, width)
    records = {site.name: _record(lm, plan, site, config) for site in resolved}
    with claim(out):
        if _is_finished(out, records):
            say(f"{out} is complete already")
        else:
            chunks = plan_chunks(plan, config)
            steps = sum(chunk.steps for chunk in chunks)
            trainers = {
                name: Trainer(width, config, steps, lm.device) for name, width in widths.items()
            }
            training = _Training(lm, plan, config, resolved, chunks, trainers)
            path, request = out / "training.safetensors", fingerprint(records)
            checkpoint = Checkpoint(path, request, "the training", lm.threads, say=say)
            _train(training, checkpoint, say)
            _save(training, out, records)
            checkpoint.clear()
    return [load_sae(out / sae_id(site)) for site in sites]


def _record(lm: LanguageModel, plan: Plan, site: Site, config: TrainConfig) -> dict[str, Any]:
    """What the SAE's files record about its training."""
    corpus, training = plan.corpus, asdict(config)
    if config.architecture == "topk":  # not recorded before there were others
        del training["architecture"]
    return {
        "model": lm.identity,
        "module": site.path,
        "corpus": {
            "name": corpus.name,
            "fingerprint": corpus.fingerprint,
            "labels": list(corpus.labels),
        },
        "policy": {**plan.policy, "outlier_factor": OUTLIER_FACTOR},
        "training": {**training, "tokens": plan.total},
    }


def _is_finished(out: Path, records: dict[str, dict[str, Any]]) -> bool:
    """Whether all SAEs are written. Raises UserError if one is of another training."""
    present = [name for name in records if (out / sae_id(name)).exists()]
    for name in present:
        made = load_sae(out / sae_id(name)).record
        found = {key: made.get(key) for key in records[name]}
        check_same(out / sae_id(name), found, records[name], "an SAE")
    return len(present) == len(records)


def _train(training: _Training, checkpoint: Checkpoint, say: Say) -> None:
    chunks, done, found = training.chunks, 0, checkpoint.load()
    if found is not None:
        values, tensors = found
        done = values["chunks"]
        for name, trainer in training.trainers.items():
            trainer.restore(below(f"{name}|", tensors), values["steps"])
    with track(say, "train", training.tokens(chunks), done=training.tokens(chunks[:done])) as bar:
        for number in range(done, len(chunks)):
            _train_chunk(training, number, bar)
            if number + 1 < len(chunks):
                _save_checkpoint(training, checkpoint, number + 1)


def _save_checkpoint(training: _Training, checkpoint: Checkpoint, chunks: int) -> None:
    tensors = {
        f"{name}|{key}": value.cpu()
        for name, trainer in training.trainers.items()
        for key, value in trainer.state().items()
    }
    steps = sum(chunk.steps for chunk in training.chunks[:chunks])
    checkpoint.save({"chunks": chunks, "steps": steps}, tensors)


def _train_chunk(training: _Training, number: int, bar: tqdm[Any]) -> None:
    """Read a chunk and train on it. Raises RunFailed if the error of an SAE is not finite then."""
    chunk, config, trainers = training.chunks[number], training.config, training.trainers
    buffers = fill(training.lm, training.plan, training.sites, chunk, bar.update)
    with torch.inference_mode():
        usable = {}
        for name, trainer in trainers.items():
            if not trainer.scaler:
                trainer.fit_scaler(buffers[name])
            usable[name] = trainer.usable(buffers[name])
        for step in range(chunk.steps):
            for name, trainer in trainers.items():
                trainer.step(buffers[name][draw(usable[name], config, number, step)])
            if step % _FIGURE_STEPS == 0 or step == chunk.steps - 1:
                bar.set_postfix_str(_describe(trainers), refresh=False)
            bar.update(config.batch_size)
    for name, trainer in trainers.items():
        if not torch.isfinite(trainer.fvu):
            raise RunFailed(
                f"training diverged at {name}: its error is not finite; lower the learning rate"
            )


def _describe(trainers: dict[str, Trainer]) -> str:
    return " | ".join(
        f"{name} FVU {t.fvu:.3f} L0 {t.l0:.1f} dead {t.dead_share:.1%}"
        for name, t in trainers.items()
    )


def _save(training: _Training, out: Path, records: dict[str, dict[str, Any]]) -> None:
    """Measure the SAEs on held-out text and write them."""
    lm, sites = training.lm, training.sites
    held = held_out_plan(lm, training.plan)
    buffers = fill(lm, held, sites, single_chunk(held)) if held else {}
    for site in sites:
        trainer = training.trainers[site.name]
        sae = trainer.sae(sae_id(site.name), site.name, records[site.name])
        fit = {}
        if held:
            fit = {**measure_fit(sae, buffers[site.name]), "split": held.policy["split"]}
        figures = {
            "held_out": fit,
            "training_average": {"fvu": float(trainer.fvu), "l0": float(trainer.l0)},
            "dead": trainer.dead_share,
        }
        save_sae(replace(sae, record={**sae.record, **figures}), out / sae.id)


def held_out_plan(lm: LanguageModel, plan: Plan) -> Plan | None:
    """Plan about HELD_OUT_TOKENS tokens that `plan` leaves out; None if there are too few.

    They come from the test split if the plan is of the train split. Examples that share an id with
    one of the plan (translations) are left out.
    """
    corpus, policy = plan.corpus, plan.policy
    split = "test" if policy["split"] == "train" else "all"
    known = {corpus.ids[i] for i in plan.tokens}
    positions = [i for i in corpus.positions(split, policy["seed"]) if corpus.ids[i] not in known]
    tokens, counts, skipped, prompts = fill_budget(
        corpus,
        lm,
        in_hashed_order(corpus, positions, policy["seed"]),
        max(1, HELD_OUT_TOKENS // len(corpus.labels)),
        policy["token_limit"],
        count_bos=policy["count_bos"],
    )
    policy = {**policy, "split": split}
    held = Plan(corpus, tokens, counts, policy, skipped, prompts=prompts)
    return held if held.total >= MIN_TOKENS else None
