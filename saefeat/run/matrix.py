"""`steer matrix`: edit each label's units, measure the perplexity of every label's text.

After `ppl.py` of SAE-LAPE (arXiv 2507.11230, its perplexity experiment), with medians and a
random-unit control.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from saefeat.artefacts.steering import PerplexityMatrix, TextMeasures
from saefeat.config import MATRIX_EDITS, MatrixConfig
from saefeat.dictionaries import SAE
from saefeat.generation import losses_by_label, perplexity, predictable
from saefeat.io import SCHEMA, fingerprint, kept_json
from saefeat.methods.feature_diffmean import feature_diffmean, mean_difference
from saefeat.progress import track
from saefeat.resume import Checkpoint, check_replaceable, clear_finished, resume
from saefeat.run.chosen import Opened
from saefeat.run.opened import OpenRun
from saefeat.run.steer import pick_test_texts
from saefeat.steering import CannotSteer, apply
from saefeat.steering.changes import Collected, Units, build_changes
from saefeat.steering.twins import random_units

UNITS = ("features", "random")
_SEED = 23  # of the random units


def matrix(opened: OpenRun, out: Path, config: MatrixConfig) -> PerplexityMatrix:
    """Write the matrix to `out`, and return its content.

    Each label's features (of low entropy, and highest above the mean of the other labels) are
    edited in turn: `ablate` sets them to zero, `amplify` doubles them. All SAEs are edited
    together. Run it again to resume: labels that are done are kept. With another number of threads,
    which changes figures in bfloat16, and with statistics that are collected anew, which change the
    features, it starts again.

    Raises CannotSteer when no label has a test text, when fewer than two labels have statistics, or
    when the encoders of all SAEs together do not fit in memory; UserError when `out` is something
    else.
    """
    check_replaceable(out, "perplexity matrix", lambda path: "interventions" in kept_json(path))
    lm, labels = opened.lm, list(opened.corpus.labels)
    picked = {x: predictable(lm, pick_test_texts(opened, x, config.sentences)) for x in labels}
    texts = {label: some for label, some in picked.items() if some}
    if not texts:
        raise CannotSteer("no label has a test text to measure; the corpus is too small")
    saes = [sae.identity["fingerprint"] for sae in opened.saes]
    origins = opened.files.stats_origins(sae.id for sae in opened.saes)
    asked = [config.sentences, list(config.edits), config.top]
    request = fingerprint([lm.fingerprint, opened.corpus.fingerprint, *asked, saes, origins])
    if kept_json(out).get("request") == request:
        clear_finished(out, request)
        opened.say(f"{out} is complete already")
        return opened.files.load_matrix(out)
    known = Opened(opened.saes, {}.__getitem__, lm.device)
    known.check_room(known.known, "the matrix")
    with resume(out, request, "the matrix", lm.threads, opened.say) as checkpoint:
        done = _measure_rows(opened, texts, config, checkpoint)
        result: PerplexityMatrix = {
            "schema": SCHEMA,
            "request": request,
            "threads": lm.threads,
            "corpus": opened.corpus.name,
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
                for edit in config.edits
                for units in UNITS
            ],
        }
        opened.files.save_matrix(result, out)
    return result


def _measure_rows(
    opened: OpenRun, texts: Mapping[str, list[str]], config: MatrixConfig, checkpoint: Checkpoint
) -> dict[str, Any]:
    """Measure the unedited model (`baseline`) and each label that the checkpoint lacks.

    Returns the baseline, and by label the counts of units and the rows of `_Editor.measure_row`.
    """
    done, _ = checkpoint.load() or ({}, {})
    done = done or {"baseline": measure_texts(opened, texts), "rows": {}, "counts": {}}
    left = [label for label in opened.corpus.labels if label not in done["counts"]]
    editor = _Editor(opened, texts, config) if left else None
    with track(opened.say, "matrix", len(left), "labels") as bar:
        for label in left:
            assert editor
            done["counts"][label] = editor.count(label)
            if done["counts"][label]:
                done["rows"][label] = editor.measure_row(label)
            else:
                opened.say(f"note: {label} has no features of low entropy; it gets no row")
            checkpoint.save(done)
            bar.set_postfix_str(label, refresh=False)
            bar.update()
    return done


def most_affected(result: PerplexityMatrix, edit: str) -> list[str]:
    """List the labels whose own median NLL rises more than any other's when they are edited.

    A loss that became infinite or no number has risen more than all others.
    """
    rows, before, found = _rows_of(result, edit), result["baseline"], []
    for label, row in rows.items():
        rise = {
            x: row[x]["nll_median"] - one["nll_median"] if x in row else math.inf
            for x, one in before.items()
        }
        own = rise.pop(label, None)
        if own is not None and all(own > other for other in rise.values()):
            found.append(label)
    return found


def lost_cells(result: PerplexityMatrix, edit: str) -> int:
    """How many losses an edit of features made infinite or no number; they have no figures."""
    return sum(len(result["baseline"].keys() - row) for row in _rows_of(result, edit).values())


def _rows_of(result: PerplexityMatrix, edit: str) -> dict[str, dict[str, TextMeasures]]:
    wanted = (edit, "features")
    return next(i["rows"] for i in result["interventions"] if (i["edit"], i["units"]) == wanted)


def own_features(
    collected: Collected, saes: Sequence[SAE], top: int
) -> dict[str, dict[str, list[int]]]:
    """Choose features of low entropy that are higher in a label than in the mean of the others.

    Returns:
        Label -> SAE -> at most `top` units; none for a label without tokens.

    Raises CannotSteer when fewer than two labels have tokens.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for sae in saes:
        stats = collected.stats(sae)
        counted = stats.counted_labels
        if len(counted) < 2:
            raise CannotSteer("the matrix compares labels; give text of two or more")
        ranked, means = feature_diffmean([stats], top=None).units(sae.id), stats.mean()
        for label in stats.labels:
            units: list[int] = []
            if label in counted:
                above = mean_difference(stats, label, means=means) > 0
                units = [unit for unit in ranked[label] if above[unit]][:top]
            found.setdefault(label, {})[sae.id] = units
    return found


class _Editor:
    """Measures all labels under the edits of one label's units.

    It holds the SAEs on the model's device. Their encoders are freed when it is deleted.
    """

    def __init__(
        self, opened: OpenRun, texts: Mapping[str, list[str]], config: MatrixConfig
    ) -> None:
        self.opened, self.texts, self.edits = opened, texts, config.edits
        self.saes = [sae.to(opened.lm.device) for sae in opened.saes]
        # Not kept in memory: statistics of wide SAEs are large beside the encoders.
        self.collected = Collected(opened.files.load_stats, None, opened.lm.device)
        self.features = own_features(self.collected, opened.saes, config.top)

    def count(self, label: str) -> int:
        return sum(map(len, self.features[label].values()))

    def measure_row(self, label: str) -> dict[str, dict[str, TextMeasures]]:
        """Measure each edit: `EDIT UNITS` -> label -> measures of its texts."""
        found = {}
        for edit in self.edits:
            for units in UNITS:
                chosen = self._choose(label, units)
                changes = build_changes(MATRIX_EDITS[edit], chosen, label, self.collected)
                with apply(self.opened.lm, changes, 1.0):
                    found[f"{edit} {units}"] = measure_texts(self.opened, self.texts)
        return found

    def _choose(self, label: str, units: str) -> dict[str, list[Units]]:
        """The features of a label, or as many random ones, by site."""
        chosen: dict[str, list[Units]] = {}
        for sae in self.saes:
            picked = self.features[label][sae.id]
            if units == "random":
                stats = self.collected.stats(sae)
                picked = random_units(stats, picked, _SEED + stats.labels.index(label))
            if picked:
                chosen.setdefault(sae.site, []).append(Units(sae, picked))
        return chosen


def measure_texts(opened: OpenRun, texts: Mapping[str, list[str]]) -> dict[str, TextMeasures]:
    """Measure the texts of each label (see `predictable`) under the model as it is now.

    A label has no measures where the loss of a text is infinite or no number.
    """
    found: dict[str, TextMeasures] = {}
    for label, losses in losses_by_label(opened.lm, texts).items():
        known = [math.nan if loss is None else loss for loss in losses]
        perplexities = [perplexity(loss) for loss in known]
        if math.isfinite(fmean(perplexities)):
            found[label] = {
                "nll_mean": fmean(known),
                "nll_median": median(known),
                "perplexity_mean": fmean(perplexities),
                "perplexity_median": median(perplexities),
            }
    return found
