"""SAEs by their source: a directory of any format, a folder of them, a name in sae-lens, a hub id. Saves our own."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from saefeat.dictionaries import SAE
from saefeat.hooks import site_width
from saefeat.io import UserError, replacing, user_path
from saefeat.models import LanguageModel, resolve_site
from saefeat.models.weights import is_outdated
from saefeat.sae import formats, hub, layouts, registry
from saefeat.sae.formats.sae_lens import CFG, WEIGHTS
from saefeat.sae.formats.values import encoding_dtype
from saefeat.sae.names import are_same, is_quantised, may_be_same

__all__ = ["CFG", "WEIGHTS", "check_fits", "check_together", "load_sae", "load_saes", "save_sae"]
_GATES, _GATED_HOOK = ("gate_proj", "gate_up_proj"), "mlp.hook_post"
_GIVE = "give a directory in sae-lens format, that of sparsify, dictionary_learning or Gemma Scope, or a folder of them"


def save_sae(sae: SAE, directory: Path) -> None:
    """Write a directory that `sae_lens.SAE.load_from_disk` opens; the whole directory appears at once."""
    with replacing(directory) as temporary:
        layouts.write_sae("sae-lens", sae, temporary)


def load_sae(source: Path | str, *, dtype: str | None = None) -> SAE:
    """Load one SAE: a directory of any format, a `release/sae_id` of sae-lens, or a hub id with a folder.

    `dtype` of the products in `encode`: by default the one that the SAE was trained with.
    Raises UserError for a source that holds none or several, or one that is damaged or cannot be
    read.
    """
    found = _read(str(source))
    if len(found) != 1:
        raise UserError(
            f"{source} holds {len(found)} SAEs; name one of them: {', '.join(sae.id for sae in found[:5])}"
        )
    return found[0] if dtype is None else replace(found[0], dtype=encoding_dtype(dtype, source))


def load_saes(
    sources: list[str] | str, lm: LanguageModel | None = None, *, same_model: bool = True
) -> list[SAE]:
    """Load SAEs, those of a folder in natural order; check that they fit the model.

    A source is a directory in the format of sae-lens, sparsify, dictionary_learning or Gemma Scope,
    a folder of them, a `release/sae_id` of sae-lens, or a hub id `owner/repo@revision/folder`.
    `same_model` False: of another base model they fit too, where their width does.
    Raises UserError for a source that holds none or cannot be read, two SAEs of one id, or an SAE
    of another width or base model.
    """
    saes: list[SAE] = []
    for source in [sources] if isinstance(sources, str) else sources:
        saes += _read(str(source))
    check_together(saes, lm, same_model=same_model)
    return saes


def check_together(
    saes: Sequence[SAE], lm: LanguageModel | None = None, *, same_model: bool = True
) -> None:
    """Raises UserError for two SAEs of one id, and for one that does not fit the model."""
    known: dict[str, SAE] = {}
    places: dict[str, SAE] = {}
    for sae in saes:
        path = sae.record.get("path")
        twin = path and places.setdefault(os.path.realpath(path), sae)
        if twin and twin is not sae:
            also = "" if sae.id == twin.id else f", as {twin.id} and as {sae.id}"
            raise UserError(
                f"the SAE {twin.id} of {twin.record['path']} is given twice{also}; give it once"
            )
        if sae.id in known:
            raise UserError(f"two SAEs are named {sae.id}; rename one of the directories")
        known[sae.id] = sae
        if lm is not None:
            check_fits(sae, lm, same_model=same_model)


def _read(source: str) -> list[SAE]:
    """The SAEs of a source, at least one."""
    if not source.strip():
        raise UserError(f"a source of SAEs is empty; {_GIVE}")
    path = user_path(source)
    if any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise UserError(
            f"{source[:40]}... does not exist, for no name of a file is so long; {_GIVE}"
        )
    if path.is_dir() or formats.form_of(path):
        return [registry.read_place(directory) for directory in _directories(path, source)]
    lost = next(
        (place for place in (path, *path.parents) if place.is_symlink() and not place.exists()),
        None,
    )
    if lost:
        raise UserError(f"{source} cannot be read, because the link {lost} leads nowhere; {_GIVE}")
    if path.exists() or source.startswith((".", "/", "~")):
        kind = "is no directory" if path.exists() else "does not exist"
        raise UserError(f"{source} {kind}; {_GIVE}")
    if registry.names_release(source):
        return [replace(registry.read(source), id=_file_name(source))]
    repo, revision, folder = hub.parse(source)
    snapshot, start = hub.download(repo, revision, folder)
    return [_of_hub(repo, snapshot, directory) for directory in _directories(start, source)]


def _directories(root: Path, source: str) -> list[Path]:
    found = formats.find(root)
    if not found:
        raise UserError(f"{source} holds no SAE; {_GIVE}")
    return sorted(
        found, key=lambda p: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", str(p))]
    )


def _of_hub(repo: str, snapshot: Path, directory: Path) -> SAE:
    """Its id holds the repository's name, because the folders of many have the same names."""
    sae = registry.read_place(directory)
    place = directory.relative_to(snapshot).as_posix()
    sae.record["source"] = f"{repo}@{snapshot.name}" + ("" if place == "." else f"/{place}")
    name = _file_name("/".join([repo.partition("/")[2], place]))
    return replace(sae, id=formats.identifier(name, sae.site))


def _file_name(source: str) -> str:
    return re.sub(r"[^\w.@=+,-]+", "-", source).strip("-.")


def check_fits(sae: SAE, lm: LanguageModel, *, same_model: bool = True) -> None:
    """Raises UserError when an SAE was made for another model (unless that may be), or for vectors of another width."""
    if same_model:
        _check_model(sae, lm)
    site = resolve_site(lm.model, sae.site)
    gated = any(
        hasattr(lm.model.get_submodule(site.path.rpartition(".")[0]), name) for name in _GATES
    )
    if gated and str(sae.record.get("module")).endswith(_GATED_HOOK):
        raise UserError(
            f"the SAE {sae.id} reads the product of the neurons and their gates ({_GATED_HOOK}), "
            f"which is the output of no module of {lm.name}; choose an SAE at another site"
        )
    width = site_width(lm, site)
    if width != sae.d_in:
        raise UserError(
            f"the SAE {sae.id} reads vectors of {sae.d_in}, but {sae.site} of {lm.name} has {width}"
        )


def _check_model(sae: SAE, lm: LanguageModel) -> None:
    model = sae.record.get("model") or {}
    name, mark, here = str(model.get("name") or ""), model.get("fingerprint"), _hub_name(lm)
    mark = None if is_outdated(mark) else mark
    if mark == lm.fingerprint or (
        not mark and may_be_same(name, here)
    ):  # names, where they are all there is
        return
    if are_same(name, here) and is_quantised(name) != (is_quantised(here) or _is_quantised(lm)):
        return  # its weights are others by necessity: the gate tells whether the SAE still fits
    if name == lm.name or are_same(name, here):
        other = f"other weights of {lm.name} (another revision, quantisation or fine-tune); give it those"
    else:
        other = f"{name or 'another model'}, not on {lm.name}; give it that model"
    raise UserError(
        f"the SAE {sae.id} was trained on {other} "
        "(--no-gate, same_model=False in Python, uses it all the same)"
    )


def _is_quantised(lm: LanguageModel) -> bool:
    return getattr(lm.model.config, "quantization_config", None) is not None


def _hub_name(lm: LanguageModel) -> str:
    """The model's name on the hub, or "" where it is not known."""
    name = lm.name
    if os.path.exists(name):  # a directory may tell where its model is from
        name = str(getattr(lm.model.config, "_name_or_path", ""))
    return "" if os.path.exists(name) else name
