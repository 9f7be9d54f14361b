"""SAEs of the hub: `owner/repo[@revision][/folder]`, downloaded into the hub's own cache.

Without a network they are read from the cache. The list of a repository's weight files is kept
there too, so that a repository that was fetched in part is not taken for the whole.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from saefeat.io import UserError, first_line, is_disk_full, kept_json, write_json
from saefeat.sae.formats import FORMATS
from saefeat.sae.formats.directories import is_shared_file

_SOURCE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<folder>.+?))?/?")
_WEIGHTS = (".safetensors", ".npz", ".pt")
# SAEs fetched for one source. A repository of all widths and sparsities can hold terabytes.
_MOST = 64
_OFFLINE = "and the hub cannot be reached; go online, without HF_HUB_OFFLINE"


def parse(source: str) -> tuple[str, str | None, str]:
    """Repository, revision and folder (or ""). Raises UserError for anything but a hub id."""
    match = _SOURCE.fullmatch(source)
    if not match or ".." in source.split("/"):
        raise UserError(
            f"{source} does not exist here, and is not a hub id (owner/repo@revision/folder)"
        )
    return match["repo"], match["revision"], match["folder"] or ""


def download(repo: str, revision: str | None, folder: str) -> tuple[Path, Path]:
    """Download SAEs; return the snapshot of the repository and the folder in it.

    With HF_HUB_OFFLINE, or if the hub cannot be reached, the cache is used.

    Raises UserError if the source does not exist, is not open to the user or holds too many SAEs,
    or if the cache lacks some of them.
    """
    from huggingface_hub import constants, snapshot_download

    patterns = _patterns(folder)
    name = f"{repo}/{folder}".rstrip("/")
    with hub_errors(repo, revision):
        listed = _list_files(repo, revision)
        wanted = _places(listed or (), patterns)
        if len(wanted) > _MOST:
            raise UserError(
                f"{name} holds {len(wanted)} SAEs; name a folder in it, such as {repo}/{wanted[0]}"
            )
        snapshot = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    kept = snapshot.parent.parent / ".saefeat" / f"{snapshot.name}.json"  # goes with its repository
    if listed is None:
        listed = kept_json(kept).get("files")
    elif not kept.exists():
        with suppress(OSError, UserError):  # a cache that cannot be written
            write_json(kept, {"files": [name for name in listed if name.endswith(_WEIGHTS)]})
    _check_complete(snapshot, listed, patterns, folder, name)
    if not (snapshot / folder).exists():
        raise UserError(
            f"the hub repository {repo} has no SAE in the folder {folder}; see "
            f"{constants.ENDPOINT}/{repo}/tree/{revision or 'main'}"
        )
    return snapshot, snapshot / folder


def _patterns(folder: str) -> list[str]:
    """Patterns of the files of the SAEs at or below a folder, in all formats."""
    start = f"{folder}/" if folder else ""
    names = sorted({name for form in FORMATS.values() for name in form.files})
    patterns = [f"{start}{deeper}{name}" for name in names for deeper in ("", "*/")]
    parents = {form.parent_file for form in FORMATS.values() if form.parent_file}
    parts = folder.split("/")
    for i in range(len(parts)):
        patterns += ["/".join([*parts[:i], name]) for name in sorted(parents)]
    if folder.endswith(_WEIGHTS):  # a single file
        patterns.append(folder)
    return patterns


def _list_files(repo: str, revision: str | None) -> list[str] | None:
    """The names of a repository's files; None if the hub cannot be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # pyright: ignore[reportPrivateImportUsage]

    try:
        siblings = HfApi().model_info(repo, revision=revision).siblings or []
    except (HTTPError, OfflineModeIsEnabled):
        return None  # the download looks in the cache and raises the error
    return [file.rfilename for file in siblings]


def _check_complete(
    snapshot: Path, listed: list[str] | None, patterns: list[str], folder: str, name: str
) -> None:
    """Raise UserError if the cache lacks SAEs that are wanted.

    If no list of the repository's files is known, a file of the format may list the SAEs.
    """
    if listed is None:
        below = f"{folder}/" if folder else ""
        named = [place for form in FORMATS.values() for place in form.listed(snapshot)]
        wanted = [place for place in named if f"{place}/".startswith(below)]
    else:
        wanted = _places(listed, patterns)
    inside = "**/*" if listed is None else "*"
    lacking = [place for place in wanted if not _has_weights(snapshot / place, inside)]
    if lacking and len(lacking) < len(wanted):
        raise UserError(
            f"{len(lacking)} of the {len(wanted)} SAEs of {name}, the first being "
            f"{lacking[0] or 'that of the repository itself'}, are not in the hub's cache; go "
            "online, without HF_HUB_OFFLINE, or name those that are"
        )
    if lacking or (listed is None and not (snapshot / folder).exists()):
        raise UserError(f"{name} is not in the hub's cache, {_OFFLINE}")


def _places(names: Iterable[str], patterns: list[str]) -> list[str]:
    """Places of SAEs among the files of a repository: folders, and files that share a folder."""
    found = set()
    for name in names:
        if name.endswith(_WEIGHTS) and any(fnmatch.fnmatch(name, p) for p in patterns):
            folder, _, file = name.rpartition("/")
            found.add(name if is_shared_file(file) else folder)
    return sorted(found)


def _has_weights(place: Path, inside: str) -> bool:
    return place.is_file() or any(path.suffix in _WEIGHTS for path in place.glob(inside))


@contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn the errors of a download into UserErrors; a full disk stays an OSError."""
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        yield
    except (HTTPError, HFValidationError, EntryNotFoundError, OSError) as error:
        if is_disk_full(error):
            raise
        raise UserError(_explain(error, repo, revision)) from error


def _explain(error: Exception, repo: str, revision: str | None) -> str:
    from huggingface_hub import constants, errors

    absent = f"{repo} is neither a directory here nor"
    known: dict[type[Exception], str] = {  # a class before those that it is derived from
        errors.GatedRepoError: f"the hub repository {repo} is gated; accept its terms at "
        f"{constants.ENDPOINT}/{repo} and log in with a token (HF_TOKEN)",
        errors.RevisionNotFoundError: f"the hub repository {repo} has no revision {revision}; name "
        "a branch, tag or commit",
        errors.RepositoryNotFoundError: f"{absent} a repository of the hub that is open to you; "
        "check the name, or log in with a token (HF_TOKEN)",
        errors.LocalEntryNotFoundError: f"{absent} complete in the hub's cache, {_OFFLINE}",
        errors.OfflineModeIsEnabled: f"{absent} complete in the hub's cache, {_OFFLINE}",
    }
    for kind, message in known.items():
        if isinstance(error, kind):
            return message
    return f"cannot download {repo} from the hub ({first_line(error)}); try again"
