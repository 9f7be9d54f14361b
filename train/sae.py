"""Train SAEs on one process or many: `torchrun --nproc-per-node 8 train/sae.py CONFIG`.

CONFIG is a TOML or JSON file with the options of `saefeat train` as keys; see `train/README.md`.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from saefeat.cli.common import say
from saefeat.cli.failures import describe_failure
from saefeat.run.training import describe_training, forecast_job, place_rank, read_job, train_job
from saefeat.watch import Watch
from saefeat.world import LostRank, join, world_of_environment


class Stop:
    """Whether the process was asked to save and end: by SIGTERM or SIGUSR1, or by Ctrl-C."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __call__(self) -> bool:
        return self.asked


def main() -> None:
    """Read the configuration, connect the ranks, and train."""
    parser = argparse.ArgumentParser(description="Train SAEs on one process or many.")
    parser.add_argument("config", type=Path, help="TOML or JSON file with what is trained")
    parser.add_argument("--dry-run", action="store_true", help="print the forecast and stop")
    parser.add_argument("--ranks", type=int, help="processes of the forecast")
    words = parser.parse_args()
    stop, started = Stop(), time.monotonic()
    watch = None
    try:
        world = world_of_environment()
        job = read_job(words.config)
        if words.dry_run:
            if world.leads:
                forecast_job(job, words.ranks or world.size, say)
            return
        job, device = place_rank(job, world)
        store = join(world, device, job.ranks.timeout_seconds)
        watch = Watch(world, store, say)
        for sae in train_job(job, world, say, stop):
            if world.leads:
                print(f"{job.out / sae.id}: {describe_training(sae)}")
        watch.finish()
    except (Exception, KeyboardInterrupt) as error:
        fail(error, watch, time.monotonic() - started)


def fail(error: BaseException, watch: Watch | None, seconds: float) -> None:
    """Say what has failed, and end this process and those that work with it."""
    fields = [
        SimpleNamespace(name=name, opts=[name], secondary_opts=[], param_type_name="option")
        for name in getattr(error, "options", ())
    ]
    command = SimpleNamespace(params=fields, commands={})
    if isinstance(error, LostRank) and watch:
        found = watch.find_lost()
        watch.fail(f"sae.py: {found}; checkpoints are kept: start all ranks again to go on", 1)
    program = ["python", sys.argv[0]]
    failure = describe_failure(error, command, sys.argv[1:], seconds, program)
    message, code = failure or ("".join(traceback.format_exception(error)).rstrip(), 1)
    if watch is None:
        say(f"sae.py: {message}")
        sys.exit(code)
    watch.fail(f"sae.py: {message}", code)


if __name__ == "__main__":
    main()
