"""Functions and classes that several test files use. Fixtures stand in `conftest.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import strategies as st

from saefeat.codes import STEP
from saefeat.corpora import Corpus
from saefeat.dictionaries import SAE
from saefeat.io import UserError
from saefeat.ranking import FIELDS
from saefeat.selection import Selection
from saefeat.statistics import Stats

DICTIONARIES = ("a", "b")  # of `selection_of`


class Interrupt:
    """A `Say` that keeps its lines and raises KeyboardInterrupt at one of them.

    Args:
        at: the number of the line, counted from 1, or words that the line contains.
    """

    def __init__(self, at: int | str) -> None:
        self.at = at
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        if len(self.lines) == self.at if isinstance(self.at, int) else self.at in line:
            raise KeyboardInterrupt


@contextmanager
def refused(message: str, *options: str) -> Iterator[None]:
    """The block raises a UserError of one line.

    Args:
        message: pattern of the message, which names no flags of the command line.
        options: the parameters that the error proposes to change.
    """
    with pytest.raises(UserError, match=message) as caught:
        yield
    assert "\n" not in str(caught.value) and " --" not in str(caught.value)
    assert caught.value.options == options


def contents(directory: Path | str) -> dict[str, bytes]:
    """Relative path -> bytes of all files below a directory."""
    root = Path(directory)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def rows_of(corpus: Corpus) -> list[tuple[str, str, str]]:
    """(text, label, id) of every example."""
    return list(zip(corpus.texts, corpus.of, corpus.ids, strict=True))


def pairs_of(corpus: Corpus) -> list[tuple[str, str]]:
    """(text, label) of every example."""
    return list(zip(corpus.texts, corpus.of, strict=True))


def random_sae(
    identity: str = "wide",
    site: str = "mlp_out@0",
    *,
    d_in: int = 32,
    width: int = 64,
    k: int = 4,
    seed: int = 0,
    **options: Any,
) -> SAE:
    """A TopK SAE of random weights float32. The encoder is the transposed decoder."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(width, d_in, generator=generator)
    bias = 0.3 * torch.randn(width, generator=generator)
    return SAE(identity, site, rows.t().contiguous(), bias, rows, torch.zeros(d_in), k=k, **options)


def make_stats(
    name: str,
    *,
    site: str = "",
    labels: Sequence[str] | None = None,
    kind: str = "sae",
    signed: bool = False,
    header: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Stats:
    """Statistics from plain lists.

    Args:
        name: the dictionary's id and fingerprint.
        site: default `mlp_out@NAME`.
        labels: default L0, L1, ...
        kind: of dictionary.
        signed: whether values may be negative.
        header: further entries of the header.
        fields: field -> list of K numbers, or of K rows of `width` numbers. `sum` and `total` are
            in units of values, and may only be whole multiples of the step.
    """
    fired = torch.tensor(fields["fired"])
    dictionary = {
        "id": name,
        "site": site or f"mlp_out@{name}",
        "width": fired.shape[1],
        "fingerprint": name,
        "kind": kind,
    }
    names = tuple(labels or (f"L{i}" for i in range(len(fired))))
    stats = Stats.zeros(
        names, fired.shape[1], signed=signed, dictionary=dictionary, **(header or {})
    )
    for field, value in fields.items():
        scale = round(1 / STEP) if field in ("sum", "total") else 1
        stats.tensors[field] += torch.tensor(value) * scale
    return stats


def selection_rows(selection: Selection) -> list[tuple[Any, ...]]:
    """(label, rank, dictionary, unit, score) of every row."""
    names = ("label", "rank", "dictionary", "unit", "score")
    return list(zip(*(selection.table[name].to_pylist() for name in names), strict=True))


def selection_of(
    cells: Sequence[tuple[str, int, str]],
    labels: Sequence[str],
    *,
    dictionaries: Sequence[str] = DICTIONARIES,
    model: Mapping[str, Any] | None = None,
    width: int = 5,
    method: str = "test",
) -> Selection:
    """A selection of (dictionary, unit, label), ranked in this order; scores are positions."""
    order = sorted(range(len(cells)), key=lambda at: (labels.index(cells[at][2]), at))
    ranks = dict.fromkeys(labels, 0)
    rows: list[dict[str, Any]] = []
    for at in order:
        dictionary, unit, label = cells[at]
        ranks[label] += 1
        row: dict[str, Any] = {
            "dictionary": dictionary,
            "site": f"mlp_act@{dictionary}",
            "unit": unit,
        }
        row |= {"label": label, "rank": ranks[label], "score": float(at)}
        rows.append(row | dict.fromkeys(("probability", "mean_firing", "mean", "max"), 0.5))
    header = {
        "method": method,
        "parameters": {},
        "labels": list(labels),
        "dictionaries": {
            name: {"id": name, "width": width, "fingerprint": f"f-{name}"} for name in dictionaries
        },
        "model": model or {"name": "m"},
    }
    return Selection(pa.Table.from_pylist(rows, FIELDS), header)


def cell_tables(labels: Sequence[str]) -> st.SearchStrategy[list[tuple[str, int, str]]]:
    """Cells of these labels, for `selection_of`."""
    cell = st.tuples(st.sampled_from(DICTIONARIES), st.integers(0, 4), st.sampled_from(labels))
    return st.lists(cell, unique=True, max_size=30)
