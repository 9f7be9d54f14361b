"""SAEs out again: a directory that sae-lens or sparsify opens, with a model card; one unit's direction as a file."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from saefeat.dictionaries import SAE
from saefeat.io import (
    SCHEMA,
    UserError,
    atomic_path,
    kept_json,
    make_dir,
    read_header,
    read_json,
    replacing,
    save_tensors,
    user_path,
    write_json,
    write_text,
)
from saefeat.models import load_skeleton, resolve_site
from saefeat.sae import card, registry
from saefeat.sae.formats import sparsify
from saefeat.sae.layouts import FORMATS, check_holds, write_sae
from saefeat.sae.names import on_hub
from saefeat.sae.store import load_saes
from saefeat.statistics import Stats

CARD, MANIFEST = "README.md", "export.json"
_INNER = (
    "decoder",
    "language_model",
)  # parts of base models; any other first name of a path is the base model's own


@dataclass(frozen=True)
class Exportable:
    """SAEs of one base model.

    Attributes:
        model: name, revision and fingerprint of the base model, as far as they are recorded.
        run: the run directory that used them, or None.
        used: id -> fingerprint of the SAEs that the run's statistics are of.
    """

    saes: list[SAE]
    model: dict[str, Any]
    run: Path | None = None
    used: dict[str, str] = field(default_factory=dict)

    @cached_property
    def _skeleton(self) -> Any:
        return load_skeleton(self.model["name"]) if self.run else None

    def check(self, sae: SAE) -> None:
        """Raises UserError for an SAE that is another one than the run used."""
        if self.used.get(sae.id) not in (None, sae.identity["fingerprint"]):
            raise UserError(
                f"the SAE {sae.id} of {sae.record.get('path')} is another one than {self.run} used; put "
                "that back, or start a new run"
            )

    def hookpoint(self, sae: SAE) -> str | None:
        """Path in the base model of the module whose output an SAE reads, which sparsify hooks too.

        Of `mlp_out` in a block with a norm after the feed-forward part (Gemma 2 and 3) it is that
        norm. None where neither the SAE's files nor a run tell it.
        """
        module = sae.record.get("module")
        if module and "hook_" not in module and re.fullmatch(r"\w+(\.\w+)*", module):
            first, _, rest = module.partition(".")
            relative = not rest or rest.partition(".")[0].isdecimal() or first in _INNER
            return module if relative else rest
        if self._skeleton is None:
            return None
        return resolve_site(self._skeleton, sae.site).path.removeprefix(
            f"{self._skeleton.base_model_prefix}."
        )


def open_source(source: str) -> Exportable:
    """The SAEs of a run directory, or of anything that `load_saes` takes.

    Raises UserError for a source that holds none or cannot be read, and for SAEs of several base
    models.
    """
    path = user_path(source)
    if source.strip() and os.path.isfile(
        path / "run.json"
    ):  # pathlib's would raise for a name that is too long
        return _open_run(path)
    saes = load_saes(source)
    models = [sae.record.get("model") or {} for sae in saes]
    names = list(dict.fromkeys(str(model.get("name")) for model in models))
    if len(names) > 1:
        raise UserError(
            f"the SAEs of {source} are of several base models ({', '.join(names)}); export them apart"
        )
    return Exportable(saes, models[0])


def _open_run(run: Path) -> Exportable:
    match read_json(run / "run.json"):
        case {"model": {"name": str()} as model, "arguments": {"saes": [*given]}} if all(
            isinstance(source, str) for source in given
        ):
            pass
        case _:
            raise UserError(f"{run / 'run.json'} is damaged or of another version; start a new run")
    headers = [
        Stats.read_header(path)["dictionary"]
        for path in sorted((run / "stats").glob("[!.]*.safetensors"))
    ]
    used = [header for header in headers if header.get("kind") == "sae"]
    for source in given:
        _check_there(source, run, [str(header.get("path")) for header in used])
    saes = load_saes(given or str(run / "saes"))
    for sae in saes:
        if not (sae.record.get("model") or {}).get("name"):
            sae.record["model"] = model
    return Exportable(saes, model, run, {header["id"]: header["fingerprint"] for header in used})


def _check_there(source: str, run: Path, paths: list[str]) -> None:
    """Raises UserError for a directory that is gone: what is left of a relative path may look like a hub id."""
    if user_path(source).exists() or registry.names_release(source):
        return
    cached = "models--" + "--".join(source.partition("@")[0].split("/")[:2])
    if (
        os.path.isabs(source)
        or source.startswith((".", "~"))
        or (paths and not any(cached in p for p in paths))
    ):
        raise UserError(
            f"{source}, whose SAEs the run {run} used, is not there any more; put it back"
        )


def export_saes(source: str, form: str, out: Path) -> list[Path]:
    """Write a directory with a folder an SAE, README.md (the model card) and export.json; it appears at once.

    Args:
        source: a run directory, or anything that `load_saes` takes.
        form: `sae-lens` (folders are named by the SAEs' ids) or `sparsify` (by their hookpoints).

    Returns the folders. Raises UserError for an unknown format or one that cannot hold an SAE, and
    for an `out` that is something else than an earlier export.
    """
    if form not in FORMATS:
        raise UserError(f"unknown format {form}; there are {', '.join(FORMATS)}")
    _check_directory(out)
    given = open_source(source)
    folders = _folders(given, form)
    places = {sae.id: given.hookpoint(sae) for sae in given.saes}
    with replacing(out) as temporary:
        for folder, sae in folders.items():
            (temporary / folder).mkdir()
            write_sae(form, sae, temporary / folder)
        if form == "sparsify":
            write_json(temporary / sparsify.RUN, _sparsify_run(given, list(folders)))
        facts = card.read_facts(given.saes, given.model, given.run)
        write_text(temporary / CARD, card.render(form, folders, places, facts))
        marks = {
            folder: {"id": s.id, "fingerprint": s.identity["fingerprint"]}
            for folder, s in folders.items()
        }
        write_json(temporary / MANIFEST, {"schema": SCHEMA, "format": form, "saes": marks})
    return [out / folder for folder in folders]


def _folders(given: Exportable, form: str) -> dict[str, SAE]:
    found: dict[str, SAE] = {}
    for sae in given.saes:
        given.check(sae)
        check_holds(form, sae)
        folder = sae.id if form == "sae-lens" else given.hookpoint(sae)
        if folder is None:
            raise UserError(
                f"the files of {sae.id} name no module of a model, which sparsify needs; run saefeat with "
                "the SAE and export the run"
            )
        if folder in found:
            raise UserError(
                f"{found[folder].id} and {sae.id} both read {folder}, where sparsify has one SAE; export "
                "them apart"
            )
        found[folder] = sae
    return found


def _sparsify_run(given: Exportable, hookpoints: list[str]) -> dict[str, Any]:
    record = given.saes[0].record
    length = (record.get("policy") or {}).get("token_limit") or (record.get("tokens") or {}).get(
        "context_size"
    )
    name = given.model.get("name")
    model = {"model": name and on_hub(name), "revision": given.model.get("revision")}
    return {**model, "hookpoints": hookpoints, "ctx_len": length}


def export_direction(source: str, feature: str, out: Path) -> dict[str, Any]:
    """Write a unit's decoder direction, float32 [d_in] in the model's raw units, as `.safetensors` or `.npy`.

    Args:
        source: a run directory, or anything that `load_saes` takes.
        feature: `SAE:UNIT`, an SAE's id and the number of a unit.

    Returns what it is of, which is also the header of the `.safetensors` (the tensor is
    `direction`): sae, site, module, model, unit, norm, normalize. Raises UserError for an unknown
    SAE or unit, another suffix, and an `out` that is something else.
    """
    name, colon, number = feature.rpartition(":")
    _check_file(out)
    given = open_source(source)
    if not colon or not number.isdecimal() or len(number) > 12:
        raise UserError(f"--feature {feature} should be SAE:UNIT, such as {given.saes[0].id}:0")
    saes = {sae.id: sae for sae in given.saes}
    if name not in saes:
        raise UserError(f"{source} has no SAE {name}; it has {', '.join(saes)}")
    sae, unit = saes[name], int(number)
    given.check(sae)
    if unit >= sae.width:
        raise UserError(f"{name} has the units 0 to {sae.width - 1}, and no {unit}")
    direction = sae.directions[unit].float().clone()
    about = {
        "schema": SCHEMA,
        "kind": "direction",
        "sae": name,
        "site": sae.site,
        "module": sae.record.get("module"),
        "model": sae.record.get("model") or {},
        "unit": unit,
        "norm": float(direction.norm()),
        "normalize": sae.normalize,  # unless none, it is to be scaled by `SAE.spread` of the vector that it joins
    }
    make_dir(out.absolute().parent)
    if out.suffix == ".safetensors":
        save_tensors(out, {"direction": direction}, about)
    else:
        import numpy as np

        with atomic_path(out) as temporary:
            np.save(temporary, direction.numpy())
    return about


def _check_file(out: Path) -> None:
    if out.suffix not in (".safetensors", ".npy"):
        raise UserError(f"{out} should end in .safetensors or .npy")
    if not out.exists():
        return
    try:
        ours = out.suffix == ".safetensors" and read_header(out).get("kind") == "direction"
    except UserError:
        ours = False
    if not ours:  # a .npy does not say what it is
        raise UserError(
            f"{out} exists and does not say that it is an exported direction; choose another --out"
        )


def _check_directory(out: Path) -> None:
    """Only an empty directory, and an export to which nothing was added (a `.git`), are written over."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; choose another --out")
    manifest = kept_json(out / MANIFEST)
    folders = manifest.get("saes") if manifest.get("format") in FORMATS else None
    ours = {CARD, MANIFEST, sparsify.RUN, *folders} if isinstance(folders, dict) else set()
    others = sorted({entry.name for entry in out.iterdir()} - ours)
    if others:
        raise UserError(
            f"{out} exists and holds {others[0]}, which is of no export; choose another --out"
        )
