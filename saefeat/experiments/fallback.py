"""Progressive deactivation: which language the model falls back to as units are switched off.

Gurgurov et al., arXiv 2507.22608, fallback analysis. The units of more and more labels are set to a
constant, and the languages of the continuations are counted after each step.

The paper continues 70 English questions in the frame "Q: ...A: ", greedily, with a repetition
penalty of 1.1 and 128 new tokens. A continuation ends before "\\nQ:" or "\\nA:", and one without
text counts as unknown. The defaults here are other prompts without a frame, sampled and shorter,
without a penalty and without stops. A frame is written into a file of prompts; `stops` ends the
texts, and the language, the perplexity and distinct3 are of what stands before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from saefeat.artefacts.experiments import Experiment, Row
from saefeat.config import CONSTANT, Decoding, FallbackConfig
from saefeat.experiments.frame import Question, carry_out
from saefeat.experiments.prompts import read_prompts
from saefeat.experiments.units import UnitBench, UnitSet
from saefeat.generation import encode_prompts
from saefeat.io import UserError, fingerprint
from saefeat.labels import fasttext_code
from saefeat.run.chosen import growing, random_growing
from saefeat.run.grids import english_prompts
from saefeat.run.opened import OpenRun
from saefeat.run.steer import Bench, find_label
from saefeat.steering import CannotSteer, Change, hold

NAME = "fallback"
UNKNOWN = "unknown"  # what an empty continuation counts as
_PUBLISHED = ("en", "fr", "es", "it", "pt", "ru", "de", "ar", "zh", "ko", "ja")


def fallback(
    opened: OpenRun, config: FallbackConfig, decoding: Decoding, out: Path | None = None
) -> Experiment:
    """Switch off the units of one label after the other; see `saefeat.experiments`.

    Rows have the columns units, step (number of labels whose units are off), off (the last of
    them), count (units that are off), judged (a language), share (of the continuations),
    perplexity and distinct3 (of the step). The summary names the most frequent language of each
    step. The random units of a step are as many as those that they control, and keep those of the
    steps before.

    Raises UserError for an unknown label, an empty stop or a file of prompts that cannot be used,
    and CannotSteer where there are no prompts.
    """
    labels = opened.corpus.labels
    # A shell passes a new line as it is written, backslash and n.
    stops = tuple(stop.replace("\\n", "\n") for stop in config.stops)
    if "" in stops:
        raise UserError("a stop is empty, and would end every text; give it some text", "stops")
    bench = Bench(opened, labels[0], decoding, config.repetition_penalty, stops)
    order = _order(opened, config.order)
    if config.prompt_file is not None:
        if config.source is not None:
            raise UserError("give a file of prompts or a label of prompts, not both", "prompt_file")
        path, new = Path(config.prompt_file), decoding.max_new_tokens
        prompts = read_prompts(opened, path, config.prompts, new)
    elif config.source is None:
        texts = english_prompts()[: config.prompts]
        prompts = encode_prompts(opened.lm, texts, decoding.max_new_tokens)
    else:
        source = find_label(opened, config.source, "source")
        prompts = bench.beginnings(source, config.prompts, "source")
    units = UnitBench(opened)
    steps = [replace(x, chosen=growing(x.chosen, order)) for x in units.named(config.units)]
    sets = units.with_twins(steps, random_growing)
    if not any(each.count(label) for each in sets for label in order):
        raise CannotSteer(f"none of {', '.join(order)} has units to switch off", "units")
    question = Question(
        NAME,
        "Fallback: languages of the continuations as the units of more labels are off",
        {
            **asdict(config),
            "order": order,
            "stops": stops,
            "sets": units.describe(sets),
            "decoding": asdict(decoding),
            "prompt_fingerprint": fingerprint(prompts),
        },
        [{"kind": "lines", "x": "step", "y": "judged", "value": "share", "panels": ["units"]}],
    )
    by_name = {each.name: each for each in sets}

    def measure(name: str) -> list[Row]:
        return _measure(bench, units, by_name[name], order, prompts, config.deactivate)

    out = out or opened.files.experiment_file(NAME)
    return carry_out(opened, out, question, list(by_name), measure, partial(_summarize, order))


def _order(opened: OpenRun, asked: Sequence[str] | None) -> list[str]:
    """The labels asked for; default those of the paper that the run has, then its others."""
    if asked is not None:
        return list(dict.fromkeys(find_label(opened, label, "order") for label in asked))
    place = {code: i for i, code in enumerate(_PUBLISHED)}
    labels = opened.corpus.labels
    return sorted(labels, key=lambda label: place.get(fasttext_code(label) or "", len(place)))


def _measure(
    bench: Bench,
    units: UnitBench,
    chosen: UnitSet,
    order: Sequence[str],
    prompts: Sequence[Sequence[int]],
    value: float,
) -> list[Row]:
    """The rows of all steps of a growing set of units; step 0 is the unedited model."""
    steps: list[tuple[str, int, dict[str, list[Change]]]] = [("", 0, {})]
    for label in order:
        changes = units.each(chosen, label, lambda d, some: hold(d, some, value))
        steps.append((label, chosen.count(label), changes))
    every = [changes for *_, changes in steps]
    rows: list[Row] = []
    measured = bench.measure_changes(every, prompts, [1.0], CONSTANT)
    for step, ((label, count, _), (found,)) in enumerate(zip(steps, measured, strict=True)):
        judged = Counter(name or UNKNOWN for name in found.judged)
        figures = found.summary(label)
        rows += [
            {
                "units": chosen.name,
                "step": step,
                "off": label,
                "count": count,
                "judged": name,
                "share": times / len(found.judged),
                "perplexity": figures["perplexity"],
                "distinct3": figures["distinct3"],
            }
            for name, times in judged.most_common()
        ]
    return rows


def _summarize(order: Sequence[str], rows: list[Row]) -> list[Row]:
    """Of each set and step: the most frequent language, and the share of labels that are off."""
    found: list[Row] = []
    for units, step in dict.fromkeys((row["units"], row["step"]) for row in rows):
        here = [row for row in rows if (row["units"], row["step"]) == (units, step)]
        off = {*order[: int(step or 0)]}
        still = sum(float(row["share"] or 0) for row in here if row["judged"] in off)
        kept = ("units", "step", "off", "count", "judged", "share")
        first = {name: here[0][name] for name in kept}
        found.append({**first, "off_share": still, "perplexity": here[0]["perplexity"]})
    return found
