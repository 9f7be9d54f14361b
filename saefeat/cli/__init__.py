"""Command line: parses and checks input, and calls one function of the library.

Commands import the library when they are called, so that `--help` does not wait for torch.
"""

from __future__ import annotations

import signal
import sys
import time
import warnings
from typing import Any

import typer

from saefeat.cli import (
    compare,
    corpus,
    export,
    labels,
    lid,
    rank,
    run,
    sets,
    sites,
    statistics,
    steer,
    train,
)
from saefeat.cli.common import say
from saefeat.cli.failures import describe_failure

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find, rank and use the language features inside a language model.",
)
app.command()(run.demo)
app.command()(run.run)
app.command()(run.report)
app.command()(run.fetch)
app.command()(train.train)
app.command()(statistics.collect)
app.command()(statistics.merge)
app.command()(rank.rank)
app.command()(sets.select)
app.command()(sets.overlap)
app.command()(compare.compare)
app.command()(sites.sites)
app.command()(labels.labels)
app.command()(export.export)
app.add_typer(corpus.app, name="corpus")
app.add_typer(lid.app, name="lid")
app.add_typer(steer.app, name="steer")


def main() -> None:
    """Run the command that `sys.argv` names. Failures become the exit codes of the contract."""
    # A cluster stops jobs with SIGTERM: treat it as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            if app(standalone_mode=False) == 130:  # what typer makes of Ctrl-C
                raise KeyboardInterrupt
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, typer.Exit):
            sys.exit(error.exit_code)
        if show := getattr(error, "show", None):  # an error of typer in parsing
            show()
            sys.exit(2)
        command = typer.main.get_command(app)
        failure = describe_failure(error, command, sys.argv[1:], time.monotonic() - started)
        if failure is None:
            raise
        say(f"saefeat: {failure.message}")
        sys.exit(failure.code)


def _show_warning(message: Warning | str, *_args: Any, **_options: Any) -> None:
    say(f"warning: {message}")
