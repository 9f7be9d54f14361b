"""What the user reads when a command fails, and the exit code.

2: bad input. 1: the run itself failed, and its state is kept. 130: interrupted, and its state is
kept. After 1 and 130 the command that resumes is printed. Any other error is a bug and is raised.
"""

from __future__ import annotations

import errno
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import typer

from saefeat.io import RunFailed, UserError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_NO_ACCESS = (errno.EACCES, errno.EROFS, errno.EPERM)
_NO_PLACE = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)


class Failure(NamedTuple):
    message: str
    code: int


def describe_failure(
    error: BaseException,
    app: Any,
    words: Sequence[str],
    seconds: float,
    program: Sequence[str] = ("saefeat",),
) -> Failure | None:
    """The message and the exit code for an error; None for a bug.

    `app` is the click command that ran for `seconds`, `words` its line after the program's name.
    """
    resume = f"run: {shlex.join([*program, *words])}"
    if isinstance(error, UserError):
        return Failure(f"{error}{''.join(_remedies(error, app, words))}", 2)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Failure(f"interrupted after {seconds:.0f} s; to go on, {resume}", 130)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Failure(f"out of memory; give it more, or less to do at once, then {resume}", 1)
    if isinstance(error, RunFailed):
        remedy = f"remove the cause (another dtype, intact weights), then {resume}"
        return Failure(f"{error}; finished parts are kept; {error.remedy or remedy}", 1)
    if _is_full(error):
        reason = getattr(error, "strerror", None) or error
        return Failure(f"cannot write ({reason}); make room, then {resume}", 1)
    if isinstance(error, OSError) and error.errno in _NO_ACCESS + _NO_PLACE:
        reason = f"{error.filename or ''} ({error.strerror})"
        return Failure(f"cannot write {reason}; choose another place", 2)
    return None


def _is_full(error: BaseException) -> bool:
    # An error of safetensors has the system's error number in its text only.
    in_words = any(f"os error {number})" in str(error) for number in _NO_ROOM)
    return in_words or (isinstance(error, OSError) and error.errno in _NO_ROOM)


def _remedies(error: UserError, app: Any, words: Sequence[str]) -> Iterator[str]:
    """What would help, for the end of the message: flags, and the command to run first."""
    yield flags_of(error, _find(app, words))
    if error.command:
        required = [p for p in _find(app, error.command.split()).params if p.required]
        options = [f"{_flag(p)} {_given(_flag(p), words) or p.name.upper()}" for p in required]
        yield f"; run `{' '.join(['saefeat', error.command, *options])}` first"


def flags_of(error: UserError, command: Any) -> str:
    """The flags of a command for the parameters that an error names, as " (--out)"."""
    parameters = {parameter.name: parameter for parameter in command.params}
    flags = [_flag(parameters[name]) for name in error.options if name in parameters]
    return f" ({', '.join(filter(None, flags))})" if any(flags) else ""


def _find(command: Any, words: Sequence[str]) -> Any:
    """The subcommand that the words name."""
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    return command


def _flag(parameter: Any) -> str:
    """How a parameter is changed on the command line; empty for an argument."""
    if parameter.param_type_name != "option":
        return ""
    off = parameter.secondary_opts  # of a flag that is on by default
    return off[0] if off and parameter.default else parameter.opts[0]


def _given(flag: str, words: Sequence[str]) -> str:
    """The value of an option on this command line, quoted for a shell.

    Two commands never write to one output.
    """
    if flag == "--out":
        return ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == flag:
            return shlex.quote(following)
        if word.startswith(f"{flag}="):
            return shlex.quote(word.partition("=")[2])
    return ""
