"""Train SAEs on one process or many: `torchrun --nproc-per-node 8 train/sae.py CONFIG`.

CONFIG is a TOML or JSON file with the options of `saefeat train` as keys; see `train/README.md`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from saefeat.cli.common import say
from saefeat.cli.ranks import PATIENCE, Ranks, launcher
from saefeat.run.training import describe_training, forecast_job, place_rank, read_job, train_job
from saefeat.world import world_of_environment


def main() -> None:
    """Read the configuration, connect the ranks, and train."""
    parser = argparse.ArgumentParser(description="Train SAEs on one process or many.")
    parser.add_argument("config", type=Path, help="TOML or JSON file with what is trained")
    parser.add_argument("--dry-run", action="store_true", help="print the forecast and stop")
    parser.add_argument("--ranks", type=int, help="processes of the forecast")
    words = parser.parse_args()
    if words.ranks is not None and words.ranks < 1:
        parser.error("--ranks should be at least 1")
    ranks = Ranks("sae.py")
    try:
        world = world_of_environment()
        job = read_job(words.config)
        if words.dry_run:
            if world.leads:
                local = os.environ.get("LOCAL_WORLD_SIZE", "")
                forecast_job(
                    job, words.ranks or world.size, say, int(local) if local.isdigit() else None
                )
            return
        job = place_rank(job, world)
        timeout = job.ranks.timeout_seconds
        # An exchange on GPUs, which waits in the driver, ends sooner than a wait counts as a hang.
        stop = ranks.connect(world, job.inputs.device, timeout, timeout + PATIENCE)
        for sae in train_job(job, world, say, stop):
            if world.leads:
                print(f"{job.out / sae.id}: {describe_training(sae)}")
        world.barrier()  # all have read the SAEs
        ranks.finish()
    except (Exception, KeyboardInterrupt) as error:
        ranks.fail(
            error, _keys(error), sys.argv[1:], launcher(["python", sys.argv[0]], [sys.argv[0]])
        )


def _keys(error: BaseException) -> Any:
    """A command whose options are called as the keys of a configuration that an error names."""
    fields = [
        SimpleNamespace(name=name, opts=[name], secondary_opts=[], param_type_name="option")
        for name in getattr(error, "options", ())
    ]
    return SimpleNamespace(params=fields, commands={})


if __name__ == "__main__":
    main()
