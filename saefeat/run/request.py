"""What a run is asked for: absolute paths, comparison with an earlier request, `run.json`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

from saefeat.artefacts import RunIndex
from saefeat.config import RunConfig
from saefeat.corpora.columns import Columns
from saefeat.corpora.recipes import find_recipe
from saefeat.io import UserError, absolute_path, read_json
from saefeat.rundir import RunDir
from saefeat.schema import checked


def with_absolute_paths(
    config: RunConfig, absolute: Callable[[str], str] = absolute_path
) -> RunConfig:
    """Make the paths of the model, the corpus and the SAEs absolute, where these are files here.

    A run then resumes from any directory. Hub ids, names of recipes and paths where nothing is stay
    as they are.

    Args:
        absolute: makes a path absolute. The default does not follow links, because formats and ids
            are read from their names.
    """

    def path(name: str) -> str:
        expanded = os.path.expanduser(name)
        return absolute(expanded) if os.path.exists(expanded) else name

    model, corpus = config.model, config.corpus
    # Of files, `load_model` reads .gguf files only: another name is a hub id.
    if model.endswith(".gguf") or os.path.isdir(os.path.expanduser(model)):
        model = path(model)
    if find_recipe(corpus, Columns()) is None:
        corpus = path(corpus)
    return replace(config, model=model, corpus=corpus, saes=tuple(map(path, config.saes)))


def same_arguments(one: RunConfig, other: RunConfig) -> bool:
    """Whether two configurations are equal, where paths that lead to the same file are equal."""
    return with_absolute_paths(one, os.path.realpath) == with_absolute_paths(
        other, os.path.realpath
    )


def read_index(out: Path) -> RunIndex:
    """Read the `run.json` of a run. Arguments that an older version did not know have the defaults.

    Raises:
        UserError: the file is missing, damaged or of another version.
    """
    path = RunDir(out).index
    found = read_json(path)
    arguments = found.get("arguments") if isinstance(found, dict) else None
    known = {field.name for field in fields(RunConfig)}
    if isinstance(arguments, dict) and not arguments.keys() <= known:
        raise UserError(f"{path} is of another version; start a new run")
    return checked(RunIndex, found, path, help="start a new run")
