"""Command line: parses and checks input, and calls one function of the library.

Commands import the library when they are called, so that `--help` does not wait for torch.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from typing import Any

import typer

from saefeat.cli import (
    compare,
    corpus,
    export,
    labels,
    lens,
    lid,
    mix,
    rank,
    reproduce,
    run,
    sets,
    sites,
    statistics,
    steer,
    train,
)
from saefeat.cli.common import say
from saefeat.cli.ranks import STOPS, Ranks, launcher, leads, started_together
from saefeat.io import UserError

# A thread of libgomp that waits for others spins for milliseconds before it gives up its core. If
# other processes use the cores too, it takes them from the thread that it waits for. So it spins
# for a tenth of a millisecond. libgomp reads this when torch is imported, which commands do later.
SPINS = "3000"
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)

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
app.command()(mix.mix)
app.command()(reproduce.reproduce)
app.command()(sites.sites)
app.command()(labels.labels)
app.command()(lens.lens)
app.command()(export.export)
app.add_typer(corpus.app, name="corpus")
app.add_typer(lid.app, name="lid")
app.add_typer(steer.app, name="steer")


TOGETHER = ("collect",)  # commands that run on several processes


@app.callback()
def check_alone(context: typer.Context) -> None:
    """Refuse several processes of a command that runs on one; they would write over each other."""
    if started_together() and context.invoked_subcommand not in TOGETHER:
        if leads():
            raise UserError(
                f"`saefeat {context.invoked_subcommand}` runs on one process, without torchrun; "
                "`saefeat collect` and train/sae.py run on several"
            )
        sys.exit(2)


def main() -> None:
    """Run the command that `sys.argv` names. Failures become the exit codes of the contract."""
    # A cluster stops jobs with signals: treat them as Ctrl-C.
    for number in STOPS:
        signal.signal(number, signal.default_int_handler)
    ranks = Ranks("saefeat")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            if app(standalone_mode=False, obj=ranks) == 130:  # what typer makes of Ctrl-C
                raise KeyboardInterrupt
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, typer.Exit):
            sys.exit(error.exit_code)
        if show := getattr(error, "show", None):  # an error of typer in parsing
            if leads():
                show()
            sys.exit(2)
        ranks.fail(
            error,
            typer.main.get_command(app),
            sys.argv[1:],
            launcher(["saefeat"], ["-m", "saefeat"]),
        )


def _show_warning(message: Warning | str, *_args: Any, **_options: Any) -> None:
    if leads():
        say(f"warning: {message}")
