"""How far translations are nearest to each other by layer: MEXA (arXiv 2410.05873)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from saefeat.artefacts.experiments import Row
from saefeat.corpora import TOKEN_LIMIT, Corpus, load_corpus
from saefeat.experiments.cases import translations
from saefeat.experiments.frame import Question, mean_of
from saefeat.experiments.lenses.bench import LAYERS, LensBench, NotApplicable, Prepared
from saefeat.labels import find_english, own_label
from saefeat.lens.alignment import (
    POOLINGS,
    Embeddings,
    aligned,
    aligned_otherwise,
    cosines,
    embed_texts,
)

_LEAST = 3  # pairs; of two, the control has nothing to compete with
_FEW = 20  # pairs, of which many are aligned by chance
_LAST = "The stream after the last block is read behind the final norm, as published."


def find_pairs(corpus: Corpus, pivot: str, n: int, seed: int) -> dict[str, list[tuple[str, str]]]:
    """Find at most n translations of the pivot's texts: label -> (text of the pivot, text).

    See `translations`. Labels with fewer than three are left out.

    Raises NotApplicable where no label has three translations.
    """
    pairs = translations(corpus, range(len(corpus)), pivot, n, seed)
    found = {
        label: [(corpus.texts[one], corpus.texts[other]) for one, other in some]
        for label, some in pairs.items()
        if len(some) >= _LEAST
    }
    if not found:
        raise NotApplicable(
            f"the texts of {corpus.name} are not parallel: no three texts of another label "
            f"share their id with texts in {pivot}; give a corpus whose translations share an id",
            "parallel",
        )
    return found


def alignment(bench: LensBench) -> Prepared:
    """Measure the alignment of every label with the pivot, at every layer.

    Rows have the columns label, pooling, layer, mexa (share of aligned pairs), control (see
    `aligned_otherwise`: the same of texts that are no translations) and pairs.
    """
    config, seed = bench.config, bench.opened.config.seed
    corpus = bench.opened.corpus
    if config.parallel is not None:
        corpus = load_corpus(config.parallel, say=bench.opened.say)
    pivot = _pivot(corpus, config.pivot)
    pairs = find_pairs(corpus, pivot, config.pairs, seed)
    if missing := [label for label in corpus.labels if label not in (pivot, *pairs)]:
        bench.opened.say(f"note: {', '.join(missing)} have no translations from {pivot}")
    question = Question(
        "lens-alignment",
        f"MEXA: alignment with {pivot} by layer",
        {
            **bench.settings("pairs"),
            "pivot": pivot,
            "control": "next text, without translations",
            "last": "with final norm",
            "parallel": {"name": corpus.name, "fingerprint": corpus.fingerprint},
        },
        [
            {"kind": "lines", "x": "layer", "y": "label", "value": value, "panels": ["pooling"]}
            for value in ("mexa", "control")
        ],
        [LAYERS, _LAST, *_warnings({label: len(some) for label, some in pairs.items()})],
    )
    aligner = _Aligner(bench, pairs)
    return Prepared(question, list(pairs), aligner.measure, _summarize)


def _pivot(corpus: Corpus, asked: str | None) -> str:
    """The label asked for, or English, or the first."""
    if asked is None:
        return find_english(corpus.labels) or corpus.labels[0]
    if (found := own_label(asked, corpus.labels)) is None:
        known = ", ".join(corpus.labels)
        raise NotApplicable(f"{corpus.name} has no label {asked}; it has {known}", "pivot")
    return found


def _warnings(pairs: Mapping[str, int]) -> list[str]:
    """Notes on labels with few pairs, and on numbers of pairs that differ."""
    found = []
    if few := [f"{label} ({n})" for label, n in pairs.items() if n < _FEW]:
        found.append(
            f"Fewer than {_FEW} pairs: {', '.join(few)}. Of few pairs many are nearest to each "
            "other by chance; compare with the control."
        )
    if min(pairs.values()) < max(pairs.values()):
        found.append(
            f"The labels have {min(pairs.values())} to {max(pairs.values())} pairs. Fewer pairs "
            "give higher scores, so the labels cannot be compared as they are."
        )
    return found


class _Aligner:
    """Measures one label after the other. The pivot's texts are embedded once."""

    def __init__(self, bench: LensBench, pairs: Mapping[str, Sequence[tuple[str, str]]]) -> None:
        self.bench, self.pairs = bench, pairs

    @cached_property
    def _own(self) -> tuple[dict[str, int], Embeddings]:
        """The place of each text of the pivot, and the embeddings of all."""
        texts = list(dict.fromkeys(own for some in self.pairs.values() for own, _ in some))
        return {text: i for i, text in enumerate(texts)}, self._embed(texts)

    def _embed(self, texts: list[str]) -> Embeddings:
        lm = self.bench.lm
        return embed_texts(lm, lm.tokenize(texts, TOKEN_LIMIT), list(self.bench.sites.values()))

    def measure(self, label: str) -> list[Row]:
        places, own = self._own
        at = [places[text] for text, _ in self.pairs[label]]
        other = self._embed([text for _, text in self.pairs[label]])
        rows: list[Row] = []
        for pooling in POOLINGS:
            for layer, site in self.bench.sites.items():
                similarity = cosines(own[site, pooling][at], other[site, pooling])
                rows.append(
                    {
                        "label": label,
                        "pooling": pooling,
                        "layer": layer,
                        "mexa": float(aligned(similarity).mean()),
                        "control": float(aligned_otherwise(similarity).mean()),
                        "pairs": len(at),
                    }
                )
        return rows


def _summarize(rows: list[Row]) -> list[Row]:
    """Mean and greatest over layers, as the paper scores languages, and the layer of the latter."""
    found: list[Row] = []
    for pooling in POOLINGS:
        for label in dict.fromkeys(row["label"] for row in rows):
            here: list[Any] = [r for r in rows if (r["pooling"], r["label"]) == (pooling, label)]
            best = max(here, key=lambda row: row["mexa"])
            found.append(
                {
                    "pooling": pooling,
                    "label": label,
                    "mean": mean_of(here, "mexa"),
                    "max": best["mexa"],
                    "layer": best["layer"],
                    "control": mean_of(here, "control"),
                    "pairs": best["pairs"],
                }
            )
    return found
