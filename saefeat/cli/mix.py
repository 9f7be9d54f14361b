"""`saefeat mix`."""

from __future__ import annotations

from saefeat.cli.common import Result, Run, load_run, print_experiment, with_options
from saefeat.config import MixConfig


@with_options
def mix(run: Run, config: MixConfig, out: Result = None) -> None:
    """Mix texts word by word with another label, and see whose units fire, by rate and layer."""
    from saefeat.experiments.mixing import mix

    print_experiment(mix(load_run(run), config, out))
