"""Functions and classes that several test files use. Fixtures stand in `conftest.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import strategies as st

from saefeat.codes import STEP, Codes
from saefeat.corpora import Corpus
from saefeat.dictionaries import SAE
from saefeat.hooks import capture
from saefeat.io import UserError
from saefeat.models import resolve_site
from saefeat.ranking import FIELDS
from saefeat.selection import Selection
from saefeat.statistics import ACCUMULATORS, Stats
from saefeat.statistics.by_example import Table

# Two rows of tokens for the tiny models, with ordinary tokens after the first.
IDS = torch.tensor([[0, 40, 41, 42, 43, 290, 44], [0, 50, 51, 52, 291, 53, 54]])

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


def trained_files(directory: Path | str) -> dict[str, bytes]:
    """Relative path -> bytes of the SAEs of a training; its figures hold times."""
    found = contents(directory).items()
    return {name: data for name, data in found if not name.startswith("training.")}


def training_lines(directory: Path) -> list[dict[str, Any]]:
    """The figures of a training, without times."""
    times = ("seconds", "tokens_per_second", "seconds_left")
    found = [json.loads(line) for line in (directory / "training.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in times} for line in found]


def names(directory: Path) -> list[str]:
    """Names of what a directory holds, sorted."""
    return sorted(path.name for path in directory.iterdir())


def change_cfg(directory: Path, **changes: Any) -> None:
    """Change entries of the directory's `cfg.json`; `...` removes one."""
    path = directory / "cfg.json"
    cfg = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in cfg.items() if value is not ...}))


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


def codes_of(values: torch.Tensor, kind: str) -> Codes:
    """Codes of values [n, width] in a layout; but for `signed`, negative values are left out."""
    width = values.shape[1]
    if kind == "signed":
        return Codes(values, None, width, signed=True)
    values = values.clamp(min=0)
    if kind == "dense":
        return Codes(values, None, width)
    if kind == "flat":
        token, unit = (values > 0).nonzero(as_tuple=True)
        return Codes(values[token, unit], unit, width, counts=(values > 0).sum(1))
    order = values.argsort(1, descending=True)
    return Codes(values.gather(1, order), order, width)


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
    """Statistics from plain lists or tensors.

    Args:
        name: the dictionary's id and fingerprint.
        site: default `mlp_out@NAME`.
        labels: default L0, L1, ...
        kind: of dictionary.
        signed: whether values may be negative.
        header: further entries of the header.
        fields: field -> one number, K numbers, or K rows of `width` numbers. `sum` and `total` are
            in units of values, and may only be whole multiples of the step.
    """
    fired = torch.as_tensor(fields["fired"])
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
        stats.tensors[field] += torch.as_tensor(value) * scale
    return stats


def make_table(
    place: Path, name: str, stats: Stats, label: Sequence[int], ids: Sequence[str], **fields: Any
) -> Table:
    """A table by example in files of two windows.

    Args:
        place: a directory; what is there is replaced.
        name: of the accumulator.
        stats: of the same dictionary; its header gets the windows.
        label: the position of each row's label.
        ids: of the rows.
        fields: field -> rows of values.
    """
    stats.header["windows"] = [0, 1]
    kind: Any = ACCUMULATORS[name]
    columns = {"position": range(len(label)), "label": label, **fields}
    for window, rows in enumerate((slice(0, len(label) // 2), slice(len(label) // 2, None))):
        tensors = {
            field: torch.tensor(list(values)[rows], dtype=kind.FIELDS[field].dtype).reshape(
                -1, *([stats.width] if "unit" in kind.FIELDS[field].axes else [])
            )
            for field, values in columns.items()
        }
        made = kind(stats.labels, tensors, {**stats.header, "limit": 1000})
        made.ids = dict(enumerate(ids))
        made.save(kind.path(place, stats.dictionary, window))
    return kind.open(place, stats.header)


def selection_rows(selection: Selection) -> list[tuple[Any, ...]]:
    """(label, rank, dictionary, unit, score) of every row."""
    names = ("label", "rank", "dictionary", "unit", "score")
    return list(zip(*(selection.table[name].to_pylist() for name in names), strict=True))


def padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask [rows, longest] of rows padded on the left with token 2."""
    longest = max(map(len, rows))
    ids = torch.tensor([[2] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def read(model: Any, *sites: str, inputs: torch.Tensor = IDS) -> Any:
    """The vectors at a site in a forward pass, as a list for several sites."""
    paths = [resolve_site(model, site).path for site in sites]
    with capture(model, tuple(paths)) as captured:
        tensors = captured.run(model, input_ids=inputs)
    return tensors[paths[0]] if len(sites) == 1 else [tensors[path] for path in paths]


def watch(model: Any, module: Any, inputs: torch.Tensor = IDS) -> list[torch.Tensor]:
    """Copies of a module's input and output in a forward pass, by PyTorch's own hooks."""
    seen = []

    def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        result = output if isinstance(output, torch.Tensor) else output[0]
        seen.extend(x.clone() for x in (given, result))

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        model(input_ids=inputs)
    finally:
        handle.remove()
    return seen


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-6) -> None:
    """Assert that two tensors differ by at most `tolerance` at every place."""
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


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
