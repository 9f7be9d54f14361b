"""What a run is asked for: absolute paths, and comparison with an earlier request."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace

from saefeat.config import RunConfig
from saefeat.corpora.columns import Columns
from saefeat.corpora.request import find_recipe
from saefeat.io import absolute_path, existing_path, fingerprint

# Arguments that the first runs did not have.
_LATER = (
    "with_",
    "table_examples",
    "random_tokens",
    "neuron_site",
    "prompt_column",
    "compare_labels",
)


def with_absolute_paths(
    config: RunConfig, absolute: Callable[[str], str] = absolute_path
) -> RunConfig:
    """Make the paths of the model, the corpus and the SAEs absolute, where these are files here.

    A run then resumes from any directory. Hub ids, names of recipes and paths where nothing is stay
    as they are. By default links are not followed, because formats and ids are read from names.
    """

    model, corpus = config.model, config.corpus
    # Of files, `load_model` reads .gguf files only: another name is a hub id.
    if model.endswith(".gguf") or os.path.isdir(os.path.expanduser(model)):
        model = existing_path(model, absolute)
    if find_recipe(corpus, Columns()) is None:
        corpus = existing_path(corpus, absolute)
    saes = tuple(existing_path(sae, absolute) for sae in config.saes)
    return replace(config, model=model, corpus=corpus, saes=saes)


def same_arguments(one: RunConfig, other: RunConfig) -> bool:
    """Whether two configurations are equal, where paths that lead to the same file are equal."""
    one, other = (with_absolute_paths(each, os.path.realpath) for each in (one, other))
    return one == other


def mark_of(config: RunConfig) -> str:
    """Fingerprint of the arguments of a run, by which metrics know their run.

    Later arguments are left out where they have their default, so that the metrics of runs without
    them stay valid.
    """
    values, defaults = asdict(config), RunConfig(model="", corpus="")
    same = {name for name in _LATER if values[name] == getattr(defaults, name)}
    return fingerprint({name: value for name, value in values.items() if name not in same})
