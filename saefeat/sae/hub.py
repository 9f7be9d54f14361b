"""SAEs of the hub: `owner/repo[@revision][/folder]`, downloaded into the hub's own cache, or found there offline."""

from __future__ import annotations

import errno
import fnmatch
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saefeat.io import UserError
from saefeat.sae.formats import FILES

_SOURCE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<folder>.+?))?/?")
_WEIGHTS = (".safetensors", ".npz", ".pt")
_MANY = 64  # SAEs fetched for one source; a repository of all widths and sparsities can hold terabytes


def parse(source: str) -> tuple[str, str | None, str]:
    """Repository, revision and folder (or ""); raises UserError for what is no hub id."""
    match = _SOURCE.fullmatch(source)
    if not match or ".." in source.split("/"):
        raise UserError(f"{source} does not exist here, and is no hub id (owner/repo@revision/folder)")
    return match["repo"], match["revision"], match["folder"] or ""


def download(repo: str, revision: str | None, folder: str) -> tuple[Path, Path]:
    """The snapshot of a repository, and in it the folder with all of its SAEs.

    With HF_HUB_OFFLINE, and where the hub cannot be reached, what the cache has. Raises UserError for a repository,
    revision or folder that is not there or not open to the user, and for one with too many SAEs.
    """
    from huggingface_hub import constants, snapshot_download

    start = f"{folder}/" if folder else ""
    patterns = [f"{start}{deeper}{name}" for name in FILES for deeper in ("", "*/")]
    parts = folder.split("/")
    patterns += ["/".join([*parts[:i], "config.json"]) for i in range(len(parts))]  # sparsify's, of the whole run
    with hub_errors(repo, revision):
        _limit(repo, revision, folder, patterns)
        snapshot = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    if not (snapshot / folder).is_dir():
        raise UserError(f"the hub repository {repo} has no SAE in the folder {folder}; see "
                        f"{constants.ENDPOINT}/{repo}/tree/{revision or 'main'}")  # fmt: skip
    return snapshot, snapshot / folder


def _limit(repo: str, revision: str | None, folder: str, patterns: list[str]) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # pyright: ignore[reportPrivateImportUsage]

    try:
        siblings = HfApi().model_info(repo, revision=revision).siblings or []
    except (HTTPError, OfflineModeIsEnabled):
        return  # the download finds it in the cache, or says why not
    names = [file.rfilename for file in siblings]
    wanted = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    saes = sorted({name.rpartition("/")[0] for name in wanted if name.endswith(_WEIGHTS)})
    if len(saes) > _MANY:
        raise UserError(f"{repo}/{folder}".rstrip("/") + f" holds {len(saes)} SAEs; name a folder in it, "
                        f"such as {repo}/{saes[0]}")  # fmt: skip


@contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn the errors of a download into UserErrors of one sentence."""
    from huggingface_hub import constants, errors
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(f"the hub repository {repo} is gated; accept its terms at {constants.ENDPOINT}/{repo} and log "
                        "in with a token (HF_TOKEN)") from error  # fmt: skip
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"the hub repository {repo} has no revision {revision}; name a branch, tag or commit"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{repo} is neither a directory here nor a repository of the hub that is open to you; check "
                        "the name, or log in with a token (HF_TOKEN)") from error  # fmt: skip
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UserError(f"{repo} is neither a directory here nor whole in the hub's cache, and the hub cannot be "
                        "reached; go online, without HF_HUB_OFFLINE") from error  # fmt: skip
    except (HTTPError, errors.HFValidationError, errors.EntryNotFoundError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot download {repo} from the hub ({first}); try again") from error
