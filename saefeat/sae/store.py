"""Load SAEs from anywhere, check that they fit a model, and save our own.

A source is a directory of any format (`saefeat.sae.formats`), a folder of such directories, a name
in sae-lens (`release/sae_id`) or a hub id (`owner/repo@revision/folder`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from saefeat.dictionaries import SAE
from saefeat.hooks import site_width
from saefeat.io import UserError, replacing, user_path
from saefeat.models import LanguageModel
from saefeat.models.weights import is_outdated
from saefeat.sae import hub, releases
from saefeat.sae.formats import FORMATS
from saefeat.sae.formats.directories import detect_format, find, sae_name
from saefeat.sae.formats.values import encoding_dtype
from saefeat.sae.names import are_same, is_quantised, may_be_same
from saefeat.sae.writers import WRITERS
from saefeat.words import in_words

_GIVE = f"give a directory in the format of {in_words(FORMATS)}, or a folder of them"
_NAME_BYTES = 255  # greatest length of a path component on every common file system


def save_sae(sae: SAE, directory: Path) -> None:
    """Write a directory that `load_sae` and `sae_lens.SAE.load_from_disk` open, atomically."""
    with replacing(directory) as temporary:
        WRITERS["sae-lens"].write(sae, temporary)


def load_sae(source: Path | str, *, dtype: str | None = None) -> SAE:
    """Load one SAE.

    Args:
        source: a directory of any format, a `release/sae_id` of sae-lens, or a hub id.
        dtype: of the products in `encode`, "float32" or "bfloat16"; default as in training.

    Raises UserError if the source holds no SAE or several, or cannot be read.
    """
    found = _read(str(source))
    if len(found) != 1:
        some = ", ".join(sae.id for sae in found[:5])
        raise UserError(f"{source} holds {len(found)} SAEs; name one of them: {some}")
    return found[0] if dtype is None else replace(found[0], dtype=encoding_dtype(dtype, source))


def load_saes(
    sources: list[str] | str, lm: LanguageModel | None = None, *, same_model: bool = True
) -> list[SAE]:
    """Load SAEs and check that they fit the model. Those of a folder are in natural order.

    Args:
        sources: directories of any format, folders of them, `release/sae_id` of sae-lens, or hub
            ids `owner/repo@revision/folder`.
        lm: the model; None: not checked.
        same_model: whether the SAEs must have been trained on this model. Otherwise it is enough
            that their width fits.

    Raises UserError for a source that holds no SAE or cannot be read, two SAEs of the same id, or
    an SAE that does not fit.
    """
    listed = [sources] if isinstance(sources, str) else sources
    saes = [sae for source in listed for sae in _read(str(source))]
    check_together(saes, lm, same_model=same_model)
    return saes


def check_together(
    saes: Sequence[SAE], lm: LanguageModel | None = None, *, same_model: bool = True
) -> None:
    """Raise UserError for two SAEs of the same id or place, and for one that does not fit."""
    known: set[str] = set()
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
        known.add(sae.id)
        if lm is not None:
            if same_model:
                _check_model(sae, lm)
            _check_width(sae, lm)


def _read(source: str) -> list[SAE]:
    """The SAEs of a source, at least one."""
    if not source.strip():
        raise UserError(f"a source of SAEs is empty; {_GIVE}")
    path = user_path(source)
    if any(len(os.fsencode(part)) > _NAME_BYTES for part in path.parts):
        raise UserError(
            f"{source[:40]}... does not exist: a path component exceeds {_NAME_BYTES} bytes; "
            f"{_GIVE}"
        )
    if path.is_dir() or detect_format(path):
        root, load = path, releases.read_place
    else:
        _check_not_local(path, source)
        if releases.names_release(source):
            return [releases.read(source, _safe_name(source))]
        repo, revision, folder = hub.parse(source)
        snapshot, root = hub.download(repo, revision, folder)
        load = partial(_read_snapshot, repo, snapshot)
    places = find(root)
    if not places:
        raise UserError(f"{source} holds no SAE; {_GIVE}")
    return [load(place) for place in places]


def _check_not_local(path: Path, source: str) -> None:
    """Raise UserError for a source that looks like a path; no SAE was found at it."""
    broken = [p for p in (path, *path.parents) if p.is_symlink() and not p.exists()]
    if broken:
        raise UserError(f"{source} cannot be read: the link {broken[0]} is broken; {_GIVE}")
    if path.exists() or source.startswith((".", "/", "~")):
        kind = "is not a directory" if path.exists() else "does not exist"
        raise UserError(f"{source} {kind}; {_GIVE}")


def _read_snapshot(repo: str, snapshot: Path, path: Path) -> SAE:
    """Read an SAE of a hub repository. Its id includes the name of the repository."""
    sae = releases.read_place(path)
    place = path.relative_to(snapshot).as_posix()
    name = _safe_name("/".join([repo.partition("/")[2], place]))
    source = f"{repo}@{snapshot.name}" + ("" if place == "." else f"/{place}")
    return replace(sae, id=sae_name(name, sae.site), record={**sae.record, "source": source})


def _safe_name(source: str) -> str:
    return re.sub(r"[^\w.@=+,-]+", "-", source).strip("-.")


def _check_width(sae: SAE, lm: LanguageModel) -> None:
    """Raise UserError if the site has another width."""
    width = site_width(lm, lm.site(sae.site))
    if width != sae.d_in:
        raise UserError(
            f"the SAE {sae.id} reads vectors of {sae.d_in}, but {sae.site} of {lm.name} has {width}"
        )


def _check_model(sae: SAE, lm: LanguageModel) -> None:
    """Raise UserError if an SAE is known to be trained on another model.

    Fingerprints are compared if both are known, else names. A quantised copy of the right model is
    allowed, although its fingerprint differs: the fit check shows whether the SAE still fits.
    """
    model = sae.record.get("model") or {}
    name, here = str(model.get("name") or ""), _name_on_hub(lm)
    fingerprint = None if is_outdated(model.get("fingerprint")) else model.get("fingerprint")
    if fingerprint == lm.fingerprint or (not fingerprint and may_be_same(name, here)):
        return
    other = f"{name or 'another model'}, not on {lm.name}; give it that model"
    if name == lm.name or are_same(name, here):
        config = getattr(lm.model.config, "quantization_config", None)
        quantised = is_quantised(here) or config is not None
        if are_same(name, here) and is_quantised(name) != quantised:
            return
        kinds = "another revision, quantisation or fine-tune"
        other = f"other weights of {lm.name} ({kinds}); give it those"
    raise UserError(
        f"the SAE {sae.id} was trained on {other}, or allow another model (same_model=False)",
        "gate",
    )


def _name_on_hub(lm: LanguageModel) -> str:
    """The model's name on the hub; "" if unknown. The configuration in a directory may have it."""
    name = lm.name
    if os.path.exists(name):
        name = str(getattr(lm.model.config, "_name_or_path", ""))
    return "" if os.path.exists(name) else name
