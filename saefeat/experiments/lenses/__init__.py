"""Lenses: what the residual stream holds, layer by layer.

Each kind is an experiment with a file of its own, `RUN/experiments/lens-KIND.json`; keywords in
translations of programs are in `lens-programs.json`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from saefeat.artefacts.experiments import Experiment
from saefeat.config import LENSES, Decoding, LensConfig
from saefeat.experiments.frame import carry_out
from saefeat.experiments.lenses import tokens
from saefeat.experiments.lenses.alignment import alignment
from saefeat.experiments.lenses.bench import LensBench, NotApplicable, Prepared
from saefeat.experiments.lenses.probe import probe
from saefeat.experiments.lenses.programs import program_keywords
from saefeat.experiments.lenses.top import TopTokens
from saefeat.experiments.lenses.words import word_probabilities
from saefeat.io import UserError
from saefeat.run.opened import OpenRun

_ATTRIBUTIONS = {
    "languages": tokens.languages,
    "scripts": tokens.scripts,
    "keywords": tokens.keywords,
}
_OTHERS: dict[str, Callable[[LensBench], Prepared]] = {
    "words": word_probabilities,
    "alignment": alignment,
    "probe": probe,
}
# Fields of the configuration that are for one kind alone; who gives one asks for that kind.
_INPUT = {
    "words": "words",
    "keywords": "keywords",
    "programming": "keywords",
    "programs": "keywords",
    "parallel": "alignment",
}


def lens(
    opened: OpenRun, config: LensConfig, decoding: Decoding, out: Path | None = None
) -> list[Experiment]:
    """Look through lenses of several kinds, and return what each has measured.

    The input of all kinds is checked before the first is measured. Where no kinds are asked for,
    those that the run does not allow are left out, and `say` tells why. A kind whose own input is
    given is asked for.

    Args:
        decoding: how text is generated, where places in generated text are decoded.
        out: file of the result, for one kind; default in the run.

    Raises:
        UserError: there is no such kind or layer, a file cannot be used, a kind that is asked for
            cannot be applied, or an output is given for several kinds.
    """
    kinds = list(dict.fromkeys(config.kinds or LENSES))
    if unknown := [kind for kind in kinds if kind not in LENSES]:
        raise UserError(f"there is no lens {unknown[0]}; there are {', '.join(LENSES)}", "kinds")
    if out is not None and len(kinds) > 1:
        raise UserError("an output is for one kind of lens; name the kind", "kinds")
    prepared = _prepare(LensBench(opened, config, decoding), kinds)
    return [
        carry_out(
            opened,
            out or opened.files.experiment_file(each.question.name),
            each.question,
            each.parts,
            each.measure,
            each.summarize,
            each.begin,
            each.average,
        )
        for each in prepared
    ]


def _prepare(bench: LensBench, kinds: list[str]) -> list[Prepared]:
    """Check the input of all kinds."""
    _ = bench.sites  # a layer that does not exist is refused first
    given = {kind for name, kind in _INPUT.items() if getattr(bench.config, name) is not None}
    top, found, notes = TopTokens(bench), [], []
    for kind in kinds:
        try:
            if kind == "keywords" and bench.config.programs is not None:
                found.append(program_keywords(bench))
            elif kind in _OTHERS:
                found.append(_OTHERS[kind](bench))
            else:
                found.append(tokens.decode_tokens(bench, top, _ATTRIBUTIONS[kind](bench)))
        except NotApplicable as reason:
            if bench.config.kinds or kind in given:
                raise
            notes.append(f"note: no lens for {kind}: {reason}")
    for note in notes:
        bench.opened.say(note)
    return found
