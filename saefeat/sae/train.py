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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from saefeat.config import FollowConfig, TrainConfig
from saefeat.corpora import Batch, Plan
from saefeat.dictionaries import SAE
from saefeat.hooks import site_width
from saefeat.io import RunFailed, UserError, wait_for_disk
from saefeat.models import LanguageModel, Site
from saefeat.progress import Say, quiet, track
from saefeat.resume import check_alike, check_same, claim_together, pause_after
from saefeat.sae.checkpoints import Checkpoints, Part, Position
from saefeat.sae.chunks import Chunk, Draws, batches_by_chunk, gather_sites, plan_chunks, read_chunk
from saefeat.sae.formats.sae_lens import read_record
from saefeat.sae.held_out import HeldOut, held_out_plan, read_held_out, steps_between
from saefeat.sae.layouts import Mesh, check_layout, make_mesh, owned
from saefeat.sae.log import CURVES, TrainingLog, draw_lines
from saefeat.sae.losses import choose_texts
from saefeat.sae.objectives import Parameters, sae_width
from saefeat.sae.store import load_sae, save_sae
from saefeat.sae.trainer import Trainer
from saefeat.tokens import OUTLIER_FACTOR
from saefeat.world import ALONE, World

_FIGURE_STEPS = 50  # between figures of the steps, which wait for the GPU
_LOOK_STEPS = 10  # between looks at whether to save or to stop, on which all ranks agree


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
    every: int = 0  # steps between evaluations; 0: never
    log: TrainingLog | None = None  # where this rank writes figures
    at: Position = field(default_factory=Position)
    saved: float = field(default_factory=time.monotonic)
    kept: int = 0  # steps of the last checkpoint

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
        self.kept = self.at.steps

    def save(self) -> None:
        """Write a checkpoint, if a step was done since the last one.

        Raises RunFailed, and keeps the last one, if an SAE has diverged.
        """
        begun = self.saved = time.monotonic()
        # Without a step no weight has changed, and writing again could damage what is there.
        if self.at.steps == self.kept:
            return
        self.check_finite()
        self.checkpoints.save(self.at, self._unfinished())
        self.saved, self.kept = time.monotonic(), self.at.steps
        self.pause = pause_after(self.pause, self.saved - begun)

    def written(self) -> Iterator[tuple[str, int, Parameters]]:
        """Yield the sites whose SAEs this rank helps to write, and the rank that does (`writers`).

        That rank gets the parameters of all units with them.
        """
        for name, writer in self.mesh.writers(self.names).items():
            yield name, writer, self.trainers[name].collect(writer)

    def _unfinished(self) -> Iterator[Part]:
        """The SAEs as trained so far."""
        done, total = self.at.steps, self.steps
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
        if stop or due:
            self.save()
        if stop:
            self.mesh.world.barrier()  # the first rank has written the index
            raise KeyboardInterrupt

    @cached_property
    def steps(self) -> int:
        """Steps of the whole training."""
        return sum(chunk.steps for chunk in self.chunks)

    @cached_property
    def held_plan(self) -> Plan | None:
        """The held-out text; None if there is too little."""
        return held_out_plan(self.lm, self.plan)

    @cached_property
    def held_out(self) -> HeldOut | None:
        """The held-out text as the model reads it, which all ranks do together."""
        plan = self.held_plan
        return plan and read_held_out(self.lm, plan, self.sites, self.mesh.world)

    def report(self, bar: tqdm[Any]) -> None:
        """Show the figures of the last steps, and write them."""
        self.check_finite()
        found = {name: trainer.figures() for name, trainer in self.trainers.items()}
        sites = self.gather({name: found[name] for name in owned(self.names, self.mesh.world)})
        bar.set_postfix_str(_describe(sites), refresh=False)
        if self.log:
            self.log.add_training(self.at.steps, sites, bar)

    def evaluate(self) -> None:
        """Measure the SAEs on held-out text if it is time, and write the figures."""
        if self.every and self.at.steps % self.every == 0 and self.at.steps < self.steps:
            self.check_finite()
            self.add_evaluation({sae.site: figures for sae, figures in self.measure()})

    def measure(self) -> Iterator[tuple[SAE, dict[str, Any]]]:
        """The SAEs that this rank owns, as trained so far, with their figures on held-out text.

        The figures are `held_out` (see `HeldOut.fit`), `dead`, and where it is asked for,
        `evaluation` (see `HeldOut.evaluate`). All ranks go through to the end.
        """
        held = self.held_out
        for name, _, parameters in self.written():
            if not parameters:  # another rank has them
                continue
            trainer = self.trainers[name]
            sae = trainer.sae(sae_id(name), name, self.records[name], parameters)
            figures = {"held_out": held.fit(sae) if held else {}, "dead": trainer.dead_share}
            if held and self.every:
                figures["evaluation"] = held.evaluate(sae)
            yield sae, figures

    def add_evaluation(self, own: Mapping[str, Any]) -> None:
        """Write what `measure` has given on each rank, by site."""
        sites = self.gather(own)
        if self.log:
            lines = {
                name: {**figures["held_out"], "dead": figures["dead"], **figures["evaluation"]}
                for name, figures in sites.items()
            }
            self.log.add_evaluation(self.at.steps, lines)

    def gather(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Figures by site, given those of the sites that each rank owns."""
        parts = self.mesh.world.gather_json(own)
        return {name: part[name] for name in self.names for part in parts if name in part}

    def check_finite(self) -> None:
        """Raise RunFailed if the error or a weight of an SAE is not finite."""
        for name, trainer in self.trainers.items():
            if not trainer.is_finite():
                raise RunFailed(
                    f"training diverged at {name} before step {self.at.steps}: its error or a "
                    "weight is not finite",
                    "lower the learning rate, in another output directory",
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
    follow: FollowConfig | None = None,
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
        follow: write the figures to `out/training.jsonl` while it runs, and their curves to
            `out/training.svg` at the end; None: not. No weight depends on it.
        checkpoint_seconds: least time between two checkpoints; 0: one after each chunk.
        stop: asked every few steps; if it says so on a rank, all save and raise KeyboardInterrupt.

    Returns:
        The SAEs, in the order of `sites`. The record of each has `held_out` (its fit to text of the
        corpus that the plan leaves out; empty if there is too little), `training_average` (FVU
        and L0 in training, averaged over the last steps) and `dead` (share of dead units). Where
        losses are measured, it has `evaluation` too (see `HeldOut.evaluate`).

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
    steps = sum(chunk.steps for chunk in chunks)
    with claim_together(out, world):
        check_alike(
            world, [records, layout, replicas, len(chunks), steps, follow and asdict(follow)]
        )
        kept = Checkpoints(out, records, lm.threads, world, say)
        if world.share(_is_finished(out, records) if world.leads else None):
            say(f"{out} is complete already")
            if follow and world.leads and not (out / CURVES).exists():
                draw_lines(out)  # the process was killed after its last SAE
        else:
            mesh = make_mesh(world, layout, replicas)
            trainers = {
                name: Trainer(widths[name], config, steps, lm.device, mesh.copies, mesh.split)
                for name in mesh.trained(list(widths))
            }
            training = _Training(
                *(lm, plan, config, resolved, chunks, trainers, mesh, kept),
                *(checkpoint_seconds, stop, records),
            )
            training.load()
            if follow:
                _follow(training, out, follow)
            _train(training, say)
            _save(training, out)
            if training.log:
                training.log.finish()
        world.barrier()
        saes = [load_sae(out / sae_id(site)) for site in sites]
        world.barrier()  # the checkpoint goes when all SAEs can be read
        if world.leads:
            kept.clear()
    return saes


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
        made = read_record(out / sae_id(name))
        found = {key: made.get(key) for key in records[name]}
        check_same(out / sae_id(name), found, records[name], "an SAE")
    return len(present) == len(records)


def _follow(training: _Training, out: Path, follow: FollowConfig) -> None:
    """Have the figures of a training written, and evaluate it at intervals."""
    if training.mesh.world.leads:
        names = follow.log_to or ()
        training.log = TrainingLog(out, training.at.steps, training.config.batch_size, names)
    size, held = training.config.batch_size, training.held_plan
    if follow.eval_tokens:
        training.every = max(1, round(follow.eval_tokens / size)) if held else 0
    elif follow.eval_tokens is None and held:
        texts = choose_texts(training.lm, held)
        training.every = steps_between(training.steps, size, len(training.sites), texts)


def _train(training: _Training, say: Say) -> None:
    chunks, begin = training.chunks, training.at.chunk
    done = training.tokens(chunks[:begin]) + training.at.step * training.config.batch_size
    reading = batches_by_chunk(training.lm, training.plan, chunks[begin:], training.mesh.world)
    with track(say, "train", training.tokens(chunks), done=done) as bar:
        for number, batches in enumerate(reading, begin):
            _train_chunk(training, number, batches, bar)
            training.check_finite()
            training.at = Position(number + 1, 0, training.at.steps)
            if number + 1 < len(chunks):
                training.look() if training.pause else training.save()


def _train_chunk(training: _Training, number: int, batches: list[Batch], bar: tqdm[Any]) -> None:
    """Read a chunk and train on it, from the step on where the training is."""
    chunk, config, trainers = training.chunks[number], training.config, training.trainers

    def advance(tokens: int) -> None:
        bar.update(tokens)
        training.look()

    of = (training.lm, training.plan, training.sites, chunk, training.mesh.world)
    held = gather_sites(read_chunk(*of, advance, batches), training.names, training.mesh)
    begin, before = training.at.step, training.at.steps - training.at.step
    with torch.inference_mode():
        draws = {}
        for name, trainer in trainers.items():
            if not trainer.scaler:
                trainer.fit_scaler(held.buffers[name])
            usable = held.places_of(trainer.usable(held.buffers[name]))
            draws[name] = Draws(usable, config, number)
        for step in range(begin, chunk.steps):
            for name, trainer in trainers.items():
                trainer.step(*held.take(name, draws[name].draw(step)))
            training.at = Position(number, step + 1, before + step + 1)
            if step % _FIGURE_STEPS == 0 or step == chunk.steps - 1:
                training.report(bar)
            training.evaluate()
            bar.update(config.batch_size)
            if (step + 1) % _LOOK_STEPS == 0:
                training.look()


def _describe(sites: Mapping[str, Any]) -> str:
    return " | ".join(
        f"{name} FVU {of['fvu']:.3f} L0 {of['l0']:.1f} dead {of['dead']:.1%}"
        for name, of in sites.items()
    )


def _save(training: _Training, out: Path) -> None:
    """Measure the SAEs on held-out text and write them, each by the rank that owns it."""
    found = {}
    with torch.inference_mode():
        for sae, figures in training.measure():
            record = sae.record | {"held_out": {}} | _figures(training.trainers[sae.site]) | figures
            save_sae(replace(sae, record=record), out / sae.id)
            wait_for_disk(out / sae.id)
            found[sae.site] = figures
    wait_for_disk(out)  # the checkpoint is removed after this
    if training.every:
        training.add_evaluation(found)


def _figures(trainer: Trainer) -> dict[str, Any]:
    """The figures of a training that its SAE records."""
    average = {"fvu": float(trainer.fvu), "l0": float(trainer.l0)}
    return {"training_average": average, "dead": trainer.dead_share}
