"""SAEs of the hub: `owner/repo[@revision][/folder]`, downloaded into the hub's own cache, or found there offline."""

from __future__ import annotations

import errno
import fnmatch
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from saefeat.io import UserError, kept_json, make_dir, write_json
from saefeat.sae.formats import FILES, sparsify

_SOURCE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<folder>.+?))?/?")
_WEIGHTS = (".safetensors", ".npz", ".pt")
_MANY = (
    64  # SAEs fetched for one source; a repository of all widths and sparsities can hold terabytes
)


def parse(source: str) -> tuple[str, str | None, str]:
    """Repository, revision and folder (or ""); raises UserError for what is no hub id."""
    match = _SOURCE.fullmatch(source)
    if not match or ".." in source.split("/"):
        raise UserError(
            f"{source} does not exist here, and is no hub id (owner/repo@revision/folder)"
        )
    return match["repo"], match["revision"], match["folder"] or ""


def download(repo: str, revision: str | None, folder: str) -> tuple[Path, Path]:
    """The snapshot of a repository, and in it the folder with all of its SAEs.

    With HF_HUB_OFFLINE, and where the hub cannot be reached, what the cache has. Raises UserError
    for a repository, revision or folder that is not there or not open to the user, for one with too
    many SAEs, and for one of whose SAEs the cache lacks some.
    """
    from huggingface_hub import constants, snapshot_download

    start = f"{folder}/" if folder else ""
    patterns = [f"{start}{deeper}{name}" for name in FILES for deeper in ("", "*/")]
    parts = folder.split("/")
    patterns += [
        "/".join([*parts[:i], "config.json"]) for i in range(len(parts))
    ]  # sparsify's, of the whole run
    patterns += [folder] * folder.endswith(_WEIGHTS)
    whole = f"{repo}/{folder}".rstrip("/")
    with hub_errors(repo, revision):
        told = _files(repo, revision)
        wanted = _saes(told or (), patterns)
        if len(wanted) > _MANY:
            raise UserError(
                f"{whole} holds {len(wanted)} SAEs; name a folder in it, such as {repo}/{wanted[0]}"
            )
        snapshot = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    _check_whole(snapshot, told, patterns, folder, whole)
    if not (snapshot / folder).exists():
        raise UserError(
            f"the hub repository {repo} has no SAE in the folder {folder}; see "
            f"{constants.ENDPOINT}/{repo}/tree/{revision or 'main'}"
        )
    return snapshot, snapshot / folder


def _check_whole(
    snapshot: Path, told: list[str] | None, patterns: list[str], folder: str, whole: str
) -> None:
    """Raises UserError where the cache lacks SAEs: of those that the hub has told of, now or before, or a run names."""
    listing = (
        snapshot.parent.parent / ".saefeat" / f"{snapshot.name}.json"
    )  # leaves the cache with its repository
    if told is not None and not listing.exists():
        with suppress(OSError, UserError):  # a cache that is for reading alone
            make_dir(listing.parent)
            write_json(listing, {"files": [name for name in told if name.endswith(_WEIGHTS)]})
    known = kept_json(listing).get("files") if told is None else told
    listed = _hookpoints(snapshot, folder) if known is None else _saes(known, patterns)
    inside = "**/*" if known is None else "*"
    lacking = [place or "its own" for place in listed if not _is_here(snapshot / place, inside)]
    if lacking and len(lacking) < len(listed):
        raise UserError(
            f"{len(lacking)} of the {len(listed)} SAEs of {whole}, the first being {lacking[0]}, are not "
            "in the hub's cache; go online, without HF_HUB_OFFLINE, or name those that are"
        )
    if lacking or (known is None and not (snapshot / folder).exists()):
        raise UserError(
            f"{whole} is not in the hub's cache, and the hub cannot be reached; go online, without "
            "HF_HUB_OFFLINE"
        )


def _named(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _saes(names: Iterable[str], patterns: list[str]) -> list[str]:
    """The SAEs' folders of weights files, or the files of those that share a folder."""
    weights = [name for name in names if name.endswith(_WEIGHTS) and _named(name, patterns)]
    return sorted(
        {name if name.endswith(".sae.pt") else name.rpartition("/")[0] for name in weights}
    )


def _hookpoints(snapshot: Path, folder: str) -> list[str]:
    """Folders that a run of sparsify says it has, of those at or below a folder."""
    named = kept_json(snapshot / sparsify.RUN).get("hookpoints")
    found = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    return [name for name in found if not folder or f"{name}/".startswith(f"{folder}/")]


def _is_here(place: Path, inside: str) -> bool:
    return place.is_file() or any(path.suffix in _WEIGHTS for path in place.glob(inside))


def _files(repo: str, revision: str | None) -> list[str] | None:
    """The names of a repository's files; None where the hub cannot be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # pyright: ignore[reportPrivateImportUsage]

    try:
        siblings = HfApi().model_info(repo, revision=revision).siblings or []
    except (HTTPError, OfflineModeIsEnabled):
        return None  # the download finds it in the cache, or says why not
    return [file.rfilename for file in siblings]


@contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn the errors of a download into UserErrors of one sentence."""
    from huggingface_hub import constants, errors
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"the hub repository {repo} is gated; accept its terms at {constants.ENDPOINT}/{repo} and log "
            "in with a token (HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"the hub repository {repo} has no revision {revision}; name a branch, tag or commit"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{repo} is neither a directory here nor a repository of the hub that is open to you; check "
            "the name, or log in with a token (HF_TOKEN)"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UserError(
            f"{repo} is neither a directory here nor whole in the hub's cache, and the hub cannot be "
            "reached; go online, without HF_HUB_OFFLINE"
        ) from error
    except (HTTPError, errors.HFValidationError, errors.EntryNotFoundError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot download {repo} from the hub ({first}); try again") from error
