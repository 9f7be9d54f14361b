"""Language identification over a run directory: fit heads and baselines, load them, predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saefeat.baselines import BASELINES
from saefeat.baselines.classifier import TextClassifier
from saefeat.corpora.examples import need_letters
from saefeat.dictionaries import Dictionary, Identity
from saefeat.hooks import site_width
from saefeat.io import UserError
from saefeat.lid.features import Features, featurize, read_features
from saefeat.lid.head import Head
from saefeat.lid.heads import HEADS, FitData
from saefeat.resume import claim_file
from saefeat.run.opened import OpenRun
from saefeat.rundir import RunDir
from saefeat.statistics import Stats
from saefeat.statistics.bags import Bags


def fit_heads(opened: OpenRun, *, force: bool = False) -> None:
    """Fit every head and baseline of a run, and save them.

    Args:
        force: fit again what is fitted already.

    Raises UserError when another process fits them.
    """
    run = opened.files
    every = [*opened.saes, *opened.neurons]
    identities = {each.id: each.identity for each in every}
    found = {n: [id for id, of in identities.items() if h.reads(of)] for n, h in HEADS.items()}
    reads = {name: ids for name, ids in found.items() if ids}
    baselines = {name: kind for name, kind in BASELINES.items() if kind.fitted}
    if not force and all(run.head_file(name).exists() for name in [*reads, *baselines]):
        opened.say("lid: the heads are fitted already")
        return
    with claim_file(run.heads):
        _fit(opened, identities, reads, baselines)


def _fit(
    opened: OpenRun,
    identities: Mapping[str, Mapping[str, Any]],
    reads: Mapping[str, Sequence[str]],
    baselines: Mapping[str, type[TextClassifier]],
) -> None:
    """Fit heads, by the dictionaries that each `reads`, and baselines."""
    run = opened.files
    positions = sorted(opened.plan.tokens)
    texts = [opened.corpus.texts[i] for i in positions]
    of = [opened.corpus.of[i] for i in positions]
    letters = need_letters(texts, of)
    if not letters:
        opened.say(
            "lid: a label has texts without letters, so digits, punctuation and symbols count "
            "as text"
        )
    for name, kind in baselines.items():
        baseline = kind.for_run(opened.lm, opened.corpus.labels)
        baseline.fit(*kind.training_examples(texts, of)).save(run.head_file(name))
    for name, ids in reads.items():
        data = FitData(
            texts,
            of,
            opened.corpus.labels,
            letters,
            opened.config.seed,
            ids,
            load_stats=run.load_stats,
            load_selection=run.load_selection,
            load_features=lambda copies: _load_features(opened, positions, copies, letters),
        )
        head = HEADS[name].fit(data)
        head.reads = {each: identities[each]["fingerprint"] for each in head.units}
        head.letters = letters
        head.save(run.head_file(head.name))


def _load_features(
    opened: OpenRun, positions: Sequence[int], copies: Sequence[str], letters: bool
) -> Features:
    """Bags of SAEs: those of examples as the collection wrote them, and those of copies."""
    run, saes = opened.files, opened.saes
    for sae in saes:
        windows = Stats.read_header(run.stats_file(sae.id)).get("windows", [])
        for path in (Bags.path(run.bags, sae.id, window) for window in windows):
            if not path.is_file():
                raise UserError(f"{path} is missing; remove {run.stats} and run the run again")
    kept = read_features(run.bags, {sae.id: sae.width for sae in saes}, positions)
    new = featurize(opened.lm, saes, copies, letters=letters, say=opened.say)
    opened.say("lid: fitting the linear head")
    return Features.stack([kept, new])


def load_heads(out: Path) -> dict[str, Head]:
    """Load the fitted heads of a run. Raises UserError when there are none."""
    run = RunDir(out)
    heads = {name: Head.load(run.head_file(name)) for name in HEADS if run.head_file(name).exists()}
    if not heads:
        raise UserError(f"{out} has no fitted heads; fit them first", command="lid fit")
    return heads


def choose_head(opened: OpenRun, name: str) -> Head:
    """Load a fitted head of a run. Raises UserError that lists the heads for an unknown one."""
    heads = load_heads(opened.out)
    if name not in heads:
        raise UserError(f"unknown head {name}; this run has {', '.join(heads)}", "head")
    return heads[name]


def load_baselines(opened: OpenRun, file: Path | None = None) -> dict[str, TextClassifier]:
    """Load what the heads of a run must beat, by name. They predict None for unknown.

    Args:
        file: a model of fastText in place of the embedded one.

    Raises:
        UserError: one is missing, as in runs of older versions, or damaged.
    """
    found: dict[str, TextClassifier] = {}
    for name, kind in BASELINES.items():
        baseline = kind.for_run(opened.lm, opened.corpus.labels, file)
        path = opened.files.head_file(name)
        if kind.fitted and not path.exists():
            raise UserError(f"{opened.out} has no {name}; fit it first", command="lid fit")
        found[name] = baseline.restore(path) if kind.fitted else baseline.fit()
    return found


def head_dictionaries(opened: OpenRun, heads: Mapping[str, Head]) -> list[Dictionary]:
    """The dictionaries that heads read: SAEs of the run, and the selected neurons alone.

    Raises:
        UserError: a dictionary has changed since a head was fitted, or a head reads units that its
            dictionary does not have.
    """
    wanted = {name for head in heads.values() for name in head.units}
    found: dict[str, Dictionary] = {sae.id: sae for sae in opened.saes if sae.id in wanted}
    for name in sorted(wanted - found.keys()):
        read = [head.units[name] for head in heads.values() if name in head.units]
        units = torch.from_numpy(np.unique(np.concatenate(read))).to(opened.lm.device)
        found[name] = Identity(name, site_width(opened.lm, opened.lm.site(name)), units=units)
    for head in heads.values():
        for name, units in head.units.items():
            if (units >= found[name].width).any():
                problem = f"the head {head.name} reads units that {name} does not have"
                raise UserError(f"{problem}; fit it again", "force")
            mark = found[name].identity["fingerprint"]
            if head.reads.get(name, mark) != mark:
                problem = f"{name} has changed since the head {head.name} was fitted"
                raise UserError(f"{problem}; fit it again", "force")
    return list(found.values())


def predict(opened: OpenRun, texts: Sequence[str], head: Head) -> list[dict[str, Any]]:
    """Predict the labels of texts.

    Returns:
        Per text a dict: text, label (None where nothing can be said), score, and `units`, the units
        that contribute most.
    """
    # A head without units says nothing of any text; the features still need their rows.
    dictionaries = head_dictionaries(opened, {head.name: head}) or opened.saes[:1]
    features = featurize(opened.lm, dictionaries, texts, letters=head.letters)
    labels, evidence = head.predict(features), head.evidence(features)
    scores = head.probabilities(features).max(1)
    return [
        {
            "text": text,
            "label": label,
            "score": round(float(score), 6) if label else 0.0,
            "units": units if label else [],
        }
        for text, label, score, units in zip(texts, labels, scores, evidence, strict=True)
    ]
