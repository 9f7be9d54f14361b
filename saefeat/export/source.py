"""What is exported: the SAEs of a run, or of any other source."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from saefeat.dictionaries import SAE
from saefeat.io import UserError, user_path
from saefeat.methods import is_sae
from saefeat.models import load_skeleton, resolve_site
from saefeat.models.sites import split_input
from saefeat.rundir import RunDir
from saefeat.sae.releases import names_release
from saefeat.sae.store import load_saes
from saefeat.statistics import Stats

# Parts of base models. Any other first name of a module path is the base model's own.
_PARTS = ("decoder", "language_model")


@dataclass(frozen=True)
class Exportable:
    """SAEs of one base model.

    Attributes:
        saes: at least one.
        model: name, revision and fingerprint of the base model, as far as they are recorded.
        run: the run that used them, or None.
        used: id -> fingerprint of the SAEs that the run's statistics are of.
    """

    saes: list[SAE]
    model: dict[str, Any]
    run: RunDir | None = None
    used: dict[str, str] = field(default_factory=dict)

    @cached_property
    def _skeleton(self) -> Any:
        return load_skeleton(self.model["name"]) if self.run else None

    def check(self, sae: SAE) -> None:
        """Raise UserError for an SAE that is not the one that the run used."""
        if self.run and self.used.get(sae.id) not in (None, sae.identity["fingerprint"]):
            raise UserError(
                f"the SAE {sae.id} of {sae.record.get('path')} is not the one that "
                f"{self.run.root} used; put that one back, or start a new run"
            )

    def hookpoint(self, sae: SAE) -> str | None:
        """Path in the base model of the module whose output an SAE reads.

        For `mlp_out` in a block with a norm after the feed-forward part (Gemma 2 and 3), it is that
        norm. None where neither the SAE's files nor a run say it.
        """
        module = sae.record.get("module")
        if module and "hook_" not in module and re.fullmatch(r"\w+(\.\w+)*", module):
            first, _, below = module.partition(".")
            relative = not below or below.partition(".")[0].isdecimal() or first in _PARTS
            return module if relative else below
        if self._skeleton is None:
            return None
        path = resolve_site(self._skeleton, sae.site).path
        if split_input(path)[1]:  # no output of a module
            return None
        return path.removeprefix(f"{self._skeleton.base_model_prefix}.")


def open_source(source: str) -> Exportable:
    """The SAEs of a run directory, or of anything that `load_saes` takes.

    Raises UserError where there is no SAE, one that cannot be read, or several base models.
    """
    run = RunDir(user_path(source))
    # os.path, because pathlib raises an error where the name is too long.
    if source.strip() and os.path.isfile(run.index):
        return _open_run(run)
    saes = load_saes(source)
    models = [sae.record.get("model") or {} for sae in saes]
    names = list(dict.fromkeys(str(model.get("name")) for model in models))
    if len(names) > 1:
        several = f"several base models ({', '.join(names)})"
        raise UserError(f"the SAEs of {source} are of {several}; export them separately")
    return Exportable(saes, models[0])


def _open_run(run: RunDir) -> Exportable:
    index = run.load_index()
    sources, model = index["arguments"].saes, dict(index["model"])
    # Not by `list_stats`: a run that was stopped has no statistics yet, or a part of them.
    files = [run.stats_file(name) for name in run.collected()]
    headers = [Stats.read_header(path)["dictionary"] for path in files]
    used = [header for header in headers if is_sae(header)]
    for source in sources:
        _check_there(source, run, [str(header.get("path")) for header in used])
    saes = load_saes(list(sources) or str(run.saes))
    for i, sae in enumerate(saes):
        if not (sae.record.get("model") or {}).get("name"):  # its own files do not say it
            saes[i] = replace(sae, record={**sae.record, "model": model})
    return Exportable(saes, model, run, {header["id"]: header["fingerprint"] for header in used})


def _check_there(source: str, run: RunDir, paths: Sequence[str]) -> None:
    """Raise UserError for a directory that is gone: its relative path looks like a hub id.

    paths: where the SAEs were that the run's statistics are of.
    """
    if user_path(source).exists() or names_release(source):
        return
    cached = "models--" + "--".join(source.partition("@")[0].split("/")[:2])
    from_hub = not paths or any(cached in path for path in paths)
    if os.path.isabs(source) or source.startswith((".", "~")) or not from_hub:
        raise UserError(
            f"{source}, whose SAEs the run {run.root} used, does not exist any more; put it back"
        )
