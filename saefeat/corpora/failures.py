"""Classify the errors of reading a source: whether to try again, and what the user has to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from saefeat.corpora.sources import Source
from saefeat.io import UserError, first_line

PAUSES = (1.0, 4.0, 15.0)  # seconds before each further attempt; the hub's client has its own too
_NO_ACCESS = (401, 403)
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
# By name, because installations differ in the clients below `datasets` (httpx, httpx2, aiohttp,
# urllib).
_CONNECTION_ERRORS = {
    "ConnectionError",
    "TimeoutError",
    "TransportError",
    "ClientConnectionError",
    "ClientPayloadError",
    "HTTPException",
    "URLError",
    "gaierror",
}


class StreamBroken(Exception):
    """A stream broke, and did not go on after several attempts; the cause is its last error."""


def is_local(error: BaseException) -> bool:
    """Whether this machine failed and not the source, such as a full disk."""
    local = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
    return any(isinstance(e, OSError) and e.errno in local for e in _chain(error))


def is_temporary(error: BaseException) -> bool:
    """Whether the network or the server failed, so that the same request may succeed later."""
    status = _status(error)
    return bool(_kinds(error) & _CONNECTION_ERRORS) if status is None else status in _TEMPORARY


def source_error(error: BaseException, source: Source, code: str) -> UserError:
    """The UserError for a source that cannot be read.

    `code` is that of the file's label; "" if the file holds several labels.
    """
    text = " ".join(str(e) for e in _chain(error))
    kinds, status, name = _kinds(error), _status(error), source.name
    if "scripts are no longer supported" in text:
        return UserError(
            f"{name} is read by its own script, which is not run; name a data set of plain files, "
            f"such as its converted branch (hub:{name}@refs/convert/parquet), or download it and "
            "give a local file"
        )
    gated = "GatedRepoError" in kinds or "gated dataset" in text
    if not gated and kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return UserError(f"{name} is not on the hub or is private; check the name or set HF_TOKEN")
    if gated or status in _NO_ACCESS:
        alternative = f", or use {source.alternative} instead" if source.alternative else ""
        return UserError(
            f"{name} is gated; accept its terms at {source.access_url or source.at} and set "
            f"HF_TOKEN (or run `hf auth login`){alternative}"
        )
    if "FileNotFoundError" in kinds or "valid data file" in text or status == 404:
        what = f"file for {code}" if code else "such file"
        return UserError(
            f"{name} has no {what} at {source.at}; check the labels, and whether its terms are "
            "accepted",
            "labels",
        )
    return UserError(f"{name} cannot be read ({first_line(error).rstrip('.')})")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and the errors that caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for part in _chain(error) for kind in type(part).__mro__}


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error of urllib, httpx or the hub's client, or in its causes."""
    for part in _chain(error):
        answer = getattr(part, "response", None)
        for holder, name in ((part, "code"), (part, "status"), (answer, "status_code")):
            if isinstance(status := getattr(holder, name, None), int):
                return status
    return None
