"""SAEs by their names in sae-lens: `release/sae_id`."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from saefeat.dictionaries import SAE
from saefeat.io import UserError
from saefeat.sae import formats
from saefeat.sae.formats import sae_lens
from saefeat.sae.formats.values import complement, figures
from saefeat.sae.hub import download, hub_errors

# Formats that are read here, without sae-lens and its seven seconds of imports; its reader of
# sparsify takes another site and forgets b_dec. None is sae-lens's own.
_OURS = (None, "sparsify", "gemma_2", "gemma_3", "dictionary_learning_1", "qwen_scope")
_CACHED = re.compile(r".*/models--([^/]+)/snapshots/[^/]+/(.+)")
_REFUSED = {
    "transcoder": "a transcoder",
    "temporal": "a temporal SAE",
    "hook_z": "of attention heads",
}


@dataclass(frozen=True)
class _Entry:
    """A row of the registry: where an SAE lies, in which format, and what its files do not say."""

    repo: str
    folder: str
    form: str | None
    model: str
    scaling: float | None
    overrides: dict[str, Any]
    stated: dict[str, float]


def names_release(source: str) -> bool:
    """Whether a source starts with a release of the registry."""
    return source.partition("/")[0] in _releases()


@cache
def _releases() -> dict[str, Any]:
    """The registry, read without importing sae-lens."""
    import yaml

    found = importlib.util.find_spec("sae_lens")
    if found is None or not found.submodule_search_locations:
        return {}
    path = Path(found.submodule_search_locations[0]) / "pretrained_saes.yaml"
    return yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _entry(source: str) -> _Entry:
    release, _, name = source.partition("/")
    about = _releases()[release]
    rows = {row["id"]: row for row in about["saes"]}
    if name not in rows:
        some = ", ".join(f"{release}/{row}" for row in list(rows)[:3])
        raise UserError(
            f"{source} names no SAE of the release {release}; name one of its {len(rows)}, such as {some}"
        )
    return _row(about, rows[name])


def _row(about: dict[str, Any], row: dict[str, Any]) -> _Entry:
    stated = figures(
        fvu=complement(row.get("variance_explained")), l0=row.get("l0", row.get("expected_l0"))
    )
    return _Entry(
        about["repo_id"],
        str(row["path"]),
        about.get("conversion_func"),
        about["model"],
        row.get("norm_scaling_factor"),
        about.get("config_overrides") or {},
        stated,
    )


def read_place(directory: Path) -> SAE:
    """The SAE of a directory; of one in the hub's cache, with what only the registry knows of that place.

    So a hub id, and the path that artefacts record of it, give the same SAE as its name in
    sae-lens.
    """
    match = _CACHED.fullmatch(directory.as_posix())
    rows = [
        (about, row)
        for about in _releases().values()
        if match and about["repo_id"] == match[1].replace("--", "/")
        for row in about["saes"]
        if row["path"] == match[2]
    ]
    return _told(_row(*rows[0]), directory) if rows else formats.read(directory)


def _told(entry: _Entry, directory: Path) -> SAE:
    """The SAE of a directory, with what a row says of it."""
    return _named(formats.read(directory, entry.overrides, entry.scaling), entry)


def _named(sae: SAE, entry: _Entry) -> SAE:
    model = sae.record.get("model") or {}
    sae.record["model"] = {**model, "name": model.get("name") or entry.model}
    sae.record = {**entry.stated, **sae.record}
    return sae


def read(source: str) -> SAE:
    """The SAE of a `release/sae_id`; raises UserError for one that is not there or has no form here."""
    entry = _entry(source)
    reason = next((why for name, why in _REFUSED.items() if name in (entry.form or "")), None)
    if reason:
        raise UserError(
            f"{source} is {reason}, which cannot be read; choose an SAE of whole vectors"
        )
    if entry.form in _OURS:
        sae = _told(entry, download(entry.repo, None, entry.folder)[1])
    else:
        sae = _named(_by_sae_lens(source), entry)
    sae.record["path"] = (
        source  # reading the files alone would leave out what only the registry knows
    )
    return sae


def _by_sae_lens(source: str) -> SAE:
    """Formats of one release each, converted by sae-lens."""
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
    return sae_lens.convert(theirs.cfg.to_dict(), theirs.state_dict(), source, source)
