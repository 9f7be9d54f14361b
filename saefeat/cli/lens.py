"""`saefeat lens`."""

from __future__ import annotations

from typing import Annotated

from saefeat.cli.common import Fields, Result, Run, load_run, print_experiment, with_options
from saefeat.config import Decoding, LensConfig


@with_options
def lens(
    run: Run,
    config: LensConfig,
    decoding: Annotated[Decoding, Fields("max_new_tokens", "temperature", "seed")],
    out: Result = None,
) -> None:
    """Look into the residual stream layer by layer: languages, words, alignment, a probe."""
    from saefeat.experiments.lenses import lens

    for result in lens(load_run(run), config, decoding, out):
        print_experiment(result)
