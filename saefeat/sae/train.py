"""Train SAEs for several sites from one stream of forward passes, in bounded memory and resumable.

A checkpoint says how many steps of which chunk (`saefeat.sae.chunks`) are done. The chunk is read
again then, so that a training that was killed and resumed gives the same bytes as one that was not.

Several ranks (`saefeat.world`) train together in one of the layouts (`saefeat.sae.layouts`). All
share the forward passes. In the layout over data every rank trains every SAE on its part of each
batch, and gradients are summed. In the layout over sites every rank trains some of the SAEs on
whole batches, and in that over features some units of every SAE; the ranks exchange activations.
The number of steps follows from the plan, and is the same on every rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from saefeat.config import TrainConfig
from saefeat.corpora import Plan, fill_budget, hashed_order
from saefeat.dictionaries import SAE
from saefeat.hooks import site_width
from saefeat.io import RunFailed, UserError
from saefeat.models import LanguageModel, Site
from saefeat.progress import Say, quiet, track
from saefeat.resume import check_same, claim
from saefeat.sae.checkpoints import Checkpoints, Part, Position
from saefeat.sae.chunks import Chunk, draw, gather_sites, plan_chunks, read_chunk, single_chunk
from saefeat.sae.fit_check import MIN_TOKENS, measure_fit
from saefeat.sae.layouts import Mesh, by_site, check_layout, make_mesh
from saefeat.sae.objectives import Parameters, sae_width
from saefeat.sae.store import load_sae, save_sae
from saefeat.sae.trainer import Trainer
from saefeat.tokens import OUTLIER_FACTOR
from saefeat.world import ALONE, World

HELD_OUT_TOKENS = 4096  # counted tokens of the held-out text, equally many per label
_FIGURE_STEPS = 50  # between updates of the figures on the progress bar, which wait for the GPU
_LOOK_STEPS = 10  # between looks at whether to save or to stop, on which all ranks agree
_WRITING = 20  # a checkpoint that takes a second is followed by at least 20 seconds of work


def sae_id(site: str) -> str:
    """Id and directory name of the SAE that is trained at a site.

    The name of the site alone is the id of its identity dictionary.
    """
    return "sae-" + site.replace("/", "_")


@dataclass
class _Training:
    """The SAEs in training, and what they are trained on."""

    lm: LanguageModel
    plan: Plan
    config: TrainConfig
    sites: list[Site]
    chunks: list[Chunk]
    trainers: dict[str, Trainer]  # by site: those of this rank
    mesh: Mesh
    checkpoints: Checkpoints
    pause: float  # seconds between checkpoints; 0: one after each chunk
    stop: Callable[[], bool]
    records: dict[str, dict[str, Any]]  # by site: what the files of the SAE record
    at: Position = field(default_factory=Position)
    saved: float = field(default_factory=time.monotonic)

    def tokens(self, chunks: list[Chunk]) -> int:
        """What the progress bar counts: tokens that are read, and tokens that steps use."""
        return sum(chunk.tokens + chunk.steps * self.config.batch_size for chunk in chunks)

    @property
    def names(self) -> list[str]:
        """The names of all sites."""
        return [site.name for site in self.sites]

    def load(self) -> None:
        """Go on where the last checkpoint was written."""
        files = {sae_id(name): trainer for name, trainer in self.trainers.items()}
        self.at = self.checkpoints.load(files)

    def save(self) -> None:
        """Write a checkpoint. Raises RunFailed, and keeps the last one, if an SAE has diverged."""
        begun = time.monotonic()
        self.check_finite()
        self.checkpoints.save(self.at, self._unfinished())
        self.saved = time.monotonic()
        if self.pause:
            self.pause = max(self.pause, _WRITING * (self.saved - begun))

    def written(self) -> Iterator[tuple[str, int, Parameters]]:
        """Yield the sites whose SAEs this rank helps to write, and the rank that does (`writers`).

        That rank gets the parameters of all units with them.
        """
        for name, writer in self.mesh.writers(self.names).items():
            yield name, writer, self.trainers[name].collect(writer)

    def _unfinished(self) -> Iterator[Part]:
        """The SAEs as trained so far."""
        done, total = self.at.steps, sum(chunk.steps for chunk in self.chunks)
        for name, writer, parameters in self.written():
            trainer = self.trainers[name]
            found = {
                **_figures(trainer),
                "unfinished": {"steps": done, "of": total},
                "doubt": f"its training is not finished ({done:,} of {total:,} steps)",
            }
            record = self.records[name] | found
            sae = trainer.sae(sae_id(name), name, record, parameters) if parameters else None
            yield Part(sae_id(name), sae, trainer, writer)

    def look(self) -> None:
        """Save if it is time, or if this process is to stop, on which all ranks agree.

        Raises KeyboardInterrupt in the second case.
        """
        due = self.pause > 0 and time.monotonic() - self.saved >= self.pause
        stop, due = self.mesh.world.any(self.stop(), self.mesh.world.leads and due)
        if (stop or due) and self.at.steps:
            self.save()
        if stop:
            raise KeyboardInterrupt

    def check_finite(self) -> None:
        """Raise RunFailed if the error or a weight of an SAE is not finite."""
        for name, trainer in self.trainers.items():
            if not trainer.is_finite():
                raise RunFailed(
                    f"training diverged at {name} before step {self.at.steps}: its error or a "
                    "weight is not finite; lower the learning rate"
                )


def train_saes(
    lm: LanguageModel,
    plan: Plan,
    sites: list[str],
    out: str | Path,
    config: TrainConfig,
    *,
    say: Say = quiet,
    world: World = ALONE,
    layout: str = "data",
    replicas: int = 1,
    checkpoint_seconds: float = 0,
    stop: Callable[[], bool] = lambda: False,
) -> list[SAE]:
    """Train one SAE per site and write each to `out/<id>/`. The same call resumes after a kill.

    All ranks of a world make the same call, with an output directory that all of them see.

    Args:
        plan: which tokens are read. It should be mixed, so that every chunk holds every label.
        sites: names of different sites.
        say: takes lines for the user.
        world: the ranks that train together.
        layout: what they share out, "data", "sites" or "features" (see `saefeat.sae.layouts`).
        replicas: number of copies of the SAEs, each of which takes a part of every batch; the ranks
            of a copy share out sites or features.
        checkpoint_seconds: least time between two checkpoints; 0: one after each chunk.
        stop: asked every few steps; if it says so on a rank, all save and raise KeyboardInterrupt.

    Returns:
        The SAEs, in the order of `sites`. The record of each has `held_out` (its fit to text of the
        corpus that the plan leaves out; empty if there is too little), `training_average` (FVU
        and L0 in training, averaged over the last steps) and `dead` (share of dead units).

    Raises:
        UserError: a site is unknown or named twice, there is no SAE of this width, the text is too
            short for a step, `out` holds SAEs or a checkpoint of another training, or one that
            cannot be read, or the layout does not fit the number of ranks.
        RunFailed: the activations are constant or not finite, training diverges, or another rank
            has ended.
    """
    out = Path(out)
    resolved = [lm.site(site) for site in sites]
    if len({site.path for site in resolved}) < len(resolved):
        raise UserError(f"a site is named twice in {','.join(sites)}", "sites")
    widths = {site.name: site_width(lm, site) for site in resolved}
    check_layout(layout, world, config, [sae_width(config, d) for d in widths.values()], replicas)
    chunks = plan_chunks(plan, config)
    records = {site.name: _record(lm, plan, site, config) for site in resolved}
    if not world.leads:
        say = quiet
    with ExitStack() as stack:
        if world.leads:
            stack.enter_context(claim(out))
        world.barrier()
        if not out.is_dir():
            raise UserError(f"rank {world.rank} does not see {out}; all ranks need it", "out")
        kept = Checkpoints(out, records, lm.threads, world, say)
        if _is_finished(out, records):
            say(f"{out} is complete already")
        else:
            steps = sum(chunk.steps for chunk in chunks)
            mesh = make_mesh(world, layout, replicas)
            trainers = {
                name: Trainer(widths[name], config, steps, lm.device, mesh.copies, mesh.split)
                for name in mesh.trained(list(widths))
            }
            training = _Training(
                *(lm, plan, config, resolved, chunks, trainers, mesh, kept),
                *(checkpoint_seconds, stop, records),
            )
            _train(training, say)
            _save(training, out)
        world.barrier()
        if world.leads:
            kept.clear()
        world.barrier()
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


def _train(training: _Training, say: Say) -> None:
    training.load()
    chunks, begin = training.chunks, training.at.chunk
    done = training.tokens(chunks[:begin])
    with track(say, "train", training.tokens(chunks), done=done) as bar:
        for number in range(begin, len(chunks)):
            _train_chunk(training, number, bar)
            training.check_finite()
            training.at = Position(number + 1, 0, training.at.steps)
            if number + 1 < len(chunks):
                training.look() if training.pause else training.save()


def _train_chunk(training: _Training, number: int, bar: tqdm[Any]) -> None:
    """Read a chunk and train on it, from the step on where the training is."""
    chunk, config, trainers = training.chunks[number], training.config, training.trainers

    def advance(tokens: int) -> None:
        bar.update(tokens)
        training.look()

    mesh = training.mesh
    part = read_chunk(training.lm, training.plan, training.sites, chunk, mesh.world, advance)
    held = gather_sites(part, training.names, mesh)
    begin, before = training.at.step, training.at.steps - training.at.step
    bar.update(begin * config.batch_size)
    with torch.inference_mode():
        usable = {}
        for name, trainer in trainers.items():
            if not trainer.scaler:
                trainer.fit_scaler(held.buffers[name])
            usable[name] = held.places_of(trainer.usable(held.buffers[name]))
        for step in range(begin, chunk.steps):
            for name, trainer in trainers.items():
                trainer.step(*held.take(name, draw(usable[name], config, number, step)))
            training.at = Position(number, step + 1, before + step + 1)
            if step % _FIGURE_STEPS == 0 or step == chunk.steps - 1:
                bar.set_postfix_str(_describe(trainers), refresh=False)
                training.check_finite()
            bar.update(config.batch_size)
            if (step + 1) % _LOOK_STEPS == 0:
                training.look()


def _describe(trainers: dict[str, Trainer]) -> str:
    return " | ".join(
        f"{name} FVU {t.fvu:.3f} L0 {t.l0:.1f} dead {t.dead_share:.1%}"
        for name, t in trainers.items()
    )


def _save(training: _Training, out: Path) -> None:
    """Measure the SAEs on held-out text and write them, each by the rank that owns it."""
    lm, sites, world = training.lm, training.sites, training.mesh.world
    held = held_out_plan(lm, training.plan)
    buffers = {}
    if held:
        part = read_chunk(lm, held, sites, single_chunk(held), world)
        buffers = gather_sites(part, training.names, by_site(world)).buffers
    for name, _, parameters in training.written():
        if not parameters:
            continue
        trainer = training.trainers[name]
        sae = trainer.sae(sae_id(name), name, training.records[name], parameters)
        fit = {}
        if held:
            fit = {**measure_fit(sae, buffers[name]), "split": held.policy["split"]}
        record = {**sae.record, "held_out": fit, **_figures(trainer)}
        save_sae(replace(sae, record=record), out / sae.id)


def _figures(trainer: Trainer) -> dict[str, Any]:
    """The figures of a training that its SAE records."""
    average = {"fvu": float(trainer.fvu), "l0": float(trainer.l0)}
    return {"training_average": average, "dead": trainer.dead_share}


def held_out_plan(lm: LanguageModel, plan: Plan) -> Plan | None:
    """Plan about HELD_OUT_TOKENS tokens that `plan` leaves out; None if there are too few.

    They come from the test split if the plan is of the train split. Examples that share an id with
    one of the plan (translations) are left out.
    """
    corpus, policy = plan.corpus, plan.policy
    split, seed = ("test" if policy["split"] == "train" else "all"), policy["seed"]
    positions = corpus.in_split(split, seed)
    if split == "all":  # else no id is in both splits
        known = corpus.hashes(seed, "budget", at=plan.chosen)
        positions = positions[~np.isin(corpus.hashes(seed, "budget", at=positions), known)]
    tokens, counts, skipped, prompts = fill_budget(
        corpus,
        lm,
        hashed_order(corpus, positions, seed),
        max(1, HELD_OUT_TOKENS // len(corpus.labels)),
        policy["token_limit"],
        count_bos=policy["count_bos"],
    )
    policy = {**policy, "split": split}
    held = Plan(corpus, tokens, counts, policy, skipped, prompts=prompts)
    return held if held.total >= MIN_TOKENS else None
