"""Bags of texts as sparse matrices, computed from texts or read from the files of a collection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from saefeat.codes import STEP
from saefeat.collection import observe
from saefeat.corpora import TOKEN_LIMIT, WINDOW, Corpus, clean_text, plan_batches
from saefeat.corpora.examples import says_something
from saefeat.dictionaries import Dictionary
from saefeat.memory import group_to_fit
from saefeat.models import LanguageModel
from saefeat.progress import Say, quiet, track
from saefeat.statistics import Observed, Stats
from saefeat.statistics.bags import read_bags
from saefeat.tokens import without_special

Cells = tuple[np.ndarray, ...]  # row, unit, tokens and sum of pairs of a text and a unit


@dataclass
class Features:
    """Bags of n texts.

    Attributes:
        counts: dictionary id -> CSR [n, width] float32, tokens on which each unit fires.
        sums: dictionary id -> CSR [n, width] float64, sums of the firing values.
    """

    counts: dict[str, sp.csr_matrix]
    sums: dict[str, sp.csr_matrix]

    @classmethod
    def stack(cls, parts: Sequence[Features]) -> Features:
        """The rows of all parts, one part after the other."""

        def stack(tables: list[dict[str, sp.csr_matrix]]) -> dict[str, Any]:
            names = tables[0]
            return {name: sp.vstack([each[name] for each in tables], "csr") for name in names}

        return cls(stack([part.counts for part in parts]), stack([part.sums for part in parts]))

    def __len__(self) -> int:
        return int(next(iter(self.counts.values())).get_shape()[0])


def root_counts(counts: Mapping[str, sp.csr_matrix]) -> dict[str, sp.csr_matrix]:
    """Square roots of counts, each row divided by its length over all dictionaries together."""
    squares = sum(np.asarray(matrix.sum(1)).ravel() for matrix in counts.values())
    scale = sp.diags(1 / np.sqrt(np.maximum(squares, 1e-12)))
    return {name: sp.csr_matrix(scale @ matrix.power(0.5)) for name, matrix in counts.items()}


def featurize(
    lm: LanguageModel,
    dictionaries: Sequence[Dictionary],
    texts: Sequence[str],
    *,
    count_bos: bool = False,
    letters: bool = True,
    say: Say = quiet,
) -> Features:
    """Compute the bags of texts.

    Texts that say nothing (`says_something`) and texts without tokens have empty rows. The texts
    are run once per group of dictionaries that fit in memory together.

    Args:
        count_bos: count the tokens that the tokenizer puts before a text, as SAE-LAPE was
            published.
        letters: whether a text needs a letter to say something.
    """
    parts: dict[str, list[Cells]] = {each.id: [] for each in dictionaries}
    rows = _tokenize(lm, texts)
    rows = {i: row for i, row in rows.items() if says_something(texts[i], letters=letters)}
    none = [""] * len(texts)  # neither labels nor ids
    corpus = Corpus(list(texts), none, none, ("",), "texts")
    for observed in _observe(lm, dictionaries, corpus, rows, count_bos=count_bos, say=say):
        for name, one in observed.items():
            parts[name].append(_cells(one))
    widths = {each.id: each.width for each in dictionaries}
    return _build(parts, widths, len(texts))


def sum_by_label(
    lm: LanguageModel, dictionaries: Sequence[Dictionary], corpus: Corpus
) -> dict[str, Stats]:
    """Compute the statistics of all texts of a corpus: dictionary id -> statistics, on the CPU."""
    names = corpus.labels
    found = {
        d.id: Stats.zeros(names, d.width, signed=d.signed, device=lm.device, dictionary=d.identity)
        for d in dictionaries
    }
    rows = _tokenize(lm, corpus.texts)
    for observed in _observe(lm, dictionaries, corpus, rows, labels=len(names)):
        for name, one in observed.items():
            found[name].add(one)
    return {
        name: Stats(s.labels, {key: t.cpu() for key, t in s.tensors.items()}, s.header)
        for name, s in found.items()
    }


def _tokenize(lm: LanguageModel, texts: Sequence[str]) -> dict[int, list[int]]:
    """Position -> token ids, of the texts that have a token that counts."""
    ids = lm.tokenize([clean_text(text) for text in texts], TOKEN_LIMIT)
    return {i: row for i, row in enumerate(ids) if without_special(row, lm.special_ids)}


def _observe(
    lm: LanguageModel,
    dictionaries: Sequence[Dictionary],
    corpus: Corpus,
    rows: Mapping[int, list[int]],
    *,
    count_bos: bool = False,
    labels: int = 0,
    say: Say = quiet,
) -> Iterator[dict[str, Observed]]:
    """Run texts in batches, given their tokens by position; see `collection.observe`."""
    groups = group_to_fit(dictionaries, lm.device, labels)
    end = max(rows, default=-1) + 1
    with track(say, "lid", len(groups) * len(rows), "texts") as bar:
        for group in groups:
            here = [each.to(lm.device) for each in group]
            for start in range(0, end, WINDOW):
                window = {i: rows[i] for i in range(start, start + WINDOW) if i in rows}
                batches = plan_batches(lm, window, count_bos=count_bos)
                for batch, observed in observe(lm, here, batches, corpus):
                    yield observed
                    bar.update(len(batch.positions))
            del here  # before the next group takes its memory


def _cells(observed: Observed) -> Cells:
    rows = observed.bag.rows()
    assert rows.example is not None and rows.unit is not None
    columns = (rows.unit.int(), rows.tokens.float(), rows.sum.double() * STEP)
    example = observed.positions[rows.example.cpu()]
    return example.numpy(), *(column.cpu().numpy() for column in columns)


def _build(parts: Mapping[str, list[Cells]], widths: Mapping[str, int], n: int) -> Features:
    """Features of n texts."""
    features = Features({}, {})
    for name, cells in parts.items():
        none = (np.zeros(0, np.int64),) * 4
        row, unit, tokens, total = (np.concatenate(c) for c in zip(none, *cells, strict=True))
        shape = (n, widths[name])
        features.counts[name] = sp.csr_matrix((tokens.astype(np.float32), (row, unit)), shape=shape)
        features.sums[name] = sp.csr_matrix((total.astype(np.float64), (row, unit)), shape=shape)
    return features


def read_features(directory: Path, widths: Mapping[str, int], positions: Sequence[int]) -> Features:
    """Read the bags of examples that `collect` wrote to `directory`.

    Args:
        widths: dictionary id -> width, of the dictionaries to read.
        positions: positions of the examples in the corpus, in the order of the rows.

    Raises:
        UserError: there are no bags, or a file is damaged.
    """
    row_of = np.full(max(positions, default=0) + 1, -1, np.int64)
    row_of[np.asarray(positions, np.int64)] = np.arange(len(positions))
    parts: dict[str, list[Cells]] = {}
    for name, width in widths.items():
        parts[name] = []
        for example, *columns in read_bags(directory, name, width):
            inside = (example >= 0) & (example < len(row_of))
            row = np.where(inside, row_of[example * inside], -1)
            wanted = row >= 0
            parts[name].append((row[wanted], *(column[wanted] for column in columns)))
    return _build(parts, widths, len(positions))
