"""`steer matrix`: the perplexity change matrix. Edit each label's units, measure every label's text.

After `ppl.py` of SAE-LAPE (arXiv 2507.11230, its perplexity experiment), with medians and a
random-unit control.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from saefeat import steering
from saefeat.collection import working_bytes
from saefeat.corpora import TOKEN_LIMIT, first_by_hash
from saefeat.generation import perplexity, text_losses
from saefeat.io import SCHEMA, fingerprint, kept_json, make_dir, memory_limit, write_json
from saefeat.methods.feature_diffmean import feature_diffmean, mean_difference
from saefeat.run.opened import OpenRun as Setting
from saefeat.run.stages import same_threads
from saefeat.run.steer import random_units
from saefeat.statistics import Stats
from saefeat.steering import Change

EDITS = ("ablate", "amplify")
UNITS = ("features", "random")
TOP = 100  # features of a label at each SAE
_SEED = 23  # of the random units

Measures = dict[str, float]


def matrix(
    setting: Setting,
    out: Path,
    *,
    sentences: int = 100,
    edits: Sequence[str] = EDITS,
    top: int = TOP,
) -> dict[str, Any]:
    """Write the matrix to `out`; run again, it goes on with the label at which it was killed.

    With another number of threads, whose figures differ in bfloat16, it starts again.

    Args:
        sentences: texts of each label's test split that are measured.
        edits: `ablate` sets a label's features to zero, `amplify` doubles them.
        top: features of a label at each SAE: of low entropy, and highest above the mean of the
            other labels.

    All SAEs are edited together; raises UserError where their encoders do not fit in memory so.

    Returns the content of the file: baseline {label: measures}, interventions with rows {label:
    {label: measures}}; measures are nll_mean, nll_median (nats a token), perplexity_mean,
    perplexity_median over texts.
    """
    labels = list(setting.corpus.labels)
    texts = {label: some for label in labels if (some := _texts(setting, label, sentences))}
    if not texts:
        raise steering.CannotSteer("no label has a test text to measure; the corpus is too small")
    request = fingerprint(
        [
            setting.lm.fingerprint,
            setting.corpus.fingerprint,
            sentences,
            list(edits),
            top,
            [sae.identity["fingerprint"] for sae in setting.saes],
        ]
    )
    if (before := kept_json(out)).get("request") == request:
        clear_kept(out)
        setting.say(f"{out} is complete already")
        return before
    _check_room(setting)
    make_dir(out.parent)
    kept = _kept(out)
    done = kept_json(kept)
    if done.get("request") != request or not same_threads(
        setting.lm, done, "the matrix", setting.say
    ):
        done = {
            "request": request,
            "threads": setting.lm.threads,
            "baseline": _measured(setting, texts),
            "rows": {},
            "counts": {},
        }
    units = own_units(setting, top) if len(done["counts"]) < len(labels) else {}
    for number, label in enumerate(labels, 1):
        if label in done["counts"]:
            continue
        chosen = units[label]
        done["counts"][label] = sum(map(len, chosen.values()))
        if done["counts"][label]:
            done["rows"][label] = _row(setting, label, chosen, texts, edits)
        else:
            setting.say(f"note: {label} has no features of low entropy of its own; it has no row")
        write_json(kept, done)
        setting.say(f"matrix: {label} ({number} of {len(labels)})")
    result = {
        "schema": SCHEMA,
        "request": request,
        "threads": setting.lm.threads,
        "corpus": setting.corpus.name,
        "split": "test",
        "labels": labels,
        "sentences": {label: len(some) for label, some in texts.items()},
        "baseline": done["baseline"],
        "interventions": [
            {
                "edit": edit,
                "units": units,
                "counts": done["counts"],
                "rows": {label: row[f"{edit} {units}"] for label, row in done["rows"].items()},
            }
            for edit in edits
            for units in UNITS
        ],
    }
    write_json(out, result)
    clear_kept(out)
    setting.__dict__.pop(
        "saes_at_hand", None
    )  # with their encoders; what comes after has no use for them
    return result


def clear_kept(out: Path) -> None:
    """Remove what was kept of a matrix that is whole; a kill may have come before."""
    if kept_json(_kept(out)).get("request") == kept_json(out).get("request"):
        _kept(out).unlink(missing_ok=True)


def _kept(out: Path) -> Path:
    return out.with_name(f"{out.stem}-partial.json")


def room(setting: Setting) -> tuple[int, int]:
    """Bytes that the encoders of all SAEs take together, and those that they may."""
    needed = sum(working_bytes(sae, setting.lm.device, 0) for sae in setting.saes)
    return needed, memory_limit(setting.lm.device) // 2


def _check_room(setting: Setting) -> None:
    needed, there = room(setting)
    if needed > there:
        raise steering.CannotSteer(
            f"the matrix edits all {len(setting.saes)} SAEs together, whose encoders take "
            f"{needed / 1e9:.1f} GB, where they may take {there / 1e9:.1f} (half of the memory); measure "
            "it over a run with fewer or narrower SAEs"
        )


def own_is_most(
    result: dict[str, Any], edit: str, units: str = "features", measure: str = "nll_median"
) -> list[str]:
    """The labels whose own measure an edit of their units raises more than that of any other label."""
    rows = next(
        i["rows"] for i in result["interventions"] if (i["edit"], i["units"]) == (edit, units)
    )
    rise = {
        label: {
            other: found[measure] - result["baseline"][other][measure]
            for other, found in row.items()
            if other in result["baseline"]
        }
        for label, row in rows.items()
    }
    return [
        label
        for label, row in rise.items()
        if label in row and all(row[label] > row[other] for other in row if other != label)
    ]


def _texts(setting: Setting, label: str, n: int) -> list[str]:
    corpus, seed = setting.corpus, setting.config.seed
    positions = [i for i in corpus.positions("test", seed) if corpus.of[i] == label]
    return [corpus.texts[i] for i in first_by_hash(corpus, positions, seed, n)]


def _row(
    setting: Setting,
    label: str,
    chosen: dict[str, list[int]],
    texts: dict[str, list[str]],
    edits: Sequence[str],
) -> dict[str, dict[str, Measures]]:
    """`EDIT UNITS` -> measures of every label's texts under that edit of one label's units."""
    lm = setting.lm
    found = {}
    for edit in edits:
        for units in UNITS:
            changes: dict[str, list[Change]] = {}
            for sae in setting.saes_at_hand:
                picked = (
                    chosen[sae.id]
                    if units == "features"
                    else _others(setting, sae.id, label, chosen[sae.id])
                )
                if picked:
                    change = (
                        steering.ablate(sae, picked)
                        if edit == "ablate"
                        else steering.scale(sae, picked)
                    )
                    changes.setdefault(sae.site, []).append(change)
            with steering.apply(lm, changes, 1.0):
                found[f"{edit} {units}"] = _measured(setting, texts)
    return found


def own_units(setting: Setting, top: int) -> dict[str, dict[str, list[int]]]:
    """Label -> SAE -> the label's own features: of low entropy, higher than in the mean of the other labels."""
    found: dict[str, dict[str, list[int]]] = {label: {} for label in setting.corpus.labels}
    for sae in setting.saes:
        stats = _stats(setting, sae.id)
        ranked, means = feature_diffmean([stats], top=None).units(sae.id), stats.mean()
        for label, units in found.items():
            above = mean_difference(stats, label, means=means) > 0
            units[sae.id] = [unit for unit in ranked[label] if above[unit]][:top]
    return found


def _others(setting: Setting, name: str, label: str, chosen: Sequence[int]) -> list[int]:
    stats = _stats(setting, name)
    return random_units(stats, chosen, _SEED + stats.labels.index(label))


def _stats(setting: Setting, name: str) -> Stats:
    sae = next(sae for sae in setting.saes if sae.id == name)
    return steering.stats_of(setting.out / "stats", sae)


def _measured(setting: Setting, texts: dict[str, list[str]]) -> dict[str, Measures]:
    """Label -> measures of its texts under the model as it is now."""
    flat = [text for some in texts.values() for text in some]
    losses = iter(text_losses(setting.lm, flat, TOKEN_LIMIT))
    found = {}
    for label, some in texts.items():
        own = [loss for _ in some if not math.isnan(loss := next(losses))]
        perplexities = [perplexity(loss) for loss in own]
        if not own or not math.isfinite(fmean(perplexities)):
            continue
        found[label] = {
            "nll_mean": fmean(own),
            "nll_median": median(own),
            "perplexity_mean": fmean(perplexities),
            "perplexity_median": median(perplexities),
        }
    return found
