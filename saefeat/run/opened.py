"""A run with everything loaded that its stages need, prepared anew or opened again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch

from saefeat.activations import counted_vectors
from saefeat.artefacts import RunIndex
from saefeat.baselines.fasttext import FastText
from saefeat.config import EvaluateConfig, Inputs, RunConfig, SAEInputs, TrainConfig
from saefeat.corpora import Corpus, Plan, load_corpus, make_plan, plan_batches
from saefeat.corpora.corpus import describe_skipped
from saefeat.dictionaries import SAE, Identity
from saefeat.hooks import site_width
from saefeat.io import UserError, make_dir, visible
from saefeat.labels import own_label
from saefeat.models import LanguageModel, load_model
from saefeat.models.sites import UnknownSite
from saefeat.models.weights import is_outdated
from saefeat.progress import Say, quiet
from saefeat.resume import check_replaceable
from saefeat.run.request import same_arguments, with_absolute_paths
from saefeat.run.stages import chosen_neurons, neuron_layers, set_threads
from saefeat.rundir import RunDir
from saefeat.sae.objectives import sae_width
from saefeat.sae.store import load_sae, load_saes
from saefeat.sae.train import sae_id
from saefeat.statistics import run_kinds

DEPTHS = (("resid_post", 0.0), ("mlp_out", 0.3), ("resid_post", 0.3))
_FEW_TOKENS = 1_000_000  # of training; fewer need many small steps


def default_sites(n_layers: int) -> list[str]:
    """Sites where SAEs are trained by default.

    The features of the first block separate languages best. At 30 % of the depth there is a site of
    both kinds.
    """
    sites = [f"{kind}@{min(n_layers - 1, round(depth * (n_layers - 1)))}" for kind, depth in DEPTHS]
    return list(dict.fromkeys(sites))


@dataclass
class OpenRun:
    """A run with everything loaded that its stages need.

    Attributes:
        sites: where the run trains SAEs; empty where SAEs are given.
        given: the SAEs that the run was given, on the CPU.
    """

    config: RunConfig
    out: Path
    lm: LanguageModel
    corpus: Corpus
    sites: list[str]
    given: list[SAE]
    say: Say

    @property
    def files(self) -> RunDir:
        """The paths of the run."""
        return RunDir(self.out)

    @property
    def training(self) -> TrainConfig:
        """How the run trains SAEs."""
        budget = self.config.train_tokens
        few = budget is not None and budget * len(self.corpus.labels) < _FEW_TOKENS
        size = 1024 if few else 2048
        return TrainConfig(self.config.k, self.config.d_sae, batch_size=size, seed=self.config.seed)

    @property
    def layers(self) -> list[int]:
        """Layers whose neurons are counted; none in a family whose neurons are not known."""
        names = [sae.site for sae in self.given] or self.sites
        count = self.config.neuron_layers
        if count is None:
            count = max(self.lm.site(name).layer or 0 for name in names) + 1
        with suppress(UnknownSite):
            return [layer for layer in neuron_layers(self.lm) if layer < count]
        return []

    @cached_property
    def neurons(self) -> list[Identity]:
        """The neurons that the run counts."""
        return chosen_neurons(self.lm, self.config, self.layers)

    @cached_property
    def saes(self) -> list[SAE]:
        """The SAEs of the run, on the CPU: those given, or those that it has trained."""
        return self.given or [load_sae(self.files.sae(sae_id(site))) for site in self.sites]

    @cached_property
    def plan(self) -> Plan:
        """The texts from which the statistics and the heads are made."""
        budget = self.config.max_tokens
        return make_plan(self.corpus, self.lm, seed=self.config.seed, max_tokens=budget)

    @cached_property
    def training_plan(self) -> Plan:
        """The texts on which SAEs are trained."""
        budget = self.config.train_tokens
        return make_plan(self.corpus, self.lm, seed=self.config.seed, max_tokens=budget, mixed=True)


def prepare_run(config: RunConfig, out: Path, say: Say = quiet) -> OpenRun:
    """Check and load everything that a run needs. Nothing is written.

    Raises UserError when the output, the corpus, the model, the SAEs or the sites cannot be used,
    or when `out` holds a run with other arguments.
    """
    run_kinds(config.requested)  # refuses unknown names
    name, config = config.corpus, with_absolute_paths(config)
    if index := _check_output(out):
        if not same_arguments(index["arguments"], config):
            raise UserError(
                f"{out} holds a run with other arguments; choose another output or remove it", "out"
            )
        # The metrics of the run record its arguments as they were written.
        name, config = index["corpus"]["name"], index["arguments"]
    corpus = _load_corpus(config, name, say)
    _check_labels(corpus, config)
    lm = _load_model(config, say)
    given = load_given(config, lm)
    sites = [] if given else list(config.sites or default_sites(lm.n_layers))
    opened = OpenRun(config, out, lm, corpus, sites, given, say)
    used = [*sites, *(each.site for each in (*given, *opened.neurons))]
    last_block = bool(
        (given and config.gate)
        or config.steer_prompts
        or config.matrix_texts
        or config.compare_labels
    )
    check_activations(lm, corpus, used, last_block=last_block)
    # The evaluation needs fastText's model: fetch it before the long work.
    FastText(labels=list(corpus.labels), unknown=None).fit()
    for site in sites:
        sae_width(opened.training, site_width(lm, lm.site(site)))
    return opened


def open_run(out: Path, say: Say = quiet, *, with_corpus: bool = True) -> OpenRun:
    """Load the model, the SAEs and the corpus of a run directory.

    `with_corpus=False`: only the labels of the corpus are needed; it has no texts then.
    Raises UserError when there is no run, or when its model or corpus has changed since.
    """
    index = RunDir(out).load_index()
    config, recorded, mark = index["arguments"], index["corpus"], index["model"]["fingerprint"]
    if with_corpus:
        corpus = _load_corpus(config, recorded["name"])
        if corpus.fingerprint != recorded["fingerprint"]:
            raise _changed(f"the corpus {config.corpus}", out)
    else:
        corpus = Corpus([], [], [], tuple(recorded["labels"]), recorded["name"])
    lm = _load_model(config, say)
    given = load_given(config, lm)
    if is_outdated(mark):
        raise UserError(f"an older version of saefeat made the run in {out}; start a new run")
    if lm.fingerprint != mark:
        raise _changed(f"the model {config.model}", out)
    return OpenRun(config, out, lm, corpus, [] if given else index["sites"], given, say)


def _changed(what: str, out: Path) -> UserError:
    return UserError(f"{what} has changed since the run in {out}; start a new run")


def load_inputs(
    inputs: Inputs, say: Say = quiet, *, processes: int = 1, threads: int | None = None
) -> tuple[LanguageModel, Corpus]:
    """Load a corpus and a model. The corpus comes first, because errors in it are found sooner.

    `processes`, `threads`: see `set_threads`.
    """
    set_threads(processes, threads)
    corpus = _load_corpus(inputs, inputs.corpus, say)
    return _load_model(inputs, say), corpus


def say_plan(lm: LanguageModel, plan: Plan, say: Say) -> None:
    """Say what a plan reads."""
    corpus = plan.corpus
    say(
        f"model {lm.name} ({lm.dtype}); {corpus.name}: {len(corpus.labels)} labels, "
        f"{len(plan.tokens):,} of {len(corpus):,} examples, {plan.total:,} counted tokens"
    )
    for line in describe_skipped(corpus, plan):
        say(line)


def load_given(inputs: SAEInputs, lm: LanguageModel) -> list[SAE]:
    """Load the SAEs that a stage is given; with `gate`, they must be of the same model."""
    return load_saes(list(inputs.saes), lm, same_model=inputs.gate) if inputs.saes else []


def other_corpus(opened: OpenRun, config: EvaluateConfig) -> Corpus | None:
    """Load the corpus on which a run is evaluated; None for the run's own.

    The run's own corpus may be named by another path: only its test split was not seen in training.
    """
    if config.corpus is None:
        if config.labels:
            raise UserError(
                "labels are chosen of another corpus; the run's own is measured whole", "labels"
            )
        return None
    asked = replace(opened.config, corpus=config.corpus, **config.columns)
    own = opened.corpus.labels if same_arguments(asked, opened.config) else None
    labels = config.labels or own
    corpus = load_corpus(config.corpus, labels=labels, say=opened.say, **config.columns)
    return None if corpus.fingerprint == opened.corpus.fingerprint else corpus


def _load_corpus(inputs: Inputs, name: str, say: Say = quiet) -> Corpus:
    # The name as it was given: reports and model cards show it.
    return load_corpus(inputs.corpus, labels=inputs.labels, name=name, say=say, **inputs.columns)


def _load_model(inputs: Inputs, say: Say) -> LanguageModel:
    return load_model(inputs.model, dtype=inputs.dtype, device=inputs.device, say=say)


def _check_output(out: Path) -> RunIndex | None:
    """Return the index of the run in `out`, None where nothing is; raise UserError otherwise."""
    run = RunDir(out)
    there = run.index.exists()
    check_replaceable(out, "run", lambda _: there or (out.is_dir() and not visible(out)))
    # Checks that the nearest directory that exists can be written, and makes none.
    make_dir(next(place for place in (out, *out.absolute().parents) if place.exists()))
    return run.load_index() if there else None


def _check_labels(corpus: Corpus, config: RunConfig) -> None:
    source, labels = config.source, ", ".join(corpus.labels)
    if source is not None and own_label(source, corpus.labels) is None:
        message = f"there is no label {source!r} to steer away from; there are {labels}"
        raise UserError(message, "source")
    for split in ("train", "test"):
        if not len(corpus.in_split(split, config.seed)):
            raise UserError(
                f"{corpus.name} has no text in the {split} split: its {len(corpus):,} texts have "
                f"{len(set(corpus.ids)):,} different ids in the column {config.id_column}, and "
                "texts with one id stay together; name a column that tells texts apart, or give "
                "more text",
                "id_column",
            )


def check_activations(
    lm: LanguageModel, corpus: Corpus, sites: Sequence[str], *, last_block: bool = False
) -> None:
    """Run the beginnings of a few texts, and check that the activations at the sites are finite.

    `last_block`: check the stream after the last block too, as the fit check and steering need it.
    Raises UserError when an activation is infinite or NaN, as it may be in a narrow dtype.
    """
    some = [corpus.of.index(label) for label in corpus.labels[:16]]
    rows = lm.tokenize([corpus.texts[i] for i in some], 32)
    tokens = {i: row for i, row in zip(some, rows, strict=True) if row}
    with suppress(UnknownSite):  # the blocks of this family are not known
        sites = [*sites, f"resid_post@{lm.n_layers - 1}"] if last_block else sites
    for _, vectors in counted_vectors(lm, islice(plan_batches(lm, tokens), 1), sites):
        for site, x in vectors.items():
            if not torch.isfinite(x).all():
                found = f"the activations of {lm.name} in {lm.dtype} are infinite or not numbers"
                if lm.dtype == "float32":
                    raise UserError(f"{found} at {site}; its weights are damaged")
                message = f"{found} at {site}; use another dtype, such as float32"
                raise UserError(message, "dtype")
