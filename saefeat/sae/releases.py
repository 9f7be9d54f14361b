"""SAEs by their names in sae-lens, `release/sae_id`, from the registry that sae-lens comes with.

The registry is read as a file, because importing sae-lens takes seconds. Some of what it says of an
SAE stands in no file of the SAE.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field, replace
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


@dataclass(frozen=True)
class _Entry:
    """An entry of the registry.

    Attributes:
        repo, folder: where the SAE lies on the hub.
        conversion: name of the conversion by which sae-lens reads it; None for its own format.
        model: the base model.
        scaling: factor of the vectors that it was trained on.
        overrides: of its configuration.
        stated: its FVU and L0.
    """

    repo: str
    folder: str
    conversion: str | None
    model: str
    scaling: float | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    stated: dict[str, float] = field(default_factory=dict)


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


def _find_entry(source: str) -> _Entry:
    release, _, name = source.partition("/")
    about = _releases()[release]
    rows = {row["id"]: row for row in about["saes"]}
    if name not in rows:
        some = ", ".join(f"{release}/{row}" for row in list(rows)[:3])
        raise UserError(
            f"{source} names no SAE of the release {release}; name one of its {len(rows)}, such as "
            f"{some}"
        )
    return _entry(about, rows[name])


def _entry(about: dict[str, Any], row: dict[str, Any]) -> _Entry:
    l0 = row.get("l0", row.get("expected_l0"))
    return _Entry(
        repo=about["repo_id"],
        folder=str(row["path"]),
        conversion=about.get("conversion_func"),
        model=about["model"],
        scaling=row.get("norm_scaling_factor"),
        overrides=about.get("config_overrides") or {},
        stated=figures(fvu=complement(row.get("variance_explained")), l0=l0),
    )


def read_place(path: Path) -> SAE:
    """The SAE at a path. For one in the hub's cache, what the registry says of it is added.

    So its name in sae-lens, its hub id and the path that artefacts record give the same SAE.
    """
    match = _CACHED.fullmatch(path.as_posix())
    if match:
        repo, folder = match[1].replace("--", "/"), match[2]
        for about in _releases().values():
            for row in about["saes"]:
                if about["repo_id"] == repo and row["path"] == folder:
                    return _read_files(_entry(about, row), path)
    return directories.read(path)


def _read_files(entry: _Entry, path: Path) -> SAE:
    """The SAE of downloaded files, with what an entry says of it."""
    reader = None
    if entry.conversion is None:
        reader = partial(sae_lens.read, overrides=entry.overrides, scaling=entry.scaling)
    return _with_entry(directories.read(path, reader), entry)


def _with_entry(sae: SAE, entry: _Entry) -> SAE:
    model = sae.record.get("model") or {}
    named = {**model, "name": model.get("name") or entry.model}
    return replace(sae, record={**entry.stated, **sae.record, "model": named})


def read(source: str, identity: str) -> SAE:
    """The SAE of a `release/sae_id`, with an id. Raises UserError where it cannot be read."""
    entry = _find_entry(source)
    kinds = (kind for name, kind in _REFUSED.items() if name in (entry.conversion or ""))
    if kind := next(kinds, None):
        raise UserError(f"{source} is {kind}, which cannot be read; choose an SAE of whole vectors")
    if any(entry.conversion in form.conversions for form in FORMATS.values()):
        sae = _read_files(entry, download(entry.repo, None, entry.folder)[1])
    else:
        sae = _with_entry(_convert(source), entry)
    # The files alone would leave out what only the registry says.
    return replace(sae, id=identity, record={**sae.record, "path": source})


def _convert(source: str) -> SAE:
    """Let sae-lens read an SAE whose format is used by one release."""
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
