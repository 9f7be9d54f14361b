"""What a run is asked for, and everything loaded that its stages need."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch

from saefeat.baselines import FastText
from saefeat.config import RunConfig
from saefeat.corpora import Corpus, Plan, load_corpus, make_plan, plan_batches
from saefeat.corpora.recipes import find_recipe
from saefeat.dictionaries import SAE
from saefeat.hooks import capture, site_width
from saefeat.io import SCHEMA, UserError, make_dir, read_json, whole_path
from saefeat.labels import own_label
from saefeat.models import LanguageModel, load_model
from saefeat.models.weights import is_outdated
from saefeat.run.stages import Say, neuron_layers, quiet
from saefeat.sae.store import load_sae, load_saes
from saefeat.sae.train import TrainConfig, sae_id

_SECTIONS = {
    "arguments": dict,
    "model": dict,
    "corpus": dict,
    "sites": tuple[str, ...],
}  # of a run's index
DEPTHS = (("resid_post", 0.0), ("mlp_out", 0.3), ("resid_post", 0.3))


def default_sites(n_layers: int) -> list[str]:
    """Sites by depth: the first block, whose features part languages best, and both kinds of site at 30 %."""
    sites = [f"{kind}@{min(n_layers - 1, round(depth * (n_layers - 1)))}" for kind, depth in DEPTHS]
    return list(dict.fromkeys(sites))


@dataclass
class Setting:
    """A run with everything loaded that its stages need."""

    config: RunConfig
    out: Path
    lm: LanguageModel
    corpus: Corpus
    sites: list[str]
    training: TrainConfig
    given: list[SAE]
    say: Say

    @property
    def layers(self) -> list[int]:
        """Layers whose neurons are counted."""
        names = [sae.site for sae in self.given] or self.sites
        count = max(self.lm.site(name).layer or 0 for name in names) + 1
        if self.config.neuron_layers is not None:
            count = self.config.neuron_layers
        try:
            return [layer for layer in neuron_layers(self.lm) if layer < count]
        except UserError:  # a family whose neurons are not known
            return []

    @cached_property
    def saes(self) -> list[SAE]:
        """The SAEs of the run, on the CPU: those given, or those that it has trained."""
        return self.given or [load_sae(self.out / "saes" / sae_id(site)) for site in self.sites]

    @cached_property
    def plan(self) -> Plan:
        """What the statistics and the heads are made from."""
        return make_plan(
            self.corpus, self.lm, seed=self.config.seed, max_tokens=self.config.max_tokens
        )

    @cached_property
    def training_plan(self) -> Plan:
        """What SAEs are trained on."""
        budget = self.config.train_tokens
        return make_plan(self.corpus, self.lm, seed=self.config.seed, max_tokens=budget, mixed=True)


def open_setting(config: RunConfig, out: Path, say: Say = quiet) -> Setting:
    """Check and load everything; raises UserError before any long work."""
    name, config = config.corpus, located(config)
    index = out / "run.json"
    if index.exists():
        before = read_index(out)
        kept = _arguments(before)
        if not same_request(kept, config):
            raise UserError(
                f"{out} holds a run with other arguments; choose another --out or remove it"
            )
        name, config = (
            _corpus_name(before),
            kept,
        )  # written so, they are what its metrics were measured with
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose another --out")
    if (
        out.is_dir()
        and not index.exists()
        and any(not entry.name.startswith(".") for entry in out.iterdir())
    ):
        raise UserError(f"{out} is not empty and holds no run; choose another --out")
    make_dir(
        next(place for place in (out, *out.absolute().parents) if place.exists())
    )  # checks, and makes nothing
    corpus = load_corpus(
        config.corpus,
        labels=config.labels,
        text_column=config.text_column,
        label_column=config.label_column,
        id_column=config.id_column,
        say=say,
    )
    corpus.name = name  # as given: reports and model cards show it
    if config.source is not None and own_label(config.source, corpus.labels) is None:
        raise UserError(
            f"there is no label {config.source!r} to steer away from; there are {', '.join(corpus.labels)}"
        )
    _check_splits(corpus, config)
    lm = load_model(config.model, dtype=config.dtype, device=config.device)
    given = load_saes(list(config.saes), lm, same_model=config.gate) if config.saes else []
    sites = [] if given else list(config.sites or default_sites(lm.n_layers))
    whole = bool((given and config.gate) or config.steer_prompts or config.matrix_texts)
    check_activations(lm, corpus, [*sites, *(sae.site for sae in given)], whole=whole)
    FastText(
        labels=list(corpus.labels), unknown=None
    ).fit()  # the evaluation needs it: fetch it before the long work
    training = _training(config, corpus)
    for site in sites:
        training.width(site_width(lm, lm.site(site)))
    return Setting(config, out, lm, corpus, sites, training, given, say)


def _check_splits(corpus: Corpus, config: RunConfig) -> None:
    for split in ("train", "test"):
        if not corpus.positions(split, config.seed):
            raise UserError(
                f"{corpus.name} has no text in the {split} split, for its {len(corpus):,} texts have "
                f"{len(set(corpus.ids)):,} different ids, and those of one id stay together; name a column that tells "
                f"texts apart with --id-column (here {config.id_column}), or give more text"
            )


def check_activations(
    lm: LanguageModel, corpus: Corpus, sites: Sequence[str], *, whole: bool = False
) -> None:
    """Run the beginnings of a few texts; raises UserError where a site has what is no number, as in a narrow dtype.

    whole: look at the stream after the last block too, where that of every block ends up: for the
    gate and steering.
    """
    some = [corpus.of.index(label) for label in corpus.labels[:16]]
    rows = lm.tokenize([corpus.texts[i] for i in some], 32)
    with suppress(UserError):  # a family whose blocks are not known
        sites = [*sites, f"resid_post@{lm.n_layers - 1}"] if whole else sites
    paths = {lm.site(site).path: site for site in sites}
    for batch in islice(
        plan_batches(lm, {i: row for i, row in zip(some, rows, strict=True) if row}), 1
    ):
        inputs = {
            "input_ids": batch.input_ids.to(lm.device),
            "attention_mask": batch.attention_mask.to(lm.device),
        }
        with torch.inference_mode(), capture(lm.model, tuple(paths)) as captured:
            found = captured.run(lm.model, **inputs, use_cache=False)
        for path, tensor in found.items():
            if not torch.isfinite(tensor[batch.counted.to(lm.device)]).all():
                mend = (
                    "its weights are damaged"
                    if lm.dtype == "float32"
                    else "use another --dtype, such as float32"
                )
                raise UserError(
                    f"the activations of {lm.name} in {lm.dtype} are infinite or not numbers at "
                    f"{paths[path]}; {mend}"
                )


def located(config: RunConfig, place: Callable[[str], str] = whole_path) -> RunConfig:
    """With whole paths of the model, the corpus and the SAEs that are here, so that a run goes on from anywhere.

    `place`: by default links are not followed, for what they are called tells formats and ids.
    """

    def whole(source: str) -> str:
        path = os.path.expanduser(source)
        return place(path) if os.path.exists(path) else source

    model, corpus = config.model, config.corpus
    if model.endswith(".gguf") or os.path.isdir(
        os.path.expanduser(model)
    ):  # any other file is none to `load_model`
        model = whole(model)
    if find_recipe(corpus, ("text", "label", "id")) is None:
        corpus = whole(corpus)
    return replace(config, model=model, corpus=corpus, saes=tuple(map(whole, config.saes)))


def same_request(one: RunConfig, other: RunConfig) -> bool:
    """Whether two ask for the same of the same files, whatever these are called from here."""
    # In JSON tuples and lists are the same.
    first, second = (
        json.dumps(asdict(located(config, os.path.realpath))) for config in (one, other)
    )
    return first == second


def _arguments(index: dict[str, Any]) -> RunConfig:
    """Those that came later than the run take their defaults."""
    found: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in index["arguments"].items()
    }
    return RunConfig(**found)


def _corpus_name(index: dict[str, Any]) -> str:
    return index["corpus"].get("name") or index["arguments"]["corpus"]


def _training(config: RunConfig, corpus: Corpus) -> TrainConfig:
    # Few tokens need many small steps.
    few = config.train_tokens is not None and config.train_tokens * len(corpus.labels) < 1_000_000
    return TrainConfig(
        k=config.k, d_sae=config.d_sae, seed=config.seed, batch_size=1024 if few else 2048
    )


def read_index(out: Path) -> dict[str, Any]:
    """A run's `run.json`; raises UserError when it is missing, damaged or of another version."""
    index = read_json(out / "run.json")
    whole = isinstance(index, dict) and index.get("schema") == SCHEMA
    if not whole or not all(_fits(index.get(name), kind) for name, kind in _SECTIONS.items()):
        raise UserError(f"{out / 'run.json'} is damaged or of another version; start a new run")
    arguments, kinds = index["arguments"], get_type_hints(RunConfig)
    if not {"model", "corpus"} <= set(arguments) <= set(kinds):
        raise UserError(f"{out / 'run.json'} is of another version; start a new run")
    labels, prints = (
        index["corpus"].get("labels"),
        [index[part].get("fingerprint") for part in ("model", "corpus")],
    )
    right = [_fits(value, kinds[name]) for name, value in arguments.items()]
    right += [
        _fits(labels, tuple[str, ...]),
        _fits(index.get("timings", {}), dict),
        *(_fits(p, str) for p in prints),
    ]
    if not all(right):
        raise UserError(f"{out / 'run.json'} is damaged; start a new run")
    return index


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a type, which may be a union or `tuple[str, ...]`."""
    if get_origin(kind) is UnionType:
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return type(value) is list and all(type(member) is str for member in value)
    return type(value) is kind  # exactly: true is no number


def open_run(out: Path, say: Say = quiet, *, with_corpus: bool = True) -> Setting:
    """Load a run directory's model, SAEs and (where wanted) corpus from its `run.json`."""
    index = read_index(out)
    config = _arguments(index)
    corpus = Corpus([], [], [], tuple(index["corpus"]["labels"]), "")
    if with_corpus:
        columns = {
            name: getattr(config, name) for name in ("text_column", "label_column", "id_column")
        }
        corpus = load_corpus(config.corpus, labels=config.labels, **columns)
    corpus.name = _corpus_name(index)
    if with_corpus and corpus.fingerprint != index["corpus"]["fingerprint"]:
        raise UserError(
            f"the corpus {config.corpus} has changed since the run in {out}; start a new run"
        )
    lm = load_model(config.model, dtype=config.dtype, device=config.device)
    if is_outdated(index["model"]["fingerprint"]):
        raise UserError(
            f"the run in {out} was made by an older version of saefeat; start a new run"
        )
    if lm.fingerprint != index["model"]["fingerprint"]:
        raise UserError(
            f"the model {config.model} has changed since the run in {out}; start a new run"
        )
    given = load_saes(list(config.saes), lm, same_model=config.gate) if config.saes else []
    training = _training(config, corpus)
    return Setting(
        config, out, lm, corpus, index["sites"] if not given else [], training, given, say
    )
