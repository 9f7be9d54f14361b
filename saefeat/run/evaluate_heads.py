"""Measure the heads and baselines of a run on texts that they were not fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from saefeat.artefacts.lid import LIDMetrics, LIDRequest
from saefeat.baselines import BASELINES
from saefeat.baselines.classifier import TextClassifier
from saefeat.corpora import Corpus, first_by_hash
from saefeat.evaluation import lid_metrics
from saefeat.io import UserError, file_sha256, read_json
from saefeat.labels import in_codes
from saefeat.lid.features import featurize
from saefeat.lid.head import Head
from saefeat.resume import check_same, claim_file
from saefeat.run.identify import head_dictionaries, load_baselines, load_heads
from saefeat.run.opened import OpenRun
from saefeat.run.request import mark_of

LENGTHS = (10, 20, 50, None)  # characters; None: the whole text


def evaluate(
    opened: OpenRun,
    other: Corpus | None,
    *,
    out: Path,
    split: str | None = None,
    max_texts: int | None = None,
    fasttext: Path | None = None,
) -> LIDMetrics:
    """Evaluate every head and baseline on whole texts and on their beginnings.

    The metrics are written to `out`, and the predictions beside it. Metrics of the run's own corpus
    that answer the same request are read instead.

    Args:
        other: another corpus than the run's own. Its labels must be among those of the run, in any
            code system.
        split: "train", "test" or "all"; default "test" of the run's own corpus, all of another.
        max_texts: greatest number of texts per label.
        fasttext: a fastText model; None: the embedded lid.176.ftz.

    Raises:
        UserError: `out` holds something else, another process writes it, a label is unknown, or
            heads or baselines are missing, damaged or of other dictionaries.
    """
    split = split or ("test" if other is None else "all")
    corpus = opened.corpus if other is None else _with_run_labels(opened, other)
    heads = load_heads(opened.out)
    request = _request(opened, corpus, heads, split, max_texts, fasttext)
    before = _read_metrics(opened, out, request["run"])
    if before is not None and before.get("request") == request and other is None:
        opened.say("lid: evaluated already")
        return before
    seed = opened.config.seed
    with claim_file(out):
        baselines = load_baselines(opened, fasttext)
        positions = choose_positions(corpus, split, seed, max_texts)
        texts = [corpus.texts[i] for i in positions]
        predictions = _predict(opened, heads, baselines, texts)
        truth = [corpus.of[i] for i in positions]
        labels = opened.corpus.labels
        metrics = lid_metrics(corpus.name, split, labels, truth, predictions, seed=seed)
        metrics["request"] = request
        opened.files.save_predictions(_prediction_columns(corpus, positions, predictions), out)
        opened.files.save_lid_metrics(metrics, out)
        return metrics


def choose_positions(corpus: Corpus, split: str, seed: int, max_texts: int | None) -> list[int]:
    """Positions of the texts that are evaluated: those of a split, `max_texts` per label."""
    positions = corpus.positions(split, seed)
    return positions if max_texts is None else first_by_hash(corpus, positions, seed, max_texts)


def _request(
    opened: OpenRun,
    corpus: Corpus,
    heads: Mapping[str, Head],
    split: str,
    max_texts: int | None,
    fasttext: Path | None,
) -> LIDRequest:
    mark = file_sha256(fasttext)[:16] if fasttext and fasttext.is_file() else "embedded"
    fitted = [name for name, kind in BASELINES.items() if kind.fitted]
    return {
        "corpus": corpus.fingerprint,
        "split": split,
        "max_texts": max_texts,
        "fasttext": mark,
        "run": mark_of(opened.config),
        "heads": sorted([*heads, *fitted]),  # metrics of older versions lack some
    }


def _read_metrics(opened: OpenRun, out: Path, run: str) -> LIDMetrics | None:
    """Metrics that were written before. Raises UserError where they are not of this run."""
    if not out.exists():
        return None
    found = read_json(out)
    request = found.get("request") if isinstance(found, dict) else None
    written_for = request.get("run") if isinstance(request, dict) else None
    check_same(out, written_for, run, "metrics")
    return opened.files.load_lid_metrics(out)


def _predict(
    opened: OpenRun,
    heads: Mapping[str, Head],
    baselines: Mapping[str, TextClassifier],
    texts: Sequence[str],
) -> dict[str, dict[str, list[str | None]]]:
    """Length -> head or baseline -> predicted labels of the texts cut to that length."""
    dictionaries = head_dictionaries(opened, heads)
    letters = all(head.letters for head in heads.values())
    found: dict[str, dict[str, list[str | None]]] = {}
    for length in LENGTHS:
        cut = [text[:length] for text in texts]
        part = "whole" if length is None else f"first {length}"
        opened.say(f"lid: evaluating {len(cut):,} texts, {part}")
        features = featurize(opened.lm, dictionaries, cut, letters=letters, say=opened.say)
        found["all" if length is None else str(length)] = {
            **{name: head.predict(features) for name, head in heads.items()},
            **{name: baseline.predict(cut) for name, baseline in baselines.items()},
        }
    return found


def _with_run_labels(opened: OpenRun, corpus: Corpus) -> Corpus:
    """A corpus with the labels of the run in place of its own, which may be in other codes."""
    names = in_codes(corpus.labels, opened.corpus.labels)
    unknown = [label for label in corpus.labels if label not in names]
    if unknown:
        raise UserError(
            f"{corpus.name} has the label {unknown[0]}, which the run does not know; choose labels",
            "labels",
        )
    renamed = [f"{label} as {own}" for label, own in names.items() if label != own]
    if not renamed:
        return corpus
    opened.say(f"labels of {corpus.name}: {', '.join(renamed)}")
    labels = tuple(dict.fromkeys(names.values()))
    return replace(corpus, of=[names[label] for label in corpus.of], labels=labels)


def _prediction_columns(
    corpus: Corpus,
    positions: Sequence[int],
    predictions: Mapping[str, Mapping[str, Sequence[str | None]]],
) -> dict[str, list[str | None]]:
    """The columns of predictions, with a row per length, head and text."""
    names = ("id", "label", "text", "length", "head", "predicted")
    columns: dict[str, list[str | None]] = {name: [] for name in names}
    for length, heads in predictions.items():
        end = None if length == "all" else int(length)
        for head, predicted in heads.items():
            columns["id"] += [corpus.ids[i] for i in positions]
            columns["label"] += [corpus.of[i] for i in positions]
            columns["text"] += [corpus.texts[i][:end] for i in positions]
            columns["length"] += [length] * len(positions)
            columns["head"] += [head] * len(positions)
            columns["predicted"] += predicted
    return columns
