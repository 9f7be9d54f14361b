"""What a failure on the way to a source means: worth another try, or one sentence for the user."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from saefeat.corpora.recipes import Source

_BARRED = (401, 403)
_PASSING = (408, 425, 429, 500, 502, 503, 504)
# By name: the clients below `datasets` differ from one installation to the next (httpx, httpx2,
# aiohttp, urllib).
_LOST = {
    "ConnectionError",
    "TimeoutError",
    "TransportError",
    "ClientConnectionError",
    "ClientPayloadError",
    "HTTPException",
    "URLError",
    "gaierror",
}


def is_full_disk(error: BaseException) -> bool:
    """Whether this machine, not the source, is what failed."""
    return any(
        isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
        for e in _chain(error)
    )


def is_passing(error: BaseException) -> bool:
    """Whether the network or the server failed, so that the same request may do later."""
    status = _status(error)
    return bool(_kinds(error) & _LOST) if status is None else status in _PASSING


def sentence(error: BaseException, source: Source, code: str) -> str:
    """What is wrong with a source for good, and how to mend it."""
    told = " ".join(str(e) for e in _chain(error))
    kinds = _kinds(error)
    if "scripts are no longer supported" in told:
        return (
            f"{source.name} is read by a script of its own, which is not run: name a data set of plain files, such as "
            f"its converted branch (hub:{source.name}@refs/convert/parquet), or download it and give a local file"
        )
    gated = "GatedRepoError" in kinds or "gated dataset" in told
    if not gated and kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return f"{source.name} is not on the hub, or is private: check the name, or set HF_TOKEN"
    if gated or _status(error) in _BARRED:
        instead = f", or take {source.instead} in its place" if source.instead else ""
        return (
            f"{source.name} is gated: accept its terms at {source.gate or source.at} and set HF_TOKEN (or run "
            f"`hf auth login`){instead}"
        )
    if "FileNotFoundError" in kinds or "valid data file" in told or _status(error) == 404:
        what = f"a file for {code}" if code else "the file"
        return f"{source.name} does not have {what} at {source.at}; check --labels, or that its terms are accepted"
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return f"{source.name} cannot be read ({first})"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for part in _chain(error) for kind in type(part).__mro__}


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error of urllib, httpx or the hub's client, or in what it came from."""
    for part in _chain(error):
        answer = getattr(part, "response", None)
        told = (
            getattr(part, "code", None),
            getattr(part, "status", None),
            getattr(answer, "status_code", None),
        )
        for status in told:
            if isinstance(status, int):
                return status
    return None
