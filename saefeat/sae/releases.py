"""SAEs by their names in sae-lens, `release/sae_id`, from the registry that sae-lens comes with.

The registry is read as a file, because importing sae-lens takes seconds. It states facts about SAEs
that their own files lack.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from saefeat.dictionaries import SAE
from saefeat.io import UserError
from saefeat.sae.formats import FORMATS, directories, sae_lens
from saefeat.sae.formats.values import complement, figures
from saefeat.sae.hub import download, hub_errors

_CACHED = re.compile(r".*/models--([^/]+)/snapshots/[^/]+/(.+)")
_REFUSED = {
    "transcoder": "a transcoder",
    "temporal": "a temporal SAE",
    "hook_z": "of attention heads",
}


def names_release(source: str) -> bool:
    """Whether a source begins with a release of the registry."""
    return source.partition("/")[0] in _releases()


@cache
def _releases() -> dict[str, Any]:
    """The registry; empty where sae-lens is not installed."""
    import yaml

    found = importlib.util.find_spec("sae_lens")
    if found is None or not found.submodule_search_locations:
        return {}
    path = Path(found.submodule_search_locations[0]) / "pretrained_saes.yaml"
    return yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _find_entry(source: str) -> dict[str, Any]:
    release, _, name = source.partition("/")
    about = _releases()[release]
    rows = {row["id"]: row for row in about["saes"]}
    if name not in rows:
        some = ", ".join(f"{release}/{row}" for row in list(rows)[:3])
        raise UserError(
            f"{source} names no SAE of the release {release}; name one of its {len(rows)}, such as "
            f"{some}"
        )
    return {**rows[name], **about}


def read_place(path: Path) -> SAE:
    """Read the SAE at a path; if it is in the hub's cache, add what the registry states about it.

    So its name in sae-lens, its hub id and the path that artefacts record all give the same SAE.
    """
    match = _CACHED.fullmatch(path.as_posix())
    if match:
        repo, folder = match[1].replace("--", "/"), match[2]
        for about in _releases().values():
            for row in about["saes"]:
                if about["repo_id"] == repo and row["path"] == folder:
                    return _read_files({**row, **about}, path)
    return directories.read(path)


def _read_files(entry: dict[str, Any], path: Path) -> SAE:
    """Read downloaded files, and add what an entry of the registry states."""
    reader = None
    if entry.get("conversion_func") is None:  # the format of sae-lens
        overrides, scaling = entry.get("config_overrides"), entry.get("norm_scaling_factor")
        reader = partial(sae_lens.read, overrides=overrides, scaling=scaling)
    return _with_entry(directories.read(path, reader), entry)


def _with_entry(sae: SAE, entry: dict[str, Any]) -> SAE:
    """Add the base model and the stated figures that the SAE's own files lack."""
    l0 = entry.get("l0", entry.get("expected_l0"))
    stated = figures(fvu=complement(entry.get("variance_explained")), l0=l0)
    model = sae.record.get("model") or {}
    named = {**model, "name": model.get("name") or entry["model"]}
    return replace(sae, record={**stated, **sae.record, "model": named})


def read(source: str, identity: str) -> SAE:
    """Read a `release/sae_id` and name it `identity`. Raises UserError if it cannot be read."""
    entry = _find_entry(source)
    conversion = entry.get("conversion_func")
    for part, kind in _REFUSED.items():
        if part in (conversion or ""):
            raise UserError(
                f"{source} is {kind}, which cannot be read; choose an SAE of whole vectors"
            )
    if any(conversion in form.conversions for form in FORMATS.values()):
        sae = _read_files(entry, download(entry["repo_id"], None, str(entry["path"]))[1])
    else:
        sae = _with_entry(_convert(source), entry)
    # The path of the files alone would lose what only the registry states.
    return replace(sae, id=identity, record={**sae.record, "path": source})


def _convert(source: str) -> SAE:
    """Let sae-lens read an SAE in a format that only one release has."""
    release, _, name = source.partition("/")
    with hub_errors(source):
        from sae_lens import SAE as Theirs

        try:
            theirs = Theirs.from_pretrained(release, name, device="cpu", dtype="float32")
        except OSError:  # of the download
            raise
        except Exception as error:  # its readers check nothing, so damaged files raise anything
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(
                f"sae-lens cannot read {source} ({what}); clear it from the hub's cache"
            ) from error
    return sae_lens.convert(source, theirs.cfg.to_dict(), theirs.state_dict())
